package kernelbackend

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

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Prober  = (*Backend)(nil)
)

const dev = "toy0"

// A rig is a host with two external links, eth0 and eth1, and a toy backend: a device
// toy0 with the subnet's first address, and for each peer a route via its public
// address, through the host's link.
type rig struct {
	t       *testing.T
	ns      *netlab.NS
	nl      *netlink.Handle
	log     testlog.Messages
	b       *Backend
	mtuErr  error
	mu      sync.Mutex
	planErr error
	closed  []bool
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

func newRig(t *testing.T) *rig {
	lab := netlab.ForTest(t)
	r := &rig{t: t}
	var err error
	r.ns, err = lab.Namespace("host")
	check(t, err)
	wire, err := lab.Namespace("wire")
	check(t, err)
	r.nl = r.ns.Netlink()
	for i, name := range []string{"eth0", "eth1"} {
		check(t, lab.Veth(r.ns, name, wire, name, 1500))
		check(t, r.ns.AddAddr(name, pfx(fmt.Sprintf("192.0.%d.1/24", i+2))))
	}
	r.b = r.backend()
	t.Cleanup(func() { _ = r.b.Close(true) })
	return r
}

func (r *rig) backend() *Backend {
	return New(Config{
		Name:   "toy",
		Params: backend.Params{Log: r.log.Logger(), Network: lease.Network{IPv4: lease.Range{Prefix: pfx("10.244.0.0/16"), SubnetLen: 24}}},
		Prepare: func(context.Context, backend.Host) (lease.Attrs, error) {
			return lease.Attrs{BackendType: "toy"}, nil
		},
		MTU: func(host backend.Host, _ lease.Lease) (int, error) { return host.MTU - 20, r.mtuErr },
		End: func(s Situation, l lease.Lease, _ netip.Prefix) (netip.Addr, string) {
			return l.Attrs.PublicIP, s.Self.Unreachable(l.Attrs.PublicIP)
		},
		Plan: func(s Situation, _ netstate.Kernel) (netstate.State, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			// A veth pair stands for a device: not every kernel has another.
			st := netstate.State{
				Links: []netstate.Link{{Name: dev, MTU: s.Host.MTU - 20, New: func() (netlink.Link, error) {
					return &netlink.Veth{PeerName: "toy1"}, nil
				}}},
				Addrs: []netstate.Addr{{Link: dev, Prefix: FirstAddr(s.Own.Subnet)}},
			}
			for _, p := range s.Peers {
				st.Routes = append(st.Routes, netstate.Route{Dst: p.Subnet, Gw: p.At, Link: s.Host.Link, OnLink: true, Peer: p.String()})
			}
			return st, r.planErr
		},
		Closed: func(keep bool) error { r.closed = append(r.closed, keep); return nil },
	})
}

func (r *rig) plan(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.planErr = err
}

func hostOn(link string, mtu int) backend.Host {
	at := map[string]netip.Addr{"eth0": addr("192.0.2.1"), "eth1": addr("192.0.3.1")}[link]
	return backend.Host{Link: link, MTU: mtu, Addr4: at, Public4: at}
}

func own(h backend.Host) lease.Lease {
	return lease.Lease{Key: lease.Key{Subnet: pfx("10.244.0.0/24")}, Attrs: lease.Attrs{PublicIP: h.Public4, BackendType: "toy"}}
}

func peer(i int) lease.Lease {
	return lease.Lease{Revision: uint64(i), Key: lease.Key{Subnet: pfx(fmt.Sprintf("10.244.%d.0/24", i))},
		Attrs: lease.Attrs{PublicIP: addr(fmt.Sprintf("198.51.100.%d", i)), BackendType: "toy"}}
}

// start starts in the namespace.
func (r *rig) start(h backend.Host) (mtu int, err error) {
	doErr := r.ns.Do(func() error { mtu, err = r.b.Start(context.Background(), h, own(h)); return nil })
	check(r.t, doErr)
	return mtu, err
}

// there reports whether there is a route to peer i, through a link.
func (r *rig) there(i int, link string) bool {
	r.t.Helper()
	routes, err := r.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	check(r.t, err)
	for _, rt := range routes {
		if rt.Dst != nil && rt.Dst.String() == peer(i).Subnet.String() && rt.Gw != nil {
			l, err := r.nl.LinkByIndex(rt.LinkIndex)
			check(r.t, err)
			return l.Attrs().Name == link
		}
	}
	return false
}

func (r *rig) device() bool { _, err := r.nl.LinkByName(dev); return err == nil }

func (r *rig) sync(leases ...lease.Lease) error { return r.b.Sync(context.Background(), leases) }

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 3*time.Second {
			t.Error(what)
			return
		}
	}
}

