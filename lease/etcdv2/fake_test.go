package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

// A member is a server that says what a test wants, for what real ones do seldom.
type member struct {
	index  atomic.Int64 // of a plain read
	quorum atomic.Int64 // of a consistent one; below 0 its cluster is gone
	raft   atomic.Int64 // rises with every consistent read
	busy   atomic.Bool  // and, by others' writes, with every plain one
	reads  atomic.Int64 // consistent ones so far
	polls  atomic.Int64
	other  atomic.Bool      // it is of another cluster now
	poll   http.HandlerFunc // what a long poll is answered, nil for nothing
}

func (m *member) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := func(index int64) {
		w.Header().Set("X-Etcd-Cluster-Id", map[bool]string{false: "abc", true: "abd"}[m.other.Load()])
		w.Header().Set("X-Etcd-Index", fmt.Sprint(index))
		w.Header().Set("X-Raft-Index", fmt.Sprint(m.raft.Load()))
	}
	const config = `{"action":"get","node":{"key":"/coreos.com/network/config","value":"{}","modifiedIndex":3,"createdIndex":3}}`
	switch q := r.URL.Query(); {
	case r.URL.Path == "/version":
		http.NotFound(w, r)
	case q.Get("wait") == "true":
		m.polls.Add(1)
		header(m.index.Load())
		if m.poll != nil {
			m.poll(w, r)
			return
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case q.Get("quorum") == "true" && m.quorum.Load() < 0:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}`)
	case q.Get("quorum") == "true":
		m.reads.Add(1)
		m.raft.Add(1)
		header(m.quorum.Load())
		fmt.Fprint(w, config)
	default:
		if m.busy.Load() {
			m.raft.Add(1)
		}
		header(m.index.Load())
		fmt.Fprint(w, config)
	}
}

func start(t *testing.T, m *member) *Store {
	return brisk(open(t, Config{Endpoints: []string{fakeServer(t, m.ServeHTTP)}}))
}

// TestWatchChecks: servers that a watch stays with, and one that serves no more.
func TestWatchChecks(t *testing.T) {
	t.Run("healthy", func(t *testing.T) {
		m := new(member)
		m.index.Store(10)
		m.raft.Store(1000)
		m.busy.Store(true)
		w := watchFrom(t, start(t, m), 10)
		for range 5 {
			w.idle(t)
		}
		if m.reads.Load() != 0 || m.polls.Load() != 1 {
			t.Errorf("%d consistent reads, %d polls; want none while the log moves, and one", m.reads.Load(), m.polls.Load())
		}
	})
	t.Run("nothing happens", func(t *testing.T) {
		m := new(member)
		m.index.Store(10)
		m.quorum.Store(10)
		w := watchFrom(t, start(t, m), 10)
		for range 5 {
			w.idle(t)
		}
		if m.reads.Load() == 0 {
			t.Error("no consistent read, though the log stands still")
		}
	})
	t.Run("behind its cluster", func(t *testing.T) {
		m := new(member)
		m.index.Store(5)
		m.quorum.Store(12)
		w := watchFrom(t, start(t, m), 10)
		for range 5 {
			w.idle(t)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		m := new(member)
		m.index.Store(10)
		m.quorum.Store(10)
		w := watchFrom(t, start(t, m), 10)
		w.idle(t)
		w.idle(t)
		m.quorum.Store(-1)
		if err := w.end(t); errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "has its cluster a leader") {
			t.Errorf("Watch: %v; want that there is no leader", err)
		}
	})
}

// TestWatchTellsEtcds: servers that are not what was watched.
func TestWatchTellsEtcds(t *testing.T) {
	t.Run("another cluster", func(t *testing.T) {
		m := new(member)
		m.index.Store(20)
		m.quorum.Store(20)
		m.busy.Store(true)
		w := watchFrom(t, start(t, m), 10)
		w.idle(t)
		m.other.Store(true)
		if err := w.end(t); !errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("Watch: %v; want ErrCompacted", err)
		}
	})
	t.Run("restored", func(t *testing.T) {
		m := new(member)
		m.index.Store(10)
		m.quorum.Store(9)
		if err := watchFrom(t, start(t, m), 10).end(t); !errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "only at index 9") {
			t.Errorf("Watch: %v; want ErrCompacted", err)
		}
	})
	t.Run("restored, and further than before", func(t *testing.T) {
		m := new(member)
		m.index.Store(20)
		m.quorum.Store(20)
		m.raft.Store(1000)
		m.busy.Store(true)
		w := watchFrom(t, start(t, m), 10)
		w.idle(t)
		m.raft.Store(7)
		if err := w.end(t); !errors.Is(err, lease.ErrCompacted) || !strings.Contains(err.Error(), "its log went back") {
			t.Errorf("Watch: %v; want ErrCompacted", err)
		}
	})
}

// TestOddAnswers: what a poll gets from servers and what stands before them.
func TestOddAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		poll http.HandlerFunc
		says string
		is   error
	}{
		{"not etcd", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "not as an etcd does", lease.ErrUnsupported},
		{"no node", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"action":"set"}`) }, "not as an etcd does", lease.ErrUnsupported},
		{"null", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "null") }, "not as an etcd does", lease.ErrUnsupported},
		{"a proxy's error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no upstream", http.StatusBadGateway) }, "Bad Gateway", nil},
		{"unavailable", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusServiceUnavailable) }, "can't serve", nil},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "user name and a password", lease.ErrDenied},
		{"an error of etcd's", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errorCode":203,"message":"The given index in POST form is not a number","cause":"c","index":1}`)
		}, "error 203", nil},
		{"an event again", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"action":"set","node":{"key":"/coreos.com/network/subnets/a","modifiedIndex":10}}`)
		}, "reports event 10 again", lease.ErrCompacted},
		{"an unknown event", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"action":"rename","node":{"key":"/coreos.com/network/subnets/a","modifiedIndex":11}}`)
		}, "rename", lease.ErrCompacted},
		{"the directory is a value", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"action":"set","node":{"key":"/coreos.com/network/subnets","value":"x","modifiedIndex":11}}`)
		}, "subnets is removed", lease.ErrCompacted},
	} {
		m := &member{poll: c.poll}
		m.index.Store(10)
		m.busy.Store(true)
		err := watchFrom(t, start(t, m), 10).end(t)
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", c.name, err, c.says)
		}
		for _, is := range []error{lease.ErrUnsupported, lease.ErrDenied, lease.ErrCompacted} {
			if errors.Is(err, is) != errors.Is(c.is, is) {
				t.Errorf("%s: %v: that it is %q is %t", c.name, err, is, !errors.Is(c.is, is))
			}
		}
		if n := m.polls.Load(); n > 3 {
			t.Errorf("%s: %d polls", c.name, n)
		}
	}
}

// TestEmptyPolls: polls that end without an event, at once or by and by, do not end the
// watch, and make no busy loop of it.
func TestEmptyPolls(t *testing.T) {
	m := &member{poll: func(http.ResponseWriter, *http.Request) {}}
	m.index.Store(10)
	m.busy.Store(true)
	s := start(t, m)
	w := watchFrom(t, s, 10)
	began := time.Now()
	for range 10 {
		if b := w.idle(t); b.Revision != 10 {
			t.Errorf("revision %d; nothing says that nothing was lost", b.Revision)
		}
	}
	if most := int64(time.Since(began)/s.times.leastGap) + 2; m.polls.Load() > most || m.polls.Load() < 2 {
		t.Errorf("%d polls; want at most %d, and more than one", m.polls.Load(), most)
	}

	m = new(member) // one that never ends is made anew
	m.index.Store(10)
	m.busy.Store(true)
	s = start(t, m)
	s.times.poll = 30 * time.Millisecond
	w = watchFrom(t, s, 10)
	for m.polls.Load() < 3 {
		w.idle(t)
	}
}

// TestEmptyAnswers: where there is no poll an empty answer is none.
func TestEmptyAnswers(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"empty":    func(http.ResponseWriter, *http.Request) {},
		"no index": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"action":"get","node":{"dir":true}}`) },
	} {
		s := open(t, Config{Endpoints: []string{fakeServer(t, answer)}})
		if l, err := s.List(t.Context()); err == nil {
			t.Errorf("%s: List: %+v", name, l)
		}
		if name == "empty" {
			for what, err := range everyCall(t, s) {
				if !errors.Is(err, lease.ErrUnsupported) {
					t.Errorf("%s: %s: %v", name, what, err)
				}
			}
		}
	}
}

