package lease_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// A crowd is many hosts on one store, without what slows a simHost down: of each one
// only the last view is kept.
type crowd struct {
	mem   *memory.Store
	hosts []*crowdHost
}

type crowdHost struct {
	reg    *lease.Registry
	store  *tap
	attrs  lease.Attrs
	cancel context.CancelFunc
	done   chan struct{}
	err    error
	seen   func(h *crowdHost, peers int) // told of every view, if set

	mu   sync.Mutex
	view lease.View
	n    int // views
}

func newCrowd(n int) *crowd {
	c := &crowd{mem: memory.New(memory.Config{Network: `{"Network":"10.0.0.0/8","SubnetLen":24}`})}
	for i := range n {
		h := &crowdHost{store: newTap(c.mem.Share()), attrs: lease.Attrs{PublicIP: addr4(i)}}
		h.reg = lease.NewRegistry(h.store, lease.RegistryConfig{Rand: safeRand(uint64(i))})
		c.hosts = append(c.hosts, h)
	}
	return c
}

// join takes a lease and runs.
func (h *crowdHost) join() error {
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	if _, err := h.reg.Network(ctx); err != nil {
		return err
	}
	if _, err := h.reg.Acquire(ctx, h.attrs); err != nil {
		return err
	}
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		h.err = h.reg.Run(ctx, func(v lease.View) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.view = v
			h.n++
			if h.seen != nil {
				h.seen(h, len(v.Peers))
			}
		})
	}()
	return nil
}

// leave stops, and gives the lease back.
func (h *crowdHost) leave() error {
	if h.done == nil {
		return nil
	}
	h.cancel()
	<-h.done
	h.done = nil
	return h.reg.Release(context.Background())
}

// each does something with many hosts at once.
func each(hosts []*crowdHost, do func(*crowdHost) error) error {
	var all sync.WaitGroup
	errs := make([]error, len(hosts))
	for i, h := range hosts {
		all.Go(func() { errs[i] = do(h) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// requests returns how many calls of the store there were, the watches' beginnings
// included.
func (c *crowd) requests() int {
	n := 0
	for _, h := range c.hosts {
		n += h.store.count()
	}
	return n
}

// converged returns what is wrong unless every host that runs sees exactly the others.
func (c *crowd) converged() error {
	var running []*crowdHost
	var want []string
	for _, h := range c.hosts {
		if h.done == nil {
			continue
		}
		l, held := h.reg.Lease()
		if !held {
			return fmt.Errorf("%s holds no lease", h.attrs.PublicIP)
		}
		running, want = append(running, h), append(want, l.String())
	}
	slices.Sort(want)
	for _, h := range running {
		h.mu.Lock()
		v := h.view
		h.mu.Unlock()
		if err := soundView(v); err != nil {
			return fmt.Errorf("%s: %w", h.attrs.PublicIP, err)
		}
		got := append(keysOf(v.Peers), v.Own.String())
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s: sees %d hosts, %d are there", h.attrs.PublicIP, len(got), len(want))
		}
	}
	return nil
}

// A step does something to a crowd, and fails the test unless all converge.
func (c *crowd) step(t *testing.T, what string, do func() error) {
	t.Helper()
	before := c.requests()
	if err := do(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	settle(10 * time.Second)
	if err := c.converged(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	t.Logf("%s: %d requests", what, c.requests()-before)
}

// close ends all hosts, and then gives their leases back.
func (c *crowd) close(t *testing.T) {
	t.Helper()
	for _, h := range c.hosts {
		h.cancel()
	}
	if err := each(c.hosts, (*crowdHost).leave); err != nil {
		t.Error(err)
	}
}

// TestCluster: a thousand hosts join at once, some leave and come back, some crash;
// every host converges to the same set each time.
func TestCluster(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(n)
		c.step(t, "all join", func() error { return each(c.hosts, (*crowdHost).join) })
		for _, h := range c.hosts {
			if h.n > 12 {
				t.Errorf("%s has reported %d times", h.attrs.PublicIP, h.n)
			}
		}
		some := c.hosts[:n/20]
		c.step(t, "one in twenty leaves", func() error { return each(some, (*crowdHost).leave) })
		c.step(t, "they come back", func() error { return each(some, (*crowdHost).join) })
		c.step(t, "others crash and come back", func() error {
			return each(c.hosts[n/2:][:n/20], func(h *crowdHost) error {
				h.cancel()
				<-h.done
				return h.join()
			})
		})
		c.close(t)
		if l, _ := c.mem.List(t.Context()); len(l.Entries) != 0 {
			t.Errorf("%d entries are left", len(l.Entries))
		}
	})
}

// TestClusterWiped: all hosts at once find the store empty.
func TestClusterWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(80)
		c.step(t, "all join", func() error { return each(c.hosts, (*crowdHost).join) })
		c.step(t, "the store is wiped", func() error {
			c.mem.Wipe()
			c.mem.SetConfig(`{"Network":"10.0.0.0/8","SubnetLen":24}`)
			return nil
		})
		if l, _ := c.mem.List(t.Context()); len(l.Entries) != len(c.hosts) {
			t.Errorf("%d entries of %d hosts", len(l.Entries), len(c.hosts))
		}
		c.step(t, "half crashes", func() error {
			for i, h := range c.hosts[:40] {
				h.cancel()
				<-h.done
				if h.done = nil; i%2 == 0 {
					if err := h.join(); err != nil {
						return err
					}
				}
			}
			for i, h := range c.hosts[:40] {
				if i%2 != 0 { // its peers have it until it expires
					if err := h.join(); err != nil {
						return err
					}
				}
			}
			return nil
		})
		c.close(t)
	})
}

