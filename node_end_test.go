package flannelkit_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// TestNodeLost: another host has our subnet.
func TestNodeLost(t *testing.T) {
	for _, how := range []string{"overwritten", "deleted and taken"} {
		t.Run(how, func(t *testing.T) {
			noLeaks(t)
			store, b, log := newScripted(fakeNetwork), newFake(), &testlog.Messages{}
			n := joinFake(t, store, b, func(c *flannelkit.Config) { c.KeepDevice, c.Log = true, log.Logger() })
			key := lease.Key{Subnet: n.Subnet()}.String()
			entry := entries(t, store.Store)[key]
			theirs := `{"PublicIP":"192.0.2.66"}`
			var err error
			if how == "overwritten" {
				_, err = store.Store.Update(t.Context(), entry, []byte(theirs), time.Hour)
			} else {
				store.mu.Lock() // the registry may not take it in between
				store.on = func(_ context.Context, op string, _ int) error {
					if op == "create" {
						return lease.ErrExists
					}
					return nil
				}
				store.mu.Unlock()
				err = store.Store.Delete(t.Context(), entry)
				if err == nil {
					_, err = store.Store.Create(t.Context(), key, []byte(theirs), time.Hour)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-n.Done():
			case <-time.After(patience):
				t.Fatal("the Node lives on in another's subnet")
			}
			if err := n.Err(); !errors.Is(err, lease.ErrLost) || !strings.Contains(err.Error(), "192.0.2.66") {
				t.Errorf("Err = %v, want ErrLost and whose it is", err)
			}
			if c := b.next(t, "close", nil); c.keep {
				t.Error("closed with keep: the device for another's subnet stays")
			}
			if err := n.Ready(); !errors.Is(err, lease.ErrLost) || !strings.Contains(err.Error(), "ended") {
				t.Errorf("Ready = %v", err)
			}
			if len(log.With("node end", "192.0.2.66")) != 1 {
				t.Errorf("not logged once:\n%s", strings.Join(log.With(), "\n"))
			}
			if err := errors.Join(n.Close(), n.Release(t.Context()), n.Close()); err != nil {
				t.Errorf("Close and Release afterwards: %v", err)
			}
			if !errors.Is(n.Err(), lease.ErrLost) {
				t.Errorf("Err = %v after Close", n.Err())
			}
			if got := string(entries(t, store.Store)[key].Value); got != theirs {
				t.Errorf("the other's lease was overwritten with %s", got)
			}
		})
	}
}

// TestNodeLostWhileSyncing: the end waits for the backend, and ends it.
func TestNodeLostWhileSyncing(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	b.on = func(ctx context.Context, c call, _ int) error {
		if c.op == "sync" && len(c.peers) > 0 {
			return hang(ctx)
		}
		return nil
	}
	n := joinFake(t, store, b, nil)
	addPeer(t, store.Store, "10.5.255.0-24", "192.0.2.3")
	b.next(t, "sync", func(c call) bool { return len(c.peers) == 1 })
	key := lease.Key{Subnet: n.Subnet()}.String()
	if _, err := store.Store.Update(t.Context(), entries(t, store.Store)[key], []byte(`{"PublicIP":"192.0.2.66"}`), time.Hour); err != nil {
		t.Fatal(err)
	}
	<-n.Done()
	if !errors.Is(n.Err(), lease.ErrLost) {
		t.Errorf("Err = %v", n.Err())
	}
}

// TestNodeLostThenClosed: whoever closes just after the subnet was lost must not keep a
// device for it.
func TestNodeLostThenClosed(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	lost, goOn := make(chan struct{}), make(chan struct{})
	b.on = func(ctx context.Context, c call, _ int) error {
		if c.op == "sync" && len(c.peers) > 0 {
			<-ctx.Done() // the registry has ended
			close(lost)
			<-goOn // and this takes its time
		}
		return nil
	}
	n := joinFake(t, store, b, func(c *flannelkit.Config) { c.KeepDevice = true })
	addPeer(t, store.Store, "10.5.255.0-24", "192.0.2.3")
	b.next(t, "sync", func(c call) bool { return len(c.peers) == 1 })
	key := lease.Key{Subnet: n.Subnet()}.String()
	if _, err := store.Store.Update(t.Context(), entries(t, store.Store)[key], []byte(`{"PublicIP":"192.0.2.66"}`), time.Hour); err != nil {
		t.Fatal(err)
	}
	<-lost
	closed := make(chan error)
	go func() { closed <- n.Close() }()
	time.Sleep(20 * time.Millisecond) // for Close to begin; if it has not, nothing is tested
	close(goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if c := b.next(t, "close", nil); c.keep {
		t.Error("closed with keep: the device for another's subnet stays")
	}
	if !errors.Is(n.Err(), lease.ErrLost) {
		t.Errorf("Err = %v, want ErrLost: that is why it ended, before Close was called", n.Err())
	}
}

// TestNodeClosesOnce closes and releases from many sides, while a Sync is under way.
func TestNodeClosesOnce(t *testing.T) {
	noLeaks(t)
	errClose := errors.New("test: can't close")
	store, b := newScripted(fakeNetwork), newFake()
	b.on = func(ctx context.Context, c call, _ int) error {
		switch {
		case c.op == "sync" && len(c.peers) > 0:
			return hang(ctx)
		case c.op == "close":
			return errClose
		}
		return nil
	}
	n, err := flannelkit.Join(t.Context(), store, flannelkit.Config{
		Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends(), Previous: previous(), KeepDevice: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	addPeer(t, store.Store, "10.5.255.0-24", "192.0.2.3")
	b.next(t, "sync", func(c call) bool { return len(c.peers) == 1 })
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			err := n.Close()
			if i%4 == 0 {
				err = n.Release(context.Background())
			}
			if !errors.Is(err, errClose) {
				t.Errorf("Close or Release = %v, want the backend's error each time", err)
			}
			select {
			case <-n.Done():
			default:
				t.Error("Done is open after Close")
			}
		})
	}
	all.Wait()
	b.sound(t, 1)
	if n.Err() != nil {
		t.Errorf("Err = %v", n.Err())
	}
	if e := entries(t, store.Store); len(e) != 1 {
		t.Errorf("%d leases after Release, want the peer's", len(e))
	}
}

// TestNodeRelease gives the lease back, if the store can be reached.
func TestNodeRelease(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	n := joinFake(t, store, b, func(c *flannelkit.Config) { c.KeepDevice = true })
	down := errors.New("test: connection refused")
	var up atomic.Bool
	store.mu.Lock()
	store.on = func(ctx context.Context, op string, _ int) error {
		switch {
		case op == "delete" && !up.Load():
			return down
		case op == "delete":
			return nil
		}
		return nil
	}
	store.mu.Unlock()
	if err := n.Release(t.Context()); !errors.Is(err, down) || !strings.Contains(err.Error(), "ends by itself") {
		t.Errorf("Release = %v, want the store's error, and that the lease stays", err)
	}
	if c := b.next(t, "close", nil); c.keep {
		t.Error("Release keeps the device")
	}
	select {
	case <-n.Done():
	default:
		t.Error("the Node is not closed after a Release that failed")
	}
	if len(entries(t, store.Store)) != 1 {
		t.Error("the lease is gone")
	}
	up.Store(true)
	if err := n.Release(t.Context()); err != nil { // once more
		t.Error(err)
	}
	if len(entries(t, store.Store)) != 0 {
		t.Error("the lease is still there")
	}
	if err := n.Release(t.Context()); err != nil { // and when it is gone
		t.Error(err)
	}
}

// TestNodeReleaseCancel: a store that hangs does not keep Release.
func TestNodeReleaseCancel(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	n := joinFake(t, store, b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	store.mu.Lock()
	store.on = func(ctx context.Context, op string, _ int) error {
		if op == "delete" {
			cancel()
			return hang(ctx)
		}
		return nil
	}
	store.mu.Unlock()
	if err := n.Release(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Release = %v", err)
	}
}
