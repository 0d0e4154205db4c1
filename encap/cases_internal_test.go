package encap

import (
	"encoding/binary"
	"slices"
)

// Roles of a datagram's sender: the host of peers A and C, that of peer B, and
// one that is no peer.
const (
	hostA    = "A"
	hostB    = "B"
	hostC    = "C" // behind the same address as A
	stranger = "a stranger"
)

// inboundCase is a datagram and what becomes of it. All paths of an engine, and
// the core that they share, are held against the same list.
type inboundCase struct {
	name     string
	from     string // role
	p        []byte
	want     Drop
	told     bool // the sender gets an ICMP error
	noFilter Drop // what it is with Config.NoFilter
}

func inboundCases() []inboundCase {
	fromA4, fromA6 := udp4(pattern(30, 1)).back(), udp6(pattern(30, 1)).back()
	change := func(in inner, f func(*inner)) []byte {
		f(&in)
		return in.packet()
	}
	from := func(in inner, src string) []byte { return change(in, func(x *inner) { x.src = ip(src) }) }
	to := func(in inner, dst string) []byte { return change(in, func(x *inner) { x.dst = ip(dst) }) }
	ttl := func(in inner, n byte) []byte {
		return with(in.packet(), func(p []byte) {
			if p[0]>>4 == 4 {
				p[8] = n
			} else {
				p[7] = n
			}
		})
	}
	p4, p6 := fromA4.packet(), fromA6.packet()
	options := func() []byte { // one word of IPv4 options
		x := slices.Concat(p4[:20], []byte{1, 1, 1, 0}, p4[20:])
		x[0] = 0x46
		binary.BigEndian.PutUint16(x[2:], uint16(len(x)))
		x[10], x[11] = 0, 0
		binary.BigEndian.PutUint16(x[10:], slowSum(x[:24]))
		return x
	}
	return []inboundCase{
		{"v4", hostA, p4, DropNone, false, DropNone},
		{"v6", hostA, p6, DropNone, false, DropNone},
		{"v6 outer", hostB, from(fromA4, "10.3.0.1"), DropNone, false, DropNone},
		{"options", hostA, options(), DropNone, false, DropNone},
		{"NAT: the other peer of that address", hostA, from(fromA4, "10.4.0.1"), DropNone, false, DropNone},
		{"empty", hostA, nil, DropShort, false, DropShort},
		{"sentinel", hostA, []byte{0}, DropShort, false, DropShort},
		{"19 bytes", hostA, p4[:19], DropShort, false, DropShort},
		{"39 bytes of v6", hostA, p6[:39], DropShort, false, DropShort},
		{"version 0", hostA, with(p4, func(p []byte) { p[0] = 0x05 }), DropNotIP, false, DropNotIP},
		{"version 5", hostA, with(p4, func(p []byte) { p[0] = 0x55 }), DropNotIP, false, DropNotIP},
		{"version 15", hostA, with(p6, func(p []byte) { p[0] = 0xf0 }), DropNotIP, false, DropNotIP},
		{"cut short", hostA, p4[:len(p4)-1], DropLength, false, DropLength},
		{"trailing byte", hostA, append(slices.Clone(p4), 0), DropLength, false, DropLength},
		{"v6 cut short", hostA, p6[:len(p6)-1], DropLength, false, DropLength},
		{"v6 trailing byte", hostA, append(slices.Clone(p6), 0), DropLength, false, DropLength},
		{"header of 16", hostA, with(p4, func(p []byte) { p[0] = 0x44 }), DropHeader, false, DropHeader},
		{"header longer than the packet", hostA, with(p4, func(p []byte) { p[0] = 0x4f }), DropHeader, false, DropHeader},
		{"header sum", hostA, func() []byte { x := slices.Clone(p4); x[11]++; return x }(), DropHeader, false, DropHeader},
		{"stranger", stranger, p4, DropUnknownPeer, false, DropNone},
		{"stranger v6", stranger, p6, DropUnknownPeer, false, DropNone},
		{"stranger with our address", stranger, from(fromA4, "10.1.0.9"), DropUnknownPeer, false, DropNone},
		{"stranger, unknown source", stranger, from(fromA4, "8.8.8.8"), DropUnknownPeer, false, DropNone},
		{"stranger, expired", stranger, ttl(fromA4, 1), DropUnknownPeer, false, DropExpiredIn},
		{"another peer's source", hostA, from(fromA4, "10.3.0.1"), DropSpoofed, false, DropNone},
		{"another peer's source v6", hostA, from(fromA6, "fd00:3::1"), DropSpoofed, false, DropNone},
		{"nobody's source", hostA, from(fromA4, "8.8.8.8"), DropSpoofed, false, DropNone},
		{"our own source", hostA, from(fromA4, "10.1.0.9"), DropSpoofed, false, DropNone},
		{"our own source v6", hostA, from(fromA6, "fd00:1::9"), DropSpoofed, false, DropNone},
		{"v4 of A from B", hostB, p4, DropSpoofed, false, DropNone},
		{"to another peer", hostA, to(fromA4, "10.3.0.1"), DropNotLocal, false, DropNone},
		{"to another peer v6", hostA, to(fromA6, "fd00:3::1"), DropNotLocal, false, DropNone},
		{"back to the sender", hostA, to(fromA4, "10.2.0.9"), DropNotLocal, false, DropNone},
		{"to nobody", hostA, to(fromA4, "8.8.8.8"), DropNotLocal, false, DropNone},
		{"to multicast", hostA, to(fromA4, "224.0.0.1"), DropNotLocal, false, DropNone},
		{"TTL 0", hostA, ttl(fromA4, 0), DropExpiredIn, true, DropExpiredIn},
		{"TTL 1", hostA, ttl(fromA4, 1), DropExpiredIn, true, DropExpiredIn},
		{"TTL 2", hostA, ttl(fromA4, 2), DropNone, false, DropNone},
		{"TTL 255", hostA, ttl(fromA4, 255), DropNone, false, DropNone},
		{"hop limit 0", hostA, ttl(fromA6, 0), DropExpiredIn, true, DropExpiredIn},
		{"hop limit 1", hostA, ttl(fromA6, 1), DropExpiredIn, true, DropExpiredIn},
		{"hop limit 2", hostA, ttl(fromA6, 2), DropNone, false, DropNone},
	}
}

