package awsvpc

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/awsvpc/internal/fakeec2"
)

const waitingFor = "waiting for EC2: a request failed, and is tried again"

// TestSaysAtOnce has pauses of an hour between two tries: what is said after the first
// is not said only at the end.
func TestSaysAtOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault fakeec2.Fault
		words []string
	}{
		{"500", fakeec2.Fault{Status: 500}, []string{"500"}},
		{"throttled", fakeec2.Throttle(), []string{"RequestLimitExceeded"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.on("i-1")
			long := fast()
			long.delayer = delay(time.Hour)
			waits := func(action string, call func(context.Context) error) {
				t.Helper()
				r.ec2.Fail(action, 1, c.fault)
				words := append([]string{"WARN", waitingFor, "request=" + action, "endpoint=" + strings.TrimPrefix(r.ec2.URL, "http://")}, c.words...)
				before := r.log.Count(words...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- call(ctx) }()
				wait(t, "it says what it waits for", func() bool { return r.log.Count(words...) == before+1 })
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", action, err)
				}
			}
			waits("DescribeInstances", func(ctx context.Context) error {
				_, err := r.tuned(network4, never, long).Prepare(ctx, host("10.0.1.10"))
				return err
			})
			slow := r.tuned(network4, never, long)
			start := func(ctx context.Context) error {
				_, err := slow.Start(ctx, host("10.0.1.10"), leaseOf("10.5.7.0/24"))
				return err
			}
			waits("CreateRoute", start)
			check(t, start(t.Context()))
			waits("DescribeInstances", start) // when the host has moved
		})
	}
}

// TestSaysReasonsOnce has one reason for two tries, then another, then an answer.
func TestSaysReasonsOnce(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	r.ec2.Fail("DescribeInstances", 2, fakeec2.Fault{Status: 500})
	r.ec2.Fail("DescribeInstances", 1, fakeec2.Throttle())
	v := r.backend(network4, soon)
	r.start(v, "10.0.1.10", "10.5.7.0/24")
	if said := r.log.With(waitingFor); len(said) != 2 || !strings.Contains(said[0], "500") || !strings.Contains(said[1], "RequestLimitExceeded") {
		t.Errorf("two reasons are said as %q", said)
	}
	if r.log.Count("INFO", "EC2 has answered at last") != 1 {
		t.Errorf("nobody says that it is over: %q", r.log.With())
	}
	// Nobody waits for what the loop does.
	r.ec2.Forget()
	r.ec2.Fail("DescribeRouteTables", 6, fakeec2.Fault{Status: 500})
	wait(t, "some rounds", func() bool { return len(r.ec2.Calls()) > 20 })
	if n := r.log.Count(waitingFor); n != 2 {
		t.Errorf("the loop's rounds say it as well: %q", r.log.With(waitingFor))
	}
}

// TestGivesUp has no error say that it is tried again, where it is not.
func TestGivesUp(t *testing.T) {
	for name, fault := range map[string]fakeec2.Fault{"500": {Status: 500}, "throttled": fakeec2.Throttle()} {
		r := newRig(t)
		t.Setenv("AWS_MAX_ATTEMPTS", "1")
		r.on("i-1")
		r.ec2.Fail("", 1000, fault)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if name != "throttled" {
			ctx = t.Context()
		}
		_, err := r.backend(network4, never).Prepare(ctx, host("10.0.1.10"))
		expectError(t, err, nil)
		if err != nil && strings.Contains(err.Error(), "again") {
			t.Errorf("%s: the last error is: %v", name, err)
		}
		if n := r.log.Count(waitingFor); (n > 0) != (name == "throttled") {
			t.Errorf("%s: it says %d times that it tries again", name, n)
		}
	}
}

// TestReasonOfNames has the same text for the same reason, though the resolver is asked
// from another port each time.
func TestReasonOfNames(t *testing.T) {
	why := func(text string) string {
		return reason(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Name: "ec2.test", Server: "127.0.0.53:53", Err: text}})
	}
	if got := why("read udp 127.0.0.1:41234->127.0.0.53:53: i/o timeout"); got != "lookup ec2.test: i/o timeout" {
		t.Error(got)
	}
	if got := why("no such host"); got != "lookup ec2.test: no such host" {
		t.Error(got)
	}
}