// churn lets one host leave and join again, and returns when all others have seen it.
func (c *crowd) churn(h *crowdHost) error {
	if err := h.leave(); err != nil {
		return err
	}
	settle(10 * time.Second)
	if err := h.join(); err != nil {
		return err
	}
	settle(time.Second)
	return nil
}

// TestClusterRequests: what a change costs the store grows linearly with the number of
// hosts at worst.
func TestClusterRequests(t *testing.T) {
	const changes = 10
	cost := make(map[int]float64)
	for _, n := range []int{10, 40, 160} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(n)
			if err := each(c.hosts, (*crowdHost).join); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			joining := float64(c.requests()) / float64(n)
			before := c.requests()
			for i := range changes {
				if err := c.churn(c.hosts[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.converged(); err != nil {
				t.Error(err)
			}
			cost[n] = float64(c.requests()-before) / (2 * changes)
			t.Logf("%d hosts: %.1f requests for each host that joins, %.1f for each change", n, joining, cost[n])
			if joining > 20 {
				t.Errorf("%d hosts: %.1f requests for each that joins", n, joining)
			}
			if err := each(c.hosts, (*crowdHost).leave); err != nil {
				t.Error(err)
			}
		})
	}
	if cost[40] > 4.5*cost[10] || cost[160] > 4.5*cost[40] {
		t.Errorf("requests per change: %v", cost)
	}
}

// A gauge counts the hosts whose last view has so many peers.
type gauge struct {
	mu    sync.Mutex
	all   *sync.Cond
	peers map[*crowdHost]int
	want  int
	right int
}

// saw notes a view.
func (g *gauge) saw(h *crowdHost, peers int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, there := g.peers[h]; there && old == g.want {
		g.right--
	}
	if g.peers[h] = peers; peers == g.want {
		g.right++
		g.all.Broadcast()
	}
}

// wait waits until all of so many hosts see all of the others.
func (g *gauge) wait(hosts int, gone *crowdHost) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.peers, gone)
	g.want, g.right = hosts-1, 0
	for _, n := range g.peers {
		if n == g.want {
			g.right++
		}
	}
	for g.right < hosts {
		g.all.Wait()
	}
}

// BenchmarkCluster measures one change (a host leaves, or joins) in a network of so many
// hosts, all of them on this machine: the time until every other host has reported it,
// which is never less than what a host waits in order to report many changes at once,
// and the requests to the store. An operation is a host that leaves and joins again.
func BenchmarkCluster(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint("hosts=", n), func(b *testing.B) {
			c := newCrowd(n)
			g := &gauge{peers: make(map[*crowdHost]int)}
			g.all = sync.NewCond(&g.mu)
			for _, h := range c.hosts {
				h.reg = lease.NewRegistry(h.store, lease.RegistryConfig{Linger: -1, Resync: time.Hour})
				h.seen = g.saw
			}
			begun := time.Now()
			if err := each(c.hosts, (*crowdHost).join); err != nil {
				b.Fatal(err)
			}
			g.wait(n, nil)
			joined := time.Since(begun)
			before, changes := c.requests(), 0
			begun = time.Now()
			for b.Loop() {
				h := c.hosts[changes/2%n]
				if err := h.leave(); err != nil {
					b.Fatal(err)
				}
				g.wait(n-1, h)
				if err := h.join(); err != nil {
					b.Fatal(err)
				}
				g.wait(n, nil)
				changes += 2
			}
			took := time.Since(begun)
			b.ReportMetric(float64(took.Milliseconds())/float64(changes), "ms/change")
			b.ReportMetric(float64(c.requests()-before)/float64(changes), "requests/change")
			b.ReportMetric(float64(joined.Milliseconds()), "ms-all-join")
			if err := each(c.hosts, (*crowdHost).leave); err != nil {
				b.Fatal(err)
			}
		})
	}
}
