package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// defaultRoutes lets packets for which there is no other route leave by the
// underlay, as they do on every real host.
func (l *lab) defaultRoutes() {
	l.t.Helper()
	check(l.t, l.a.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), l.b.Addr4.Addr(), "eth0", 0))
	if l.network.IPv6.Enabled() {
		check(l.t, l.a.AddRoute(netip.MustParsePrefix("::/0"), l.b.Addr6.Addr(), "eth0", 0))
	}
}

// index is the number of an interface, 0 if there is none of that name.
func (n *node) index(dev string) int {
	l, err := n.Netlink().LinkByName(dev)
	if err != nil {
		return 0
	}
	return l.Attrs().Index
}

// tuns lists the host's flannel devices.
func (n *node) tuns() (names []string) {
	n.t.Helper()
	links, err := rtnl.Again(n.Netlink().LinkList)
	check(n.t, err)
	for _, l := range links {
		if l.Type() == "tuntap" || l.Type() == "tun" || strings.HasPrefix(l.Attrs().Name, "flannel") {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

func (n *node) wantTuns(names ...string) {
	n.t.Helper()
	if got := n.tuns(); !slices.Equal(got, names) {
		n.t.Fatalf("%s has the devices %v, not %v", n.Name(), got, names)
	}
}

// A successor takes the device over while packets flow. While nobody has it nothing
// leaves unencapsulated, and what was on the way is all that is lost.
func TestTakeOver(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second Options
		leaks         bool // the control: without the device packets do leak
		same          bool // the device is the same one
	}{
		{"persistent", Options{Persist: true}, Options{Persist: true}, false, true},
		{"by name", Options{Persist: true, Device: "overlay7"}, Options{Device: "overlay7"}, false, true},
		{"two queues", Options{Persist: true, Engines: 2}, Options{Persist: true, Engines: 2}, false, true},
		{"one queue to two", Options{Persist: true}, Options{Persist: true, Engines: 2}, false, false},
		{"two queues to one", Options{Persist: true, Engines: 3}, Options{Engines: 1}, false, false},
		{"not persistent", Options{}, Options{}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, labConfig{})
			l.a.start(tt.first)
			l.b.start(Options{})
			l.defaultRoutes()
			l.talk()
			dev := l.a.tuns()[0]
			index := l.a.index(dev)
			var streams []*stream
			for _, v6 := range l.inner() {
				streams = append(streams, startStream(t, l.a.pod(), l.b.pod(), v6), startStream(t, l.b.pod(), l.a.pod(), v6))
			}
			for _, s := range streams {
				s.flows()
			}
			sniffed := watchLeaks(t, l.a)
			check(t, l.a.b.Close(true))
			at := streams[0].sent.Load()
			waitFor(t, "datagrams are sent meanwhile", func() bool { return streams[0].sent.Load() > at+50 })
			l.a.start(tt.second)
			for _, s := range streams {
				s.flows()
				t.Logf("%d datagrams lost, 50 of them before Start (%v)", s.lost(), s)
			}
			leaked, all := sniffed.take()
			if (leaked > 0) != tt.leaks {
				t.Errorf("%d of %d packets on the underlay are not encapsulated", leaked, all)
			}
			if all == 0 {
				t.Error("nothing was seen on the underlay at all")
			}
			l.a.wantTuns(dev)
			if same := l.a.index(dev) == index; same != tt.same {
				t.Errorf("the device is the same one: %v", same)
			}
			l.a.waitState(dev, 1472)
			l.talk()
			if n := l.a.log.Count("took over"); (n > 0) != !tt.leaks {
				t.Errorf("taking over is logged %d times", n)
			}
			// Without Persist the successor's end is the device's.
			check(t, l.a.b.Close(tt.second.Persist))
			if tt.second.Persist {
				l.a.wantTuns(dev)
				check(t, l.a.DelLink(dev))
			} else {
				l.a.wantTuns()
			}
		})
	}
}

