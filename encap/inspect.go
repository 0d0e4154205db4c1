package encap

import (
	"encoding/binary"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// This file decides on single packets: where an outbound one goes, whether an
// inbound one may pass, and what their senders are told. Both paths use it.

// outbound looks at the packet p (or super-packet) that the host sends, takes
// one off its TTL and returns the peer it goes to; a drop is counted by the
// caller. p's headers are whole: the kernel made them.
func (c *core) outbound(s *snapshot, p []byte) (*peer, Drop) {
	if len(p) < offload.IPv4Len {
		return nil, DropBadPacket
	}
	var pr *peer
	switch p[0] >> 4 {
	case 4:
		dst := binary.BigEndian.Uint32(p[16:])
		if pr = s.lookup4(dst); pr == nil && (dst>>28 == 0xe || dst == 0xffffffff || dst>>16 == 0xa9fe) {
			return nil, DropNotUnicast
		}
	case 6:
		if len(p) < offload.IPv6Len {
			return nil, DropBadPacket
		}
		hi, lo := binary.BigEndian.Uint64(p[24:]), binary.BigEndian.Uint64(p[32:])
		if pr = s.lookup6(hi, lo); pr == nil && (hi>>56 == 0xff || hi>>54 == 0xfe80>>6) {
			return nil, DropNotUnicast
		}
	default:
		return nil, DropBadPacket
	}
	if pr == nil || pr == localPeer {
		c.tellHost(s, p, icmpNoRoute, 0)
		return nil, DropNoRoute
	}
	if offload.TTL(p) <= 1 {
		c.tellHost(s, p, icmpExpired, 0)
		return nil, DropExpired
	}
	offload.DecTTL(p)
	return pr, DropNone
}

// flowCache remembers the last inbound flow that passed, so that the packets
// of a train are checked once.
type flowCache struct {
	snap  *snapshot
	outer addr128
	addrs [4]uint64 // source and destination
	v6    bool
}

// inbound decides on the datagram p from outer and takes one off its TTL.
func (c *core) inbound(s *snapshot, p []byte, outer addr128) Drop {
	switch offload.Check(p) {
	case offload.FaultNone:
	case offload.FaultShort:
		return DropShort
	case offload.FaultVersion:
		return DropNotIP
	case offload.FaultLength:
		return DropLength
	default:
		return DropHeader
	}
	if d := c.admit(s, p, outer); d != DropNone {
		return d
	}
	if offload.TTL(p) <= 1 {
		c.tellPeer(s, p, icmpExpired)
		return DropExpiredIn
	}
	offload.DecTTL(p)
	return DropNone
}

// admit is the filter: the inner source must belong to the peer at outer and
// the inner destination to this host.
func (c *core) admit(s *snapshot, p []byte, outer addr128) Drop {
	if c.cfg.NoFilter {
		return DropNone
	}
	f := &c.flow
	v6 := p[0]>>4 == 6
	if !v6 {
		pair := binary.NativeEndian.Uint64(p[12:])
		if f.snap == s && f.outer == outer && !f.v6 && f.addrs[0] == pair {
			return DropNone
		}
		src, dst := binary.BigEndian.Uint32(p[12:]), binary.BigEndian.Uint32(p[16:])
		if d := s.judge(s.lookup4(src), s.lookup4(dst), outer); d != DropNone {
			return d
		}
		*f = flowCache{snap: s, outer: outer, addrs: [4]uint64{pair}}
		return DropNone
	}
	be := binary.BigEndian
	a := [4]uint64{be.Uint64(p[8:]), be.Uint64(p[16:]), be.Uint64(p[24:]), be.Uint64(p[32:])}
	if f.snap == s && f.outer == outer && f.v6 && f.addrs == a {
		return DropNone
	}
	if d := s.judge(s.lookup6(a[0], a[1]), s.lookup6(a[2], a[3]), outer); d != DropNone {
		return d
	}
	*f = flowCache{snap: s, outer: outer, addrs: a, v6: true}
	return DropNone
}

// judge is the filter's rule: src and dst are what the inner addresses belong to.
func (s *snapshot) judge(src, dst *peer, outer addr128) Drop {
	if src == nil || src == localPeer || src.outer != outer {
		// Two peers may share an address (NAT); then the longest prefix
		// of the inner source names one of them, and outer fits both.
		if _, known := s.outside[outer]; !known {
			return DropUnknownPeer
		}
		return DropSpoofed
	}
	if dst != localPeer {
		return DropNotLocal
	}
	return DropNone
}
