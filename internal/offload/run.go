package offload

import "encoding/binary"

// A Run is one or more packets that leave in one write.
type Run struct {
	first      []byte // the first packet, whole
	head, tail int32  // list of packets in Joiner.segs
	count      int32
	limit      int32 // most packets
	total      int32 // bytes of the run as one packet
	hdrLen     uint16
	ipLen      uint16
	size       uint16 // payload of the first packet
	nextID     uint16
	nextSeq    uint32
	joinable   bool // TCP or UDP with payload, and not sealed
	l4         uint8
	flags      uint8 // TCP flags that the joined packet will have
	verified   bool  // L4 checksum of first known to be right
	trusted    bool
	savedSum   uint16 // what Finish replaced, for Undo
	savedFlags uint8
	savedIPSum uint16
	finished   bool
}

// parse fills in what joining p depends on. It returns whether p may be part
// of a run; when it may not, l4 is still set if p's flow is known.
func (r *Run) parse(p []byte, cfg JoinConfig) bool {
	var proto byte
	switch {
	case p[0] == 0x45:
		if p[6]&0x3f != 0 || p[7] != 0 || len(p) < IPv4Len+UDPLen {
			return false // a fragment, or too short for ports
		}
		r.ipLen = IPv4Len
		proto = p[9]
		r.nextID = binary.BigEndian.Uint16(p[4:]) + 1
	case p[0]>>4 == 6:
		if len(p) < IPv6Len+UDPLen {
			return false
		}
		r.ipLen = IPv6Len
		proto = p[6]
	default:
		return false
	}
	l4 := p[r.ipLen:]
	switch proto {
	case ProtoTCP:
		return r.parseTCP(l4, cfg)
	case ProtoUDP:
		return r.parseUDP(l4, cfg)
	}
	return false
}

func (r *Run) parseTCP(l4 []byte, cfg JoinConfig) bool {
	if len(l4) < TCPLen {
		return false
	}
	r.l4 = ProtoTCP
	n := int(l4[12]>>4) * 4
	r.flags = l4[13]
	if n < TCPLen || n >= len(l4) || cfg.NoTCP ||
		r.flags&(tcpSYN|tcpRST|tcpURG|tcpCWR) != 0 || r.flags&tcpACK == 0 || l4[12]&0x0f != 0 {
		return false
	}
	r.hdrLen = r.ipLen + uint16(n)
	r.size = uint16(len(l4) - n)
	r.nextSeq = binary.BigEndian.Uint32(l4[4:]) + uint32(r.size)
	r.limit = maxSegments
	r.joinable = true
	return true
}

func (r *Run) parseUDP(l4 []byte, cfg JoinConfig) bool {
	r.l4 = ProtoUDP
	if cfg.NoUDP || len(l4) <= UDPLen || l4[6]|l4[7] == 0 || int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
		return false
	}
	if cfg.KeepTunnelPorts {
		switch binary.BigEndian.Uint16(l4[2:]) {
		case 4789, 8472, 6081, 8285, 51820:
			return false
		}
	}
	r.hdrLen = r.ipLen + UDPLen
	r.size = uint16(len(l4) - UDPLen)
	if r.limit = int32(cfg.UDPSegments); r.limit == 0 {
		r.limit = maxUDPSegments
	}
	r.joinable = true
	return true
}

