package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

const (
	shortWarmup   = 30 * time.Millisecond
	shortWindow   = 150 * time.Millisecond
	shortPatience = 700 * time.Millisecond
)

// here is a place in this namespace that remembers what it started.
type here struct {
	mu   sync.Mutex
	cmds []*exec.Cmd
}

func (h *here) place(cmd *exec.Cmd) (func() error, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cmds = append(h.cmds, cmd)
	return cmd.Wait, cmd.Start()
}

// checkEnded fails the test if a process is left.
func (h *here) checkEnded(t *testing.T) {
	t.Helper()
	for _, cmd := range h.cmds {
		if cmd.ProcessState == nil {
			t.Errorf("process %d was not waited for", cmd.Process.Pid)
		}
	}
}

// descriptors are this process' own.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// loopbacks are the addresses to test with; IPv6 only where this machine has it.
func loopbacks(t *testing.T) []netip.Addr {
	t.Helper()
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	six := netip.IPv6Loopback()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Bind(fd, sockaddr(six, 0))
	}
	if err != nil {
		t.Logf("without ::1: %v", err)
		return addrs
	}
	return append(addrs, six)
}

func checkLatency(t *testing.T, l Latency, n uint64, perSecond float64) {
	t.Helper()
	if l.Count == 0 || l.Count != n || l.Min <= 0 || l.P50 < l.Min || l.P99 < l.P50 || l.Max < l.P999 || l.Max > time.Minute {
		t.Errorf("%d transactions, latency %+v", n, l)
	}
	if want := float64(n) / shortWindow.Seconds(); perSecond < 0.99*want || perSecond > 1.01*want {
		t.Errorf("%v per second, want %v", perSecond, want)
	}
	checkPercentiles(t, l)
}

func TestRR(t *testing.T) {
	before := descriptors(t)
	for _, addr := range loopbacks(t) {
		for _, c := range []RRConfig{{}, {Connections: 16}, {Size: 1000}, {Connections: 3, Size: MaxSize, Source: addr}} {
			name := fmt.Sprintf("%v, %d connections, %d bytes", addr, c.Connections, c.Size)
			var places here
			var calls []string
			c.Addr, c.Warmup, c.Duration = addr, shortWarmup, shortWindow
			c.OnOpen = func() { calls = append(calls, "open") }
			c.OnClose = func() { calls = append(calls, "close") }
			r, err := RR(t.Context(), places.place, places.place, c)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			checkLatency(t, r.Latency, r.Transactions, r.PerSecond)
			if got := strings.Join(calls, " "); got != "open close" {
				t.Errorf("%s: calls %q", name, got)
			}
			places.checkEnded(t)
		}
	}
	waitFor(t, "this process' descriptors to be closed", func() bool { return descriptors(t) <= before })
}

// waitFor waits for what a goroutine of another package does at its end.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// TestConnectsLeavesNothing has fewer ports than it makes connections: with TIME-WAIT it would run out of them.
func TestConnectsLeavesNothing(t *testing.T) {
	lab := netlab.ForTest(t)
	ns, err := lab.Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Sysctl("net/ipv4/ip_local_port_range", "40000 40031"); err != nil {
		t.Fatal(err)
	}
	place := traffic.In[*netlab.Process](ns)
	for _, c := range []ConnectConfig{
		{Addr: netip.MustParseAddr("127.0.0.1")},
		{Addr: netip.MustParseAddr("127.0.0.1"), Source: netip.MustParseAddr("127.0.0.2")},
		{Addr: netip.IPv6Loopback(), Source: netip.IPv6Loopback()},
	} {
		if c.Addr.Is6() && len(loopbacks(t)) == 1 {
			continue
		}
		c.Warmup, c.Duration = shortWarmup, shortWindow
		r, err := Connects(t.Context(), place, place, c)
		if err != nil {
			t.Fatal(err)
		}
		checkLatency(t, r.Latency, r.Connections, r.PerSecond)
		if r.Connections < 64 {
			t.Logf("only %d connections: too few to use up the ports", r.Connections)
		}
	}
	var sockets []byte
	err = ns.Do(func() (err error) {
		sockets, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(string(sockets)), "\n"); len(lines) != 1 { // the heading
		t.Errorf("sockets are left:\n%s", sockets)
	}
}

// A breakage is a way to spoil a test once its window is open.
type breakage struct {
	name   string
	effect func()
	want   []string // all in the error
}

// each runs both kinds of test, which must fail as the breakage says.
func (b breakage) each(t *testing.T, from, to traffic.Place, addr netip.Addr) {
	t.Helper()
	check := func(kind string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s, %s: no error", b.name, kind)
			return
		}
		for _, want := range b.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: error %q lacks %q", b.name, kind, err, want)
			}
		}
		if b.effect != nil && strings.Contains(err.Error(), "after 0 ") {
			t.Errorf("%s, %s: error %q, want some transactions before it", b.name, kind, err)
		}
		t.Logf("%s, %s: %v", b.name, kind, err)
	}
	for _, n := range []int{1, 4} {
		_, err := RR(t.Context(), from, to, RRConfig{Addr: addr, Connections: n, Warmup: 200 * time.Millisecond, Duration: 2 * time.Second, Timeout: shortPatience, OnOpen: b.effect})
		check(fmt.Sprintf("rr on %d", n), err)
	}
	_, err := Connects(t.Context(), from, to, ConnectConfig{Addr: addr, Warmup: 200 * time.Millisecond, Duration: 2 * time.Second, Timeout: shortPatience, OnOpen: b.effect})
	check("connects", err)
}

