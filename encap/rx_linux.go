package encap

import (
	"log/slog"
	"runtime"

	"github.com/flannelkit/flannelkit/internal/offload"
	"github.com/flannelkit/flannelkit/ring"
	"golang.org/x/sys/unix"
)

// Inbound, network to host.
//
//  1. One recvmmsg fills slots of the receive ring: few slots while trains
//     come (8 of 64 KiB stay in the second-level cache), many while single
//     datagrams do, because a run can only grow within one batch.
//  2. Every message is cut into its datagrams; each is checked and decided on
//     (core.inbound) and given to the joiner, which makes runs of them.
//  3. Every run is one writev: the virtio header in front of its first packet,
//     over bytes that are done with (see flush), then the payloads where they
//     lie. Order within a flow is kept; nothing is held for the next batch.
//  4. The slots are consumed and the ring starts again at its first slot.
//
// Owner: slots belong to the kernel during recvmmsg, to this thread until the
// runs are written, then to the producer again.
type rxState struct {
	p     *rawPath
	ring  *ring.Ring
	msgs  []mmsghdr
	names []sockname
	ctl   []controlbuf
	iovs  []iovec
	out   []iovec
	plain []byte // for packets that do not come from a slot: header and packet
	vlen  int    // messages of the next recvmmsg: one of the two

	trainSlots, singleSlots int

	join       *offload.Joiner
	joinConfig offload.JoinConfig // as configured
	noTCP      int64              // until when TCP is not joined, monotonic
	noUDP      int64
	partial    bool // trusted packets may be marked partial; off after a refusal
}

const (
	// rxSlots is the most datagrams of one recvmmsg, rxTrainSlots while
	// trains arrive.
	rxSlots      = 64
	rxTrainSlots = 8
	// rxHeadroom has room for the virtio header of a slot's first packet.
	rxHeadroom = 64
	// rxPackets is how many packets a batch of the joiner holds.
	rxPackets = 2048
	// maxOut is the kernel's limit of iovecs in one call (UIO_MAXIOV).
	maxOut = 1024

	rxArena = 64*8 + rxSlots*(64+nameLen+controlLen+16) + maxOut*16 + icmpMax6 + rxHeadroom
)

func (r *rxState) init(p *rawPath) (err error) {
	r.p = p
	// One byte more than the largest datagram, to tell one that is cut.
	if r.ring, err = ring.New(ring.Config{Slots: rxSlots, SlotSize: packetMax + 1, Headroom: rxHeadroom}); err != nil {
		return err
	}
	if p.tx.ring, err = ring.New(ring.Config{Slots: 1, SlotSize: slabSize}); err != nil {
		return err
	}
	p.tx.slab = p.tx.ring.Slot(0)
	a := p.arena
	r.msgs = carve[mmsghdr](a, rxSlots)
	r.names = carve[sockname](a, rxSlots)
	r.ctl = carve[controlbuf](a, rxSlots)
	r.iovs = carve[iovec](a, rxSlots)
	r.out = carve[iovec](a, maxOut)
	r.plain = carve[byte](a, icmpMax6+rxHeadroom)
	for i := range r.msgs {
		b := r.ring.Slot(uint32(i))
		r.iovs[i] = iovec{addr(&b[0]), uintptr(len(b))}
		r.msgs[i].hdr = msghdr{name: addr(&r.names[i]), iov: addr(&r.iovs[i]), iovlen: 1, control: addr(&r.ctl[i][0])}
	}
	r.trainSlots, r.singleSlots = rxTrainSlots, rxSlots
	if p.cfg.Without&Batches != 0 {
		r.trainSlots, r.singleSlots = 1, 1
	}
	r.vlen = r.trainSlots
	r.partial = p.vnet
	r.joinConfig = offload.JoinConfig{
		Packets:         rxPackets,
		NoTCP:           !p.vnet || p.cfg.Without&JoinTCP != 0,
		NoUDP:           !p.vnet || p.cfg.Without&JoinUDP != 0 || !kernelAtLeast(6, 2, 0),
		KeepTunnelPorts: !kernelAtLeast(6, 8, 5),
		UDPSegments:     p.tx.maxSegs,
	}
	r.join = offload.NewJoiner(r.joinConfig)
	return nil
}

