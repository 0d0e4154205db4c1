package lease_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// TestKeepRenewsInTime: from margin before the end to a tenth of it earlier, and not
// all hosts at the same moment.
func TestKeepRenewsInTime(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		begun := time.Now()
		hosts := c.start(10)
		settle(10 * 24 * time.Hour)
		moments := make(map[time.Duration]bool)
		for _, h := range hosts {
			times := h.store.when("renew")
			last := begun
			for i, at := range times {
				d := at.Sub(last)
				if i > 0 && (d > 23*time.Hour || d < 23*time.Hour-6*time.Minute) || i == 0 && d > 23*time.Hour+time.Second {
					t.Errorf("renewal %d after %v, want 23 h or up to 6 min less", i, d)
				}
				last = at
			}
			moments[times[0].Sub(begun)] = true
			if e, ok := c.entry(h.key().String()); !ok || e.Permanent || e.Revision >= 12 {
				t.Errorf("entry %+v, %t", e, ok)
			}
			s := h.reg.Stats()
			if s.Renewals != uint64(len(times)) || len(times) != 10 || s.RenewErrors != 0 || s.StoreErrors != 0 || s.Retaken != 0 {
				t.Errorf("%d renewals, stats %+v", len(times), s)
			}
			if left := time.Until(s.Expires); left < 50*time.Minute || left > 24*time.Hour {
				t.Errorf("expires in %v", left)
			}
			if len(h.seen()) > 12 {
				t.Errorf("%d views, though nothing changed", len(h.seen()))
			}
		}
		if len(moments) < 9 {
			t.Errorf("10 hosts renew at %d moments only", len(moments))
		}
	})
}

// TestKeepMargins: whatever margin is asked for, a lease lives on, and is not renewed
// all the time.
func TestKeepMargins(t *testing.T) {
	most := func(n uint64) uint64 { return n - 1 }
	for _, tc := range []struct {
		ttl, margin time.Duration
		want        int // renewals in an hour, at most
	}{
		{100 * time.Second, 100 * time.Second, 80}, {100 * time.Second, time.Hour, 80}, {100 * time.Second, 50 * time.Second, 80},
		{100 * time.Second, 90 * time.Second, 3700}, {100 * time.Second, 99 * time.Second, 3700}, {10 * time.Second, 9900 * time.Millisecond, 40000},
		{time.Second, time.Millisecond, 7200}, {1500 * time.Millisecond, time.Second, 7200},
	} {
		t.Run(fmt.Sprint(tc.ttl, tc.margin), func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				c.start(1, ttl(tc.ttl, tc.margin), func(cfg *lease.RegistryConfig) { cfg.Rand = most })
				h := c.hosts[0]
				settle(time.Hour)
				n := h.store.count("renew")
				if s := h.reg.Stats(); s.Retaken != 0 || n == 0 || n > tc.want {
					t.Errorf("%d renewals in an hour, want up to %d; retaken %d times", n, tc.want, s.Retaken)
				}
			})
		})
	}
}

// perMinute returns the most calls within any minute.
func (s *tap) perMinute() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	minutes, most := make(map[int64]int), 0
	for _, times := range s.times {
		for _, at := range times {
			minutes[at.Unix()/60]++
			most = max(most, minutes[at.Unix()/60])
		}
	}
	return most
}

// TestKeepOutage: two days without the store. Nobody loses a peer, nobody asks all the
// time, the log stays readable, and all is well again afterwards.
func TestKeepOutage(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		hosts := c.start(3)
		views := make([]int, len(hosts))
		for i, h := range hosts {
			views[i] = len(h.seen())
			h.log.buf.Reset()
		}
		c.down(true)
		settle(48 * time.Hour)
		for i, h := range hosts {
			if h.ended() {
				t.Fatalf("Run has ended: %v", h.err)
			}
			if n := len(h.seen()); n != views[i] {
				t.Errorf("%d more views", n-views[i])
			}
			if n := h.store.perMinute(); n > 60 {
				t.Errorf("%d calls in a minute", n)
			}
			if n := h.log.lines(); n > 48*60 {
				t.Errorf("%d log lines in 48 hours, the first:\n%.1500s", n, h.log.all())
			}
			if n := h.log.lines("level=ERROR"); n != 1 {
				t.Errorf("%d errors logged for a lease that has run out once", n)
			}
			if s := h.reg.Stats(); s.StoreErrors < 100 || s.RenewErrors < 10 || time.Until(s.Expires) > -23*time.Hour {
				t.Errorf("stats %+v", s)
			}
		}
		c.down(false)
		settle(time.Minute)
		for i, h := range hosts {
			h.has(append(append([]*simHost(nil), hosts[:i]...), hosts[i+1:]...)...)
			for j, p := range hosts {
				if j != i {
					h.neverWithout(views[i], p.key())
				}
			}
			if s := h.reg.Stats(); s.Retaken != 1 {
				t.Errorf("retaken %d times", s.Retaken)
			}
		}
		if c.disjoint(); len(c.entries()) != 3 {
			t.Errorf("the store has %v", c.entries())
		}
	})
}

