package encap

import (
	"encoding/json"
	"fmt"
	"iter"
	"sync/atomic"
)

// Drop is a reason for which a packet or datagram was not handed on. Each one
// that is lost is counted under exactly one reason.
type Drop uint8

// Reasons of packets from the host (outbound). Where it says that the sender was
// told, that is within the rules and rate limits of ICMP, unless Config.NoICMP.
const (
	// DropNone: not dropped.
	DropNone Drop = iota
	// DropNoRoute: no peer's subnet holds the destination; the sender was
	// told (network unreachable).
	DropNoRoute
	// DropNotUnicast: multicast, broadcast or link-local destination; an
	// overlay of unicast tunnels has nowhere to send it.
	DropNotUnicast
	// DropExpired: the TTL ran out here; the sender was told.
	DropExpired
	// DropBadPacket: the device delivered something that is no IP packet or
	// contradicts its virtio header.
	DropBadPacket
	// DropTooBig: larger than any datagram can be.
	DropTooBig
	// DropUnreachable: the system refused to send to the peer's endpoint
	// (no route, firewall, address family the socket does not have).
	DropUnreachable
	// DropNoBuffers: the network device had no room, and still none after
	// retries or when the engine was stopped.
	DropNoBuffers

	// Reasons of datagrams from the network (inbound).

	// DropTruncated: the datagram did not fit its buffer.
	DropTruncated
	// DropShort: too short for an IP header (some engines send 1 byte as a
	// sentinel).
	DropShort
	// DropNotIP: neither IPv4 nor IPv6.
	DropNotIP
	// DropLength: the IP length is not the datagram's.
	DropLength
	// DropHeader: the IPv4 header length or checksum is wrong.
	DropHeader
	// DropUnknownPeer: from an address that is no peer's.
	DropUnknownPeer
	// DropSpoofed: the inner source is not in a subnet of the peer it came from.
	DropSpoofed
	// DropNotLocal: the inner destination is not in a subnet of this host.
	DropNotLocal
	// DropExpiredIn: the TTL ran out on arrival; the sender was told.
	DropExpiredIn
	// DropDevice: the TUN device refused the packet (it is down, or out of
	// memory).
	DropDevice

	numDrops
)

var dropNames = [numDrops]string{
	"none", "no-route", "not-unicast", "ttl-expired", "bad-packet", "too-big", "unreachable", "no-buffers",
	"truncated", "short", "not-ip", "bad-length", "bad-header", "unknown-peer", "spoofed-source", "not-local",
	"ttl-expired-in", "device",
}

// String returns the reason as metrics and tables name it.
func (d Drop) String() string {
	if d < numDrops {
		return dropNames[d]
	}
	return fmt.Sprintf("Drop(%d)", uint8(d))
}

// Drops counts by reason.
type Drops [numDrops]uint64

// All iterates over the reasons that occurred.
func (d *Drops) All() iter.Seq2[Drop, uint64] {
	return func(yield func(Drop, uint64) bool) {
		for i := Drop(1); i < numDrops; i++ {
			if d[i] != 0 && !yield(i, d[i]) {
				return
			}
		}
	}
}

// Total is the sum over all reasons.
func (d *Drops) Total() uint64 {
	var n uint64
	for _, v := range d.All() {
		n += v
	}
	return n
}

// MarshalJSON writes an object of the reasons that occurred.
func (d Drops) MarshalJSON() ([]byte, error) {
	m := map[string]uint64{}
	for r, n := range d.All() {
		m[r.String()] = n
	}
	return json.Marshal(m)
}

// Direction counts one direction of an engine. Outbound the device is read
// and the socket sent to, inbound the other way round.
type Direction struct {
	Packets       uint64 // inner packets handed on, as they are on the wire (segments, not super-packets)
	Bytes         uint64 // bytes of those packets, inner headers included
	SuperPackets  uint64 // super-packets read from, or runs written to, the device
	DeviceCalls   uint64 // read or write calls on the device that moved packets
	Messages      uint64 // messages sent or received; a train counts as one
	Trains        uint64 // messages of several datagrams (UDP_SEGMENT, UDP_GRO)
	Batches       uint64 // sendmmsg or recvmmsg calls that moved messages
	PeakBatch     uint64 // most messages one such call moved
	EmptyAttempts uint64 // reads that found nothing
}

