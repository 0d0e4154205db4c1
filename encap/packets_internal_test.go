package encap

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// Packets for the tests of this package, built field by field and summed by
// RFC 1071 as it is written, so that nothing here rests on what is tested.

// slowSum is the checksum of all parts, each of even length but the last.
func slowSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for len(b) > 1 {
			sum += uint32(b[0])<<8 | uint32(b[1])
			b = b[2:]
			sum = sum>>16 + sum&0xffff
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// TCP flags.
const (
	fin = 0x01
	psh = 0x08
	ack = 0x10
	cwr = 0x80
)

// inner describes one packet inside the tunnel; the zero value of a field is
// what a packet usually has there.
type inner struct {
	src, dst     netip.Addr
	proto        byte // TCP, UDP; others carry payload right behind the IP header
	sport, dport uint16
	seq, ack     uint32
	flags        byte
	win          uint16
	opts         []byte // TCP options, a multiple of four
	id           uint16
	frag         uint16 // IPv4 flags and fragment offset as in the header
	ttl          byte   // 0: 64
	tos          byte
	ext          []byte // IPv6 extension headers; proto is then next of the last one
	next         byte   // IPv6: next header of the IP header when there is ext
	payload      []byte
}

func (in inner) ipLen() int {
	if in.src.Is4() {
		return 20
	}
	return 40 + len(in.ext)
}

func (in inner) headerLen() int {
	switch in.proto {
	case offload.ProtoTCP:
		return in.ipLen() + 20 + len(in.opts)
	case offload.ProtoUDP:
		return in.ipLen() + 8
	}
	return in.ipLen()
}

// packet returns the packet with all checksums right.
func (in inner) packet() []byte { return in.build(true) }

// build returns the packet; with whole false the L4 checksum field holds the
// pseudo-header's sum only, as the kernel leaves it to offload.
func (in inner) build(whole bool) []byte {
	h := in.headerLen()
	b := make([]byte, h+len(in.payload))
	copy(b[h:], in.payload)
	be := binary.BigEndian
	l4 := b[in.ipLen():]
	at := -1
	switch in.proto {
	case offload.ProtoTCP:
		be.PutUint16(l4, in.sport)
		be.PutUint16(l4[2:], in.dport)
		be.PutUint32(l4[4:], in.seq)
		be.PutUint32(l4[8:], in.ack)
		l4[12], l4[13] = byte(20+len(in.opts))<<2, in.flags
		be.PutUint16(l4[14:], in.win)
		copy(l4[20:], in.opts)
		at = 16
	case offload.ProtoUDP:
		be.PutUint16(l4, in.sport)
		be.PutUint16(l4[2:], in.dport)
		be.PutUint16(l4[4:], uint16(len(l4)))
		at = 6
	}
	if in.src.Is4() {
		b[0], b[1] = 0x45, in.tos
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[4:], in.id)
		be.PutUint16(b[6:], in.frag)
		b[8], b[9] = in.hops(), in.proto
		copy(b[12:], in.src.AsSlice())
		copy(b[16:], in.dst.AsSlice())
		be.PutUint16(b[10:], slowSum(b[:20]))
	} else {
		b[0], b[1] = 0x60|in.tos>>4, in.tos<<4
		be.PutUint16(b[4:], uint16(len(b)-40))
		b[6], b[7] = in.proto, in.hops()
		if len(in.ext) > 0 {
			b[6] = in.next
			copy(b[40:], in.ext)
		}
		copy(b[8:], in.src.AsSlice())
		copy(b[24:], in.dst.AsSlice())
	}
	if at >= 0 {
		if whole {
			putL4Sum(b, in.ipLen(), in.proto)
		} else {
			be.PutUint16(l4[at:], ^slowSum(pseudo(b, in.proto, len(l4))))
		}
	}
	return b
}

func (in inner) hops() byte {
	if in.ttl == 0 {
		return 64
	}
	return in.ttl
}

// pseudo is the pseudo-header of the packet b.
func pseudo(b []byte, proto byte, l4Len int) []byte {
	var p []byte
	if b[0]>>4 == 4 {
		p = append(p, b[12:20]...)
	} else {
		p = append(p, b[8:40]...)
	}
	return binary.BigEndian.AppendUint32(append(p, 0, 0, 0, proto), uint32(l4Len))
}

// putL4Sum writes the TCP or UDP checksum of b.
func putL4Sum(b []byte, ipLen int, proto byte) {
	l4 := b[ipLen:]
	at := 16
	if proto == offload.ProtoUDP {
		at = 6
	}
	l4[at], l4[at+1] = 0, 0
	sum := slowSum(pseudo(b, proto, len(l4)), l4)
	if proto == offload.ProtoUDP && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], sum)
}

