package awsvpc

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// TestNobodyAnswers has connections that nobody accepts or refuses, as where a security
// group drops them: the socket's backlog is full (listen(2), tcp(7)).
func TestNobodyAnswers(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { check(t, syscall.Close(fd)) })
	check(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	check(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	full := false
	for range 10 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if full = err != nil; full {
			break
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	if !full {
		t.Skip("the backlog does not get full")
	}
	r := newRig(t)
	r.on("i-1")
	t.Setenv("AWS_ENDPOINT_URL_EC2", "http://"+addr)
	tune := fast()
	tune.attempts, tune.dial = 3, 100*time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err = r.tuned(network4, never, tune).Prepare(ctx, host("10.0.1.10"))
	expectError(t, err, ErrUnavailable, "dial "+addr+": i/o timeout", "AWS_ENDPOINT_URL_EC2")
	if n := r.log.Count("WARN", waitingFor, "request=DescribeInstances", addr, "i/o timeout"); n != 1 {
		t.Errorf("it is said %d times, not once: %q", n, r.log.With())
	}
	if d := usual().dial; d < 5*time.Second || d > 10*time.Second {
		t.Errorf("a connection is waited for for %v", d)
	}
}
