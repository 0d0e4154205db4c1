package encap

import (
	"encoding/binary"
	"fmt"

	"github.com/flannelkit/flannelkit/internal/offload"
	"github.com/flannelkit/flannelkit/ring"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// Outbound, host to network.
//
//  1. readv the next packet: the virtio header beside, the packet right behind
//     the one before it in the slab (tailscale measured +15 to 35 % for packets
//     that lie together; here it also makes a train one iovec).
//  2. Decide (core.outbound). A dropped packet's space is used again.
//  3. A super-packet becomes messages of alternating iovecs: a segment's
//     header, written to the header arena, and its payload where it lies.
//     A small packet is appended to the train before it if it fits.
//  4. When the queue is empty or the slab is full, one sendmmsg.
//  5. What the socket does not take stays where it is: the slab is the only
//     slot of a ring, and while it is not consumed nothing is read.
//
// Terms: a segment is one inner packet as it will be on the wire; a message is
// one element of sendmmsg, one datagram or (with UDP_SEGMENT) several; a train
// is a message of several; the batch is all messages of one slab.
//
// Owner: the slab belongs to the kernel during readv and sendmmsg and to this
// thread otherwise. Nothing outlives the batch.
type txState struct {
	p    *rawPath
	ring *ring.Ring // one slot: the slab
	slab []byte
	used int // bytes of the slab in use

	vnet *[offload.VirtioLen]byte
	in   []iovec // for readv: virtio header, packet

	msgs  []mmsghdr
	names []sockname
	ctl   []controlbuf
	meta  []txMessage
	iovs  []iovec
	hdrs  []byte

	n, sent  int // messages laid out, and of those gone
	iovUsed  int
	hdrUsed  int
	maxSegs  int
	maxBatch int   // messages after which a batch leaves
	maxCall  int   // messages of one sendmmsg
	backoff  bool  // the device had no buffers: try again at retryAt
	retryAt  int64 // monotonic
	attempts int   // of that
	split    offload.Splitter
	scratch  []mmsghdr // one, for replays
	cut      []iovec   // two, for replays
	quote    []byte    // what an ICMP error quotes
}

// txMessage is what the engine knows of a message beside its msghdr.
type txMessage struct {
	peer    *peer
	seg     int  // bytes of every segment but the last
	segs    int  // segments
	bytes   int  // all segments
	sock    int  // which socket it leaves by
	pairs   bool // iovecs alternate header, payload; else they hold whole packets
	closed  bool // no packet can join the train
	frag    bool // larger than the path MTU: goes in outer fragments
	retries int  // sends that old errors were in the way of
	replay  int  // segments sent so far of a message that goes one by one; -1: it goes whole
}

const (
	// packetMax is the largest read: a super-packet.
	packetMax = 65535
	// batchBytes is after how many bytes of packets a batch leaves, see
	// bench/README.md for what other values did.
	batchBytes = 128 << 10
	slabSize   = batchBytes + packetMax + 1
	// maxSplit is the most segments of a super-packet: 64 KiB of payload at
	// 48 bytes, the smallest MSS of Linux (tcp_min_snd_mss), and some.
	maxSplit = 2048
	maxMsgs  = 2*maxSplit + 64
	maxIovs  = 4*maxSplit + 256
	maxHdrs  = maxSplit*128 + (64 << 10)
	// batchMsgs is after how many messages a batch leaves.
	batchMsgs = 128

	txArena = 64*16 + 128 + 4*16 + maxMsgs*(64+nameLen+controlLen) + maxIovs*16 + maxHdrs
)

func (t *txState) init(p *rawPath) {
	a := p.arena
	t.p = p
	t.vnet = &carve[[offload.VirtioLen]byte](a, 1)[0]
	t.in = carve[iovec](a, 2)
	t.msgs = carve[mmsghdr](a, maxMsgs)
	t.names = carve[sockname](a, maxMsgs)
	t.ctl = carve[controlbuf](a, maxMsgs)
	t.iovs = carve[iovec](a, maxIovs)
	t.hdrs = carve[byte](a, maxHdrs)
	t.scratch = carve[mmsghdr](a, 1)
	t.cut = carve[iovec](a, 2)
	t.quote = make([]byte, 0, icmpMax6)
	t.meta = make([]txMessage, maxMsgs)
	t.maxSegs = 64
	if kernelAtLeast(6, 9, 0) {
		t.maxSegs = 128
	}
	t.maxBatch, t.maxCall = batchMsgs, maxMsgs
	if p.cfg.Without&Batches != 0 {
		t.maxBatch, t.maxCall = 1, 1
	}
}

// pending reports whether a batch waits for the socket.
func (t *txState) pending() bool { return t.sent < t.n }

// backingOff reports whether the batch waits for time to pass: inbound traffic
// must not use up its attempts.
func (t *txState) backingOff() bool { return t.backoff && monotonic() < t.retryAt }

// pump moves one batch. It returns whether anything was done.
func (t *txState) pump() (bool, error) {
	if t.pending() {
		before := t.sent
		if err := t.send(); err != nil {
			return false, err
		}
		if t.pending() {
			return t.sent > before, nil
		}
	}
	t.n, t.sent, t.iovUsed, t.hdrUsed, t.used = 0, 0, 0, 0, 0
	read, err := t.fill()
	if err != nil || !read {
		return false, err
	}
	t.ring.Produce(1) // the slab is the consumer's until the batch has left
	return true, t.send()
}

// fill reads packets until the queue is empty or the batch is full.
func (t *txState) fill() (read bool, err error) {
	s := t.p.table.cur.Load()
	st := &t.p.core.stats.TX
	for t.used < batchBytes && t.n < t.maxBatch && t.iovUsed < maxIovs/2 && t.hdrUsed < maxHdrs/4 {
		n, e := t.read()
		switch e {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			st.EmptyAttempts++
			t.p.txReady = false
			return read, nil
		default:
			return read, deviceError("read", e)
		}
		read = true
		st.DeviceCalls++
		if n > 0 {
			t.packet(s, t.slab[t.used:t.used+n:t.used+n])
		}
	}
	return read, nil
}

// read takes the next packet to the free part of the slab; its virtio header
// goes to t.vnet.
func (t *txState) read() (int, unix.Errno) {
	t.in[1] = iovec{addr(&t.slab[t.used]), packetMax}
	if !t.p.vnet {
		return t.p.sys.readv(t.p.tun, &t.in[1], 1)
	}
	t.in[0] = iovec{addr(&t.vnet[0]), offload.VirtioLen}
	n, e := t.p.sys.readv(t.p.tun, &t.in[0], 2)
	return n - offload.VirtioLen, e
}

// deviceError explains an error of the queue that ends the engine.
func deviceError(op string, e unix.Errno) error {
	if e == unix.EBADFD || e == unix.EBADF || e == unix.ENODEV {
		return fmt.Errorf("%w: %s: %w (%w)", ErrDevice, op, tun.ErrGone, e)
	}
	return fmt.Errorf("%w: %s: %w", ErrDevice, op, e)
}

// packet decides on p, at the end of the slab, and lays it out.
func (t *txState) packet(s *snapshot, p []byte) {
	c := &t.p.core
	pr, d := c.outbound(s, p)
	if d != DropNone {
		c.stats.Drops[d]++
		return
	}
	var v offload.Virtio
	if t.p.vnet {
		v = offload.DecodeVirtio(t.vnet[:])
	}
	pmtu := pr.pathMTU()
	if v.GSOType != offload.GSONone {
		d = t.super(s, p, v, pr, pmtu)
	} else {
		if v.Flags&offload.NeedsCsum != 0 && !offload.FinishChecksum(p, int(v.CsumStart), int(v.CsumOffset)) {
			d = DropBadPacket
		} else {
			d = t.single(s, p, pr, pmtu)
		}
	}
	if d != DropNone {
		c.stats.Drops[d]++
		return
	}
	t.used += len(p)
}

// single lays out one packet: at the end of the train before it, or as a
// message of its own.
func (t *txState) single(s *snapshot, p []byte, pr *peer, pmtu int) Drop {
	if len(p) > maxUDPPayload {
		t.p.tooBig(s, p, len(p), pr, maxUDPPayload+pr.overhead)
		return DropTooBig
	}
	sock := t.socket(p)
	frag := pmtu != 0 && len(p)+pr.overhead > pmtu
	if frag {
		t.p.tooBig(s, p, len(p), pr, pmtu)
		t.p.core.stats.Fragmented++
	} else if t.n > 0 && t.extend(p, pr, sock) {
		return DropNone
	}
	if !t.message(pr, sock, len(p)) {
		return DropUnreachable
	}
	m := &t.meta[t.n]
	m.frag, m.closed = frag, frag
	t.add(addr(&p[0]), len(p))
	m.segs, m.bytes = 1, len(p)
	t.n++
	return DropNone
}

// extend appends p to the last message if that is a train, or can be one, of
// packets of this size to this peer. The packets lie back to back in the slab,
// so one iovec holds them all.
func (t *txState) extend(p []byte, pr *peer, sock int) bool {
	m := &t.meta[t.n-1]
	if m.closed || m.pairs || m.peer != pr || m.sock != sock || len(p) > m.seg ||
		m.segs >= t.maxSegs || m.bytes+len(p) > maxUDPPayload || t.p.cfg.Without&(Trains|SegmentOffload) != 0 || pr.gsoOff() {
		return false
	}
	h := &t.msgs[t.n-1].hdr
	v := &t.iovs[t.iovUsed-1]
	if v.base+v.len != addr(&p[0]) {
		return false
	}
	v.len += uintptr(len(p))
	m.segs++
	m.bytes += len(p)
	m.closed = len(p) < m.seg
	if m.segs == 2 {
		h.control = addr(&t.ctl[t.n-1][0])
		h.controllen = putSegment(&t.ctl[t.n-1], m.seg)
	}
	return true
}

// super cuts a super-packet into messages: as few as fit, of equal length, so
// that the receiver's trains are long ones.
func (t *txState) super(s *snapshot, p []byte, v offload.Virtio, pr *peer, pmtu int) Drop {
	sp := &t.split
	sock := t.socket(p)
	if err := sp.Start(p, v); err != nil {
		return DropBadPacket
	}
	n, seg, hl := sp.Segments(), sp.SegmentSize(), sp.HeaderLen()
	if n > maxSplit || (hl+7)&^7*n > maxHdrs-t.hdrUsed {
		return DropBadPacket
	}
	if n == 1 {
		seg = len(p)
	}
	if seg > maxUDPPayload {
		h := t.hdrs[t.hdrUsed : t.hdrUsed+hl]
		pay := sp.Next(h)
		quote := append(append(t.quote[:0], h...), pay[:min(len(pay), icmpMax6-hl)]...)
		t.p.tooBig(s, quote, seg, pr, maxUDPPayload+pr.overhead)
		return DropTooBig
	}
	t.p.core.stats.TX.SuperPackets++
	per := min(t.maxSegs, maxUDPPayload/seg)
	frag := pmtu != 0 && seg+pr.overhead > pmtu
	if frag {
		// The kernel refuses to segment what it would have to fragment.
		t.p.core.stats.Fragmented += uint64(n)
		per = 1
	} else if t.p.cfg.Without&SegmentOffload != 0 || pr.gsoOff() {
		per = 1
	}
	first := t.n
	messages := (n + per - 1) / per
	per = (n + messages - 1) / messages
	for left := n; left > 0; left -= per {
		if !t.message(pr, sock, seg) {
			return DropUnreachable
		}
		m := &t.meta[t.n]
		m.pairs, m.closed, m.frag = true, true, frag
		m.segs = min(per, left)
		for range m.segs {
			h := t.hdrs[t.hdrUsed : t.hdrUsed+hl]
			t.hdrUsed += (hl + 7) &^ 7
			pay := sp.Next(h)
			t.add(addr(&h[0]), hl)
			t.add(addr(&pay[0]), len(pay))
			m.bytes += hl + len(pay)
		}
		if m.segs > 1 {
			h := &t.msgs[t.n].hdr
			h.control = addr(&t.ctl[t.n][0])
			h.controllen = putSegment(&t.ctl[t.n], seg)
		}
		t.n++
	}
	if frag {
		t.tellFirst(s, first)
	}
	return DropNone
}

// message starts a message to pr at t.msgs[t.n]; false if the socket's address
// family can't reach it.
func (t *txState) message(pr *peer, sock, seg int) bool {
	n := putName(&t.names[t.n], pr, t.p.family)
	if n == 0 {
		return false
	}
	t.msgs[t.n].hdr = msghdr{name: addr(&t.names[t.n]), namelen: n, iov: addr(&t.iovs[t.iovUsed])}
	t.meta[t.n] = txMessage{peer: pr, seg: seg, sock: sock, replay: -1}
	return true
}

// add appends an iovec to the message being laid out.
func (t *txState) add(base uintptr, n int) {
	t.iovs[t.iovUsed] = iovec{base, uintptr(n)}
	t.iovUsed++
	t.msgs[t.n].hdr.iovlen++
}

// socket picks the source port for the flow of p: always the same one for a
// flow, so that the network keeps its packets in order.
func (t *txState) socket(p []byte) int {
	n := len(t.p.socks)
	if n == 1 {
		return 0
	}
	var h uint32
	if p[0]>>4 == 4 {
		h = hash32(binary.BigEndian.Uint32(p[12:]) ^ binary.BigEndian.Uint32(p[16:])*31)
		if l4 := int(p[0]&15) * 4; len(p) >= l4+4 && (p[9] == offload.ProtoTCP || p[9] == offload.ProtoUDP) && p[6]&0x3f == 0 && p[7] == 0 {
			h = hash32(h>>7 ^ binary.BigEndian.Uint32(p[l4:]))
		}
	} else {
		be := binary.BigEndian
		h = hash128(be.Uint64(p[8:])^be.Uint64(p[24:])*31, be.Uint64(p[16:])^be.Uint64(p[32:])*31)
		if len(p) >= offload.IPv6Len+4 && (p[6] == offload.ProtoTCP || p[6] == offload.ProtoUDP) {
			h = hash32(h>>7 ^ be.Uint32(p[40:]))
		}
	}
	// The socket of its own port is left to receiving, unless it is alone.
	return 1 + int(uint64(h)*uint64(n-1)>>32)
}

// send sends the batch from the first message that has not left. It returns
// with the batch pending when the socket or the device is full.
func (t *txState) send() error {
	t.backoff = false
	for t.sent < t.n {
		m := &t.meta[t.sent]
		if m.replay >= 0 {
			if blocked, err := t.replay(m); blocked || err != nil {
				return err
			}
			continue
		}
		end := t.sent + 1
		for end < t.n && end-t.sent < t.maxCall && t.meta[end].sock == m.sock && t.meta[end].replay < 0 && t.meta[end].frag == m.frag {
			end++
		}
		n, e := t.call(m, &t.msgs[t.sent], end-t.sent)
		if e != 0 {
			if blocked, err := t.refused(e); blocked || err != nil {
				return err
			}
			continue
		}
		t.attempts = 0
		t.count(n)
	}
	t.ring.Consume(t.ring.Pending())
	return nil
}

// call is sendmmsg for n messages at mm that are like m. Outer packets have DF
// set (a message of several always would lose it otherwise, net/ipv4/ip_output.c
// __ip_make_skb), so for those that need fragments it is lifted meanwhile.
func (t *txState) call(m *txMessage, mm *mmsghdr, n int) (int, unix.Errno) {
	fd := t.p.socks[m.sock]
	if !m.frag {
		return t.p.sys.sendmmsg(fd, mm, n)
	}
	t.p.setPMTUDiscovery(fd, unix.IP_PMTUDISC_WANT)
	defer t.p.setPMTUDiscovery(fd, unix.IP_PMTUDISC_DO)
	return t.p.sys.sendmmsg(fd, mm, n)
}

// count books n messages that left with one call.
func (t *txState) count(n int) {
	st := &t.p.core.stats.TX
	st.Batches++
	st.Messages += uint64(n)
	st.PeakBatch = max(st.PeakBatch, uint64(n))
	for i := t.sent; i < t.sent+n; i++ {
		m := &t.meta[i]
		st.Packets += uint64(m.segs)
		st.Bytes += uint64(m.bytes)
		if m.segs > 1 {
			st.Trains++
		}
	}
	t.sent += n
}

// sendCopy sends msg alone as one datagram to the address in names[0], whose
// length is n. The batch is empty.
func (t *txState) sendCopy(msg []byte, n uint32) {
	b := t.slab[:copy(t.slab, msg)]
	t.iovs[0] = iovec{addr(&b[0]), uintptr(len(b))}
	t.msgs[0].hdr = msghdr{name: addr(&t.names[0]), namelen: n, iov: addr(&t.iovs[0]), iovlen: 1}
	if got, e := t.p.sys.sendmmsg(t.p.socks[0], &t.msgs[0], 1); e == 0 && got == 1 {
		t.p.core.stats.TX.Batches++
		t.p.core.stats.TX.Messages++
	}
}