// TestEvents is the table of what etcd reports and what becomes of it.
func TestEvents(t *testing.T) {
	w := &watch{s: open(t, Config{Prefix: "/net"})}
	file, dir := &client.Node{}, &client.Node{Dir: true}
	over := &client.Node{Expiration: new(time.Time)} // the same value, and its time is up
	left := &client.Node{Expiration: new(time.Time), TTL: 1}
	for _, c := range []struct {
		action, key string
		node, prev  *client.Node
		want        string // "" for nothing
	}{
		{"set", "/net/subnets/a", file, nil, "a"},
		{"create", "/net/subnets/a", file, nil, "a"},
		{"update", "/net/subnets/a", file, file, "a"},
		{"compareAndSwap", "/net/subnets/a", file, file, "a"},
		{"compareAndSwap", "/net/subnets/a", over, file, ""}, // a Delete begins
		{"compareAndSwap", "/net/subnets/a", left, file, "a"},
		{"compareAndSwap", "/net/subnets/a", over, &client.Node{Value: "another"}, "a"},
		{"set", "/net/subnets/a", over, file, "a"},
		{"delete", "/net/subnets/a", file, file, "-a"},
		{"compareAndDelete", "/net/subnets/a", file, file, "-a"},
		{"expire", "/net/subnets/a", file, file, "-a"},
		{"set", "/net/subnets/a/b", file, nil, "a/b"},
		{"set", "/net/subnets/a", dir, nil, ""},
		{"set", "/net/subnets/a", dir, file, "-a"},
		{"update", "/net/subnets/a", dir, dir, ""},
		{"delete", "/net/subnets/a", dir, dir, "list"},
		{"expire", "/net/subnets/a/b", dir, dir, "list"},
		{"create", "/net/subnets", dir, nil, ""},
		{"create", "/net/subnets", file, nil, "list"},
		{"expire", "/net/subnets", dir, dir, "list"},
		{"delete", "/net", dir, dir, "list"},
		{"delete", "/ne", dir, dir, ""},
		{"delete", "/net/sub", dir, dir, ""},
		{"set", "/net/subnets2/a", file, nil, ""},
		{"get", "/net/subnets/a", file, nil, "list"},
	} {
		n := *c.node
		n.Key, n.ModifiedIndex = c.key, 7
		b, err := w.batch(&client.Response{Action: c.action, Node: &n, PrevNode: c.prev})
		got := ""
		for _, e := range b.Events {
			got = e.Entry.Key
			if e.Deleted {
				got = "-" + got
			}
		}
		if errors.Is(err, lease.ErrCompacted) {
			got = "list"
		} else if err != nil || b.Revision != 7 || len(b.Events) > 1 {
			t.Errorf("%s %s: %+v, %v", c.action, c.key, b, err)
		}
		if got != c.want {
			t.Errorf("%s %s, directory %t: %q; want %q", c.action, c.key, n.Dir, got, c.want)
		}
	}
}

