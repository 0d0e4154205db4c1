package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

// How many connections are served. Either end has one thread, whatever their number. With one connection the thread
// blocks in read: a transaction costs each end one read, one write and one wake-up. With several it waits for all of
// them in epoll_wait, then reads and answers each that has something. The other way, a thread for each connection, would
// wake a thread per message, and sixteen at each end would compete with the tunnel for the processors and with each
// other: their order, and so the latency, would be the scheduler's. With one thread a wake-up serves all messages that
// have come by then, as in the servers that have many connections in real life.

// A poller waits for any of several connections.
type poller struct {
	epoll int // -1 for a single connection, whose read does the waiting
	ready []unix.EpollEvent
}

// newPoller makes one for sockets; the events' Fd is the index in fds. The caller closes it.
func newPoller(fds []int) (*poller, error) {
	p := &poller{epoll: -1, ready: make([]unix.EpollEvent, len(fds))}
	if len(fds) == 1 {
		return p, nil
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	p.epoll = epoll
	for i, fd := range fds {
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			p.close()
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	return p, nil
}

func (p *poller) close() {
	if p.epoll >= 0 {
		unix.Close(p.epoll)
	}
}

// wait returns the connections from which a read returns at once, none after pollInterval.
func (p *poller) wait() ([]unix.EpollEvent, error) {
	if p.epoll < 0 {
		return p.ready, nil
	}
	n, err := unix.EpollWait(p.epoll, p.ready, int(pollInterval.Milliseconds()))
	if err != nil && !again(err) {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.ready[:max(n, 0)], nil
}

// rrServerRole accepts the connections and sends back what comes, until all are closed.
func rrServerRole(ctx context.Context, link *traffic.Link) error {
	var c params
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("load: rr server at %v: %w", c.Addr, err) }
	fds, err := acceptAll(ctx, link, c)
	defer closeAll(fds)
	if err != nil {
		return fail(err)
	}
	poll, err := newPoller(fds)
	if err != nil {
		return fail(err)
	}
	defer poll.close()
	s := rrServer{fds: fds, poll: poll, in: make([][]byte, len(fds)), patience: patience{timeout: c.Timeout}}
	for i := range s.in {
		s.in[i] = make([]byte, 0, c.Size)
	}
	defer context.AfterFunc(ctx, func() { s.stop.Store(true) })()
	if err := onThread(s.run); err != nil {
		return fail(err)
	}
	return nil
}

func acceptAll(ctx context.Context, link *traffic.Link, c params) (fds []int, err error) {
	l, err := listen(ctx, link, c.Addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	return detachAll(c.Connections, func(int) (net.Conn, error) {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return conn, err
	})
}

// detachAll opens n TCP connections and takes them out of Go's poller. What it returns, also with an error, is the
// caller's to close.
func detachAll(n int, open func(i int) (net.Conn, error)) (fds []int, err error) {
	for i := range n {
		conn, err := open(i)
		if err != nil {
			return fds, err
		}
		fd, err := detach(conn.(*net.TCPConn))
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// An rrServer is the answering end.
type rrServer struct {
	patience
	fds  []int // -1: closed
	poll *poller
	in   [][]byte // what has come of the next request; the capacity is its size
}

func (s *rrServer) run() error {
	for open := len(s.fds); open > 0; {
		ready, err := s.poll.wait()
		if err != nil {
			return err
		}
		for _, e := range ready {
			ended, err := s.serve(int(e.Fd))
			if err != nil {
				return err
			}
			if ended {
				unix.Close(s.fds[e.Fd]) // which takes it out of the poller
				s.fds[e.Fd] = -1
				open--
			}
		}
		if s.stop.Load() {
			return context.Canceled
		}
	}
	return nil
}

// serve reads from one connection and answers if the request is whole.
func (s *rrServer) serve(i int) (ended bool, err error) {
	b := s.in[i]
	n, err := unix.Read(s.fds[i], b[len(b):cap(b)])
	switch {
	case hungUp(n, err):
		return true, nil // the client knows whether it was done
	case n > 0:
		b = b[:len(b)+n]
		s.in[i] = b
	case !again(err):
		return false, os.NewSyscallError("read", err)
	}
	if len(b) < cap(b) {
		return false, nil
	}
	s.in[i] = b[:0]
	err = s.write(s.fds[i], b)
	return hungUp(1, err), unlessHungUp(err)
}

func unlessHungUp(err error) error {
	if hungUp(1, err) {
		return nil
	}
	return err
}

// rrClientRole connects, sends requests and measures how long the replies take.
func rrClientRole(ctx context.Context, link *traffic.Link) error {
	var c params
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	fail := func(err error) error {
		return fmt.Errorf("load: rr to %v: %w", netip.AddrPortFrom(c.Addr, c.Port), err)
	}
	fds, err := connectAll(ctx, c)
	defer closeAll(fds)
	if err != nil {
		return fail(err)
	}
	poll, err := newPoller(fds)
	if err != nil {
		return fail(err)
	}
	defer poll.close()
	w := newRRClient(c, fds, poll)
	if err := play(ctx, link, c, &w.patience, w); err != nil {
		return fail(err)
	}
	return nil
}

func connectAll(ctx context.Context, c params) (fds []int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1} // with TCP_NODELAY, as always in Go
	dialer.SetMultipathTCP(false)
	if c.Source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Source, 0))
	}
	return detachAll(c.Connections, func(i int) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(c.Addr, c.Port).String())
		// The dialer may notice the deadline before the context does, and then has an error of its own.
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("connection %d of %d: no answer within %v", i+1, c.Connections, c.Timeout)
		}
		return conn, err
	})
}

