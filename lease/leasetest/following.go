package leasetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A following keeps its own picture of a network, by List and Watch, as the contract
// says that one can: a List where Watch asks for one, otherwise on from the last
// batch. It doesn't mind errors.
type following struct {
	t        *testing.T
	patience time.Duration // see Harness
	cancel   context.CancelFunc
	done     chan struct{}

	mu      sync.Mutex
	all     map[string]lease.Entry
	lists   int           // how often it had to list
	last    error         // why the last Watch or List failed
	changed chan struct{} // closed and replaced with every change of all
}

// follow starts one that ends with the test.
func (h *host) follow() *following {
	ctx, cancel := context.WithCancel(h.t.Context())
	f := &following{t: h.t, patience: h.patience, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.run(ctx, h.Store)
	}()
	h.t.Cleanup(func() {
		cancel()
		select {
		case <-f.done:
		case <-time.After(patience):
			h.t.Errorf("List or Watch still runs %v after its context was cancelled", patience)
		}
	})
	return f
}

func (f *following) run(ctx context.Context, s lease.Store) {
	const pause = 100 * time.Millisecond // between attempts, as any caller would
	var cursor uint64
	relist := true
	for ctx.Err() == nil {
		if relist {
			l, err := s.List(ctx)
			if err != nil {
				f.failed(err)
				time.Sleep(pause)
				continue
			}
			f.replace(l)
			cursor, relist = l.Revision, false
		}
		err := s.Watch(ctx, cursor, func(b lease.Batch) {
			if err := checkBatch(b, cursor); err != nil {
				f.t.Errorf("Watch: after revision %d: %v", cursor, err)
			}
			f.apply(b)
			cursor = b.Revision
		})
		if relist = errors.Is(err, lease.ErrCompacted); !relist {
			f.failed(err)
			time.Sleep(pause)
		}
	}
}

func (f *following) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = err
}

func (f *following) replace(l lease.Listing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = make(map[string]lease.Entry)
	for _, e := range l.Entries {
		f.all[e.Key] = e
	}
	f.lists++
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *following) apply(b lease.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range b.Events {
		fold(f.all, e)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// fold applies an event to a picture.
func fold(all map[string]lease.Entry, e lease.Event) {
	if e.Deleted {
		delete(all, e.Entry.Key)
	} else {
		all[e.Entry.Key] = e.Entry
	}
}

// until waits until the picture is right.
func (f *following) until(what string, right func(map[string]lease.Entry) bool) {
	f.t.Helper()
	late := time.NewTimer(f.patience)
	defer late.Stop()
	for {
		f.mu.Lock()
		all, changed, state := maps.Clone(f.all), f.changed, fmt.Sprintf("%d lists, last error: %v", f.lists, f.last)
		f.mu.Unlock()
		if all != nil && right(all) {
			return
		}
		select {
		case <-changed:
		case <-late.C:
			f.t.Fatalf("List and Watch: no %s after %v: %d entries %q, %s", what, f.patience, len(all), slices.Sorted(maps.Keys(all)), state)
		}
	}
}

// equal says how a picture differs from a listing; "" if not at all.
func equal(picture, list map[string]lease.Entry) string {
	for key, e := range list {
		p, ok := picture[key]
		if !ok {
			return fmt.Sprintf("%s is missing", key)
		}
		if p.Revision != e.Revision || p.Created != e.Created || string(p.Value) != string(e.Value) || p.Permanent != e.Permanent {
			return fmt.Sprintf("%s is %q at revision %d, made at %d, permanent %t; the list has %q at %d, %d, %t",
				key, p.Value, p.Revision, p.Created, p.Permanent, e.Value, e.Revision, e.Created, e.Permanent)
		}
	}
	for key := range picture {
		if _, ok := list[key]; !ok {
			return fmt.Sprintf("%s is not in the list", key)
		}
	}
	return ""
}
