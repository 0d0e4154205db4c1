package leasetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

const (
	// patience is how long anything may take that should come at once.
	patience = time.Minute
	// long is a time to live that does not end within a test.
	long = 90 * time.Second
)

// A host is one Store and the test that uses it. Its methods fail the test; those
// of the Store itself are called for their errors.
type host struct {
	lease.Store
	t        *testing.T
	patience time.Duration // see Harness
}

// open returns another host of the network, closed at the test's end.
func (n Network) open(t *testing.T) *host {
	t.Helper()
	s := n.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &host{Store: s, t: t, patience: n.patience}
}

// callContext returns a context for a call that must end of itself.
func callContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes an entry that must not exist yet, and checks what comes back.
func (h *host) create(key, value string, ttl time.Duration) lease.Entry {
	h.t.Helper()
	e, err := h.Create(callContext(h.t), key, []byte(value), ttl)
	if err != nil {
		h.t.Fatalf("Create %s: %v", key, err)
	}
	checkResult(h.t, "Create", e, key, value, ttl)
	if e.Created != e.Revision {
		h.t.Errorf("Create %s: revision %d, created at %d; want the same", key, e.Revision, e.Created)
	}
	return e
}

// update changes an entry that nobody else changes, and checks what comes back.
func (h *host) update(old lease.Entry, value string, ttl time.Duration) lease.Entry {
	h.t.Helper()
	e, err := h.Update(callContext(h.t), old, []byte(value), ttl)
	if err != nil {
		h.t.Fatalf("Update %s: %v", old.Key, err)
	}
	checkResult(h.t, "Update", e, old.Key, value, ttl)
	if e.Revision <= old.Revision {
		h.t.Errorf("Update %s: revision %d after %d, want a later one", old.Key, e.Revision, old.Revision)
	}
	checkCreated(h.t, "Update", e, old)
	return e
}

// renew prolongs an entry that nobody else changes, and checks what comes back.
func (h *host) renew(old lease.Entry, ttl time.Duration) lease.Entry {
	h.t.Helper()
	e, err := h.Renew(callContext(h.t), old, ttl)
	if err != nil {
		h.t.Fatalf("Renew %s: %v", old.Key, err)
	}
	if old.Permanent {
		ttl = 0
	}
	checkResult(h.t, "Renew", e, old.Key, string(old.Value), ttl)
	if e.Revision < old.Revision {
		h.t.Errorf("Renew %s: revision %d after %d", old.Key, e.Revision, old.Revision)
	}
	checkCreated(h.t, "Renew", e, old)
	return e
}

// remove deletes an entry that nobody else changes.
func (h *host) remove(old lease.Entry) {
	h.t.Helper()
	if err := h.Delete(callContext(h.t), old); err != nil {
		h.t.Fatalf("Delete %s: %v", old.Key, err)
	}
}

// removeAll deletes entries that nobody else changes, at the same time: a store may
// take its time for one. They are gone afterwards.
func (h *host) removeAll(olds ...lease.Entry) {
	h.t.Helper()
	ctx := callContext(h.t)
	together(h.t, len(olds), func(i int) error {
		if err := h.Delete(ctx, olds[i]); err != nil {
			return fmt.Errorf("Delete %q: %w", olds[i].Key, err)
		}
		return nil
	})
	_, left := h.list()
	for _, e := range olds {
		if left[e.Key].Revision != 0 {
			h.t.Errorf("Delete: %q is still there", e.Key)
		}
	}
}

