package etcdv2

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// TestStored looks at keys, values and times to live past the store: they are what a
// flannel of 0.17 writes and reads.
func TestStored(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, config(srv, ""))
	value, err := json.Marshal(lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1")})
	check(t, err)
	const day = 24 * time.Hour
	stored := func(key string) answer {
		return raw(t, srv, http.MethodGet, "/coreos.com/network/subnets/"+key, "", nil)
	}

	e, err := s.Create(t.Context(), "10.5.34.0-24", value, day)
	check(t, err)
	got := stored("10.5.34.0-24").Node
	if got.Value != `{"PublicIP":"192.0.2.1","PublicIPv6":null}` || got.TTL != 86400 || got.ModifiedIndex != e.Revision || e.TTL != day || e.Permanent {
		t.Errorf("Create: %+v is stored as %+v", e, got)
	}
	e, err = s.Update(t.Context(), e, []byte(`{"PublicIP":"192.0.2.2"}`), 90*time.Second+time.Nanosecond)
	check(t, err)
	got = stored("10.5.34.0-24").Node
	if got.Value != `{"PublicIP":"192.0.2.2"}` || got.TTL != 91 || e.TTL != 91*time.Second || got.ModifiedIndex != e.Revision {
		t.Errorf("Update: %+v is stored as %+v", e, got)
	}
	e, err = s.Renew(t.Context(), e, day)
	check(t, err)
	got = stored("10.5.34.0-24").Node
	if got.Value != `{"PublicIP":"192.0.2.2"}` || got.TTL != 86400 || e.TTL != day || got.ModifiedIndex != e.Revision {
		t.Errorf("Renew: %+v is stored as %+v", e, got)
	}
	_, err = s.Create(t.Context(), "10.5.35.0-24&fd00:1:2::-64", value, 0)
	check(t, err)
	got = stored("10.5.35.0-24&fd00:1:2::-64").Node
	if got.Key != "/coreos.com/network/subnets/10.5.35.0-24&fd00:1:2::-64" || got.TTL != 0 || got.Expiration != "" {
		t.Errorf("Create without a time limit is stored as %+v", got)
	}
	check(t, s.Delete(t.Context(), e))
	if got := stored("10.5.34.0-24"); got.status != http.StatusNotFound {
		t.Errorf("Delete leaves %+v", got)
	}

	raw(t, srv, http.MethodPut, "/coreos.com/network/config", "", url.Values{"value": {`{"Network":"10.5.0.0/16"}`}})
	if c, err := s.Config(t.Context()); err != nil || string(c) != `{"Network":"10.5.0.0/16"}` {
		t.Errorf("Config: %q, %v", c, err)
	}
	raw(t, srv, http.MethodPut, "/coreos.com/network/subnets/10.5.36.0-24", "", url.Values{"value": {"theirs"}, "ttl": {"100"}})
	if _, all := list(t, s); len(all) != 2 || all["10.5.36.0-24"].TTL <= 90*time.Second || all["10.5.36.0-24"].TTL > 100*time.Second {
		t.Errorf("List: %+v", all)
	}
}

