package main

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// TestCleanupTunnels: devices and routes that kernel backends have left, flannel's own
// included, and nothing that is another daemon's or the administrator's.
func TestCleanupTunnels(t *testing.T) {
	lab := netlab.ForTest(t, netlab.NeedVXLAN)
	ns, err := lab.Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	other, err := lab.Namespace("other")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Veth(ns, "eth0", other, "eth0", 1500); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	vxlan := func(name string, id int, addr string) {
		t.Helper()
		l := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: id, Port: 8472}
		must(netlink.LinkAdd(l))
		if addr != "" {
			must(netlink.AddrAdd(l, &netlink.Addr{IPNet: rtnl.IPNet(netip.MustParsePrefix(addr))}))
		}
		must(netlink.LinkSetUp(l))
	}
	routes := func() (all []string) {
		list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		must(err)
		for _, r := range list {
			if r.Gw != nil {
				all = append(all, r.Dst.String())
			}
		}
		slices.Sort(all)
		return all
	}
	must(ns.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")))
	must(ns.Do(func() error {
		o := parse(t, nil, "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
		must(newSubnetFile(o.subnetFile, discardLog()).keep(newFakeNode(), true))
		vxlan("flannel.1", 1, "10.5.34.0/32") // this host's
		vxlan("flannel.2", 2, "10.5.77.0/32") // of a subnet that it had before
		vxlan("flannel.3", 3, "")             // half made
		vxlan("flannel.xbc614e", 12345678, "10.5.34.0/32")
		vxlan("flannel6.2711", 10001, "")
		vxlan("flannel.4", 4, "10.6.1.0/32")    // another daemon's
		vxlan("flannel.five", 5, "10.5.9.0/32") // somebody's
		vxlan("vx0", 6, "10.5.8.0/32")
		for dst, r := range map[string]netlink.Route{
			"10.5.35.0/24": {Gw: net.IPv4(192, 0, 2, 2)}, "10.5.36.0/24": {Gw: net.IPv4(192, 0, 2, 2), Priority: 100},
			"10.5.34.128/25": {Gw: net.IPv4(192, 0, 2, 2)}, "10.5.128.0/17": {Gw: net.IPv4(192, 0, 2, 3)}, "10.6.2.0/24": {Gw: net.IPv4(192, 0, 2, 3)},
		} {
			r.Dst = rtnl.IPNet(netip.MustParsePrefix(dst))
			must(netlink.RouteAdd(&r))
		}
		var log lockedBuffer
		must(cleanHost(o, newLogger(&log, o), noRules))
		if got, want := names(t), []string{"eth0", "flannel.4", "flannel.five", "lo", "vx0"}; !slices.Equal(got, want) {
			t.Errorf("interfaces left: %v, want %v", got, want)
		}
		if got, want := routes(), []string{"10.5.128.0/17", "10.5.34.128/25", "10.5.36.0/24", "10.6.2.0/24"}; !slices.Equal(got, want) {
			t.Errorf("routes left: %v, want %v", got, want)
		}
		if n := strings.Count(log.String(), "what=route name=\"10.5.35.0/24 via 192.0.2.2 through eth0\""); n != 1 {
			t.Errorf("the log does not tell of the route:\n%s", &log)
		}
		// Without a subnet file devices are known by their name alone.
		must(cleanHost(o, discardLog(), noRules))
		if got, want := names(t), []string{"eth0", "flannel.five", "lo", "vx0"}; !slices.Equal(got, want) {
			t.Errorf("interfaces left: %v, want %v", got, want)
		}
		return nil
	}))
}
