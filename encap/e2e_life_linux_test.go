package encap_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/tun"
)

// saturate fills the tunnel in both directions with TCP and UDP until the
// returned function is called. What becomes of it does not matter.
func saturate(t *testing.T, l *lab) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	var closers []func() error
	pods := []place{l.a.podPlace(), l.b.podPlace()}
	block := make([]byte, 64<<10)
	for i, v6 := range []bool{false, true} {
		near, far, err := tcpPair(pods[i], pods[1-i], v6)
		check(t, err)
		for _, c := range []*net.TCPConn{near, far} {
			closers = append(closers, c.Close)
			wg.Go(func() {
				for {
					if _, err := c.Write(block); err != nil {
						return
					}
				}
			})
			wg.Go(func() {
				buf := make([]byte, 64<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			})
		}
		u, err := udpSocket(pods[i], netip.AddrPort{}, netip.AddrPortFrom(pods[1-i].addr(v6), 4999))
		check(t, err)
		closers = append(closers, u.Close)
		wg.Go(func() {
			for {
				if _, err := u.Write(block[:1000]); errors.Is(err, net.ErrClosed) {
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		for _, c := range closers {
			c()
		}
		wg.Wait()
	})
}

// busy waits until the host has moved packets both ways.
func (s *side) busy(n uint64) {
	s.t.Helper()
	before := s.stats()
	s.waitStats("traffic", func(st encap.Stats) bool {
		return st.TX.Packets > before.TX.Packets+n && st.RX.Packets > before.RX.Packets+n
	})
}

// promptly fails the test if what was to happen promptly took longer than a
// busy machine explains, and logs how long it took.
func promptly(t *testing.T, what string, since time.Time) {
	t.Helper()
	took := time.Since(since)
	t.Logf("%s took %v", what, took)
	if took > 2*time.Second {
		t.Errorf("%s took %v", what, took)
	}
}

func TestE2ECancelUnderTraffic(t *testing.T) {
	l := startLab(t, labConfig{Engines: 2, Engine: encap.Config{SourcePorts: 4}})
	stop := saturate(t, l)
	defer stop()
	l.a.busy(20_000)
	start := time.Now()
	for _, r := range l.a.runs {
		r.cancel()
	}
	for _, r := range l.a.runs {
		if err := r.wait(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	promptly(t, "the end of Run under full traffic", start)
	// The other end of the tunnel goes on, and ends likewise.
	start = time.Now()
	for _, r := range l.b.runs {
		check(t, r.Close())
	}
	for _, r := range l.b.runs {
		if err := r.wait(t); err != nil {
			t.Errorf("Run after Close: %v", err)
		}
	}
	promptly(t, "the end of Run after Close", start)
	before := l.a.stats()
	time.Sleep(10 * time.Millisecond)
	if after := l.a.stats(); after != before {
		t.Errorf("counters move after Run:\n%+v\n%+v", before, after)
	}
}

// The device is deleted under an engine: Run says so and does not spin.
func TestE2EDeviceDeleted(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  labConfig
		busy bool
	}{
		{"idle", labConfig{}, false},
		{"under traffic", labConfig{}, true},
		{"two queues under traffic", labConfig{Engines: 2}, true},
		{"persistent", labConfig{Device: tun.Config{Persist: true}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startLab(t, tt.cfg)
			if tt.busy {
				stop := saturate(t, l)
				defer stop()
				l.a.busy(1000)
			}
			for _, r := range l.a.runs {
				r.seen = true
			}
			start := time.Now()
			check(t, l.a.host.DelLink("flannel0"))
			for i, r := range l.a.runs {
				err := r.wait(t)
				if !errors.Is(err, tun.ErrGone) || !errors.Is(err, encap.ErrDevice) || !strings.Contains(err.Error(), "encap") {
					t.Errorf("engine %d: Run: %v, not ErrDevice and ErrGone", i, err)
				}
			}
			promptly(t, "noticing", start)
		})
	}
}

// While the device is down, packets are dropped and counted; when it is up
// again, they pass, without a new engine.
func TestE2EDeviceDownAndUp(t *testing.T) {
	l := startLab(t, labConfig{})
	stop := saturate(t, l)
	defer stop()
	l.a.busy(1000)
	check(t, l.a.host.Down("flannel0"))
	l.a.waitStats("drops", func(st encap.Stats) bool { return st.Drops[encap.DropDevice] > 0 })
	stop()
	// The kernel forgets routes and IPv6 addresses of a device that is down.
	check(t, l.a.host.Up("flannel0"), l.a.host.AddRoute(l.Network4, netip.Addr{}, "flannel0", 0),
		l.a.host.AddRoute(l.Network6, netip.Addr{}, "flannel0", 0))
	for _, v6 := range []bool{false, true} {
		check(t, exchange(l.a.podPlace(), l.b.podPlace(), v6, 1<<20))
	}
	l.a.dropped(encap.DropDevice)
}

// The device may be closed under a running engine, which has a descriptor of its
// own: traffic flows on, and the device disappears with the engine.
func TestE2EDeviceClosed(t *testing.T) {
	l := startLab(t, labConfig{})
	check(t, l.a.dev.Close())
	check(t, exchange(l.a.podPlace(), l.b.podPlace(), false, 1<<20))
	check(t, l.a.runs[0].stop(t))
	if !eventually(func() bool { _, err := l.a.host.LinkStats("flannel0"); return err != nil }) {
		t.Error("the device is still there")
	}
}

// An engine runs once.
func TestE2ERunOnce(t *testing.T) {
	l := newLab(t, labConfig{Engines: 6})
	l.a.open()
	r := run(l.a.engine(0))
	if !eventually(func() bool { return r.Stats().Waits > 0 }) {
		t.Fatal("the engine has not started")
	}
	if err := r.Run(context.Background()); !errors.Is(err, encap.ErrRunning) {
		t.Errorf("second Run while the first runs: %v", err)
	}
	check(t, r.stop(t))
	if err := r.Run(context.Background()); !errors.Is(err, encap.ErrRunning) {
		t.Errorf("Run after Run: %v", err)
	}
	check(t, r.Close(), r.Close())

	e := l.a.engine(1)
	check(t, e.Close(), e.Close())
	if err := e.Run(context.Background()); !errors.Is(err, encap.ErrRunning) {
		t.Errorf("Run after Close: %v", err)
	}
	_ = e.Stats()

	e = l.a.engine(2)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	check(t, e.Run(ended))

	// Close at any moment of Run's beginning.
	for i := range 30 {
		e := l.a.engine(3 + i%3)
		done := make(chan error)
		go func() { done <- e.Run(context.Background()) }()
		for range i * 100 {
			runtime.Gosched()
		}
		check(t, e.Close())
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, encap.ErrRunning) {
				t.Errorf("Run, closed at once: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Run, closed at once, has not returned")
		}
	}
}

// New says what it wants, and leaves the socket to the caller when it fails.
func TestE2ENewErrors(t *testing.T) {
	l := newLab(t, labConfig{})
	l.a.open()
	conn := l.a.listen()
	defer conn.Close()
	q := l.a.dev.Queues()[0]
	table := encap.NewTable()
	for name, try := range map[string]func() (*encap.Engine, error){
		"no queue": func() (*encap.Engine, error) { return encap.New(nil, conn, table, encap.Config{}) },
		"no conn":  func() (*encap.Engine, error) { return encap.New(q, nil, table, encap.Config{}) },
		"no table": func() (*encap.Engine, error) { return encap.New(q, conn, nil, encap.Config{}) },
		"too many ports": func() (*encap.Engine, error) {
			return encap.New(q, conn, table, encap.Config{SourcePorts: 65})
		},
		"negative ports": func() (*encap.Engine, error) {
			return encap.New(q, conn, table, encap.Config{SourcePorts: -1})
		},
		"unknown policy": func() (*encap.Engine, error) { return encap.New(q, conn, table, encap.Config{Checksums: 9}) },
	} {
		if e, err := try(); err == nil || e != nil || !strings.HasPrefix(err.Error(), "encap: new: ") {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
	closed := l.a.listen2(t, 4001)
	check(t, closed.Close())
	if _, err := encap.New(q, closed, table, encap.Config{}); err == nil {
		t.Error("a closed socket is accepted")
	}
	check(t, l.a.dev.Close())
	if _, err := encap.New(q, conn, table, encap.Config{}); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("queue of a closed device: %v", err)
	}
	// After all these failures it still works.
	if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("127.0.0.1:4999")); err != nil {
		t.Errorf("the socket, after New has failed: %v", err)
	}
}

// listen2 opens another socket of the host.
func (s *side) listen2(t *testing.T, port uint16) (c *net.UDPConn) {
	t.Helper()
	check(t, s.host.Do(func() (err error) {
		c, err = encap.Listen(netip.AddrPortFrom(s.endpoint.Addr(), port), encap.ListenConfig{})
		return err
	}))
	return c
}

// descriptors lists the open descriptors of this process.
func descriptors(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	open := make(map[string]string)
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()] = target
		}
	}
	return open
}

