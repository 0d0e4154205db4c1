package netstate

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What stands in the way of a peer's subnet is not ours to remove, and costs that peer
// alone.
func TestRouteInTheWayIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make func(h *host)
		peer string
		dst  string
		says string
	}{
		"connected":      {func(h *host) { h.dummy("br0", "10.244.2.1/24") }, "P2", "10.244.2.0/24", "br0"},
		"connected IPv6": {func(h *host) { h.dummy("br0", "fd00:244:0:2::1/64") }, "P2", "fd00:244:0:2::/64", "br0"},
		"on a link":      {func(h *host) { h.dummy("br0"); h.route("10.244.2.0/24", h.by("br0", "")) }, "P2", "10.244.2.0/24", "br0"},
		"on a link IPv6": {func(h *host) { h.dummy("br0"); h.route("fd00:244:0:2::/64", h.by("br0", "")) }, "P2", "fd00:244:0:2::/64", "br0"},
		"blackhole":      {func(h *host) { h.route("10.244.2.0/24", ofType(unix.RTN_BLACKHOLE)) }, "P2", "10.244.2.0/24", "nowhere"},
		"blackhole IPv6": {func(h *host) { h.route("fd00:244:0:2::/64", ofType(unix.RTN_BLACKHOLE)) }, "P2", "fd00:244:0:2::/64", "nowhere"},
		"several ways": {func(h *host) {
			hop := func(gw string) *netlink.NexthopInfo {
				return &netlink.NexthopInfo{LinkIndex: h.link(ext).Attrs().Index, Gw: net.ParseIP(gw)}
			}
			h.route("10.244.2.0/24", func(r *netlink.Route) {
				r.MultiPath = []*netlink.NexthopInfo{hop("192.0.2.7"), hop("192.0.2.8")}
			})
		}, "P2", "10.244.2.0/24", "several"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			c.make(h)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.open(&log)
			want := withPeers(base(), 1, 2, 3)
			err := k.Apply(context.Background(), h.want(want))
			for _, part := range []string{"peer " + c.peer, c.dst, c.says} {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
			have := h.kernel()
			for s := range wanted(want) {
				if !have[s] && !strings.HasPrefix(s, "route "+c.dst) {
					t.Error("not there:", s)
				}
			}
			for _, s := range missing(foreign, have) {
				t.Error("removed:", s)
			}
			settle2(t, k, &log)
		})
	}
}

// A connected IPv6 route has a lower metric than ours and wins: ours would be there,
// and carry nothing.
func TestDirectIPv6RouteInTheShadow(t *testing.T) {
	h := newHost(t)
	h.dummy("br0", "fd00:244:0:2::1/64")
	var log testlog.Messages
	k := h.open(&log)
	want := base()
	want.Routes = []Route{{Dst: sub6(2), Gw: addr("2001:db8::3"), Link: ext, Peer: "P2"}}
	err := k.Apply(context.Background(), h.want(want))
	for _, part := range []string{"peer P2", "fd00:244:0:2::/64", "br0"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

// settle2 waits for the loop to have tried a few times, and looks at the log.
func settle2(t *testing.T, k *Keeper, log *testlog.Messages) {
	t.Helper()
	rounds := k.Stats().Rounds
	within(t, 10*time.Second, "tries again", func() bool { return k.Stats().Rounds > rounds+4 })
	if n := log.Count("can't be put right"); n > 1 {
		t.Errorf("the log says it %d times, though Apply has told", n)
	}
	if bad := log.With("is put right", "WARN"); len(bad) != 0 {
		t.Error("false alarm:", bad)
	}
}

// Two peers may have the same MAC (cloned machines), and the same entry may be wanted
// twice. That must not become a quarrel of the Keeper with itself.
func TestDuplicatesSettle(t *testing.T) {
	for name, change := range map[string]func(s *State){
		"same neighbour twice": func(s *State) { s.Neighs = append(s.Neighs, s.Neighs[0]) },
		"same entry twice":     func(s *State) { s.FDB = append(s.FDB, s.FDB[0]) },
		"same route twice":     func(s *State) { s.Routes = append(s.Routes, s.Routes[0]) },
		"same address twice":   func(s *State) { s.Addrs = append(s.Addrs, s.Addrs[0]) },
		"one MAC of two peers": func(s *State) { s.FDB[1].MAC = s.FDB[0].MAC },
		"one IP of two peers":  func(s *State) { s.Neighs[2].IP = s.Neighs[0].IP },
		"one subnet of two":    func(s *State) { s.Routes[2].Dst = s.Routes[0].Dst },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			var log testlog.Messages
			k := h.open(&log)
			want := withPeers(base(), 1, 2)
			change(&want)
			_ = k.Apply(context.Background(), h.want(want)) // an error is an answer as well
			time.Sleep(time.Second)                         // rounds by the events of its own writes
			before := k.Stats()
			time.Sleep(3 * time.Second)
			if after := k.Stats(); k.Err() == nil && after.Writes != before.Writes {
				t.Errorf("%d rounds and %d writes in 3 s although nobody has touched anything", after.Rounds-before.Rounds, after.Writes-before.Writes)
			}
			if bad := log.With("WARN", "is put right"); len(bad) > 0 {
				t.Errorf("%d false alarms: %s", len(bad), bad[0])
			}
		})
	}
}

