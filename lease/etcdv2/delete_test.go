package etcdv2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

const (
	dead  = "10.5.1.0-24"
	other = "10.5.2.0-24"
	peer  = `{"PublicIP":"192.0.2.1"}`
)

func subnetPath(key string) string { return DefaultPrefix + "/subnets/" + key }

// isPoll reports whether a request of a Delete is the one that waits for the end.
func isPoll(req *http.Request) bool {
	return req.URL.Query().Get("wait") == "true" && req.URL.Query().Get("recursive") == ""
}

// ended waits until nothing is left of an entry.
func ended(t *testing.T, srv *etcdtest.Server, key string) {
	t.Helper()
	for late := time.Now().Add(patience); raw(t, srv, http.MethodGet, subnetPath(key), "quorum=true", nil).status != http.StatusNotFound; {
		if time.Now().After(late) {
			t.Fatalf("%s is still there", key)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestEventsForOriginals follows everything that a store does to its entries with the
// client and by the rules of flannel 0.11: an event is "delete" or "expire", or has a
// value that can be read.
func TestEventsForOriginals(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, config(srv, ""))
	c, err := client.New(client.Config{Endpoints: []string{srv.Endpoint()}})
	check(t, err)
	ctx := t.Context()
	first, err := s.Create(ctx, "10.5.9.0-24", []byte(peer), 0)
	check(t, err)
	ours := watchFrom(t, s, first.Revision)
	theirs := client.NewKeysAPI(c).Watcher(DefaultPrefix+"/subnets", &client.WatcherOptions{AfterIndex: first.Revision, Recursive: true})

	step := func(e lease.Entry, err error) lease.Entry {
		t.Helper()
		check(t, err)
		return e
	}
	mortal := step(s.Create(ctx, dead, []byte(peer), time.Hour))
	mortal = step(s.Update(ctx, mortal, []byte(peer+" "), time.Hour))
	mortal = step(s.Renew(ctx, mortal, time.Hour))
	check(t, s.Delete(ctx, mortal))
	mortal = step(s.Create(ctx, dead, []byte(peer), time.Hour))
	check(t, s.Delete(ctx, lease.Entry{Key: dead, Revision: mortal.Revision})) // its value unknown
	reserved := step(s.Create(ctx, other, []byte(peer), 0))
	reserved = step(s.Renew(ctx, reserved, time.Hour))
	reserved = step(s.Update(ctx, reserved, []byte(peer+" "), 0))
	check(t, s.Delete(ctx, reserved))
	if err := s.Delete(ctx, reserved); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("Delete once more: %v; want ErrConflict", err)
	}
	last := step(s.Create(ctx, "10.5.10.0-24", []byte(peer), 0))

	var actions []string
	for index := uint64(0); index < last.Revision; {
		r, err := theirs.Next(ctx)
		check(t, err)
		index = r.Node.ModifiedIndex
		actions = append(actions, r.Action)
		var attrs struct{ PublicIP string }
		if r.Action == "delete" || r.Action == "expire" {
			continue
		}
		if err := json.Unmarshal([]byte(r.Node.Value), &attrs); err != nil || attrs.PublicIP != "192.0.2.1" {
			t.Errorf("%s of %s: %q: %v", r.Action, r.Node.Key, r.Node.Value, err)
		}
	}
	const want = "create compareAndSwap compareAndSwap compareAndSwap expire create compareAndSwap expire create compareAndSwap compareAndSwap expire create"
	if got := strings.Join(actions, " "); got != want {
		t.Errorf("etcd reports\n%s; want\n%s", got, want)
	}
	// Our own watch is told of each removal once, and nothing of what leads to it.
	for _, want := range []string{
		dead + "=" + peer, dead + "=" + peer + " ", dead + "=" + peer + " ", "-" + dead, dead + "=" + peer, "-" + dead,
		other + "=" + peer, other + "=" + peer + " ", "-" + other, "10.5.10.0-24=" + peer,
	} {
		ours.next(t, want)
	}
}

// TestDeleteAndOthers: what somebody writes while Delete waits stays.
func TestDeleteAndOthers(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	for _, c := range []struct {
		name, method, query string
		form                url.Values
		want                error
		left                string
	}{
		{"prolonged", http.MethodPut, "prevExist=true", url.Values{"value": {peer}, "ttl": {"1000"}}, lease.ErrConflict, peer},
		{"reserved", http.MethodPut, "prevExist=true", url.Values{"value": {peer}}, lease.ErrConflict, peer},
		{"written by flannel", http.MethodPut, "", url.Values{"value": {"theirs"}, "ttl": {"1000"}}, nil, "theirs"},
		{"removed by flannel", http.MethodDelete, "", nil, nil, ""},
		{"its directory removed", http.MethodDelete, "recursive=true", nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := subnetPath(dead)
			if c.query == "recursive=true" {
				path = DefaultPrefix + "/subnets"
			}
			for try := range 5 {
				s := open(t, config(srv, ""))
				e, err := s.Create(t.Context(), dead, []byte(peer), time.Hour)
				check(t, err)
				reached, written, done := make(chan bool), make(chan bool), make(chan error, 1)
				s.trace = func(req *http.Request) {
					if isPoll(req) {
						reached <- true
						<-written
					}
				}
				go func() { done <- s.Delete(t.Context(), e) }()
				<-reached
				a := raw(t, srv, c.method, path, c.query, c.form)
				close(written)
				err = <-done
				if a.status == http.StatusNotFound {
					t.Logf("try %d: too late, it has expired", try)
					check(t, err)
					continue
				}
				if !errors.Is(err, c.want) || c.want == nil && err != nil {
					t.Errorf("Delete: %v; want %v", err, c.want)
				}
				_, all := list(t, s)
				if string(all[dead].Value) != c.left {
					t.Errorf("%+v is left; want %q", all[dead], c.left)
				}
				if now, ok := all[dead]; ok {
					if err := s.Delete(t.Context(), e); !errors.Is(err, lease.ErrConflict) {
						t.Errorf("Delete of the old one: %v; want ErrConflict", err)
					}
					s.trace = nil
					check(t, s.Delete(t.Context(), now))
				}
				return
			}
			t.Error("always too late")
		})
	}
}

