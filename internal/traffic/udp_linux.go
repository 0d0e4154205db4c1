package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	receiveBatch = 64
	// quietTime without a packet, after the sender has finished, ends a trial: what is still queued anywhere on two
	// hosts' path is gone long before.
	quietTime = 100 * time.Millisecond
	// drainLimit ends a trial even while packets come in: a path that is this late has lost them.
	drainLimit = 2 * time.Second
)

// udpReceiveRole counts, trial after trial.
func udpReceiveRole(ctx context.Context, link *Link) error {
	var c UDPConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("traffic: udp receive at %v: %w", c.Addr, err) }
	fd, err := openSocket(c.Addr, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	if err := setBuffers(fd, c.Buffer); err != nil {
		return fail(err)
	}
	if err := setTimeout(fd, unix.SO_RCVTIMEO, quietTime/2); err != nil {
		return fail(err)
	}
	port, err := bindAny(fd, c.Addr)
	if err != nil {
		return fail(err)
	}
	if err := link.Send("listening", tcpListening{port}); err != nil {
		return err
	}
	for {
		var t udpReceiveTrial
		if err := link.Next(ctx, "trial", &t); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		r := udpReceiver{fd: fd, counter: newUDPCounter(t), vector: newMmsgVector(receiveBatch, slices.Max(t.Sizes))}
		result := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			result <- r.run(ctx)
		}()
		if err := link.Send("ready", nil); err != nil {
			return err
		}
		var finish udpFinish
		if err := link.Next(ctx, "finish", &finish); err != nil {
			return err
		}
		r.sent.Store(int64(finish.Sent))
		r.finished.Store(true)
		if err := <-result; err != nil {
			return fail(err)
		}
		if err := link.Send("result", r.counter.result); err != nil {
			return err
		}
	}
}

// A udpReceiver is one trial's receiving end.
type udpReceiver struct {
	fd      int
	counter *udpCounter
	vector  *mmsgVector

	finished atomic.Bool // the sender is done; sent is set
	sent     atomic.Int64
}

// run counts until the sender is done and everything it sent is here, or nothing comes any more.
func (r *udpReceiver) run(ctx context.Context) error {
	drops := socketDrops(r.fd)
	last := time.Now()
	var first, deadline time.Time
	for ctx.Err() == nil {
		n, err := r.vector.receive(r.fd)
		if n > 0 {
			last = time.Now()
			before := r.counter.result.Received
			for i := range n {
				r.counter.add(r.vector.received(i))
			}
			if r.counter.result.Received > before {
				if first.IsZero() {
					first = last
				}
				r.counter.result.Arriving = last.Sub(first)
			}
		}
		if err != nil && !again(err) && !pathError(err) {
			return os.NewSyscallError("recvmmsg", err)
		}
		if n > 0 && !r.finished.Load() {
			continue
		}
		now := time.Now()
		if !r.finished.Load() {
			last = now // a sender may pause; only silence after its end counts
			continue
		}
		if deadline.IsZero() {
			deadline = now.Add(drainLimit)
		}
		if r.counter.result.Received >= uint64(r.sent.Load()) || now.Sub(last) >= quietTime || now.After(deadline) {
			break
		}
	}
	r.counter.result.Reached = r.counter.reached()
	r.counter.result.ReceiverDrops = uint64(uint32(socketDrops(r.fd)) - uint32(drops))
	return ctx.Err()
}

