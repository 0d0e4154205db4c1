package netstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMakesEverythingAndThenNothing(t *testing.T) {
	h := newHost(t)
	foreign := h.kernel()
	var log testlog.Messages
	k := h.open(&log)
	if s := k.Stats(); s != (Stats{}) || k.Err() != nil {
		t.Errorf("before the first Apply: %+v, %v", s, k.Err())
	}
	want := withPeers(base(), 1, 2, 3)
	h.apply(k, want)
	h.exactly(want, foreign)
	a := h.link(vx).Attrs()
	if a.MTU != 1450 || a.HardwareAddr.String() != vxMAC.String() || a.Flags&net.FlagUp == 0 {
		t.Errorf("the device: %+v", a)
	}
	if v, err := h.ns.ReadSysctl("net/ipv6/conf/" + vx + "/accept_ra"); err != nil || v != "0" {
		t.Errorf("accept_ra %q, %v", v, err)
	}
	if n := writes(k, func() { h.apply(k, want); h.apply(k, want) }); n != 0 {
		t.Errorf("%d writes with all in place", n)
	}
	settle(t, k)
	if n := log.Count("put right"); n != 0 || k.Stats().Rounds > 10 {
		t.Errorf("%d false alarms, %d rounds: %v", n, k.Stats().Rounds, log.With("put right"))
	}
	check(t, k.Close(Leave))
	k2 := h.open(&log)
	if h.apply(k2, want); k2.Stats().Writes != 0 {
		t.Errorf("a successor that finds all in place wrote %d times", k2.Stats().Writes)
	}
	h.exactly(want, foreign)
}

// Every kind of entry must compare equal to itself in the next round.
func TestEveryKindOfEntryIsRecognised(t *testing.T) {
	kinds := map[string]func(s *State){
		"nothing":             func(s *State) { s.Addrs = nil },
		"wide addresses":      func(s *State) { s.Addrs = []Addr{{vx, pfx("10.244.0.1/24")}, {vx, pfx("fd00:244::1/64")}} },
		"the network's width": func(s *State) { s.Addrs = []Addr{{vx, pfx("10.244.0.0/16")}, {vx, pfx("fd00:244::1/48")}} },
		"outside of the area": func(s *State) { s.Addrs = []Addr{{vx, pfx("10.9.0.1/24")}, {vx, pfx("fd77::1/64")}} },
		"v4 link route":       func(s *State) { s.Routes = []Route{{Dst: sub4(1), Link: vx}} },
		"v6 link route":       func(s *State) { s.Routes = []Route{{Dst: sub6(1), Link: vx}} },
		"network link route": func(s *State) {
			s.Routes = []Route{{Dst: pfx("10.244.0.0/16"), Link: vx}, {Dst: pfx("fd00:244::/48"), Link: vx}}
		},
		"v4 host route":        func(s *State) { s.Routes = []Route{{Dst: pfx("10.244.9.9/32"), Link: vx}} },
		"v6 host route":        func(s *State) { s.Routes = []Route{{Dst: pfx("fd00:244:0:9::9/128"), Link: vx}} },
		"v4 route by gateway":  func(s *State) { s.Routes = []Route{{Dst: sub4(1), Gw: addr("192.0.2.7"), Link: ext}} },
		"v6 route by gateway":  func(s *State) { s.Routes = []Route{{Dst: sub6(1), Gw: addr("2001:db8::7"), Link: ext}} },
		"v4 gateway, onlink":   func(s *State) { s.Routes = []Route{{sub4(1), addr("192.0.2.7"), ext, true, ""}} },
		"v6 gateway, onlink":   func(s *State) { s.Routes = []Route{{sub6(1), addr("2001:db8::7"), ext, true, ""}} },
		"v6 link-local router": func(s *State) { s.Routes = []Route{{Dst: sub6(1), Gw: addr("fe80::7"), Link: ext}} },
		"strange gateway":      func(s *State) { s.Routes = []Route{{sub4(1), addr("203.0.113.7"), ext, true, ""}} },
		"v4 on the device":     func(s *State) { s.Routes = []Route{{sub4(1), sub4(1).Addr(), vx, true, ""}} },
		"v6 on the device":     func(s *State) { s.Routes = []Route{{sub6(1), sub6(1).Addr(), vx, true, ""}} },
		"outside routes": func(s *State) {
			s.Routes = []Route{{Dst: pfx("10.9.0.0/16"), Link: vx}, {Dst: pfx("fd77::/32"), Link: vx}}
		},
		"neighbours": func(s *State) {
			s.Neighs = []Neigh{{vx, sub4(1).Addr(), peerMAC(1), ""}, {vx, sub6(1).Addr(), peerMAC(1), ""}, {vx, addr("10.9.9.9"), peerMAC(2), ""}}
		},
		"forwarding": func(s *State) {
			s.FDB = []FDB{{vx, peerMAC(1), addr("192.0.2.2"), ""}, {vx, peerMAC(2), addr("192.0.2.2"), ""}}
		},
		"forwarding by IPv6": func(s *State) {
			s.Links[0].New = func() (netlink.Link, error) {
				return &netlink.Vxlan{VxlanId: 1, SrcAddr: net.ParseIP("2001:db8::1"), Port: 8472}, nil
			}
			s.FDB = []FDB{{vx, peerMAC(1), addr("2001:db8::2"), ""}}
		},
		"no prune": func(s *State) { *s = withPeers(*s, 1, 2); s.Prune = false },
	}
	for name, change := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.open(&log)
			want := base()
			change(&want)
			h.apply(k, want)
			for _, s := range missing(wanted(want), h.kernel()) {
				t.Error("not there:", s)
			}
			if n := writes(k, func() { h.apply(k, want); settle(t, k) }); n != 0 {
				t.Errorf("%d writes in later rounds", n)
			}
			if log.Count("put right") != 0 {
				t.Error(log.With("put right"))
			}
			check(t, k.Close(Remove))
			have := h.kernel()
			for _, s := range append(missing(have, foreign), missing(foreign, have)...) {
				t.Error("Remove did not restore:", s)
			}
		})
	}
}

