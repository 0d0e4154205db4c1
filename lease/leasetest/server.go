package leasetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// testRestart: what was there before a restart is there after it, and whoever
// follows gets on.
func testRestart(t *testing.T, n Network) {
	needs(t, n.Restart != nil, "Restart: a server that goes and comes back is not tested")
	a, b := n.open(t), n.open(t)
	n.SetConfig(t, "{}")
	before, _ := a.list()
	f := b.follow()
	mortal := a.create(key1, "mortal", long)
	permanent := a.create(key2, "permanent", 0)
	f.until("the two entries", func(all map[string]lease.Entry) bool { return len(all) == 2 })
	n.Restart(t)
	eventually(t, "List", func(ctx context.Context) error { _, err := a.List(ctx); return err })
	a.unchanged(mortal, "Restart")
	a.unchanged(permanent, "Restart")
	if l, _ := a.list(); l.Cluster != before.Cluster || l.Revision < permanent.Revision {
		t.Errorf("List: cluster %d, revision %d; before the restart %d, %d", l.Cluster, l.Revision, before.Cluster, permanent.Revision)
	}
	if c, err := a.Config(callContext(t)); err != nil || string(c) != "{}" {
		t.Errorf("Config: %q, %v; want {}", c, err)
	}
	mortal = a.update(a.renew(mortal, long), "changed", long)
	a.remove(permanent)
	f.until("what came after the restart", func(all map[string]lease.Entry) bool {
		return len(all) == 1 && string(all[key1].Value) == "changed"
	})
	b.unchanged(mortal, "all that")
}

// testPause: a server that does not answer. Calls end with their contexts, a watch
// ends because it learns nothing any more, and Close does not wait for the server.
func testPause(t *testing.T, n Network) {
	needs(t, n.Pause != nil, "Pause: a server that does not answer is not tested")
	if testing.Short() {
		t.Skip("takes half a minute: a watch has that long to notice")
	}
	a, b, c := n.open(t), n.open(t), n.open(t)
	n.SetConfig(t, "{}")
	l, _ := a.list()
	e := a.create(key1, "one", 10*long)
	w, closing := a.watch(l.Revision), c.watch(l.Revision)
	w.count(1)
	closing.count(1)
	f := b.follow()
	f.until("the entry", func(all map[string]lease.Entry) bool { return len(all) == 1 })

	resume := n.Pause(t)
	defer resume()
	for name, call := range calls(a, e, e.Revision, func(lease.Batch) {}) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := ends(t, name+" while the server is paused", ctx, call); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s while the server is paused: %v; want DeadlineExceeded", name, err)
		}
		cancel()
		if name == "Watch" {
			continue
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := ends(t, name+" while the server is paused", ctx, call); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled while the server is paused: %v; want Canceled", name, err)
		}
	}
	if err := ends(t, "Close while the server is paused", t.Context(), func(context.Context) error { return c.Close() }); err != nil {
		t.Errorf("Close while the server is paused: %v", err)
	}
	closing.wait("its store was closed while the server is paused")
	if err := w.wait("the server is paused"); errors.Is(err, lease.ErrCompacted) {
		t.Errorf("Watch of a paused server: %v; nothing says that a List is due", err)
	}

	resume()
	eventually(t, "Create", func(ctx context.Context) error {
		_, err := a.Create(ctx, "10.5.9.0-24", []byte("after the pause"), long)
		if errors.Is(err, lease.ErrExists) {
			return nil // an attempt whose answer was lost
		}
		return err
	})
	f.until("what came after the pause", func(all map[string]lease.Entry) bool {
		return string(all["10.5.9.0-24"].Value) == "after the pause"
	})
}

// testWipe: the server is replaced by an empty one. Nobody may go on as if nothing
// had happened.
func testWipe(t *testing.T, n Network) {
	needs(t, n.Wipe != nil, "Wipe: a server that loses its data is not tested")
	a, b := n.open(t), n.open(t)
	n.SetConfig(t, "{}")
	f := b.follow()
	for i := range 30 { // so that its revision is higher than the new server's
		a.create(fmt.Sprintf("10.5.%d.0-24", i), "lost", long)
	}
	old, all := a.list()
	w := a.watch(old.Revision)
	f.until("thirty entries", func(all map[string]lease.Entry) bool { return len(all) == 30 })
	n.Wipe(t)
	w.wait("the server was replaced by an empty one")
	eventually(t, "List", func(ctx context.Context) error { _, err := a.List(ctx); return err })
	l, left := a.list()
	if len(left) != 0 {
		t.Fatalf("List of a wiped server has %d entries", len(left))
	}
	if l.Cluster == old.Cluster && old.Cluster != 0 {
		t.Errorf("List: cluster %d, as before the server was wiped", l.Cluster)
	}
	if c, err := a.Config(callContext(t)); !errors.Is(err, lease.ErrNoConfig) {
		t.Errorf("Config: %q, %v; want ErrNoConfig", c, err)
	}
	f.until("nothing", func(all map[string]lease.Entry) bool { return len(all) == 0 })
	if l.Revision < old.Revision {
		late := a.watch(old.Revision)
		if err := late.wait("its revision is the wiped server's"); !errors.Is(err, lease.ErrCompacted) {
			t.Errorf("Watch from revision %d of the wiped server, now at %d: %v; want ErrCompacted", old.Revision, l.Revision, err)
		}
	}
	e := all[key1]
	_, err := a.Update(callContext(t), e, []byte("lost"), long)
	conflict(t, "Update of a lost entry", err)
	_, err = a.Renew(callContext(t), e, long)
	conflict(t, "Renew of a lost entry", err)
	conflict(t, "Delete of a lost entry", a.Delete(callContext(t), e))
	again := a.create(key1, "again", long)
	b.unchanged(again, "all that")
	f.until("the new entry", func(all map[string]lease.Entry) bool { return all[key1].Revision == again.Revision })
}

// eventually repeats a call until it succeeds: a server that has just come back may
// not have all its connections yet.
func eventually(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	const pause = 100 * time.Millisecond
	late := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), patience/6)
		err := ends(t, what, ctx, call)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%s fails for %v: %v", what, patience, err)
		}
		time.Sleep(pause)
	}
}
