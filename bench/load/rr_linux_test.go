package load

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairs makes connected sockets: fds[i] of both belong together.
func pairs(t *testing.T, n int) (client, server []int) {
	t.Helper()
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if err := setTimeouts(fd); err != nil {
				t.Fatal(err)
			}
		}
		client, server = append(client, fds[0]), append(server, fds[1])
	}
	t.Cleanup(func() { closeAll(client); closeAll(server) })
	return client, server
}

func rrOver(t *testing.T, c params, fds []int) *rrClient {
	t.Helper()
	poll, err := newPoller(fds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(poll.close)
	w := newRRClient(c, fds, poll)
	w.start, w.h = time.Now(), newHistogram()
	return w
}

func serverOver(t *testing.T, c params, fds []int) *rrServer {
	t.Helper()
	poll, err := newPoller(fds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(poll.close)
	s := &rrServer{fds: fds, poll: poll, patience: patience{timeout: c.Timeout}}
	for range fds {
		s.in = append(s.in, make([]byte, 0, c.Size))
	}
	return s
}

// TestOneConnectionDies has a server for two of three connections.
func TestOneConnectionDies(t *testing.T) {
	c := params{Size: 10, Duration: time.Hour, Timeout: 300 * time.Millisecond}
	client, server := pairs(t, 3)
	s := serverOver(t, c, server[:2])
	served := make(chan error, 1)
	go func() { served <- s.run() }()
	w := rrOver(t, c, client)
	err := w.run(w.start, w.h)
	if err == nil || !strings.Contains(err.Error(), "no answer within 300ms") {
		t.Errorf("run = %v", err)
	}
	if w.replies == 0 {
		t.Error("the others did not work")
	}
	for _, fd := range client[:2] {
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			t.Error(err)
		}
	}
	if err := <-served; err != nil {
		t.Errorf("the server after the end of its connections: %v", err)
	}
}

// TestWarmupDoesNotCount counts by hand, by a clock that is set.
func TestWarmupDoesNotCount(t *testing.T) {
	c := params{Size: 1, Warmup: time.Hour, Duration: time.Hour, Timeout: time.Minute}
	client, server := pairs(t, 1)
	w, s := rrOver(t, c, client), serverOver(t, c, server)
	w.waiting = 1
	for i, test := range []struct {
		sent  time.Duration // of the request that ends next
		count int64
	}{
		{0, 0},
		{time.Hour - time.Millisecond, 0}, // begins before the window opens
		{time.Hour, 1},
		{2*time.Hour - time.Millisecond, 2}, // begins before it closes
	} {
		w.now = test.sent
		if err := w.request(&w.conns[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.serve(0); err != nil {
			t.Fatal(err)
		}
		w.start = time.Now().Add(-3 * time.Hour) // at which the reply comes: no further request
		if err := w.reply(&w.conns[0]); err != nil {
			t.Fatal(err)
		}
		if got := w.h.TotalCount(); got != test.count {
			t.Errorf("step %d: %d transactions count, want %d", i, got, test.count)
		}
	}
	if w.waiting != 1-4 || w.conns[0].sent >= 0 {
		t.Errorf("after the window %d connections wait, sent %v", w.waiting, w.conns[0].sent)
	}
}

func TestWrongReply(t *testing.T) {
	c := params{Size: 1, Duration: time.Hour, Timeout: time.Minute}
	client, server := pairs(t, 1)
	w := rrOver(t, c, client)
	if err := w.request(&w.conns[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(server[0], []byte{99}); err != nil {
		t.Fatal(err)
	}
	if err := w.reply(&w.conns[0]); err == nil || !strings.Contains(err.Error(), "reply to request 99") {
		t.Errorf("reply = %v", err)
	}
}

// TestPartialReply sends a reply byte by byte: it is one transaction.
func TestPartialReply(t *testing.T) {
	c := params{Size: 3, Duration: time.Hour, Timeout: time.Minute}
	client, server := pairs(t, 1)
	w := rrOver(t, c, client)
	if err := w.request(&w.conns[0]); err != nil {
		t.Fatal(err)
	}
	for i, b := range []byte{1, 0, 0} {
		if _, err := unix.Write(server[0], []byte{b}); err != nil {
			t.Fatal(err)
		}
		if err := w.reply(&w.conns[0]); err != nil {
			t.Fatal(err)
		}
		if want := uint64(i / 2); w.replies != want {
			t.Errorf("%d replies after %d bytes, want %d", w.replies, i+1, want)
		}
	}
	unix.Close(server[0])
	server[0] = -1
	for range 2 { // the request is still unread: first a reset, then the end
		if err := w.reply(&w.conns[0]); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after the server's end: %v", err)
		}
	}
}

func TestTransactionsDoNotAllocate(t *testing.T) {
	c := params{Size: 100, Duration: time.Hour, Timeout: time.Minute}
	for _, n := range []int{1, 2} {
		client, server := pairs(t, n)
		w, s := rrOver(t, c, client), serverOver(t, c, server)
		for i := range n {
			if err := w.request(&w.conns[i]); err != nil {
				t.Fatal(err)
			}
		}
		allocs := testing.AllocsPerRun(100, func() {
			ready, err := s.poll.wait()
			for _, e := range ready {
				_, serveErr := s.serve(int(e.Fd))
				err = errors.Join(err, serveErr)
			}
			ready, waitErr := w.poll.wait()
			err = errors.Join(err, waitErr)
			for _, e := range ready {
				err = errors.Join(err, w.reply(&w.conns[e.Fd]))
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%d connections: %v allocations", n, allocs)
		}
		if w.replies < 100*uint64(n) {
			t.Errorf("%d connections: %d replies", n, w.replies)
		}
	}
}