func TestChangeCostsItsEntries(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	foreign := h.kernel()
	var log testlog.Messages
	k := h.open(&log)
	want := withPeers(base(), 1, 2, 3)
	h.apply(k, want)
	steps := []struct {
		name string
		next State
		cost uint64
	}{
		{"one joins", withPeers(base(), 1, 2, 3, 4), 5},
		{"one leaves", withPeers(base(), 1, 3, 4), 5},
		{"order", withPeers(base(), 4, 3, 1), 0},
		{"no peers", base(), 15},
		{"all again", want, 15},
		{"other end", func() State { s := withPeers(base(), 1, 2, 3); s.FDB[1].Dst = addr("192.0.2.99"); return s }(), 1},
		{"other MAC", func() State {
			s := withPeers(base(), 1, 2, 3)
			s.FDB[1].MAC, s.Neighs[2].MAC, s.Neighs[3].MAC = peerMAC(77), peerMAC(77), peerMAC(77)
			return s
		}(), 4}, // the new MAC's entry, two neighbours, and the old MAC's goes
		{"that again", want, 4},
	}
	for _, s := range steps {
		cost := writes(k, func() { h.apply(k, s.next) })
		if cost != s.cost {
			t.Errorf("%s: %d writes, want %d", s.name, cost, s.cost)
		}
		h.exactly(s.next, foreign)
		settle(t, k)
	}
	if log.Count("put right") != 0 {
		t.Error("a change of plan was taken for somebody else's:", log.With("put right"))
	}
}

// A peer that is reached directly, and then not any more (DirectRouting, or another
// backend before this one).
func TestRoutesMoveBetweenLinks(t *testing.T) {
	for name, family := range map[string]int{"IPv4": 4, "IPv6": 6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.open(&log)
			through, direct := withPeers(base(), 1, 2), withPeers(base(), 1, 2)
			if family == 4 {
				direct.Routes[2] = Route{Dst: sub4(2), Gw: addr("192.0.2.3"), Link: ext}
			} else {
				direct.Routes[3] = Route{Dst: sub6(2), Gw: addr("2001:db8::3"), Link: ext}
			}
			h.apply(k, through)
			for range 2 {
				if n := writes(k, func() { h.apply(k, direct) }); n != 1 {
					t.Errorf("%d writes to go directly", n)
				}
				h.exactly(direct, foreign)
				if n := writes(k, func() { h.apply(k, through) }); n == 0 || n > 2 {
					t.Errorf("%d writes to go through the device again", n)
				}
				h.exactly(through, foreign)
			}
		})
	}
}

func TestLinkIsRepaired(t *testing.T) {
	for name, spoil := range map[string]func(h *host, l netlink.Link) error{
		"MTU": func(h *host, l netlink.Link) error { return h.nl.LinkSetMTU(l, 1300) },
		"MAC": func(h *host, l netlink.Link) error {
			return h.nl.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		},
		"down":   func(h *host, l netlink.Link) error { return h.nl.LinkSetDown(l) },
		"sysctl": func(h *host, l netlink.Link) error { return h.ns.Sysctl("net/ipv6/conf/"+vx+"/accept_ra", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.tryOpen(&log)
			want := withPeers(base(), 1)
			h.apply(k, want)
			index := h.link(vx).Attrs().Index
			check(t, k.Close(Leave))
			check(t, spoil(h, h.link(vx)))
			k = h.open(&log)
			h.apply(k, want)
			a := h.link(vx).Attrs()
			if a.Index != index {
				t.Error("the device was made anew, not adopted")
			}
			if v, _ := h.ns.ReadSysctl("net/ipv6/conf/" + vx + "/accept_ra"); a.MTU != 1450 || a.HardwareAddr.String() != vxMAC.String() || a.Flags&net.FlagUp == 0 || v != "0" {
				t.Errorf("not repaired: %+v, accept_ra %s", a, v)
			}
			h.exactly(want, foreign)
		})
	}
}