// list returns the Listing, and its entries by key.
func (h *host) list() (lease.Listing, map[string]lease.Entry) {
	h.t.Helper()
	l, err := h.List(callContext(h.t))
	if err != nil {
		h.t.Fatalf("List: %v", err)
	}
	byKey := make(map[string]lease.Entry, len(l.Entries))
	for _, e := range l.Entries {
		if _, twice := byKey[e.Key]; twice {
			h.t.Errorf("List has %q twice", e.Key)
		}
		if e.Revision == 0 || e.Revision > l.Revision {
			h.t.Errorf("List: %q at revision %d, the whole at %d", e.Key, e.Revision, l.Revision)
		}
		if e.Created == 0 || e.Created > e.Revision {
			h.t.Errorf("List: %q at revision %d, created at %d", e.Key, e.Revision, e.Created)
		}
		if e.TTL < 0 || e.Permanent && e.TTL != 0 {
			h.t.Errorf("List: %q has TTL %v, permanent %t", e.Key, e.TTL, e.Permanent)
		}
		byKey[e.Key] = e
	}
	return l, byKey
}

// unchanged fails unless the entry is in the store exactly as it was written.
func (h *host) unchanged(want lease.Entry, after string) {
	h.t.Helper()
	_, all := h.list()
	same(h.t, all, want, after)
}

// same fails unless the entry is among them exactly as it was written.
func same(t *testing.T, all map[string]lease.Entry, want lease.Entry, after string) {
	t.Helper()
	got, ok := all[want.Key]
	switch {
	case !ok:
		t.Errorf("%s: %s is gone", after, want.Key)
	case got.Revision != want.Revision || string(got.Value) != string(want.Value) || got.Permanent != want.Permanent:
		t.Errorf("%s: %s is revision %d, permanent %t, %q; want revision %d, permanent %t, %q", after, want.Key,
			got.Revision, got.Permanent, got.Value, want.Revision, want.Permanent, want.Value)
	case want.Created != 0 && got.Created != want.Created:
		t.Errorf("%s: %s was created at revision %d; want %d", after, want.Key, got.Created, want.Created)
	}
}

// checkCreated checks that a changed entry is as old as before, so far as the store
// was told.
func checkCreated(t *testing.T, op string, e, old lease.Entry) {
	t.Helper()
	if e.Created != old.Created && old.Created != 0 || e.Created > old.Revision {
		t.Errorf("%s %s: created at revision %d; want %d, as before", op, e.Key, e.Created, old.Created)
	}
}

// absent fails if there is an entry of that key.
func (h *host) absent(key, after string) {
	h.t.Helper()
	if _, all := h.list(); all[key].Revision != 0 {
		h.t.Errorf("%s: %s exists, %q at revision %d", after, key, all[key].Value, all[key].Revision)
	}
}

// conflict fails unless err is an ErrConflict.
func conflict(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, lease.ErrConflict) {
		t.Errorf("%s: %v; want ErrConflict", what, err)
	}
}

// checkResult checks the Entry that Create, Update and Renew return.
func checkResult(t *testing.T, op string, e lease.Entry, key, value string, ttl time.Duration) {
	t.Helper()
	if e.Key != key || string(e.Value) != value || e.Revision == 0 {
		t.Errorf("%s %s: returned key %q, value %q, revision %d; want value %q", op, key, e.Key, e.Value, e.Revision, value)
	}
	if e.Permanent != (ttl == 0) {
		t.Errorf("%s %s with ttl %v: permanent is %t", op, key, ttl, e.Permanent)
	}
	checkTTL(t, op+" "+key, e.TTL, ttl)
}

// checkTTL checks a time to live that the store knows. A server may have a least
// one, of a second or two; and the answer may have taken its time.
func checkTTL(t *testing.T, what string, got, asked time.Duration) {
	t.Helper()
	if asked == 0 {
		if got != 0 {
			t.Errorf("%s: TTL %v of a permanent entry", what, got)
		}
		return
	}
	most := max((asked + time.Second - 1).Truncate(time.Second), 5*time.Second)
	if got <= 0 || got > most || got < asked-patience/2 {
		t.Errorf("%s: TTL %v, asked for %v", what, got, asked)
	}
}

// together runs n functions at the same time, waits for all of them, and fails the
// test for every error.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	errs := make([]error, n)
	start := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// needs skips the test where the harness lacks something.
func needs(t *testing.T, has bool, name string) {
	t.Helper()
	if !has {
		t.Skipf("the harness has no %s", name)
	}
}
