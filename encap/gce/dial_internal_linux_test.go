package gce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deaf returns a TCP address on loopback that takes no connection, and does not refuse
// one either: its queue is full (tcp(7), listen(2)), as behind a firewall that drops.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	for range 10 {
		c, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("the queue of a listener without a backlog does not get full")
	return ""
}

// TestDialIsBounded: an API whose packets are dropped is given up by what a connection
// may take, not by what an answer may.
func TestDialIsBounded(t *testing.T) {
	l := newLab(t)
	l.opts.Endpoint = "http://" + deaf(t)
	l.pace.dial, l.pace.call, l.pace.tries = 100*time.Millisecond, time.Hour, 2
	b := l.backend("node-1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := b.Prepare(ctx, host())
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "dial tcp") {
		t.Errorf("Prepare: %v", err)
	}
	if l.log.Count("WARN", "trying again", l.opts.Endpoint[len("http://"):]) != 1 {
		t.Error(l.log.With(""))
	}
}
