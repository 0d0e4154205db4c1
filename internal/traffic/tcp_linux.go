package traffic

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	connectTimeout = 5 * time.Second
	// sendSlack is how long the sender goes on after the receiver's window should have closed: the two start apart.
	sendSlack = 200 * time.Millisecond
	// endTimeout is how long after the window the end of a stream may take: what is in flight must still arrive.
	endTimeout = 5 * time.Second
)

// endLimit is endTimeout, or more for many streams: among dozens on a link that drops, one is unlucky and waits for a
// retransmission timer that has doubled five times.
func endLimit(streams int) time.Duration {
	if streams > 4 {
		return 3 * endTimeout
	}
	return endTimeout
}

// tcpReceiveRole accepts the streams, reads each on its own thread until its end, and reports what came in the window.
func tcpReceiveRole(ctx context.Context, link *Link) error {
	var c TCPConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("traffic: tcp receive at %v: %w", c.Addr, err) }
	fds, err := acceptStreams(ctx, link, c)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return fail(err)
	}
	if c.Both { // the sender's "connected" says the same about one direction
		if err := errors.Join(link.Send("accepted", nil), link.Next(ctx, "start", nil)); err != nil {
			return err
		}
	}
	clk, err := newClock()
	if err != nil {
		return fail(err)
	}
	type done struct {
		stream tcpStream
		err    error
	}
	results := make(chan done, len(fds))
	for _, fd := range fds {
		go func() {
			runtime.LockOSThread()
			r := tcpReader{fd: fd, clk: clk, open: c.Warmup, close: c.Warmup + c.Duration}
			s, err := r.run(ctx, c)
			results <- done{s, err}
		}()
	}
	for _, step := range []struct {
		kind string
		at   time.Duration
	}{{"open", c.Warmup}, {"close", c.Warmup + c.Duration}} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(step.at - clk.now()):
		}
		if err := link.Send(step.kind, nil); err != nil {
			return err
		}
	}
	report := tcpReport{Window: c.Duration}
	var failed error
	for range fds {
		d := <-results
		failed = errors.Join(failed, d.err)
		report.Streams = append(report.Streams, d.stream)
	}
	if failed != nil {
		return fail(failed)
	}
	return link.Send("report", report)
}

