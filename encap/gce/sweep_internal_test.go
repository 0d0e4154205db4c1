package gce

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/gcefake"
	"github.com/flannelkit/flannelkit/lease"
)

// addr is an address.
func (l *lab) addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// TestFormerSubnet: the route of a subnet that this host had once goes when the peers
// are known, and only that.
func TestFormerSubnet(t *testing.T) {
	l := newLab(t)
	l.fake.AddNetwork("other")
	l.net.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00:5::/48"), SubnetLen: 64,
		Min: l.addr("fd00:5:0:1::"), Max: l.addr("fd00:5:0:ffff::")}
	l.instance(gcefake.Instance{Name: "node-1", NICs: []gcefake.NIC{{Network: "default", IP: "10.132.0.1", IP6: "fd20::1"}}})
	var kept []string
	put := func(keep bool, subnet string, change func(*gcefake.Route)) {
		r := l.theirs(subnet, "node-1")
		if change != nil {
			change(&r)
		}
		l.fake.PutRoute(r)
		if keep {
			kept = append(kept, r.Name)
		}
	}
	put(true, "10.5.2.0/24", nil)   // a peer has it
	put(true, "10.5.0.0/24", nil)   // the network's own, never handed out
	put(true, "10.5.3.0/25", nil)   // of another length
	put(true, "10.6.3.0/24", nil)   // not in the network
	put(true, "fd00:5::/64", nil)   // never handed out
	put(true, "fd00:5:2::/64", nil) // not in the network
	put(true, "10.5.4.0/24", func(r *gcefake.Route) { r.Name = "flannel-of-an-operator" })
	put(true, "10.5.5.0/24", func(r *gcefake.Route) { r.Network = l.fake.NetworkLink("other") })
	put(true, "10.5.6.0/24", func(r *gcefake.Route) { r.NextHopInstance = l.link("node-2") })
	put(true, "10.5.7.0/24", func(r *gcefake.Route) {
		r.NextHopInstance = strings.Replace(r.NextHopInstance, "proj-1", "proj-2", 1)
	})
	put(false, "10.5.35.0/24", nil)
	put(false, "10.5.36.0/24", func(r *gcefake.Route) { r.Name += "-next" })
	put(false, "fd00:5:0:9::/64", nil)
	all := len(l.fake.RouteNames())
	key := ownKey()
	key.Subnet6 = netip.MustParsePrefix("fd00:5:0:7::/64")
	kept = append(kept, routeName(key.Subnet), routeName(key.Subnet6))
	slices.Sort(kept)

	b := l.start("node-1", key)
	if n := len(l.fake.RouteNames()); n != all+2 {
		t.Errorf("before the peers are known: %d routes of %d and 2", n, all)
	}
	if err := b.Sync(t.Context(), []lease.Lease{peer("10.5.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	l.eventually("the former routes go", func() bool { return len(l.fake.RouteNames()) <= len(kept) })
	if err := b.loop.Now(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	l.names(kept...)
	if n := l.log.Count("INFO", "former subnet of this host"); n != 3 {
		t.Errorf("it is said %d times", n)
	}

	// The subnet gets a new host between our look and our deletion.
	put(false, "10.5.35.0/24", nil)
	l.fake.Inject(gcefake.Fault{Method: "GET", Path: "10-5-35", Times: 1, Do: func() { l.fake.PutRoute(l.theirs("10.5.35.0/24", "node-2")) }})
	if err := b.loop.Now(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	l.leadsTo("flannel-10-5-35-0-24", "10.5.35.0/24", "node-2")
}

// herd starts many hosts at the same time, in a bubble, each with a subnet.
func (l *lab) herd(n int) (each func(f func(i int, b *overlay)), leases []lease.Lease) {
	var hosts []*overlay
	for i := range n {
		l.fake.AddInstance(gcefake.Instance{Zone: zone, Name: fmt.Sprint("n-", i), CanForward: true, Scopes: []string{scopeCompute},
			NICs: []gcefake.NIC{{Network: "default", IP: fmt.Sprint("10.132.1.", i+1)}}})
		leases = append(leases, peer(fmt.Sprintf("10.5.%d.0/24", i+1)))
		hosts = append(hosts, l.inMemory(fmt.Sprint("n-", i)))
	}
	each = func(f func(i int, b *overlay)) {
		var wg sync.WaitGroup
		for i, b := range hosts {
			wg.Go(func() { f(i, b) })
		}
		wg.Wait()
		synctest.Wait()
	}
	each(func(i int, b *overlay) {
		h := backend.Host{Link: "ens4", MTU: 1460, Addr4: l.addr(fmt.Sprint("10.132.1.", i+1))}
		if _, err := b.Start(l.Context(), h, leases[i]); err != nil {
			l.Error(err)
		}
	})
	return each, leases
}

// TestHerd: fifty hosts that were started together, and hear together that a dead
// host's lease has ended, do not come together, and one of them removes its route.
func TestHerd(t *testing.T) {
	const n, dead = 50, "flannel-10-5-200-0-24"
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.200.0/24", "gone"))
	l.bubble(func() {
		var mu sync.Mutex
		var times []time.Time
		l.fake.Inject(gcefake.Fault{Do: func() {
			mu.Lock()
			times = append(times, time.Now())
			mu.Unlock()
			time.Sleep(300 * time.Millisecond) // each answer takes so long
		}})
		each, leases := l.herd(n)
		hear := func(peers []lease.Lease) {
			each(func(_ int, b *overlay) {
				if err := b.Sync(l.Context(), peers); err != nil {
					l.Error(err)
				}
			})
		}
		times = nil
		hear(append([]lease.Lease{peer("10.5.200.0/24")}, leases...))
		time.Sleep(7 * time.Minute) // a look each, or two
		if _, ok := l.fake.Route(dead); !ok {
			l.Error("the route of a peer is gone")
		}
		l.fake.Forget()
		hear(leases) // its lease ends
		if calls := l.fake.Calls(); len(calls) != 0 {
			l.Errorf("all wake: %d requests", len(calls))
		}
		time.Sleep(12 * time.Minute) // a look to see it, and another one when its time has come
		count := make(map[string]int)
		for _, c := range l.fake.Calls() {
			count[c.String()]++
		}
		if got := count["DELETE "+routes+"/"+dead]; got < 1 || got > 5 {
			l.Errorf("%d hosts delete the route", got)
		}
		if got := count["GET "+routes]; got > 5*n {
			l.Errorf("%d lists", got)
		}
		if _, ok := l.fake.Route(dead); ok {
			l.Error("the route is left")
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range times {
			if j := i + n/2; j < len(times) && times[j].Sub(times[i]) < 2*time.Second {
				l.Fatalf("%d requests in two seconds", n/2)
			}
		}
	})
}

// TestFirstSyncOfAll: nor do hosts that learn of their peers together, while a dead
// host's route is there already.
func TestFirstSyncOfAll(t *testing.T) {
	const n, dead = 50, "flannel-10-5-200-0-24"
	l := newLab(t)
	l.fake.PutRoute(l.theirs("10.5.200.0/24", "gone"))
	l.bubble(func() {
		l.fake.Inject(gcefake.Fault{Do: func() { time.Sleep(300 * time.Millisecond) }})
		each, leases := l.herd(n)
		l.fake.Forget()
		each(func(_ int, b *overlay) {
			if err := b.Sync(l.Context(), leases); err != nil {
				l.Error(err)
			}
		})
		time.Sleep(time.Second)
		if calls := l.fake.Calls(); len(calls) > n/2 {
			l.Errorf("all wake: %d requests", len(calls))
		}
		time.Sleep(6 * time.Minute)
		deleted := 0
		for _, w := range l.fake.Writes() {
			if strings.HasSuffix(w, dead) {
				deleted++
			}
		}
		if _, ok := l.fake.Route(dead); ok || deleted > 5 {
			l.Errorf("there: %v; %d hosts delete the route", ok, deleted)
		}
	})
}

// TestSpread: hosts that were started together do not look at the routes together.
func TestSpread(t *testing.T) {
	l := newLab(t)
	l.opts.CheckEvery = 8 * time.Minute
	var all []time.Duration
	for range 100 {
		all = append(all, l.backend("node-1").every)
	}
	least, most := slices.Min(all), slices.Max(all)
	if least < 7*time.Minute || most > 9*time.Minute || most-least < time.Minute {
		t.Errorf("from %s to %s", least, most)
	}
}
