package etcdv3

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// fast are times with which a test need not wait long.
func fast(s *Store) *Store {
	s.times.progress = 300 * time.Millisecond
	return s
}

// TestWatchRestart: a watch survives the restart of its server and misses nothing.
func TestWatchRestart(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/restart"))
	_, err := s.Create(background(t), key1, nil, long)
	check(t, err)
	l, err := s.List(background(t))
	check(t, err)
	w := watchOf(t, s, l.Revision)
	w.wait("first batch", func() bool { return w.batches > 0 })
	const restarts, changes = 3, 20
	for i := range restarts {
		for k := range changes {
			srv.Put("/restart/subnets/"+key2, fmt.Sprintf("%d.%d", i, k))
		}
		srv.Restart()
	}
	srv.Delete("/restart/subnets/" + key2)
	w.until("the deletion", func(events []lease.Event) bool { return len(events) > 0 && events[len(events)-1].Deleted })
	if len(w.events) != restarts*changes+1 {
		t.Errorf("%d events; want %d", len(w.events), restarts*changes+1)
	}
	for i, e := range w.events[:restarts*changes] {
		if want := fmt.Sprintf("%d.%d", i/changes, i%changes); string(e.Entry.Value) != want {
			t.Errorf("event %d is %q; want %q", i, e.Entry.Value, want)
		}
	}
}

// TestWatchBacklog: a server sends what has long happened in parts of a thousand
// revisions, and names its latest one each time. And what happens at one revision is
// one batch.
func TestWatchBacklog(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/backlog"))
	l, err := s.List(background(t))
	check(t, err)
	const revisions, each = 2500, 3
	c := srv.V3()
	for i := range revisions {
		var ops []clientv3.Op
		for k := range each {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/backlog/subnets/10.5.%d.0-24", k), fmt.Sprint(i)))
		}
		_, err := c.Txn(background(t)).Then(ops...).Commit()
		check(t, err)
	}
	next := l.Revision
	err = s.Watch(background(t), l.Revision, func(b lease.Batch) {
		seen := make(map[uint64]int)
		for _, e := range b.Events {
			seen[e.Entry.Revision]++
		}
		for range seen {
			if next++; seen[next] != each {
				t.Errorf("a batch up to %d has %d events of revision %d; want %d", b.Revision, seen[next], next, each)
			}
		}
		if b.Revision != next {
			t.Errorf("a batch that ends at %d says %d", next, b.Revision)
		}
		if next == l.Revision+revisions {
			go s.Close()
		}
	})
	if next != l.Revision+revisions {
		t.Errorf("Watch came to %d of %d: %v", next, l.Revision+revisions, err)
	}
}

// TestWatchProgress: where nothing happens in the network, the cursor goes on with
// the rest of the store, so that a compaction does not matter.
func TestWatchProgress(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := fast(open(t, config(srv, "/progress")))
	_, err := s.Create(background(t), key1, nil, long)
	check(t, err)
	l, err := s.List(background(t))
	check(t, err)
	w := watchOf(t, s, l.Revision)
	w.wait("first batch", func() bool { return w.batches > 0 })
	for range 10 {
		srv.Put("/elsewhere", "x")
	}
	now := uint64(srv.Revision())
	w.wait("progress", func() bool { return w.cursor == now })
	srv.Compact()
	srv.Restart()
	srv.Put("/progress/subnets/"+key2, "y")
	w.until("an event", func(events []lease.Event) bool { return len(events) == 1 })
	if w.cursor <= now {
		t.Errorf("the cursor is %d after %d", w.cursor, now)
	}
	w.cancel()
	w.end("it was cancelled")
	again := watchOf(t, s, w.cursor)
	again.wait("first batch of a watch from the last batch", func() bool { return again.batches > 0 })
}

// TestWatchPaused: a server that is stopped ends a watch, and it goes on later.
func TestWatchPaused(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := fast(open(t, config(srv, "/paused")))
	l, err := s.List(background(t))
	check(t, err)
	w := watchOf(t, s, l.Revision)
	w.wait("two batches", func() bool { return w.batches > 1 })
	srv.Pause()
	err = w.end("the server is paused")
	if !strings.Contains(err.Error(), "no sign of life") || !strings.Contains(err.Error(), srv.Endpoint()) || errors.Is(err, lease.ErrCompacted) {
		t.Errorf("Watch of a paused server: %v", err)
	}
	srv.Resume()
	again := watchOf(t, s, w.cursor)
	srv.Put("/paused/subnets/"+key1, "x")
	again.until("an event", func(events []lease.Event) bool { return len(events) == 1 })
}

