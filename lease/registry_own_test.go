package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// TestOwnDisturbed: whatever somebody does to our entry, it is ours again soon, in
// place; nobody sees us missing, and nobody is told nonsense.
func TestOwnDisturbed(t *testing.T) {
	const junk, hour = "{junk", time.Hour
	for _, tc := range []struct {
		name     string
		do       func(c *cluster, key string)
		reserved bool
	}{
		{"deleted", func(c *cluster, key string) { c.remove(key) }, false},
		{"deleted twenty times", func(c *cluster, key string) {
			for range 20 {
				c.remove(key)
				settle(700 * time.Millisecond)
			}
		}, false},
		{"junk", func(c *cluster, key string) { c.put(key, junk, hour) }, false},
		{"junk, permanent", func(c *cluster, key string) { c.put(key, junk, 0) }, false}, // junk is no reservation
		{"junk, then mended at once", func(c *cluster, key string) {
			c.put(key, junk, hour)
			settle(time.Millisecond)
			c.put(key, value(1), hour)
		}, false},
		{"junk, then deleted", func(c *cluster, key string) {
			c.put(key, junk, hour)
			settle(time.Millisecond)
			c.remove(key)
		}, false},
		{"empty", func(c *cluster, key string) { c.put(key, "", hour) }, false},
		{"other attributes", func(c *cluster, key string) { c.put(key, `{"PublicIP":"192.0.2.1","BackendType":"x"}`, hour) }, false},
		{"the same, written in another way", func(c *cluster, key string) { c.put(key, `{ "PublicIP": "192.0.2.1" }`, hour) }, false},
		{"a reservation", func(c *cluster, key string) { c.put(key, `{"PublicIP":"192.0.2.1"}`, 0) }, true},
		{"a reservation with other attributes", func(c *cluster, key string) { c.put(key, `{"PublicIP":"192.0.2.1","BackendType":"x"}`, 0) }, true},
		{"a reservation, and back", func(c *cluster, key string) {
			c.put(key, `{"PublicIP":"192.0.2.1"}`, 0)
			settle(48 * time.Hour)
			c.put(key, `{"PublicIP":"192.0.2.1"}`, 10*time.Second)
		}, false},
		{"deleted and reserved", func(c *cluster, key string) { c.remove(key); c.put(key, `{"PublicIP":"192.0.2.1"}`, 0) }, true},
		{"a reservation, deleted", func(c *cluster, key string) {
			c.put(key, `{"PublicIP":"192.0.2.1"}`, 0)
			settle(time.Minute)
			c.remove(key) // by an operator who does not want it any more
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				hosts := c.start(3)
				h, key := hosts[0], hosts[0].key()
				seen := []int{len(h.seen()), len(hosts[1].seen()), len(hosts[2].seen())}
				tc.do(c, key.String())
				settle(time.Minute)
				checkOwn(t, c, h, key, tc.reserved)
				for i, p := range hosts {
					if i > 0 {
						p.neverWithout(seen[i], key)
					}
					if p.ended() {
						t.Errorf("host %d has ended: %v", i, p.err)
					}
				}
				h.neverWithout(seen[0], hosts[1].key(), hosts[2].key())
				for _, v := range h.seen()[seen[0]:] {
					if v.Own.Attrs.PublicIP != h.attrs.PublicIP {
						t.Errorf("reports its own lease as %+v", v.Own)
					}
				}
				settle(5 * 24 * time.Hour) // it lives on
				checkOwn(t, c, h, key, tc.reserved)
				if n := h.store.writes(); n > 40 {
					t.Errorf("%d writes in five days", n)
				}
			})
		})
	}
}

// checkOwn fails unless the host holds its key, the store says the same, and the last
// view as well.
func checkOwn(t *testing.T, c *cluster, h *simHost, key lease.Key, reserved bool) {
	t.Helper()
	if h.ended() {
		t.Fatalf("Run has ended: %v", h.err)
	}
	l, held := h.reg.Lease()
	e, ok := c.entry(key.String())
	if !held || !ok || l.Key != key || l.Revision != e.Revision || l.Reserved != reserved || e.Permanent != reserved || !l.Attrs.Equal(h.attrs) {
		t.Errorf("the lease is %+v (held %t), the store has %+v %q (%t), want reserved %t", l, held, e, e.Value, ok, reserved)
	}
	var a lease.Attrs
	if err := json.Unmarshal(e.Value, &a); err != nil || !a.Equal(h.attrs) {
		t.Errorf("the store says %q (%v), want %+v", e.Value, err, h.attrs)
	}
	if v := h.last(); v.Own.Key != key || !v.Own.Attrs.Equal(h.attrs) || v.Own.Reserved != reserved {
		t.Errorf("the last view says %+v, want reserved %t", v.Own, reserved)
	}
	if zero := h.reg.Stats().Expires.IsZero(); zero != reserved {
		t.Errorf("stats: %+v, reserved %t", h.reg.Stats(), reserved)
	}
}

