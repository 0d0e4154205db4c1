package extif

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// A lab is a host with the interfaces a, b and c, each with a neighbour.
type lab struct {
	*netlab.NS
	t    *testing.T
	peer *netlab.NS
}

func newLab(t *testing.T) *lab {
	t.Helper()
	netlab.Require(t)
	l, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &lab{t: t}
	if h.NS, err = l.Namespace("host"); err == nil {
		h.peer, err = l.Namespace("peer")
	}
	h.must(err)
	for i, name := range []string{"a", "b", "c"} {
		h.must(l.Veth(h.NS, name, h.peer, name, 1400+i))
	}
	return h
}

func (h *lab) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *lab) index(dev string) int {
	h.t.Helper()
	l, err := h.Netlink().LinkByName(dev)
	h.must(err)
	return l.Attrs().Index
}

// addrs gives interfaces addresses: "a 10.0.1.1/24".
func (h *lab) addrs(all ...string) {
	h.t.Helper()
	for _, s := range all {
		dev, p, _ := strings.Cut(s, " ")
		h.must(h.AddAddr(dev, netip.MustParsePrefix(p)))
	}
}

// addr adds or changes an address with flags and lifetimes in seconds.
func (h *lab) addr(dev, prefix string, flags, preferred, valid int) {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	h.must(err)
	a.Flags, a.PreferedLft, a.ValidLft = flags, preferred, valid
	l, err := h.Netlink().LinkByName(dev)
	h.must(err)
	h.must(h.Netlink().AddrReplace(l, a))
}

func (h *lab) delAddr(dev, prefix string) {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	h.must(err)
	l, err := h.Netlink().LinkByName(dev)
	h.must(err)
	h.must(h.Netlink().AddrDel(l, a))
}

// route adds a default route by way of a gateway, or one with several next hops.
func (h *lab) route(metric int, src string, hops ...string) *netlink.Route {
	h.t.Helper()
	r := &netlink.Route{Priority: metric, Table: unix.RT_TABLE_MAIN, Src: net.ParseIP(src)}
	for _, s := range hops {
		dev, gw, _ := strings.Cut(s, " ")
		n := &netlink.NexthopInfo{LinkIndex: h.index(dev), Gw: net.ParseIP(gw)}
		if strings.Contains(gw, ":") {
			r.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		} else {
			r.Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		}
		r.LinkIndex, r.Gw = n.LinkIndex, n.Gw
		r.MultiPath = append(r.MultiPath, n)
	}
	if len(hops) == 1 {
		r.MultiPath = nil
	} else {
		r.LinkIndex, r.Gw = 0, nil
	}
	h.must(h.Netlink().RouteAdd(r))
	return r
}

func (h *lab) choose(cfg Config, want string) (host backend.Host, err error) {
	h.t.Helper()
	h.must(h.Do(func() error {
		host, err = Choose(h.t.Context(), cfg, strings.Contains(want, "4"), strings.Contains(want, "6"))
		return nil
	}))
	return host, err
}

// expect chooses and compares; an "error: " as in chooseCase.
func (h *lab) expect(cfg Config, want, got string) {
	h.t.Helper()
	host, err := h.choose(cfg, want)
	if part, ok := strings.CutPrefix(got, "error: "); ok {
		if err == nil || !strings.Contains(err.Error(), part) {
			h.t.Errorf("%+v: got %s, %v, want an error with %q", cfg, result(host), err, part)
		}
		return
	}
	if err != nil {
		h.t.Errorf("%+v: %v", cfg, err)
		return
	}
	if result(host) != got {
		h.t.Errorf("%+v: got %s, want %s", cfg, result(host), got)
	}
	if want := map[string]int{"a": 1400, "b": 1401, "c": 1402}[host.Link]; host.MTU != want || host.LinkIndex != h.index(host.Link) {
		h.t.Errorf("%+v: %+v, want MTU %d and index %d", cfg, host, want, h.index(host.Link))
	}
}

