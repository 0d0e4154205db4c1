package hostgw

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/lease"
)

var none = netip.Prefix{}

// three starts three hosts that know each other.
func (l *lab) three() (a, b, c *host) {
	l.t.Helper()
	a, b, c = l.host(1, l.sw, none, none), l.host(2, l.sw, none, none), l.host(3, l.sw, none, none)
	for _, h := range []*host{a, b, c} {
		h.start()
	}
	must(l.t, a.sync(b, c))
	must(l.t, b.sync(a, c))
	must(l.t, c.sync(a, b))
	return a, b, c
}

// route adds a route, as somebody else than the backend does.
func (h *host) route(r *netlink.Route, dst, gw, link string) {
	h.t.Helper()
	dev, err := h.Netlink().LinkByName(link)
	must(h.t, err)
	_, r.Dst, err = net.ParseCIDR(dst)
	must(h.t, err)
	r.LinkIndex = dev.Attrs().Index
	if gw != "" {
		r.Gw = ip(gw).AsSlice()
	}
	must(h.t, h.Netlink().RouteAdd(r))
}

func TestPeersComeAndGo(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	for _, pair := range [][2]*host{{a, b}, {b, c}, {c, a}} {
		pair[0].reaches(pair[1])
	}
	a.wants(to(b, c))
	must(t, a.sync(b)) // c leaves
	a.wants(to(b))
	must(t, a.sync(b, c)) // and joins again
	a.reaches(c)

	// b moves to another address.
	must(t, b.AddAddr("eth0", prefix("192.0.2.22/24")))
	must(t, b.AddAddr("eth0", prefix("2001:db8::22/64")))
	b.at(ip("192.0.2.22"), ip("2001:db8::22"))
	b.start()
	must(t, b.sync(a, c))
	before := a.b.Stats().Writes
	must(t, a.sync(b, c))
	if n := a.b.Stats().Writes - before; n != 2 {
		t.Errorf("a changed peer costs %d changes, want one for each family", n)
	}
	a.wants(to(b, c))
	a.reaches(b)

	// Leases of other backends, and nonsense, hurt nobody.
	bad := c.own
	bad.Attrs.BackendType = "vxlan"
	must(t, a.b.Sync(t.Context(), []lease.Lease{b.own, bad}))
	a.wants(to(b))
	a.reaches(b)
}

// TestRouterBetween: a peer behind a router is refused, the others are served, and it
// is served as soon as the network is mended.
func TestRouterBetween(t *testing.T) {
	l := newLab(t)
	far := l.namespace("far")
	must(t, far.Bridge("br0"))
	router := l.namespace("router")
	l.plug(l.sw, router, "eth0")
	l.plug(far, router, "eth1")
	must(t, router.AddAddr("eth0", prefix("192.0.2.254/24")))
	must(t, router.AddAddr("eth1", prefix("198.51.100.254/24")))
	a, b := l.host(1, l.sw, none, none), l.host(2, l.sw, none, none)
	d := l.host(4, far, prefix("198.51.100.4/24"), prefix("2001:db8:4::4/64"))
	must(t, a.AddRoute(prefix("0.0.0.0/0"), ip("192.0.2.254"), "eth0", 0))
	for _, h := range []*host{a, b} {
		h.start()
	}
	must(t, b.sync(a))
	err := a.sync(d, b)
	if text := fmt.Sprint(err); !strings.Contains(text, "peer 10.5.4.0-24") || !strings.Contains(text, "router 192.0.2.254") || strings.Contains(text, "10.5.2.0") {
		t.Errorf("the error is %q", text)
	}
	a.wants(to(b))
	a.reaches(b)
	if err := a.b.Probe(); err != nil {
		t.Error("a single peer makes the host unready:", err)
	}

	// The two links become one.
	must(t, l.Veth(l.sw, "up", far, "down", 1500))
	l.join(l.sw, "up")
	l.join(far, "down")
	must(t, a.AddRoute(prefix("198.51.100.0/24"), netip.Addr{}, "eth0", 0))
	must(t, a.AddRoute(prefix("2001:db8:4::/64"), netip.Addr{}, "eth0", 0))
	must(t, d.AddRoute(prefix("192.0.2.0/24"), netip.Addr{}, "eth0", 0))
	must(t, d.AddRoute(prefix("2001:db8::/64"), netip.Addr{}, "eth0", 0))
	d.start()
	must(t, d.sync(a))
	t.Logf("the peer is served %v after the network was mended", a.waits(to(b, d)))
	a.reaches(d)
	// And worse again: the peer that was served is not any more.
	must(t, a.DelRoute(prefix("198.51.100.0/24"), netip.Addr{}, "eth0"))
	if err := a.sync(b, d); err == nil {
		t.Error("no error for a peer that is behind the router again")
	}
	want := slices.DeleteFunc(to(b, d), func(r string) bool { return strings.HasPrefix(r, "10.5.4.0/24") })
	a.wants(want)
}

