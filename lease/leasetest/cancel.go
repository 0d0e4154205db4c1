package leasetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// calls are all methods of a Store that take a context. e is an entry of the store.
func calls(s lease.Store, e lease.Entry, after uint64, fn func(lease.Batch)) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Config": func(ctx context.Context) error { _, err := s.Config(ctx); return err },
		"List":   func(ctx context.Context) error { _, err := s.List(ctx); return err },
		"Create": func(ctx context.Context) error { _, err := s.Create(ctx, key2, nil, long); return err },
		"Update": func(ctx context.Context) error { _, err := s.Update(ctx, e, e.Value, long); return err },
		"Renew":  func(ctx context.Context) error { _, err := s.Renew(ctx, e, long); return err },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, lease.Entry{Key: key3, Revision: e.Revision}) },
		"Watch":  func(ctx context.Context) error { return s.Watch(ctx, after, fn) },
	}
}

// testCancel: every call ends with its context, and says so.
func testCancel(t *testing.T, n Network) {
	h := n.open(t)
	n.SetConfig(t, "{}")
	l, _ := h.list()
	e := h.create(key1, "one", long)
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the cause, which is not what ctx.Err returns"))
	expired, cancel2 := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel2()
	for name, call := range calls(h, e, l.Revision, func(b lease.Batch) { t.Errorf("Watch of an ended context calls fn: %v", b) }) {
		for _, ctx := range []context.Context{cancelled, expired} {
			if err := ends(t, name, ctx, call); !errors.Is(err, ctx.Err()) {
				t.Errorf("%s: %v; want %v", name, err, ctx.Err())
			}
		}
	}
	h.unchanged(e, "calls of ended contexts")

	// While they are under way, as far as that can be hit without knowing the server.
	for i := range 40 {
		for name, call := range calls(h, lease.Entry{Key: key3}, l.Revision, func(lease.Batch) {}) {
			if i%8 != 0 && (name == "Create" || name == "Delete" || name == "Update") {
				continue // a write on a slow disk
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
			err := ends(t, name, ctx, call)
			cancel()
			known := errors.Is(err, lease.ErrExists) || errors.Is(err, lease.ErrConflict)
			if err != nil && !known && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s with a deadline: %v; want none of its own, or DeadlineExceeded", name, err)
			}
		}
	}
	h.unchanged(e, "calls that are cancelled halfway")
	w := h.watch(l.Revision)
	w.count(1)
	w.stop()
}

// ends makes a call that has to end soon.
func ends(t *testing.T, name string, ctx context.Context, call func(context.Context) error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s: has not returned after %v", name, patience)
		return nil
	}
}

// testCancelWatch: a watch that is cancelled while it waits, from within fn, and
// while fn runs.
func testCancelWatch(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	for i := range 5 {
		b.create(fmt.Sprintf("10.5.%d.0-24", i), "value", long)
	}

	idle := a.watch(l.Revision)
	idle.count(5)
	idle.stop()

	calls := 0
	var within *watching
	ready := make(chan struct{})
	within = a.watchWith(l.Revision, func(lease.Batch) { <-ready; calls++; within.cancel() })
	close(ready)
	if err := within.wait("fn has cancelled it"); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch that fn has cancelled: %v; want context.Canceled", err)
	}
	if calls != 1 {
		t.Errorf("fn was called %d times, though it cancelled the watch the first time", calls)
	}

	running, held := make(chan struct{}, 1), make(chan struct{})
	busy := a.watchWith(l.Revision, func(lease.Batch) { running <- struct{}{}; <-held })
	<-running
	busy.cancel()
	b.create("10.5.9.0-24", "while fn is busy", long)
	close(held)
	if err := busy.wait("it was cancelled while fn was running"); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch that was cancelled while fn was running: %v; want context.Canceled", err)
	}
	select {
	case <-running:
		t.Error("fn is called again though the watch was cancelled meanwhile")
	default:
	}
}

// testClose: Close ends what is under way, for this Store and no other.
func testClose(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	n.SetConfig(t, "{}")
	l, _ := a.list()
	e := a.create(key1, "one", long)
	var watches []*watching
	for range 3 {
		w := a.watch(l.Revision)
		w.count(1)
		watches = append(watches, w)
	}
	stopped := make(chan error, 1)
	go func() {
		for {
			if _, err := a.List(t.Context()); err != nil {
				stopped <- err
				return
			}
		}
	}()
	together(t, 4, func(int) error { return a.Close() })
	for _, w := range watches {
		w.wait("its store was closed")
	}
	ends(t, "List, again and again, of a store that is being closed", t.Context(), func(context.Context) error { return <-stopped })
	for name, call := range calls(a, e, l.Revision, func(b lease.Batch) { t.Errorf("Watch of a closed store calls fn: %v", b) }) {
		err := ends(t, name, t.Context(), call)
		if err == nil {
			t.Errorf("%s: succeeds after Close", name)
		}
		for _, known := range []error{lease.ErrNoConfig, lease.ErrExists, lease.ErrConflict, lease.ErrCompacted} {
			if errors.Is(err, known) {
				t.Errorf("%s: after Close: %v, as if the store had been asked", name, err)
			}
		}
	}
	b.unchanged(e, "Close of another store")
	b.remove(e)
}