// The gap of a restart that takes no longer than it must.
func TestHandOver(t *testing.T) {
	l := newLab(t, labConfig{})
	l.startBoth(Options{Persist: true})
	for range 3 {
		out, in := startStream(t, l.a.pod(), l.b.pod(), false), startStream(t, l.b.pod(), l.a.pod(), false)
		out.flows()
		in.flows()
		check(t, l.a.b.Close(true))
		l.a.start(Options{Persist: true})
		out.flows()
		in.flows()
		t.Logf("handed over at once: %d datagrams lost on the way out, %d on the way in, at one each %v", out.lost(), in.lost(), streamPace)
	}
}

// The predecessor had another subnet, or a network of another size: what is not ours
// any more goes.
func TestTakeOverOldState(t *testing.T) {
	l := newLab(t, labConfig{})
	l.a.start(Options{Persist: true})
	check(t, l.a.b.Close(true))
	l.a.own.Subnet = netip.MustParsePrefix("10.244.9.0/24")
	l.a.own.Subnet6 = netip.MustParsePrefix("fd00:244:9::/64")
	index := l.a.index("flannel0")
	link, err := l.a.Netlink().LinkByName("flannel0")
	check(t, err, l.a.AddRoute(netip.MustParsePrefix("10.99.0.0/16"), netip.Addr{}, "flannel0", 0),
		l.a.Netlink().LinkSetMTU(link, 1300))
	l.a.start(Options{})
	if l.a.index("flannel0") != index {
		t.Error("the device was not taken over")
	}
	l.a.waitState("flannel0", 1472)
	check(t, l.a.b.Close(true)) // keep has no meaning without Persist
	l.a.wantTuns()
}

// A device in use is not touched, whatever it carries.
func TestBusyDevice(t *testing.T) {
	for _, queues := range []int{1, 2} {
		for _, persist := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d queues, persistent %v", queues, persist), func(t *testing.T) {
				l := newLab(t, labConfig{V4Only: true})
				var other *tun.Device
				check(t, l.a.Do(func() (err error) {
					other, err = tun.Open(tun.Config{Name: "flannel0", Queues: queues, Persist: persist})
					return err
				}))
				defer other.Close()
				check(t, l.a.AddAddr("flannel0", hostAddress(l.a.own.Subnet)), l.a.Up("flannel0"))

				// By name: an error. By number: another one.
				l.a.make(Options{Device: "flannel0", Engines: queues})
				if _, err := l.a.tryStart(); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "flannel0") {
					t.Errorf("the device in use by name: %v", err)
				}
				l.a.wantTuns("flannel0")
				check(t, l.a.delAddr("flannel0", hostAddress(l.a.own.Subnet)))
				l.a.start(Options{Engines: queues})
				l.b.start(Options{})
				l.a.waitState("flannel1", 1472)
				l.talk()
				check(t, l.a.b.Close(false))
				l.a.wantTuns("flannel0")

				// Its route to our network is in the way.
				check(t, l.a.AddRoute(l.Network4, netip.Addr{}, "flannel0", 0))
				l.a.make(Options{Engines: queues})
				if _, err := l.a.tryStart(); err == nil || !strings.Contains(err.Error(), "routed to flannel0") {
					t.Errorf("somebody else has the route: %v", err)
				}
				l.a.wantTuns("flannel0")
			})
		}
	}
}

// A start that fails leaves a predecessor's device as it was, so that nothing leaks.
func TestFailedTakeOver(t *testing.T) {
	l := newLab(t, labConfig{})
	l.a.start(Options{Persist: true})
	check(t, l.a.b.Close(true))
	before, _ := l.a.state("flannel0")
	index := l.a.index("flannel0")
	for _, opts := range []Options{{}, {Persist: true}} {
		blocker := l.a.listen(l.a.host.Addr4)
		l.a.make(opts)
		if _, err := l.a.tryStart(); !errors.Is(err, unix.EADDRINUSE) {
			t.Fatalf("the port is in use: %v", err)
		}
		check(t, blocker.Close(), l.a.b.Close(false))
		if after, _ := l.a.state("flannel0"); fmt.Sprint(after) != fmt.Sprint(before) || l.a.index("flannel0") != index {
			t.Errorf("the device was %+v and is %+v", before, after)
		}
		l.a.make(opts)
	}
	l.a.start(Options{})
	l.b.start(Options{})
	l.talk()
}

