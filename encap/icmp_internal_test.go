package encap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// icmpMessage is an ICMP error taken apart by golang.org/x/net.
type icmpMessage struct {
	v6       bool
	src, dst netip.Addr
	typ      icmp.Type
	code     int
	mtu      int
	quote    []byte
}

// what names the error as the tests' tables do.
func (m icmpMessage) what() string {
	switch {
	case m.typ == icmp.Type(ipv4.ICMPTypeTimeExceeded) && m.code == 0, m.typ == icmp.Type(ipv6.ICMPTypeTimeExceeded) && m.code == 0:
		return "expired"
	case m.typ == icmp.Type(ipv4.ICMPTypeDestinationUnreachable) && m.code == 0, m.typ == icmp.Type(ipv6.ICMPTypeDestinationUnreachable) && m.code == 0:
		return "unreachable"
	case m.typ == icmp.Type(ipv4.ICMPTypeDestinationUnreachable) && m.code == 4, m.typ == icmp.Type(ipv6.ICMPTypePacketTooBig) && m.code == 0:
		return fmt.Sprintf("mtu %d", m.mtu)
	}
	return fmt.Sprintf("%v/%d", m.typ, m.code)
}

func (m icmpMessage) String() string {
	return fmt.Sprintf("%s from %v to %v about %d bytes", m.what(), m.src, m.dst, len(m.quote))
}

// decodeICMP takes an IP packet apart that must be an ICMP error, and holds it
// against every rule for one: lengths, sums, TTL, sizes.
func decodeICMP(b []byte) (m icmpMessage, err error) {
	if len(b) < 28 {
		return m, fmt.Errorf("%d bytes", len(b))
	}
	var body []byte
	proto := 1
	switch b[0] >> 4 {
	case 4:
		h, err := icmp.ParseIPv4Header(b) // host order or not: lengths are checked by hand
		if err != nil {
			return m, err
		}
		if h.Len != 20 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || h.Protocol != 1 || h.TTL != 64 || b[6]&0x3f != 0 || b[7] != 0 {
			return m, fmt.Errorf("header %v of %d bytes", h, len(b))
		}
		if s := slowSum(b[:20]); s != 0 {
			return m, fmt.Errorf("header sum off by %#x", s)
		}
		if len(b) > 576 {
			return m, fmt.Errorf("%d bytes, over 576 (RFC 1812 section 4.3.2.3)", len(b))
		}
		m.src, m.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		body = b[20:]
		if s := slowSum(body); s != 0 {
			return m, fmt.Errorf("ICMP sum off by %#x", s)
		}
	case 6:
		h, err := ipv6.ParseHeader(b)
		if err != nil {
			return m, err
		}
		if h.PayloadLen != len(b)-40 || h.NextHeader != 58 || h.HopLimit != 64 {
			return m, fmt.Errorf("header %v of %d bytes", h, len(b))
		}
		if len(b) > 1280 {
			return m, fmt.Errorf("%d bytes, over 1280 (RFC 4443 section 2.4)", len(b))
		}
		m.v6, proto = true, 58
		m.src, m.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		body = b[40:]
		if s := slowSum(pseudo(b, 58, len(body)), body); s != 0 {
			return m, fmt.Errorf("ICMPv6 sum off by %#x", s)
		}
	default:
		return m, fmt.Errorf("version %d", b[0]>>4)
	}
	// What is behind the first eight bytes is cut off: x/net would look for
	// RFC 4884 extensions in it, which these errors do not have.
	msg, err := icmp.ParseMessage(proto, body)
	if err != nil {
		return m, err
	}
	m.typ, m.code, m.quote = msg.Type, msg.Code, body[8:]
	switch msg.Body.(type) {
	case *icmp.DstUnreach:
		m.mtu = int(binary.BigEndian.Uint16(body[6:]))
		if binary.BigEndian.Uint16(body[4:]) != 0 {
			return m, errors.New("a length for extensions that are not there (RFC 4884)")
		}
	case *icmp.PacketTooBig:
		m.mtu = int(binary.BigEndian.Uint32(body[4:]))
	case *icmp.TimeExceeded:
		if binary.BigEndian.Uint32(body[4:]) != 0 {
			return m, fmt.Errorf("unused bytes are %x", body[4:8])
		}
	default:
		return m, fmt.Errorf("no error: %v", msg.Type)
	}
	return m, nil
}

