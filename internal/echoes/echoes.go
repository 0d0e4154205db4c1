// Package echoes sends numbered datagrams to and fro while a test does something to the
// hosts between, and tells how many were lost.
package echoes

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

// Serve sends back what comes until the socket is closed.
func Serve(c *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// A Stream sends numbered datagrams all the time, and counts those that come back. It
// has so few under way that no buffer overflows on a busy machine.
type Stream struct {
	stop       context.CancelFunc
	done       chan error
	here       *net.UDPConn
	sent, back atomic.Int64
}

// Start has datagrams go from one socket to the other and back. Both stay the caller's,
// who closes them after End.
func Start(ctx context.Context, here, there *net.UDPConn) *Stream {
	go Serve(there)
	s := &Stream{done: make(chan error, 1), here: here}
	ctx, stop := context.WithCancel(ctx)
	s.stop = stop
	go func() {
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if s.sent.Load()-s.back.Load() > 64 {
				continue
			}
			if _, err := s.here.WriteTo(fmt.Appendf(nil, "%d", s.sent.Load()), there.LocalAddr()); err != nil {
				s.done <- fmt.Errorf("datagram %d: %w", s.sent.Load(), err)
				return
			}
			s.sent.Add(1)
		}
		s.done <- nil
	}()
	go func() {
		seen, buf := map[string]bool{}, make([]byte, 64)
		for {
			n, err := s.here.Read(buf)
			if err != nil {
				return
			}
			seen[string(buf[:n])] = true
			s.back.Store(int64(len(seen)))
		}
	}()
	return s
}

// More waits until so many more datagrams have come back.
func (s *Stream) More(t *testing.T, n int64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for goal := s.back.Load() + n; s.back.Load() < goal; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d datagrams sent, %d came back", s.sent.Load(), s.back.Load())
		}
	}
}

// End stops it, and returns how many datagrams were sent, and how many did not come back.
func (s *Stream) End(t *testing.T) (sent, lost int64) {
	t.Helper()
	s.stop()
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(3 * time.Second); s.back.Load() < s.sent.Load() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return s.sent.Load(), s.sent.Load() - s.back.Load()
}
