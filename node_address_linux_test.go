package flannelkit_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

// lone is the one network interface of a process of its own: one end of a veth
// pair, with an address and the default route.
type lone struct {
	t    *testing.T
	link netlink.Link
}

func newLone(t *testing.T, addrs ...string) *lone {
	t.Helper()
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "wire"}))
	link, err := netlink.LinkByName("eth0")
	check(t, err)
	wire, err := netlink.LinkByName("wire")
	check(t, err, netlink.LinkSetUp(wire), netlink.LinkSetUp(link))
	l := &lone{t, link}
	for _, a := range addrs {
		l.add(a)
	}
	return l
}

func (l *lone) addr(s string) *netlink.Addr {
	l.t.Helper()
	a, err := netlink.ParseAddr(s)
	check(l.t, err)
	a.Flags |= unix.IFA_F_NODAD
	return a
}

// add gives it an address, and its network's last one as the default route.
func (l *lone) add(s string) {
	l.t.Helper()
	p := netip.MustParsePrefix(s)
	gw := netip.MustParseAddr("192.0.2.254")
	if p.Addr().Is6() {
		gw = netip.MustParseAddr("2001:db8::fe")
	}
	err := errors.Join(netlink.AddrAdd(l.link, l.addr(s)), netlink.RouteReplace(&netlink.Route{LinkIndex: l.link.Attrs().Index, Gw: gw.AsSlice()}))
	check(l.t, err)
}

// del takes an address away. The kernel removes the route with the last one.
func (l *lone) del(s string) {
	l.t.Helper()
	check(l.t, netlink.AddrDel(l.link, l.addr(s)))
}

func onDefaultRoute(c *flannelkit.Config) { c.Interface = flannelkit.Interface{} }

// TestNodeFollowsHost changes the interface in every way under a Node.
func TestNodeFollowsHost(t *testing.T) {
	if !alone(t) {
		return
	}
	noLeaks(t)
	eth0 := newLone(t, "192.0.2.1/24")
	store, b, log := newScripted(fakeNetwork), newFake(), &testlog.Messages{}
	var refuse atomic.Int64
	errStart := errors.New("test: address in use")
	b.on = func(_ context.Context, c call, _ int) error {
		if c.op == "start" && refuse.Add(-1) >= 0 {
			return errStart
		}
		return nil
	}
	n := joinFake(t, store, b, func(c *flannelkit.Config) { onDefaultRoute(c); c.Log = log.Logger() })
	own := n.Lease()
	if n.Host().Link != "eth0" || n.Host().Public4.String() != "192.0.2.1" {
		t.Fatalf("host %+v", n.Host())
	}
	public := func() string {
		for _, e := range entries(t, store.Store) {
			return string(e.Value)
		}
		return ""
	}

	eth0.del("192.0.2.1/24")
	eth0.add("192.0.2.8/24")
	c := b.next(t, "start", func(c call) bool { return c.host.Public4.String() == "192.0.2.8" })
	if c.own.Key != own.Key || c.own.Attrs.PublicIP.String() != "192.0.2.8" || c.own.Attrs.BackendType != "fake" || c.host.Addr4 != c.host.Public4 {
		t.Errorf("started with %+v", c)
	}
	waitFor(t, "the lease has the new address", func() bool { return strings.Contains(public(), "192.0.2.8") })
	if store.count("reconnect") == 0 {
		t.Error("the store still uses connections from the old address")
	}
	if n.Subnet() != own.Subnet || len(entries(t, store.Store)) != 1 {
		t.Errorf("subnet %v, was %v; %d leases", n.Subnet(), own.Subnet, len(entries(t, store.Store)))
	}
	waitFor(t, "the Node is ready", func() bool { return n.Ready() == nil && n.Host().Public4.String() == "192.0.2.8" })

	check(t, netlink.LinkSetMTU(eth0.link, 1400))
	b.next(t, "start", func(c call) bool { return c.host.MTU == 1400 })
	waitFor(t, "the MTU has changed", func() bool { return n.MTU() == 1400-28 })

	refuse.Store(3)
	eth0.del("192.0.2.8/24")
	eth0.add("192.0.2.9/24")
	waitFor(t, "Ready tells why the backend does not start", func() bool { return errors.Is(n.Ready(), errStart) })
	waitFor(t, "it is tried again until it works", func() bool { return n.Ready() == nil && n.Host().Public4.String() == "192.0.2.9" })
	if got := log.With("WARN", "address in use"); len(got) != 1 {
		t.Errorf("logged %d times, want once: %q", len(got), got)
	}

	eth0.del("192.0.2.9/24")
	waitFor(t, "Ready tells that there is no interface", func() bool { return n.Ready() != nil })
	if b.count("close") > 0 || n.Err() != nil {
		t.Error("the Node has ended")
	}
	eth0.add("192.0.2.9/24")
	waitFor(t, "it is back", func() bool { return n.Ready() == nil })
	check(t, n.Close())
	eth0.del("192.0.2.9/24") // nobody listens any more
}