// udpSendRole sends, trial after trial.
func udpSendRole(ctx context.Context, link *Link) error {
	var c udpSendConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	first := c.Addr
	if len(c.Spread) > 0 {
		first = c.Spread[0]
	}
	to := netip.AddrPortFrom(first, c.Port)
	fail := func(err error) error { return fmt.Errorf("traffic: udp send to %v: %w", to, err) }
	fd, err := openSocket(first, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	if err := setBuffers(fd, c.Buffer); err != nil {
		return fail(err)
	}
	if c.Source.IsValid() {
		if _, err := bindAny(fd, c.Source); err != nil {
			return fail(err)
		}
	}
	s := udpSender{fd: fd}
	if len(c.Spread) > 0 {
		s.names = newSockaddrs(c.Spread, c.Port)
	} else if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fail(os.NewSyscallError("connect", err))
	}
	if err := link.Send("ready", nil); err != nil {
		return err
	}
	for {
		var t udpSendTrial
		if err := link.Next(ctx, "trial", &t); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		type done struct {
			sent udpSent
			err  error
		}
		result := make(chan done, 1)
		go func() {
			runtime.LockOSThread()
			preciseTimer()
			sent, err := s.trial(ctx, t)
			result <- done{sent, err}
		}()
		d := <-result
		if d.err != nil {
			return fail(d.err)
		}
		if err := link.Send("sent", d.sent); err != nil {
			return err
		}
	}
}

// A udpSender is the sending end, for one trial after the other.
type udpSender struct {
	fd    int
	names *sockaddrs // with Spread; nil: the socket is connected
}

// trial sends on an absolute schedule. A sender that was kept waiting catches up at twice the rate, so that a pause
// of the machine is neither a burst that no queue survives nor a lower rate. What is more than maxLag overdue is given
// up: the machine cannot offer that rate, and the result will say so.
func (s *udpSender) trial(ctx context.Context, t udpSendTrial) (udpSent, error) {
	const maxLag = 50 * time.Millisecond
	g := udpGroup{udpSendTrial: t, sizes: t.sizes(), names: s.names}
	g.largest = slices.Max(g.sizes)
	g.v = newMmsgVector(maxTick, g.largest)
	var out udpSent
	packets, every := tick(t.Rate)
	clk, err := newClock()
	if err != nil {
		return out, err
	}
	due := time.Duration(0)    // of the next group, by the schedule
	spaced := time.Duration(0) // the earliest it may follow the one before
	for due < t.Duration && ctx.Err() == nil {
		now := clk.now()
		if at := max(due, spaced); now < at {
			if err := clk.sleepUntil(at); err != nil {
				return out, err
			}
			continue
		}
		due, spaced = max(due, now-maxLag)+every, now+every/2
		if now > t.Duration+maxLag {
			break
		}
		g.fill(out.Sent+out.Errors, packets)
		if err := g.send(s.fd, packets, &out); err != nil {
			return out, err
		}
	}
	out.Elapsed = max(clk.now(), t.Duration)
	return out, ctx.Err()
}

// A udpGroup makes and sends the packets that leave together.
type udpGroup struct {
	udpSendTrial
	sizes   []int
	largest int
	names   *sockaddrs
	v       *mmsgVector
}

// fill makes packets from a sequence number on.
func (g *udpGroup) fill(sequence uint64, packets int) {
	size, name := int(sequence%uint64(len(g.sizes))), 0
	if g.names != nil {
		name = int(sequence % uint64(g.names.count))
	}
	for i := range packets {
		b := g.v.resize(i, g.sizes[size])
		if size++; size == len(g.sizes) { // two divisions per group are enough
			size = 0
		}
		if g.names != nil {
			g.v.to(i, g.names, name)
			if name++; name == g.names.count {
				name = 0
			}
		}
		putUDPHeader(b, g.Run, sequence)
		if g.Verify {
			fillPattern(b[MinUDPSize:], uint64(g.Run), sequence*uint64(g.largest))
		}
		sequence++
	}
}

// send sends what fill made. A packet that the path refuses (or an ICMP error about an earlier one, which the kernel
// reports in its place) is counted and skipped: the others are for other destinations, perhaps.
func (g *udpGroup) send(fd, packets int, out *udpSent) error {
	for at := 0; at < packets; {
		n, err := g.v.send(fd, at, packets)
		at += n
		out.Sent += uint64(n)
		switch {
		case err == nil:
		case again(err):
			return nil // the rest is made again for the next group
		case pathError(err):
			out.Errors++
			at++
		default:
			return os.NewSyscallError("sendmmsg", err)
		}
	}
	return nil
}