// TestOwnSharedAddress: two hosts have one public address, and so one lease. Neither
// can know; what must not be is that they write against each other at full speed.
func TestOwnSharedAddress(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a, b, p := c.host(1), c.host(2), c.host(3)
		b.attrs.PublicIP = a.attrs.PublicIP
		a.attrs.BackendData, b.attrs.BackendData = json.RawMessage(`{"VtepMAC":"a"}`), json.RawMessage(`{"VtepMAC":"b"}`)
		for _, h := range c.hosts {
			h.join()
			h.run()
		}
		settle(time.Minute)
		for range 60 {
			before := a.store.writes() + b.store.writes()
			settle(time.Minute)
			if n := a.store.writes() + b.store.writes() - before; n > 30 {
				t.Errorf("%d writes in a minute", n)
			}
		}
		if a.ended() || b.ended() || a.key() != b.key() {
			t.Errorf("a ended %t %v, b ended %t %v", a.ended(), a.err, b.ended(), b.err)
		}
		p.neverWithout(1, a.key())
		if n := a.log.lines(); n > 1500 {
			t.Errorf("%d log lines in an hour", n)
		}
		// Once the other one is gone, the entry is ours.
		b.stop()
		settle(time.Minute)
		before := a.store.writes()
		settle(time.Hour)
		if n := a.store.writes() - before; n > 1 {
			t.Errorf("%d writes, though nobody disputes it", n)
		}
		checkOwn(t, c, a, a.key(), false)
	})
}

// TestOwnSharedAddressSame: with the same attributes there is no dispute at all.
func TestOwnSharedAddressSame(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a, b := c.host(1), c.host(1)
		for _, h := range c.hosts {
			h.join()
			h.run()
		}
		settle(7 * 24 * time.Hour)
		if n := a.store.writes() + b.store.writes(); n > 2+2*8 || a.ended() || b.ended() {
			t.Errorf("%d writes in a week, ended %t and %t", n, a.ended(), b.ended())
		}
	})
}

func TestOwnSetAttrs(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		hosts := c.start(2)
		h, p, key := hosts[0], hosts[1], hosts[0].key()
		set := func(a lease.Attrs) {
			h.attrs = a
			h.reg.SetAttrs(a)
		}
		set(lease.Attrs{PublicIP: addr4(1), BackendType: "vxlan", BackendData: json.RawMessage(`{"VtepMAC":"1"}`)})
		settle(time.Second)
		checkOwn(t, c, h, key, false)
		writes := h.store.writes()
		set(lease.Attrs{PublicIP: addr4(1), BackendType: "vxlan", BackendData: json.RawMessage(`{ "VtepMAC": "1" }`)})
		settle(time.Second)
		if h.store.writes() != writes {
			t.Error("the same attributes are written again")
		}
		set(lease.Attrs{PublicIP: addr4(77)}) // the host has moved
		settle(time.Second)
		checkOwn(t, c, h, key, false)
		if got := p.last().Peers[0]; !got.Attrs.Equal(h.attrs) || got.Key != key {
			t.Errorf("the peer sees %+v", got)
		}
		p.neverWithout(1, key)

		c.down(true)
		settle(time.Hour)
		set(lease.Attrs{PublicIP: addr4(78)})
		settle(10 * time.Minute)
		set(lease.Attrs{PublicIP: addr4(79)})
		settle(10 * time.Minute)
		if l, _ := h.reg.Lease(); l.Attrs.PublicIP == addr4(79) || h.store.perMinute() > 60 {
			t.Errorf("store away: lease %+v, %d calls in a minute", l, h.store.perMinute())
		}
		c.down(false)
		settle(time.Minute)
		checkOwn(t, c, h, key, false)
		if got := p.last().Peers[0]; got.Attrs.PublicIP != addr4(79) {
			t.Errorf("the peer sees %+v", got)
		}

		// While nothing runs: the next Run writes it.
		h.stop()
		set(lease.Attrs{PublicIP: addr4(80)})
		h.run()
		settle(time.Minute)
		checkOwn(t, c, h, key, false)
		// A change back and forth before Run looks is none.
		writes = h.store.writes()
		h.reg.SetAttrs(lease.Attrs{PublicIP: addr4(90)})
		h.reg.SetAttrs(h.attrs)
		settle(time.Minute)
		if n := h.store.writes() - writes; n > 2 {
			t.Errorf("%d writes", n)
		}
		checkOwn(t, c, h, key, false)
	})
}