// TestOtherInterface: the external interface is used where the peer is on its link,
// whatever the kernel prefers.
func TestOtherInterface(t *testing.T) {
	l := newLab(t)
	elsewhere := l.namespace("else")
	must(t, elsewhere.Bridge("br0"))
	a, b := l.host(1, l.sw, none, none), l.host(2, l.sw, none, none)
	l.plug(l.sw, a.NS, "eth1") // on the same link
	must(t, a.AddAddr("eth1", prefix("192.0.2.101/25")))
	l.plug(elsewhere, a.NS, "eth2") // on another one
	must(t, a.AddAddr("eth2", prefix("203.0.113.1/24")))
	a.start()
	b.start()
	must(t, b.sync(a))
	other := lease.Lease{Key: lease.Key{Subnet: prefix("10.5.7.0/24")}, Attrs: lease.Attrs{BackendType: "host-gw", PublicIP: ip("203.0.113.7")}}
	err := a.b.Sync(t.Context(), []lease.Lease{other, b.own})
	if text := fmt.Sprint(err); !strings.Contains(text, "10.5.7.0/24") || !strings.Contains(text, "through eth2") || strings.Contains(text, "10.5.2.0") {
		t.Errorf("the error is %q", text)
	}
	a.wants(to(b))
	a.reaches(b)
}