func mustDecode(t testing.TB, b []byte) icmpMessage {
	t.Helper()
	m, err := decodeICMP(b)
	if err != nil {
		t.Fatalf("not a good ICMP error: %v\n%x", err, b)
	}
	return m
}

func TestICMPMessages(t *testing.T) {
	r4, r6 := ip("10.1.0.0"), ip("fd00:1::")
	for _, size := range []int{8, 9, 100, 519, 520, 521, 528, 1000, 1191, 1192, 1193, 1232, 1400, 9000, 65000} {
		for _, c := range []struct {
			what icmpError
			mtu  int
			want string
		}{
			{icmpNoRoute, 0, "unreachable"}, {icmpExpired, 0, "expired"},
			{icmpTooBig, 1472, "mtu 1472"}, {icmpTooBig, 68, "mtu 68"}, {icmpTooBig, 65535, "mtu 65535"},
		} {
			var buf [icmpMax6]byte
			p4, p6 := udp4(pattern(size-8, 1)).packet(), udp6(pattern(size-8, 1)).packet()
			for i := range buf {
				buf[i] = 0xee // an older message must not show through
			}
			msg := icmp4(buf[:0], p4, r4, c.what, c.mtu)
			m := mustDecode(t, msg)
			if m.what() != c.want || m.src != r4 || m.dst != ip("10.1.0.5") || !bytes.Equal(m.quote, p4[:min(len(p4), 576-28)]) {
				t.Errorf("IPv4, %d bytes: %v, want %s", len(p4), m, c.want)
			}
			if msg[1] != 0xc0 {
				t.Errorf("TOS %#x, want internetwork control (RFC 1812 section 4.3.2.5)", msg[1])
			}
			setSource(msg, p4)
			if m := mustDecode(t, msg); m.src != ip("10.2.0.7") || m.dst != ip("10.1.0.5") || m.what() != c.want {
				t.Errorf("IPv4 after setSource: %v", m)
			}
			for i := range buf {
				buf[i] = 0xee
			}
			msg = icmp6(buf[:0], p6, r6, c.what, c.mtu)
			m = mustDecode(t, msg)
			if m.what() != c.want || m.src != r6 || m.dst != ip("fd00:1::5") || !bytes.Equal(m.quote, p6[:min(len(p6), 1280-48)]) {
				t.Errorf("IPv6, %d bytes: %v, want %s", len(p6), m, c.want)
			}
			setSource(msg, p6)
			if m := mustDecode(t, msg); m.src != ip("fd00:2::7") || m.dst != ip("fd00:1::5") || m.what() != c.want {
				t.Errorf("IPv6 after setSource: %v", m)
			}
		}
	}
}

// TestICMPWithoutRouter: a host without a subnet of that family is no address
// to send from; what is sent is a good message with setSource.
func TestICMPWithoutRouter(t *testing.T) {
	for _, p := range [][]byte{udp4(nil).packet(), udp6(nil).packet()} {
		var msg []byte
		if p[0]>>4 == 4 {
			msg = icmp4(nil, p, netip.Addr{}, icmpExpired, 0)
		} else {
			msg = icmp6(nil, p, netip.Addr{}, icmpExpired, 0)
		}
		setSource(msg, p)
		if m := mustDecode(t, msg); m.what() != "expired" || m.src.IsUnspecified() {
			t.Errorf("%v", m)
		}
	}
}