// acceptStreams listens, tells the parent the port, and accepts all streams. It returns what it accepted even when it
// fails.
func acceptStreams(ctx context.Context, link *Link, c TCPConfig) ([]int, error) {
	listener, err := openSocket(c.Addr, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	if c.SocketBuffer > 0 { // before listen: accepted sockets inherit it, and the window scale depends on it
		if err := setBuffers(listener, c.SocketBuffer); err != nil {
			return nil, err
		}
	}
	port, err := bindAny(listener, c.Addr)
	if err != nil {
		return nil, err
	}
	if err := unix.Listen(listener, c.Streams); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	if err := link.Send("listening", tcpListening{port}); err != nil {
		return nil, err
	}
	var fds []int
	for start := time.Now(); len(fds) < c.Streams; {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch {
		case ctx.Err() != nil:
			return fds, ctx.Err()
		case err == nil:
			fds = append(fds, fd)
		case !again(err):
			return fds, os.NewSyscallError("accept", err)
		case time.Since(start) > connectTimeout+time.Second:
			return fds, fmt.Errorf("only %d of %d streams connected within %v", len(fds), c.Streams, connectTimeout)
		}
	}
	for _, fd := range fds {
		if err := setTimeout(fd, unix.SO_RCVTIMEO, pollInterval); err != nil { // not inherited
			return fds, err
		}
	}
	return fds, nil
}

// A tcpReader reads one stream to its end.
type tcpReader struct {
	fd          int
	clk         clock
	open, close time.Duration // the window

	out tcpStream
	sum hash.Hash // Verify only
}

func (r *tcpReader) run(ctx context.Context, c TCPConfig) (tcpStream, error) {
	buf := make([]byte, max(c.Block, DefaultTCPBlock))
	var want []byte
	if c.Verify {
		r.sum, want = sha256.New(), make([]byte, len(buf))
	}
	for {
		n, err := unix.Read(r.fd, buf)
		now := r.clk.now()
		switch {
		case ctx.Err() != nil:
			return r.out, ctx.Err()
		case n > 0:
			if now >= r.open && now < r.close {
				r.out.Window += int64(n)
			}
			if c.Verify {
				if err := r.verify(buf[:n], want, c.Seed); err != nil {
					return r.out, err
				}
			}
			r.out.Total += int64(n)
		case err == nil: // the end
			if c.Verify {
				r.out.SHA256 = hex.EncodeToString(r.sum.Sum(nil))
			}
			return r.out, nil
		case !again(err):
			return r.out, os.NewSyscallError("read", err)
		case now > r.close+endLimit(c.Streams):
			return r.out, fmt.Errorf("a stream did not end within %v after %d bytes (the path stopped passing packets)", endLimit(c.Streams), r.out.Total)
		}
	}
}

// verify compares b, which came at position out.Total. The first byte of a stream is its index.
func (r *tcpReader) verify(b, want []byte, seed uint64) error {
	r.sum.Write(b)
	want = want[:len(b)]
	if r.out.Total == 0 {
		r.out.Index = int(b[0])
	}
	fillPattern(want, streamSeed(seed, r.out.Index), uint64(r.out.Total))
	if r.out.Total == 0 {
		want[0] = b[0]
	}
	if !bytes.Equal(b, want) {
		i := firstDifference(b, want)
		return fmt.Errorf("stream %d is corrupt at byte %d: got %#02x, want %#02x", r.out.Index, r.out.Total+int64(i), b[i], want[i])
	}
	return nil
}

func streamSeed(seed uint64, index int) uint64 { return mix(seed, uint64(index)) }

// tcpSendRole connects the streams and writes each on its own thread.
func tcpSendRole(ctx context.Context, link *Link) error {
	var c tcpSendConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	to := netip.AddrPortFrom(c.Addr, c.Port)
	fail := func(err error) error { return fmt.Errorf("traffic: tcp send to %v: %w", to, err) }
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range c.Streams {
		fd, err := connectStream(c.TCPConfig, to)
		if err != nil {
			return fail(err)
		}
		fds = append(fds, fd)
	}
	if err := link.Send("connected", nil); err != nil {
		return err
	}
	if c.Both {
		if err := link.Next(ctx, "start", nil); err != nil {
			return err
		}
	}
	clk, err := newClock()
	if err != nil {
		return fail(err)
	}
	type done struct {
		stream tcpStream
		err    error
	}
	results := make(chan done, len(fds))
	for i, fd := range fds {
		go func() {
			runtime.LockOSThread()
			preciseTimer()
			w := tcpWriter{fd: fd, clk: clk, out: tcpStream{Index: i}}
			err := w.run(ctx, c.TCPConfig)
			results <- done{w.out, err}
		}()
	}
	report := tcpReport{Window: c.Duration}
	var failed error
	for range fds {
		d := <-results
		failed = errors.Join(failed, d.err)
		report.Streams = append(report.Streams, d.stream)
	}
	if failed != nil {
		return fail(failed)
	}
	return link.Send("report", report)
}

func connectStream(c TCPConfig, to netip.AddrPort) (fd int, err error) {
	fd, err = openSocket(to.Addr(), unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if c.SocketBuffer > 0 {
		if err := setBuffers(fd, c.SocketBuffer); err != nil {
			return -1, err
		}
	}
	if c.Congestion != "" {
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, c.Congestion); err != nil {
			return -1, fmt.Errorf("congestion control %q: %w (see net.ipv4.tcp_available_congestion_control)", c.Congestion, err)
		}
	}
	if c.Source.IsValid() {
		if _, err := bindAny(fd, c.Source); err != nil {
			return -1, err
		}
	}
	// A blocking connect waits for as long as a send may.
	if err := setTimeout(fd, unix.SO_SNDTIMEO, connectTimeout); err != nil {
		return -1, err
	}
	// With a timeout a signal, such as the Go runtime's, ends the call and not the attempt
	// (signal(7)); the next call waits for the same one (inet_stream_connect in
	// net/ipv4/af_inet.c).
	err = unix.Connect(fd, sockaddr(to))
	for errors.Is(err, unix.EINTR) {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil {
		if errors.Is(err, unix.EINPROGRESS) {
			err = fmt.Errorf("no answer within %v", connectTimeout)
		}
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, setTimeout(fd, unix.SO_SNDTIMEO, pollInterval)
}

// A tcpWriter writes one stream until its time is over, then ends it properly.
type tcpWriter struct {
	fd  int
	clk clock
	out tcpStream
	sum hash.Hash // Verify only
}

func (w *tcpWriter) run(ctx context.Context, c TCPConfig) error {
	buf := make([]byte, c.Block)
	fillPattern(buf, streamSeed(c.Seed, w.out.Index), 0)
	if c.Verify {
		w.sum = sha256.New()
	}
	var pace time.Duration // per block
	if c.Rate > 0 {
		pace = time.Duration(float64(c.Block) * 8 * float64(c.Streams) / c.Rate * 1e9)
	}
	var next time.Duration
	end := c.Warmup + c.Duration + sendSlack
	before := -1 // retransmits when the window opened
	for now := w.clk.now(); now < end && ctx.Err() == nil; now = w.clk.now() {
		if before < 0 && now >= c.Warmup {
			before, _, _ = w.info()
		}
		if pace > 0 {
			if next = max(next, now-10*pace) + pace; next > now { // a stalled sender catches up ten blocks, not all
				if err := w.clk.sleepUntil(next); err != nil {
					return err
				}
			}
		}
		if c.Verify {
			fillPattern(buf, streamSeed(c.Seed, w.out.Index), uint64(w.out.Total))
			if w.out.Total == 0 {
				buf[0] = byte(w.out.Index)
			}
		}
		if err := w.write(ctx, buf, end); err != nil {
			return err
		}
	}
	w.finish(before)
	return w.hangUp(ctx)
}

// write writes all of b, unless the time ends first.
func (w *tcpWriter) write(ctx context.Context, b []byte, end time.Duration) error {
	for len(b) > 0 {
		n, err := unix.Write(w.fd, b)
		if n > 0 {
			if w.sum != nil {
				w.sum.Write(b[:n])
			}
			w.out.Total += int64(n)
			b = b[n:]
			continue
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !again(err):
			return os.NewSyscallError("write", err)
		case w.clk.now() >= end:
			return nil
		}
	}
	return nil
}

func (w *tcpWriter) finish(before int) {
	total, mss, err := w.info()
	if err == nil {
		w.out.Retransmits, w.out.MSS = total-max(before, 0), mss
	}
	w.out.Congestion, _ = unix.GetsockoptString(w.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if w.sum != nil {
		w.out.SHA256 = hex.EncodeToString(w.sum.Sum(nil))
	}
}

// info returns the segments sent again so far and the segment size.
func (w *tcpWriter) info() (retransmits, mss int, err error) {
	i, err := unix.GetsockoptTCPInfo(w.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return -1, 0, err
	}
	return int(i.Total_retrans), int(i.Snd_mss), nil
}

// hangUp ends the stream and waits for the receiver to have read all of it. The receiver is the one to complain when
// that takes too long.
func (w *tcpWriter) hangUp(ctx context.Context) error {
	if err := unix.Shutdown(w.fd, unix.SHUT_WR); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	var b [1]byte
	for start := time.Now(); ctx.Err() == nil && time.Since(start) < endTimeout; {
		if n, err := unix.Read(w.fd, b[:]); n == 0 && err == nil || err != nil && !again(err) {
			break
		}
	}
	return ctx.Err()
}