// TestPathBreaks drops all of IPv4, first in the middle of a test and then from its beginning.
func TestPathBreaks(t *testing.T) {
	lab := netlab.ForTest(t)
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{Impairment: &netlab.Impairment{}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := traffic.In[*netlab.Process](hosts.HostA), traffic.In[*netlab.Process](hosts.HostB)
	addr := hosts.HostB.Addr4.Addr()
	set := func(drop float64) {
		err := hosts.Link.Set(netlab.Impairment{Drop: drop, Match: func(frame []byte) bool { return frame[12] == 0x08 && frame[13] == 0x00 }})
		if err != nil {
			t.Error(err)
		}
	}
	mended := func(cmd *exec.Cmd) (func() error, error) { // every test begins with a path that works
		set(0)
		return b(cmd)
	}
	breakage{"broken in the middle", func() { set(1) }, []string{"to 192.0.2.2:", "no answer within 700ms", "after "}}.each(t, a, mended, addr)
	set(1)
	breakage{"broken from the beginning", nil, []string{"to 192.0.2.2:", "no answer within 700ms"}}.each(t, a, b, addr)
}

func TestServerGone(t *testing.T) {
	var servers here
	kill := func() {
		servers.mu.Lock()
		defer servers.mu.Unlock()
		if err := servers.cmds[len(servers.cmds)-1].Process.Kill(); err != nil {
			t.Error(err)
		}
	}
	breakage{"killed", kill, []string{"after ", "signal: killed"}}.each(t, nil, servers.place, loopbacks(t)[0])
	servers.checkEnded(t)
}

// TestRefused lets the client alone.
func TestRefused(t *testing.T) {
	lab := netlab.ForTest(t)
	ns, err := lab.Namespace("alone")
	if err != nil {
		t.Fatal(err)
	}
	c := params{
		Addr: loopbacks(t)[0], Port: 9, Connections: 2, Size: 1,
		Duration: time.Second, Timeout: shortPatience,
	}
	for _, role := range []string{roleRRClient, roleConnectClient} {
		client, err := traffic.Start(traffic.In[*netlab.Process](ns), role, c)
		if err != nil {
			t.Fatal(err)
		}
		err = client.Next(t.Context(), "open", nil)
		if err == nil {
			err = client.Next(t.Context(), "close", nil)
		}
		if err == nil || !strings.Contains(err.Error(), "to 127.0.0.1:9: ") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v, want a refused connection", role, err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestForeignAddress(t *testing.T) {
	_, err := RR(t.Context(), nil, nil, RRConfig{Addr: netip.MustParseAddr("192.0.2.77"), Duration: time.Second})
	if err == nil || !strings.Contains(err.Error(), "load: rr server at 192.0.2.77: ") {
		t.Errorf("an address that is not the server's: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	before := descriptors(t)
	addr := loopbacks(t)[0]
	for name, run := range map[string]func(ctx context.Context, place traffic.Place, cancel func()) error{
		"rr": func(ctx context.Context, place traffic.Place, cancel func()) error {
			_, err := RR(ctx, place, place, RRConfig{Addr: addr, Duration: time.Hour, OnOpen: cancel})
			return err
		},
		"rr on 16": func(ctx context.Context, place traffic.Place, cancel func()) error {
			_, err := RR(ctx, place, place, RRConfig{Addr: addr, Connections: 16, Duration: time.Hour, OnOpen: cancel})
			return err
		},
		"connects": func(ctx context.Context, place traffic.Place, cancel func()) error {
			_, err := Connects(ctx, place, place, ConnectConfig{Addr: addr, Duration: time.Hour, OnOpen: cancel})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		var places here
		var at time.Time
		err := run(ctx, places.place, func() { at = time.Now(); cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
		if d := time.Since(at); d > 20*time.Second { // an hour, if the context did not end it
			t.Errorf("%s: ended only after %v", name, d)
		}
		places.checkEnded(t)
		for _, cmd := range places.cmds {
			if !cmd.ProcessState.Success() {
				t.Errorf("%s: a process had to be killed, or failed: %v", name, cmd.ProcessState)
			}
		}
	}
	waitFor(t, "this process' descriptors to be closed", func() bool { return descriptors(t) <= before })
}
