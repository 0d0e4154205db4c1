package leasetest

import (
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

const (
	// short is a time to live that ends within a test, and soon one that ends
	// there too, but leaves the time to change one's mind. Both are above the
	// least one that an etcd v3 server grants, one and a half election timeouts.
	short = 3 * time.Second
	soon  = 5 * time.Second
	// fraction of a second: rounded up, since rounded down it would be for ever.
	fraction = 400 * time.Millisecond
)

// The entries of testExpiry. The first few must die, the others must not.
const (
	dies     = "10.9.1.0-24"
	rounded  = "10.9.2.0-24" // asked for a fraction of a second
	mortal   = "10.9.3.0-24" // was permanent
	theirs   = "10.9.4.0-24" // was a's, then changed by b; a goes on to renew what it has seen last
	junk     = "no subnet"   // expires like any other
	renewed  = "10.9.11.0-24"
	forever  = "10.9.12.0-24"
	made     = "10.9.13.0-24" // permanent by an update
	longer   = "10.9.14.0-24" // by an update
	later    = "10.9.15.0-24" // the same after a renewal
	retaken  = "10.9.16.0-24" // deleted, and created by another with a longer time
	deleted  = "10.9.17.0-24" // gone before its time
	reserved = "10.9.18.0-24" // made permanent by another; a goes on to renew
)

// expiring is what testExpiry knows of its entries.
type expiring struct {
	a, b *host

	mu    sync.Mutex
	asked map[string]time.Duration // the last time to live
	began map[string]time.Time     // when that was asked for: no entry lives shorter
	died  map[string]time.Time     // when its deletion was seen
}

// testExpiry lets all that can happen to a time to live happen at once, since it
// takes as long as the entries live.
func testExpiry(t *testing.T, n Network) {
	x := &expiring{a: n.open(t), b: n.open(t), asked: map[string]time.Duration{}, began: map[string]time.Time{}, died: map[string]time.Time{}}
	l, _ := x.a.list()
	w := x.b.watchWith(l.Revision, x.note)
	old, gone, own := x.setUp()
	mustDie := []string{dies, rounded, mortal, theirs, junk}
	kept := x.pass(mustDie, own, old)
	x.checkDied(mustDie)
	x.checkLiving(kept)
	x.checkGone(gone)

	// What is not renewed any more dies too.
	events := w.until("expiry of the entry that was renewed", func(es []lease.Event) bool {
		return slices.ContainsFunc(es, func(e lease.Event) bool { return e.Deleted && e.Entry.Key == renewed })
	})
	x.checkDied([]string{renewed})
	for _, key := range append(mustDie, deleted, renewed) {
		deletions := 0
		for _, e := range events {
			if e.Deleted && e.Entry.Key == key {
				deletions++
			}
		}
		if deletions != 1 {
			t.Errorf("Watch reports %d deletions of %s; want one", deletions, key)
		}
	}
	w.stop()
}

// setUp makes the entries. It returns what a saw last of those that b has changed, the
// one that nobody cares for, and the one to renew.
func (x *expiring) setUp() (old []lease.Entry, gone, own lease.Entry) {
	create := func(h *host, key string, ttl time.Duration) lease.Entry {
		h.t.Helper()
		x.begin(key, ttl)
		return h.create(key, "value", ttl)
	}
	update := func(h *host, old lease.Entry, ttl time.Duration) lease.Entry {
		h.t.Helper()
		x.begin(old.Key, ttl)
		return h.update(old, "updated", ttl)
	}
	old = []lease.Entry{create(x.a, theirs, soon), create(x.a, reserved, soon)}
	update(x.b, old[0], short)
	update(x.b, old[1], 0)
	update(x.a, create(x.a, made, soon), 0)
	update(x.a, create(x.a, longer, soon), long)
	update(x.a, x.a.renew(create(x.a, later, soon), soon), long)
	x.b.remove(create(x.a, retaken, soon))
	create(x.b, retaken, long)
	x.a.remove(create(x.a, deleted, soon))

	gone = create(x.a, dies, short)
	create(x.a, rounded, fraction)
	update(x.a, create(x.a, mortal, 0), short)
	create(x.a, junk, short)
	create(x.a, forever, 0)
	return old, gone, create(x.a, renewed, short)
}

// pass lets the time pass in which mustDie have to expire, and the others had to if
// something were wrong. Meanwhile it renews own, and tries to renew old. It reports
// whether it has renewed own in time, which depends on the machine.
func (x *expiring) pass(mustDie []string, own lease.Entry, old []lease.Entry) (kept bool) {
	t := x.a.t
	start, last, late := time.Now(), time.Now(), time.NewTimer(soon+x.a.patience)
	defer late.Stop()
	tick := time.NewTicker(short / 6)
	defer tick.Stop()
	kept = true
	for !x.dead(mustDie) || time.Since(start) < soon+2*time.Second {
		select {
		case <-tick.C:
		case <-late.C:
			x.mu.Lock()
			defer x.mu.Unlock()
			t.Fatalf("of %q only %q are gone after %v", mustDie, slices.Sorted(maps.Keys(x.died)), time.Since(start))
		}
		if kept && time.Since(last) > short-time.Second {
			t.Logf("%v went by between two renewals: whether the entry lives on is not tested", time.Since(last))
			kept = false
		}
		if kept {
			x.begin(renewed, short)
			own = x.a.renew(own, short)
			last = time.Now()
		}
		for _, e := range old { // which must not keep them alive, nor make them mortal
			if _, err := x.a.Renew(callContext(t), e, soon); err != nil {
				conflict(t, "Renew of an entry that another has changed", err)
			}
		}
	}
	return kept
}

// begin notes that a time to live begins, before it does.
func (x *expiring) begin(key string, ttl time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked[key], x.began[key] = ttl, time.Now()
}

// note notes deletions.
func (x *expiring) note(b lease.Batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range b.Events {
		if e.Deleted {
			x.died[e.Entry.Key] = time.Now()
		}
	}
}

// dead reports whether all these were reported as deleted.
func (x *expiring) dead(keys []string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !slices.ContainsFunc(keys, func(key string) bool { return x.died[key].IsZero() })
}

// checkDied checks that none was gone before its time, with some tolerance for a
// server that has another clock.
func (x *expiring) checkDied(keys []string) {
	x.a.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, key := range keys {
		if lived := x.died[key].Sub(x.began[key]); lived < x.asked[key]-200*time.Millisecond {
			x.a.t.Errorf("%s was gone after %v; its time to live is %v", key, lived, x.asked[key])
		}
	}
}

// checkLiving checks which entries are left.
func (x *expiring) checkLiving(kept bool) {
	x.a.t.Helper()
	living := map[string]bool{forever: true, made: true, reserved: true, longer: false, later: false, retaken: false} // permanent?
	if kept {
		living[renewed] = false
	}
	_, all := x.a.list()
	for key, permanent := range living {
		if e, ok := all[key]; !ok || e.Permanent != permanent {
			x.a.t.Errorf("%s: in the list %t, permanent %t; want it there, permanent %t", key, ok, e.Permanent, permanent)
		}
	}
	for key := range all {
		if _, known := living[key]; !known && key != renewed {
			x.a.t.Errorf("%s is in the list; it should have expired", key)
		}
	}
}

// checkGone checks what can be done with an entry that has expired.
func (x *expiring) checkGone(e lease.Entry) {
	t := x.a.t
	t.Helper()
	_, err := x.a.Update(callContext(t), e, []byte("too late"), long)
	conflict(t, "Update of an expired entry", err)
	conflict(t, "Delete of an expired entry", x.a.Delete(callContext(t), e))
	_, err = x.a.Renew(callContext(t), e, short)
	conflict(t, "Renew of an expired entry", err)
	x.b.absent(e.Key, "all that")
	x.b.unchanged(x.b.create(e.Key, "new", long), "Create in the place of an expired entry")
}
