package gce

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// TestRepair: what somebody deletes or changes is put right by itself, in the
// background, and said once.
func TestRepair(t *testing.T) {
	l := newLab(t)
	l.opts.CheckEvery = 20 * time.Millisecond
	l.start("node-1", ownKey())
	mine := func() bool {
		r, ok := l.fake.Route(own)
		return ok && r.NextHopInstance == l.link("node-1") && len(r.Tags) == 0 && len(l.fake.RouteNames()) == 1
	}
	l.fake.DropRoute(own)
	l.eventually("the deleted route", mine)
	l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
	l.eventually("the changed route", mine)
	tagged := l.theirs("10.5.34.0/24", "node-1")
	tagged.Tags = []string{"web"}
	l.fake.PutRoute(tagged)
	l.eventually("the tagged route", mine)
	l.eventually("three reports", func() bool { return l.log.Count("WARN", "put right", own) == 3 })
	if l.log.Count("it was missing") != 1 || l.log.Count("it led to node-2") != 1 {
		t.Errorf("%v\n%v", strings.Join(l.log.With(), "\n"), l.fake.Writes())
	}
}

// TestRepairFails: what can't be put right is known to Probe and Sync, and is tried
// again until it can.
func TestRepairFails(t *testing.T) {
	l := newLab(t)
	b := l.start("node-1", ownKey())
	l.fake.Inject(gcefake.Fault{Method: "POST", Status: 403, Reason: "quotaExceeded", Text: "Limit: 1.0"})
	l.fake.DropRoute(own)
	b.loop.Wake()
	l.eventually("Probe", func() bool { return errors.Is(b.Probe(), ErrQuota) })
	l.eventually("Sync", func() bool { return errors.Is(b.Sync(t.Context(), nil), ErrQuota) })
	l.fake.Heal()
	l.eventually("Probe", func() bool { return b.Probe() == nil })
	l.eventually("Sync", func() bool { return b.Sync(t.Context(), nil) == nil })
	l.names(own)
}

// TestSyncAsksNothing: what comes twice a minute costs no request, whatever the peers.
func TestSyncAsksNothing(t *testing.T) {
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.35.0/24", "node-2"))
	b := l.start("node-1", ownKey())
	l.fake.Forget()
	for _, peers := range [][]lease.Lease{nil, {peer("10.5.35.0/24")}, {peer("10.5.35.0/24"), peer("10.5.36.0/24")}, nil} {
		for range 3 {
			if err := b.Sync(t.Context(), peers); err != nil {
				t.Fatal(err)
			}
		}
	}
	if calls := l.fake.Calls(); len(calls) != 0 {
		t.Errorf("Sync asked %v", calls)
	}
	l.names(own, "flannel-10-5-35-0-24")
}

