package encap

import (
	"encoding/binary"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// ICMP errors (RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2, RFC
// 4443 section 2.4): what is wrong, where it is sent and when it is not.

type icmpError uint8

const (
	icmpNoRoute icmpError = iota
	icmpExpired
	icmpTooBig // with the MTU
)

// Most of the offending packet that is quoted: an IPv4 error stays below 576
// bytes (RFC 1812 section 4.3.2.3), an IPv6 one below 1280 (RFC 4443 section 2.4).
const (
	icmpMax4 = 576
	icmpMax6 = 1280
	// icmpHop is the TTL of errors: the default of IANA.
	icmpHop = 64
)

// tellHost sends the sender of an outbound packet an ICMP error, if rules and
// rate allow. s is the set that the decision was made with.
func (c *core) tellHost(s *snapshot, p []byte, what icmpError, mtu int) {
	if msg := c.icmp(s, p, what, mtu); msg != nil {
		c.out.toHost(msg, p)
	}
}

// tellPeer does the same for an inbound packet: the error goes through the
// tunnel to the peer that its inner source belongs to.
func (c *core) tellPeer(s *snapshot, p []byte, what icmpError) {
	pr := s.sourcePeer(p)
	if pr == nil || pr == localPeer || !s.router(p).IsValid() {
		return
	}
	if msg := c.icmp(s, p, what, 0); msg != nil {
		c.out.toPeer(pr, msg)
	}
}

// sourcePeer returns what the inner source of p belongs to.
func (s *snapshot) sourcePeer(p []byte) *peer {
	if p[0]>>4 == 4 {
		return s.lookup4(binary.BigEndian.Uint32(p[12:]))
	}
	return s.lookup6(binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:]))
}

// destPeer returns what the inner destination of p belongs to; p has at least
// an IPv4 header's length.
func (s *snapshot) destPeer(p []byte) *peer {
	if p[0]>>4 == 4 {
		return s.lookup4(binary.BigEndian.Uint32(p[16:]))
	}
	if p[0]>>4 != 6 || len(p) < offload.IPv6Len {
		return nil
	}
	return s.lookup6(binary.BigEndian.Uint64(p[24:]), binary.BigEndian.Uint64(p[32:]))
}

// router returns this host's address in errors about packets of p's version.
func (s *snapshot) router(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return s.router4
	}
	return s.router6
}

// icmp builds the error about p in the core's buffer, or returns nil when
// there is to be none.
func (c *core) icmp(s *snapshot, p []byte, what icmpError, mtu int) []byte {
	if c.cfg.NoICMP || !mayBeTold(p) {
		return nil
	}
	if !c.limit.allow(p) {
		c.stats.ICMPLimited++
		return nil
	}
	c.stats.ICMPSent++
	if p[0]>>4 == 4 {
		return icmp4(c.icmpBuf[:0], p, s.router(p), what, mtu)
	}
	return icmp6(c.icmpBuf[:0], p, s.router(p), what, mtu)
}

// mayBeTold says whether an error about p is allowed: never about an ICMP
// error, a fragment other than the first, a multicast or broadcast
// destination, or a source that is no single host's.
func mayBeTold(p []byte) bool {
	if p[0]>>4 == 4 {
		ihl := int(p[0]&15) * 4
		if ihl < offload.IPv4Len || len(p) < ihl+8 || p[6]&0x1f != 0 || p[7] != 0 {
			return false
		}
		if p[9] == offload.ProtoICMP && !isICMP4Query(p[ihl]) {
			return false
		}
		return p[16]>>4 != 0xe && binary.BigEndian.Uint32(p[16:]) != 0xffffffff &&
			p[12] != 0 && p[12] != 127 && p[12]>>4 < 0xe
	}
	if len(p) < offload.IPv6Len+8 || p[24] == 0xff || p[8] == 0xff {
		return false
	}
	src := netip.AddrFrom16([16]byte(p[8:24]))
	if src.IsUnspecified() || src.IsLoopback() {
		return false
	}
	proto, at, first := upper6(p)
	if !first {
		return false
	}
	// RFC 4443: types below 128 are errors. What can't be parsed may be one.
	if proto == offload.ProtoICMPv6 {
		return at < len(p) && p[at] >= 128 && p[at] != 137 // 137: redirect
	}
	return proto != -1
}

