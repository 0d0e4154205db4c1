package etcdtest

import (
	"context"
	"net/http"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestServer(t *testing.T) {
	for name, cfg := range map[string]Config{
		"plain":  {},
		"tls":    {TLS: ServerTLS},
		"mutual": {TLS: MutualTLS, Auth: true},
		"auth":   {Auth: true, TokenTTL: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			s := Start(t, cfg)
			t.Logf("etcd %s up after %v", s.Version(), time.Since(begin))
			if cfg.Auth {
				s.User("somebody", "word", "/some/")
			}
			s.Put("/some/key", "v")
			if r := s.PutV2("/some/key", "v2", time.Hour); r.Status != http.StatusCreated {
				t.Fatalf("%+v", r)
			}
			addr := s.Addr()
			s.Restart()
			if v, ok := s.Get("/some/key"); v != "v" || !ok || s.Addr() != addr {
				t.Errorf("after a restart: %q %v at %s", v, ok, s.Addr())
			}
			if r := s.GetV2("/some"); len(r.Node.Nodes) != 1 || r.Node.Nodes[0].Value != "v2" || r.Node.Nodes[0].TTL < 3000 {
				t.Errorf("after a restart: %+v", r)
			}
			if runtime.GOOS == "linux" {
				c := s.V3() // which logs in
				s.Pause()
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				if _, err := c.Get(ctx, "/some/key"); err == nil {
					t.Error("a paused server answers")
				}
				cancel()
				s.Resume()
			}
			s.Compact()
			id := clusterID(t, s)
			s.Wipe()
			if _, ok := s.Get("/some/key"); ok || clusterID(t, s) != id {
				t.Error("not wiped, or another cluster")
			}
			if r := s.GetV2("/some/key"); r.ErrorCode != 100 {
				t.Errorf("not wiped: %+v", r)
			}
			s.Replace()
			if clusterID(t, s) == id {
				t.Error("same cluster id after Replace")
			}
			s.Stop()
			if s.Pid() != 0 {
				t.Error("runs after Stop")
			}
			s.Run()
		})
	}
}

func TestNoV2(t *testing.T) {
	s := Start(t, Config{NoV2: true, Auth: true})
	status, _, body, err := s.http(http.MethodGet, "/v2/keys", "", "")
	if err != nil || status != http.StatusNotFound {
		t.Errorf("status %d, %s, %v", status, body, err)
	}
}

func TestCompactV2(t *testing.T) {
	s := Start(t, Config{})
	r := s.PutV2("/a", "x", 0)
	s.PutV2("/a", "y", 0)
	s.CompactV2()
	status, _, body, err := s.http(http.MethodGet, "/v2/keys/a?wait=true&waitIndex="+itoa(r.Index+1), "", "")
	if err != nil || status != http.StatusBadRequest {
		t.Errorf("status %d, %s, %v; want error 401", status, body, err)
	}
}

// TestSearch shows that a program that will not do is passed over or named, and
// that what is built is built once.
func TestSearch(t *testing.T) {
	if testing.Short() {
		t.Skip("builds an etcd, which takes a minute where that was never done")
	}
	t.Setenv(binaryEnv, "build")
	begin := time.Now()
	p, err := search(t, true)
	if err != nil {
		t.Skip(err)
	}
	t.Logf("etcd %s at %s after %v", p.version, p.path, time.Since(begin))
	before, err := os.Stat(p.path)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = search(t, true); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(p.path); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("built twice (%v)", err)
	}
	t.Setenv(binaryEnv, "/bin/true")
	if p, err := search(t, true); err == nil {
		t.Errorf("/bin/true passes for an etcd: %+v", p)
	}
	if err := (program{version: "3.6.16", flags: map[string]bool{}}).usable(true); err == nil {
		t.Error("3.6 passes for one with v2")
	}
	if err := (program{version: "3.7.3"}).usable(false); err != nil {
		t.Error(err)
	}
}