// TestKeepRenewFails: only writes fail, watches go on. The lease expires, and is taken
// again as soon as the store lets us.
func TestKeepRenewFails(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a, b := c.host(1, ttl(time.Hour, 10*time.Minute)), c.host(2)
		for _, h := range c.hosts {
			h.join()
			h.run()
		}
		settle(time.Second)
		var denied atomic.Bool
		denied.Store(true)
		a.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
			if denied.Load() && (op == "renew" || op == "create" || op == "update") {
				return fmt.Errorf("tap: %w", lease.ErrDenied)
			}
			return nil
		}})
		settle(3 * time.Hour)
		if n := a.store.perMinute(); n > 40 || n < 6 {
			t.Errorf("%d calls in a minute", n)
		}
		b.hasKeys() // it was gone for longer than linger
		key := a.key()
		denied.Store(false)
		settle(30 * time.Second)
		if a.key() != key || a.reg.Stats().Retaken != 1 {
			t.Errorf("has %s, had %s; retaken %d times", a.key(), key, a.reg.Stats().Retaken)
		}
		b.has(a)
	})
}

// TestKeepLostAnswer: a write has taken effect, and the answer was lost. What comes
// back by the watch is our own doing, not somebody else's.
func TestKeepLostAnswer(t *testing.T) {
	changes := map[string]func(c *cluster, h *simHost){
		"renew":            func(_ *cluster, h *simHost) { settle(24 * time.Hour) },
		"create":           func(c *cluster, h *simHost) { c.remove(h.key().String()) },
		"update":           func(_ *cluster, h *simHost) { a := h.attrs; a.BackendType = "vxlan"; h.attrs = a; h.reg.SetAttrs(a) },
		"update, new addr": func(_ *cluster, h *simHost) { h.attrs.PublicIP = addr4(77); h.reg.SetAttrs(h.attrs) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				hosts := c.start(2)
				h, key, lost := hosts[0], hosts[0].key(), 0
				h.store.hook(hooks{after: func(op string, _ int, err error) error {
					if err == nil && strings.HasPrefix(name, op) && lost == 0 {
						lost++
						return errLostAnswer
					}
					return err
				}})
				change(c, h)
				settle(time.Minute)
				if lost != 1 {
					t.Fatalf("%d answers were lost", lost)
				}
				if h.ended() {
					t.Fatalf("Run has ended: %v", h.err)
				}
				l, _ := h.reg.Lease()
				e, ok := c.entry(key.String())
				if !ok || l.Key != key || !l.Attrs.Equal(h.attrs) || e.Revision != l.Revision {
					t.Errorf("the lease is %+v, the store has %+v, %t", l, e, ok)
				}
				hosts[1].neverWithout(1, key)
				if got := hosts[1].last().Peers[0].Attrs; !got.Equal(h.attrs) {
					t.Errorf("the peer sees %+v", got)
				}
				settle(3 * 24 * time.Hour)
				if s := h.reg.Stats(); s.Retaken > 1 || h.ended() {
					t.Errorf("later: ended %t %v, stats %+v", h.ended(), h.err, s)
				}
				if n := h.store.writes(); n > 10 {
					t.Errorf("%d writes in three days", n)
				}
			})
		})
	}
}