// TestOddDirectories: what else may be where the entries are expected.
func TestOddDirectories(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, config(srv, "net"))
	dir := url.Values{"dir": {"true"}}
	if l, _ := list(t, s); len(l.Entries) != 0 || l.Revision == 0 || l.Cluster == 0 {
		t.Errorf("List of an etcd without the directory: %+v", l)
	}
	raw(t, srv, http.MethodPut, "/net/subnets", "", dir)
	raw(t, srv, http.MethodPut, "/net/config", "", dir)
	raw(t, srv, http.MethodPut, "/net/subnets/10.5.1.0-24", "", dir)
	raw(t, srv, http.MethodPut, "/net/subnets/_hidden", "", url.Values{"value": {"x"}})
	raw(t, srv, http.MethodPut, "/net/subnets/x/y", "", url.Values{"value": {"z"}, "ttl": {"1000"}})
	if _, all := list(t, s); len(all) != 1 || string(all["x/y"].Value) != "z" || all["x/y"].Permanent {
		t.Errorf("List: %+v; want x/y", all)
	}
	if _, err := s.Config(t.Context()); err == nil || errors.Is(err, lease.ErrNoConfig) || !strings.Contains(err.Error(), "/net/config is a directory") {
		t.Errorf("Config where that is a directory: %v", err)
	}
	if _, err := s.Create(t.Context(), "10.5.1.0-24", nil, 0); !errors.Is(err, lease.ErrExists) {
		t.Errorf("Create where there is a directory: %v; want ErrExists", err)
	}
	if _, err := s.Update(t.Context(), lease.Entry{Key: "10.5.1.0-24", Revision: 1}, nil, 0); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("Update where there is a directory: %v; want ErrConflict", err)
	}
	if err := s.Delete(t.Context(), lease.Entry{Key: "10.5.1.0-24", Revision: 1}); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("Delete where there is a directory: %v; want ErrConflict", err)
	}
	for _, key := range []string{"", ".", "..", "../config", "a//b", "/a", "a/", "_hidden", "a/../../config"} {
		_, createErr := s.Create(t.Context(), key, nil, 0)
		_, updateErr := s.Update(t.Context(), lease.Entry{Key: key, Revision: 1}, nil, 0)
		deleteErr := s.Delete(t.Context(), lease.Entry{Key: key, Revision: 1})
		for _, err := range []error{createErr, updateErr, deleteErr} {
			if err == nil || !strings.Contains(err.Error(), "not a name an entry can have") {
				t.Errorf("key %q: %v", key, err)
			}
		}
	}
	other := open(t, config(srv, "other"))
	raw(t, srv, http.MethodPut, "/other/subnets", "", url.Values{"value": {"a file"}})
	if _, err := other.List(t.Context()); err == nil || !strings.Contains(err.Error(), "/other/subnets is a value") {
		t.Errorf("List where subnets is a value: %v", err)
	}
	if _, err := other.Create(t.Context(), "10.5.1.0-24", nil, 0); err == nil || errors.Is(err, lease.ErrExists) || !strings.Contains(err.Error(), "104") {
		t.Errorf("Create where subnets is a value: %v", err)
	}
}

func TestRequestCounts(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, config(srv, ""))
	var sent atomic.Int64
	s.trace = func(*http.Request) { sent.Add(1) }
	count := func(what string, want int64, call func() error) {
		t.Helper()
		before := sent.Load()
		check(t, call())
		if got := sent.Load() - before; got != want {
			t.Errorf("%s takes %d requests; want %d", what, got, want)
		}
	}
	ctx := t.Context()
	var e lease.Entry
	for i := range 200 {
		count("Create", 1, func() (err error) {
			e, err = s.Create(ctx, fmt.Sprintf("10.5.%d.0-24", i), []byte("value"), time.Hour)
			return err
		})
	}
	count("List of 200 entries", 1, func() error {
		l, err := s.List(ctx)
		if len(l.Entries) != 200 {
			t.Errorf("List has %d entries", len(l.Entries))
		}
		return err
	})
	count("Renew", 1, func() (err error) { e, err = s.Renew(ctx, e, time.Hour); return err })
	count("Update", 1, func() (err error) { e, err = s.Update(ctx, e, nil, 0); return err })
	count("Renew of a permanent entry", 0, func() (err error) { e, err = s.Renew(ctx, e, time.Hour); return err })
	e, err := s.Update(ctx, e, []byte("value"), 0)
	check(t, err)
	count("Delete", 2, func() error { return s.Delete(ctx, e) }) // the second one waits
	raw(t, srv, http.MethodPut, DefaultPrefix+"/config", "", url.Values{"value": {"{}"}})
	count("Config", 1, func() error { _, err := s.Config(ctx); return err })
	count("Update at revision 0", 0, func() error {
		if _, err := s.Update(ctx, lease.Entry{Key: "10.5.1.0-24"}, nil, 0); !errors.Is(err, lease.ErrConflict) {
			t.Errorf("Update at revision 0: %v; want ErrConflict", err)
		}
		return nil
	})
}

