package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// TestWatchViews: complete, in order, without own; the first at once, bursts in few,
// none without a change.
func TestWatchViews(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		for i := range 5 {
			c.put(fmt.Sprintf("10.5.%d.0-24", 50-i), value(50+i), 24*time.Hour)
		}
		h := c.host(1, previous("10.5.48.0-24"))
		second := c.put("10.5.99.0-24", value(1), 24*time.Hour) // another lease with our address
		h.join()
		if l, _ := h.reg.Lease(); l.String() != second.Key {
			t.Fatalf("holds %s", l.Key)
		}
		c.put("10.5.98.0-24", value(1), 24*time.Hour)
		begun := time.Now()
		h.run()
		synctest.Wait()
		if len(h.seen()) == 0 || !h.at[0].Equal(begun) {
			t.Fatalf("no view at once: %v", h.at)
		}
		settle(time.Second)
		h.hasKeys("10.5.46.0-24", "10.5.47.0-24", "10.5.48.0-24", "10.5.49.0-24", "10.5.50.0-24")
		views := len(h.seen())
		for i := range 200 {
			c.put(fmt.Sprintf("10.5.%d.%d-28", 100+i/16, i%16*16), value(300+i), 24*time.Hour)
			time.Sleep(time.Millisecond)
		}
		settle(time.Second)
		if n := len(h.seen()) - views; n > 6 {
			t.Errorf("%d views for 200 peers in 200 ms", n)
		}
		if n := len(h.last().Peers); n != 205 || h.reg.Stats().Peers != n {
			t.Errorf("%d peers, stats %d, want 205", n, h.reg.Stats().Peers)
		}
		views = len(h.seen())
		for range 10 { // the same again is no change
			c.put("10.5.50.0-24", `{"PublicIP":"192.0.2.50"}`, 24*time.Hour)
			settle(time.Second)
		}
		settle(10 * time.Minute)
		if n := len(h.seen()) - views; n != 0 {
			t.Errorf("%d views though nothing changed", n)
		}
		c.put("10.5.50.0-24", `{"PublicIP":"192.0.2.50","BackendType":"x"}`, 24*time.Hour)
		settle(time.Second)
		if n := len(h.seen()) - views; n != 1 {
			t.Errorf("%d views of a peer's new attributes", n)
		}
		settle(25 * time.Hour)
		h.hasKeys() // all have run out
	})
}

// TestWatchFirstView: what Run has to do itself, with a store that takes its time, does
// not hold up the first view.
func TestWatchFirstView(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		c.put("10.5.50.0-24", value(50), 24*time.Hour)
		h := c.host(1)
		h.join()
		h.store.hook(hooks{before: func(ctx context.Context, op string, _ int) error {
			select {
			case <-time.After(20 * time.Second):
				return fmt.Errorf("tap: %s: timeout", op)
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		h.attrs.BackendType = "x"
		h.reg.SetAttrs(h.attrs)
		h.run()
		settle(time.Second)
		if len(h.seen()) == 0 {
			t.Error("no view, as Run waits for the store")
		}
	})
}

// TestWatchTrouble: watches that end, in every way and all the time. Nothing is lost,
// nobody asks at full speed, and the log does not fill up.
func TestWatchTrouble(t *testing.T) {
	other := errors.New("tap: the watch has ended")
	for name, err := range map[string]error{"compacted": lease.ErrCompacted, "error": other} {
		for _, heard := range []bool{false, true} {
			t.Run(fmt.Sprint(name, heard), func(t *testing.T) {
				bubble(t, network4, func(t *testing.T, c *cluster) {
					hosts := c.start(3)
					h := hosts[0]
					seen := len(h.seen())
					trouble := &breaking{Store: c.mem.Share(), err: err, heard: heard}
					h.store.swap(trouble)
					settle(time.Hour)
					if n := h.store.perMinute(); n > 200 {
						t.Errorf("%d calls in a minute", n)
					}
					if n := h.log.lines(); n > 200 {
						t.Errorf("%d log lines in an hour, the last:\n%s", n, h.log.all()[len(h.log.all())-600:])
					}
					p := c.host(9)
					p.join()
					settle(20 * time.Minute) // a resync at the latest
					if h.ended() {
						t.Fatal(h.err)
					}
					h.has(hosts[1], hosts[2], p)
					h.neverWithout(seen, hosts[1].key(), hosts[2].key())
					h.store.swap(c.mem.Share())
					settle(10 * time.Minute) // so that what vanishes does not linger for the trouble's sake
					c.remove(p.key().String())
					settle(10 * time.Second)
					h.has(hosts[1], hosts[2])
				})
			})
		}
	}
}

// A breaking Store ends every watch at once, after an empty batch if heard is set.
type breaking struct {
	lease.Store
	err   error
	heard bool
}

func (s *breaking) Watch(_ context.Context, after uint64, fn func(lease.Batch)) error {
	if s.heard {
		fn(lease.Batch{Revision: after})
	}
	return s.err
}

// TestWatchResync: what the watch misses, the periodic listing finds; also where the
// watch ends now and then and begins anew.
func TestWatchResync(t *testing.T) {
	for _, flapping := range []bool{false, true} {
		t.Run(fmt.Sprint("flapping ", flapping), func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				h := c.host(1)
				h.store.hook(hooks{filter: func(b lease.Batch) (lease.Batch, bool) { return lease.Batch{Revision: b.Revision}, true }})
				h.join()
				h.run()
				settle(time.Second)
				p := c.host(2)
				p.join()
				for range 20 {
					settle(time.Minute)
					if flapping {
						h.store.breakWatch()
					}
				}
				h.has(p)
				c.remove(p.key().String())
				settle(12 * time.Minute)
				h.store.breakWatch()
				settle(12 * time.Minute)
				h.has()
				if s := h.reg.Stats(); s.Relists < 4 || s.Relists > 20 {
					t.Errorf("%d relists in 44 minutes", s.Relists)
				}
			})
		})
	}
}