// An address of the same subnet as a leftover is the kernel's secondary one, and goes
// when that does, unless promote_secondaries is set.
func TestLeftoverAddressOfTheSameSubnet(t *testing.T) {
	h := newHost(t)
	foreign := h.kernel()
	check(t, h.ns.Sysctl("net/ipv4/conf/all/promote_secondaries", "0"))
	var log testlog.Messages
	k := h.open(&log)
	s := base()
	s.Addrs = []Addr{{vx, pfx("10.244.0.5/24")}}
	h.apply(k, s)
	s.Addrs = []Addr{{vx, pfx("10.244.0.6/24")}}
	h.apply(k, s)
	h.exactly(s, foreign)
	settle(t, k)
	h.exactly(s, foreign)
	if bad := log.With("WARN", "is put right"); len(bad) > 0 {
		t.Error("false alarm:", bad)
	}
}

// A dynamic entry, a learned one or one of another type of service is not what is
// wanted, though it has the same key.
func TestLookalikesAreReplaced(t *testing.T) {
	for name, make := range map[string]func(h *host){
		"stale neighbour": func(h *host) { h.neighState(vx, "10.244.1.0", peerMAC(1), unix.NUD_STALE) },
		"learned entry": func(h *host) {
			e := entry(h.link(vx).Attrs().Index, peerMAC(1), addr("192.0.2.2"))
			e.State = unix.NUD_REACHABLE
			check(h.t, h.nl.NeighSet(e))
		},
		"route of a type of service": func(h *host) {
			h.route("10.244.1.0/24", h.by(vx, "10.244.1.0"), func(r *netlink.Route) { r.Tos = 0x10 })
		},
		"unreachable by the wrong link": func(h *host) { h.route("10.244.1.0/24", h.by(ext, "10.244.1.0")) },
		"not onlink": func(h *host) {
			h.route("10.244.1.0/32", h.by(vx, ""))
			h.route("10.244.1.0/24", h.by(vx, "10.244.1.0"), func(r *netlink.Route) { r.Flags = 0 })
		},
		"other route beside, IPv6": func(h *host) {
			h.route("fd00:244:0:1::/64", h.by(vx, ""))
		},
		"two others, IPv6": func(h *host) {
			h.route("fd00:244:0:1::/64", h.by(vx, ""))
			h.route("fd00:244:0:1::/64", h.by(vx, "fd00:244:0:66::"))
		},
		"two others": func(h *host) {
			h.route("10.244.1.0/24", h.by(vx, ""))
			h.route("10.244.1.0/24", h.by(vx, "10.244.66.0"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.open(&log)
			h.apply(k, base())
			make(h)
			want := withPeers(base(), 1)
			if err := k.Apply(context.Background(), h.want(want)); err != nil {
				t.Error(err)
			}
			settle(t, k)
			if name == "route of a type of service" { // somebody else's, and may stay
				for _, s := range missing(wanted(want), h.kernel()) {
					t.Error("not there:", s)
				}
				return
			}
			h.exactly(want, foreign)
		})
	}
}