// pump moves one batch. It returns whether anything came.
func (r *rxState) pump() (bool, error) {
	n, err := r.receive()
	if n == 0 || err != nil {
		return false, err
	}
	if r.noTCP|r.noUDP != 0 {
		r.retryJoin()
	}
	s := r.p.table.cur.Load()
	trains := false
	for i := range n {
		train, err := r.message(s, i)
		if err != nil {
			return true, err
		}
		trains = trains || train
	}
	err = r.flush()
	r.ring.Consume(n)
	r.ring.Rewind()
	if trains {
		r.vlen = r.trainSlots
	} else {
		r.p.rxReady = r.p.rxReady && n == r.vlen // fewer: it was the last
		r.vlen = r.singleSlots
	}
	return true, err
}

// receive fills slots and returns how many.
func (r *rxState) receive() (int, error) {
	for i := range r.vlen {
		h := &r.msgs[i].hdr
		h.namelen, h.controllen, h.flags = nameLen, controlLen, 0
	}
	for tries := 0; ; tries++ {
		n, e := r.p.sys.recvmmsg(r.p.socks[0], &r.msgs[0], r.vlen)
		st := &r.p.core.stats.RX
		switch e {
		case 0:
			st.Batches++
			st.Messages += uint64(n)
			st.PeakBatch = max(st.PeakBatch, uint64(n))
			r.ring.Produce(n)
			return n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			st.EmptyAttempts++
			r.p.rxReady = false
			return 0, nil
		}
		if isBroken(e) {
			return 0, socketError("receive", e)
		}
		// An ICMP error about something sent earlier, or a passing want of
		// memory; it is gone from the socket once read.
		r.p.drainErrors(r.p.socks[0])
		if tries > 16 {
			return 0, nil
		}
	}
}

// message takes apart message i.
func (r *rxState) message(s *snapshot, i int) (train bool, err error) {
	m := &r.msgs[i]
	c := &r.p.core
	b := r.ring.Slot(uint32(i))
	n := int(m.len)
	if n > packetMax || m.hdr.flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		c.stats.Drops[DropTruncated]++
		return false, nil
	}
	if n == 0 {
		c.stats.Drops[DropShort]++
		return false, nil
	}
	outer := source(&r.names[i])
	seg := n
	trusted := c.cfg.Checksums == TrustOuter && outer.hi|outer.lo>>32 != 0xffff
	if m.hdr.controllen > 0 {
		if g := groSize(&r.ctl[i], int(m.hdr.controllen)); g > 0 {
			seg = g
			// The kernel makes a train only of datagrams whose checksums
			// it has verified (net/ipv4/udp_offload.c udp_gro_receive).
			trusted = c.cfg.Checksums == TrustOuter
			if train = n > g; train {
				c.stats.RX.Trains++
			}
		}
	}
	for at := 0; at < n; at += seg {
		p := b[at:min(at+seg, n):min(at+seg, n)]
		if d := c.inbound(s, p, outer); d != DropNone {
			c.stats.Drops[d]++
			continue
		}
		if !r.join.Add(p, trusted) {
			if err := r.flush(); err != nil {
				return train, err
			}
			r.join.Add(p, trusted)
		}
	}
	return train, nil
}

// flush writes all runs, in order of arrival.
//
// A virtio header is put right in front of a run's first packet, where the end
// of the packet before it in the slot lies. That one has been written already:
// it came earlier, so its run was begun earlier.
func (r *rxState) flush() error {
	for i := range r.join.Len() {
		if err := r.write(r.join.Run(i)); err != nil {
			r.join.Reset()
			return err
		}
	}
	r.join.Reset()
	return nil
}

// write writes one run, as one packet if the device takes it.
func (r *rxState) write(run *offload.Run) error {
	v := run.Finish(r.partial)
	k := r.layOut(run)
	e := r.writev(v, k)
	if e == 0 {
		r.written(run.Packets(), run.Bytes(), run)
		return nil
	}
	if isGone(e) {
		return deviceError("write", e)
	}
	if v == (offload.Virtio{}) || e == unix.EIO || e == unix.ENETDOWN {
		r.p.core.stats.Drops[DropDevice] += uint64(run.Packets())
		return nil
	}
	// Refused as one: as they came, one by one. EINVAL comes from kernels
	// with a broken check (6.6.44 and others of that summer), ENOMEM where
	// no large buffer is free.
	run.Undo()
	r.refusedRun(run, e)
	if err := r.writeOne(run.First()); err != nil {
		return err
	}
	for c := r.join.Second(run); c >= 0; {
		var p []byte
		p, c = r.join.Whole(c)
		if err := r.writeOne(p); err != nil {
			return err
		}
	}
	return nil
}