func TestTooBig(t *testing.T) {
	df := func(in inner) inner { in.frag = 0x4000; return in }
	over4 := &peer{Peer: Peer{Endpoint: port("192.0.2.1:8285")}, overhead: 28, learnt: &learnt{}}
	over6 := &peer{Peer: Peer{Endpoint: port("[2001:db8::1]:8285")}, overhead: 48, v6: true, learnt: &learnt{}}
	for _, c := range []struct {
		name string
		in   inner
		pr   *peer
		pmtu int
		want string
	}{
		{"v4 with DF", df(udp4(pattern(1400, 1))), over4, 1400, "mtu 1372"},
		{"v4 over v6", df(udp4(pattern(1400, 1))), over6, 1400, "mtu 1352"},
		{"v4 without DF: nobody cares", udp4(pattern(1400, 1)), over4, 1400, ""},
		{"v4, absurd path MTU", df(udp4(pattern(1400, 1))), over4, 60, "mtu 68"},
		{"v6", udp6(pattern(1400, 1)), over4, 1400, "mtu 1372"},
		{"v6 over v6", udp6(pattern(1400, 1)), over6, 1400, "mtu 1352"},
		{"v6 below its minimum", udp6(pattern(1400, 1)), over4, 1200, "mtu 1280"},
		{"v6 of its minimum: no sender goes below", udp6(pattern(1280-48, 1)), over4, 1290, ""},
	} {
		tb := newTable(t)
		co, out := newCore(tb, Config{})
		p := c.in.packet()
		co.tooBig(tb.cur.Load(), p, len(p), c.pr, c.pmtu)
		if c.want == "" {
			if len(out.toHosts) != 0 {
				t.Errorf("%s: %v", c.name, mustDecode(t, out.toHosts[0]))
			}
			continue
		}
		if len(out.toHosts) != 1 {
			t.Errorf("%s: %d messages", c.name, len(out.toHosts))
			continue
		}
		if m := mustDecode(t, out.toHosts[0]); m.what() != c.want || !bytes.HasPrefix(p, m.quote) {
			t.Errorf("%s: %v, want %s", c.name, m, c.want)
		}
	}
}

// toldCase is a packet and whether an error about it is allowed.
type toldCase struct {
	name string
	p    []byte
	want bool
}