// super returns the packet as the kernel hands over a super-packet whose
// segments carry mss bytes each, with its virtio header.
func (in inner) super(mss int) ([]byte, offload.Virtio) {
	v := offload.Virtio{
		Flags: offload.NeedsCsum, GSOType: offload.GSOTCPv4, HdrLen: uint16(in.headerLen()), GSOSize: uint16(mss),
		CsumStart: uint16(in.ipLen()), CsumOffset: 16,
	}
	switch {
	case in.proto == offload.ProtoUDP:
		v.GSOType, v.CsumOffset = offload.GSOUDPL4, 6
	case !in.src.Is4():
		v.GSOType = offload.GSOTCPv6
	}
	return in.build(false), v
}

// segments returns what a super-packet of in is on the wire, cut by hand.
func (in inner) segments(mss int) [][]byte {
	var out [][]byte
	for i, at := 0, 0; at < len(in.payload); i, at = i+1, at+mss {
		seg := in
		seg.payload = in.payload[at:min(at+mss, len(in.payload))]
		seg.seq += uint32(at)
		seg.id += uint16(i)
		if at+mss < len(in.payload) {
			seg.flags &^= fin | psh
		}
		if i > 0 {
			seg.flags &^= cwr
		}
		out = append(out, seg.packet())
	}
	return out
}

// hop returns the packet one router further: one off the TTL, a new checksum.
func hop(p []byte) []byte {
	b := slices.Clone(p)
	if b[0]>>4 == 4 {
		b[8]--
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], slowSum(b[:int(b[0]&15)*4]))
	} else {
		b[7]--
	}
	return b
}

func hops(ps [][]byte) [][]byte {
	out := make([][]byte, len(ps))
	for i, p := range ps {
		out[i] = hop(p)
	}
	return out
}

// pattern returns n bytes that differ with the seed and along the way.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func port(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func prefixes(s ...string) (ps []netip.Prefix) {
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

// The network of these tests: this host has 10.1.0.0/16 and fd00:1::/64, the
// hosts behind peers A and B the twos and threes.
func localSubnets() []netip.Prefix { return prefixes("10.1.0.0/16", "fd00:1::/64") }

func subnetsA() []netip.Prefix { return prefixes("10.2.0.0/16", "fd00:2::/64") }

func subnetsB() []netip.Prefix { return prefixes("10.3.0.0/16", "fd00:3::/64") }

// udp4 and the others are packets from this host to peer A's.
func udp4(payload []byte) inner {
	return inner{src: ip("10.1.0.5"), dst: ip("10.2.0.7"), proto: offload.ProtoUDP, sport: 4000, dport: 5000, payload: payload}
}

func udp6(payload []byte) inner {
	return inner{src: ip("fd00:1::5"), dst: ip("fd00:2::7"), proto: offload.ProtoUDP, sport: 4000, dport: 5000, payload: payload}
}

func tcp4(payload []byte) inner {
	return inner{src: ip("10.1.0.5"), dst: ip("10.2.0.7"), proto: offload.ProtoTCP, sport: 4000, dport: 5000,
		seq: 0xfffff000, ack: 77, flags: ack, win: 500, frag: 0x4000, id: 0xfff0, payload: payload}
}

func tcp6(payload []byte) inner {
	return inner{src: ip("fd00:1::5"), dst: ip("fd00:2::7"), proto: offload.ProtoTCP, sport: 4000, dport: 5000,
		seq: 1, ack: 77, flags: ack | psh, win: 500, opts: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, payload: payload}
}

// back turns a packet of this host to peer A round.
func (in inner) back() inner {
	in.src, in.dst, in.sport, in.dport = in.dst, in.src, in.dport, in.sport
	return in
}

// newTable returns a table with this host's subnets and the peers.
func newTable(t testing.TB, peers ...Peer) *Table {
	t.Helper()
	tb := NewTable()
	if err := tb.Replace(localSubnets(), peers); err != nil {
		t.Fatal(err)
	}
	return tb
}

// TestPackets holds the builders against values computed elsewhere (RFC 1071's
// example, and a UDP packet summed by hand): a test's own tools may be wrong too.
func TestPackets(t *testing.T) {
	if got := slowSum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("slowSum = %#04x, want %#04x (RFC 1071 section 3)", got, ^uint16(0xddf2))
	}
	for _, in := range []inner{udp4(pattern(9, 1)), udp6(pattern(10, 1)), tcp4(pattern(11, 1)), tcp6(nil)} {
		p := in.packet()
		if offload.Check(p) != offload.FaultNone {
			t.Errorf("%v: offload.Check says %d", in, offload.Check(p))
		}
		if s := slowSum(pseudo(p, in.proto, len(p)-in.ipLen()), p[in.ipLen():]); s != 0 {
			t.Errorf("%v: L4 sum over a whole packet is %#04x", in, s)
		}
		if p[0]>>4 == 4 && slowSum(p[:20]) != 0 {
			t.Errorf("%v: bad IPv4 sum", in)
		}
	}
	in := tcp4(pattern(3000, 2))
	in.flags |= psh | cwr
	segs := in.segments(1400)
	if len(segs) != 3 || len(segs[2]) != 40+200 || segs[0][33] != ack|cwr || segs[1][33] != ack || segs[2][33] != ack|psh {
		t.Errorf("segments: %d, flags %x %x %x", len(segs), segs[0][33], segs[1][33], segs[2][33])
	}
}