// TestWatchCompacted: changes while the watch is away, and history is dropped.
func TestWatchCompacted(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		hosts := c.start(4)
		h := hosts[0]
		h.store.setDown(true)
		settle(time.Minute)
		moved := hosts[1].key().String()
		hosts[1].stop()
		c.put(moved, `{"PublicIP":"198.51.100.1"}`, 24*time.Hour)
		hosts[2].stop()
		if err := hosts[2].reg.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := c.host(9)
		p.join()
		c.mem.Compact()
		seen := len(h.seen())
		h.store.setDown(false)
		settle(time.Minute)
		h.hasKeys(moved, hosts[3].key().String(), p.key().String())
		h.neverWithout(seen, hosts[1].key(), hosts[3].key())
		for _, l := range h.last().Peers {
			if l.String() == moved && l.Attrs.PublicIP.String() != "198.51.100.1" {
				t.Errorf("the peer's new address was missed: %+v", l)
			}
		}
	})
}

// TestWatchWiped: the store loses everything. Nobody loses a peer, and soon all is in
// it again.
func TestWatchWiped(t *testing.T) {
	for _, kind := range []string{"all there", "one away", "unseen"} {
		t.Run(kind, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				hosts := c.start(3)
				c.put("10.5.250.0-24", value(250), 24*time.Hour) // one that is away for a while
				c.put("10.5.251.0-24", value(251), 0)
				settle(time.Second)
				seen := make([]int, 3)
				for i, h := range hosts {
					seen[i] = len(h.seen()) - 1
				}
				if kind != "all there" { // one of them comes back late
					hosts[2].store.setDown(true)
				}
				c.mem.Wipe()
				c.mem.SetConfig(network4)
				settle(time.Hour)
				if kind == "unseen" { // the new store's revision is past the old one's
					for range 50 {
						c.put("junk", "x", time.Second)
					}
				}
				hosts[2].store.setDown(false)
				settle(7 * time.Minute)
				for i, h := range hosts {
					if h.ended() {
						t.Fatalf("host %d: %v", i, h.err)
					}
					for j, p := range hosts {
						if i != j {
							h.neverWithout(seen[i], p.key())
						}
					}
					h.neverWithout(seen[i], mustKey("10.5.250.0-24"), mustKey("10.5.251.0-24"))
					checkOwn(t, c, h, h.key(), false)
					if n := h.log.lines("wiped"); n < 1 || n > 2 {
						t.Errorf("host %d says %d times that the store was wiped", i, n)
					}
				}
				settle(25 * time.Hour)
				for i, h := range hosts {
					h.has(hosts[(i+1)%3], hosts[(i+2)%3])
				}
			})
		})
	}
}

// TestWatchRestored: the store is set back to a backup, in which one peer is missing
// and another one has an old address.
func TestWatchRestored(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		hosts := c.start(2)
		backup := c.snapshot()
		late := c.host(9)
		late.join()
		late.run()
		settle(time.Second)
		hosts[1].attrs.BackendType = "x"
		hosts[1].reg.SetAttrs(hosts[1].attrs)
		settle(time.Second)
		all := append(hosts, late)
		seen := []int{len(hosts[0].seen()) - 1, len(hosts[1].seen()) - 1, len(late.seen()) - 1}
		c.restore(backup)
		settle(time.Minute)
		for i, h := range all {
			for j, p := range all {
				if i != j {
					h.neverWithout(seen[i], p.key())
				}
			}
			checkOwn(t, c, h, h.key(), false)
		}
		i := slices.IndexFunc(hosts[0].last().Peers, func(l lease.Lease) bool { return l.Key == hosts[1].key() })
		if got := hosts[0].last().Peers[i]; !got.Attrs.Equal(hosts[1].attrs) {
			t.Errorf("the peer has old attributes: %+v", got)
		}
		settle(48 * time.Hour)
		for i, h := range all {
			h.has(all[(i+1)%3], all[(i+2)%3])
		}
	})
}

