package vxlan

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRepair: whatever somebody removes or changes by hand is put back, without a
// call. The times are printed; 2 s is what the package promises, not what is asserted,
// since machines may be slow.
func TestRepair(t *testing.T) {
	c := newCluster(t, 2, "46", `{"Type":"vxlan"}`)
	c.up()
	a, b := c.hosts[0], c.hosts[1]
	c.reach(a, b)
	want := a.entries()
	mac := net.HardwareAddr(a.be.macs[v4][:])
	sound := func() bool {
		x, x6 := a.vxlan("flannel.1"), a.vxlan("flannel-v6.1")
		return x != nil && x.Flags&net.FlagUp != 0 && x.MTU == 1450 && x.HardwareAddr.String() == mac.String() &&
			x6 != nil && x6.Flags&net.FlagUp != 0 && x6.MTU == 1430 &&
			slices.Equal(a.addrs("flannel.1"), []string{"10.244.1.0/32"}) && slices.Equal(a.entries(), want)
	}
	for _, tt := range damages(a, b) {
		if err := tt.do(); err != nil && !strings.Contains(tt.name, "another's") { // there, we may be faster
			t.Fatalf("%s: %v", tt.name, err)
		}
		if sound() { // the kernel had done it, so that this is after the repair
			t.Logf("%s: put right at once", tt.name)
			continue
		}
		took := await(t, "put right after "+tt.name, sound)
		t.Logf("%s: put right within %v", tt.name, took.Round(time.Millisecond))
		c.reach(a, b)
	}
	if err := a.be.Probe(); err != nil {
		t.Error(err)
	}
}

// A damage is something that somebody does by hand.
type damage struct {
	name string
	do   func() error
}

// damages are done to a, whose peer is b.
func damages(a, b *host) []damage {
	nl := a.Netlink()
	dev := func() netlink.Link { return a.vxlan("flannel.1") }
	dev6 := func() netlink.Link { return a.vxlan("flannel-v6.1") }
	return []damage{
		{"the device is deleted", func() error { return nl.LinkDel(dev()) }},
		{"the device for IPv6 is deleted", func() error { return nl.LinkDel(dev6()) }},
		{"the device is set down", func() error { return nl.LinkSetDown(dev()) }},
		{"the device for IPv6 is set down", func() error { return nl.LinkSetDown(dev6()) }},
		{"the MTU is changed", func() error { return nl.LinkSetMTU(dev(), 1300) }},
		{"the MTU falls below IPv6's", func() error { return nl.LinkSetMTU(dev6(), 1000) }},
		{"the Ethernet address is changed", func() error { return nl.LinkSetHardwareAddr(dev(), net.HardwareAddr{2, 9, 9, 9, 9, 9}) }},
		{"the address is deleted", func() error {
			return nl.AddrDel(dev(), &netlink.Addr{IPNet: ipNet("10.244.1.0/32")})
		}},
		{"an address is added", func() error {
			return nl.AddrAdd(dev(), &netlink.Addr{IPNet: ipNet("10.244.77.1/24")})
		}},
		{"the route is deleted", func() error { return nl.RouteDel(&netlink.Route{Dst: ipNet("10.244.2.0/24")}) }},
		{"the route for IPv6 is deleted", func() error {
			return nl.RouteDel(&netlink.Route{Dst: ipNet("fd00:244:2::/48"), LinkIndex: dev6().Attrs().Index})
		}},
		{"the neighbour is deleted", func() error {
			return nl.NeighDel(&netlink.Neigh{LinkIndex: dev().Attrs().Index, Family: netlink.FAMILY_V4, IP: net.IPv4(10, 244, 2, 0)})
		}},
		{"the neighbour for IPv6 is deleted", func() error {
			return nl.NeighDel(&netlink.Neigh{LinkIndex: dev6().Attrs().Index, Family: netlink.FAMILY_V6, IP: net.ParseIP("fd00:244:2::")})
		}},
		{"the neighbour is changed", func() error {
			return nl.NeighSet(&netlink.Neigh{LinkIndex: dev().Attrs().Index, Family: netlink.FAMILY_V4, State: unix.NUD_PERMANENT,
				IP: net.IPv4(10, 244, 2, 0), HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}})
		}},
		{"the forwarding entry is deleted", func() error {
			return nl.NeighDel(fdbEntry(dev(), b.be.macs[v4][:], net.IPv4(192, 0, 2, 2)))
		}},
		{"the forwarding entry is changed", func() error {
			return nl.NeighSet(fdbEntry(dev(), b.be.macs[v4][:], net.IPv4(192, 0, 2, 99)))
		}},
		{"a forwarding entry is added", func() error {
			return nl.NeighAppend(fdbEntry(dev(), net.HardwareAddr{2, 9, 9, 9, 9, 9}, net.IPv4(192, 0, 2, 99)))
		}},
		{"the device is another's", func() error {
			if err := nl.LinkDel(dev()); err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "flannel.1"
			return nl.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
		}},
	}
}

