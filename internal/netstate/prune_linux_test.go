package netstate

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

// route is one as ip-route(8) makes it, by default with the protocol boot.
func (h *host) route(dst string, change ...func(r *netlink.Route)) {
	h.t.Helper()
	r := &netlink.Route{Dst: rtnl.IPNet(pfx(dst)), Protocol: unix.RTPROT_BOOT, Table: unix.RT_TABLE_MAIN}
	for _, c := range change {
		c(r)
	}
	if err := h.nl.RouteAppend(r); err != nil {
		h.t.Fatalf("%v: %v", r, err)
	}
}

func (h *host) by(link string, gw string) func(r *netlink.Route) {
	return func(r *netlink.Route) {
		r.LinkIndex = h.link(link).Attrs().Index
		if gw != "" {
			r.Gw, r.Flags = net.ParseIP(gw), int(netlink.FLAG_ONLINK)
		} else if r.Dst.IP.To4() != nil {
			r.Scope = netlink.SCOPE_LINK
		}
	}
}

func table(n int) func(r *netlink.Route)      { return func(r *netlink.Route) { r.Table = n } }
func withMetric(n int) func(r *netlink.Route) { return func(r *netlink.Route) { r.Priority = n } }
func proto(n netlink.RouteProtocol) func(r *netlink.Route) {
	return func(r *netlink.Route) { r.Protocol = n }
}
func ofType(n int) func(r *netlink.Route)      { return func(r *netlink.Route) { r.Type = n } }
func (h *host) neigh(link, ip string, mac MAC) { h.neighState(link, ip, mac, unix.NUD_PERMANENT) }
func (h *host) neighState(link, ip string, mac MAC, state int) {
	h.t.Helper()
	check(h.t, h.nl.NeighSet(&netlink.Neigh{LinkIndex: h.link(link).Attrs().Index, State: state, Family: family(addr(ip)), IP: addr(ip).AsSlice(), HardwareAddr: mac[:]}))
}

func (h *host) addrOn(link, p string) {
	h.t.Helper()
	check(h.t, h.ns.AddAddr(link, pfx(p)))
}

// leftovers are a predecessor's, which Prune removes.
func leftovers(h *host) {
	h.addrOn(vx, "10.244.7.0/32")
	h.addrOn(vx, "10.244.8.1/24")
	h.addrOn(vx, "fd00:244:0:7::/128")
	h.neigh(vx, "10.244.9.0", peerMAC(9))
	h.neigh(vx, "fd00:244:0:9::", peerMAC(9))
	check(h.t, h.nl.NeighSet(entry(h.link(vx).Attrs().Index, peerMAC(9), addr("192.0.2.10"))))
	h.route("10.244.9.0/24", h.by(vx, "10.244.9.0"))
	h.route("fd00:244:0:9::/64", h.by(vx, "fd00:244:0:9::"))
	h.route("10.244.128.0/17", h.by(vx, ""))
	h.route("10.244.10.0/24", h.by(ext, "192.0.2.11")) // host-gw's
	h.route("fd00:244:0:a::/64", h.by(ext, "2001:db8::11"))
}

