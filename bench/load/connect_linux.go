package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

// onThread runs f on a thread of its own.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// reset makes close send a reset: what is left of the connection on this side ends with it.
func reset(fd int) error {
	return os.NewSyscallError("setsockopt SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// connectServerRole accepts one connection after the other and answers one byte on each.
func connectServerRole(ctx context.Context, link *traffic.Link) error {
	var c params
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("load: connects server at %v: %w", c.Addr, err) }
	l, err := listen(ctx, link, c.Addr)
	if err != nil {
		return fail(err)
	}
	fd, err := detach(l.(*net.TCPListener))
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	s := connectServer{listener: fd, buf: make([]byte, 1), polls: make([]unix.PollFd, 2), patience: patience{timeout: c.Timeout}}
	defer context.AfterFunc(ctx, func() { s.stop.Store(true) })()
	if err := onThread(s.run); !errors.Is(err, context.Canceled) {
		return fail(err)
	}
	return ctx.Err()
}

// A connectServer is the accepting end.
type connectServer struct {
	patience
	listener int
	buf      []byte
	polls    []unix.PollFd
}

func (s *connectServer) run() error {
	for !s.stop.Load() {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC)
		if again(err) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		err = s.serve(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return context.Canceled
}

// serve answers and waits for the client's reset. That may be lost on the way: a client that is back with its next
// connection is done with this one as well.
func (s *connectServer) serve(fd int) error {
	if err := errors.Join(setTimeouts(fd), reset(fd)); err != nil {
		return err
	}
	for {
		n, err := unix.Read(fd, s.buf)
		if n > 0 {
			break
		}
		if s.stop.Load() || hungUp(n, err) {
			return nil
		}
		if !again(err) {
			return os.NewSyscallError("read", err)
		}
	}
	if err := unlessHungUp(s.write(fd, s.buf)); err != nil {
		return err
	}
	for i, of := range []int{fd, s.listener} {
		s.polls[i] = unix.PollFd{Fd: int32(of), Events: unix.POLLIN}
	}
	for !s.stop.Load() {
		n, err := unix.Poll(s.polls, int(pollInterval.Milliseconds()))
		if n > 0 {
			break
		}
		if err != nil && !again(err) {
			return os.NewSyscallError("poll", err)
		}
	}
	return nil
}

// connectClientRole makes the connections.
func connectClientRole(ctx context.Context, link *traffic.Link) error {
	var c params
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	w := newConnectClient(c)
	if err := play(ctx, link, c, &w.patience, w); err != nil {
		return fmt.Errorf("load: connects to %v: %w", netip.AddrPortFrom(c.Addr, c.Port), err)
	}
	return nil
}

// A connectClient is the connecting end.
type connectClient struct {
	patience
	family      int
	to, source  unix.Sockaddr // source may be nil
	buf         []byte
	open, close time.Duration // the window
}

func newConnectClient(c params) *connectClient {
	w := &connectClient{
		patience: patience{timeout: c.Timeout}, family: unix.AF_INET6, buf: make([]byte, 1),
		to: sockaddr(c.Addr, c.Port), open: c.Warmup, close: c.Warmup + c.Duration,
	}
	if c.Addr.Is4() {
		w.family = unix.AF_INET
	}
	if c.Source.IsValid() {
		w.source = sockaddr(c.Source, 0)
	}
	return w
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

// run implements worker.
func (w *connectClient) run(start time.Time, h *hdrhistogram.Histogram) error {
	for count := 0; ; count++ {
		began := time.Since(start)
		if began >= w.close {
			return nil
		}
		if w.stop.Load() {
			return context.Canceled
		}
		took, err := w.once()
		if err != nil {
			return fmt.Errorf("after %d connections: %w", count, err)
		}
		if began >= w.open {
			record(h, took)
		}
	}
}

// once makes one connection and returns how long it took to get the reply.
func (w *connectClient) once() (time.Duration, error) {
	fd, err := unix.Socket(w.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := errors.Join(setTimeouts(fd), reset(fd)); err != nil {
		return 0, err
	}
	if w.source != nil {
		// The port is chosen by connect, which knows both ends and finds a free one without a search; a port that
		// bind chose would have to be free for all destinations (ip(7)).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return 0, os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT", err)
		}
		if err := unix.Bind(fd, w.source); err != nil {
			return 0, os.NewSyscallError("bind", err)
		}
	}
	start := time.Now()
	if err := w.connect(fd, start); err != nil {
		return 0, err
	}
	if err := w.write(fd, w.buf); err != nil {
		return 0, err
	}
	for {
		n, err := unix.Read(fd, w.buf)
		took := time.Since(start)
		switch {
		case n > 0:
			return took, nil
		case hungUp(n, err):
			return 0, fmt.Errorf("the server closed the connection without an answer")
		case !again(err):
			return 0, os.NewSyscallError("read", err)
		case w.stop.Load():
			return 0, context.Canceled
		case took > w.timeout:
			return 0, w.errSilent()
		}
	}
}

// connect connects. With a timeout on the socket the call gives up waiting, not the attempt; the next call goes on with
// it (inet_stream_connect in net/ipv4/af_inet.c).
func (w *connectClient) connect(fd int, start time.Time) error {
	for {
		err := unix.Connect(fd, w.to)
		switch {
		case err == nil:
			return nil
		case !again(err) && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EALREADY):
			return os.NewSyscallError("connect", err)
		case w.stop.Load():
			return context.Canceled
		case time.Since(start) > w.timeout:
			return w.errSilent()
		}
	}
}
