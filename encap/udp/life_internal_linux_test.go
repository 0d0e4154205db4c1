package udp

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease"
)

// Everything passes, and the kernel has exactly what it should.
func TestOverlay(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  labConfig
		opts Options
		mtu  int
	}{
		{"dual over v4", labConfig{}, Options{}, 1472},
		{"v4 over v4", labConfig{V4Only: true}, Options{}, 1472},
		{"dual over v6", labConfig{Outer6: true}, Options{}, 1452},
		{"v6 over v6", labConfig{Outer6: true, Network: func(n *lease.Network) { n.IPv4 = lease.Range{} }}, Options{}, 1452},
		{"v6 over v4", labConfig{Network: func(n *lease.Network) { n.IPv4 = lease.Range{} }}, Options{}, 1472},
		{"two engines", labConfig{}, Options{Engines: 2}, 1472},
		{"jumbo", labConfig{Net: netlab.TwoHostsConfig{MTU: 9000}}, Options{}, 8972},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.cfg)
			for _, n := range []*node{l.a, l.b} {
				n.make(tt.opts)
				if n.b.(*overlay).Probe() == nil {
					t.Error("Probe before Start says that packets flow")
				}
				mtu, err := n.tryStart()
				check(t, err)
				if mtu != tt.mtu {
					t.Errorf("Start returns MTU %d, not %d", mtu, tt.mtu)
				}
				n.waitState("flannel0", tt.mtu)
				check(t, n.b.Sync(t.Context(), n.peers()), n.b.(*overlay).Probe())
				n.settle()
			}
			l.talk()
			st := l.a.b.(*overlay).Stats()
			if st.TX.Packets == 0 || st.RX.Packets == 0 {
				t.Errorf("nothing is counted: %+v", st)
			}
			check(t, l.a.b.Close(false))
			if _, ok := l.a.state("flannel0"); ok {
				t.Error("the device is there after Close")
			}
			if after := l.a.b.(*overlay).Stats(); after.TX.Packets < st.TX.Packets || after.RX.Packets < st.RX.Packets {
				t.Errorf("counters went back with Close: %+v", after)
			}
		})
	}
}

// The host gets another address, then another MTU: packets flow on, over the same
// device, and the peers stay.
func TestStartAgain(t *testing.T) {
	l := newLab(t, labConfig{})
	l.startBoth(Options{})
	moved := netip.MustParseAddr("192.0.2.11")
	check(t, l.a.AddAddr("eth0", netip.PrefixFrom(moved, 24)))
	index := l.a.index("flannel0")
	s := startStream(t, l.a.pod(), l.b.pod(), false)
	s.flows()
	before := l.a.b.(*overlay).Stats()

	l.a.host.Addr4, l.a.host.Public4, l.a.own.Attrs.PublicIP = moved, moved, moved
	_, err := l.a.tryStart()
	check(t, err)
	// Until the other host knows, it takes nothing from here.
	check(t, l.b.b.Sync(t.Context(), l.b.peers()))
	s.flows()
	t.Logf("another address: %d datagrams lost (%v)", s.lost(), s)
	l.talk()
	if l.a.index("flannel0") != index {
		t.Error("the device is another one")
	}
	if after := l.a.b.(*overlay).Stats(); after.TX.Packets <= before.TX.Packets {
		t.Errorf("the counters began anew: %+v, then %+v", before, after)
	}
	l.a.listen(netip.MustParseAddr("192.0.2.1")).Close() // the old address is free

	group := l.a.b.(*overlay).group
	l.a.host.MTU = 1400
	mtu, err := l.a.tryStart()
	check(t, err)
	if mtu != 1372 {
		t.Errorf("MTU %d, not 1372", mtu)
	}
	l.a.waitState("flannel0", 1372)
	if l.a.b.(*overlay).group != group {
		t.Error("engines were restarted for nothing")
	}
	l.talk()

	// What can't be done leaves what is.
	blocker := l.a.listen(netip.MustParseAddr("192.0.2.1"))
	defer blocker.Close()
	l.a.host.MTU, l.a.host.Addr4 = 1500, netip.MustParseAddr("192.0.2.1")
	if _, err := l.a.tryStart(); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the new address' port is in use: %v", err)
	}
	own := l.a.own
	l.a.own.Subnet = netip.MustParsePrefix("10.244.77.0/24")
	if _, err := l.a.tryStart(); err == nil || !strings.Contains(err.Error(), "10.244.77.0") {
		t.Errorf("another subnet: %v", err)
	}
	l.a.own = own
	l.a.waitState("flannel0", 1372)
	check(t, l.a.b.(*overlay).Probe())
	l.talk()
}