// Stats is what an engine has done since New. Taking it costs the data path
// nothing: an engine publishes its counters when it goes idle and every few
// dozen batches while it is busy, so that they may be some milliseconds old.
type Stats struct {
	TX Direction // host to network
	RX Direction // network to host

	// Drops are lost packets and datagrams by reason. What is dropped before
	// it is cut, a super-packet from the host, counts as one.
	Drops Drops

	Waits       uint64 // times the engine asked the system to wait for work
	ICMPSent    uint64 // ICMP errors made for senders
	ICMPLimited uint64 // ICMP errors suppressed by the rate limit
	Fragmented  uint64 // packets sent larger than the path MTU, in outer fragments
	Replays     uint64 // messages repeated without an offload that was refused
	PathMTUs    uint64 // times a peer's path MTU was learnt
	SocketDrops uint64 // datagrams the kernel dropped because the receive buffer was full (Linux)
}

// SystemCalls returns the number of system calls of the data path.
func (s *Stats) SystemCalls() uint64 {
	return s.TX.DeviceCalls + s.TX.Batches + s.TX.EmptyAttempts + s.RX.DeviceCalls + s.RX.Batches + s.RX.EmptyAttempts + s.Waits
}

// Add returns the sum of two engines' counters; of PeakBatch, which is no
// count, the larger.
func (s Stats) Add(o Stats) Stats {
	a, b := s.flat(), o.flat()
	for i := range a {
		a[i] += b[i]
	}
	sum := unflat(a)
	sum.TX.PeakBatch = max(s.TX.PeakBatch, o.TX.PeakBatch)
	sum.RX.PeakBatch = max(s.RX.PeakBatch, o.RX.PeakBatch)
	return sum
}

// numPlain is the number of counters besides Drops.
const numPlain = 25

const numCounters = numPlain + int(numDrops)

// flat lists all counters in one fixed order, for publishing and adding.
func (s *Stats) flat() (f [numCounters]uint64) {
	t, r := &s.TX, &s.RX
	f = [numCounters]uint64{
		t.Packets, t.Bytes, t.SuperPackets, t.DeviceCalls, t.Messages, t.Trains, t.Batches, t.PeakBatch, t.EmptyAttempts,
		r.Packets, r.Bytes, r.SuperPackets, r.DeviceCalls, r.Messages, r.Trains, r.Batches, r.PeakBatch, r.EmptyAttempts,
		s.Waits, s.ICMPSent, s.ICMPLimited, s.Fragmented, s.Replays, s.PathMTUs, s.SocketDrops,
	}
	copy(f[numPlain:], s.Drops[:])
	return f
}

func unflat(f [numCounters]uint64) (s Stats) {
	s.TX = Direction{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]}
	s.RX = Direction{f[9], f[10], f[11], f[12], f[13], f[14], f[15], f[16], f[17]}
	s.Waits, s.ICMPSent, s.ICMPLimited, s.Fragmented, s.Replays, s.PathMTUs, s.SocketDrops = f[18], f[19], f[20], f[21], f[22], f[23], f[24]
	copy(s.Drops[:], f[numPlain:])
	return s
}

// published is the copy of the counters that other goroutines read.
type published struct {
	v    [numCounters]atomic.Uint64
	last [numCounters]uint64 // what v holds; the engine's own
}

// publish stores what changed. An atomic store is some twenty cycles on amd64,
// a comparison one, and most counters stand still.
func (p *published) publish(s *Stats) {
	f := s.flat()
	for i := range f {
		if f[i] != p.last[i] {
			p.last[i] = f[i]
			p.v[i].Store(f[i])
		}
	}
}

func (p *published) load() Stats {
	var f [numCounters]uint64
	for i := range f {
		f[i] = p.v[i].Load()
	}
	return unflat(f)
}