// TestWatchJunk: keys and values that nobody can read are reported once and skipped.
func TestWatchJunk(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		c.put("junk", "junk", 0)
		hosts := c.start(2)
		h, p := hosts[0], hosts[1]
		for _, key := range []string{"", "config", "10.5.3.0", "10.5.3.0-33", "10.5.3.1-24", "010.5.3.0-24", "a/b", "10.5.4.0-24", "10.5.5.0-24&fd00::-64&x"} {
			c.put(key, "null", 0)
		}
		settle(time.Second)
		h.has(p)
		p.stop()
		seen := len(h.seen()) - 1
		for i, v := range []string{"", "{", "null", "[]", `{"PublicIP":"0.0.0.0"}`, `{"PublicIP":7}`, `{"PublicIP":"fd00::1"}`, string(make([]byte, 100))} {
			c.put(p.key().String(), v, 24*time.Hour)
			settle(time.Second)
			if s := h.reg.Stats(); s.Unreadable != uint64(11+i) {
				t.Errorf("%d unreadable, want %d", s.Unreadable, 11+i)
			} else if s.UnreadableNow != 11 {
				t.Errorf("%d unreadable at present, want 11", s.UnreadableNow)
			}
		}
		settle(20 * time.Hour)
		h.neverWithout(seen, p.key())
		if n := h.log.lines("skipping"); n != 11 {
			t.Errorf("%d times reported, want ten of eighteen, and once that there are more", n)
		}
		if n := len(h.seen()) - seen - 1; n != 0 {
			t.Errorf("%d views for junk", n)
		}
		c.remove(p.key().String())
		settle(4 * time.Second)
		h.has(p)
		settle(2 * time.Second)
		h.has()
		c.put(p.key().String(), value(2), time.Hour)
		settle(time.Second)
		h.has(p)
		if s := h.reg.Stats(); s.UnreadableNow != 10 {
			t.Errorf("%d unreadable after one was mended, want 10", s.UnreadableNow)
		}
		for _, key := range []string{"", "config", "10.5.3.0", "junk"} {
			c.remove(key)
		}
		settle(time.Second)
		if s := h.reg.Stats(); s.UnreadableNow != 6 || s.Unreadable != 18 {
			t.Errorf("%d unreadable after four were removed, %d ever, want 6 and 18", s.UnreadableNow, s.Unreadable)
		}
	})
}

// TestWatchLinger: who comes back in time was never away; whoever is there instead
// replaces at once.
func TestWatchLinger(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.start(1)[0]
		const key = "10.5.200.0-24"
		c.put(key, value(99), time.Hour)
		settle(time.Second)
		seen := len(h.seen()) - 1
		for range 10 {
			c.remove(key)
			settle(4 * time.Second)
			c.put(key, value(99), time.Hour)
			settle(time.Second)
		}
		if h.neverWithout(seen, mustKey(key)); len(h.seen()) != seen+1 {
			t.Errorf("%d views though nothing has changed", len(h.seen())-seen-1)
		}
		c.remove(key)
		settle(time.Second)
		c.put(key, value(98), time.Hour)
		settle(100 * time.Millisecond)
		if got := h.last().Peers; len(got) != 1 || got[0].Attrs.PublicIP != addr4(98) {
			t.Errorf("leased again by another: peers %+v", got)
		}
		c.remove(key)
		settle(time.Second)
		c.put("10.5.200.0-25", value(97), time.Hour)
		settle(100 * time.Millisecond)
		h.hasKeys("10.5.200.0-25")
		none := c.host(5, func(cfg *lease.RegistryConfig) { cfg.Linger = -1 })
		none.join()
		none.run()
		settle(time.Second)
		c.remove("10.5.200.0-25")
		settle(100 * time.Millisecond)
		none.has(h)
		h.hasKeys("10.5.200.0-25", none.key().String())
		settle(5 * time.Second)
		h.has(none)
	})
}

// TestWatchLingerQuiet: that nothing has happened for a while is no outage. Whoever is
// gone then is gone after linger, whatever the margin.
func TestWatchLingerQuiet(t *testing.T) {
	for _, margin := range []time.Duration{30 * time.Second, 10 * time.Minute} {
		t.Run(margin.String(), func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				h := c.start(1, ttl(time.Hour, margin))[0]
				for range 5 {
					c.put("10.5.200.0-24", value(99), 24*time.Hour)
					settle(29 * time.Minute)
					c.remove("10.5.200.0-24")
					settle(4 * time.Second)
					h.hasKeys("10.5.200.0-24")
					settle(2 * time.Second)
					h.has()
				}
			})
		})
	}
}

// TestWatchConfig: a changed configuration is said once, without its secrets.
func TestWatchConfig(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.start(1)[0]
		c.mem.SetConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec","PSK":"hush-hush-hush"}}`)
		settle(24 * time.Hour)
		if n := h.log.lines("configuration has changed"); n != 1 {
			t.Errorf("said %d times:\n%s", n, h.log.all())
		}
		if h.log.lines("hush") > 0 {
			t.Errorf("the log has the secret:\n%s", h.log.all())
		}
		c.mem.SetConfig(`{"Network":"10.6.0.0/16"}`)
		settle(24 * time.Hour)
		if n := h.log.lines("configuration has changed"); n != 2 {
			t.Errorf("said %d times:\n%s", n, h.log.all())
		}
		if h.ended() {
			t.Error(h.err)
		}
	})
}
