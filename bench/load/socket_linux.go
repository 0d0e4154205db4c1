package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

// Sockets are made by package net, which can be cancelled and says clearly what went wrong, and then taken away from it:
// its poller has no part in the measurement. None is an MPTCP socket, as Go's listeners are by default: all candidates
// are to carry plain TCP.

// pollInterval is how long a worker stays in one system call at most before it looks whether it should stop.
const pollInterval = 200 * time.Millisecond

// listen makes a listening socket on a free port and tells the parent. The caller closes it.
func listen(ctx context.Context, link *traffic.Link, addr netip.Addr) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := link.Send("listening", listening{port}); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// detach takes the descriptor of a socket of package net and closes that. The descriptor is blocking, and its calls
// give up with EAGAIN after pollInterval.
func detach(c interface {
	syscall.Conn
	Close() error
}) (int, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	dupErr := errors.New("closed")
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	if err := errors.Join(os.NewSyscallError("fcntl", unix.SetNonblock(fd, false)), setTimeouts(fd)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setTimeouts makes blocking calls give up after pollInterval.
func setTimeouts(fd int) error {
	tv := unix.NsecToTimeval(int64(pollInterval))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return os.NewSyscallError("setsockopt timeout", err)
		}
	}
	return nil
}

// closeAll closes descriptors; those below 0 are closed already.
func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// again tells whether a call was only interrupted or timed out.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// hungUp tells whether a read or write says that the other end is gone.
func hungUp(n int, err error) bool {
	return n == 0 && err == nil || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// A patience says when a worker should give up.
type patience struct {
	stop    atomic.Bool   // set when the parent wants the role to end
	timeout time.Duration // of one transaction
}

// errSilent is why a transaction failed that nothing was heard of.
func (p *patience) errSilent() error {
	return fmt.Errorf("no answer within %v (the path does not pass packets, or the server is stuck)", p.timeout)
}

// write writes all of b.
func (p *patience) write(fd int, b []byte) error {
	var since time.Time
	for {
		n, err := unix.Write(fd, b)
		if n == len(b) {
			return nil
		}
		if n > 0 {
			b = b[n:]
			continue
		}
		switch {
		case p.stop.Load():
			return context.Canceled
		case !again(err):
			return os.NewSyscallError("write", err)
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > p.timeout:
			return p.errSilent()
		}
	}
}

// A worker does a client's work: from its start to the end of the window, then what is under way.
type worker interface {
	run(start time.Time, h *hdrhistogram.Histogram) error
}

// play runs a client's worker on a thread of its own, tells the parent when the window opens and closes, and sends it
// the result. It returns when the worker is done.
func play(ctx context.Context, link *traffic.Link, c params, p *patience, w worker) error {
	defer context.AfterFunc(ctx, func() { p.stop.Store(true) })()
	h := newHistogram()
	start := time.Now()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- w.run(start, h)
	}()
	running := true
	for _, step := range []struct {
		kind string
		at   time.Duration
	}{{"open", c.Warmup}, {"close", c.Warmup + c.Duration}} {
		if running {
			select {
			case err := <-done: // early, or just before the timer
				if err != nil {
					return err
				}
				running = false
			case <-time.After(time.Until(start.Add(step.at))):
			}
		}
		if err := link.Send(step.kind, nil); err != nil {
			p.stop.Store(true)
			if running {
				<-done
			}
			return err
		}
	}
	if running {
		if err := <-done; err != nil {
			return err
		}
	}
	return link.Send("result", summarize(h))
}