// TestNodeDualStack: a host without IPv6 addresses joins a network with both families, and
// gets its second public address later.
func TestNodeDualStack(t *testing.T) {
	if !alone(t) {
		return
	}
	noLeaks(t)
	eth0 := newLone(t, "192.0.2.1/24")
	store, b := newScripted(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"fake"}}`), newFake()
	n := joinFake(t, store, b, onDefaultRoute)
	if !n.Subnet().IsValid() || n.Subnet6().Bits() != 64 || n.Host().Public6.IsValid() || n.Ready() != nil {
		t.Fatalf("lease %+v, host %+v, ready %v", n.Lease(), n.Host(), n.Ready())
	}
	eth0.add("2001:db8::1/64")
	c := b.next(t, "start", func(c call) bool { return c.host.Public6.IsValid() })
	if c.host.Public4.String() != "192.0.2.1" || c.host.Public6.String() != "2001:db8::1" || c.own.Attrs.PublicIPv6 != c.host.Public6 {
		t.Errorf("started with %+v", c)
	}
	waitFor(t, "the lease has both", func() bool { return n.Lease().Attrs.PublicIPv6.IsValid() && n.Ready() == nil })
	eth0.del("2001:db8::1/64")
	waitFor(t, "IPv6 is gone again", func() bool {
		return !n.Host().Public6.IsValid() && !n.Lease().Attrs.PublicIPv6.IsValid() && n.Ready() == nil
	})
}

// TestNodeIPv6Only: neither network nor host has IPv4.
func TestNodeIPv6Only(t *testing.T) {
	if !alone(t) {
		return
	}
	noLeaks(t)
	eth0 := newLone(t, "2001:db8::1/64")
	store, b := newScripted(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"fake"}}`), newFake()
	n := joinFake(t, store, b, onDefaultRoute)
	if n.Subnet().IsValid() || !n.Subnet6().IsValid() || n.Lease().Attrs.PublicIP.IsValid() || n.Lease().Attrs.PublicIPv6.String() != "2001:db8::1" {
		t.Errorf("lease %+v", n.Lease())
	}
	eth0.add("2001:db8::2/64")
	eth0.del("2001:db8::1/64")
	waitFor(t, "the new address is followed", func() bool { return n.Lease().Attrs.PublicIPv6.String() == "2001:db8::2" })
}

// TestNodeDualStackWithoutIPv4: IPv4 inside can be carried over IPv6.
func TestNodeDualStackWithoutIPv4(t *testing.T) {
	if !alone(t) {
		return
	}
	noLeaks(t)
	newLone(t, "2001:db8::1/64")
	store, b := newScripted(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"fake"}}`), newFake()
	n := joinFake(t, store, b, onDefaultRoute)
	if !n.Subnet().IsValid() || !n.Subnet6().IsValid() || n.Lease().Attrs.PublicIPv6.String() != "2001:db8::1" {
		t.Errorf("lease %+v", n.Lease())
	}
}
