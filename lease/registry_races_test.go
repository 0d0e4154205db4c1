package lease_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// Two keys can differ and yet overlap: one IPv4 subnet with two IPv6 subnets, or other
// lengths while the configuration changes. The store can't prevent that, so whoever
// shares a subnet has to find out. These tests make every order in which it happens.

const (
	keyA = "10.5.7.0-24&fd00:5:0:a::-64"
	keyB = "10.5.7.0-24&fd00:5:0:b::-64" // the same IPv4 subnet
)

// previous makes a host ask for a key.
func previous(key string) func(*lease.RegistryConfig) {
	return func(c *lease.RegistryConfig) { c.Previous = mustKey(key) }
}

// oneOwner fails unless at most one host is left in each subnet: the others have other
// subnets, or their Run has ended with ErrLost. Who can't reach the store can't know.
func (c *cluster) oneOwner(away ...*simHost) {
	c.t.Helper()
	for i, a := range c.hosts {
		la, held := a.reg.Lease()
		if !held || a.cancel == nil || a.ended() || slices.Contains(away, a) {
			continue
		}
		for _, b := range c.hosts[:i] {
			lb, held := b.reg.Lease()
			if held && b.cancel != nil && !b.ended() && !slices.Contains(away, b) && la.Overlaps(lb.Key) {
				c.t.Errorf("%s has %s and %s has %s, and neither knows", a.attrs.PublicIP, la.Key, b.attrs.PublicIP, lb.Key)
			}
		}
	}
}

// TestRaceOlderIsUpdated: the one that was first changes its attributes before the
// other one looks who else is there, so that its revision is the later one.
func TestRaceOlderIsUpdated(t *testing.T) {
	bubble(t, network46, func(t *testing.T, c *cluster) {
		a, b := c.host(1, previous(keyA)), c.host(2, previous(keyB))
		b.store.hook(hooks{before: func(_ context.Context, op string, n int) error {
			if op == "create" && a.cancel == nil { // b has listed, and seen nobody
				a.join()
				a.run()
				settle(time.Second)
			}
			return nil
		}})
		once := true
		b.store.hook(hooks{after: func(op string, _ int, err error) error {
			if op == "create" && err == nil && once {
				once = false
				changed := a.attrs
				changed.BackendType = "other"
				a.reg.SetAttrs(changed)
				settle(time.Second)
			}
			return err
		}})
		b.join()
		b.run()
		settle(time.Hour)
		c.oneOwner()
	})
}

// TestRaceCreateLostAnswer: b has made an entry that overlaps, and does not know; the
// next Acquire finds it by its address, and has to look again who else is there.
func TestRaceCreateLostAnswer(t *testing.T) {
	for _, op := range []string{"create", "list"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, network46, func(t *testing.T, c *cluster) {
				a, b := c.host(1, previous(keyA)), c.host(2, previous(keyB))
				created, failed := false, false
				b.store.hook(hooks{before: func(_ context.Context, o string, _ int) error {
					if o == "create" && !created {
						created = true
						a.join()
						a.run()
						settle(time.Second)
					}
					return nil
				}})
				b.store.hook(hooks{after: func(o string, _ int, err error) error {
					if o == op && created && !failed && err == nil {
						failed = true
						return errLostAnswer
					}
					return err
				}})
				if _, err := b.tryJoin(t.Context()); !errors.Is(err, errLostAnswer) {
					t.Fatalf("b: %v", err)
				}
				b.join()
				b.run()
				settle(time.Hour)
				c.oneOwner()
				if a.ended() {
					t.Errorf("a was first, and has lost: %v", a.err)
				}
			})
		})
	}
}

// TestRaceRetake: a's entry is deleted, and before a has taken it again another host
// has made one that overlaps.
func TestRaceRetake(t *testing.T) {
	bubble(t, network46, func(t *testing.T, c *cluster) {
		a, b := c.host(1, previous(keyA)), c.host(2, previous(keyB))
		a.join()
		a.run()
		settle(time.Second)
		raced := false
		a.store.hook(hooks{before: func(_ context.Context, op string, _ int) error {
			if op == "create" && !raced {
				raced = true
				b.join()
				b.run()
			}
			return nil
		}})
		c.remove(keyA)
		settle(time.Hour)
		if !raced {
			t.Fatal("a did not take its lease again")
		}
		c.oneOwner()
	})
}

// TestRaceForeign: flannel, or an operator, makes an entry that overlaps a live lease.
// The lease stands, being the older one; the peers see both.
func TestRaceForeign(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a := c.host(1, previous("10.5.7.0-24"))
		a.join()
		a.run()
		settle(time.Second)
		c.put("10.5.7.128-25", value(99), time.Hour)
		mine, _ := c.entry("10.5.7.0-24")
		settle(30 * time.Minute)
		if a.ended() {
			if !errors.Is(a.err, lease.ErrLost) {
				t.Errorf("a has ended: %v", a.err)
			}
			return
		}
		c.untouched(mine)
		a.hasKeys("10.5.7.128-25")
	})
}

// TestRaceTakenWhileAway: the lease has run out while the store could not be reached,
// and another host has the subnet, the same key or one that overlaps.
func TestRaceTakenWhileAway(t *testing.T) {
	for _, key := range []string{"10.5.7.0-24", "10.5.7.0-25", "10.5.0.0-20"} {
		t.Run(key, func(t *testing.T) {
			bubble(t, network4, func(t *testing.T, c *cluster) {
				a := c.host(1, previous("10.5.7.0-24"), ttl(time.Hour, 10*time.Minute))
				a.join()
				a.run()
				settle(time.Minute)
				a.store.setDown(true)
				settle(2 * time.Hour)
				if a.ended() || a.log.lines("level=ERROR") != 1 {
					t.Errorf("ended: %t, log:\n%s", a.ended(), a.log.all())
				}
				theirs := c.put(key, value(99), 24*time.Hour)
				settle(time.Hour)
				a.store.setDown(false)
				settle(time.Minute)
				if !a.ended() || !errors.Is(a.err, lease.ErrLost) {
					t.Fatalf("ended: %t, %v; want ErrLost", a.ended(), a.err)
				}
				for _, word := range []string{"192.0.2.99", "10.5.7.0-24", key} {
					if !strings.Contains(a.err.Error(), word) {
						t.Errorf("%q does not have %s", a.err, word)
					}
				}
				if err := a.reg.Release(t.Context()); err != nil {
					t.Errorf("Release of a lost lease: %v", err)
				}
				c.untouched(theirs)
				if len(c.entries()) != 1 {
					t.Errorf("the store has %v", c.entries())
				}
				// It may join again, and gets another subnet.
				l := a.join()
				if l.Overlaps(mustKey(key)) {
					t.Errorf("joined again in %s", l.Key)
				}
				a.run()
				settle(time.Minute)
				c.untouched(theirs)
				c.oneOwner()
			})
		})
	}
}

// TestRaceStolen: another host's key in the place of ours, while we look.
func TestRaceStolen(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a := c.start(1)[0]
		theirs := c.put(a.key().String(), value(99), time.Hour)
		settle(time.Second)
		if !a.ended() || !errors.Is(a.err, lease.ErrLost) || !strings.Contains(a.err.Error(), "192.0.2.99") {
			t.Fatalf("ended: %t, %v", a.ended(), a.err)
		}
		c.untouched(theirs)
		if l, held := a.reg.Lease(); held {
			t.Errorf("Lease still says that %s is held", l.Key)
		}
	})
}
