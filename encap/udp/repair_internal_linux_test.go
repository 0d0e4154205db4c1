package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// delAddr removes an address of a device.
func (n *node) delAddr(dev string, p netip.Prefix) error {
	link, err := n.Netlink().LinkByName(dev)
	if err != nil {
		return err
	}
	return n.Netlink().AddrDel(link, &netlink.Addr{IPNet: rtnl.IPNet(p)})
}

// delRoute removes a route of a device, whatever its scope.
func (n *node) delRoute(dev string, p netip.Prefix) error {
	link, err := n.Netlink().LinkByName(dev)
	if err != nil {
		return err
	}
	routes, err := rtnl.Again(func() ([]netlink.Route, error) { return n.Netlink().RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, r := range routes {
		if rtnl.Prefix(r.Dst) == p {
			return n.Netlink().RouteDel(&r)
		}
	}
	return fmt.Errorf("%s has no route to %v", dev, p)
}

// held runs fn while the keeper can't do anything.
func (n *node) held(fn func(o *overlay) error) {
	n.t.Helper()
	o := n.b.(*overlay)
	o.mu.Lock()
	err := fn(o)
	o.mu.Unlock()
	check(n.t, err)
}

// Whatever is taken away or changed while packets flow is put back by itself, and
// packets flow on.
func TestPutRight(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opts   Options
		damage func(n *node) error
		said   string
	}{
		{"device deleted", Options{}, func(n *node) error { return n.DelLink("flannel0") }, "device flannel0"},
		{"device with two queues deleted", Options{Engines: 2}, func(n *node) error { return n.DelLink("flannel0") }, "device flannel0"},
		{"persistent device deleted", Options{Persist: true}, func(n *node) error { return n.DelLink("flannel0") }, "device flannel0"},
		{"device down", Options{}, func(n *node) error { return n.Down("flannel0") }, "state up"},
		{"MTU", Options{}, func(n *node) error { return n.SetMTU("flannel0", 1300) }, "MTU 1472"},
		{"MTU too small for IPv6", Options{}, func(n *node) error { return n.SetMTU("flannel0", 600) }, "MTU 1472"},
		{"IPv4 route", Options{}, func(n *node) error { return n.delRoute("flannel0", n.lab.Network4) }, "route to 10.244.0.0/16"},
		{"IPv6 route", Options{}, func(n *node) error { return n.delRoute("flannel0", n.lab.Network6) }, "route to fd00:244::/32"},
		{"IPv4 address", Options{}, func(n *node) error { return n.delAddr("flannel0", hostAddress(n.own.Subnet)) }, "address 10.244.1.0/32"},
		{"IPv6 address", Options{}, func(n *node) error { return n.delAddr("flannel0", hostAddress(n.own.Subnet6)) }, "address fd00:244:1::/128"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			l := newLab(t, labConfig{})
			l.startBoth(tt.opts)
			var streams []*stream
			for _, v6 := range l.inner() {
				streams = append(streams, startStream(t, l.b.pod(), l.a.pod(), v6), startStream(t, l.a.pod(), l.b.pod(), v6))
			}
			for _, s := range streams {
				s.flows()
			}
			before := l.a.b.(*overlay).Stats()
			start := time.Now()
			check(t, tt.damage(l.a))
			waitFor(t, "it is noticed", func() bool { return l.a.log.Count("WARN", "put right", tt.said) > 0 })
			l.a.waitState("flannel0", 1472)
			l.a.settle()
			took := time.Since(start)
			for _, s := range streams {
				s.flows()
				t.Logf("put right after %v, %d datagrams lost (%v)", took, s.lost(), s)
			}
			l.talk()
			waitFor(t, "Probe says so", func() bool { return l.a.b.(*overlay).Probe() == nil })
			if after := l.a.b.(*overlay).Stats(); after.TX.Packets <= before.TX.Packets || after.RX.Packets <= before.RX.Packets {
				t.Errorf("the counters of engines that ended are lost: %+v, then %+v", before, after)
			}
		})
	}
}

// Sync puts back too, for whom no event came.
func TestSyncPutsRight(t *testing.T) {
	l := newLab(t, labConfig{})
	l.startBoth(Options{})
	o := l.a.b.(*overlay)
	l.a.held(func(o *overlay) error {
		err := errors.Join(l.a.delRoute("flannel0", l.Network4), l.a.delAddr("flannel0", hostAddress(l.a.own.Subnet6)), l.a.SetMTU("flannel0", 1400))
		return errors.Join(err, o.round()) // as Sync, before the keeper can
	})
	l.a.waitState("flannel0", 1472)
	for range 3 { // with nothing changed Sync changes nothing
		check(t, o.Sync(t.Context(), l.a.peers()))
	}
	check(t, l.a.DelLink("flannel0"), o.Sync(t.Context(), l.a.peers()))
	l.a.waitState("flannel0", 1472)
	l.a.settle()
	l.talk()
}