func TestLife(t *testing.T) {
	r := newRig(t)
	if r.b.Probe() == nil {
		t.Error("nothing has been started, and packets flow?")
	}
	if err := r.sync(peer(1)); err == nil || r.device() {
		t.Error("Sync before Start:", err)
	}
	if a, err := r.b.Prepare(context.Background(), hostOn("eth0", 1500)); err != nil || a.BackendType != "toy" || r.device() {
		t.Error(a, err)
	}
	mtu, err := r.start(hostOn("eth0", 1500))
	if err != nil || mtu != 1480 || !r.device() || r.b.Probe() != nil {
		t.Fatal(mtu, err, r.b.Probe())
	}
	check(t, r.sync(peer(1), peer(2)))
	if !r.there(1, "eth0") || !r.there(2, "eth0") {
		t.Error("no routes")
	}
	before := r.b.Stats().Writes
	check(t, r.sync(peer(2), peer(1)))
	if n := r.b.Stats().Writes - before; n != 0 {
		t.Errorf("%d writes for the same set", n)
	}
	mtu, err = r.start(hostOn("eth1", 1400)) // moves
	if err != nil || mtu != 1380 || !r.there(1, "eth1") || !r.there(2, "eth1") {
		t.Error(mtu, err)
	}
	if l, err := r.nl.LinkByName(dev); err != nil || l.Attrs().MTU != 1380 {
		t.Error(l, err)
	}
	check(t, r.sync(peer(2)))
	if r.there(1, "eth1") || !r.there(2, "eth1") {
		t.Error("after a Sync")
	}
	check(t, r.sync())
	if r.there(2, "eth1") {
		t.Error("after an empty Sync")
	}
	if bad := r.log.With("is put right"); len(bad) > 0 {
		t.Error("false alarm:", bad)
	}
	check(t, r.b.Close(false))
	check(t, r.b.Close(false))
	check(t, r.b.Close(true))
	if r.device() || len(r.closed) != 1 || r.closed[0] || r.b.Probe() == nil {
		t.Error(r.device(), r.closed, r.b.Probe())
	}
	if _, err := r.start(hostOn("eth0", 1500)); err == nil || r.device() {
		t.Error("Start after Close:", err)
	}
	if err := r.sync(peer(1)); err == nil {
		t.Error("Sync after Close")
	}
}

func TestCloseBeforeStart(t *testing.T) {
	r := newRig(t)
	check(t, r.b.Close(false))
	if len(r.closed) != 1 || r.b.Probe() == nil {
		t.Error(r.closed, r.b.Probe())
	}
}

func TestStartFailsAndLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct{ spoil, mend func(r *rig) }{
		"MTU":  {func(r *rig) { r.mtuErr = errors.New("because") }, func(r *rig) { r.mtuErr = nil }},
		"plan": {func(r *rig) { r.plan(errors.New("because")) }, func(r *rig) { r.plan(nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			goroutines := runtime.NumGoroutine()
			c.spoil(r)
			for range 3 {
				if _, err := r.start(hostOn("eth0", 1500)); err == nil || !strings.Contains(err.Error(), "because") {
					t.Error(err)
				}
			}
			if r.device() || r.b.Probe() == nil {
				t.Error("something is left behind", r.b.Probe())
			}
			within(t, "goroutines are left behind", func() bool { return runtime.NumGoroutine() <= goroutines })
			if err := r.sync(peer(1)); err == nil {
				t.Error("Sync after a Start that failed")
			}
			c.mend(r)
			if _, err := r.start(hostOn("eth0", 1500)); err != nil || !r.device() {
				t.Error(err)
			}
			check(t, r.sync(peer(1)))
			check(t, r.b.Close(false))
			if r.device() || r.there(1, "eth0") {
				t.Error("something is left behind by Close")
			}
		})
	}
}

func TestCancelledContexts(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h := hostOn("eth0", 1500)
	if _, err := r.b.Prepare(ctx, h); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	check(t, r.ns.Do(func() error {
		if _, err := r.b.Start(ctx, h, own(h)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return nil
	}))
	if r.device() {
		t.Error("started")
	}
	_, err := r.start(h)
	check(t, err)
	if err := r.b.Sync(ctx, []lease.Lease{peer(1)}); !errors.Is(err, context.Canceled) || r.there(1, "eth0") {
		t.Error(err)
	}
	check(t, r.ns.Do(func() error {
		if _, err := r.b.Start(ctx, hostOn("eth1", 1400), own(hostOn("eth1", 1400))); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return nil
	}))
	check(t, r.sync(peer(1)))
	if !r.there(1, "eth0") || r.b.Probe() != nil {
		t.Error("not as before", r.b.Probe())
	}
}

func TestKeep(t *testing.T) {
	r := newRig(t)
	_, err := r.start(hostOn("eth0", 1500))
	check(t, err)
	check(t, r.sync(peer(1), peer(2), peer(3)))
	check(t, r.b.Close(true))
	if !r.device() || !r.there(1, "eth0") || !r.there(3, "eth0") {
		t.Fatal("not kept")
	}
	l, err := r.nl.LinkByName(dev)
	check(t, err)
	r.b = r.backend() // the successor
	_, err = r.start(hostOn("eth0", 1500))
	check(t, err)
	if !r.there(1, "eth0") || !r.there(3, "eth0") {
		t.Error("the predecessor's are gone before the peers are known")
	}
	check(t, r.sync(peer(1), peer(2)))
	if !r.there(1, "eth0") || !r.there(2, "eth0") || r.there(3, "eth0") {
		t.Error("after the first Sync")
	}
	if l2, err := r.nl.LinkByName(dev); err != nil || l2.Attrs().Index != l.Attrs().Index || r.b.Stats().Writes != 1 {
		t.Errorf("%v, %d writes, want the one that removes a route", err, r.b.Stats().Writes)
	}
}

func TestStartAgainFailsAndGoesBack(t *testing.T) {
	r := newRig(t)
	_, err := r.start(hostOn("eth0", 1500))
	check(t, err)
	check(t, r.sync(peer(1), peer(2)))
	if _, err := r.start(hostOn("nosuch0", 1400)); err == nil {
		t.Fatal("started through a link that is not there")
	}
	if !r.there(1, "eth0") || !r.there(2, "eth0") || r.b.Probe() != nil {
		t.Error("not as before:", r.b.Probe())
	}
	if l, err := r.nl.LinkByName(dev); err != nil || l.Attrs().MTU != 1480 {
		t.Error(l, err)
	}
	other := own(hostOn("eth1", 1500))
	other.Subnet = pfx("10.244.9.0/24")
	check(t, r.ns.Do(func() error {
		if _, err := r.b.Start(context.Background(), hostOn("eth1", 1500), other); err == nil {
			t.Error("another subnet")
		}
		return nil
	}))
	if !r.there(1, "eth0") {
		t.Error("not as before")
	}
}

// A failing peer must not keep the host from moving to another interface.
func TestStartAgainDespiteAFailingPeer(t *testing.T) {
	r := newRig(t)
	_, err := r.start(hostOn("eth0", 1500))
	check(t, err)
	check(t, r.nl.RouteAdd(&netlink.Route{Dst: netNet(t, "10.244.2.0/24"), Type: unix.RTN_BLACKHOLE}))
	if err := r.sync(peer(1), peer(2)); err == nil || !strings.Contains(err.Error(), "10.244.2.0") {
		t.Fatal(err)
	}
	if !r.there(1, "eth0") {
		t.Error("a failing peer keeps back another")
	}
	if err := r.b.Probe(); err != nil {
		t.Error("a single peer makes the host unready:", err)
	}
	if _, err = r.start(hostOn("eth1", 1400)); err != nil {
		t.Error("can't move:", err)
	}
	if !r.there(1, "eth1") {
		t.Error("peer 1 is not reached through the new interface")
	}
}

func netNet(t *testing.T, s string) *net.IPNet {
	_, a, err := net.ParseCIDR(s)
	check(t, err)
	return a
}

// Sync serves the good ones, names the bad ones, and leaves the others' alone.
func TestSyncOfMixedPeers(t *testing.T) {
	r := newRig(t)
	_, err := r.start(hostOn("eth0", 1500))
	check(t, err)
	alien, bad := peer(2), peer(3)
	alien.Attrs.BackendType = "vxlan"
	bad.Attrs.PublicIP = netip.Addr{}
	set := []lease.Lease{peer(1), alien, bad, peer(4)}
	for range 3 {
		if err := r.sync(set...); err == nil || !strings.Contains(err.Error(), "10.244.3.0") || strings.Contains(err.Error(), "10.244.2.0") {
			t.Error(err)
		}
		set[0], set[3] = set[3], set[0]
	}
	if !r.there(1, "eth0") || r.there(2, "eth0") || r.there(3, "eth0") || !r.there(4, "eth0") {
		t.Error("routes")
	}
	if r.log.Count("INFO", "10.244.2.0") != 1 || r.log.Count("WARN", "10.244.3.0") != 1 {
		t.Error(r.log.With(""))
	}
	check(t, r.nl.RouteDel(&netlink.Route{Dst: netNet(t, "10.244.1.0/24")}))
	within(t, "a removed route is not back", func() bool { return r.there(1, "eth0") })
}

func TestProbeAtAnyTime(t *testing.T) {
	for range 3 {
		r := newRig(t)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = r.b.Probe(), r.b.Stats()
				}
			})
		}
		for i := range 3 {
			_, err := r.start(hostOn([]string{"eth0", "eth1"}[i%2], 1500))
			check(t, err)
			check(t, r.sync(peer(1), peer(i+2)))
		}
		check(t, r.b.Close(false))
		cancel()
		wg.Wait()
	}
}

func TestNoLeaks(t *testing.T) {
	r := newRig(t)
	descriptors := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	cycle := func() {
		r.b = r.backend()
		_, err := r.start(hostOn("eth0", 1500))
		check(t, err)
		check(t, r.sync(peer(1)))
		check(t, r.b.Close(false))
	}
	cycle()
	g, d := runtime.NumGoroutine(), descriptors()
	for range 5 {
		cycle()
	}
	within(t, "goroutines or descriptors are left", func() bool { return runtime.NumGoroutine() <= g && descriptors() <= d })
}

func TestFirstAddr(t *testing.T) {
	for in, want := range map[string]string{"10.244.3.0/24": "10.244.3.0/32", "10.244.3.9/24": "10.244.3.0/32", "fd00:1::5/64": "fd00:1::/128"} {
		if got := FirstAddr(pfx(in)); got != pfx(want) {
			t.Error(in, got)
		}
	}
}
