package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pingRole sends one request after the other and reports once at the end.
func pingRole(ctx context.Context, link *Link) error {
	var c PingConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	runtime.LockOSThread()
	preciseTimer()
	r, err := ping(ctx, c)
	if err != nil {
		return fmt.Errorf("traffic: ping %v: %w", c.Addr, err)
	}
	return link.Send("result", r)
}

func ping(ctx context.Context, c PingConfig) (PingResult, error) {
	six := c.Addr.Is6()
	protocol := unix.IPPROTO_ICMP
	if six {
		protocol = unix.IPPROTO_ICMPV6
	}
	fd, err := openSocket(c.Addr, unix.SOCK_RAW, protocol)
	if errors.Is(err, unix.EPERM) {
		return PingResult{}, fmt.Errorf("%w (needs CAP_NET_RAW)", err)
	}
	if err != nil {
		return PingResult{}, err
	}
	defer unix.Close(fd)
	if c.Source.IsValid() {
		if _, err := bindAny(fd, c.Source); err != nil {
			return PingResult{}, err
		}
	}
	if err := unix.Connect(fd, sockaddrOf(c.Addr)); err != nil { // only what comes from there is received
		return PingResult{}, os.NewSyscallError("connect", err)
	}
	// Without it (before Linux 5.1) the time at which the reply is read counts, some microseconds later.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1)
	clk, err := newClock()
	if err != nil {
		return PingResult{}, err
	}
	p := pinger{
		fd: fd, six: six, id: uint16(os.Getpid()),
		out: make([]byte, icmpHeader+c.Size), in: make([]byte, 60+icmpHeader+c.Size), control: make([]byte, 128),
	}
	trips := make([]time.Duration, 0, c.Count)
	var next time.Duration
	for i := range c.Warmup + c.Count {
		if err := clk.sleepUntil(next); err != nil {
			return PingResult{}, err
		}
		trip, ok, err := p.once(ctx, uint16(i), c.Timeout)
		if err != nil {
			return PingResult{}, err
		}
		if ok && i >= c.Warmup {
			trips = append(trips, trip)
		}
		next = max(next+c.Interval, clk.now()) // a late reply shifts the rest: never two at once
	}
	return summarize(c.Count, trips), nil
}

// A pinger is one raw socket and its buffers.
type pinger struct {
	fd               int
	six              bool
	id               uint16
	out, in, control []byte
}

// once sends a request and waits for its reply, or not.
func (p *pinger) once(ctx context.Context, sequence uint16, timeout time.Duration) (trip time.Duration, ok bool, err error) {
	putEcho(p.out, p.six, p.id, sequence)
	start := time.Now()
	if _, err := unix.Write(p.fd, p.out); err != nil && !pathError(err) {
		return 0, false, os.NewSyscallError("write", err)
	}
	for {
		n, controlLen, _, _, err := unix.Recvmsg(p.fd, p.in, p.control, 0)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return 0, false, ctx.Err()
		case err != nil && !again(err) && !pathError(err):
			return 0, false, os.NewSyscallError("recvmsg", err)
		case err == nil && isReply(p.in[:n], p.six, p.id, sequence):
			if arrived, ok := timestamp(p.control[:controlLen]); ok && arrived.After(start) {
				return arrived.Sub(start.Round(0)), true, nil // both by the wall clock
			}
			return now.Sub(start), true, nil
		case now.Sub(start) > timeout:
			return 0, false, nil
		}
	}
}

// timestamp reads the time of arrival from the control messages of a packet: two 64-bit numbers, seconds and
// nanoseconds (SO_TIMESTAMPNS_NEW, linux/time_types.h).
func timestamp(control []byte) (time.Time, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= 16 {
			seconds, nanos := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			return time.Unix(int64(seconds), int64(nanos)), true
		}
	}
	return time.Time{}, false
}