// TestStale: routes of dead instances are removed once the peers are known, and only
// those.
func TestStale(t *testing.T) {
	l := newLab(t)
	l.fake.SetPageSize(2)
	l.fake.AddNetwork("other")
	put := func(subnet, instance string, change func(*gcefake.Route)) string {
		r := l.theirs(subnet, instance)
		if change != nil {
			change(&r)
		}
		l.fake.PutRoute(r)
		return r.Name
	}
	kept := []string{
		put("10.5.1.0/24", "node-2", nil),
		put("10.5.2.0/24", "gone", nil), // a peer has it
		put("10.6.3.0/24", "gone", nil), // not in the network
		put("10.0.0.0/8", "gone", nil),  // more than the network
		put("10.5.4.0/24", "gone", func(r *gcefake.Route) { r.Name = "flannel-of-an-operator" }),
		put("10.5.5.0/24", "gone", func(r *gcefake.Route) { r.Name = "operators-10-5-5-0-24" }),
		put("10.5.6.0/24", "gone", func(r *gcefake.Route) { r.Network = l.fake.NetworkLink("other") }),
		put("10.5.7.0/24", "gone", func(r *gcefake.Route) { r.NextHopInstance, r.NextHopIP = "", "10.132.0.77" }),
		put("10.5.8.0/24", "gone", func(r *gcefake.Route) {
			r.NextHopInstance = strings.Replace(r.NextHopInstance, "proj-1", "proj-2", 1)
		}),
		put("10.5.9.0/24", "node-2", func(r *gcefake.Route) { // the warning is out of date
			r.Warnings = []gcefake.Warning{{Code: "NEXT_HOP_INSTANCE_NOT_FOUND"}}
		}),
	}
	dead := []string{put("10.5.20.0/24", "gone", nil), put("10.5.21.0/24", "gone-2", nil),
		put("10.5.22.0/24", "gone", func(r *gcefake.Route) { r.Name += "-next" }), put("10.5.34.128/25", "gone", nil)}
	b := l.start("node-1", ownKey())
	l.writes("POST " + routes) // nothing is removed before the peers are known
	peers := []lease.Lease{peer("10.5.2.0/24"), peer("10.5.1.0/24")}
	if err := b.Sync(t.Context(), peers); err != nil {
		t.Fatal(err)
	}
	l.eventually("the dead ones' routes go", func() bool { return len(l.fake.RouteNames()) == len(kept)+1 })
	if err := b.loop.Now(t.Context(), nil); err != nil { // the round has ended, and another
		t.Fatal(err)
	}
	for _, name := range kept {
		if _, ok := l.fake.Route(name); !ok {
			t.Errorf("route %s is gone", name)
		}
	}
	for _, name := range dead {
		if _, ok := l.fake.Route(name); ok {
			t.Errorf("route %s is still there", name)
		}
	}
	l.eventually("the reports", func() bool { return l.log.Count("INFO", "does not exist any more") == len(dead) })

	// The peer leaves: its route is stale from now on, and the next look sees it.
	if err := b.Sync(t.Context(), peers[1:]); err != nil {
		t.Fatal(err)
	}
	b.loop.Wake()
	l.eventually("the peer's route goes", func() bool { _, ok := l.fake.Route(kept[1]); return !ok })
}

// TestStaleRace: the subnet gets a new host between our look and our deletion.
func TestStaleRace(t *testing.T) {
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.35.0/24", "gone"))
	b := l.start("node-1", ownKey())
	l.fake.Inject(gcefake.Fault{Path: "instances/gone", Times: 1, Do: func() { l.fake.PutRoute(l.theirs("10.5.35.0/24", "node-2")) }})
	if err := b.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	l.eventually("the second look", func() bool {
		calls := l.fake.Calls()
		return strings.HasSuffix(calls[len(calls)-1].String(), "flannel-10-5-35-0-24")
	})
	if err := b.Close(true); err != nil {
		t.Fatal(err)
	}
	l.leadsTo("flannel-10-5-35-0-24", "10.5.35.0/24", "node-2")
}

// TestStaleUnsure: whose instance can't be asked for keeps its route.
func TestStaleUnsure(t *testing.T) {
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.35.0/24", "gone"))
	b := l.start("node-1", ownKey())
	l.fake.Inject(gcefake.Fault{Path: "instances/gone", Status: 403, Reason: "forbidden", Text: "compute.instances.get"})
	if err := b.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	l.eventually("the error", func() bool { return errors.Is(b.Probe(), ErrPermission) })
	l.names(own, "flannel-10-5-35-0-24")
}

