package etcdv3

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

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
			s.trace = func(method string) {
				// The first host to log in does so within a request.
				if !strings.HasSuffix(method, "/Watch") && !strings.HasSuffix(method, "/Authenticate") {
					sent.Add(1)
				}
			}
			return s
		},
		SetConfig: func(t *testing.T, value string) {
			if value == "" {
				srv.Delete(cfg.Prefix + "/config")
				return
			}
			srv.Put(cfg.Prefix+"/config", value)
		},
		Put: func(t *testing.T, name, value string) error {
			srv.Put(cfg.Prefix+"/"+name, value)
			return nil
		},
		Compact: func(*testing.T) { srv.Compact() },
		Restart: func(*testing.T) { srv.Restart() },
		Wipe:    func(*testing.T) { srv.Replace() }, // with another cluster id; TestWipe has the same one
		Pause: func(*testing.T) func() {
			srv.Pause()
			return srv.Resume
		},
		Requests: func() int { return int(sent.Load()) },
	}
}

// TestContract also runs on a server with a certificate for everybody, a password for
// everybody, and little else in common with a test server.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		cfg  etcdtest.Config
		user string
	}{
		{name: "plain"},
		{name: "secured", cfg: etcdtest.Config{TLS: etcdtest.MutualTLS, Auth: true}, user: "flannel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.user != "" && testing.Short() {
				t.Skip("the suite has run on a plain server")
			}
			c.cfg.NoV2 = true
			srv := etcdtest.Start(t, c.cfg)
			if c.user != "" {
				srv.User(c.user, "secret", "/leasetest")
			}
			networks := 0
			leasetest.Run(t, leasetest.Harness{
				New: func(*testing.T) leasetest.Network {
					networks++
					cfg := config(srv, fmt.Sprintf("/leasetest%d/network", networks))
					if c.user != "" {
						cfg.Username, cfg.Password = c.user, "secret"
					}
					return network(srv, cfg)
				},
			})
		})
	}
}