// layOut fills r.out with the run's bytes behind room for a virtio header and
// returns the number of iovecs, which the joiner keeps below maxOut.
func (r *rxState) layOut(run *offload.Run) int {
	first := run.First()
	r.out[0] = iovec{addr(&first[0]), uintptr(len(first))}
	k := 1
	for c := r.join.Second(run); c >= 0; k++ {
		var pay []byte
		pay, c = r.join.Rest(run, c)
		r.out[k] = iovec{addr(&pay[0]), uintptr(len(pay))}
	}
	return k
}

// writev writes k iovecs with virtio header v in front of the first.
func (r *rxState) writev(v offload.Virtio, k int) unix.Errno {
	if r.p.vnet {
		h := headerBefore(&r.out[0])
		v.Encode(h[:])
	}
	return r.call(k)
}

// call writes k iovecs.
func (r *rxState) call(k int) unix.Errno {
	for tries := 0; ; tries++ {
		_, e := r.p.sys.writev(r.p.tun, &r.out[0], k)
		switch e {
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			// The queue's socket buffer is full; the kernel is about to
			// give it back.
			if tries > 100 {
				return e
			}
			runtime.Gosched()
		default:
			return e
		}
	}
}

// writeOne writes a packet as it is. Its virtio header is not put in front of
// it: it need not be the first of its run, and the packet before it in the slot
// may belong to a run that is still to be written.
func (r *rxState) writeOne(p []byte) error {
	k := 0
	if r.p.vnet {
		clear(r.plain[:offload.VirtioLen])
		r.out[0] = iovec{addr(&r.plain[0]), offload.VirtioLen}
		k = 1
	}
	r.out[k] = iovec{addr(&p[0]), uintptr(len(p))}
	switch e := r.call(k + 1); {
	case e == 0:
		r.written(1, len(p), nil)
	case isGone(e):
		return deviceError("write", e)
	default:
		r.p.core.stats.Drops[DropDevice]++
	}
	return nil
}

// writePlain writes a packet that is not in a slot.
func (r *rxState) writePlain(msg []byte) {
	b := r.plain[rxHeadroom:]
	n := copy(b, msg)
	r.out[0] = iovec{addr(&b[0]), uintptr(n)}
	if r.writev(offload.Virtio{}, 1) == 0 {
		r.p.core.stats.RX.DeviceCalls++
	}
}

func (r *rxState) written(packets, bytes int, run *offload.Run) {
	st := &r.p.core.stats.RX
	st.DeviceCalls++
	st.Packets += uint64(packets)
	st.Bytes += uint64(bytes)
	if packets > 1 {
		st.SuperPackets++
		// Each further packet had headers of its own.
		st.Bytes += uint64(packets-1) * uint64(run.HeaderLen())
	}
}

// refusedRun switches off what the device refused, for a time.
func (r *rxState) refusedRun(run *offload.Run, e unix.Errno) {
	r.p.core.stats.Replays++
	if e != unix.EINVAL && e != unix.EOPNOTSUPP {
		return // a matter of this moment
	}
	until := monotonic() + int64(learnTime)
	off, what := &r.noUDP, "udp"
	switch {
	case run.Packets() == 1:
		r.partial = false
		off, what = nil, "partial checksums"
	case run.TCP():
		off, what = &r.noTCP, "tcp"
	}
	if off != nil {
		if *off != 0 {
			return // another run of the same batch: said already
		}
		*off = until
		r.setJoin()
	}
	r.p.log.Warn("the device refuses joined packets; writing them one by one",
		slog.String("what", what), slog.String("error", e.Error()), slog.Duration("for", learnTime))
}

func (r *rxState) setJoin() {
	c := r.joinConfig
	c.NoTCP = c.NoTCP || r.noTCP != 0
	c.NoUDP = c.NoUDP || r.noUDP != 0
	r.join.SetConfig(c)
}

// retryJoin joins again when the time of a refusal is over.
func (r *rxState) retryJoin() {
	now := monotonic()
	if r.noTCP != 0 && now > r.noTCP {
		r.noTCP = 0
	}
	if r.noUDP != 0 && now > r.noUDP {
		r.noUDP = 0
	}
	r.setJoin()
}