// outboundCase is a packet of the host and what becomes of it.
type outboundCase struct {
	name string
	p    []byte
	want Drop
	peer string // who gets it
	told string // what the sender is told
}

func outboundCases() []outboundCase {
	to4 := func(dst string) []byte { x := udp4(pattern(20, 3)); x.dst = ip(dst); return x.packet() }
	to6 := func(dst string) []byte { x := udp6(pattern(20, 3)); x.dst = ip(dst); return x.packet() }
	ttl4 := func(n byte) []byte { return with(udp4(nil).packet(), func(p []byte) { p[8] = n }) }
	ttl6 := func(n byte) []byte { return with(udp6(nil).packet(), func(p []byte) { p[7] = n }) }
	return []outboundCase{
		{"v4 to A", to4("10.2.1.1"), DropNone, hostA, ""},
		{"v4 to B", to4("10.3.1.1"), DropNone, hostB, ""},
		{"v4 to C", to4("10.4.1.1"), DropNone, hostC, ""},
		{"v6 to A", to6("fd00:2::1"), DropNone, hostA, ""},
		{"no route", to4("10.200.0.1"), DropNoRoute, "", "unreachable"},
		{"no route v6", to6("fd00:9::1"), DropNoRoute, "", "unreachable"},
		{"our own", to4("10.1.0.99"), DropNoRoute, "", "unreachable"},
		{"our own v6", to6("fd00:1::99"), DropNoRoute, "", "unreachable"},
		{"multicast", to4("224.0.0.251"), DropNotUnicast, "", ""},
		{"multicast end", to4("239.255.255.255"), DropNotUnicast, "", ""},
		{"class E", to4("240.0.0.1"), DropNoRoute, "", "unreachable"},
		{"broadcast", to4("255.255.255.255"), DropNotUnicast, "", ""},
		{"link-local", to4("169.254.1.1"), DropNotUnicast, "", ""},
		{"multicast v6", to6("ff02::1"), DropNotUnicast, "", ""},
		{"link-local v6", to6("fe80::1"), DropNotUnicast, "", ""},
		{"link-local v6 end", to6("febf::1"), DropNotUnicast, "", ""},
		{"beside link-local v6", to6("fec0::1"), DropNoRoute, "", "unreachable"},
		{"TTL 0", ttl4(0), DropExpired, "", "expired"},
		{"TTL 1", ttl4(1), DropExpired, "", "expired"},
		{"TTL 2", ttl4(2), DropNone, hostA, ""},
		{"hop limit 1", ttl6(1), DropExpired, "", "expired"},
		{"hop limit 2", ttl6(2), DropNone, hostA, ""},
		{"empty", nil, DropBadPacket, "", ""},
		{"19 bytes", to4("10.2.1.1")[:19], DropBadPacket, "", ""},
		{"v6 of 39 bytes", to6("fd00:2::1")[:39], DropBadPacket, "", ""},
		{"version 0", make([]byte, 40), DropBadPacket, "", ""},
	}
}

// with returns p changed by f, with its IPv4 sum mended.
func with(p []byte, f func(b []byte)) []byte {
	b := slices.Clone(p)
	f(b)
	if len(b) >= 20 && b[0] == 0x45 {
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], slowSum(b[:20]))
	}
	return b
}
