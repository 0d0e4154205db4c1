package leasetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A watching is one call of Watch and all that it has reported. It checks what
// holds for every watch: one call of fn at a time, revisions that only rise, no
// event twice, nothing after the end.
type watching struct {
	t        *testing.T
	patience time.Duration // see Harness
	cancel   context.CancelFunc
	done     chan struct{} // closed when Watch has returned
	err      error         // what it returned; read after done

	busy  atomic.Bool // fn is running
	ended atomic.Bool // Watch has returned

	mu      sync.Mutex
	events  []lease.Event
	batches int
	cursor  uint64        // the last Batch's revision
	changed chan struct{} // closed and replaced with every batch
}

// watch starts a Watch that ends with the test at the latest.
func (h *host) watch(after uint64) *watching { return h.watchWith(after, nil) }

// watchWith is watch with a function that is called within fn, before the batch
// counts as reported. It may block.
func (h *host) watchWith(after uint64, within func(lease.Batch)) *watching {
	ctx, cancel := context.WithCancel(h.t.Context())
	w := &watching{t: h.t, patience: h.patience, cancel: cancel, done: make(chan struct{}), cursor: after, changed: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = h.Watch(ctx, after, func(b lease.Batch) { w.batch(b, within) })
		w.ended.Store(true)
	}()
	h.t.Cleanup(func() {
		cancel()
		w.wait("the test is over")
	})
	return w
}

// batch is fn.
func (w *watching) batch(b lease.Batch, within func(lease.Batch)) {
	if !w.busy.CompareAndSwap(false, true) {
		w.t.Error("Watch: fn is called while it is running")
	}
	defer w.busy.Store(false)
	if w.ended.Load() {
		w.t.Error("Watch: fn is called after Watch has returned")
	}
	if within != nil {
		within(b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := checkBatch(b, w.cursor); err != nil {
		w.t.Errorf("Watch: after revision %d: %v", w.cursor, err)
	}
	w.events = append(w.events, b.Events...)
	w.batches++
	w.cursor = b.Revision
	close(w.changed)
	w.changed = make(chan struct{})
}

// checkBatch checks a batch that follows a revision.
func checkBatch(b lease.Batch, after uint64) error {
	if b.Revision < after {
		return fmt.Errorf("the batch goes back to revision %d", b.Revision)
	}
	type change struct {
		key      string
		revision uint64
	}
	seen := make(map[change]bool)
	last := after + 1
	for _, e := range b.Events {
		if e.Entry.Revision < last || e.Entry.Revision > b.Revision {
			return fmt.Errorf("event %v of a batch up to %d is out of order, or a repetition", describe(e), b.Revision)
		}
		last = e.Entry.Revision
		c := change{e.Entry.Key, e.Entry.Revision}
		if seen[c] {
			return fmt.Errorf("event %v comes twice", describe(e))
		}
		seen[c] = true
		if e.Deleted && (len(e.Entry.Value) != 0 || e.Entry.Created != 0 || e.Entry.Permanent || e.Entry.TTL != 0 || e.Entry.Handle != 0) {
			return fmt.Errorf("a deletion has more than Key and Revision: %+v", e.Entry)
		}
		if !e.Deleted && (e.Entry.Created == 0 || e.Entry.Created > e.Entry.Revision) {
			return fmt.Errorf("event %v was created at revision %d", describe(e), e.Entry.Created)
		}
		if e.Entry.TTL < 0 || e.Entry.Permanent && e.Entry.TTL != 0 {
			return fmt.Errorf("event %v has TTL %v, permanent %t", describe(e), e.Entry.TTL, e.Entry.Permanent)
		}
	}
	return nil
}

// describe is an event in one line.
func describe(e lease.Event) string {
	if e.Deleted {
		return fmt.Sprintf("%d:delete %s", e.Entry.Revision, e.Entry.Key)
	}
	return fmt.Sprintf("%d:set %s=%s", e.Entry.Revision, e.Entry.Key, e.Entry.Value)
}

// until waits until enough has been reported, and returns all that has. enough is
// called with w.mu held.
func (w *watching) until(what string, enough func([]lease.Event) bool) []lease.Event {
	w.t.Helper()
	late := time.NewTimer(w.patience)
	defer late.Stop()
	for {
		w.mu.Lock()
		events, changed := w.events, w.changed
		done := enough(events)
		w.mu.Unlock()
		if done {
			return events
		}
		select {
		case <-changed:
		case <-w.done:
			w.t.Fatalf("Watch ended before %s: %v; it has reported %s", what, w.err, tail(events))
		case <-late.C:
			w.t.Fatalf("Watch: no %s after %v; it has reported %s", what, w.patience, tail(events))
		}
	}
}

// count waits for n events.
func (w *watching) count(n int) []lease.Event {
	w.t.Helper()
	return w.until(fmt.Sprintf("event number %d", n), func(es []lease.Event) bool { return len(es) >= n })
}

// tail shows the last few events.
func tail(events []lease.Event) string {
	const most = 8
	s := fmt.Sprintf("%d events", len(events))
	for i := max(0, len(events)-most); i < len(events); i++ {
		s += ", " + describe(events[i])
	}
	return s
}

// wait waits for Watch to return, and returns its error.
func (w *watching) wait(why string) error {
	w.t.Helper()
	select {
	case <-w.done:
	case <-time.After(w.patience):
		w.t.Fatalf("Watch still runs %v after this: %s", w.patience, why)
	}
	if w.err == nil {
		w.t.Errorf("Watch returned nil (%s); want an error", why)
	}
	return w.err
}

// stop cancels the watch and checks that this is what ends it.
func (w *watching) stop() {
	w.t.Helper()
	w.cancel()
	if err := w.wait("its context was cancelled"); !errors.Is(err, context.Canceled) {
		w.t.Errorf("Watch of a cancelled context: %v; want context.Canceled", err)
	}
}

// expect waits for exactly these events, written as "key=value" or "-key", and
// returns them.
func (w *watching) expect(want ...string) []lease.Event {
	w.t.Helper()
	events := w.count(len(want))
	for i, e := range events {
		got := e.Entry.Key + "=" + string(e.Entry.Value)
		if e.Deleted {
			got = "-" + e.Entry.Key
		}
		if i >= len(want) || got != want[i] {
			w.t.Fatalf("Watch: event %d is %s; want %q; all: %s", i, describe(e), want, tail(events))
		}
	}
	return events
}