func TestLabDefaultRoutes(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24", "b 10.0.2.1/24", "c 10.0.3.1/24")
	h.expect(Config{}, "4", "error: there is none for IPv4 in the main table")
	h.expect(Config{CanReach: "198.51.100.1"}, "4", "error: network is unreachable")

	// The route of the higher metric is the older one.
	h.route(600, "", "a 10.0.1.254")
	h.expect(Config{}, "4", "a 10.0.1.1 - 10.0.1.1 -")
	low := h.route(100, "", "b 10.0.2.254")
	h.expect(Config{}, "4", "b 10.0.2.1 - 10.0.2.1 -")
	h.expect(Config{CanReach: "198.51.100.1"}, "4", "b 10.0.2.1 - 10.0.2.1 -")
	h.expect(Config{CanReach: "10.0.3.77"}, "4", "c 10.0.3.1 - 10.0.3.1 -")
	h.expect(Config{Names: []string{"{{ GetPrivateIP }}"}}, "4", "b 10.0.2.1 - 10.0.2.1 -")

	// Routes of other tables and types are none of ours.
	h.must(h.Netlink().RouteAdd(&netlink.Route{Dst: low.Dst, Table: 77, LinkIndex: h.index("c"), Scope: netlink.SCOPE_LINK}))
	h.must(h.Netlink().RouteAdd(&netlink.Route{Dst: low.Dst, Priority: 7, Type: unix.RTN_UNREACHABLE}))
	h.expect(Config{}, "4", "b 10.0.2.1 - 10.0.2.1 -")

	h.must(h.Netlink().RouteDel(low))
	h.addrs("b 10.0.2.9/24")
	h.route(50, "10.0.2.9", "b 10.0.2.254")
	h.expect(Config{}, "4", "b 10.0.2.9 - 10.0.2.9 -")
}

func TestLabMultipathDefaultRoute(t *testing.T) {
	h := newLab(t)
	h.addrs("b 10.0.2.1/24", "c 10.0.3.1/24")
	h.route(0, "", "c 10.0.3.254", "b 10.0.2.254")
	h.expect(Config{}, "4", "c 10.0.3.1 - 10.0.3.1 -")

	// A host that announces its address by BGP has it on lo, and none on its links.
	h = newLab(t)
	h.addrs("lo 198.51.100.9/32")
	onlink := func(dev, gw string) *netlink.NexthopInfo {
		return &netlink.NexthopInfo{LinkIndex: h.index(dev), Gw: net.ParseIP(gw), Flags: int(netlink.FLAG_ONLINK)}
	}
	h.must(h.Netlink().RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Src: net.ParseIP("198.51.100.9"),
		MultiPath: []*netlink.NexthopInfo{onlink("b", "10.0.9.1"), onlink("a", "10.0.9.2")}}))
	h.expect(Config{}, "4", "b 198.51.100.9 - 198.51.100.9 -")
	h.expect(Config{Names: []string{"a"}}, "4", "a 198.51.100.9 - 198.51.100.9 -")
}

func TestLabDualStack(t *testing.T) {
	netlab.Require(t, netlab.NeedIPv6)
	h := newLab(t)
	h.addrs("a 10.0.1.1/24", "a 2001:db8:1::1/64", "b 10.0.2.1/24", "b 2001:db8:2::1/64")
	h.route(0, "", "a 10.0.1.254")
	h.expect(Config{}, "46", "a 10.0.1.1 2001:db8:1::1 10.0.1.1 2001:db8:1::1") // no IPv6 route needed
	h.expect(Config{}, "6", "error: there is none for IPv6")

	six := h.route(1024, "", "b 2001:db8:2::fe")
	h.expect(Config{}, "6", "b - 2001:db8:2::1 - 2001:db8:2::1")
	h.expect(Config{}, "46", "error: that of IPv4 leads to a, that of IPv6 to b (say which interface to use with --iface)")
	h.expect(Config{Names: []string{"b"}}, "46", "b 10.0.2.1 2001:db8:2::1 10.0.2.1 2001:db8:2::1")
	h.expect(Config{CanReach: "2001:db8:ff::1"}, "46", "b 10.0.2.1 2001:db8:2::1 10.0.2.1 2001:db8:2::1")

	h.route(512, "", "a 2001:db8:1::fe")
	h.expect(Config{}, "46", "a 10.0.1.1 2001:db8:1::1 10.0.1.1 2001:db8:1::1")
	h.must(h.Netlink().RouteDel(six))
	h.route(256, "", "b 2001:db8:2::fe", "a 2001:db8:1::fe")
	h.expect(Config{}, "6", "b - 2001:db8:2::1 - 2001:db8:2::1")
	h.expect(Config{}, "46", "a 10.0.1.1 2001:db8:1::1 10.0.1.1 2001:db8:1::1")
}

