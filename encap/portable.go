package encap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// The portable path: a wrapped device and x/net batches, two goroutines.
//
//  1. Outbound: wait for packets in the device's ring, decide on each, send
//     them with one WriteBatch, give the slots back.
//  2. Inbound: ReadBatch into slots of our own, decide on each, hand them to
//     the device with one Write.
//
// Segmentation is the device's business here (wireguard/tun cuts and joins by
// itself), and so are checksums. Owner: outbound packets belong to the device's
// ring until Release; inbound buffers to the inbound goroutine.
type portablePath struct {
	queue  *tun.Queue
	conn   *net.UDPConn
	batch  batchConn
	tx, rx half

	mu      sync.Mutex
	running bool
	cancel  context.CancelFunc // ends a running path
	closed  bool
}

// half is one direction with its own counters.
type half struct {
	core
	pub published
}

// batchConn is what ipv4.PacketConn and ipv6.PacketConn share.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

// tryAgain is how long a full network device is given, maxTries how often in a
// row; together less than Run may take to end.
const (
	tryAgain = 500 * time.Microsecond
	maxTries = 40
)

// portableBatch is the most datagrams of one call, where the system has calls
// for more than one.
const portableBatch = 64

func newPortablePath(e *Engine, conn *net.UDPConn) (path, error) {
	p := &portablePath{queue: e.queue, conn: conn}
	for _, h := range []*half{&p.tx, &p.rx} {
		h.core = core{cfg: e.cfg, log: e.log, table: e.table, out: p}
	}
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return nil, fmt.Errorf("the socket's address is a %T", conn.LocalAddr())
	}
	if local.IP.To4() != nil {
		p.batch = ipv4.NewPacketConn(conn)
	} else {
		p.batch = ipv6.NewPacketConn(conn)
	}
	return p, nil
}

func (p *portablePath) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrRunning
	}
	p.running, p.cancel = true, cancel
	p.mu.Unlock()

	// A deadline in the past ends calls that wait for the network.
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = p.conn.SetDeadline(time.Unix(1, 0))
	})
	errs := make(chan error, 2)
	go func() { errs <- p.outbound(ctx) }()
	go func() { errs <- p.inbound(ctx) }()
	err := <-errs
	ended := ctx.Err() != nil
	cancel()
	<-errs // the other direction: it ended because this one did
	p.tx.pub.publish(&p.tx.stats)
	p.rx.pub.publish(&p.rx.stats)
	if !stop() {
		<-stopped
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	closeErr := p.conn.Close()
	if ended {
		return closeErr
	}
	return errors.Join(err, closeErr)
}