// TestRepair: routes that somebody removes or bends are back.
func TestRepair(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	for _, dst := range []struct{ subnet, gw string }{{"10.5.2.0/24", "192.0.2.2"}, {"fd00:5:0:2::/64", "2001:db8::2"}} {
		must(t, a.DelRoute(prefix(dst.subnet), ip(dst.gw), "eth0"))
		t.Logf("%s is back after %v", dst.subnet, a.waits(to(b, c)))
	}
	for _, wrong := range []netlink.Route{
		{Dst: ipNet("10.5.2.0/24"), Gw: net.ParseIP("192.0.2.3")},
		{Dst: ipNet("fd00:5:0:2::/64"), Gw: net.ParseIP("2001:db8::3")},
	} {
		dev, err := a.Netlink().LinkByName("eth0")
		must(t, err)
		wrong.LinkIndex = dev.Attrs().Index
		must(t, a.Netlink().RouteReplace(&wrong))
		t.Logf("%v is right again after %v", wrong.Dst, a.waits(to(b, c)))
	}
	// The kernel removes the routes, and does not say so. Its IPv6 address goes,
	// too, as long as nobody keeps it.
	must(t, a.Sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1"))
	must(t, a.Down("eth0"))
	if list := a.routes(); len(list) > 0 {
		t.Errorf("with eth0 down there are %q", list)
	}
	must(t, a.Up("eth0"))
	t.Logf("all are back %v after eth0", a.waits(to(b, c)))
	a.reaches(b)
	if a.log.Count("put right", "route to 10.5.2.0/24") == 0 {
		t.Error("it is not logged")
	}
}

func ipNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

// TestPredecessor: what flannel's host-gw left of peers that are gone is removed once
// the peers are known, what is wrong is mended, and what is others' stays.
func TestPredecessor(t *testing.T) {
	l := newLab(t)
	a, b := l.host(1, l.sw, none, none), l.host(2, l.sw, none, none)
	a.route(&netlink.Route{}, "10.5.9.0/24", "192.0.2.9", "eth0")             // a peer that is gone
	a.route(&netlink.Route{}, "fd00:5:0:9::/64", "2001:db8::9", "eth0")       // and its other half
	a.route(&netlink.Route{}, "10.5.2.0/24", "192.0.2.3", "eth0")             // where b was once
	a.route(&netlink.Route{}, "10.77.0.0/24", "192.0.2.10", "eth0")           // not in the network
	a.route(&netlink.Route{Priority: 50}, "10.5.8.0/24", "192.0.2.9", "eth0") // another metric
	a.route(&netlink.Route{Table: 100}, "10.5.8.0/24", "192.0.2.9", "eth0")   // another table
	a.route(&netlink.Route{}, "10.5.8.0/25", "192.0.2.9", "eth0")             // no subnet
	a.route(&netlink.Route{}, "10.5.1.128/25", "192.0.2.9", "eth0")           // in our own subnet
	a.route(&netlink.Route{Scope: unix.RT_SCOPE_LINK}, "10.5.6.0/24", "", "eth0")
	must(t, a.Netlink().RouteAdd(&netlink.Route{Dst: ipNet("10.5.7.0/24"), Type: unix.RTN_BLACKHOLE}))
	foreign := []string{"10.5.8.0/24 via 192.0.2.9 eth0", "10.5.8.0/25 via 192.0.2.9 eth0", "10.5.1.128/25 via 192.0.2.9 eth0", "10.5.6.0/24 eth0", "10.5.7.0/24"}
	everything := func() int {
		n := 0
		must(t, a.Netlink().RouteListFilteredIter(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if r.Table != unix.RT_TABLE_LOCAL {
					n++
				}
				return true
			}))
		return n
	}
	before := everything()

	a.start()
	if n := a.b.Stats().Writes; n != 0 {
		t.Errorf("Start made %d changes, while the peers are not known", n)
	}
	must(t, a.sync(b))
	a.wants(to(b), foreign)
	if n := everything(); n != before-1 { // 10.5.9.0/24; that of b was there
		t.Errorf("there were %d routes in all tables, and are %d", before, n)
	}
	must(t, a.b.Close(false))
	a.wants(foreign)
	if n := everything(); n != before-2 {
		t.Errorf("there were %d routes in all tables, and are %d in the end", before, n)
	}
}

// TestBlocked: a route of somebody else's in the way of one peer is left alone, and
// the others are served.
func TestBlocked(t *testing.T) {
	l := newLab(t)
	a, b, c := l.host(1, l.sw, none, none), l.host(2, l.sw, none, none), l.host(3, l.sw, none, none)
	must(t, a.Netlink().RouteAdd(&netlink.Route{Dst: ipNet("10.5.2.0/24"), Type: unix.RTN_BLACKHOLE}))
	a.start()
	c.start()
	must(t, c.sync(a))
	err := a.sync(b, c)
	if text := fmt.Sprint(err); !strings.Contains(text, "10.5.2.0/24") || strings.Contains(text, "10.5.3.0") {
		t.Errorf("the error is %q", text)
	}
	a.reaches(c)
	must(t, a.Netlink().RouteDel(&netlink.Route{Dst: ipNet("10.5.2.0/24"), Type: unix.RTN_BLACKHOLE}))
	t.Logf("served %v after the way was free", a.waits(to(b, c)))
}

