// Package offload does in user space what a network card's offloads do: it
// cuts super-packets into segments, joins segments into super-packets and sums
// checksums. Everything in it is a pure function over byte slices: no system
// calls, no allocation per packet, the same on every system.
//
// Terms: a packet is one IP packet; a super-packet is a packet that a virtio
// header says is to be cut; a segment is one of the packets it is cut into; a
// run is what [Joiner] makes of consecutive segments of one flow.
package offload

import "encoding/binary"

// IP protocol numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Header sizes without options or extension headers.
const (
	IPv4Len = 20
	IPv6Len = 40
	UDPLen  = 8
	TCPLen  = 20
)

// Fault is what is wrong with a packet.
type Fault uint8

// Faults. FaultNone is a packet that may be handed on.
const (
	FaultNone    Fault = iota
	FaultShort         // shorter than its IP header
	FaultVersion       // neither IPv4 nor IPv6
	FaultLength        // the length in the header is not the length of the datagram
	FaultHeader        // the IPv4 header length or checksum is wrong
)

// Check says whether p is one whole IP packet: version, header length, total
// length and, for IPv4, the header checksum. What is above IP is not looked at.
func Check(p []byte) Fault {
	if len(p) < IPv4Len {
		return FaultShort
	}
	switch p[0] >> 4 {
	case 4:
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return FaultLength
		}
		if p[0] == 0x45 {
			// The common header without options, summed in registers.
			a := binary.NativeEndian.Uint64(p)
			b := binary.NativeEndian.Uint64(p[8:])
			c := uint64(binary.NativeEndian.Uint32(p[16:]))
			if Fold(Add(Add(a, b), c)) != 0xffff {
				return FaultHeader
			}
			return FaultNone
		}
		n := int(p[0]&15) * 4
		if n < IPv4Len || n > len(p) || Fold(Sum(p[:n], 0)) != 0xffff {
			return FaultHeader
		}
		return FaultNone
	case 6:
		if len(p) < IPv6Len {
			return FaultShort
		}
		if int(binary.BigEndian.Uint16(p[4:]))+IPv6Len != len(p) {
			return FaultLength
		}
		return FaultNone
	}
	return FaultVersion
}

// TTL returns the TTL or hop limit of a packet that passed [Check].
func TTL(p []byte) uint8 {
	if p[0]>>4 == 4 {
		return p[8]
	}
	return p[7]
}

// DecTTL takes one off the TTL or hop limit, which must not be 0, and mends the
// IPv4 header checksum (RFC 1624, equation 3).
func DecTTL(p []byte) {
	if p[0]>>4 != 4 {
		p[7]--
		return
	}
	p[8]--
	sum := uint32(binary.BigEndian.Uint16(p[10:])) + 0x0100
	if sum >= 0xffff { // end-around carry; 0xffff itself becomes the other zero
		sum++
	}
	binary.BigEndian.PutUint16(p[10:], uint16(sum))
}

// word returns the 16-bit big-endian field value v as an addend of an unfolded
// sum, which is in memory order.
func word(v uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// long is word for a 32-bit field.
func long(v uint32) uint64 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return uint64(binary.NativeEndian.Uint32(b[:]))
}

// setIPv4Sum writes the header checksum of the IPv4 header h.
func setIPv4Sum(h []byte) {
	h[10], h[11] = 0, 0
	PutSum(h[10:], Sum(h, 0))
}

// FinishChecksum completes the checksum of a packet whose virtio header has
// NeedsCsum set and no GSO type: the field at start+offset holds the
// pseudo-header sum. It returns false, changing nothing, when start and offset
// do not lie in the packet.
func FinishChecksum(p []byte, start, offset int) bool {
	at := start + offset
	if start < 0 || offset < 0 || at+2 > len(p) {
		return false
	}
	pseudo := LoadSum(p[at:])
	p[at], p[at+1] = 0, 0
	PutSum(p[at:], Sum(p[start:], pseudo))
	// A computed zero is sent as all ones by UDP, where zero says "none"
	// (RFC 768); TCP (offset 16) has no such rule, but both are equal there.
	if offset == 6 && p[at] == 0 && p[at+1] == 0 {
		p[at], p[at+1] = 0xff, 0xff
	}
	return true
}