// strangers are entries that are nobody's business.
func strangers(h *host) {
	h.dummy("pod0", "10.244.0.1/24", "fd00:244::1/64", "10.99.0.1/24")
	h.dummy("odd0", "10.244.200.1/24", "fd00:244:0:c8::1/64")
	h.addrOn(vx, "10.9.9.9/32")
	h.addrOn(vx, "fd99::9/128")
	h.neigh(vx, "10.9.9.10", peerMAC(3))
	h.neigh(ext, "192.0.2.77", peerMAC(3))
	h.neigh("pod0", "10.244.0.9", peerMAC(3))
	h.route("10.244.0.128/25", h.by("pod0", ""))                                  // inside our own
	h.route("10.244.0.77/32", h.by("pod0", "10.244.0.9"))                         // inside our own, via a gateway
	h.route("10.244.20.0/24", h.by("pod0", ""))                                   // of a subnet's length, without a gateway
	h.route("10.244.21.0/25", h.by(ext, "192.0.2.10"))                            // of another length
	h.route("10.244.32.0/20", h.by(ext, "192.0.2.10"))                            // of another length
	h.route("10.244.22.0/24", h.by(ext, "192.0.2.10"), withMetric(100))           // another metric
	h.route("10.244.23.0/24", h.by(ext, "192.0.2.10"), table(100))                // another table
	h.route("10.244.27.0/24", h.by(ext, "192.0.2.10"), proto(unix.RTPROT_STATIC)) // a network manager's
	h.route("10.244.28.0/24", h.by(ext, "192.0.2.10"))                            // by the router to all else
	h.route("10.245.1.0/24", h.by(ext, "192.0.2.10"))                             // outside of the area
	h.route("10.0.0.0/8", h.by(ext, "192.0.2.10"))                                // around the area
	h.route("0.0.0.0/0", h.by(ext, "192.0.2.10"))                                 // around all
	h.route("10.77.0.0/16", h.by(vx, ""))                                         // through the device, outside of the area
	h.route("10.244.24.0/24", h.by(vx, "10.244.24.0"), withMetric(50))            // the device's, with another metric
	h.route("10.244.25.0/24", ofType(unix.RTN_BLACKHOLE))                         // leads nowhere
	h.route("10.244.26.0/24", ofType(unix.RTN_UNREACHABLE))                       // leads nowhere
	h.route("10.244.64.0/18", ofType(unix.RTN_PROHIBIT))                          // leads nowhere
	h.route("fd00:244:0:20::/64", h.by("pod0", ""))                               // as above
	h.route("fd00:244:0:21::/65", h.by(ext, "2001:db8::10"))                      //
	h.route("fd00:244:0:22::/64", h.by(ext, "2001:db8::10"), table(100))          //
	h.route("fd00:244:0:23::/64", h.by(ext, "2001:db8::10"), withMetric(100))     //
	h.route("fd00:244:0:0:8000::/65", h.by("pod0", ""))                           //
	h.route("fd00:245::/64", h.by(ext, "2001:db8::10"))                           //
	h.route("::/0", h.by(ext, "2001:db8::10"))                                    //
	h.route("fd00:244:0:25::/64", ofType(unix.RTN_BLACKHOLE))                     //
}

func TestPruneRemovesLeftoversOnly(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	h.apply(k, base())
	strangers(h)
	before := h.kernel()
	for s := range wanted(base()) {
		delete(before, s)
	}
	want := base()
	want.Prune = false
	h.apply(k, want) // first without leftovers to prune
	leftovers(h)
	full := h.kernel()
	k2 := h.open(&log)
	check(t, k.Close(Leave))
	h.apply(k2, want)
	for _, s := range missing(full, h.kernel()) {
		t.Error("removed without Prune:", s)
	}
	want.Prune = true
	h.apply(k2, want)
	h.exactly(want, before)
	settle(t, k2)
	if n := writes(k2, func() { h.apply(k2, want) }); n != 0 {
		t.Errorf("%d writes when all is pruned", n)
	}
	check(t, k2.Close(Remove))
	have := h.kernel()
	for _, s := range missing(before, have) {
		if !strings.Contains(s, vx) { // these go with the device
			t.Error("Remove took", s)
		}
	}
	for _, s := range missing(have, before) {
		t.Error("Remove left", s)
	}
}

// draw draws a wanted state of at most a few peers, some of them reached directly.
func draw(rt *rapid.T, direct6 bool) (s State) {
	s = base()
	var all []int
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 0, 4, rapid.ID[int]).Draw(rt, "peers") {
		if rapid.IntRange(0, 3).Draw(rt, "direct") > 0 {
			all = append(all, i)
			continue
		}
		s.Routes = append(s.Routes, Route{Dst: sub4(i), Gw: addr(fmt.Sprintf("192.0.2.%d", i+1)), Link: ext})
		if direct6 {
			s.Routes = append(s.Routes, Route{Dst: sub6(i), Gw: addr(fmt.Sprintf("2001:db8::%d", i+1)), Link: ext})
		}
	}
	s = withPeers(s, all...)
	for i := range s.FDB {
		if rapid.Bool().Draw(rt, "elsewhere") {
			s.FDB[i].Dst = addr("192.0.2.200")
		}
	}
	return s
}

