package netstate

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

func TestConcurrency(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	foreign := h.kernel()
	for range 4 {
		var log testlog.Messages
		k := h.tryOpen(&log)
		var wg sync.WaitGroup
		ctx, stop := context.WithCancel(context.Background())
		for i := range 4 {
			wg.Go(func() {
				for j := 0; ctx.Err() == nil; j++ {
					short, cancel := context.WithTimeout(ctx, time.Duration(j%7)*time.Millisecond)
					err := k.Apply(short, h.want(withPeers(base(), i+1, 9)))
					gone := netlink.LinkNotFoundError{} // the device may go at any moment of a round
					if err != nil && short.Err() == nil && !errors.Is(err, unix.ENODEV) && !errors.As(err, &gone) {
						t.Error(err)
					}
					cancel()
				}
			})
			wg.Go(func() {
				for ctx.Err() == nil {
					k.Wake()
					_, _ = k.Err(), k.Stats()
					if l := h.link(vx); l != nil && i == 0 {
						_ = h.nl.LinkDel(l)
					}
					time.Sleep(time.Duration(i) * 7 * time.Millisecond)
				}
			})
		}
		time.Sleep(700 * time.Millisecond)
		stop()
		wg.Wait()
		want := withPeers(base(), 1, 2)
		h.apply(k, want)
		h.exactly(want, foreign)
		k.Wake() // a round may be under way at Close
		check(t, k.Close(Remove))
		h.exactly(State{}, foreign)
	}
}

func TestApplyEndsWithItsContext(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	entered, leave := make(chan bool), make(chan bool)
	h.plan = func(Kernel) error { entered <- true; <-leave; return nil }
	held := make(chan error)
	go func() { held <- k.Apply(context.Background(), nil) }()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	waiting, changed := make(chan error), false
	go func() { waiting <- k.Apply(ctx, func() { changed = true }) }()
	cancel()
	select {
	case err := <-waiting:
		if !errors.Is(err, context.Canceled) || changed {
			t.Errorf("%v, change called: %v", err, changed)
		}
	case <-time.After(5 * time.Second):
		t.Error("waits on")
	}
	leave <- true
	check(t, <-held)
	h.mu.Lock()
	h.plan = nil
	h.mu.Unlock()
	if err := k.Apply(ctx, func() { changed = true }); !errors.Is(err, context.Canceled) || changed {
		t.Errorf("with a context that has ended: %v, change called: %v", err, changed)
	}
	if err := k.Err(); err != nil {
		t.Error("somebody's context is not the State's error:", err)
	}
}