func TestRestart(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	a.reaches(b) // neighbours are known
	s := startStream(a, b)
	for range 5 {
		s.More(t, 100)
		a.restart(true)
		s.More(t, 100)
		must(t, a.sync(b, c))
		if n := a.b.Stats().Writes; n != 0 {
			t.Errorf("a restart made %d changes", n)
		}
	}
	sent, lost := s.End(t)
	t.Logf("%d datagrams", sent)
	if sent == 0 || lost > 0 {
		t.Errorf("%d of %d datagrams lost over restarts", lost, sent)
	}
	must(t, a.b.Close(false))
	a.wants()
	b.wants(to(a, c))
}

// TestMove: the host's own address and interface change; its routes move along.
func TestMove(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	l.plug(l.sw, a.NS, "eth1")
	must(t, a.Down("eth0"))
	must(t, a.AddAddr("eth1", prefix("192.0.2.11/24")))
	must(t, a.AddAddr("eth1", prefix("2001:db8::11/64")))
	a.at(ip("192.0.2.11"), ip("2001:db8::11"))
	a.host.Link = "eth1"
	a.start()
	must(t, b.sync(a, c))
	var want []string
	for _, r := range to(b, c) {
		want = append(want, strings.Replace(r, "eth0", "eth1", 1))
	}
	a.wants(want)
	a.reaches(b)
	// An address behind translation is refused, and what was stays.
	bad := a.host
	bad.Public4 = ip("203.0.113.1")
	if _, err := a.b.Start(t.Context(), bad, a.own); err == nil {
		t.Error("Start behind NAT has no error")
	}
	a.wants(want)
}

// TestThousand: many peers are there soon, and a change costs what it is.
func TestThousand(t *testing.T) {
	l := newLab(t)
	a := l.host(1, l.sw, none, none)
	must(t, a.AddAddr("eth0", prefix("172.16.0.1/16")))
	leases := make([]lease.Lease, 1000)
	network := dualStack("")
	network.IPv4 = lease.Range{Prefix: prefix("10.0.0.0/8"), SubnetLen: 24}
	for i := range leases {
		leases[i] = lease.Lease{
			Key:   lease.Key{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, 0, 0}), 24)},
			Attrs: lease.Attrs{BackendType: "host-gw", PublicIP: netip.AddrFrom4([4]byte{172, 16, byte(1 + i/200), byte(1 + i%200)})},
		}
		leases[i].Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(6 + i/256), byte(i), 0}), 24)
	}
	a.b = a.backendFor(network)
	a.start()
	start := time.Now()
	must(t, a.b.Sync(t.Context(), leases))
	t.Logf("1,000 peers in %v, %d writes", time.Since(start), a.b.Stats().Writes)
	if n := a.b.Stats().Writes; n != 1000 {
		t.Errorf("%d writes for 1,000 peers", n)
	}
	step := func(want uint64, what string, leases []lease.Lease) {
		t.Helper()
		before, start := a.b.Stats().Writes, time.Now()
		must(t, a.b.Sync(t.Context(), leases))
		t.Logf("%s: %v", what, time.Since(start))
		if n := a.b.Stats().Writes - before; n != want {
			t.Errorf("%s: %d writes, want %d", what, n, want)
		}
	}
	step(0, "nothing new", leases)
	step(1, "one leaves", leases[1:])
	step(1, "one joins", leases)
	leases[500].Attrs.PublicIP = ip("172.16.99.99")
	step(1, "one moves", leases)
	must(t, a.b.Close(true))
	a.b = a.backendFor(network)
	a.start()
	step(0, "restart", leases)
	start = time.Now()
	must(t, a.b.Close(false))
	t.Logf("Close: %v", time.Since(start))
	list, err := a.Netlink().RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN, Gw: net.ParseIP("172.16.1.5")}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_GW)
	if err != nil || len(list) > 0 {
		t.Errorf("after Close there are %v, %v", list, err)
	}
}