// spoil changes at random what is the backend's.
func spoil(rt *rapid.T, h *host, direct6 bool) {
	i := rapid.IntRange(1, 6).Draw(rt, "peer")
	l := h.link(vx)
	if l == nil {
		return
	}
	x := l.Attrs().Index
	r4, r6 := &netlink.Route{Dst: rtnl.IPNet(sub4(i)), Table: unix.RT_TABLE_MAIN}, &netlink.Route{Dst: rtnl.IPNet(sub6(i)), Table: unix.RT_TABLE_MAIN}
	switch rapid.IntRange(0, 9).Draw(rt, "deed") {
	case 0:
		_ = h.nl.RouteDel(r4)
	case 1:
		_ = h.nl.RouteDel(r6)
	case 2:
		h.by(vx, "10.244.66.0")(r4)
		_ = h.nl.RouteReplace(r4)
	case 3:
		if !direct6 {
			return
		}
		h.by(ext, "2001:db8::66")(r6)
		_ = h.nl.RouteReplace(r6)
	case 4:
		_ = h.nl.NeighSet(entry(x, peerMAC(i), addr("192.0.2.66")))
	case 5:
		_ = h.nl.NeighDel(entry(x, peerMAC(i), addr(fmt.Sprintf("192.0.2.%d", i+1))))
	case 6:
		_ = h.nl.NeighDel(&netlink.Neigh{LinkIndex: x, Family: unix.AF_INET, IP: sub4(i).Addr().AsSlice()})
	case 7:
		_ = h.nl.LinkSetDown(l)
	case 8:
		_ = h.nl.AddrDel(l, &netlink.Addr{IPNet: rtnl.IPNet(netip.MustParsePrefix("10.244.0.0/32"))})
	case 9:
		_ = h.nl.LinkDel(l)
	}
}

// Whatever there was, one Apply makes it what it shall be, and leaves strangers alone.
func TestConvergesFromAnywhere(t *testing.T) { convergesFromAnywhere(t, false) }

// The same where IPv6 routes move between the external link and the device.
func TestConvergesFromAnywhereWithDirectIPv6(t *testing.T) { convergesFromAnywhere(t, true) }

func convergesFromAnywhere(t *testing.T, direct6 bool) {
	t.Parallel()
	h := newHost(t)
	h.dummy("pod0", "10.244.0.1/24", "fd00:244::1/64")
	h.route("10.244.20.0/24", h.by("pod0", ""))
	h.route("10.244.21.0/25", h.by(ext, "192.0.2.10"))
	h.route("10.244.22.0/24", h.by(ext, "192.0.2.10"), withMetric(100))
	h.route("fd00:244:0:21::/65", h.by(ext, "2001:db8::10"))
	h.route("10.244.25.0/24", ofType(unix.RTN_BLACKHOLE))
	h.neigh(ext, "192.0.2.77", peerMAC(3))
	foreign := h.kernel()
	rapid.Check(t, func(rt *rapid.T) {
		var log testlog.Messages
		k := h.tryOpen(&log)
		defer k.Close(Leave)
		for range rapid.IntRange(1, 3).Draw(rt, "steps") {
			want := draw(rt, direct6)
			for range rapid.IntRange(0, 4).Draw(rt, "deeds") {
				spoil(rt, h, direct6)
			}
			if err := k.Apply(context.Background(), h.want(want)); err != nil {
				rt.Fatal("apply: ", err)
			}
			have, all := h.kernel(), wanted(want)
			for f := range foreign {
				all[f] = true
			}
			if gone, extra := missing(all, have), missing(have, all); len(gone)+len(extra) > 0 {
				rt.Fatalf("not there:\n%s\ntoo much:\n%s", strings.Join(gone, "\n"), strings.Join(extra, "\n"))
			}
			if n := writes(k, func() { check(t, k.Apply(context.Background(), nil)) }); n != 0 {
				rt.Fatalf("%d writes with all in place", n)
			}
		}
	})
}

// A network inside this one, with a tunnel of its own on the same host, keeps its routes;
// those of a predecessor's tunnel, which has this host's address, go.
func TestTunnelOfANetworkInsideThisOne(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	for i, addr := range []string{"10.244.99.0/32", "10.244.0.0/32"} {
		l := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("flannel.%d", 7+i)}, VxlanId: 7 + i, Port: 8500 + i}
		check(t, h.nl.LinkAdd(l))
		h.addrOn(l.Name, addr)
		check(t, h.nl.LinkSetUp(l))
	}
	h.route("10.244.98.0/24", h.by("flannel.7", "10.244.98.0"))
	h.route("10.244.97.0/24", h.by("flannel.8", "10.244.97.0"))
	k := h.open(&log)
	h.apply(k, base())
	have := h.kernel()
	left := func(dst string) bool {
		for s := range have {
			if strings.HasPrefix(s, "route "+dst) {
				return true
			}
		}
		return false
	}
	if !left("10.244.98.0/24") {
		t.Error("the other network's route is removed")
	}
	if left("10.244.97.0/24") {
		t.Error("the predecessor's route is still there")
	}
	if n := log.Count("not made here"); n != 1 {
		t.Errorf("%d lines about what was removed, want 1: %v", n, log.With(""))
	}
}
