package etcdv2

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// brisk makes a store notice things soon.
func brisk(s *Store) *Store {
	s.times = watchTimes{
		check: 100 * time.Millisecond, answer: 2 * time.Second, connect: 4 * time.Second,
		poll: time.Minute, leastGap: 50 * time.Millisecond, settle: 20 * time.Millisecond,
	}
	return s
}

// put writes an entry past the store.
func put(t *testing.T, srv *etcdtest.Server, key, value string) {
	t.Helper()
	raw(t, srv, http.MethodPut, DefaultPrefix+"/subnets/"+key, "", url.Values{"value": {value}})
}

// TestWatchResumes: a server that goes away ends the watch with a reason; from where
// it ended nothing is missed, not even what came before the next watch.
func TestWatchResumes(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := brisk(open(t, config(srv, "")))
	raw(t, srv, http.MethodPut, DefaultPrefix+"/config", "", url.Values{"value": {"{}"}})
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	put(t, srv, "a", "1")
	last := w.next(t, "a=1").Revision
	srv.Kill()
	if err := w.end(t); errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Watch of a server that ended: %v; want connection refused", err)
	}
	if err := s.Watch(t.Context(), last, func(lease.Batch) {}); !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Watch of a server that is not there: %v", err)
	}
	srv.Run()
	put(t, srv, "b", "2")
	put(t, srv, "a", "3")
	w = watchFrom(t, s, last)
	w.next(t, "b=2")
	w.next(t, "a=3")
}

// TestWatchFailsOver: with two servers the watch goes on, through everything that can
// happen to one of them.
func TestWatchFailsOver(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{})
	one, two := newGate(t, srv), newGate(t, srv)
	s := brisk(open(t, Config{Endpoints: []string{one.endpoint, two.endpoint}}))
	s.pinned.Store(0)
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	put(t, srv, "a", "1")
	w.next(t, "a=1")
	for i, fail := range []func(g *gate){
		(*gate).cut,
		func(g *gate) { g.set(shut) },
		func(g *gate) { g.set(silent) },
		func(g *gate) { g.set(mute) },
	} {
		for g, other := range map[*gate]*gate{one: two, two: one} {
			other.set(passing)
			fail(g)
			put(t, srv, "a", fmt.Sprintf("%d now", i))
			w.next(t, fmt.Sprintf("a=%d now", i))
			g.set(passing)
			g.cut()
			put(t, srv, "a", fmt.Sprintf("%d then", i))
			w.next(t, fmt.Sprintf("a=%d then", i))
		}
	}
	one.set(shut)
	two.set(shut)
	if err := w.end(t); !strings.Contains(err.Error(), one.endpoint) || !strings.Contains(err.Error(), two.endpoint) {
		t.Errorf("Watch without a server: %v; want both named", err)
	}
}

// TestCallsFailOver does so with the other calls.
func TestCallsFailOver(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	g := newGate(t, srv)
	s := open(t, Config{Endpoints: []string{closedPort(t), g.endpoint}, RequestTimeout: 500 * time.Millisecond})
	for i := range 3 {
		s.pinned.Store(0)
		_, err := s.Create(t.Context(), fmt.Sprint(i), nil, 0) // nothing has left for the dead one
		check(t, err)
		list(t, s)
	}
	g.set(silent)
	begin := time.Now()
	_, err := s.Create(t.Context(), "silent", nil, 0)
	if err == nil || !strings.Contains(err.Error(), "no answer in time") || !strings.Contains(err.Error(), "outcome is unknown") {
		t.Errorf("Create on a silent server: %v", err)
	}
	if _, err = s.List(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer in time") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("List on a silent and a dead server: %v", err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("two calls with a limit of half a second take %v", took)
	}
}

// TestWatchHistory: the server remembers a thousand events of everything.
func TestWatchHistory(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	g := newGate(t, srv)
	s := brisk(open(t, Config{Endpoints: []string{g.endpoint}}))
	put(t, srv, "a", "1")
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	w.idle(t)
	srv.CompactV2()
	put(t, srv, "a", "2")
	last := w.next(t, "a=2").Revision // a poll that runs misses nothing
	srv.CompactV2()
	g.cut()
	err := w.end(t) // one that has to be made anew may have
	if !errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "a thousand events") {
		t.Errorf("Watch whose connection was lost, after a thousand other events: %v; want ErrCompacted", err)
	}
	if err := s.Watch(t.Context(), last, func(lease.Batch) {}); !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("Watch of what is forgotten: %v; want ErrCompacted", err)
	}
	l, _ = list(t, s)
	w = watchFrom(t, s, l.Revision)
	put(t, srv, "b", "3")
	w.next(t, "b=3")
}

