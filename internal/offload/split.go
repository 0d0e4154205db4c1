package offload

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrSuper is wrapped by every error about a super-packet that contradicts its
// virtio header. Such a packet can't be cut; dropping it is all there is.
var ErrSuper = errors.New("offload: bad super-packet")

// TCP flag bits.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpURG = 0x20
	tcpECE = 0x40
	tcpCWR = 0x80
)

// maxHeaders is the most bytes of headers that a super-packet may have: those
// of IPv6 and TCP with all options and some extension headers. The kernel
// itself makes no larger ones.
const maxHeaders = 512

// Splitter cuts a super-packet into segments without moving its payload: each
// call of [Splitter.Next] writes the header of the next segment elsewhere and
// returns the slice of the packet that follows it. The zero value is ready for
// [Splitter.Start]; a Splitter is reused without allocation.
//
// The rules are the kernel's (net/ipv4/tcp_offload.c tcp_gso_segment,
// net/ipv4/udp_offload.c __udp_gso_segment): the IPv4 ID counts up by one a
// segment, TCP's sequence number by the payload, FIN and PSH stay on the last
// segment, CWR on the first, and every checksum is complete.
type Splitter struct {
	head    []byte // template header, inside the packet
	payload []byte // what has not been cut yet
	ipLen   int
	size    int // payload bytes of all segments but the last
	left    int // segments not cut yet
	n       int
	v6, udp bool
	flags   byte // TCP flags of the super-packet
	id      uint16
	seq     uint32
	ipBase  uint64 // IPv4 header without length, ID and checksum
	l4Base  uint64 // pseudo-header without length, L4 header without what varies
	sums    [sumBatch]uint64
}

// sumBatch is how many payloads are summed in one go: a quarter cheaper for
// each than one by one, and a full super-packet has 44.
const sumBatch = 64

// Start looks at the super-packet p with virtio header v (v.GSOType is not
// GSONone) and prepares to cut it. It changes bytes of p's headers. The error
// wraps [ErrSuper].
func (s *Splitter) Start(p []byte, v Virtio) error {
	s.left = 0
	typ := v.GSOType &^ GSOECN
	if f := Check(p); f != FaultNone && f != FaultHeader {
		return fmt.Errorf("%w: fault %d in %d bytes", ErrSuper, f, len(p))
	}
	s.v6 = p[0]>>4 == 6
	s.udp = typ == GSOUDPL4
	s.ipLen = int(v.CsumStart)
	minIP := IPv4Len
	if s.v6 {
		minIP = IPv6Len
	}
	if s.ipLen < minIP || (!s.v6 && s.ipLen != int(p[0]&15)*4) {
		return fmt.Errorf("%w: L4 header at %d", ErrSuper, s.ipLen)
	}
	switch {
	case typ == GSOTCPv4 && !s.v6, typ == GSOTCPv6 && s.v6:
		if len(p) < s.ipLen+TCPLen {
			return fmt.Errorf("%w: TCP header cut short", ErrSuper)
		}
	case s.udp:
		if len(p) < s.ipLen+UDPLen {
			return fmt.Errorf("%w: UDP header cut short", ErrSuper)
		}
	default:
		return fmt.Errorf("%w: GSO type %d for IP version %d", ErrSuper, v.GSOType, p[0]>>4)
	}
	// The kernel's hdr_len may cover a whole first segment when the packet
	// was forwarded, so the headers are measured here.
	hdr := s.ipLen + UDPLen
	if !s.udp {
		l4 := int(p[s.ipLen+12]>>4) * 4
		if l4 < TCPLen {
			return fmt.Errorf("%w: TCP header of %d bytes", ErrSuper, l4)
		}
		hdr = s.ipLen + l4
	}
	if v.GSOSize == 0 || len(p) <= hdr || hdr > maxHeaders {
		return fmt.Errorf("%w: %d bytes with headers of %d and segments of %d", ErrSuper, len(p), hdr, v.GSOSize)
	}
	if v.Flags&NeedsCsum == 0 || int(v.CsumStart)+int(v.CsumOffset) != s.ipLen+s.sumAt() {
		return fmt.Errorf("%w: no partial checksum (flags %#x, at %d+%d)", ErrSuper, v.Flags, v.CsumStart, v.CsumOffset)
	}
	s.size = int(v.GSOSize)
	s.head, s.payload = p[:hdr:hdr], p[hdr:]
	s.n = (len(s.payload) + s.size - 1) / s.size
	s.left = s.n
	s.base()
	return nil
}