// Underlays that are mixed: some peers have only IPv4, some only IPv6.
func TestMixedUnderlay(t *testing.T) {
	l := newLab(t, labConfig{})
	both := func(n *node) {
		n.host.Addr6, n.host.Public6 = n.Addr6.Addr(), n.Addr6.Addr()
		n.own.Attrs.PublicIPv6 = n.host.Public6
	}
	both(l.a)
	both(l.b)
	l.startBoth(Options{})
	if at := l.a.b.(*overlay).group.listen; at != netip.MustParseAddrPort("192.0.2.1:8285") {
		t.Errorf("two dual-stack hosts: listening on %v", at)
	}
	l.talk()

	// b loses IPv4.
	check(t, l.b.b.Close(false))
	l.b.host.Addr4, l.b.host.Public4, l.b.own.Attrs.PublicIP = netip.Addr{}, netip.Addr{}, netip.Addr{}
	l.b.start(Options{})
	s := startStream(t, l.b.pod(), l.a.pod(), false)
	other := lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.244.3.0/24")}, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.3")}}
	check(t, l.a.b.Sync(t.Context(), append(l.a.peers(), other)))
	s.flows()
	if at := l.a.b.(*overlay).group.listen; at != netip.MustParseAddrPort("[::]:8285") {
		t.Errorf("an IPv6 peer beside an IPv4 one: listening on %v", at)
	}
	l.talk()
	for _, p := range l.a.b.(*overlay).table.Peers() {
		if p.Subnets[0] == other.Subnet && p.Endpoint != netip.MustParseAddrPort("192.0.2.3:8285") {
			t.Errorf("the IPv4 peer is at %v", p.Endpoint)
		}
	}
	// A new Start keeps that, because of the peers it knows.
	l.a.host.MTU = 1480
	_, err := l.a.tryStart()
	check(t, err)
	l.talk()
	// Without IPv6 of its own a cannot serve b any more, but all others.
	l.a.host.Addr6, l.a.host.Public6, l.a.own.Attrs.PublicIPv6 = netip.Addr{}, netip.Addr{}, netip.Addr{}
	_, err = l.a.tryStart()
	check(t, err)
	if at := l.a.b.(*overlay).group.listen; at != netip.MustParseAddrPort("192.0.2.1:8285") {
		t.Errorf("without IPv6: listening on %v", at)
	}
	if err := l.a.b.Sync(t.Context(), append(l.a.peers(), other)); err == nil || !strings.Contains(err.Error(), "2001:db8::2") {
		t.Errorf("a peer that can't be reached: %v", err)
	}
	if peers := l.a.b.(*overlay).table.Peers(); len(peers) != 1 || peers[0].Subnets[0] != other.Subnet {
		t.Errorf("peers: %v", peers)
	}
}

// remains is what a process has.
func remains(t *testing.T) (goroutines, descriptors int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return runtime.NumGoroutine(), len(entries)
}

// noLeaks runs cycle some times and fails if goroutines or descriptors pile up.
func noLeaks(t *testing.T, cycle func()) {
	t.Helper()
	cycle()
	cycle()
	goroutines, descriptors := remains(t)
	for range 6 {
		cycle()
	}
	if !eventually(func() bool { runtime.GC(); g, d := remains(t); return g <= goroutines && d <= descriptors }) {
		g, d := remains(t)
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, %d and %d before\n%s", g, d, goroutines, descriptors, buf[:runtime.Stack(buf, true)])
	}
}

// obstruction keeps a host from starting.
type obstruction struct {
	name     string
	opts     Options
	obstruct func(n *node) (mend func())
	is       error
	says     []string
}