// accepts says whether p, parsed as n and of o's flow, can follow o's packets.
func (o *Run) accepts(n *Run, p []byte) bool {
	a := o.first
	pay := len(p) - int(n.hdrLen)
	if o.count >= o.limit || n.hdrLen != o.hdrLen || pay > int(o.size) || int(o.total)+pay > maxRunBytes {
		return false
	}
	ne := binary.NativeEndian
	if o.ipLen == IPv4Len {
		// Version, header length and TOS; DF; TTL and protocol.
		if ne.Uint16(a) != ne.Uint16(p) || a[6] != p[6] || ne.Uint16(a[8:]) != ne.Uint16(p[8:]) {
			return false
		}
		if p[6]&0x40 == 0 && n.nextID-1 != o.nextID {
			return false
		}
	} else if ne.Uint32(a) != ne.Uint32(p) || ne.Uint16(a[6:]) != ne.Uint16(p[6:]) {
		return false // traffic class and flow label; next header and hop limit
	}
	if o.l4 == ProtoTCP {
		x, y := a[o.ipLen:], p[o.ipLen:]
		if binary.BigEndian.Uint32(y[4:]) != o.nextSeq || // sequence
			ne.Uint32(x[8:]) != ne.Uint32(y[8:]) || // acknowledgement
			x[12] != y[12] || (o.flags^n.flags)&^(tcpPSH|tcpFIN) != 0 ||
			ne.Uint16(x[14:]) != ne.Uint16(y[14:]) || // window
			ne.Uint16(x[18:]) != ne.Uint16(y[18:]) { // urgent pointer
			return false
		}
		if h := int(o.hdrLen - o.ipLen); h > TCPLen && string(x[TCPLen:h]) != string(y[TCPLen:h]) {
			return false
		}
	}
	return o.verify() && n.verify()
}

// continues is the short way for the inside of a train: p is as long as o's
// first packet, and but for sequence number, ID and checksums has its headers.
// It says no to some packets that the long way joins, never yes to others.
func (o *Run) continues(p []byte, trusted bool) bool {
	a := o.first
	h := int(o.hdrLen)
	if o.count >= o.limit || len(p) != len(a) || int(o.total)+int(o.size) > maxRunBytes || len(p) < h {
		return false
	}
	ne := binary.NativeEndian
	x, y := a[o.ipLen:h], p[o.ipLen:h]
	if o.ipLen == IPv4Len {
		// Version, TOS and length; DF, as an ID that counts up needs the
		// long way; TTL and protocol; addresses.
		if ne.Uint32(a) != ne.Uint32(p) || p[6] != 0x40 || a[6] != 0x40 || p[7] != 0 ||
			ne.Uint16(a[8:]) != ne.Uint16(p[8:]) || ne.Uint64(a[12:]) != ne.Uint64(p[12:]) {
			return false
		}
	} else if ne.Uint64(a) != ne.Uint64(p) || string(a[8:40]) != string(p[8:40]) {
		return false
	}
	if ne.Uint32(x) != ne.Uint32(y) { // ports
		return false
	}
	if o.l4 == ProtoTCP {
		// Sequence; acknowledgement; header length, flags (o's are ACK and
		// perhaps ECE, see Add) and window; urgent pointer; options.
		if binary.BigEndian.Uint32(y[4:]) != o.nextSeq || ne.Uint32(x[8:]) != ne.Uint32(y[8:]) ||
			ne.Uint32(x[12:]) != ne.Uint32(y[12:]) || ne.Uint16(x[18:]) != ne.Uint16(y[18:]) ||
			len(x) > TCPLen && string(x[TCPLen:]) != string(y[TCPLen:]) {
			return false
		}
	} else if ne.Uint16(x[4:]) != ne.Uint16(y[4:]) || ne.Uint16(y[6:]) == 0 {
		return false
	}
	if trusted && o.verified {
		return true
	}
	if !o.verify() || !trusted && !sumIsRight(p, int(o.ipLen), o.l4) {
		return false
	}
	o.trusted = o.trusted && trusted
	return true
}

// maxUDPSegments is the kernel's UDP_MAX_SEGMENTS since 6.9, 64 before
// (include/linux/virtio_net.h virtio_net_hdr_to_skb holds devices to it).
const maxUDPSegments = 128

// maxSegments bounds a run to fewer pieces than one system call takes (1024,
// UIO_MAXIOV).
const maxSegments = 1000

// verify checks the L4 checksum of the first packet, once.
func (r *Run) verify() bool {
	if r.verified {
		return true
	}
	r.verified = sumIsRight(r.first, int(r.ipLen), r.l4)
	return r.verified
}