// sumAt returns where in the L4 header the checksum is.
func (s *Splitter) sumAt() int {
	if s.udp {
		return 6
	}
	return 16
}

// base sums once what all segments share. The pseudo-header sum is taken from
// the partial checksum, less the length: with a routing header or a source
// route the addresses in it are not those of the IP header.
func (s *Splitter) base() {
	h, l4 := s.head, s.head[s.ipLen:]
	whole := len(l4) + len(s.payload)
	pseudo := Add(LoadSum(l4[s.sumAt():]), 0xffff-word(uint16(whole)))
	if !s.v6 {
		s.id = binary.BigEndian.Uint16(h[4:])
		h[2], h[3], h[4], h[5], h[10], h[11] = 0, 0, 0, 0, 0, 0
		s.ipBase = Sum(h[:s.ipLen], 0)
	}
	if s.udp {
		l4[4], l4[5], l4[6], l4[7] = 0, 0, 0, 0
	} else {
		s.seq = binary.BigEndian.Uint32(l4[4:])
		s.flags = l4[13]
		l4[4], l4[5], l4[6], l4[7] = 0, 0, 0, 0
		l4[13], l4[16], l4[17] = 0, 0, 0
	}
	s.l4Base = Sum(l4, pseudo)
}

// Segments returns how many segments the super-packet makes.
func (s *Splitter) Segments() int { return s.n }

// HeaderLen returns the bytes of IP and L4 header in front of every segment.
func (s *Splitter) HeaderLen() int { return len(s.head) }

// SegmentSize returns the bytes of a whole segment, headers included; the last
// one may be shorter.
func (s *Splitter) SegmentSize() int { return len(s.head) + s.size }

// Next writes the next segment's header to dst, which has HeaderLen bytes or
// more, and returns the payload that follows it; nil when all are cut. The
// payload belongs to the packet given to Start.
func (s *Splitter) Next(dst []byte) []byte {
	if s.left == 0 {
		return nil
	}
	pay := s.payload
	if len(pay) > s.size {
		pay = pay[:s.size]
	}
	i := s.n - s.left
	if i%sumBatch == 0 {
		SumSegments(s.payload, s.size, s.sums[:])
	}
	s.payload = s.payload[len(pay):]
	s.left--

	h := dst[:len(s.head)]
	copy(h, s.head)
	l4 := h[s.ipLen:]
	l4Len := len(l4) + len(pay)
	if s.v6 {
		binary.BigEndian.PutUint16(h[4:], uint16(s.ipLen-IPv6Len+l4Len))
	} else {
		id := s.id + uint16(i)
		total := uint16(s.ipLen + l4Len)
		binary.BigEndian.PutUint16(h[2:], total)
		binary.BigEndian.PutUint16(h[4:], id)
		PutSum(h[10:], s.ipBase+word(total)+word(id))
	}
	// Small addends: the unfolded sum is 64 bits wide and Add carries around.
	sum := Add(Add(s.sums[i%sumBatch], s.l4Base), word(uint16(l4Len)))
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(l4Len))
		PutSum(l4[6:], Add(sum, word(uint16(l4Len))))
		if l4[6] == 0 && l4[7] == 0 {
			l4[6], l4[7] = 0xff, 0xff
		}
		return pay
	}
	flags := s.flags
	if s.left > 0 {
		flags &^= tcpFIN | tcpPSH
	}
	if i > 0 {
		flags &^= tcpCWR
	}
	seq := s.seq + uint32(i*s.size)
	binary.BigEndian.PutUint32(l4[4:], seq)
	l4[13] = flags
	PutSum(l4[16:], Add(Add(sum, long(seq)), word(uint16(flags))))
	return pay
}