// mappings counts the memory mappings of this process of 64 KiB and more.
func mappings(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	check(t, err)
	for line := range strings.Lines(string(b)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && to-from >= 64<<10 {
			n++
		}
	}
	return n
}

// Engines that come and go leave no goroutine, thread, descriptor or memory.
func TestE2ENoLeaks(t *testing.T) {
	l := newLab(t, labConfig{Engine: encap.Config{SourcePorts: 3}})
	cycle := func() {
		var devs []*tun.Device
		var runs []*running
		for _, s := range []*side{l.a, l.b} {
			check(t, s.host.Do(func() error {
				dev, err := tun.Open(tun.Config{Name: "flannel0", MTU: l.OverlayMTU})
				s.dev = dev
				return err
			}))
			devs = append(devs, s.dev)
			check(t, s.host.AttachOverlay("flannel0"))
			l.setPeers(s)
			runs = append(runs, run(s.engine(0)))
		}
		check(t, exchange(l.a.hostPlace(), l.b.hostPlace(), false, 256<<10))
		for i, r := range runs {
			check(t, r.stop(t))
			check(t, devs[i].Close())
		}
	}
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		check(t, err)
		return len(tasks)
	}
	for range 3 { // what the runtime and the packages open once
		cycle()
	}
	settled := func() (int, int) { runtime.GC(); return runtime.NumGoroutine(), len(descriptors(t)) }
	goroutines, fds := settled()
	before, thr, maps := descriptors(t), threads(), mappings(t)
	const cycles = 20
	for range cycles {
		cycle()
	}
	if !eventually(func() bool { g, f := settled(); return g <= goroutines && f <= fds }) {
		g, _ := settled()
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", g, goroutines, buf[:runtime.Stack(buf, true)])
		for fd, target := range descriptors(t) {
			if before[fd] != target {
				t.Errorf("descriptor %s: %s, before: %q", fd, target, before[fd])
			}
		}
	}
	if now := threads(); now > thr+cycles/2 {
		t.Errorf("%d threads, %d before", now, thr)
	}
	if now := mappings(t); now > maps+cycles/2 {
		t.Errorf("%d mappings, %d before", now, maps)
	}
}
