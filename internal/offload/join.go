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
	// UDPSegments is the most datagrams of a run; 0 means 128, what Linux
	// takes since 6.9. Before that it is 64.
	UDPSegments int
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

// NewJoiner returns a Joiner; it allocates all it will need.
func NewJoiner(cfg JoinConfig) *Joiner {
	n := max(cfg.Packets, 1)
	return &Joiner{cfg: cfg, runs: make([]Run, 0, n), segs: make([]segment, 0, n)}
}

// SetConfig changes what may be joined from the next packet on, and seals all
// runs; Packets is kept as it was made.
func (j *Joiner) SetConfig(cfg JoinConfig) { j.cfg, j.nopen = cfg, 0 }

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

// Len returns the number of runs.
func (j *Joiner) Len() int { return len(j.runs) }

// Run returns run i, in order of arrival. The pointer is good until Reset.
func (j *Joiner) Run(i int) *Run { return &j.runs[i] }

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