// isICMP4Query lists the types that are no errors (RFC 1122 section 3.2.2).
func isICMP4Query(t byte) bool {
	switch t {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

// upper6 walks the extension headers of p to its transport protocol and where
// that begins; proto is -1 when the headers make no sense, first is false for
// fragments other than the first.
func upper6(p []byte) (proto, at int, first bool) {
	next, at := int(p[6]), offload.IPv6Len
	for range 8 {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if at+8 > len(p) {
				return -1, at, true
			}
			next, at = int(p[at]), at+8+int(p[at+1])*8
		case 51: // authentication header, in units of 4 bytes (RFC 4302)
			if at+8 > len(p) {
				return -1, at, true
			}
			next, at = int(p[at]), at+8+int(p[at+1])*4
		case 44: // fragment
			if at+8 > len(p) {
				return -1, at, true
			}
			if binary.BigEndian.Uint16(p[at+2:])&0xfff8 != 0 {
				return next, at, false
			}
			next, at = int(p[at]), at+8
		default:
			return next, at, true
		}
	}
	return -1, at, true
}

// icmp4 appends an IPv4 ICMP error about p from router to b.
func icmp4(b, p []byte, router netip.Addr, what icmpError, mtu int) []byte {
	quote := p[:min(len(p), icmpMax4-offload.IPv4Len-8)]
	n := offload.IPv4Len + 8 + len(quote)
	b = append(b, make([]byte, offload.IPv4Len+8)...)
	b = append(b, quote...)
	b[0], b[8], b[9] = 0x45, icmpHop, offload.ProtoICMP
	b[1] = 0xc0 // internetwork control (RFC 1812 section 4.3.2.5)
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	if router.Is4() {
		a := router.As4()
		copy(b[12:], a[:])
	}
	copy(b[16:20], p[12:16])
	offload.PutSum(b[10:], offload.Sum(b[:offload.IPv4Len], 0))
	icmp := b[offload.IPv4Len:]
	switch what {
	case icmpNoRoute:
		icmp[0], icmp[1] = 3, 0 // network unreachable
	case icmpExpired:
		icmp[0], icmp[1] = 11, 0 // TTL exceeded in transit
	case icmpTooBig:
		icmp[0], icmp[1] = 3, 4 // fragmentation needed (RFC 1191)
		binary.BigEndian.PutUint16(icmp[6:], uint16(min(mtu, 65535)))
	}
	offload.PutSum(icmp[2:], offload.Sum(icmp, 0))
	return b
}

// icmp6 appends an ICMPv6 error about p from router to b.
func icmp6(b, p []byte, router netip.Addr, what icmpError, mtu int) []byte {
	quote := p[:min(len(p), icmpMax6-offload.IPv6Len-8)]
	b = append(b, make([]byte, offload.IPv6Len+8)...)
	b = append(b, quote...)
	b[0], b[6], b[7] = 0x60, offload.ProtoICMPv6, icmpHop
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quote)))
	if router.Is6() {
		a := router.As16()
		copy(b[8:], a[:])
	}
	copy(b[24:40], p[8:24])
	icmp := b[offload.IPv6Len:]
	switch what {
	case icmpNoRoute:
		icmp[0], icmp[1] = 1, 0 // no route to destination
	case icmpExpired:
		icmp[0], icmp[1] = 3, 0 // hop limit exceeded
	case icmpTooBig:
		icmp[0], icmp[1] = 2, 0
		binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	}
	offload.PutSum(icmp[2:], offload.Sum(icmp, offload.PseudoIPv6(b, offload.ProtoICMPv6, len(icmp))))
	return b
}

// setSource replaces the source address of an error made by icmp4 or icmp6 by
// the destination of the packet it is about.
func setSource(msg, about []byte) {
	if msg[0]>>4 == 4 {
		copy(msg[12:16], about[16:20])
		msg[10], msg[11] = 0, 0
		offload.PutSum(msg[10:], offload.Sum(msg[:offload.IPv4Len], 0))
		return
	}
	copy(msg[8:24], about[24:40])
	icmp := msg[offload.IPv6Len:]
	icmp[2], icmp[3] = 0, 0
	offload.PutSum(icmp[2:], offload.Sum(icmp, offload.PseudoIPv6(msg, offload.ProtoICMPv6, len(icmp))))
}

// limiter bounds ICMP errors: a token bucket for each of 256 groups of
// senders, so that one flood does not silence the errors of others, and one
// for all.
type limiter struct {
	all    bucket
	groups [256]bucket
}

type bucket struct {
	tokens int32 // in hundredths
	last   int64
}

// Rates in errors a second and bursts.
const (
	limitAll, burstAll     = 1000, 200
	limitGroup, burstGroup = 50, 20
)

func (b *bucket) take(now int64, rate, burst int64) bool {
	if b.last == 0 {
		b.tokens, b.last = int32(burst*100), now
	}
	// A minute fills any bucket; more would overflow the product. Time that
	// made no whole hundredth is kept for the next call.
	gain := max(min(now-b.last, 60e9), 0) * rate * 100 / 1e9
	if int64(b.tokens)+gain >= burst*100 {
		b.tokens, b.last = int32(burst*100), now
	} else {
		b.tokens += int32(gain)
		b.last += gain * 1e9 / (rate * 100)
	}
	if b.tokens < 100 {
		return false
	}
	b.tokens -= 100
	return true
}

func (l *limiter) allow(p []byte) bool {
	var h uint32
	if p[0]>>4 == 4 {
		h = hash32(binary.BigEndian.Uint32(p[12:]))
	} else {
		h = hash128(binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:]))
	}
	now := monotonic()
	return l.groups[h>>24].take(now, limitGroup, burstGroup) && l.all.take(now, limitAll, burstAll)
}
