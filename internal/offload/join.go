package offload

import "encoding/binary"

// maxOpen is how many flows can have a run open at once. More flows than that
// interleaved in one receive batch seal the oldest run, nothing worse.
const maxOpen = 8

// maxRunBytes is the largest packet the kernel takes: the IPv4 total length.
const maxRunBytes = 65535

// none ends a list of packets.
const none = -1

// JoinConfig says what a [Joiner] may do.
type JoinConfig struct {
	// Packets is the most packets (segments) a batch holds, at least 1.
	Packets int
	// NoTCP and NoUDP keep TCP or UDP packets as they are.
	NoTCP, NoUDP bool
	// KeepTunnelPorts keeps UDP datagrams to the ports of well-known tunnels
	// apart: before Linux 6.8.5 joined datagrams were lost when the tunnel
	// that receives them was on the same host.
	KeepTunnelPorts bool
}

// A Joiner makes runs of consecutive packets of one flow, for one write to a
// device that cuts them again: the opposite of [Splitter]. It keeps slices of
// the packets it is given; their bytes stay in place and must not change until
// Reset. Runs are kept in the order in which their first packets came, and no
// packet overtakes another one of its flow. Not safe for concurrent use.
//
// What may be joined (a subset of the kernel's GRO, net/ipv4/tcp_offload.c and
// udp_offload.c, so that cutting a run again gives the same packets, but for
// the IDs of IPv4 packets with DF, which mean nothing, RFC 6864):
//   - same addresses, ports, TTL, TOS and DF bit; no fragments, IPv4 options or
//     IPv6 extension headers; IDs that count up, or DF set;
//   - TCP: the next sequence number; same acknowledgement, window, options and
//     ECE; only ACK, PSH and ECE set; PSH or FIN end the run; URG, SYN, RST, CWR
//     and packets without payload are never joined;
//   - UDP: a checksum (zero means none and would be lost);
//   - all payloads as long as the first one's; a shorter one ends the run;
//   - every L4 checksum right.
type Joiner struct {
	cfg   JoinConfig
	runs  []Run
	segs  []segment
	open  [maxOpen]int32 // runs that may grow, most recently used first
	nopen int
}

type segment struct {
	pkt  []byte
	next int32
}

// A Run is one or more packets that leave in one write.
type Run struct {
	first      []byte // the first packet, whole
	head, tail int32  // list of packets in Joiner.segs
	count      int32
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
	finished   bool
}

// NewJoiner returns a Joiner; it allocates all it will need.
func NewJoiner(cfg JoinConfig) *Joiner {
	n := max(cfg.Packets, 1)
	return &Joiner{cfg: cfg, runs: make([]Run, 0, n), segs: make([]segment, 0, n)}
}

// SetConfig changes what may be joined from the next packet on; Packets is
// kept as it was made.
func (j *Joiner) SetConfig(cfg JoinConfig) { j.cfg = cfg }

// Config returns the configuration in force.
func (j *Joiner) Config() JoinConfig { return j.cfg }

// Reset forgets all runs.
func (j *Joiner) Reset() {
	j.runs, j.segs, j.nopen = j.runs[:0], j.segs[:0], 0
}

// Full reports that Add would refuse a packet: flush and Reset first.
func (j *Joiner) Full() bool { return len(j.segs) == cap(j.segs) }

// Add appends the packet p, which passed [Check], to the open run of its flow
// or starts a new one. trusted says that its bytes were covered by a checksum
// that was verified on the way here; otherwise the L4 checksum is verified
// before p is joined to anything. It returns false, and keeps nothing, when
// the Joiner is Full.
func (j *Joiner) Add(p []byte, trusted bool) bool {
	if j.Full() {
		return false
	}
	k := int32(len(j.segs))
	j.segs = append(j.segs, segment{pkt: p, next: none})
	if j.nopen > 0 {
		if o := &j.runs[j.open[0]]; o.continues(p, trusted) {
			j.segs[o.tail].next = k
			o.tail = k
			o.count++
			o.total += int32(o.size)
			o.nextSeq += uint32(o.size)
			o.nextID++
			return true
		}
	}

	j.runs = append(j.runs, Run{first: p, head: k, tail: k, count: 1, total: int32(len(p)), trusted: trusted, verified: trusted})
	r := &j.runs[len(j.runs)-1]
	if !r.parse(p, j.cfg) {
		if r.l4 == 0 {
			j.nopen = 0 // a fragment or the like: which flow it is of is unknown
		} else if at := j.find(p, r); at >= 0 {
			j.seal(at)
		}
		return true
	}
	at := j.find(p, r)
	if at >= 0 {
		o := &j.runs[j.open[at]]
		if o.accepts(r, p) {
			// r's slot is given back: p lives on in o's list.
			j.segs[o.tail].next = k
			o.tail = k
			o.count++
			o.total += int32(len(p)) - int32(r.hdrLen)
			o.nextSeq = r.nextSeq
			o.nextID++
			o.flags |= r.flags & (tcpPSH | tcpFIN)
			o.trusted = o.trusted && r.trusted
			sealed := len(p)-int(r.hdrLen) < int(o.size) || r.flags&(tcpPSH|tcpFIN) != 0
			j.runs = j.runs[:len(j.runs)-1]
			if sealed {
				j.seal(at)
			} else if at > 0 {
				j.front(at)
			}
			return true
		}
		j.seal(at)
	}
	if r.joinable && r.flags&(tcpPSH|tcpFIN) == 0 {
		j.push(int32(len(j.runs) - 1))
	}
	return true
}

