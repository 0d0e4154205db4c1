package netstate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

// deeds are what somebody does by hand to what is a backend's.
func deeds() map[string]func(h *host) error {
	index := func(h *host) int { return h.link(vx).Attrs().Index }
	return map[string]func(h *host) error{
		"device deleted": func(h *host) error { return h.nl.LinkDel(h.link(vx)) },
		"device down":    func(h *host) error { return h.nl.LinkSetDown(h.link(vx)) },
		"device renamed": func(h *host) error {
			if err := h.nl.LinkSetDown(h.link(vx)); err != nil {
				return err
			}
			if err := h.nl.LinkSetName(h.link(vx), "other0"); err != nil {
				return err
			}
			return h.nl.LinkDel(h.link("other0"))
		},
		"address deleted": func(h *host) error {
			return h.nl.AddrDel(h.link(vx), &netlink.Addr{IPNet: rtnl.IPNet(pfx("10.244.0.0/32"))})
		},
		"address6 deleted": func(h *host) error {
			return h.nl.AddrDel(h.link(vx), &netlink.Addr{IPNet: rtnl.IPNet(pfx("fd00:244::/128"))})
		},
		"route deleted": func(h *host) error {
			return h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub4(1)), LinkIndex: index(h)})
		},
		"route6 deleted": func(h *host) error {
			return h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub6(1)), LinkIndex: index(h)})
		},
		"route changed": func(h *host) error {
			r := &netlink.Route{Dst: rtnl.IPNet(sub4(1)), Protocol: unix.RTPROT_BOOT}
			h.by(ext, "192.0.2.99")(r)
			return h.nl.RouteReplace(r)
		},
		"direct route deleted": func(h *host) error {
			return h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub4(9)), Gw: addr("192.0.2.9").AsSlice()})
		},
		"neighbour deleted": func(h *host) error {
			return h.nl.NeighDel(&netlink.Neigh{LinkIndex: index(h), Family: unix.AF_INET, IP: sub4(1).Addr().AsSlice()})
		},
		"neighbour6 deleted": func(h *host) error {
			return h.nl.NeighDel(&netlink.Neigh{LinkIndex: index(h), Family: unix.AF_INET6, IP: sub6(1).Addr().AsSlice()})
		},
		"neighbour changed": func(h *host) error {
			return h.nl.NeighSet(&netlink.Neigh{LinkIndex: index(h), Family: unix.AF_INET, IP: sub4(1).Addr().AsSlice(), State: unix.NUD_PERMANENT, HardwareAddr: []byte{2, 0, 0, 0, 0, 7}})
		},
		"entry deleted": func(h *host) error { return h.nl.NeighDel(entry(index(h), peerMAC(1), addr("192.0.2.2"))) },
		"entry changed": func(h *host) error { return h.nl.NeighSet(entry(index(h), peerMAC(1), addr("192.0.2.88"))) },
		"stray entry":   func(h *host) error { return h.nl.NeighSet(entry(index(h), peerMAC(50), addr("192.0.2.50"))) },
		"stray route": func(h *host) error {
			r := &netlink.Route{Dst: rtnl.IPNet(sub4(50)), Protocol: unix.RTPROT_BOOT}
			h.by(ext, "192.0.2.50")(r)
			return h.nl.RouteReplace(r)
		},
		"MTU":        func(h *host) error { return h.nl.LinkSetMTU(h.link(vx), 1300) },
		"small MTU":  func(h *host) error { return h.nl.LinkSetMTU(h.link(vx), 1000) }, // IPv6 goes away
		"MAC":        func(h *host) error { return h.nl.LinkSetHardwareAddr(h.link(vx), []byte{2, 0, 0, 0, 0, 9}) },
		"link flaps": func(h *host) error { _ = h.ns.Down(ext); return h.ns.Up(ext) },
		"wire flaps": func(h *host) error { _ = h.wire.Down(ext); return h.wire.Up(ext) },
		"IPv6 is off": func(h *host) error {
			_ = h.ns.Sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "1")
			return h.ns.Sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0")
		},
	}
}

// withDirect adds a peer on the external link.
func withDirect(s State) State {
	s.Routes = append(s.Routes, Route{Dst: sub4(9), Gw: addr("192.0.2.9"), Link: ext, OnLink: true, Peer: "P9"})
	return s
}

func (h *host) inPlace(s State) bool {
	l := h.link(vx)
	return l != nil && l.Attrs().MTU == s.Links[0].MTU && l.Attrs().HardwareAddr.String() == s.Links[0].MAC.String() && len(missing(wanted(s), h.kernel())) == 0
}

