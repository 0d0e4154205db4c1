package main

import (
	"maps"
	"slices"

	"github.com/flannelkit/flannelkit/encap"
)

// counters are what a host's engines have done so far: the part of
// [encap.Stats] that the report needs, in a form that crosses a pipe.
type counters struct {
	Packets     uint64 // inner packets, both directions
	SystemCalls uint64
	Supers      uint64
	Drops       map[string]uint64 // by reason
}

// Reasons that encap does not count, because the packets never reached an engine.
const (
	dropSocketFull = "socket-full"
	dropQueueFull  = "queue-full"
)

func countersOf(s encap.Stats) counters {
	c := counters{
		Packets:     s.TX.Packets + s.RX.Packets,
		SystemCalls: s.SystemCalls(),
		Supers:      s.TX.SuperPackets + s.RX.SuperPackets,
		Drops:       map[string]uint64{},
	}
	for reason, n := range s.Drops.All() {
		c.Drops[reason.String()] = n
	}
	if s.SocketDrops > 0 {
		c.Drops[dropSocketFull] = s.SocketDrops
	}
	return c
}

// since is what was counted after before.
func (c counters) since(before counters) counters {
	d := counters{
		Packets:     c.Packets - before.Packets,
		SystemCalls: c.SystemCalls - before.SystemCalls,
		Supers:      c.Supers - before.Supers,
		Drops:       map[string]uint64{},
	}
	for reason, n := range c.Drops {
		if n > before.Drops[reason] {
			d.Drops[reason] = n - before.Drops[reason]
		}
	}
	return d
}

// drops lists the reasons that occurred, the most frequent first. It is never
// nil: JSON then has [] rather than null.
func (c counters) drops() []drop {
	list := []drop{}
	for _, reason := range slices.Sorted(maps.Keys(c.Drops)) {
		if n := c.Drops[reason]; n > 0 {
			list = append(list, drop{Reason: reason, Meaning: meaning(reason), Packets: n})
		}
	}
	slices.SortStableFunc(list, func(a, b drop) int {
		switch {
		case a.Packets > b.Packets:
			return -1
		case a.Packets < b.Packets:
			return 1
		}
		return 0
	})
	return list
}

// meaning says in plain words what a reason is.
func meaning(reason string) string {
	switch reason {
	case dropSocketFull:
		return "came from the other host faster than the engine read; the socket's buffer was full"
	case dropQueueFull:
		return "came from the container faster than the engine read; the device's queue was full"
	case encap.DropNoRoute.String():
		return "for an address that is in no host's subnet"
	case encap.DropNotUnicast.String():
		return "multicast or broadcast, which a tunnel between two hosts does not carry"
	case encap.DropExpired.String(), encap.DropExpiredIn.String():
		return "had passed through too many routers (TTL)"
	case encap.DropBadPacket.String():
		return "no valid IP packet came out of the device"
	case encap.DropTooBig.String():
		return "too large for any datagram"
	case encap.DropUnreachable.String():
		return "the system refused to send to the other host"
	case encap.DropNoBuffers.String():
		return "the link had no room, and still none after retries"
	case encap.DropTruncated.String(), encap.DropShort.String(), encap.DropNotIP.String(), encap.DropLength.String(), encap.DropHeader.String():
		return "the datagram held no whole, valid IP packet"
	case encap.DropUnknownPeer.String():
		return "from an address that is no peer's"
	case encap.DropSpoofed.String():
		return "its source is not in the subnet of the host that sent it"
	case encap.DropNotLocal.String():
		return "its destination is not in this host's subnet"
	case encap.DropDevice.String():
		return "the device refused it (down, or out of memory)"
	}
	return "no explanation known here; see encap.Drop"
}
