package etcdv2

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/leasetest"
)

// network is a leasetest.Network on a server that others use too.
func network(srv *etcdtest.Server, cfg Config) leasetest.Network {
	var sent atomic.Int64
	return leasetest.Network{
		Open: func(t *testing.T) lease.Store {
			s, err := New(cfg)
			check(t, err)
			s.trace = func(req *http.Request) {
				// A watch polls, and reads the configuration without a quorum or with
				// one; nothing that is counted reads the configuration.
				if !strings.HasSuffix(req.URL.Path, "/config") && req.URL.Query().Get("wait") == "" {
					sent.Add(1)
				}
			}
			return s
		},
		SetConfig: func(t *testing.T, value string) {
			if value == "" {
				srv.DeleteV2(cfg.Prefix + "/config")
				return
			}
			srv.PutV2(cfg.Prefix+"/config", value, 0)
		},
		Put: func(t *testing.T, name, value string) error {
			if name == "subnets" {
				return fmt.Errorf("%s is the directory: %w", name, errors.ErrUnsupported)
			}
			key := cfg.Prefix + "/" + name
			a := raw(t, srv, http.MethodPut, key, "", url.Values{"value": {value}})
			if a.Node.Key != key { // it is part of the name for nobody
				raw(t, srv, http.MethodDelete, a.Node.Key, "", nil)
				return fmt.Errorf("%s: status %d, %s: %w", name, a.status, a.body, errors.ErrUnsupported)
			}
			return nil
		},
		Compact: func(*testing.T) { srv.CompactV2() },
		Restart: func(*testing.T) { srv.Restart() },
		Wipe:    func(*testing.T) { srv.Replace() }, // with another cluster id; TestWipe has the same one
		Pause: func(*testing.T) func() {
			srv.Pause()
			return srv.Resume
		},
		Requests: func() int { return int(sent.Load()) },
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]etcdtest.Config{"plain": {}, "TLS": {TLS: etcdtest.MutualTLS}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if cfg.TLS != etcdtest.NoTLS && testing.Short() {
				t.Skip("the suite runs on a plain server")
			}
			srv := etcdtest.Start(t, cfg)
			networks := 0
			leasetest.Run(t, leasetest.Harness{New: func(*testing.T) leasetest.Network {
				networks++
				n := network(srv, config(srv, fmt.Sprintf("/leasetest%d/network", networks)))
				if cfg.TLS != etcdtest.NoTLS {
					n.Pause = nil // takes half a minute, and is the same
				}
				return n
			}})
		})
	}
}

// TestAuthentication is no run of the suite, since a server takes a tenth of a second
// of computing for each password.
func TestAuthentication(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{Auth: true})
	srv.User("flannel", "secret", DefaultPrefix)
	srv.User("nobody", "secret", "")
	cfg := config(srv, "")
	srv.PutV2(DefaultPrefix+"/config", "{}", 0)
	ctx := t.Context()

	cfg.Username, cfg.Password = "flannel", "secret"
	s := open(t, cfg)
	_, err := s.Config(ctx)
	check(t, err)
	e, err := s.Create(ctx, "10.5.1.0-24", []byte("one"), time.Minute)
	check(t, err)
	e, err = s.Update(ctx, e, []byte("two"), time.Minute)
	check(t, err)
	e, err = s.Renew(ctx, e, time.Minute)
	check(t, err)
	if l, _ := list(t, s); len(l.Entries) != 1 || string(l.Entries[0].Value) != "two" {
		t.Errorf("List: %+v", l)
	}
	w := watchFrom(t, s, e.Revision-1)
	w.next(t, "10.5.1.0-24=two")
	check(t, s.Delete(ctx, e))
	w.next(t, "-10.5.1.0-24")

	for _, c := range []struct{ user, password, says string }{
		{"", "", "give a user name and a password"},
		{"flannel", "terces", `user "flannel"`},
		{"stranger", "secret", `user "stranger"`},
		{"nobody", "secret", `no right to read and write /coreos.com/network/config`},
	} {
		cfg.Username, cfg.Password = c.user, c.password
		s := open(t, cfg)
		_, configErr := s.Config(ctx)
		_, listErr := s.List(ctx)
		_, createErr := s.Create(ctx, "10.5.2.0-24", nil, 0)
		watchErr := s.Watch(ctx, 1, func(lease.Batch) {})
		for what, err := range map[string]error{"config": configErr, "list": listErr, "create": createErr, "watch": watchErr} {
			if !errors.Is(err, lease.ErrDenied) || !strings.Contains(err.Error(), c.says) || c.password != "" && strings.Contains(err.Error(), c.password) {
				t.Errorf("%s as %q: %v; want ErrDenied that says %q, and not the password", what, c.user, err, c.says)
			}
		}
		if version, has, err := s.Probe(ctx); err != nil || !has || version == "" {
			t.Errorf("Probe as %q: %q, %t, %v; want that there is a v2 API, whatever the password", c.user, version, has, err)
		}
	}
}
