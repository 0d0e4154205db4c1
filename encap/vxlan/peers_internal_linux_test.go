package vxlan

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
)

// TestPeers: peers join, leave, and change their Ethernet address; each costs what it
// must and no more.
func TestPeers(t *testing.T) {
	c := newCluster(t, 3, "46", `{"Type":"vxlan"}`)
	for _, h := range c.hosts {
		h.start()
	}
	a, b, d := c.hosts[0], c.hosts[1], c.hosts[2]
	b.sync(a, d)
	d.sync(a, b)
	sync := func(what string, want uint64, peers ...*host) {
		t.Helper()
		before := a.be.Stats().Writes
		a.sync(peers...)
		if n := a.be.Stats().Writes - before; n != want {
			t.Errorf("%s: %d changes, want %d", what, n, want)
		}
	}
	sync("none", 0)
	sync("one joins", 6, b)
	c.reach(a, b)
	sync("another joins", 6, b, d)
	c.reach(a, d)
	c.reach(a, b)
	sync("one leaves", 6, d)
	if err := udpTrip(a, v4, netip.AddrPortFrom(b.in[v4], 9), 0); err == nil {
		t.Error("a peer that has left is reached")
	}
	if got := a.entries(); slices.ContainsFunc(got, func(e string) bool {
		return strings.Contains(e, "10.244.2.") || strings.Contains(e, "fd00:244:2:") || strings.Contains(e, "192.0.2.2 ")
	}) {
		t.Errorf("of a peer that has left there is %q", got)
	}
	c.reach(a, d)
	sync("it is back", 6, d, b)
	c.reach(a, b)

	// Its machine is replaced: another Ethernet address.
	must(t, b.be.Close(false))
	before := b.own.Attrs.BackendData
	must(t, b.Do(func() error {
		l, err := b.Netlink().LinkByName("eth0")
		if err != nil {
			return err
		}
		x := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: 1, Port: 8472, VtepDevIndex: l.Attrs().Index, SrcAddr: net.IPv4(192, 0, 2, 2)}
		x.Name, x.HardwareAddr = "flannel.1", net.HardwareAddr{2, 7, 7, 7, 7, 7}
		return b.Netlink().LinkAdd(x)
	}))
	b.start()
	b.sync(a, d)
	if string(before) == string(b.own.Attrs.BackendData) {
		t.Fatal("the Ethernet address has not changed")
	}
	sync("another Ethernet address", 3, d, b)
	c.reach(a, b)
}

// TestClone: a peer with this host's Ethernet address, or another's, is left out with
// a reason, which is logged once; the others are served.
func TestClone(t *testing.T) {
	c := newCluster(t, 3, "4", `{"Type":"vxlan"}`)
	c.up()
	a, b, d := c.hosts[0], c.hosts[1], c.hosts[2]
	leases := leasesOf([]*host{b, d})
	clone := leases[1]
	clone.Key = lease.Key{Subnet: netip.MustParsePrefix("10.244.66.0/24")}
	clone.Attrs.PublicIP = netip.MustParseAddr("192.0.2.66")
	clone.Revision = 1 // before the real one
	twin := clone
	twin.Key = lease.Key{Subnet: netip.MustParsePrefix("10.244.67.0/24")}
	twin.Attrs.PublicIP = netip.MustParseAddr("192.0.2.67")
	twin.Attrs.BackendData = backendData(1, a.be.macs[v4])
	leases = append(leases, clone, twin)
	before := a.be.Stats().Writes
	for range 3 {
		err := a.be.Sync(context.Background(), leases)
		if err == nil || !strings.Contains(err.Error(), "192.0.2.66") || !strings.Contains(err.Error(), "192.0.2.67") {
			t.Fatalf("Sync = %v", err)
		}
	}
	if n := a.be.Stats().Writes - before; n != 0 {
		t.Errorf("%d changes", n)
	}
	if n := a.log.Count("is also that of 10.244.3.0-24 at 192.0.2.3", "delete the device flannel.1"); n != 1 {
		t.Errorf("the clone is logged %d times", n)
	}
	if n := a.log.Count("is also this host's"); n != 1 {
		t.Errorf("the twin is logged %d times", n)
	}
	c.reach(a, b)
	c.reach(a, d)
}