// TestOwnMovedThenRestored: the host's address changes, and the store is set back to
// before. What is there then is our own old word.
func TestOwnMovedThenRestored(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		hosts := c.start(2)
		h, key := hosts[0], hosts[0].key()
		old := c.snapshot()
		h.attrs.PublicIP = addr4(77)
		h.reg.SetAttrs(h.attrs)
		settle(time.Minute)
		c.restore(old)
		settle(time.Minute)
		checkOwn(t, c, h, key, false)
		hosts[1].neverWithout(1, key)
	})
}

// TestOwnNonsenseAttrs: attributes that can't be written, or that nobody can read, do
// no harm to the lease and lead to no storm.
func TestOwnNonsenseAttrs(t *testing.T) {
	for name, a := range map[string]lease.Attrs{"no address": {}, "no JSON": {PublicIP: addr4(1), BackendData: json.RawMessage("{")}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				hosts := c.start(2)
				h, key := hosts[0], hosts[0].key()
				h.reg.SetAttrs(a)
				settle(time.Hour)
				if n := h.store.perMinute(); n > 60 || h.ended() {
					t.Errorf("%d calls in a minute, ended %t %v", n, h.ended(), h.err)
				}
				hosts[1].neverWithout(1, key)
				h.reg.SetAttrs(h.attrs)
				settle(time.Minute)
				checkOwn(t, c, h, key, false)
			})
		})
	}
}

func TestOwnRelease(t *testing.T) {
	for name, reserved := range map[string]bool{"lease": false, "reservation": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				p := c.start(1)[0]
				h := c.host(9)
				if reserved {
					c.put("10.5.99.0-24", value(9), 0)
				}
				if err := h.reg.Release(t.Context()); err != nil {
					t.Errorf("nothing to release: %v", err)
				}
				key := h.join()
				h.run()
				settle(time.Second)
				h.stop()
				e, _ := c.entry(key.String())
				h.store.setDown(true)
				if err := h.reg.Release(t.Context()); !errors.Is(err, errDown) && !reserved {
					t.Errorf("store away: %v", err)
				}
				h.store.setDown(false)
				if err := h.reg.Release(t.Context()); err != nil {
					t.Errorf("Release: %v", err)
				}
				if _, held := h.reg.Lease(); held {
					t.Error("still held")
				}
				if err := h.reg.Run(t.Context(), func(lease.View) {}); !errors.Is(err, lease.ErrNotHeld) {
					t.Errorf("Run after Release: %v", err)
				}
				settle(time.Minute)
				if reserved {
					c.untouched(e)
					p.hasKeys("10.5.99.0-24")
					return
				}
				if _, there := c.entry(key.String()); there {
					t.Error("the entry is still there")
				}
				p.has()
				if again := h.join(); again.Reserved {
					t.Errorf("joined again: %+v", again)
				}
			})
		})
	}
}

// TestOwnReleaseAfterLostAnswer: the last write's answer was lost, so that we do not
// know our entry's revision; it is ours all the same, and is to be given back.
func TestOwnReleaseAfterLostAnswer(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		h := c.start(1)[0]
		key := h.key()
		ctx, cancel := context.WithCancel(t.Context())
		h.store.hook(hooks{after: func(op string, _ int, err error) error {
			if op == "update" && err == nil {
				h.cancel()
				return fmt.Errorf("%w: %w", errLostAnswer, context.Canceled)
			}
			return err
		}})
		a := h.attrs
		a.BackendType = "x"
		h.reg.SetAttrs(a)
		<-h.done
		cancel()
		if err := h.reg.Release(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("Release: %v", err)
		}
		if e, there := c.entry(key.String()); there {
			t.Errorf("released without an error, and the store still has %s %q", e.Key, e.Value)
		}
	})
}
