package etcdv3

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

const (
	// patience is how long anything may take that should come at once. It only
	// matters where something is wrong.
	patience = time.Minute
	// long is a time to live that does not end within a test.
	long = 90 * time.Second

	key1 = "10.5.1.0-24"
	key2 = "10.5.2.0-24"
)

// check ends the test if there is an error.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// config is how to reach a server, with a certificate if it has any.
func config(srv *etcdtest.Server, prefix string) Config {
	return Config{Endpoints: []string{srv.Endpoint()}, Prefix: prefix, CAFile: srv.CAFile, CertFile: srv.CertFile, KeyFile: srv.KeyFile,
		Log: slog.New(slog.DiscardHandler)}
}

// open makes a store that ends with the test.
func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	check(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// background is a context for a call that should come at once.
func background(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually repeats a call until it succeeds.
func eventually(t *testing.T, call func() error) {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := call()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

// A watcher is a Watch and what it has reported.
type watcher struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error // gets what Watch returns

	mu      sync.Mutex
	events  []lease.Event
	cursor  uint64
	batches int
	changed chan struct{}
}

// watchOf starts one that ends with the test.
func watchOf(t *testing.T, s *Store, after uint64) *watcher {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{t: t, cancel: cancel, done: make(chan error, 1), cursor: after, changed: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.done <- s.Watch(ctx, after, func(b lease.Batch) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, b.Events...)
			w.cursor = b.Revision
			w.batches++
			close(w.changed)
			w.changed = make(chan struct{})
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return w
}

// until waits until enough was reported.
func (w *watcher) until(what string, enough func([]lease.Event) bool) {
	w.t.Helper()
	w.wait(what, func() bool { return enough(w.events) })
}

// wait waits until something is so.
func (w *watcher) wait(what string, so func() bool) {
	w.t.Helper()
	late := time.After(patience)
	for {
		w.mu.Lock()
		ok, changed := so(), w.changed
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case err := <-w.done:
			w.t.Fatalf("Watch ended before %s: %v", what, err)
		case <-late:
			w.t.Fatalf("no %s after %v", what, patience)
		}
	}
}

// end waits for the end of Watch.
func (w *watcher) end(why string) error {
	w.t.Helper()
	select {
	case err := <-w.done:
		return err
	case <-time.After(patience):
		w.t.Fatalf("Watch still runs %v after this: %s", patience, why)
		return nil
	}
}
