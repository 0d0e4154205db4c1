package netstate

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

// TestMain has more tests run at once than there are processors: most of them wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set("6")
	}
	netlab.Main(m)
}

const vx, ext = "flannel.1", "eth0"

// A host is one namespace with an external interface eth0 (192.0.2.1/24,
// 2001:db8::1/64), whose other end is in the namespace wire.
type host struct {
	t        *testing.T
	lab      *netlab.Lab
	ns, wire *netlab.NS
	nl       *netlink.Handle

	mu    sync.Mutex
	state State // what Plan returns
	plan  func(Kernel) error
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, lab: netlab.ForTest(t, netlab.NeedVXLAN, netlab.NeedIPv6)}
	var err error
	h.ns, err = h.lab.Namespace("host")
	check(t, err)
	h.wire, err = h.lab.Namespace("wire")
	check(t, err)
	h.nl = h.ns.Netlink()
	check(t, h.lab.Veth(h.ns, ext, h.wire, ext, 1500))
	check(t, h.ns.AddAddr(ext, netip.MustParsePrefix("192.0.2.1/24")))
	check(t, h.ns.AddAddr(ext, netip.MustParsePrefix("2001:db8::1/64")))
	return h
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a Keeper in the host's namespace; log gets what it says.
func (h *host) open(log *testlog.Messages) *Keeper {
	h.t.Helper()
	k := h.tryOpen(log)
	h.t.Cleanup(func() { _ = k.Close(Leave) })
	return k
}

// tryOpen is open for a Keeper that the test closes itself.
func (h *host) tryOpen(log *testlog.Messages) (k *Keeper) {
	h.t.Helper()
	check(h.t, h.ns.Do(func() (err error) {
		k, err = Open(Config{Backend: "vxlan", Log: log.Logger(), Plan: func(k Kernel) (State, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.plan != nil {
				return h.state, h.plan(k)
			}
			return h.state, nil
		}})
		return err
	}))
	return k
}

// want says what Plan returns from now on.
func (h *host) want(s State) func() {
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.state = s
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

var vxMAC = MAC{0x7a, 1, 2, 3, 4, 5}

// vxlanLink is flannel's device.
func vxlanLink(vni int) Link {
	return Link{
		Name: vx, MTU: 1450, MAC: vxMAC, Module: "vxlan", Option: "CONFIG_VXLAN",
		New: func() (netlink.Link, error) {
			return &netlink.Vxlan{VxlanId: vni, SrcAddr: net.IPv4(192, 0, 2, 1), Port: 8472}, nil
		},
		Unfit: func(have netlink.Link) string {
			if v, ok := have.(*netlink.Vxlan); !ok || v.VxlanId != vni {
				return "it is another device"
			}
			return ""
		},
		Sysctls: [][2]string{{"ipv6/conf/*/accept_ra", "0"}},
	}
}

// base is a State without peers.
func base() State {
	return State{
		Links: []Link{vxlanLink(1)},
		Addrs: []Addr{{vx, pfx("10.244.0.0/32")}, {vx, pfx("fd00:244::/128")}},
		Watch: []string{ext},
		Area: Area{
			Networks: []Range{{Prefix: pfx("10.244.0.0/16"), SubnetLen: 24}, {Prefix: pfx("fd00:244::/48"), SubnetLen: 64}},
			Own:      []netip.Prefix{pfx("10.244.0.0/24"), pfx("fd00:244::/64")},
		},
		Prune: true,
	}
}

// sub4 and sub6 are the subnets of peer i, 1 to 255 for IPv4.
func sub4(i int) netip.Prefix { return pfx(fmt.Sprintf("10.244.%d.0/24", i)) }
func sub6(i int) netip.Prefix { return pfx(fmt.Sprintf("fd00:244:0:%x::/64", i)) }
func peerMAC(i int) MAC       { return MAC{0x7a, 0xff, 0, 0, byte(i >> 8), byte(i)} }

// withPeers adds peers as the vxlan backend does.
func withPeers(s State, peers ...int) State {
	s.Neighs, s.FDB, s.Routes = slices.Clone(s.Neighs), slices.Clone(s.FDB), slices.Clone(s.Routes)
	for _, i := range peers {
		p := fmt.Sprintf("P%d", i)
		s.FDB = append(s.FDB, FDB{vx, peerMAC(i), addr(fmt.Sprintf("192.0.2.%d", i+1)), p})
		for _, dst := range []netip.Prefix{sub4(i), sub6(i)} {
			s.Neighs = append(s.Neighs, Neigh{vx, dst.Addr(), peerMAC(i), p})
			s.Routes = append(s.Routes, Route{dst, dst.Addr(), vx, true, p})
		}
	}
	return s
}

// apply applies a State and fails the test on an error.
func (h *host) apply(k *Keeper, s State) {
	h.t.Helper()
	if err := k.Apply(context.Background(), h.want(s)); err != nil {
		h.t.Fatal(err)
	}
}

// writes says how many writes f has cost.
func writes(k *Keeper, f func()) uint64 {
	before := k.Stats().Writes
	f()
	return k.Stats().Writes - before
}

// settle waits until there are no more rounds for a while.
func settle(t *testing.T, k *Keeper) {
	t.Helper()
	for deadline, last := time.Now().Add(20*time.Second), uint64(0); ; {
		time.Sleep(400 * time.Millisecond)
		now := k.Stats().Rounds
		if now == last {
			return
		}
		if last = now; time.Now().After(deadline) {
			t.Fatal("the rounds do not end")
		}
	}
}

// within polls until ok, and returns how long that took.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			t.Errorf("%s: not within %v", what, limit)
			return limit
		}
	}
}