// TestWatchRemovals: whoever removes the whole directory, or what it is in, removes all
// entries, and that the watch must not miss, whether it is polling or comes back.
func TestWatchRemovals(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := brisk(open(t, config(srv, "")))
	for _, dir := range []string{"/coreos.com", DefaultPrefix, DefaultPrefix + "/subnets", DefaultPrefix + "/subnets/deep"} {
		for _, expires := range []bool{false, true} {
			for _, polling := range []bool{false, true} {
				what := fmt.Sprintf("%s goes, expires %t, polling %t", dir, expires, polling)
				raw(t, srv, http.MethodDelete, "/coreos.com", "recursive=true", nil)
				if expires { // a moment later, or while this goes on
					raw(t, srv, http.MethodPut, dir, "", url.Values{"dir": {"true"}, "ttl": {"2"}})
				}
				put(t, srv, "a", "1")
				put(t, srv, "deep/b", "1")
				l, _ := list(t, s)
				var w *watcher
				if polling {
					w = watchFrom(t, s, l.Revision)
					w.idle(t)
				}
				if !expires {
					raw(t, srv, http.MethodDelete, dir, "recursive=true", nil)
				} else if !polling {
					untilGone(t, srv, dir)
				}
				if !polling {
					w = watchFrom(t, s, l.Revision)
				}
				if err := w.end(t); !errors.Is(err, lease.ErrCompacted) {
					t.Errorf("%s: %v; want ErrCompacted", what, err)
				}
			}
		}
	}
}

// untilGone waits until a directory has expired.
func untilGone(t *testing.T, srv *etcdtest.Server, dir string) {
	t.Helper()
	for late := time.Now().Add(patience); raw(t, srv, http.MethodGet, dir, "", nil).status == http.StatusOK; {
		if time.Now().After(late) {
			t.Fatalf("%s does not expire", dir)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestWatchDirectories: directories that are no entries, beside ours and in it.
func TestWatchDirectories(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := brisk(open(t, config(srv, "")))
	put(t, srv, "a", "1")
	for _, dir := range []string{"/coreos.com/net", "/coreos.com/network/sub", "/core", DefaultPrefix + "/subnets2"} {
		raw(t, srv, http.MethodPut, dir, "", url.Values{"dir": {"true"}})
	}
	raw(t, srv, http.MethodPut, DefaultPrefix+"/config", "", url.Values{"value": {"{}"}})
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	again := l.Revision
	w.idle(t)
	for _, dir := range []string{"/coreos.com/net", "/coreos.com/network/sub", "/core", DefaultPrefix + "/subnets2"} {
		raw(t, srv, http.MethodDelete, dir, "dir=true", nil)
	}
	raw(t, srv, http.MethodPut, DefaultPrefix+"/subnets/new", "", url.Values{"dir": {"true"}}) // no entry
	raw(t, srv, http.MethodPut, DefaultPrefix+"/subnets/a", "", url.Values{"dir": {"true"}})   // in the place of one
	put(t, srv, "b", "2")
	for range 2 {
		w.next(t, "-a")
		w.next(t, "b=2")
		w = watchFrom(t, s, again) // the same out of the server's memory
	}
}

// TestWatchReplaced: another etcd in the place of the one that was watched.
func TestWatchReplaced(t *testing.T) {
	many := func(t *testing.T, srv *etcdtest.Server, n int) {
		for i := range n {
			put(t, srv, "many", fmt.Sprint(i))
		}
	}
	for name, c := range map[string]struct {
		replace func(*testing.T, *etcdtest.Server)
		after   int // entries written to the new one before anybody looks
	}{
		"wiped":                       {func(_ *testing.T, srv *etcdtest.Server) { srv.Wipe() }, 0},
		"wiped, and configured later": {func(_ *testing.T, srv *etcdtest.Server) { srv.Wipe() }, 100},
		"replaced":                    {func(_ *testing.T, srv *etcdtest.Server) { srv.Replace() }, 0},
		"replaced, and much written":  {func(_ *testing.T, srv *etcdtest.Server) { srv.Replace() }, 100},
	} {
		t.Run(name, func(t *testing.T) {
			srv := etcdtest.Start(t, etcdtest.Config{})
			g := newGate(t, srv)
			s := brisk(open(t, Config{Endpoints: []string{g.endpoint}}))
			configure := func() {
				raw(t, srv, http.MethodPut, DefaultPrefix+"/config", "", url.Values{"value": {"{}"}})
			}
			configure()
			many(t, srv, 50)
			l, _ := list(t, s)
			w := watchFrom(t, s, l.Revision)
			w.idle(t)
			w.idle(t)
			g.set(shut)
			c.replace(t, srv)
			many(t, srv, c.after)
			configure()
			g.set(passing)
			err := w.end(t)
			if !errors.Is(err, lease.ErrCompacted) { // it had no server for a moment
				err = s.Watch(t.Context(), l.Revision, func(b lease.Batch) {
					if len(b.Events) > 0 {
						t.Errorf("Watch reports what the new etcd has: %+v", b)
					}
				})
			}
			if !errors.Is(err, lease.ErrCompacted) {
				t.Errorf("Watch: %v; want ErrCompacted", err)
			}
			l, _ = list(t, s)
			w = watchFrom(t, s, l.Revision)
			put(t, srv, "new", "1")
			w.next(t, "new=1")
		})
	}
}