func TestUnfitLinkIsMadeAnew(t *testing.T) {
	h := newHost(t)
	foreign := h.kernel()
	var log testlog.Messages
	k := h.open(&log)
	h.apply(k, withPeers(base(), 1))
	settle(t, k)
	index := h.link(vx).Attrs().Index
	want := withPeers(base(), 1)
	want.Links = []Link{vxlanLink(2)}
	h.apply(k, want)
	v, ok := h.link(vx).(*netlink.Vxlan)
	if !ok || v.VxlanId != 2 || v.Index == index {
		t.Errorf("%T %+v", h.link(vx), h.link(vx))
	}
	h.exactly(want, foreign)
	settle(t, k)
	if log.Count("made anew") != 1 {
		t.Error("it has to be said once that the device was made anew", log.With(""))
	}
	if bad := log.With("put right"); len(bad) > 0 {
		t.Error("the Keeper takes its own removal of the device for somebody else's:", bad)
	}
}

// A new MTU is the plan's change, not somebody else's.
func TestNewPropertiesAreNotPutRight(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	h.apply(k, base())
	settle(t, k)
	want := base()
	want.Links[0].MTU, want.Links[0].MAC = 1400, MAC{2, 0, 0, 0, 0, 1}
	h.apply(k, want)
	settle(t, k)
	if a := h.link(vx).Attrs(); a.MTU != 1400 || a.HardwareAddr.String() != "02:00:00:00:00:01" {
		t.Error(a)
	}
	if bad := log.With("put right"); len(bad) > 0 {
		t.Error("said to have been changed by somebody:", bad)
	}
}

func TestErrorsNameWhatFailedAndForWhom(t *testing.T) {
	h := newHost(t)
	foreign := h.kernel()
	var log testlog.Messages
	k := h.open(&log)
	want := withPeers(base(), 1, 2)
	bad := want
	bad.Routes = append(bad.Routes[:len(bad.Routes):len(bad.Routes)],
		Route{Dst: sub4(7), Gw: addr("203.0.113.1"), Link: ext, Peer: "unreachable"},
		Route{Dst: sub4(8), Link: "nosuch0", Peer: "linkless"})
	err := k.Apply(context.Background(), h.want(bad))
	for _, part := range []string{"vxlan: ", "peer unreachable", "10.244.7.0/24", "203.0.113.1", "nosuch0"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Error("not ENETUNREACH:", err)
	}
	if k.Err() == nil || k.Err().Error() != err.Error() {
		t.Errorf("Err: %v", k.Err())
	}
	h.exactly(want, foreign)
	h.mu.Lock()
	h.plan = func(Kernel) error { return errors.New("the plan's own") }
	h.mu.Unlock()
	if err := k.Apply(context.Background(), h.want(withPeers(base(), 1))); err == nil || !strings.Contains(err.Error(), "the plan's own") {
		t.Error(err)
	}
	h.exactly(withPeers(base(), 1), foreign)
}

func TestManyErrorsAreFew(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	want := base()
	for i := range 1000 {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 4), byte(i << 4)}), 28)
		want.Routes = append(want.Routes, Route{Dst: dst, Gw: addr("203.0.113.1"), Link: ext, Peer: fmt.Sprint("P", i)})
	}
	planErr := errors.New("the plan's own")
	h.plan = func(Kernel) error { return planErr }
	err := k.Apply(context.Background(), h.want(want))
	if err == nil || len(err.Error()) > 4000 {
		t.Fatalf("%d bytes", len(fmt.Sprint(err)))
	}
	if !strings.Contains(err.Error(), "more") {
		t.Error("does not say that there are more:", err)
	}
	if !errors.Is(err, planErr) {
		t.Error("what the plan says is lost among the routes:", err)
	}
}

func TestMissingDeviceTypeNamesTheModule(t *testing.T) {
	h := newHost(t)
	var log testlog.Messages
	k := h.open(&log)
	l := vxlanLink(1)
	l.Name, l.Module, l.Option, l.Unfit = "odd0", "oddmod", "CONFIG_ODD", nil
	l.New = func() (netlink.Link, error) {
		return &netlink.GenericLink{LinkType: "nosuchtype"}, nil
	}
	want := withPeers(base(), 1)
	want.Links = append([]Link{l}, want.Links...)
	err := k.Apply(context.Background(), h.want(want))
	for _, part := range []string{"odd0", "oddmod", "CONFIG_ODD"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
	for _, s := range missing(wanted(want), h.kernel()) {
		t.Error("a failed device kept back:", s)
	}
}