// sumIsRight verifies the L4 checksum of p.
func sumIsRight(p []byte, ipLen int, proto uint8) bool {
	l4 := p[ipLen:]
	var acc uint64
	if ipLen == IPv4Len {
		acc = PseudoIPv4(p, proto, len(l4))
	} else {
		acc = PseudoIPv6(p, proto, len(l4))
	}
	return Fold(Sum(l4, acc)) == 0xffff
}

// Packets returns how many packets the run is made of.
func (r *Run) Packets() int { return int(r.count) }

// Bytes returns the length of the run as one packet.
func (r *Run) Bytes() int { return int(r.total) }

// HeaderLen returns the bytes of IP and L4 header of every packet of a run of
// more than one.
func (r *Run) HeaderLen() int { return int(r.hdrLen) }

// TCP reports whether the run is of TCP packets (and if it has more than one
// packet and is not, of UDP).
func (r *Run) TCP() bool { return r.l4 == ProtoTCP }

// First returns the run's first packet, whole: headers, then payload.
func (r *Run) First() []byte { return r.first }

// Finish makes the run's first header the header of the whole and returns the
// virtio header to write in front. A run of one packet stays as it is, except
// that a trusted one is marked NeedsCsum when partial is true, which saves the
// kernel a pass over its bytes. [Run.Undo] takes all of it back.
func (r *Run) Finish(partial bool) Virtio {
	if r.count == 1 && !(partial && r.joinable && r.trusted) {
		return Virtio{}
	}
	h := r.first
	l4 := h[r.ipLen:]
	l4Len := int(r.total) - int(r.ipLen)
	v := Virtio{Flags: NeedsCsum, HdrLen: r.hdrLen, CsumStart: r.ipLen, CsumOffset: 16}
	at := 16
	if r.l4 == ProtoUDP {
		v.CsumOffset, at = 6, 6
	}
	r.finished = true
	r.savedSum = binary.NativeEndian.Uint16(l4[at:])
	if r.count > 1 {
		v.GSOSize = r.size
		switch {
		case r.l4 == ProtoUDP:
			v.GSOType = GSOUDPL4
			binary.BigEndian.PutUint16(l4[4:], uint16(l4Len))
		case r.ipLen == IPv4Len:
			v.GSOType = GSOTCPv4
		default:
			v.GSOType = GSOTCPv6
		}
		if r.l4 == ProtoTCP {
			r.savedFlags = l4[13]
			l4[13] = r.flags
		}
		r.savedIPSum = binary.NativeEndian.Uint16(h[10:])
		r.setLength(int(r.total))
	}
	var pseudo uint64
	if r.ipLen == IPv4Len {
		pseudo = PseudoIPv4(h, r.l4, l4Len)
	} else {
		pseudo = PseudoIPv6(h, r.l4, l4Len)
	}
	// The field of a partial checksum holds the sum itself, not its complement.
	binary.NativeEndian.PutUint16(l4[at:], Fold(pseudo))
	return v
}

// Undo restores the first packet as it was before Finish.
func (r *Run) Undo() {
	if !r.finished {
		return
	}
	r.finished = false
	l4 := r.first[r.ipLen:]
	at := 16
	if r.l4 == ProtoUDP {
		at = 6
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else if r.count > 1 {
		l4[13] = r.savedFlags
	}
	binary.NativeEndian.PutUint16(l4[at:], r.savedSum)
	if r.count > 1 {
		r.setLength(len(r.first))
		if r.ipLen == IPv4Len { // zero has two forms: the one that came
			binary.NativeEndian.PutUint16(r.first[10:], r.savedIPSum)
		}
	}
}

// setLength writes the length n of the whole packet to the IP header and mends
// the IPv4 checksum.
func (r *Run) setLength(n int) {
	if r.ipLen == IPv4Len {
		binary.BigEndian.PutUint16(r.first[2:], uint16(n))
		setIPv4Sum(r.first[:IPv4Len])
		return
	}
	binary.BigEndian.PutUint16(r.first[4:], uint16(n-IPv6Len))
}