// A device that can't be made anew: Probe says why, the processor is left alone, and
// when the obstacle goes away so does the trouble.
func TestObstacle(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.a.start(Options{Device: "overlay0"})
	l.b.start(Options{})
	l.talk()
	// The obstacle takes the name in the instant in which it is free.
	o := l.a.b.(*overlay)
	l.a.held(func(*overlay) error { return errors.Join(l.a.DelLink("overlay0"), l.a.Bridge("overlay0")) })
	waitFor(t, "Probe fails", func() bool { err := o.Probe(); return err != nil && strings.Contains(err.Error(), "overlay0") })
	if err := o.Sync(t.Context(), l.a.peers()); err == nil || !strings.Contains(err.Error(), "overlay0") {
		t.Errorf("Sync without a device: %v", err)
	}
	waitFor(t, "it is logged", func() bool { return l.a.log.Count("ERROR", "overlay0") > 0 })
	time.Sleep(300 * time.Millisecond) // some rounds
	if n := l.a.log.Count("ERROR"); n != 1 {
		t.Errorf("the same error is logged %d times", n)
	}
	check(t, l.a.DelLink("overlay0"))
	waitFor(t, "Probe succeeds", func() bool { return o.Probe() == nil })
	l.a.waitState("overlay0", 1472)
	l.talk()
}

// Somebody who deletes the device again and again is followed, but not faster and
// faster.
func TestDeletedAgainAndAgain(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.startBoth(Options{})
	for range 5 {
		check(t, l.a.DelLink("flannel0"))
		l.a.waitState("flannel0", 1472)
	}
	l.talk()
}

// An engine that ends by itself is restarted.
func TestEngineEnds(t *testing.T) {
	for _, engines := range []int{1, 2} {
		t.Run(fmt.Sprint(engines), func(t *testing.T) {
			l := newLab(t, labConfig{})
			l.startBoth(Options{Engines: engines})
			l.talk()
			o := l.a.b.(*overlay)
			var group *group
			before := o.Stats()
			l.a.held(func(o *overlay) error {
				group = o.group
				err := group.engines[0].Close()
				if !eventually(func() bool { return o.Probe() != nil }) || !strings.Contains(o.Probe().Error(), "engine") {
					t.Errorf("Probe, while an engine is down: %v", o.Probe())
				}
				return err
			})
			waitFor(t, "there is another group", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.group != nil && o.group != group })
			waitFor(t, "Probe succeeds", func() bool { return o.Probe() == nil })
			if after := o.Stats(); after.TX.Packets < before.TX.Packets || after.RX.Packets < before.RX.Packets {
				t.Errorf("counters are lost: %+v, then %+v", before, after)
			}
			l.talk()
		})
	}
}

// A foreign route to the network is not touched, but told of.
func TestForeignRoute(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.startBoth(Options{})
	o := l.a.b.(*overlay)
	l.a.held(func(*overlay) error {
		return errors.Join(l.a.delRoute("flannel0", l.Network4), l.a.AddRoute(l.Network4, netip.Addr{}, "eth0", 0))
	})
	waitFor(t, "Probe fails", func() bool { return o.Probe() != nil })
	for _, err := range []error{o.Probe(), o.Sync(t.Context(), l.a.peers())} {
		if err == nil || !strings.Contains(err.Error(), "eth0") || !strings.Contains(err.Error(), "10.244.0.0/16") {
			t.Errorf("a foreign route: %v", err)
		}
	}
	check(t, l.a.DelRoute(l.Network4, netip.Addr{}, "eth0"))
	waitFor(t, "Probe succeeds", func() bool { return o.Probe() == nil })
	l.a.waitState("flannel0", 1472)
	l.talk()
}

// The device moves to another network namespace: that is as good as deleted.
func TestDeviceMoved(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.startBoth(Options{Persist: true})
	link, err := l.a.Netlink().LinkByName("flannel0")
	check(t, err)
	fd := openPath(t, l.a.Pod.Path())
	check(t, l.a.Netlink().LinkSetNsFd(link, fd))
	waitFor(t, "it is noticed", func() bool { return l.a.log.Count("put right", "device flannel0") > 0 })
	l.a.waitState("flannel0", 1472)
	if _, err := l.a.Pod.LinkStats("flannel0"); err == nil {
		t.Error("the device that was moved is still there")
	}
	l.talk()
}

// What is wrong with an engine or a device is what Probe returns.
func TestProbeWraps(t *testing.T) {
	s := &status{group: &group{err: fmt.Errorf("x: %w: %w", encap.ErrDevice, tun.ErrGone)}}
	if err := s.probe(); !errors.Is(err, tun.ErrGone) || !errors.Is(err, encap.ErrDevice) {
		t.Errorf("Probe: %v", err)
	}
	s.set(errors.New("worse"))
	if err := s.probe(); err == nil || err.Error() != "worse" {
		t.Errorf("Probe: %v", err)
	}
}

// rangeOf is a lease.Range of a network.
func rangeOf(prefix string, subnetLen int) lease.Range {
	return lease.Range{Prefix: netip.MustParsePrefix(prefix), SubnetLen: subnetLen}
}