// TestDeleteCancelled: the end of a context, or of the store, ends the waiting, and the
// entry ends too.
func TestDeleteCancelled(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{})
	for _, end := range []string{"cancel", "deadline", "close"} {
		s, err := New(config(srv, ""))
		check(t, err)
		e, err := s.Create(t.Context(), dead, []byte(peer), time.Hour)
		check(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		want := context.Canceled
		if end == "deadline" {
			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
			want = context.DeadlineExceeded
		}
		closed := make(chan error, 1)
		s.trace = func(req *http.Request) {
			switch {
			case !isPoll(req):
			case end == "close":
				go func() { closed <- s.Close() }()
				<-s.life.Done()
			default:
				if end == "cancel" {
					cancel()
				}
				<-ctx.Done()
			}
		}
		err = s.Delete(ctx, e)
		if end == "close" {
			check(t, <-closed)
			want = errClosed
		}
		if !errors.Is(err, want) {
			t.Errorf("%s while Delete waits: %v; want %v", end, err, want)
		}
		ended(t, srv, dead)
		cancel()
		check(t, s.Close())
	}
}

// TestDeleteOfMany: at once, by one store; and many that want to delete the same.
func TestDeleteOfMany(t *testing.T) {
	const entries = 100
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, config(srv, ""))
	ctx := t.Context()
	var all []lease.Entry
	for i := range entries {
		e, err := s.Create(ctx, fmt.Sprintf("10.6.%d.0-24", i), []byte(peer), time.Duration(i%2)*time.Hour)
		check(t, err)
		all = append(all, e)
	}
	l, _ := list(t, s)
	w := watchFrom(t, s, l.Revision)
	deleteAll := func(of func(i int) lease.Entry) (succeeded int64) {
		var running sync.WaitGroup
		var n atomic.Int64
		for i := range entries {
			running.Go(func() {
				err := s.Delete(ctx, of(i))
				if err == nil {
					n.Add(1)
				} else if !errors.Is(err, lease.ErrConflict) {
					t.Errorf("Delete: %v", err)
				}
			})
		}
		running.Wait()
		return n.Load()
	}
	if n := deleteAll(func(i int) lease.Entry { return all[i] }); n != entries {
		t.Errorf("%d of %d Deletes succeed", n, entries)
	}
	if _, left := list(t, s); len(left) != 0 {
		t.Errorf("%d entries are left", len(left))
	}
	e, err := s.Create(ctx, dead, []byte(peer), time.Hour)
	check(t, err)
	if n := deleteAll(func(int) lease.Entry { return e }); n != 1 {
		t.Errorf("%d of %d Deletes of one entry succeed; want one", n, entries)
	}
	removed := make(map[string]int)
	for late := time.After(patience); removed[dead] == 0; {
		select {
		case b := <-w.batches:
			for _, ev := range b.Events {
				if ev.Deleted {
					removed[ev.Entry.Key]++
				} else if ev.Entry.Revision != e.Revision {
					t.Errorf("Watch: %+v", ev)
				}
			}
		case <-late:
			t.Fatal("Watch does not report the last removal")
		}
	}
	for _, e := range all {
		if removed[e.Key] != 1 {
			t.Errorf("%s is reported as removed %d times", e.Key, removed[e.Key])
		}
	}
}