// kernel reads what there is, in this test's own words. What the kernel makes by
// itself is left out: link-local, multicast, local tables, and the connected routes of
// the VXLAN device.
func (h *host) kernel() map[string]bool {
	h.t.Helper()
	all := map[string]bool{}
	names := map[int]string{}
	links, err := h.nl.LinkList()
	check(h.t, err)
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		addrs, err := h.nl.AddrList(l, netlink.FAMILY_ALL)
		check(h.t, err)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				all[fmt.Sprintf("addr %v %s", a.IPNet, l.Attrs().Name)] = true
			}
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		neighs, err := h.nl.NeighListExecute(netlink.Ndmsg{Family: uint8(family)})
		check(h.t, err)
		for _, n := range neighs {
			if n.State&unix.NUD_PERMANENT == 0 || n.HardwareAddr == nil || family == unix.AF_BRIDGE && n.HardwareAddr[0]&1 != 0 {
				continue
			}
			kind := "neigh"
			if family == unix.AF_BRIDGE {
				kind = "fdb"
			}
			all[fmt.Sprintf("%s %v %v %s", kind, n.IP, n.HardwareAddr, names[n.LinkIndex])] = true
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, r := range h.routeList(family) {
			if r.Protocol != unix.RTPROT_KERNEL || names[r.LinkIndex] != vx {
				all[routeString(r, names)] = true
			}
		}
	}
	return all
}

// routeList lists all routes of a family that the kernel has not made by itself,
// connected ones included.
func (h *host) routeList(family int) (list []netlink.Route) {
	h.t.Helper()
	for range 50 {
		all, err := h.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			continue
		}
		for _, r := range all {
			if r.Table != unix.RT_TABLE_LOCAL && r.Dst != nil && !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
				list = append(list, r)
			}
		}
		return list
	}
	h.t.Fatal("no whole list of routes")
	return nil
}

func routeString(r netlink.Route, names map[int]string) string {
	return fmt.Sprintf("route %v via %v dev %s type %d metric %d table %d proto %d flags %d tos %d hops %d",
		r.Dst, r.Gw, names[r.LinkIndex], r.Type, r.Priority, r.Table, r.Protocol, r.Flags&int(netlink.FLAG_ONLINK), r.Tos, len(r.MultiPath))
}

// wanted is what kernel has for a State, in the same words.
func wanted(s State) map[string]bool {
	all := map[string]bool{}
	for _, a := range s.Addrs {
		all[fmt.Sprintf("addr %v %s", rtnl.IPNet(a.Prefix), a.Link)] = true
	}
	for _, n := range s.Neighs {
		all[fmt.Sprintf("neigh %v %v %s", n.IP, n.MAC, n.Link)] = true
	}
	for _, f := range s.FDB {
		all[fmt.Sprintf("fdb %v %v %s", f.Dst, f.MAC, f.Link)] = true
	}
	for _, r := range s.Routes {
		m, on, gw := 0, 0, "<nil>"
		if r.Dst.Addr().Is6() {
			m = 1024
		}
		if r.OnLink {
			on = unix.RTNH_F_ONLINK
		}
		if r.Gw.IsValid() {
			gw = r.Gw.String()
		}
		all[fmt.Sprintf("route %v via %v dev %s type 1 metric %d table 254 proto %d flags %d tos 0 hops 0", rtnl.IPNet(r.Dst), gw, r.Link, m, unix.RTPROT_BOOT, on)] = true
	}
	return all
}

// missing returns what of want is not in have, sorted.
func missing(want, have map[string]bool) (list []string) {
	for s := range want {
		if !have[s] {
			list = append(list, s)
		}
	}
	slices.Sort(list)
	return list
}

// exactly checks that the kernel has the State, and keeps what else there is if it
// was in foreign.
func (h *host) exactly(s State, foreign map[string]bool) {
	h.t.Helper()
	have, want := h.kernel(), wanted(s)
	for f := range foreign {
		want[f] = true
	}
	if gone := missing(want, have); len(gone) > 0 {
		h.t.Errorf("not there:\n  %s", strings.Join(gone, "\n  "))
	}
	if extra := missing(have, want); len(extra) > 0 {
		h.t.Errorf("too much:\n  %s", strings.Join(extra, "\n  "))
	}
}

// link looks a link up, nil if there is none.
func (h *host) link(name string) netlink.Link {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return nil
	}
	return l
}

// dummy makes a foreign device, up, with addresses.
func (h *host) dummy(name string, addrs ...string) netlink.Link {
	h.t.Helper()
	// A veth stands for it: not every kernel has dummy devices.
	check(h.t, h.lab.Veth(h.ns, name, h.wire, name, 1500))
	for _, a := range addrs {
		check(h.t, h.ns.AddAddr(name, pfx(a)))
	}
	return h.link(name)
}