// TestClose: keep leaves the route; otherwise it goes, if it leads here.
func TestClose(t *testing.T) {
	for name, c := range map[string]struct {
		keep  bool
		other bool
		left  int
	}{"keep": {true, false, 1}, "remove": {false, false, 0}, "another host has it by now": {false, true, 1}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			b := l.start("node-1", ownKey())
			if c.other {
				l.fake.PutRoute(l.theirs("10.5.34.0/24", "node-2"))
			}
			l.fake.Forget()
			if err := b.Close(c.keep); err != nil {
				t.Fatal(err)
			}
			if got := l.fake.RouteNames(); len(got) != c.left {
				t.Errorf("routes %v", got)
			}
			if c.keep && len(l.fake.Calls()) != 0 {
				t.Errorf("Close asked %v", l.fake.Calls())
			}
			if err := b.Probe(); err == nil || !strings.Contains(err.Error(), "closed") {
				t.Errorf("Probe: %v", err)
			}
			_, err := b.Start(t.Context(), host(), lease.Lease{Key: ownKey()})
			if err == nil || b.Sync(t.Context(), nil) == nil {
				t.Errorf("after Close: %v", err)
			}
			if err := b.Close(false); err != nil {
				t.Errorf("Close again: %v", err)
			}
		})
	}
	t.Run("it can't", func(t *testing.T) {
		l := newLab(t)
		l.pace.end = 100 * time.Millisecond
		b := l.start("node-1", ownKey())
		l.fake.Inject(gcefake.Fault{Method: "DELETE", OpStuck: true})
		within(t, func() {
			if err := b.Close(false); err == nil || !strings.HasPrefix(err.Error(), "gce: close: ") {
				t.Errorf("Close: %v", err)
			}
		})
	})
	t.Run("while a round waits", func(t *testing.T) {
		l := newLab(t)
		b := l.start("node-1", ownKey())
		asked := make(chan struct{}, 1)
		l.fake.Inject(gcefake.Fault{Method: "GET", Path: own, Times: 1, Hang: true, Do: func() { asked <- struct{}{} }})
		b.loop.Wake()
		<-asked
		within(t, func() {
			if err := b.Close(true); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	})
}

// TestMovedHost: another address may be another interface, in another network.
func TestMovedHost(t *testing.T) {
	l := newLab(t)
	l.fake.AddNetwork("other")
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1"}, {Network: "other", IP: "10.9.0.1"}}})
	b := l.start("node-1", ownKey())
	l.fake.Forget()
	h := host()
	h.MTU = 8896
	if mtu, err := b.Start(t.Context(), h, lease.Lease{Key: ownKey()}); err != nil || mtu != 8896 {
		t.Errorf("Start with another MTU: %d, %v", mtu, err)
	}
	l.writes()
	h.Link, h.Addr4 = "ens5", netip.MustParseAddr("10.9.0.1")
	if _, err := b.Start(t.Context(), h, lease.Lease{Key: ownKey()}); err != nil {
		t.Fatal(err)
	}
	l.names(own)
	if r, _ := l.fake.Route(own); r.Network != l.fake.NetworkLink("other") {
		t.Errorf("the route is in %s", r.Network)
	}

	// What fails leaves the former in force.
	l.fake.Inject(gcefake.Fault{Method: "DELETE", Times: 1, Status: 403, Reason: "forbidden", Text: "no"})
	if _, err := b.Start(t.Context(), host(), lease.Lease{Key: ownKey()}); !errors.Is(err, ErrPermission) {
		t.Errorf("Start: %v", err)
	}
	l.eventually("the former network's route alone", func() bool {
		r, ok := l.fake.Route(own)
		return ok && r.Network == l.fake.NetworkLink("other") && len(l.fake.RouteNames()) == 1 && b.Probe() == nil
	})
	unknown := host()
	unknown.Addr4 = netip.MustParseAddr("192.0.2.1")
	if _, err := b.Start(t.Context(), unknown, lease.Lease{Key: ownKey()}); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("Start: %v", err)
	}
	if b.Probe() != nil {
		t.Errorf("Probe: %v", b.Probe())
	}
	if _, err := b.Start(t.Context(), h, peer("10.5.99.0/24")); err == nil || !strings.Contains(err.Error(), "10.5.99.0/24") {
		t.Errorf("Start with another subnet: %v", err)
	}
}