func obstructions() []obstruction {
	return []obstruction{
		{"port in use", Options{}, func(n *node) func() { c := n.listen(n.host.Addr4); return func() { c.Close() } },
			unix.EADDRINUSE, []string{"port 8285", "192.0.2.1", "Port"}},
		{"port in use everywhere, two engines", Options{Engines: 2}, func(n *node) func() { c := n.listen(netip.IPv4Unspecified()); return func() { c.Close() } },
			unix.EADDRINUSE, []string{"port 8285"}},
		{"address is not here", Options{}, func(n *node) func() {
			a := n.host.Addr4
			n.host.Addr4 = netip.MustParseAddr("192.0.2.99")
			return func() { n.host.Addr4 = a }
		}, unix.EADDRNOTAVAIL, []string{"192.0.2.99"}},
		{"name taken", Options{Device: "taken0"}, func(n *node) func() {
			check(n.t, n.Bridge("taken0"))
			return func() { check(n.t, n.DelLink("taken0")) }
		}, unix.EINVAL, []string{"taken0", "another name"}},
		{"name too long", Options{Device: "a-name-of-sixteen"}, func(*node) func() { return func() {} }, nil, []string{"15"}},
		{"foreign IPv4 route", Options{}, func(n *node) func() {
			check(n.t, n.AddRoute(n.lab.Network4, netip.Addr{}, "eth0", 0))
			return func() { check(n.t, n.DelRoute(n.lab.Network4, netip.Addr{}, "eth0")) }
		}, nil, []string{"10.244.0.0/16 is routed to eth0"}},
		{"foreign IPv6 route", Options{}, func(n *node) func() {
			check(n.t, n.AddRoute(n.lab.Network6, netip.Addr{}, "eth0", 0))
			return func() { check(n.t, n.DelRoute(n.lab.Network6, netip.Addr{}, "eth0")) }
		}, nil, []string{"fd00:244::/32 is routed to eth0"}},
		{"unreachable route", Options{}, func(n *node) func() {
			r := guard(n.lab.Network4)
			r.Type, r.Priority = unix.RTN_UNREACHABLE, 0
			check(n.t, n.Netlink().RouteAdd(r))
			return func() { check(n.t, n.Netlink().RouteDel(r)) }
		}, nil, []string{"10.244.0.0/16 is routed to nowhere"}},
		{"engine refuses", Options{Encap: encap.Config{SourcePorts: 1000}}, func(*node) func() { return func() {} }, nil, []string{"SourcePorts"}},
		{"MTU too small for IPv6", Options{}, func(n *node) func() {
			n.host.MTU = 1300
			return func() { n.host.MTU = 1500 }
		}, nil, []string{"eth0", "1300", "1272", "1280"}},
		{"no permission", Options{}, func(n *node) func() { n.without = 1 << unix.CAP_NET_ADMIN; return func() { n.without = 0 } },
			unix.EPERM, []string{"CAP_NET_ADMIN"}},
	}
}

// A Start that fails, wherever it does, leaves nothing, and says why.
func TestStartFails(t *testing.T) {
	slow(t)
	for _, tt := range obstructions() {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, labConfig{})
			fail := func(persist bool) {
				tt.opts.Persist = persist
				mend := tt.obstruct(l.a)
				defer mend()
				b, err := New(tt.opts)(l.a.params())
				check(t, err)
				l.a.b = b
				_, err = l.a.tryStart()
				if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.HasPrefix(err.Error(), "udp: start: ") {
					t.Fatalf("Start: %v, not %v", err, tt.is)
				}
				if slices.ContainsFunc(tt.says, func(s string) bool { return !strings.Contains(err.Error(), s) }) {
					t.Errorf("%q does not say %q", err, tt.says)
				}
				if b.(*overlay).Probe() == nil {
					t.Error("Probe says that packets flow")
				}
				check(t, b.Close(true))
			}
			noLeaks(t, func() { fail(false); fail(true) })
			l.a.wantTuns()
			// The same backend starts when the obstacle is away.
			if tt.opts.Encap.SourcePorts > 0 || len(tt.opts.Device) > 15 {
				return
			}
			mend := tt.obstruct(l.a)
			l.a.make(Options{Device: tt.opts.Device})
			_, err := l.a.tryStart()
			mend()
			if err == nil {
				t.Error("Start succeeds with the obstacle")
			}
			_, err = l.a.tryStart()
			check(t, err, l.a.b.Sync(t.Context(), l.a.peers()))
			l.b.start(Options{})
			l.talk()
		})
	}
}