// TestExternalInterface: the kernel removes the devices together with the external
// interface. When that is there again, Start is called again, and all is as it was.
func TestExternalInterface(t *testing.T) {
	c := newCluster(t, 2, "4", `{"Type":"vxlan"}`)
	c.up()
	a, b := c.hosts[0], c.hosts[1]
	c.reach(a, b)
	must(t, a.DelLink("eth0"))
	await(t, "the device's loss is reported", func() bool { return a.be.Probe() != nil })
	wire := c.namespace("wire")
	must(t, c.lab.Veth(a.NS, "eth0", wire, "a", 1500))
	must(t, c.lab.Veth(b.NS, "eth1", wire, "b", 1500))
	must(t, wire.Bridge("br0", "a", "b"))
	must(t, b.DelLink("eth0"))
	must(t, a.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")))
	must(t, b.AddAddr("eth1", netip.MustParsePrefix("192.0.2.2/24")))
	b.host.Link = "eth1"
	for _, h := range c.hosts {
		must(t, h.Do(func() error { _, err := h.be.Start(context.Background(), h.host, h.own); return err }))
	}
	c.reach(a, b)
	c.reach(b, a)
	await(t, "no error any more", func() bool { return a.be.Probe() == nil && b.be.Probe() == nil })
}

// TestMoved: a host's address changes. Its own second Start and its peers' Sync make
// it reachable there, with the Ethernet address that it had.
func TestMoved(t *testing.T) {
	c := newCluster(t, 2, "46", `{"Type":"vxlan"}`)
	c.up()
	a, b := c.hosts[0], c.hosts[1]
	c.reach(a, b)
	macs := a.be.macs
	a.give("eth0", netip.MustParsePrefix("192.0.2.101/24"))
	a.give("eth0", netip.MustParsePrefix("2001:db8::101/64"))
	must(t, a.Do(func() error { _, err := a.be.Start(context.Background(), a.host, a.own); return err }))
	before := b.be.Stats().Writes
	c.meet()
	if n := b.be.Stats().Writes - before; n != 2 { // a forwarding entry for each family
		t.Errorf("%d changes for a peer's new address, want 2", n)
	}
	c.reach(a, b)
	if x := a.vxlan("flannel.1"); x == nil || x.SrcAddr.String() != "192.0.2.101" || x.HardwareAddr.String() != macs[v4].String() {
		t.Errorf("the device is %+v", x)
	}
	if x := a.vxlan("flannel-v6.1"); x == nil || x.SrcAddr.String() != "2001:db8::101" || x.HardwareAddr.String() != macs[v6].String() {
		t.Errorf("the device for IPv6 is %+v", x)
	}
}

// addrs lists a link's addresses of all scopes but the link's own.
func (h *host) addrs(link string) (all []string) {
	l, err := h.Netlink().LinkByName(link)
	if err != nil {
		return nil
	}
	list, _ := h.Netlink().AddrList(l, netlink.FAMILY_ALL)
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			all = append(all, a.IPNet.String())
		}
	}
	slices.Sort(all)
	return all
}

func ipNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP, _, _ = net.ParseCIDR(s)
	return n
}

func fdbEntry(l netlink.Link, mac net.HardwareAddr, dst net.IP) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: dst, HardwareAddr: mac}
}