// TestKeys: every key of the configuration makes devices that carry packets, also
// with names that flannel would fail with.
func TestKeys(t *testing.T) {
	for _, tt := range []struct {
		name, part, dev4, dev6 string
		is                     func(*netlink.Vxlan) bool
	}{
		{"large VNI", `{"Type":"vxlan","VNI":16777215,"Port":4789}`, "flannel.xffffff", "flannel6.ffffff",
			func(x *netlink.Vxlan) bool { return x.VxlanId == 16777215 && x.Port == 4789 }},
		{"GBP and learning", `{"Type":"vxlan","GBP":true,"Learning":true}`, "flannel.1", "flannel-v6.1",
			func(x *netlink.Vxlan) bool { return x.GBP && x.Learning }},
		{"MTU", `{"Type":"vxlan","MTU":1400}`, "flannel.1", "flannel-v6.1",
			func(x *netlink.Vxlan) bool { return x.MTU == 1350 || x.MTU == 1330 }},
		{"too much", `{"Type":"vxlan","MTU":9000}`, "flannel.1", "flannel-v6.1",
			func(x *netlink.Vxlan) bool { return x.MTU == 1450 || x.MTU == 1430 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, 2, "46", tt.part)
			c.up()
			c.reach(c.hosts[0], c.hosts[1])
			c.reach(c.hosts[1], c.hosts[0])
			for _, h := range c.hosts {
				for _, dev := range []string{tt.dev4, tt.dev6} {
					if x := h.vxlan(dev); x == nil || !tt.is(x) || x.Learning != strings.Contains(tt.name, "learning") {
						t.Errorf("%s is %+v", dev, x)
					}
				}
			}
			if n := c.hosts[0].log.Count("WARN", "MTU"); (n == 1) != (tt.name == "too much") {
				t.Errorf("%d warnings of the MTU", n)
			}
		})
	}
}

// TestNAT: a host whose public address is not its own sends from its own. When it
// becomes its own, that is the source.
func TestNAT(t *testing.T) {
	c := newCluster(t, 2, "4", `{"Type":"vxlan"}`)
	a, b := c.hosts[0], c.hosts[1]
	public := netip.MustParseAddr("198.51.100.7")
	a.host.Public4, a.own.Attrs.PublicIP = public, public
	c.up()
	if x := a.vxlan("flannel.1"); x == nil || x.SrcAddr.String() != "192.0.2.1" {
		t.Fatalf("the source is %v", x)
	}
	mac := a.vxlan("flannel.1").HardwareAddr.String()
	must(t, a.AddAddr("lo", netip.PrefixFrom(public, 32)))
	must(t, b.AddRoute(netip.PrefixFrom(public, 32), a.host.Addr4, "eth0", 0))
	a.sync(b) // which looks again
	if x := a.vxlan("flannel.1"); x == nil || x.SrcAddr.String() != public.String() || x.HardwareAddr.String() != mac {
		t.Errorf("the source is %v", x)
	}
	c.reach(b, a)
	c.reach(a, b)
}

// TestDirectRouting: three hosts on two links with a router between. The peer on the
// same link has a plain route, the other one VXLAN; when the routes of the host
// change, so do they.
func TestDirectRouting(t *testing.T) {
	for _, families := range []string{"4", "46"} {
		t.Run(families, func(t *testing.T) { directRouting(t, families) })
	}
}

func directRouting(t *testing.T, families string) {
	c := newCluster(t, 2, families, `{"Type":"vxlan","DirectRouting":true}`)
	a, b := c.hosts[0], c.hosts[1]
	far := c.behindRouter()
	c.up()
	for _, from := range c.hosts {
		for _, to := range c.hosts {
			if from != to {
				c.reach(from, to)
			}
		}
	}
	direct, inside := "10.244.2.0/24 via 192.0.2.2 dev eth0", "10.244.2.0/24 via 10.244.2.0 dev flannel.1"
	has := func(h *host, e string) bool { return slices.Contains(h.entries(), e) }
	if !has(a, direct) || !has(a, "10.244.3.0/24 via 10.244.3.0 dev flannel.1") || has(a, inside) {
		t.Errorf("routes %q", a.entries())
	}
	if families == "46" && (!has(a, "fd00:244:2::/48 via 2001:db8::2 dev eth0") || !has(a, "fd00:244:3::/48 via fd00:244:3:: dev flannel-v6.1")) {
		t.Errorf("routes %q", a.entries())
	}
	for _, e := range a.entries() { // a direct peer has nothing but its route
		if strings.HasPrefix(e, "flannel") && (strings.Contains(e, " 192.0.2.2 ") || strings.Contains(e, "10.244.2.0")) {
			t.Errorf("a direct peer has %q", e)
		}
	}

	// The host's route to the peer leads through the router from now on; the peer
	// goes on to send directly, and both are heard, though the filters are strict.
	for _, h := range c.hosts {
		must(t, h.Sysctl("net/ipv4/conf/flannel.1/rp_filter", "1"))
	}
	must(t, a.be.Sync(context.Background(), leasesOf([]*host{b, far})))
	must(t, b.be.Sync(context.Background(), leasesOf([]*host{a, far})))
	must(t, a.AddRoute(netip.MustParsePrefix("192.0.2.2/32"), netip.MustParseAddr("192.0.2.254"), "eth0", 0))
	took := await(t, "the route follows", func() bool { return has(a, inside) && !has(a, direct) })
	t.Logf("inside VXLAN after %v", took.Round(time.Millisecond))
	c.reach(a, b)
	c.reach(b, a)
	must(t, a.DelRoute(netip.MustParsePrefix("192.0.2.2/32"), netip.MustParseAddr("192.0.2.254"), "eth0"))
	took = await(t, "the route follows back", func() bool { return has(a, direct) && !has(a, inside) })
	t.Logf("directly after %v", took.Round(time.Millisecond))
	c.reach(a, b)

	// A successor finds both kinds of routes as they must be.
	must(t, a.be.Close(true))
	a.start()
	a.sync(b, far)
	if n := a.be.Stats().Writes; n != 0 {
		t.Errorf("%d changes after a restart", n)
	}
	before := a.be.Stats().Writes
	a.sync(far)
	if has(a, direct) {
		t.Error("the direct route of a peer that left is there")
	}
	if n := a.be.Stats().Writes - before; families == "4" && n != 1 {
		t.Errorf("%d changes for a direct peer that leaves", n)
	}
}