// outbound is step 1.
func (p *portablePath) outbound(ctx context.Context) error {
	h := &p.tx
	ms := make([]ipv4.Message, portableBatch)
	pkts := make([]*peer, portableBatch)
	for i := range ms {
		ms[i].Buffers = make([][]byte, 1)
	}
	for ctx.Err() == nil {
		h.pub.publish(&h.stats)
		n, err := p.queue.Wait(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: %w", ErrDevice, err)
		}
		h.stats.Waits++
		n = min(n, portableBatch)
		h.stats.TX.DeviceCalls++
		s := p.tx.table.cur.Load()
		k := 0
		for i := range n {
			pkt := p.queue.Packet(i)
			pr, d := h.outbound(s, pkt)
			if d != DropNone {
				h.stats.Drops[d]++
				continue
			}
			ms[k].Buffers[0], ms[k].Addr = pkt, pr.udp
			pkts[k] = pr
			k++
		}
		err = p.sendAll(ctx, s, ms[:k], pkts)
		p.queue.Release(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// sendAll sends ms, passing over what the system refuses.
func (p *portablePath) sendAll(ctx context.Context, s *snapshot, ms []ipv4.Message, to []*peer) error {
	h := &p.tx
	tries := 0
	for at := 0; at < len(ms); {
		n, err := p.batch.WriteBatch(ms[at:], 0)
		if err != nil && n <= 0 {
			if ctx.Err() != nil {
				// Stopped with a batch in hand: what is left is lost.
				h.stats.Drops[DropNoBuffers] += uint64(len(ms) - at)
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("%w: send: %w", ErrSocket, err)
			}
			if errors.Is(err, syscall.ENOBUFS) && tries < maxTries {
				tries++
				time.Sleep(tryAgain) // the device is full
				continue
			}
			d := DropUnreachable
			if errors.Is(err, syscall.ENOBUFS) {
				d = DropNoBuffers
			}
			tries = 0
			if errors.Is(err, syscall.EMSGSIZE) {
				d = DropTooBig
				h.tooBig(s, ms[at].Buffers[0], len(ms[at].Buffers[0]), to[at], 1280)
			}
			h.stats.Drops[d]++
			at++
			continue
		}
		st := &h.stats.TX
		st.Batches++
		st.Messages += uint64(n)
		st.PeakBatch = max(st.PeakBatch, uint64(n))
		for i := at; i < at+n; i++ {
			st.Packets++
			st.Bytes += uint64(len(ms[i].Buffers[0]))
		}
		at += n
		tries = 0
	}
	return nil
}

// inbound is step 2.
func (p *portablePath) inbound(ctx context.Context) error {
	h := &p.rx
	ms := make([]ipv4.Message, portableBatch)
	mem := make([][]byte, portableBatch)
	for i := range ms {
		// One byte more than fits a datagram, to notice one that is cut.
		mem[i] = make([]byte, tun.Headroom+maxUDPPayload+1)
		ms[i].Buffers = [][]byte{mem[i][tun.Headroom:]}
	}
	out := make([][]byte, 0, portableBatch)
	failed := 0
	for {
		h.pub.publish(&h.stats)
		n, err := p.batch.ReadBatch(ms, 0)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
			return fmt.Errorf("%w: receive: %w", ErrSocket, err)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
			continue // the latter two: a peer that is not there (ICMP)
		default:
			// An ICMP error about something sent earlier is reported here,
			// once; an error that stays is the socket's end.
			if failed++; failed > 100 {
				return fmt.Errorf("%w: receive: %w", ErrSocket, err)
			}
			continue
		}
		failed = 0
		st := &h.stats.RX
		st.Batches++
		st.Messages += uint64(n)
		st.PeakBatch = max(st.PeakBatch, uint64(n))
		s := h.table.cur.Load()
		out = out[:0]
		for i := range n {
			if d := p.decide(s, &ms[i]); d != DropNone {
				h.stats.Drops[d]++
				continue
			}
			out = append(out, mem[i][:tun.Headroom+ms[i].N])
		}
		if err := p.deliver(ctx, out); err != nil {
			return err
		}
	}
}

// decide is what becomes of one datagram.
func (p *portablePath) decide(s *snapshot, m *ipv4.Message) Drop {
	from, ok := m.Addr.(*net.UDPAddr)
	if !ok {
		return DropUnknownPeer
	}
	if m.N > maxUDPPayload {
		return DropTruncated
	}
	return p.rx.inbound(s, m.Buffers[0][:m.N], to128(from.AddrPort().Addr().Unmap()))
}

// deliver writes packets to the device, at most its batch at a time.
func (p *portablePath) deliver(ctx context.Context, out [][]byte) error {
	h := &p.rx
	st := &h.stats.RX
	for len(out) > 0 {
		b := out[:min(len(out), p.queue.BatchSize())]
		sizes := 0
		for _, pkt := range b {
			sizes += len(pkt) - tun.Headroom
		}
		_, err := p.queue.Write(b)
		st.DeviceCalls++
		switch {
		case err == nil:
			st.Packets += uint64(len(b))
			st.Bytes += uint64(sizes)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, tun.ErrClosed):
			return fmt.Errorf("%w: write: %w", ErrDevice, err)
		default:
			// At most these: some devices take the rest of a batch.
			h.stats.Drops[DropDevice] += uint64(len(b))
		}
		out = out[len(b):]
	}
	return nil
}

// toHost implements reporter. The source is the packet's own destination: from
// an address of this host it would be dropped as martian.
func (p *portablePath) toHost(msg, about []byte) {
	setSource(msg, about)
	b := make([]byte, tun.Headroom+len(msg))
	copy(b[tun.Headroom:], msg)
	_, _ = p.queue.Write([][]byte{b}) // an error about an error is none
}

// toPeer implements reporter.
func (p *portablePath) toPeer(pr *peer, msg []byte) {
	_, _ = p.conn.WriteToUDPAddrPort(msg, pr.Endpoint)
}

// Close ends a running path, and releases one that never ran.
func (p *portablePath) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.cancel()
		return nil
	}
	if p.closed {
		return nil
	}
	p.closed = true
	return p.conn.Close()
}

func (p *portablePath) stats() Stats { return p.tx.pub.load().Add(p.rx.pub.load()) }