// TestDeleteAndServers: one that ends, or stops, while Delete waits.
func TestDeleteAndServers(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Config{})
	cfg := config(srv, "")
	cfg.RequestTimeout = 3 * time.Second
	for what, fail := range map[string]struct{ stop, goOn func() }{
		"killed": {srv.Kill, srv.Restart},
		"paused": {srv.Pause, srv.Resume},
	} {
		s := open(t, cfg)
		e, err := s.Create(t.Context(), dead, []byte(peer), time.Hour)
		check(t, err)
		reached, failed, done := make(chan bool), make(chan bool), make(chan error, 1)
		s.trace = func(req *http.Request) {
			if isPoll(req) {
				reached <- true
				<-failed
			}
		}
		go func() { done <- s.Delete(t.Context(), e) }()
		<-reached
		fail.stop()
		close(failed)
		select {
		case err = <-done:
		case <-time.After(patience):
			t.Fatalf("%s: Delete does not return", what)
		}
		if err == nil || errors.Is(err, lease.ErrConflict) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "outcome is unknown") {
			t.Errorf("%s: Delete: %v; want that the outcome is unknown", what, err)
		}
		fail.goOn()
		ended(t, srv, dead)
	}
}

// TestDeleteOddAnswers is what the waiting may meet.
func TestDeleteOddAnswers(t *testing.T) {
	const cleared = `{"errorCode":401,"message":"The event in requested index is outdated and cleared","index":9000}`
	const missing = `{"errorCode":100,"message":"Key not found","index":9}`
	node := func(action string, modified, created int) string {
		return fmt.Sprintf(`{"action":%q,"node":{"key":%q,"value":"v","modifiedIndex":%d,"createdIndex":%d}}`, action, subnetPath(dead), modified, created)
	}
	for _, c := range []struct {
		name, poll, read string
		says             string // "" for success
		is               error
	}{
		{"news lost", cleared, missing, "", nil},
		{"news lost, another made", cleared, node("get", 9, 9), "", nil},
		{"news lost, prolonged", cleared, node("get", 9, 5), "", lease.ErrConflict},
		{"older than before", "", node("get", 6, 5), "", lease.ErrConflict},
		{"a directory in its place", `{"action":"set","node":{"key":"/x","dir":true,"modifiedIndex":9,"createdIndex":9}}`, "", "", nil},
		{"no end to it", "", node("get", 8, 5), "do the clocks of the servers differ?", nil},
		{"no etcd any more", "<html>", "<html>", "outcome is unknown", lease.ErrUnsupported},
	} {
		var requests atomic.Int64
		s := open(t, Config{RequestTimeout: 500 * time.Millisecond, Endpoints: []string{fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			answer := c.read
			switch {
			case r.Method == http.MethodPut:
				answer = node("compareAndSwap", 8, 5)
			case r.URL.Query().Get("wait") == "true":
				answer = c.poll
			}
			if strings.HasPrefix(answer, `{"errorCode"`) {
				w.WriteHeader(http.StatusNotFound)
			}
			fmt.Fprint(w, answer)
		})}})
		began := time.Now()
		err := s.Delete(t.Context(), lease.Entry{Key: dead, Revision: 7, Value: []byte("v")})
		switch {
		case c.says == "" && !errors.Is(err, c.is), c.says == "" && c.is == nil && err != nil:
			t.Errorf("%s: %v; want %v", c.name, err, c.is)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is)):
			t.Errorf("%s: %v; want %q", c.name, err, c.says)
		case errors.Is(err, context.DeadlineExceeded):
			t.Errorf("%s: %v, though no context has ended", c.name, err)
		}
		if most := 4 + 2*int64(time.Since(began)/removalPause); requests.Load() > most {
			t.Errorf("%s: %d requests; want at most %d", c.name, requests.Load(), most)
		}
	}
}