// An rrClient is the asking end.
type rrClient struct {
	patience
	conns       []rrConn
	poll        *poller
	out         []byte
	open, close time.Duration // the window

	start   time.Time
	now     time.Duration // since start, as of the last read
	h       *hdrhistogram.Histogram
	waiting int    // connections with a request under way
	replies uint64 // so far, the warm-up's too
}

// An rrConn is one connection.
type rrConn struct {
	fd     int
	in     []byte        // what has come of the reply; the capacity is its size
	sent   time.Duration // when the request was sent
	serial byte          // first byte of the request
}

func newRRClient(c params, fds []int, poll *poller) *rrClient {
	w := &rrClient{
		patience: patience{timeout: c.Timeout}, poll: poll,
		out: make([]byte, c.Size), open: c.Warmup, close: c.Warmup + c.Duration,
	}
	for _, fd := range fds {
		w.conns = append(w.conns, rrConn{fd: fd, in: make([]byte, 0, c.Size)})
	}
	return w
}

// run implements worker.
func (w *rrClient) run(start time.Time, h *hdrhistogram.Histogram) error {
	w.start, w.h, w.waiting = start, h, len(w.conns)
	w.now = time.Since(start)
	for i := range w.conns {
		if err := w.request(&w.conns[i]); err != nil {
			return w.explain(err)
		}
	}
	for check := w.now + pollInterval; w.waiting > 0; {
		ready, err := w.poll.wait()
		if err != nil {
			return err
		}
		if len(ready) == 0 {
			w.now = time.Since(w.start)
		}
		for _, e := range ready {
			if err := w.reply(&w.conns[e.Fd]); err != nil {
				return w.explain(err)
			}
		}
		if w.stop.Load() {
			return context.Canceled
		}
		if w.now < check {
			continue
		}
		check = w.now + pollInterval
		for i := range w.conns { // one may be dead while the others go on
			if c := &w.conns[i]; c.sent >= 0 && w.now-c.sent > w.timeout {
				return w.explain(w.errSilent())
			}
		}
	}
	return nil
}

// request begins a transaction, or not if the window has closed.
func (w *rrClient) request(c *rrConn) error {
	if w.now >= w.close {
		c.sent = -1
		w.waiting--
		return nil
	}
	c.serial++
	c.sent, w.out[0] = w.now, c.serial
	return w.write(c.fd, w.out)
}

// reply reads from a connection. A whole reply ends a transaction and begins the next.
func (w *rrClient) reply(c *rrConn) error {
	n, err := unix.Read(c.fd, c.in[len(c.in):cap(c.in)])
	w.now = time.Since(w.start)
	switch {
	case n > 0:
		c.in = c.in[:len(c.in)+n]
	case err == nil:
		return unix.ECONNRESET // in effect
	case again(err):
		return nil
	default:
		return os.NewSyscallError("read", err)
	}
	if len(c.in) < cap(c.in) {
		return nil
	}
	if c.in[0] != c.serial {
		return fmt.Errorf("a reply to request %d while waiting for the one to %d", c.in[0], c.serial)
	}
	c.in = c.in[:0]
	w.replies++
	if c.sent >= w.open {
		record(w.h, w.now-c.sent)
	}
	return w.request(c)
}

// explain says how far it went.
func (w *rrClient) explain(err error) error {
	if hungUp(1, err) {
		err = fmt.Errorf("the server closed the connection: %w", err)
	}
	return fmt.Errorf("after %d transactions: %w", w.replies, err)
}
