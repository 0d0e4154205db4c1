package extif

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// uses compares what the underlay of a host on interface a uses.
func (h *lab) uses(host backend.Host, want ...string) {
	h.t.Helper()
	host.Link, host.LinkIndex = "a", h.index("a")
	h.must(h.Do(func() error {
		got, err := Underlay(host)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			h.t.Errorf("got %v, %v, want %v", got, err, want)
		}
		return nil
	}))
}

// to adds a route of the main table: "10.0.0.0/8 a", "10.0.0.0/8 a 10.1.2.1".
func (h *lab) to(route string, edit ...func(*netlink.Route)) {
	h.t.Helper()
	f := append(strings.Fields(route), "")
	_, dst, err := net.ParseCIDR(f[0])
	h.must(err)
	r := &netlink.Route{Dst: dst, LinkIndex: h.index(f[1]), Gw: net.ParseIP(f[2])}
	if r.Gw == nil && dst.IP.To4() != nil {
		r.Scope = netlink.SCOPE_LINK
	}
	for _, e := range edit {
		e(r)
	}
	h.must(h.Netlink().RouteAdd(r))
}

func TestLabUnderlay(t *testing.T) {
	h := newLab(t)
	h.uses(backend.Host{})
	h.addrs("a 10.1.2.11/24", "a 10.1.2.12/24", "a 10.1.8.1/32")
	h.addr("a", "10.1.4.1/24", unix.IFA_F_NOPREFIXROUTE, 0, 0)
	want := []string{"10.1.2.0/24", "10.1.2.11/32", "10.1.2.12/32", "10.1.4.1/32", "10.1.8.1/32"}
	h.uses(backend.Host{Addr4: netip.MustParseAddr("10.1.2.11")}, want...)

	// An overlay's devices do not count, whatever they are called: here is flannel's
	// vxlan, whose routers are subnets of peers, and the bridge with this host's own.
	h.must(h.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	h.addrs("docker0 10.5.34.1/24", "b 10.5.34.0/32")
	docker0, err := h.Netlink().LinkByName("docker0")
	h.must(err)
	h.must(h.Netlink().LinkSetUp(docker0))
	onlink := func(r *netlink.Route) { r.Flags = int(netlink.FLAG_ONLINK) }
	h.to("10.5.7.0/24 b 10.5.7.0", onlink)
	h.to("10.9.0.0/16 docker0 10.5.34.7")
	h.to("10.5.0.0/16 b")
	h.uses(backend.Host{}, want...)

	// What is not for packets to one host, or not of the main table.
	h.to("10.7.0.0/24 a", func(r *netlink.Route) { r.Type, r.LinkIndex, r.Scope = unix.RTN_UNREACHABLE, 0, netlink.SCOPE_UNIVERSE })
	h.to("10.7.1.0/24 a", func(r *netlink.Route) { r.Table = 77 })
	h.to("0.0.0.0/0 a", func(r *netlink.Route) { r.Priority = 9 })
	h.uses(backend.Host{}, want...)

	// Routers: those behind the interface, and of every default route.
	h.addrs("c 10.6.3.1/24")
	h.to("10.5.8.0/24 a 10.1.2.8") // host-gw's
	h.to("10.8.8.0/24 c 10.6.3.8")
	h.to("0.0.0.0/0 c 10.6.3.254")
	h.to("10.2.0.0/15 a")
	h.must(h.Netlink().RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 8, 9, 0).To4(), Mask: net.CIDRMask(24, 32)}, MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: h.index("a"), Gw: net.IPv4(10, 1, 2, 9)}, {LinkIndex: h.index("c"), Gw: net.IPv4(10, 6, 3, 9)}}}))
	h.uses(backend.Host{Public4: netip.MustParseAddr("203.0.113.1"), Addr4: netip.MustParseAddr("198.51.100.7")},
		"10.1.2.0/24", "10.1.2.8/32", "10.1.2.9/32", "10.1.2.11/32", "10.1.2.12/32", "10.1.4.1/32", "10.1.8.1/32", "10.2.0.0/15",
		"10.6.3.254/32", "198.51.100.7/32", "203.0.113.1/32")
}

func TestLabUnderlayOtherForms(t *testing.T) {
	netlab.Require(t, netlab.NeedIPv6)
	h := newLab(t)
	// A point-to-point link, and IPv6 with a router that has a link-local address.
	ptp, err := netlink.ParseAddr("10.3.0.1/32")
	h.must(err)
	ptp.Peer = &net.IPNet{IP: net.IPv4(10, 4, 0, 0).To4(), Mask: net.CIDRMask(30, 32)}
	a, err := h.Netlink().LinkByName("a")
	h.must(err)
	h.must(h.Netlink().AddrAdd(a, ptp))
	h.addrs("a 2001:db8:1::1/64", "b 2001:db8:2::1/64")
	h.to("::/0 a fe80::1")
	h.to("fd00:5::/48 a 2001:db8:1::9")
	h.to("fd00:6::/64 a")
	h.uses(backend.Host{Addr6: netip.MustParseAddr("2001:db8:1::1")},
		"10.3.0.1/32", "10.4.0.0/30", "2001:db8:1::/64", "2001:db8:1::1/128", "2001:db8:1::9/128", "fd00:6::/64")

	// RFC 5549: an IPv4 route by way of an IPv6 router.
	r := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 7, 0, 0).To4(), Mask: net.CIDRMask(24, 32)}, LinkIndex: h.index("a"),
		Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("2001:db8:1::8")}}
	h.must(h.Netlink().RouteAdd(r))
	h.uses(backend.Host{}, "10.3.0.1/32", "10.4.0.0/30", "2001:db8:1::/64", "2001:db8:1::1/128", "2001:db8:1::8/128", "2001:db8:1::9/128", "fd00:6::/64")
}

func TestUnderlayLeavesNothingOpen(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.1.2.11/24")
	before := openFiles(t)
	for range 20 {
		h.uses(backend.Host{}, "10.1.2.0/24", "10.1.2.11/32")
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d before", after, before)
	}
}