// Start fails at each of its steps that opens something, and leaves nothing.
func TestOutOfDescriptors(t *testing.T) {
	l := newLab(t, labConfig{})
	try := func(opts Options, files uint64) error {
		b, err := New(opts)(l.a.params())
		check(t, err)
		l.a.b, l.a.files = b, files
		_, err = l.a.tryStart()
		l.a.files = 0
		check(t, b.Close(false))
		return err
	}
	opts := Options{Engines: 2}
	check(t, try(opts, 0)) // what is opened once for all
	goroutines, descriptors := remains(t)
	failed := 0
	for files := uint64(1); ; files++ {
		err := try(opts, files)
		l.a.wantTuns()
		if err == nil {
			break
		}
		if failed++; failed > 100 {
			t.Fatalf("Start has not succeeded with %d descriptors: %v", files-1, err)
		}
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("%d descriptors: %v", files-1, err)
		}
	}
	t.Logf("Start failed in %d ways", failed)
	if failed < 10 {
		t.Errorf("Start failed in %d ways only", failed)
	}
	if !eventually(func() bool { g, d := remains(t); return g <= goroutines && d <= descriptors }) {
		g, d := remains(t)
		t.Errorf("%d goroutines and %d descriptors, %d and %d before", g, d, goroutines, descriptors)
	}
}

// Nothing piles up over many lives, and nothing is left of one.
func TestNoLeaks(t *testing.T) {
	l := newLab(t, labConfig{})
	l.b.start(Options{})
	noLeaks(t, func() {
		b, err := New(Options{Engines: 2})(l.a.params())
		check(t, err)
		l.a.b = b
		_, err = l.a.tryStart()
		check(t, err, b.Sync(t.Context(), l.a.peers()))
		l.a.settle()
		check(t, exchange(l.a.self(), l.b.self(), false), l.a.DelLink("flannel0"))
		l.a.waitState("flannel0", 1472)
		l.a.host.MTU = 1400
		_, err = l.a.tryStart()
		l.a.host.MTU = 1500
		check(t, err, b.Close(true), b.Close(false))
		l.a.wantTuns()
	})
	if _, err := l.a.tryStart(); err == nil {
		t.Error("Start after Close succeeds")
	}
	if err := l.a.b.Sync(t.Context(), nil); err == nil {
		t.Error("Sync after Close succeeds")
	}
	if l.a.b.(*overlay).Probe() == nil {
		t.Error("Probe after Close says that packets flow")
	}
}

// Contexts that ended, and calls out of order.
func TestCalls(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.a.make(Options{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err1 := l.a.b.Prepare(ended, backend.Host{})
	_, err2 := l.a.b.Start(ended, l.a.host, l.a.own)
	err3 := l.a.b.Sync(ended, nil)
	for i, err := range []error{err1, err2, err3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d after the end of its context: %v", i, err)
		}
	}
	if err := l.a.b.Sync(t.Context(), nil); err == nil {
		t.Error("Sync before Start succeeds")
	}
	check(t, l.a.b.Close(true), l.a.b.Close(true))
	l.a.wantTuns()
}

// Whoever does not forward is told, once.
func TestForwardingWarning(t *testing.T) {
	l := newLab(t, labConfig{})
	check(t, l.a.Sysctl("net/ipv4/ip_forward", "0"), l.a.Sysctl("net/ipv6/conf/all/forwarding", "0"))
	l.startBoth(Options{})
	_, err := l.a.tryStart()
	check(t, err)
	for _, key := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"} {
		if n := l.a.log.Count("WARN", key); n != 1 {
			t.Errorf("%s is logged %d times", key, n)
		}
		if n := l.b.log.Count("WARN", key); n != 0 {
			t.Errorf("%s is logged %d times where it is set", key, n)
		}
	}
}
