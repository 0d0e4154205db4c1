package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// TestKeys looks at what is stored with other eyes: keys and values are flannel's,
// byte for byte, and nothing else is written.
func TestKeys(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	const dual = "10.5.34.0-24&fd00:1:2::-64"
	for _, c := range []struct{ prefix, base string }{
		{"", "/coreos.com/network"}, {"/other/net/", "/other/net"}, {"no/slash", "no/slash"}, {"/", ""},
	} {
		s := open(t, Config{Endpoints: []string{srv.Endpoint()}, Prefix: c.prefix})
		value := []byte(`{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
		e, err := s.Create(background(t), dual, value, 24*time.Hour)
		check(t, err)
		if e.TTL != 24*time.Hour || e.Handle == 0 || e.Permanent {
			t.Errorf("Create: %+v", e)
		}
		resp, err := srv.V3().Get(background(t), "", clientv3.WithFromKey())
		check(t, err)
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Key) != c.base+"/subnets/"+dual || string(resp.Kvs[0].Value) != string(value) ||
			resp.Kvs[0].Lease != e.Handle || uint64(resp.Kvs[0].ModRevision) != e.Revision {
			t.Errorf("prefix %q: stored is %v", c.prefix, resp.Kvs)
		}
		srv.Put(c.base+"/config", "{}")
		if config, err := s.Config(background(t)); err != nil || string(config) != "{}" {
			t.Errorf("prefix %q: Config: %q, %v", c.prefix, config, err)
		}
		if l, err := s.List(background(t)); err != nil || len(l.Entries) != 1 || l.Cluster != resp.Header.ClusterId || l.Entries[0].Key != dual {
			t.Errorf("prefix %q: List: %+v, %v", c.prefix, l, err)
		}
		check(t, s.Delete(background(t), e))
		srv.Delete(c.base + "/config")
		if resp, err := srv.V3().Get(background(t), "", clientv3.WithFromKey()); err != nil || len(resp.Kvs) != 0 {
			t.Errorf("prefix %q: after all was deleted there is %v, %v", c.prefix, resp.Kvs, err)
		}
	}
}

// TestRequests counts them.
func TestRequests(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/requests"))
	const keys = 200
	for i := range keys {
		srv.Put(fmt.Sprintf("/requests/subnets/10.5.%d.0-24", i), "{}")
	}
	var sent []string
	s.trace = func(method string) { sent = append(sent, path.Base(method)) }
	expect := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(sent, want) {
			t.Errorf("%s sends %q; want %q", what, sent, want)
		}
		sent = nil
	}
	l, err := s.List(background(t))
	check(t, err)
	if len(l.Entries) != keys {
		t.Fatalf("List has %d entries; want %d", len(l.Entries), keys)
	}
	expect("List", "Range")
	e, err := s.Create(background(t), "10.6.0.0-24", nil, long)
	check(t, err)
	expect("Create", "LeaseGrant", "Txn")
	_, err = s.Renew(background(t), e, long)
	check(t, err)
	expect("Renew", "LeaseKeepAlive")
	_, err = s.Renew(background(t), l.Entries[0], long)
	check(t, err)
	expect("Renew of a permanent entry")
	_, err = s.Config(background(t))
	if !errors.Is(err, lease.ErrNoConfig) {
		t.Error(err)
	}
	expect("Config", "Range")
	_, err = s.Update(background(t), l.Entries[0], nil, 0)
	check(t, err)
	expect("Update without time limit", "Txn")
	check(t, s.Delete(background(t), l.Entries[1]))
	expect("Delete", "Txn")
}

// TestLeases: what etcd leases are left.
func TestLeases(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/leases"))
	left := func(what string, want int) {
		t.Helper()
		s.tidy.Wait() // or else what is done in the background may come later
		if got := srv.Leases(); len(got) != want {
			t.Errorf("%s: %d etcd leases are left; want %d", what, len(got), want)
		}
	}
	e, err := s.Create(background(t), key1, []byte("1"), long)
	check(t, err)
	for range 5 {
		if _, err := s.Create(background(t), key1, []byte("2"), long); !errors.Is(err, lease.ErrExists) {
			t.Fatal(err)
		}
		if _, err := s.Update(background(t), lease.Entry{Key: key1, Revision: 1}, nil, long); !errors.Is(err, lease.ErrConflict) {
			t.Fatal(err)
		}
	}
	left("lost races", 1)
	old := e
	e, err = s.Update(background(t), e, []byte("3"), long)
	check(t, err)
	left("Update", 1)
	if e.Handle == old.Handle {
		t.Error("Update keeps the etcd lease")
	}
	if _, err := s.Renew(background(t), old, long); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("Renew of what was updated: %v; want ErrConflict", err)
	}
	e, err = s.Update(background(t), e, []byte("4"), 0)
	check(t, err)
	left("Update without time limit", 0)
	e, err = s.Update(background(t), e, []byte("5"), long)
	check(t, err)
	left("Update with one", 1)
	check(t, s.Delete(background(t), e))
	left("Delete", 0)

	// Somebody else's key on our etcd lease must not go with it.
	e, err = s.Create(background(t), key1, []byte("6"), long)
	check(t, err)
	_, err = srv.V3().Put(background(t), "/other", "stays", clientv3.WithLease(clientv3.LeaseID(e.Handle)))
	check(t, err)
	e, err = s.Update(background(t), e, []byte("7"), long)
	check(t, err)
	left("Update with another key on the old etcd lease", 2)
	check(t, s.Delete(background(t), e))
	left("Delete", 1)
	if v, _ := srv.Get("/other"); v != "stays" {
		t.Error("another key was removed with our etcd lease")
	}
}

// TestLeasesCancelled: calls that are cancelled at any moment leave no etcd lease
// without an entry, except where nobody can tell whether the entry was written.
func TestLeasesCancelled(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/cancelled"))
	e, err := s.Create(background(t), key2, []byte("old"), long)
	check(t, err)
	for i := range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*30*time.Microsecond)
		_, err := s.Create(ctx, fmt.Sprintf("10.6.%d.0-24", i), nil, long)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	s.tidy.Wait()
	l, err := s.List(background(t))
	check(t, err)
	used := make(map[int64]bool)
	for _, e := range l.Entries {
		used[e.Handle] = true
	}
	leases := srv.Leases()
	idle := len(leases) - len(used)
	t.Logf("%d entries of 100 were made, %d etcd leases are without", len(l.Entries)-1, idle)
	if idle > 2 { // a slow machine may not tidy up in time
		t.Errorf("%d etcd leases are left without an entry", idle)
	}
	if !used[e.Handle] {
		t.Error("an entry is gone that was there before")
	}
}

// TestRenewOther: entries whose time to live is not what is asked for.
func TestRenewOther(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, config(srv, "/renew"))
	e, err := s.Create(background(t), key1, []byte("value"), time.Hour)
	check(t, err)
	for _, ttl := range []time.Duration{24 * time.Hour, 10 * time.Minute} {
		old := e
		old.Value = nil // not what counts
		e, err = s.Renew(background(t), old, ttl)
		check(t, err)
		if e.TTL != ttl || e.Handle == old.Handle || e.Revision <= old.Revision {
			t.Errorf("Renew of %+v for %v: %+v", old, ttl, e)
		}
		if v, _ := srv.Get("/renew/subnets/" + key1); v != "value" {
			t.Errorf("Renew leaves %q", v)
		}
	}
	s.tidy.Wait()
	if got := srv.Leases(); len(got) != 1 {
		t.Errorf("%d etcd leases; want 1", len(got))
	}
	same, err := s.Renew(background(t), e, 15*time.Minute) // not far from ten
	check(t, err)
	if same.Revision != e.Revision || same.TTL != 10*time.Minute {
		t.Errorf("Renew: %+v; want %+v", same, e)
	}
	bare, err := s.Renew(background(t), lease.Entry{Key: key1, Revision: e.Revision}, 10*time.Minute)
	check(t, err)
	if bare.Handle != e.Handle || bare.Revision != e.Revision || string(bare.Value) != "value" {
		t.Errorf("Renew without Handle: %+v; want %+v", bare, e)
	}
	if _, err := s.Renew(background(t), lease.Entry{Key: key1, Revision: e.Revision + 1}, time.Hour); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("Renew without Handle of what was changed: %v; want ErrConflict", err)
	}
	// A reservation stays one, whatever a host does that does not know it yet.
	srv.Put("/renew/subnets/"+key1, "reserved")
	for _, old := range []lease.Entry{e, {Key: key1, Revision: e.Revision}} {
		if _, err := s.Renew(background(t), old, 10*time.Minute); err != nil && !errors.Is(err, lease.ErrConflict) {
			t.Error(err)
		}
		if _, err := s.Renew(background(t), old, 240*time.Hour); !errors.Is(err, lease.ErrConflict) {
			t.Errorf("Renew for another time of what was reserved: %v; want ErrConflict", err)
		}
	}
	l, err := s.List(background(t))
	check(t, err)
	if len(l.Entries) != 1 || !l.Entries[0].Permanent || string(l.Entries[0].Value) != "reserved" {
		t.Errorf("a reservation became %+v", l.Entries)
	}
}

// TestIdle: a server that is away costs nothing.
func TestIdle(t *testing.T) {
	var tries atomic.Int64
	s := open(t, Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if _, err := s.List(background(t)); err == nil {
		t.Fatal("who listens on port 1?")
	}
	first := make(chan struct{})
	var once sync.Once
	go func() {
		for {
			s.wire.mu.Lock()
			changed := s.wire.changed
			s.wire.mu.Unlock()
			select {
			case <-changed:
				if tries.Add(1) == 3 {
					once.Do(func() { close(first) })
				}
			case <-s.life.Done():
				return
			}
		}
	}()
	begin := time.Now()
	select {
	case <-first:
	case <-time.After(patience):
		t.Fatal("the client does not try to connect any more")
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("three attempts to connect within %v", took)
	}
}

// TestNew: what can be wrong without a server.
func TestNew(t *testing.T) {
	for want, cfg := range map[string]Config{
		"endpoint":         {Endpoints: []string{"ftp://x"}},
		"CA file":          {CAFile: "/nonexistent"},
		"user name":        {Username: "x"},
		"password without": {Password: "secret"},
		"request timeout":  {RequestTimeout: -1},
	} {
		s, err := New(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), "etcdv3: new: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%+v): %v; want %q", cfg, err, want)
		}
	}
	s := open(t, Config{})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close, again: %v", err)
	}
	for what, ttl := range map[string]time.Duration{"Create": -1, "closed": long} {
		if _, err := s.Create(background(t), key1, nil, ttl); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