func toldCases() []toldCase {
	raw := func(in inner, proto byte, payload ...byte) []byte {
		in.proto, in.payload = proto, payload
		return in.packet()
	}
	icmp4 := func(typ byte) []byte { return raw(udp4(nil), 1, typ, 0, 0, 0, 0, 0, 0, 0) }
	icmp6 := func(typ byte) []byte { return raw(udp6(nil), 58, typ, 0, 0, 0, 0, 0, 0, 0) }
	frag := func(f uint16) []byte { in := udp4(pattern(20, 1)); in.frag = f; return in.packet() }
	src := func(s string) []byte {
		in := udp4(nil)
		if !ip(s).Is4() {
			in = udp6(nil)
		}
		in.src = ip(s)
		return in.packet()
	}
	dst := func(s string) []byte {
		in := udp4(nil)
		if !ip(s).Is4() {
			in = udp6(nil)
		}
		in.dst = ip(s)
		return in.packet()
	}
	ext := func(first byte, headers []byte, proto byte, payload ...byte) []byte {
		in := udp6(nil)
		in.next, in.ext, in.proto, in.payload = first, headers, proto, payload
		return in.packet()
	}
	eight := make([]byte, 8)
	echo6, error6 := []byte{128, 0, 0, 0, 0, 0, 0, 0}, []byte{1, 0, 0, 0, 0, 0, 0, 0}
	tests := []toldCase{
		{"udp", udp4(nil).packet(), true}, {"tcp", tcp4(nil).packet(), true}, {"other protocol", raw(udp4(nil), 47, eight...), true},
		{"first fragment", frag(0x2000), true}, {"fragment", frag(0x2001), false}, {"last fragment", frag(0x0100), false},
		{"fragment at 65528", frag(0x1fff), false}, {"DF", frag(0x4000), true},
		{"7 bytes behind the header", raw(udp4(nil), 47, eight[:7]...), false},
		{"to multicast", dst("224.0.0.1"), false}, {"to multicast's end", dst("239.1.1.1"), false}, {"to broadcast", dst("255.255.255.255"), false},
		{"from 0.0.0.0", src("0.0.0.0"), false}, {"from 0.1.2.3", src("0.1.2.3"), false}, {"from loopback", src("127.9.9.9"), false},
		{"from multicast", src("224.0.0.1"), false}, {"from class E", src("240.0.0.1"), false}, {"from broadcast", src("255.255.255.255"), false},
		{"udp6", udp6(nil).packet(), true}, {"tcp6", tcp6(nil).packet(), true},
		{"to multicast6", dst("ff02::1"), false}, {"from multicast6", src("ff02::1"), false},
		{"from ::", src("::"), false}, {"from ::1", src("::1"), false},
		{"7 bytes behind the header6", raw(udp6(nil), 47, eight[:7]...), false},
		{"hop-by-hop, echo", ext(0, []byte{58, 0, 1, 4, 0, 0, 0, 0}, 58, echo6...), true},
		{"hop-by-hop, error", ext(0, []byte{58, 0, 1, 4, 0, 0, 0, 0}, 58, error6...), false},
		{"routing, error", ext(43, []byte{58, 0, 0, 0, 0, 0, 0, 0}, 58, error6...), false},
		{"destination options, error", ext(60, []byte{58, 0, 1, 4, 0, 0, 0, 0}, 58, error6...), false},
		{"two headers, error", ext(0, []byte{60, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0}, 58, error6...), false},
		{"long header, error", ext(0, append([]byte{58, 1, 1, 12}, make([]byte, 12)...), 58, error6...), false},
		{"first fragment6", ext(44, []byte{17, 0, 0, 1, 0, 0, 0, 9}, 17, eight...), true},
		{"first fragment6 of an error", ext(44, []byte{58, 0, 0, 1, 0, 0, 0, 9}, 58, error6...), false},
		{"fragment6", ext(44, []byte{17, 0, 0, 9, 0, 0, 0, 9}, 17, eight...), false},
		{"last fragment6", ext(44, []byte{17, 0, 0xff, 0xf8, 0, 0, 0, 9}, 17, eight...), false},
		{"header cut short", ext(0, []byte{60, 0, 1, 4, 0, 0, 0, 0, 58, 200, 1, 4, 0, 0, 0, 0}, 58, error6...), false},
		{"no next header", raw(udp6(nil), 59, eight...), true},
		{"authentication header, error", ext(51, append([]byte{58, 1}, make([]byte, 10)...), 58, error6...), false},
	}
	for _, n := range []byte{0, 8, 9, 10, 13, 14, 15, 16, 17, 18} {
		tests = append(tests, toldCase{fmt.Sprintf("ICMP query %d", n), icmp4(n), true})
	}
	for _, n := range []byte{3, 4, 5, 11, 12, 1, 2, 6, 7, 19, 30, 31, 40, 41, 255} { // unknown ones may be errors
		tests = append(tests, toldCase{fmt.Sprintf("ICMP error %d", n), icmp4(n), false})
	}
	for _, n := range []byte{128, 129, 130, 133, 134, 135, 136, 143, 200, 255} {
		tests = append(tests, toldCase{fmt.Sprintf("ICMPv6 information %d", n), icmp6(n), true})
	}
	for _, n := range []byte{0, 1, 2, 3, 4, 100, 127, 137} { // 137: redirect
		tests = append(tests, toldCase{fmt.Sprintf("ICMPv6 error %d", n), icmp6(n), false})
	}
	return tests
}

func TestMayBeTold(t *testing.T) {
	for _, c := range toldCases() {
		t.Run(c.name, func(t *testing.T) {
			if got := mayBeTold(c.p); got != c.want {
				t.Errorf("mayBeTold = %v, want %v: %x", got, c.want, c.p)
			}
			// And every beginning of it: no panic.
			for n := 20; n < len(c.p); n++ {
				if c.p[0]>>4 == 4 || n >= 40 {
					mayBeTold(slices.Clip(c.p[:n]))
				}
			}
		})
	}
	options := slices.Concat(udp4(nil).packet()[:20], make([]byte, 40+8))
	options[0] = 0x4f
	if !mayBeTold(options) || mayBeTold(options[:len(options)-1]) {
		t.Error("IPv4 options are not counted to the header")
	}
	if options[9] = offload.ProtoICMP; !mayBeTold(options) {
		t.Error("echo reply behind options")
	}
	if options[60] = 3; mayBeTold(options) {
		t.Error("an ICMP error behind options")
	}
}