func TestBackAfterDeedsByHand(t *testing.T) {
	t.Parallel()
	for name, deed := range deeds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			var log testlog.Messages
			k := h.open(&log)
			want := withDirect(withPeers(base(), 1, 2))
			h.apply(k, want)
			settle(t, k)
			exact := h.kernel()
			for i := range 3 {
				if name == "link flaps" {
					exact = h.kernelWithout6(exact)
				}
				before := k.Stats()
				check(t, deed(h))
				took := within(t, 2*time.Second, name, func() bool {
					have := h.kernel()
					return h.inPlace(want) && len(missing(exact, have)) == 0 && len(missing(have, exact)) == 0
				})
				t.Logf("time %d: %v, %d rounds", i, took.Round(time.Millisecond), k.Stats().Rounds-before.Rounds)
				if t.Failed() {
					t.Log("missing:", missing(exact, h.kernel()), "extra:", missing(h.kernel(), exact), log.With(""))
				}
			}
			settle(t, k)
			if n := k.Stats().Rounds; n > 40 {
				t.Errorf("%d rounds", n)
			}
			if harmless := name == "stray entry" || name == "stray route" || name == "wire flaps"; !harmless && log.Count("WARN", "put right") == 0 {
				t.Error("the log does not say it", log.With(""))
			}
			if n := log.Count("WARN", "put right"); n > 8 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// kernelWithout6 leaves out what the kernel removes with a link that goes down, and
// which nobody puts back: its IPv6 addresses.
func (h *host) kernelWithout6(exact map[string]bool) map[string]bool {
	all := map[string]bool{}
	for s := range exact {
		if s != "addr 2001:db8::1/64 eth0" && s != "route 2001:db8::/64 via <nil> dev eth0 type 1 metric 256 table 254 proto 2 flags 0 tos 0 hops 0" {
			all[s] = true
		}
	}
	return all
}

// The external link is down for a while: what needs it fails meanwhile, the rest is
// there, and all is back soon after.
func TestExternalLinkDownForAWhile(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	want := withDirect(withPeers(base(), 1, 2))
	h.apply(k, want)
	settle(t, k)
	check(t, h.ns.Down(ext))
	within(t, 2*time.Second, "an error while the link is down", func() bool { return k.Err() != nil })
	rounds := k.Stats().Rounds
	time.Sleep(4 * time.Second)
	if n := k.Stats().Rounds - rounds; n > 8 {
		t.Errorf("%d rounds in 4 s", n)
	}
	if n := log.Count("can't be put right"); n != 1 {
		t.Errorf("said %d times: %v", n, log.With("can't"))
	}
	check(t, h.ns.Up(ext))
	t.Log(within(t, 2*time.Second, "back", func() bool { return h.inPlace(want) }))
	within(t, 2*time.Second, "no error", func() bool { return k.Err() == nil })
	within(t, 2*time.Second, "the log says that it is over", func() bool { return log.Count("at last") == 1 })
}

// A watched link that is not there yet is waited for.
func TestExternalLinkComesLater(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	want := base()
	want.Watch = []string{"late0"}
	h.apply(k, want)
	settle(t, k)
	rounds := k.Stats().Rounds
	h.dummy("late0")
	within(t, 2*time.Second, "looks", func() bool { return k.Stats().Rounds > rounds })
	settle(t, k)
	rounds = k.Stats().Rounds
	check(t, h.ns.AddAddr("late0", pfx("198.51.100.1/24")))
	within(t, 2*time.Second, "looks again", func() bool { return k.Stats().Rounds > rounds })
}

// Somebody who deletes in a loop costs a round a second.
func TestDeletingInALoop(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	want := withPeers(base(), 1, 2)
	h.apply(k, want)
	settle(t, k)
	del := func() {
		_ = h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub4(1)), Table: unix.RT_TABLE_MAIN})
		_ = h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub4(2)), Table: unix.RT_TABLE_MAIN})
		time.Sleep(3 * time.Millisecond)
	}
	for start := time.Now(); time.Since(start) < 3*time.Second; {
		del()
	}
	before, said := k.Stats().Rounds, log.Count("put right")
	const long = 8
	for start := time.Now(); time.Since(start) < long*time.Second; {
		del()
	}
	n, lines := k.Stats().Rounds-before, log.Count("put right")-said
	t.Logf("%d rounds and %d lines in %d s, %d lines before that", n, lines, long, said)
	if n > long+2 {
		t.Errorf("%d rounds in %d s", n, long)
	}
	if lines > 2 {
		t.Errorf("%d lines in %d s say the same", lines, long)
	}
	within(t, 2*time.Second, "back in the end", func() bool { return h.inPlace(want) })
}

// Without news there are no rounds.
func TestIdle(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	h.apply(k, withDirect(withPeers(base(), 1, 2, 3)))
	settle(t, k)
	before := k.Stats()
	time.Sleep(6 * time.Second)
	if after := k.Stats(); after != before {
		t.Errorf("%+v, and then %+v", before, after)
	}
	for range 5 {
		k.Wake()
	}
	within(t, time.Second, "wakes", func() bool { return k.Stats().Rounds > before.Rounds })
	settle(t, k)
	if n := k.Stats().Rounds - before.Rounds; n > 3 {
		t.Errorf("%d rounds of five wakes", n)
	}
}

// quiet is what a busy host does all the time, and what is no reason to look.
func TestOthersTrafficIsNoReasonToLook(t *testing.T) {
	for name, deed := range map[string]func(h *host, i int) error{
		"neighbours of the external link": func(h *host, i int) error {
			ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			return h.nl.NeighSet(&netlink.Neigh{LinkIndex: h.link(ext).Attrs().Index, State: unix.NUD_REACHABLE, Family: unix.AF_INET, IP: ip.AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 1, byte(i)}})
		},
		"routes elsewhere": func(h *host, i int) error {
			r := &netlink.Route{Dst: rtnl.IPNet(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)), LinkIndex: h.link("pod0").Attrs().Index, Scope: netlink.SCOPE_LINK}
			return h.nl.RouteReplace(r)
		},
		"addresses elsewhere": func(h *host, i int) error {
			return h.nl.AddrReplace(h.link("pod0"), &netlink.Addr{IPNet: rtnl.IPNet(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 1}), 32))})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.dummy("pod0", "10.244.0.1/24")
			var log testlog.Messages
			k := h.open(&log)
			h.apply(k, withPeers(base(), 1))
			settle(t, k)
			before := k.Stats().Rounds
			for i := range 200 {
				check(t, deed(h, i+2))
				time.Sleep(5 * time.Millisecond)
			}
			if n := k.Stats().Rounds - before; n > 3 {
				t.Errorf("%d rounds for 200 changes in about a second that are none of ours", n)
			}
		})
	}
}