func TestLabAddresses(t *testing.T) {
	netlab.Require(t, netlab.NeedIPv6)
	h := newLab(t)
	// Deprecated, from DHCP, and for want of anything better.
	h.addr("a", "10.0.1.1/24", 0, 0, 3600)
	h.expect(Config{Names: []string{"a"}}, "4", "error: 10.0.1.1/24 (deprecated)")
	h.expect(Config{Names: []string{"10.0.1.1"}}, "4", "a 10.0.1.1 - 10.0.1.1 -")
	h.addr("a", "10.0.9.2/24", 0, 1800, 3600)
	h.addrs("a 10.0.8.1/32", "a 10.0.7.1/24", "a 169.254.7.7/16")
	h.expect(Config{Names: []string{"a"}}, "4", "a 10.0.9.2 - 10.0.9.2 -")
	h.delAddr("a", "10.0.9.2/24")
	h.expect(Config{Names: []string{"a"}}, "4", "a 10.0.7.1 - 10.0.7.1 -")

	h.must(h.Sysctl("net/ipv6/conf/b/use_tempaddr", "2"))
	h.addr("b", "2001:db8:2::1/64", unix.IFA_F_MANAGETEMPADDR, 1800, 3600)
	if list, err := h.Netlink().AddrList(nil, netlink.FAMILY_V6); err != nil || !hasTemporary(list) {
		t.Errorf("the kernel has made no temporary address: %v, %v", list, err)
	}
	h.expect(Config{Names: []string{"b"}}, "6", "b - 2001:db8:2::1 - 2001:db8:2::1")
	h.addrs("b 2001:db8:2::2/64")
	h.expect(Config{Names: []string{"b"}}, "6", "b - 2001:db8:2::2 - 2001:db8:2::2")
	h.addr("b", "2001:db8:2::2/64", 0, 0, 3600)
	h.expect(Config{Names: []string{"b"}}, "6", "b - 2001:db8:2::1 - 2001:db8:2::1")
	h.expect(Config{Names: []string{"c"}}, "6", "error: c has no usable IPv6 address")
	h.must(h.Sysctl("net/ipv6/conf/c/accept_dad", "1"))
	h.must(h.Sysctl("net/ipv6/conf/c/dad_transmits", "1"))
	h.addr("c", "2001:db8:3::1/64", 0, 1800, 3600)
	h.expect(Config{Names: []string{"c"}}, "6", "c - 2001:db8:3::1 - 2001:db8:3::1") // waits for it
	h.expect(Config{Regexps: []string{"^fe80"}}, "6", "error: no interface has such an address")
}

func hasTemporary(list []netlink.Addr) bool {
	for _, a := range list {
		if a.Flags&unix.IFA_F_TEMPORARY != 0 {
			return true
		}
	}
	return false
}

func TestLabAltName(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24")
	l, err := h.Netlink().LinkByName("a")
	h.must(err)
	h.must(h.Netlink().LinkAddAltName(l, "enp129s0f1np1"))
	h.expect(Config{Names: []string{"enp129s0f1np1"}}, "4", "a 10.0.1.1 - 10.0.1.1 -")
}

// A minimal image has no program ip, and go-sockaddr would run it.
func TestLabTemplatesWithoutIproute2(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	h := newLab(t)
	h.addrs("a 10.0.1.1/24", "b 10.0.2.1/24", "c 8.8.4.1/24")
	h.route(600, "", "a 10.0.1.254")
	h.route(100, "", "b 10.0.2.254")
	for _, tmpl := range []string{
		"{{ GetPrivateIP }}",
		`{{ GetPrivateInterfaces | limit 1 | attr "name" }}`,
		`{{ GetDefaultInterfaces | attr "address" }}`,
		`{{ GetInterfaceIP "b" }}`,
		`{{ GetAllInterfaces | include "network" "10.0.2.0/24" | attr "name" }}`,
	} {
		h.expect(Config{Names: []string{tmpl}}, "4", "b 10.0.2.1 - 10.0.2.1 -")
		if strings.Contains(tmpl, "IP") {
			h.expect(Config{PublicIP: tmpl}, "4", "b 10.0.2.1 - 10.0.2.1 -")
		}
	}
	h.expect(Config{PublicIP: "{{ GetPublicIP }}"}, "4", "c 8.8.4.1 - 8.8.4.1 -")
}

func TestChooseLeavesNothingOpen(t *testing.T) {
	h := newLab(t)
	h.addrs("a 10.0.1.1/24")
	h.route(0, "", "a 10.0.1.254")
	h.expect(Config{}, "4", "a 10.0.1.1 - 10.0.1.1 -")
	before := openFiles(t)
	for range 20 {
		h.expect(Config{Names: []string{"{{ GetPrivateIP }}"}}, "4", "a 10.0.1.1 - 10.0.1.1 -")
		if _, err := Choose(context.Background(), Config{Names: []string{"none"}}, true, false); err == nil {
			t.Fatal("there is an interface called none")
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