// TestClocks: the moment at which an entry expires is by the server's clock, which may
// show anything.
func TestClocks(t *testing.T) {
	for _, moment := range []string{"1970-01-01T00:00:00Z", "2262-01-01T00:00:00.5Z"} {
		s := open(t, Config{Endpoints: []string{fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Etcd-Index", "9")
			fmt.Fprintf(w, `{"action":"get","node":{"key":%q,"dir":true,"nodes":[{"key":"/coreos.com/network/subnets/a","value":"v","expiration":%q,"ttl":77,"modifiedIndex":8},
				{"key":"/coreos.com/network/subnets/b","value":"v","expiration":%q,"ttl":-1,"modifiedIndex":7},
				{"key":"/coreos.com/network/subnets/c","value":"v","expiration":%q,"modifiedIndex":6}]}}`, strings.TrimPrefix(r.URL.Path, keysPath), moment, moment, moment)
		})}})
		_, all := list(t, s)
		for key, ttl := range map[string]time.Duration{"a": 77 * time.Second, "b": 0, "c": 0} {
			if e := all[key]; e.TTL != ttl || e.Permanent {
				t.Errorf("expiry %s: %+v; want a TTL of %v", moment, e, ttl)
			}
		}
	}
}

// TestLostAnswers: a write whose answer is lost is neither sent again nor reported as
// anything but unknown, though another server would serve.
func TestLostAnswers(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{})
	good := open(t, config(srv, ""))
	one, two := newGate(t, srv), newGate(t, srv)
	s := open(t, Config{Endpoints: []string{one.endpoint, two.endpoint}})
	s.pinned.Store(0)
	var writes atomic.Int64
	s.trace = func(req *http.Request) {
		if req.Method != http.MethodGet {
			writes.Add(1)
		}
	}
	ctx := t.Context()
	e, err := s.Create(ctx, "10.5.1.0-24", []byte("1"), time.Hour)
	check(t, err)
	gone, err := s.Create(ctx, "10.5.2.0-24", []byte("1"), time.Hour)
	check(t, err)
	one.set(mute)
	for what, write := range map[string]func() error{
		"create": func() error { _, err := s.Create(ctx, "10.5.3.0-24", []byte("1"), time.Hour); return err },
		"update": func() error { _, err := s.Update(ctx, e, []byte("2"), time.Hour); return err },
		"delete": func() error { return s.Delete(ctx, gone) },
	} {
		s.pinned.Store(0)
		writes.Store(0)
		err := write()
		if err == nil || errors.Is(err, lease.ErrExists) || errors.Is(err, lease.ErrConflict) || !strings.Contains(err.Error(), "outcome is unknown") {
			t.Errorf("%s: %v; want an error that says that the outcome is unknown", what, err)
		}
		if writes.Load() != 1 {
			t.Errorf("%s: %d requests; want 1", what, writes.Load())
		}
	}
	ended(t, srv, gone.Key)
	if _, all := list(t, good); len(all) != 2 || string(all["10.5.1.0-24"].Value) != "2" || string(all["10.5.3.0-24"].Value) != "1" {
		t.Fatalf("not all of the writes have come through: %+v", all)
	}
	if _, err := s.Create(ctx, "10.5.3.0-24", []byte("1"), time.Hour); !errors.Is(err, lease.ErrExists) {
		t.Errorf("Create once more: %v; want ErrExists, by the other server", err)
	}
	one.set(shut)
	s.pinned.Store(0)
	list(t, s) // reads are sent again
}