// TestCloseLeavesNothing closes stores in the middle of everything.
func TestCloseLeavesNothing(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{TLS: etcdtest.MutualTLS})
	mute, err := net.Listen("tcp", "127.0.0.1:0") // connects, and answers no handshake
	check(t, err)
	t.Cleanup(func() { mute.Close() })
	cfg := config(srv, "")
	for _, endpoint := range []string{srv.Endpoint(), "https://" + mute.Addr().String()} {
		cfg.Endpoints = []string{endpoint}
		s, err := New(cfg)
		check(t, err)
		done := make(chan error)
		began := make(chan struct{}, 2)
		s.trace = func(*http.Request) {
			select {
			case began <- struct{}{}:
			default:
			}
		}
		go func() { done <- s.Watch(context.Background(), 1000, func(lease.Batch) {}) }()
		<-began
		go func() { _, err := s.List(context.Background()); done <- err }()
		<-began
		check(t, s.Close())
		check(t, s.Close())
		for range 2 {
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, lease.ErrCompacted) {
					t.Errorf("a call under way: %v; want ErrClosed", err)
				}
			case <-time.After(patience):
				t.Fatal("a call goes on after Close")
			}
		}
		for what, err := range everyCall(t, s) {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after Close: %v; want ErrClosed", what, err)
			}
		}
	}
	idle, err := New(config(srv, "")) // with nothing but a connection
	check(t, err)
	list(t, idle)
	check(t, idle.Close())
	s, err := New(config(srv, ""))
	check(t, err)
	l, _ := list(t, s)
	if err := s.Watch(t.Context(), l.Revision, func(lease.Batch) { s.Close() }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Watch whose function closes the store: %v; want ErrClosed", err)
	}
	buf := make([]byte, 1<<20)
	for late := time.Now().Add(patience / 3); ; runtime.Gosched() { // before idle connections end of themselves
		stacks := string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "net/http.(*persistConn)") && !strings.Contains(stacks, "etcdv2.(*Store)") {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("goroutines are left:\n%s", stacks)
		}
	}
}
