package netstate

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
)

// thousand is the State of many peers, each with a neighbour, a forwarding entry and a
// route, by IPv4 or IPv6.
func thousand(n, family int) State {
	s := base()
	s.Area = Area{
		Networks: []Range{{Prefix: pfx("10.0.0.0/8"), SubnetLen: 24}, {Prefix: pfx("fd00:244::/48"), SubnetLen: 64}},
		Own:      []netip.Prefix{pfx("10.244.0.0/24"), pfx("fd00:244::/64")},
	}
	for i := 1; i <= n; i++ {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(10 + i>>8), byte(i), 0}), 24)
		if family == 6 {
			dst = sub6(i)
		}
		p := fmt.Sprint("P", i)
		s.FDB = append(s.FDB, FDB{vx, peerMAC(i), netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), p})
		s.Neighs = append(s.Neighs, Neigh{vx, dst.Addr(), peerMAC(i), p})
		s.Routes = append(s.Routes, Route{dst, dst.Addr(), vx, true, p})
	}
	return s
}

// without leaves out peer number i of thousand.
func (s State) without(i int) State {
	s.FDB = append(s.FDB[:i:i], s.FDB[i+1:]...)
	s.Neighs = append(s.Neighs[:i:i], s.Neighs[i+1:]...)
	s.Routes = append(s.Routes[:i:i], s.Routes[i+1:]...)
	return s
}

func TestAThousandPeers(t *testing.T) {
	for name, family := range map[string]int{"IPv4": 4, "IPv6": 6} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			foreign := h.kernel()
			var log testlog.Messages
			k := h.tryOpen(&log)
			want := thousand(1000, family)
			start := time.Now()
			h.apply(k, want)
			first := time.Since(start)
			h.exactly(want, foreign)
			settle(t, k)
			start = time.Now()
			if n := writes(k, func() { h.apply(k, want) }); n != 0 {
				t.Errorf("%d writes with all in place", n)
			}
			t.Logf("first %v, again %v, %d rounds", first, time.Since(start), k.Stats().Rounds)
			if first > 20*time.Second {
				t.Error("too slow")
			}
			moved := thousand(1000, family)
			moved.FDB[500].Dst = addr("198.18.99.99")
			if n := writes(k, func() { h.apply(k, moved) }); n != 1 {
				t.Errorf("%d writes for a peer that moved", n)
			}
			fewer := moved.without(700)
			if n := writes(k, func() { h.apply(k, fewer) }); n != 3 {
				t.Errorf("%d writes for a peer that left", n)
			}
			if n := writes(k, func() { h.apply(k, moved) }); n != 3 {
				t.Errorf("%d writes for a peer that joined", n)
			}
			check(t, k.Close(Leave))
			k = h.open(&log)
			if h.apply(k, moved); k.Stats().Writes != 0 {
				t.Errorf("%d writes after a restart", k.Stats().Writes)
			}
			h.exactly(moved, foreign)
			if bad := log.With("put right"); len(bad) > 0 {
				t.Error("false alarm:", bad)
			}
		})
	}
}

// busy changes routes, neighbours and addresses that are none of ours as fast as it
// can, until stop is called.
func busy(h *host, workers int, in6 string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	counts := make([]int, workers)
	pod := h.link("pod0").Attrs().Index
	for w := range workers {
		var nl *netlink.Handle
		check(h.t, h.ns.Do(func() (err error) { nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }))
		wg.Go(func() {
			defer nl.Close()
			for i := 0; ctx.Err() == nil; i++ {
				a4 := netip.AddrFrom4([4]byte{172, byte(16 + w), byte(i >> 8 & 0x3f), byte(i)})
				a6 := netip.MustParseAddr(fmt.Sprintf("%s:%x:%x::1", in6, w+1, i&0x3ff))
				for _, a := range []netip.Addr{a4, a6} {
					r := &netlink.Route{Dst: rtnl.IPNet(netip.PrefixFrom(a, a.BitLen())), LinkIndex: pod}
					n := &netlink.Neigh{LinkIndex: pod, State: unix.NUD_PERMANENT, Family: family(a), IP: a.AsSlice(), HardwareAddr: []byte{2, 1, 0, 0, byte(i), byte(w)}}
					_ = nl.RouteAdd(r)
					_ = nl.NeighSet(n)
					if i%2 == 0 {
						_ = nl.RouteDel(r)
						_ = nl.NeighDel(n)
					}
				}
				counts[w] += 8
				if i%1024 == 1023 { // not to fill the tables
					for j := range 1024 {
						a := netip.MustParseAddr(fmt.Sprintf("%s:%x:%x::1", in6, w+1, j))
						_ = nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(netip.PrefixFrom(a, 128)), LinkIndex: pod})
						_ = nl.NeighDel(&netlink.Neigh{LinkIndex: pod, Family: unix.AF_INET6, IP: a.AsSlice()})
						b := netip.AddrFrom4([4]byte{172, byte(16 + w), byte((i - j) >> 8 & 0x3f), byte(i - j)})
						_ = nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(netip.PrefixFrom(b, 32)), LinkIndex: pod})
						_ = nl.NeighDel(&netlink.Neigh{LinkIndex: pod, Family: unix.AF_INET, IP: b.AsSlice()})
					}
				}
			}
		})
	}
	return func() (n int) {
		cancel()
		wg.Wait()
		for _, c := range counts {
			n += c
		}
		return n
	}
}