// behindRouter adds a third host on a link of its own, 198.51.100.3/24 and
// 2001:db8:3::3/64, behind a router with .254.
func (c *cluster) behindRouter() *host {
	t := c.t
	t.Helper()
	router, wire, ns := c.namespace("router"), c.namespace("wire"), c.namespace("host3")
	must(t, c.lab.Veth(router, "near", wire, "r", 1500))
	must(t, c.lab.Veth(ns, "eth0", router, "far", 1500))
	must(t, router.Sysctl("net/ipv4/ip_forward", "1"))
	must(t, router.Sysctl("net/ipv4/conf/all/send_redirects", "0"))
	must(t, router.Sysctl("net/ipv4/conf/near/send_redirects", "0"))
	must(t, router.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	must(t, router.AddAddr("near", netip.MustParsePrefix("192.0.2.254/24")))
	must(t, router.AddAddr("far", netip.MustParsePrefix("198.51.100.254/24")))
	must(t, router.AddAddr("near", netip.MustParsePrefix("2001:db8::254/64")))
	must(t, router.AddAddr("far", netip.MustParsePrefix("2001:db8:3::254/64")))
	for i, h := range c.hosts { // the switch of newCluster is full: a second one in a row
		port := []string{"a", "b"}[i]
		must(t, h.DelLink("eth0"))
		must(t, c.lab.Veth(h.NS, "eth0", wire, port, 1500))
		h.give("eth0", netip.PrefixFrom(h.host.Addr4, 24))
		must(t, h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.254"), "eth0", 0))
		if h.host.Addr6.IsValid() {
			h.give("eth0", netip.PrefixFrom(h.host.Addr6, 64))
			must(t, h.AddRoute(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8::254"), "eth0", 0))
		}
	}
	must(t, wire.Bridge("br0", "a", "b", "r"))
	far := c.add(ns, 3)
	far.give("eth0", netip.MustParsePrefix("198.51.100.3/24"))
	must(t, ns.AddRoute(netip.MustParsePrefix("192.0.2.0/25"), netip.MustParseAddr("198.51.100.254"), "eth0", 0))
	if c.network.IPv6.Enabled() {
		far.give("eth0", netip.MustParsePrefix("2001:db8:3::3/64"))
		must(t, ns.AddRoute(netip.MustParsePrefix("2001:db8::/65"), netip.MustParseAddr("2001:db8:3::254"), "eth0", 0))
	}
	return far
}

// TestTxChecksum: checksum offload is as chosen, put back when somebody changes it,
// and left alone where nothing was chosen.
func TestTxChecksum(t *testing.T) {
	const feature = "tx-checksum-ip-generic"
	for _, choice := range []Checksum{Off, On, Auto} {
		t.Run(choice.String(), func(t *testing.T) {
			c := newCluster(t, 2, "46", `{"Type":"vxlan"}`)
			c.opts.TxChecksum = choice
			c.up()
			a := c.hosts[0]
			state := func(dev string) bool {
				f, err := a.Features(dev)
				must(t, err)
				return f[feature]
			}
			for _, dev := range []string{"flannel.1", "flannel-v6.1"} {
				want := choice != Off
				if state(dev) != want {
					t.Errorf("%s: %s is %t", dev, feature, !want)
				}
				err := a.SetFeatures(dev, map[string]bool{feature: !want})
				if choice == Auto {
					must(t, err)
					continue
				}
				// The repair can be faster than the second look that says so.
				if err != nil && !(strings.Contains(err.Error(), "stays") && state(dev) == want) {
					t.Fatal(err)
				}
				took := await(t, "put back", func() bool { return state(dev) == want })
				t.Logf("%s: put back within %v", dev, took.Round(time.Millisecond))
			}
			c.reach(a, c.hosts[1])
			c.reach(c.hosts[1], a)
			if choice == Auto && !spoilsChecksums(kernelRelease()) {
				a.sync(c.hosts[1])
				if state("flannel.1") {
					t.Error("somebody's choice is undone, and nothing was chosen here")
				}
			}
		})
	}
}