// find returns the place in open of the run that p, parsed as r, belongs to.
func (j *Joiner) find(p []byte, r *Run) int {
	for i := 0; i < j.nopen; i++ {
		o := &j.runs[j.open[i]]
		if o.l4 == r.l4 && o.ipLen == r.ipLen && sameFlow(o.first, p, int(r.ipLen)) {
			return i
		}
	}
	return -1
}

// sameFlow compares addresses and ports. ipLen is that of both headers: 20 or 40.
func sameFlow(a, b []byte, ipLen int) bool {
	ne := binary.NativeEndian
	if ipLen == IPv4Len {
		return ne.Uint64(a[12:]) == ne.Uint64(b[12:]) && ne.Uint32(a[20:]) == ne.Uint32(b[20:])
	}
	return ne.Uint64(a[32:]) == ne.Uint64(b[32:]) && ne.Uint32(a[40:]) == ne.Uint32(b[40:]) &&
		string(a[8:32]) == string(b[8:32])
}

func (j *Joiner) seal(at int) {
	copy(j.open[at:j.nopen-1], j.open[at+1:j.nopen])
	j.nopen--
}

func (j *Joiner) front(at int) {
	v := j.open[at]
	copy(j.open[1:at+1], j.open[:at])
	j.open[0] = v
}

func (j *Joiner) push(run int32) {
	if j.nopen == maxOpen {
		j.nopen-- // the least recently used run stays as long as it is
	}
	copy(j.open[1:j.nopen+1], j.open[:j.nopen])
	j.open[0] = run
	j.nopen++
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
	r.joinable = true
	return true
}

// accepts says whether p, parsed as n and of o's flow, can follow o's packets.
func (o *Run) accepts(n *Run, p []byte) bool {
	a := o.first
	pay := len(p) - int(n.hdrLen)
	if n.hdrLen != o.hdrLen || pay > int(o.size) || int(o.total)+pay > maxRunBytes {
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
			ne.Uint16(x[14:]) != ne.Uint16(y[14:]) { // window
			return false
		}
		if h := int(o.hdrLen - o.ipLen); h > TCPLen && string(x[TCPLen:h]) != string(y[TCPLen:h]) {
			return false
		}
	} else if o.count >= maxUDPSegments {
		return false
	}
	return o.verify() && n.verify()
}

// continues is the short way for the inside of a train: p is as long as o's
// first packet, and but for sequence number, ID and checksums has its headers.
// It says no to some packets that the long way joins, never yes to others.
func (o *Run) continues(p []byte, trusted bool) bool {
	a := o.first
	h := int(o.hdrLen)
	if len(p) != len(a) || int(o.total)+int(o.size) > maxRunBytes || len(p) < h {
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
		// Sequence; acknowledgement; header length and flags, where
		// o.flags has nothing but ACK and perhaps ECE, see Add; window
		// (and what is behind it: checksum and urgent pointer are not
		// compared, as URG is not set).
		if binary.BigEndian.Uint32(y[4:]) != o.nextSeq || ne.Uint32(x[8:]) != ne.Uint32(y[8:]) ||
			ne.Uint32(x[12:]) != ne.Uint32(y[12:]) ||
			len(x) > TCPLen && string(x[TCPLen:]) != string(y[TCPLen:]) {
			return false
		}
	} else if ne.Uint16(x[4:]) != ne.Uint16(y[4:]) || ne.Uint16(y[6:]) == 0 || o.count >= maxUDPSegments {
		return false
	}
	if trusted && o.verified {
		return true
	}
	o.trusted = o.trusted && trusted
	return o.verify() && (trusted || sumIsRight(p, int(o.ipLen), o.l4))
}

// maxUDPSegments is the kernel's UDP_MAX_SEGMENTS since 6.9; older ones take
// the same from a device (only sockets are held to 64).
const maxUDPSegments = 128

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

// Len returns the number of runs.
func (j *Joiner) Len() int { return len(j.runs) }

// Run returns run i, in order of arrival. The pointer is good until Reset.
func (j *Joiner) Run(i int) *Run { return &j.runs[i] }

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

// Rest iterates over what follows the first packet: it returns the payload of
// the packet at cursor and the next cursor. Begin with r.Second(); a cursor
// below 0 is the end.
func (j *Joiner) Rest(r *Run, cursor int32) (payload []byte, next int32) {
	s := &j.segs[cursor]
	return s.pkt[r.hdrLen:], s.next
}

// Second returns the cursor of the second packet, below 0 if there is none.
func (j *Joiner) Second(r *Run) int32 { return j.segs[r.head].next }

// Whole is Rest with the headers: the packet as it came. For a replay packet
// by packet, after [Run.Undo].
func (j *Joiner) Whole(cursor int32) (pkt []byte, next int32) {
	s := &j.segs[cursor]
	return s.pkt, s.next
}

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
	r.setLength(len(r.first))
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