// A blackhole route that somebody made as a safety net is no obstacle.
func TestSafetyNet(t *testing.T) {
	l := newLab(t, labConfig{})
	for _, r := range []netip.Prefix{l.Network4, l.Network6} {
		check(t, l.a.Netlink().RouteAdd(guard(r)))
	}
	l.startBoth(Options{})
	l.talk()
}

// Two networks on both hosts, in one process.
func TestTwoNetworks(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.startBoth(Options{})
	second := func(n *node, subnet string) *node {
		other := &lab{TwoHosts: l.TwoHosts, t: t, network: lease.Network{
			IPv4: rangeOf("10.99.0.0/16", 24), BackendType: "udp", Backend: []byte(`{"Type":"udp","Port":8286}`)}}
		m := &node{Host: n.Host, t: t, lab: other, log: n.log, host: n.host, own: n.own}
		m.own.Subnet = netip.MustParsePrefix(subnet)
		m.make(Options{})
		_, err := m.tryStart()
		check(t, err)
		return m
	}
	a, b := second(l.a, "10.99.1.0/24"), second(l.b, "10.99.2.0/24")
	check(t, a.b.Sync(t.Context(), []lease.Lease{b.own}), b.b.Sync(t.Context(), []lease.Lease{a.own}))
	l.a.wantTuns("flannel0", "flannel1")
	a.waitState("flannel1", 1472)
	l.a.waitState("flannel0", 1472)
	l.talk()
	pa, pb := place{a.NS, a.own.Subnet.Addr(), netip.Addr{}}, place{b.NS, b.own.Subnet.Addr(), netip.Addr{}}
	check(t, exchange(pa, pb, false), ping(pa, pb, false))
	// The end of one is not the other's.
	check(t, l.a.b.Close(false), exchange(pa, pb, false))
	check(t, a.DelLink("flannel1"))
	a.waitState("flannel1", 1472)
	check(t, exchange(pa, pb, false))

	// The same port cannot serve two networks.
	a.lab.network.Backend = nil
	a.lab.network.IPv4 = rangeOf("10.98.0.0/16", 24)
	l.a.start(Options{})
	c := &node{Host: l.a.Host, t: t, lab: a.lab, log: l.a.log, host: l.a.host, own: l.a.own}
	c.own.Subnet = netip.MustParsePrefix("10.98.1.0/24")
	c.make(Options{Engines: 2})
	if _, err := c.tryStart(); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "8285") || !strings.Contains(err.Error(), "Port") {
		t.Errorf("two networks on one port: %v", err)
	}
	l.a.wantTuns("flannel0", "flannel1")
}

// A host that had another backend before: its routes to single subnets, as the longer
// prefixes, would take the packets. What is not of that form is somebody else's.
func TestOtherBackendsRoutes(t *testing.T) {
	l := newLab(t, labConfig{})
	link, err := l.a.Netlink().LinkByName(l.a.Underlay)
	check(t, err)
	add := func(dst, gw string, metric int) {
		t.Helper()
		check(t, l.a.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: rtnl.IPNet(prefix(dst)),
			Gw: addr(gw).AsSlice(), Priority: metric}))
	}
	add(l.b.Subnet4.String(), l.b.Addr4.Addr().String(), 0)
	add("10.244.9.0/24", "192.0.2.9", 0)
	add("10.244.10.0/24", "192.0.2.10", 50)
	add("10.244.11.0/24", "192.0.2.12", 0) // a router
	add("10.244.128.0/17", "192.0.2.12", 0)
	add("10.9.2.0/24", "192.0.2.12", 0)
	l.startBoth(Options{})
	l.talk()
	routes, err := rtnl.Again(func() ([]netlink.Route, error) { return l.a.Netlink().RouteList(link, netlink.FAMILY_V4) })
	check(t, err)
	var left []string
	for _, r := range routes {
		if r.Gw != nil {
			left = append(left, r.Dst.String())
		}
	}
	slices.Sort(left)
	if want := []string{"10.244.10.0/24", "10.244.11.0/24", "10.244.128.0/17", "10.9.2.0/24"}; !slices.Equal(left, want) {
		t.Errorf("routes left: %v, want %v", left, want)
	}
	if n := l.a.log.Count("what another backend has left"); n != 2 {
		t.Errorf("%d lines in the log, want 2", n)
	}
}
