package netlab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestClosedLab(t *testing.T) {
	l := newLab(t)
	a, b := namespace(t, l, "a"), namespace(t, l, "b")
	check(t, l.Close(), l.Close())
	_, nsErr := l.Namespace("c")
	_, impairErr := l.Impaired(a, "x", b, "x", 1500, Impairment{})
	for what, err := range map[string]error{
		"Namespace": nsErr,
		"Impaired":  impairErr,
		"Do":        a.Do(func() error { return nil }),
		"Veth":      l.Veth(a, "x", b, "x", 1500),
		"Up":        a.Up("lo"),
		"Sysctl":    a.Sysctl("net/ipv4/ip_forward", "1"),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

// TestCloseReportsOpenDescriptors leaves a socket and a TUN device behind.
func TestCloseReportsOpenDescriptors(t *testing.T) {
	Require(t)
	l, err := New()
	check(t, err)
	n := namespace(t, l, "forgotten")
	ln := listen(t, n, netip.MustParseAddr("127.0.0.1"))
	want := 1
	if Check(NeedTUN) == nil {
		defer openTUN(t, n, "tun0").Close()
		want = 2
	}
	err = l.Close()
	if got := strings.Count(fmt.Sprint(err), "still open in namespace forgotten"); got != want {
		t.Errorf("close reports %d descriptors, want %d: %v", got, want, err)
	}
	ln.Close()
}

// TestLeavesNothing builds and closes labs with everything in them.
func TestLeavesNothing(t *testing.T) {
	Require(t, NeedIPv6)
	round := func() {
		l, err := New()
		check(t, err)
		th, err := l.TwoHosts(TwoHostsConfig{Pods: true, IPv6: true, Impairment: &Impairment{}})
		check(t, err)
		ping(t, th.HostA.NS, th.HostB.Addr4.Addr())
		_, err = th.PodA.Features("eth0")
		check(t, err)
		cmd := helperCommand("sleep")
		cmd.Stdout = io.Discard // not a file: exec copies, with a goroutine
		_, err = th.PodA.Start(cmd)
		check(t, err, l.Close())
	}
	round() // what the runtime keeps for good
	fds, routines := openFDs(t), runtime.NumGoroutine()
	for range 20 {
		round()
	}
	if now := openFDs(t); now != fds {
		t.Errorf("%d descriptors before, %d after 20 labs", fds, now)
	}
	// A goroutine may still be on its way out after the channel it closed.
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > routines; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after 20 labs:\n%s", routines, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}