// While others change routes and neighbours as fast as they can, dumps are incomplete
// and announcements are lost. Nothing of ours may be removed or put "right" by that.
// The others' are in front of ours in the kernel's order (fc00:...) or behind (fd99:...).
func TestOthersChangesDoNotConfuse(t *testing.T) {
	for name, c := range map[string]struct {
		family int
		in6    string
	}{
		"IPv4": {4, "fd99:0"}, "IPv6": {6, "fd99:0"}, "IPv6 behind a changing tree": {6, "fc00:0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.dummy("pod0", "10.244.0.1/24")
			var log testlog.Messages
			k := h.open(&log)
			want := thousand(1000, c.family)
			h.apply(k, want)
			settle(t, k)
			before := k.Stats()
			var events sync.WaitGroup
			lost := h.deletions(&events)
			stop := busy(h, 2, c.in6)
			for start := time.Now(); time.Since(start) < 2*time.Second; {
				if err := k.Apply(context.Background(), nil); err != nil {
					t.Errorf("%d bytes of error: %.400v", len(err.Error()), err)
					break
				}
			}
			others := stop()
			after := k.Stats()
			t.Logf("%d changes of others, %d rounds, %d writes", others, after.Rounds-before.Rounds, after.Writes-before.Writes)
			if after.Writes != before.Writes {
				t.Errorf("%d writes although nobody has touched ours", after.Writes-before.Writes)
			}
			if bad := log.With("is put right"); len(bad) > 0 {
				t.Errorf("%d false alarms: %.300s", len(bad), bad[0])
			}
			if gone := lost(); len(gone) > 0 {
				t.Errorf("%d entries of ours were removed meanwhile: %.300s", len(gone), strings.Join(gone, "; "))
			}
			for _, s := range missing(wanted(want), h.kernel()) {
				t.Error("lost:", s)
			}
			settle(t, k)
		})
	}
}

// deletions collects what is deleted of the VXLAN device's routes meanwhile.
func (h *host) deletions(wg *sync.WaitGroup) (end func() []string) {
	done, updates := make(chan struct{}), make(chan netlink.RouteUpdate, 1000)
	check(h.t, h.ns.Do(func() error {
		return netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{ErrorCallback: func(error) {}, ReceiveBufferSize: 32 << 20})
	}))
	var gone []string
	x := h.link(vx).Attrs().Index
	wg.Go(func() {
		for u := range updates {
			if u.Type == unix.RTM_DELROUTE && u.LinkIndex == x {
				gone = append(gone, fmt.Sprint(u.Dst))
			}
		}
	})
	return func() []string {
		time.Sleep(100 * time.Millisecond)
		close(done)
		wg.Wait()
		return gone
	}
}

// Announcements come faster than they are read: what is done to ours at the same time
// is put right nevertheless.
func TestDeletedAmongManyChanges(t *testing.T) {
	h := newHost(t)
	h.dummy("pod0", "10.244.0.1/24")
	var log testlog.Messages
	k := h.open(&log)
	want := withPeers(base(), 1, 2)
	h.apply(k, want)
	settle(t, k)
	stop := busy(h, 4, "fd99:0")
	defer stop()
	for i := range 5 {
		_ = h.nl.RouteDel(&netlink.Route{Dst: rtnl.IPNet(sub4(1)), Table: unix.RT_TABLE_MAIN})
		_ = h.nl.NeighDel(entry(h.link(vx).Attrs().Index, peerMAC(2), addr("192.0.2.3")))
		t.Log(i, within(t, 4*time.Second, "back", func() bool { return len(missing(wanted(want), h.kernel())) == 0 }))
	}
}