// TestKeepStaleListing: the periodic listing is under way, slow, while a conflict makes
// Run list as well. The older answer comes last, and is not a store set back in time.
func TestKeepStaleListing(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a := c.host(1, ttl(time.Hour, 10*time.Minute))
		a.join()
		a.run()
		settle(time.Second)
		var stuck atomic.Bool
		goOn := make(chan struct{})
		a.store.hook(hooks{listed: func(*lease.Listing) {
			if stuck.CompareAndSwap(false, true) {
				<-goOn
			}
		}})
		for !stuck.Load() {
			settle(time.Second)
		}
		// No watch runs now. The entry changes, which the renewal finds out.
		c.put(a.key().String(), value(1), time.Hour)
		b := c.host(2)
		b.join()
		settle(55 * time.Minute)
		close(goOn)
		settle(time.Minute)
		if a.log.lines("wiped") > 0 {
			t.Errorf("it believes that the store was wiped:\n%s", a.log.all())
		}
		a.has(b)
		if err := b.reg.Release(t.Context()); err != nil {
			t.Error(err)
		}
		settle(10 * time.Minute)
		a.has()
	})
}

// TestKeepBrokenStore: a store that says conflict to everything, or yes to nothing, is
// not asked all the time either.
func TestKeepBrokenStore(t *testing.T) {
	for name, err := range map[string]error{"conflict": lease.ErrConflict, "exists": lease.ErrExists, "compacted": lease.ErrCompacted, "other": errors.New("tap: no")} {
		t.Run(name, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				h := c.host(1, ttl(10*time.Minute, time.Minute))
				h.join()
				h.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
					if op == "list" || op == "config" {
						return nil
					}
					return err
				}})
				h.run()
				settle(time.Second)
				settle(6 * time.Hour)
				if n := h.store.perMinute(); n > 300 {
					t.Errorf("%d calls in a minute", n)
				}
				if n := h.log.lines(); n > 6*200 {
					t.Errorf("%d log lines in 6 hours", n)
				}
			})
		})
	}
}

// TestKeepRunTwice: what can't be done while Run runs says so, and can be afterwards.
func TestKeepRunTwice(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.start(1)[0]
		if err := h.reg.Run(t.Context(), func(lease.View) { t.Error("reports") }); !errors.Is(err, lease.ErrRunning) {
			t.Errorf("Run: %v", err)
		}
		if _, err := h.reg.Acquire(t.Context(), h.attrs); !errors.Is(err, lease.ErrRunning) {
			t.Errorf("Acquire: %v", err)
		}
		if err := h.reg.Release(t.Context()); !errors.Is(err, lease.ErrRunning) {
			t.Errorf("Release: %v", err)
		}
		if _, err := h.reg.Network(t.Context()); err != nil {
			t.Errorf("Network: %v", err)
		}
		if err := h.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run has ended with %v", err)
		}
		first := h.key()
		h.views = nil
		h.run()
		settle(time.Second)
		if h.key() != first || len(h.seen()) != 1 {
			t.Errorf("after another Run: %s, had %s; %d views", h.key(), first, len(h.seen()))
		}
	})
}

// TestKeepRunAgain: a second Run starts from what is, not from what was when the lease
// was acquired.
func TestKeepRunAgain(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a := c.start(1)[0]
		b := c.host(2)
		b.join()
		b.run()
		settle(time.Second)
		a.has(b)
		a.stop()
		before := len(a.seen())
		settle(time.Minute)
		a.run()
		settle(time.Minute)
		if len(a.seen()) == before {
			t.Error("the second Run reports nothing")
		}
		a.neverWithout(before, b.key())
	})
}

// TestKeepReportDoesWhatItLikes: report may call the Registry, and may be slow.
func TestKeepReportDoesWhatItLikes(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.host(1)
		h.join()
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := h.reg.Run(ctx, func(v lease.View) {
			n++
			if _, held := h.reg.Lease(); !held || h.reg.Stats().Peers != len(v.Peers) {
				t.Errorf("Lease, Stats: %t, %d peers of %d", held, h.reg.Stats().Peers, len(v.Peers))
			}
			if err := h.reg.Release(ctx); !errors.Is(err, lease.ErrRunning) {
				t.Errorf("Release: %v", err)
			}
			switch n {
			case 1:
				c.put("10.5.200.0-24", value(99), time.Hour)
				time.Sleep(time.Minute)
				c.put("10.5.201.0-24", value(98), time.Hour)
			case 2:
				if len(v.Peers) != 2 {
					t.Errorf("peers %v", keysOf(v.Peers))
				}
				a := h.attrs
				a.BackendType = "x"
				h.reg.SetAttrs(a)
			case 3:
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) || n != 3 {
			t.Errorf("%v after %d views", err, n)
		}
		synctest.Wait()
	})
}