// TestWatchOldServer: one that does not answer requests for a sign of life is asked in
// another way.
func TestWatchOldServer(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/old"))
	l, err := s.List(background(t))
	check(t, err)
	batches := 0
	w := &watch{s: s, fn: func(lease.Batch) { batches++ }, cursor: l.Revision, mark: s.marks.get(l.Revision)}
	if err := w.alive(background(t), &flow{}); err != nil || batches != 1 {
		t.Errorf("a server that answers other requests: %v, %d batches; want 1", err, batches)
	}
	w.answers = true
	if err := w.alive(background(t), &flow{}); !errors.Is(err, errMute) {
		t.Errorf("a server that has answered before: %v; want %v", err, errMute)
	}
	w.answers = false
	srv.Replace()
	eventually(t, func() error { _, err := s.List(background(t)); return err })
	if err := w.alive(background(t), &flow{}); !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("another server: %v; want ErrCompacted", err)
	}
	s.timeout = 200 * time.Millisecond
	srv.Pause()
	if err := w.alive(background(t), &flow{}); !errors.Is(err, errMute) {
		t.Errorf("a paused server: %v; want %v", err, errMute)
	}
}

// TestWatchReplaced: a store that is not the one that was there, although it looks so.
func TestWatchReplaced(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/replaced"))
	fill := func(n int) (last lease.Entry) {
		t.Helper()
		for i := range n {
			e, err := s.Create(background(t), fmt.Sprintf("10.5.%d.0-24", i), []byte("same"), long)
			check(t, err)
			last = e
		}
		return last
	}
	listed := func() uint64 {
		t.Helper()
		l, err := s.List(background(t))
		check(t, err)
		return l.Revision
	}
	gone := func(what string, w *watcher) {
		t.Helper()
		if err := w.end(what); !errors.Is(err, lease.ErrCompacted) {
			t.Errorf("%s: %v; want ErrCompacted", what, err)
		}
		if len(w.events) > 0 {
			t.Errorf("%s: reports %v", what, w.events)
		}
	}
	fill(5)
	after := listed()
	w := watchOf(t, s, after)
	w.wait("first batch", func() bool { return w.batches > 0 })
	srv.Wipe()
	gone("wiped", w)

	// The same writes again, and some more: cluster, revision and values are as before.
	eventually(t, func() error { _, err := s.List(background(t)); return err })
	fill(9)
	gone("wiped and written again", watchOf(t, s, after))

	// The other way to notice: the watch itself, that has seen an entry come.
	after = listed()
	w = watchOf(t, s, after)
	_, err := s.Create(background(t), "10.5.99.0-24", nil, long)
	check(t, err)
	w.until("an event", func(events []lease.Event) bool { return len(events) == 1 })
	srv.Kill()
	w.end("no server")
	srv.Run()
	srv.Wipe()
	eventually(t, func() error { _, err := s.List(background(t)); return err })
	fill(20)
	gone("wiped and written again, after an event", watchOf(t, s, w.cursor))
	w = watchOf(t, s, listed())
	w.wait("first batch of the new store", func() bool { return w.batches > 0 })
}

// TestWatchRestored: a server that got back its data of yesterday.
func TestWatchRestored(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true, DataDir: data})
	s := open(t, config(srv, "/restored"))
	e, err := s.Create(background(t), key1, nil, long)
	check(t, err)
	srv.Stop()
	backup := filepath.Join(t.TempDir(), "backup")
	check(t, os.CopyFS(backup, os.DirFS(data)))
	srv.Run()
	eventually(t, func() error { e, err = s.Update(background(t), e, []byte("today"), long); return err })
	l, err := s.List(background(t))
	check(t, err)
	srv.Stop()
	check(t, os.RemoveAll(data))
	check(t, os.Rename(backup, data))
	srv.Run()
	err = watchOf(t, s, l.Revision).end("the store was restored")
	if !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("restored: %v; want ErrCompacted", err)
	}
	for range 3 {
		srv.Put("/restored/subnets/"+key2, "since then")
	}
	err = watchOf(t, s, l.Revision).end("the store was restored, and is further than before")
	if !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("restored, and further than before: %v; want ErrCompacted", err)
	}
}

// TestSeveral: one server of two goes, and nobody minds.
func TestSeveral(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	proxy := newProxy(t, srv.Addr())
	cfg := config(srv, "/several")
	cfg.Endpoints = []string{proxy.url(), srv.Endpoint()}
	stores := make([]*Store, 6) // some of their watches go each way
	var watchers []*watcher
	for i := range stores {
		stores[i] = open(t, cfg)
		l, err := stores[i].List(background(t))
		check(t, err)
		w := watchOf(t, stores[i], l.Revision)
		w.wait("first batch", func() bool { return w.batches > 0 })
		watchers = append(watchers, w)
	}
	if proxy.cut() == 0 {
		t.Error("nobody used the one server")
	}
	for i, s := range stores {
		eventually(t, func() error {
			_, err := s.Create(background(t), fmt.Sprintf("10.5.%d.0-24", i), nil, long)
			return err
		})
	}
	for _, w := range watchers {
		w.until("all entries", func(events []lease.Event) bool { return len(events) == len(stores) })
	}
}

// A proxy passes connections on until it is cut.
type proxy struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p := &proxy{Listener: l}
	t.Cleanup(func() { p.cut() })
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, a, b)
			p.mu.Unlock()
			go func() { io.Copy(a, b); a.Close() }()
			go func() { io.Copy(b, a); b.Close() }()
		}
	}()
	return p
}

func (p *proxy) url() string { return "http://" + p.Addr().String() }

// cut ends all connections and returns how many there were.
func (p *proxy) cut() int {
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	return len(p.conns) / 2
}