// TestUseless: a route that leads here and carries nothing, where a new one would be no
// better, is an error, and not made anew for ever.
func TestUseless(t *testing.T) {
	for code, status := range map[string]string{"NEXT_HOP_CANNOT_IP_FORWARD": "", "NEXT_HOP_INSTANCE_NOT_ON_NETWORK": "",
		"NEXT_HOP_INSTANCE_HAS_NO_IPV6_INTERFACE": "", "NEXT_HOP_INSTANCE_NOT_FOUND": "", "": "INACTIVE"} {
		t.Run(code+status, func(t *testing.T) {
			l := newLab(t)
			b := l.start("node-1", ownKey())
			r, _ := l.fake.Route(own) // it keeps its id
			r.RouteStatus = status
			if code != "" {
				r.Warnings = []gcefake.Warning{{Code: code, Message: "it is so"}}
			}
			l.fake.PutRoute(r)
			l.fake.Forget()
			for range 3 {
				if err := b.loop.Now(t.Context(), nil); !errors.Is(err, ErrForward) || !strings.Contains(err.Error(), code+status) {
					t.Fatalf("a round: %v", err)
				}
			}
			l.writes()
		})
	}
}

// TestMisuse: calls at the wrong time are errors.
func TestMisuse(t *testing.T) {
	l := newLab(t)
	b := l.backend("node-1")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	flat := host()
	flat.MTU = 0
	_, err1 := b.Start(t.Context(), flat, lease.Lease{Key: ownKey()})
	_, err2 := b.Start(t.Context(), host(), lease.Lease{})
	err3 := b.Sync(t.Context(), nil)
	for i, err := range []error{err1, err2, err3} {
		if err == nil || !strings.HasPrefix(err.Error(), "gce: s") {
			t.Errorf("call %d: %v", i, err)
		}
	}
	_, err4 := b.Prepare(ended, host())
	_, err5 := b.Start(ended, host(), lease.Lease{Key: ownKey()})
	err6 := b.Sync(ended, nil)
	for i, err := range []error{err4, err5, err6} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d after the end of its context: %v", i, err)
		}
	}
	l.writes()
}

// TestUndo: where one family's route can't be made the other's is taken back.
func TestUndo(t *testing.T) {
	l := newLab(t)
	l.net.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00:5::/48"), SubnetLen: 64}
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1", IP6: "fd20::1"}}})
	l.fake.SetQuota(1, true)
	key := ownKey()
	key.Subnet6 = netip.MustParsePrefix("fd00:5:0:7::/64")
	b := l.backend("node-1")
	if _, err := b.Start(t.Context(), host(), lease.Lease{Key: key}); !errors.Is(err, ErrQuota) {
		t.Errorf("Start: %v", err)
	}
	l.names()
}

func TestNames(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.5.34.0/24": "flannel-10-5-34-0-24", "10.5.34.128/25": "flannel-10-5-34-128-25",
		"fd00:1:2::/64": "flannel-fd00-1-2---64", "fd00:0:0:7::/64": "flannel-fd00-0-0-7---64",
		"fd00:1111:2222:3333:4444:5555:6666:7770/124": "flannel-fd00-1111-2222-3333-4444-5555-6666-7770-124",
	} {
		p := netip.MustParsePrefix(subnet)
		if got := routeName(p); got != want || len(nextName(p)) > 63 {
			t.Errorf("%s: %s, not %s", subnet, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"https://www.googleapis.com/compute/v1/projects/p/global/networks/n", "https://compute.googleapis.com/compute/v1/projects/p/global/networks/n", true},
		{"https://www.googleapis.com/compute/beta/projects/p/global/networks/n", "projects/p/global/networks/n", true},
		{"projects/p/global/networks/n", "projects/p/global/networks/n2", false},
		{"projects/p2/global/networks/n", "projects/p/global/networks/n", false},
		{"", "", false},
	} {
		if sameResource(c.a, c.b) != c.same {
			t.Errorf("%s and %s: not %v", c.a, c.b, c.same)
		}
	}
	for _, link := range []string{"", "projects/p/zones/z", "projects/p/regions/r/instances/i", "projects/p/zones/z/instances/i/x"} {
		if _, _, _, ok := splitInstance(link); ok {
			t.Errorf("%q is taken for an instance", link)
		}
	}
}