// Close waits for a round under way.
func TestCloseWhileARoundIsUnderWay(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.tryOpen(&log)
	h.apply(k, base())
	settle(t, k)
	entered, leave := make(chan bool, 9), make(chan bool)
	h.mu.Lock()
	h.plan = func(Kernel) error { entered <- true; <-leave; return nil }
	h.mu.Unlock()
	k.Wake()
	<-entered
	closed := make(chan error)
	go func() { closed <- k.Close(Remove) }()
	select {
	case <-closed:
		t.Error("did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	close(leave)
	check(t, <-closed)
	if h.link(vx) != nil {
		t.Error("the device is still there")
	}
}

func TestFates(t *testing.T) {
	for name, c := range map[string]struct {
		fate      Fate
		adopted   bool
		device    bool // afterwards
		direct    bool // afterwards
		neverUsed bool
	}{
		"Leave":                  {Leave, false, true, true, false},
		"Leave what it adopted":  {Leave, true, true, true, false},
		"Remove":                 {Remove, false, false, false, false},
		"Remove what it adopted": {Remove, true, false, false, false},
		"Undo":                   {Undo, false, false, true, false},
		"Undo what it adopted":   {Undo, true, true, true, false},
		"Remove without Apply":   {Remove, true, true, true, true},
		"Undo without Apply":     {Undo, true, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.dummy("pod0", "10.244.0.1/24")
			h.route("10.244.30.0/24", h.by("pod0", ""))
			h.route("10.244.31.0/24", h.by(ext, "192.0.2.31"), withMetric(7))
			foreign := h.kernel()
			var log testlog.Messages
			want := withDirect(withPeers(base(), 1, 2))
			if c.adopted {
				k := h.tryOpen(&log)
				h.apply(k, want)
				check(t, k.Close(Leave))
			}
			k := h.tryOpen(&log)
			if !c.neverUsed {
				h.apply(k, want)
			}
			check(t, k.Close(c.fate))
			have := h.kernel()
			if got := h.link(vx) != nil; got != c.device {
				t.Errorf("the device is there: %v", got)
			}
			direct := missing(wanted(State{Routes: want.Routes[len(want.Routes)-1:]}), have)
			if (len(direct) == 0) != c.direct {
				t.Errorf("the direct route: missing %v", direct)
			}
			for _, s := range missing(foreign, have) {
				t.Error("a stranger's is gone:", s)
			}
			if c.device {
				for _, s := range missing(wanted(base()), have) {
					t.Error("not there:", s)
				}
			}
		})
	}
}

// Remove leaves a route that somebody has changed since, and what failed.
func TestRemoveLeavesWhatIsNotItsOwn(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	h.dummy("br0")
	h.route("10.244.3.0/24", h.by("br0", ""))
	k := h.tryOpen(&log)
	want := withDirect(withPeers(base(), 1, 3))
	if err := k.Apply(context.Background(), h.want(want)); err == nil {
		t.Error("no error")
	}
	blocked := make(chan bool)
	h.mu.Lock()
	h.plan = func(Kernel) error { <-blocked; return nil }
	h.mu.Unlock()
	r := &netlink.Route{Dst: rtnl.IPNet(sub4(9))}
	h.by(ext, "192.0.2.111")(r)
	check(t, h.nl.RouteReplace(r))
	go func() { time.Sleep(100 * time.Millisecond); close(blocked) }()
	foreign := h.kernel()
	_ = foreign
	check(t, k.Close(Remove))
	have := h.kernel()
	found := 0
	for s := range have {
		if strings.Contains(s, "dev br0") && strings.Contains(s, "10.244.3.0/24") {
			found++
		}
	}
	if found != 1 {
		t.Error("a stranger's route is gone", have)
	}
}

// Rounds are in the namespace of Open, whoever calls.
func TestStaysInItsNamespace(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.tryOpen(&log)
	foreign := h.kernel()
	inode := func() string { s, _ := os.Readlink("/proc/thread-self/ns/net"); return s }
	var home string
	check(t, h.ns.Do(func() error { home = inode(); return nil }))
	var bad []string
	h.plan = func(Kernel) error {
		if now := inode(); now != home {
			bad = append(bad, now)
		}
		return nil
	}
	want := withPeers(base(), 1)
	h.apply(k, want)                                                                                             // from the main namespace
	check(t, h.wire.Do(func() error { return k.Apply(context.Background(), h.want(withPeers(base(), 1, 2))) }))  // from another one
	check(t, h.ns.Do(func() error { return k.Apply(context.Background(), h.want(withPeers(base(), 1, 2, 3))) })) // from the same
	h.exactly(withPeers(base(), 1, 2, 3), foreign)
	settle(t, k)
	h.mu.Lock()
	h.plan = func(Kernel) error {
		if now := inode(); now != home {
			bad = append(bad, now)
		}
		return nil
	}
	h.mu.Unlock()
	k.Wake()
	settle(t, k)
	if len(bad) > 0 {
		t.Errorf("%d rounds elsewhere than in %s: %v", len(bad), home, bad)
	}
	if l, err := h.wire.Netlink().LinkByName(vx); err == nil {
		t.Error("made elsewhere:", l)
	}
	check(t, h.wire.Do(func() error { return k.Close(Remove) }))
	h.exactly(State{}, foreign)
}

func TestHop(t *testing.T) {
	h := newHost(t)
	h.route("203.0.113.0/24", h.by(ext, "192.0.2.200"))
	h.route("2001:db8:9::/48", h.by(ext, "2001:db8::200"))
	within(t, 5*time.Second, "the kernel knows the address for its own", func() bool { // it takes a moment for IPv6
		r, err := h.nl.RouteGet(addr("2001:db8::1").AsSlice())
		return err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL
	})
	var log testlog.Messages
	k := h.open(&log)
	h.plan = func(k Kernel) error {
		for to, want := range map[string]Hop{
			"192.0.2.9": {Link: ext}, "192.0.2.1": {Link: "lo", Local: true}, "203.0.113.4": {Link: ext, Gw: addr("192.0.2.200")},
			"2001:db8::9": {Link: ext}, "2001:db8::1": {Link: "lo", Local: true}, "2001:db8:9::1": {Link: ext, Gw: addr("2001:db8::200")},
		} {
			got, err := k.Hop(addr(to))
			if err != nil || got != want && !(want.Local && got.Local) {
				t.Errorf("%s: %+v, %v, want %+v", to, got, err, want)
			}
		}
		for _, to := range []string{"198.51.100.1", "fd12::1"} {
			if got, err := k.Hop(addr(to)); err == nil {
				t.Errorf("%s: %+v", to, got)
			}
		}
		return nil
	}
	h.apply(k, State{})
}

// remains is what the process has.
func remains(t *testing.T) (goroutines, descriptors int) {
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return runtime.NumGoroutine(), len(entries)
}

func TestNothingLeaks(t *testing.T) {
	h := newHost(t)
	cycle := func() {
		var log testlog.Messages
		for _, fate := range []Fate{Leave, Remove, Undo} {
			k := h.tryOpen(&log)
			h.apply(k, withPeers(base(), 1))
			check(t, k.Close(fate))
			check(t, h.tryOpen(&log).Close(fate))
		}
	}
	cycle()
	cycle()
	g, d := remains(t)
	for range 5 {
		cycle()
	}
	within(t, 5*time.Second, "goroutines and descriptors are as before", func() bool { g2, d2 := remains(t); return g2 <= g && d2 <= d })
}

// An announcement may come, or be lost, while Open is not through.
func TestOpenWhileMuchHappens(t *testing.T) {
	h := newHost(t)
	h.dummy("pod0")
	stop := busy(h, 2, "fd99:0")
	defer stop()
	for range 200 {
		var log testlog.Messages
		k := h.tryOpen(&log)
		check(t, k.Close(Leave))
	}
}

func TestParseMAC(t *testing.T) {
	for in, ok := range map[string]bool{
		"7a:ac:15:15:2b:61": true, "7A-AC-15-15-2B-61": true, "7aac.1515.2b61": true, "": false, "x": false, "00:00:00:00:00:00": false,
		"ff:ff:ff:ff:ff:ff": false, "01:00:5e:00:00:01": false, "02:00:5e:10:00:00:00:01": false,
	} {
		m, err := ParseMAC(in)
		if (err == nil) != ok || ok && m.String() != "7a:ac:15:15:2b:61" || !ok && m.String() != "" {
			t.Errorf("%q: %v, %v", in, m, err)
		}
	}
}
