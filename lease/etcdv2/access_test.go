package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

func TestNew(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		says string
	}{
		{cfg: Config{}},
		{cfg: Config{Endpoints: []string{"http://192.0.2.1:2379"}}}, // nobody there: New does not ask
		{cfg: Config{Endpoints: []string{"http://a:1", "https://b:1"}}, says: "http and https mixed"},
		{cfg: Config{Endpoints: []string{"http://a:1"}, CAFile: "x"}, says: "TLS files"},
		{cfg: Config{CertFile: "x"}, says: "no key file"},
		{cfg: Config{Password: "hunter2"}, says: "without a user name"},
		{cfg: Config{RequestTimeout: -1}, says: "request timeout"},
	} {
		s, err := New(c.cfg)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%+v: %v", c.cfg, err)
		case c.says != "" && (err == nil || !strings.HasPrefix(err.Error(), "etcdv2: new: ") || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter")):
			t.Errorf("%+v: %v; want an error that says %q", c.cfg, err, c.says)
		case err == nil:
			check(t, s.Close())
		}
	}
	for prefix, want := range map[string]string{"": "/coreos.com/network", "a": "/a", "/a/b/": "/a/b", "//a//b": "/a/b", "/": ""} {
		if s := open(t, Config{Prefix: prefix}); s.config != want+"/config" || s.subnets != want+"/subnets" {
			t.Errorf("prefix %q: %s, %s", prefix, s.config, s.subnets)
		}
	}
}

// everyCall returns an error of each method on a server that does not serve.
func everyCall(t *testing.T, s *Store) map[string]error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e := lease.Entry{Key: "10.5.1.0-24", Revision: 5}
	errs := make(map[string]error)
	_, errs["config"] = s.Config(ctx)
	_, errs["list"] = s.List(ctx)
	_, errs["create"] = s.Create(ctx, e.Key, nil, time.Minute)
	_, errs["update"] = s.Update(ctx, e, nil, time.Minute)
	_, errs["renew"] = s.Renew(ctx, e, time.Minute)
	errs["delete"] = s.Delete(ctx, e)
	errs["watch"] = s.Watch(ctx, 5, func(lease.Batch) {})
	return errs
}

// TestServersThatDoNotServe: each failure has a sentence of its own.
func TestServersThatDoNotServe(t *testing.T) {
	mutual := etcdtest.Start(t, etcdtest.Config{TLS: etcdtest.MutualTLS})
	expired := etcdtest.Start(t, etcdtest.Config{TLS: etcdtest.ServerTLS, Certificate: etcdtest.ExpiredCertificate})
	named := etcdtest.Start(t, etcdtest.Config{TLS: etcdtest.ServerTLS, Certificate: etcdtest.OtherNameCertificate})
	plain := etcdtest.Start(t, etcdtest.Config{})
	noV2 := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	dead := closedPort(t)
	for _, c := range []struct {
		name   string
		srv    *etcdtest.Server
		change func(*Config)
		says   string
		is     error
	}{
		{"good", mutual, func(*Config) {}, "", nil},
		{"other CA", mutual, func(c *Config) { c.CAFile = mutual.AlienCAFile }, "not signed by an authority in " + mutual.AlienCAFile, lease.ErrDenied},
		{"no CA", mutual, func(c *Config) { c.CAFile = "" }, "an authority this system does not know", lease.ErrDenied},
		{"no certificate", mutual, func(c *Config) { c.CertFile, c.KeyFile = "", "" }, "wants a client certificate", lease.ErrDenied},
		{"alien certificate", mutual, func(c *Config) { c.CertFile, c.KeyFile = mutual.AlienCertFile, mutual.AlienKeyFile }, "rejects our certificate " + mutual.AlienCertFile, lease.ErrDenied},
		{"expired certificate", mutual, func(c *Config) { c.CertFile, c.KeyFile = mutual.ExpiredCertFile, mutual.ExpiredKeyFile }, "which has expired at ", lease.ErrDenied},
		{"expired server", expired, func(*Config) {}, "the server's certificate has expired", lease.ErrDenied},
		{"server's name", named, func(*Config) {}, "the server's certificate is not for that host", lease.ErrDenied},
		{"http to https", mutual, func(c *Config) {
			*c = Config{Endpoints: []string{strings.Replace(mutual.Endpoint(), "https", "http", 1)}}
		}, "write https://", lease.ErrDenied},
		{"https to http", mutual, func(c *Config) { c.Endpoints = []string{strings.Replace(plain.Endpoint(), "http", "https", 1)} }, "write http://", lease.ErrDenied},
		{"no v2", noV2, func(*Config) {}, "has no v2 API (use --etcd-version=3, or start it with --enable-v2", lease.ErrUnsupported},
		{"no etcd", plain, func(c *Config) { c.Endpoints = []string{web.URL} }, "answers with HTTP status 404 and not as an etcd does", lease.ErrUnsupported},
		{"refused", plain, func(c *Config) { c.Endpoints = []string{dead} }, "connection refused (is etcd running", nil},
		{"two refused", plain, func(c *Config) { c.Endpoints = []string{dead, closedPort(t)} }, "none of 2 servers serves: http://127.0.0.1:", nil},
		{"no name", plain, func(c *Config) { c.Endpoints = []string{"http://etcd.invalid:2379"} }, "DNS", nil},
	} {
		cfg := config(c.srv, "")
		c.change(&cfg)
		s := open(t, cfg)
		if c.says == "" {
			list(t, s)
			continue
		}
		for what, err := range everyCall(t, s) {
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, "etcdv2: "+what) || !strings.Contains(text, c.says) {
				t.Errorf("%s: %v; want %q", c.name, err, c.says)
			}
			if len(cfg.Endpoints) == 1 && strings.Count(text, strings.TrimPrefix(s.access.Endpoints[0], "http")) != 1 {
				t.Errorf("%s: %v: want the server named once", c.name, err)
			}
			denied, unsupported := errors.Is(err, lease.ErrDenied), errors.Is(err, lease.ErrUnsupported)
			if denied != errors.Is(c.is, lease.ErrDenied) || unsupported != errors.Is(c.is, lease.ErrUnsupported) {
				t.Errorf("%s: %v: ErrDenied %t, ErrUnsupported %t", c.name, err, denied, unsupported)
			}
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, lease.ErrConflict) {
				t.Errorf("%s: %#v wraps what it is not", c.name, err)
			}
		}
	}
}

// closedPort returns the endpoint of a port where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	check(t, l.Close())
	return "http://" + l.Addr().String()
}

func TestProbe(t *testing.T) {
	both, noV2 := etcdtest.Start(t, etcdtest.Config{}), etcdtest.Start(t, etcdtest.Config{NoV2: true})
	for _, c := range []struct {
		endpoints []string
		version   string
		hasV2     bool
		is        error // nil: none at all
	}{
		{[]string{both.Endpoint()}, both.Version(), true, nil},
		{[]string{noV2.Endpoint()}, noV2.Version(), false, nil},
		{[]string{closedPort(t), both.Endpoint()}, both.Version(), true, nil},
	} {
		version, hasV2, err := open(t, Config{Endpoints: c.endpoints}).Probe(t.Context())
		if version != c.version || hasV2 != c.hasV2 || err != nil {
			t.Errorf("%v: %q, %t, %v; want %q, %t", c.endpoints, version, hasV2, err, c.version, c.hasV2)
		}
	}
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	if version, hasV2, err := open(t, Config{Endpoints: []string{web.URL}}).Probe(t.Context()); !errors.Is(err, lease.ErrUnsupported) || hasV2 {
		t.Errorf("a web server: %q, %t, %v; want ErrUnsupported", version, hasV2, err)
	}
	if version, hasV2, err := open(t, Config{Endpoints: []string{closedPort(t)}}).Probe(t.Context()); err == nil || errors.Is(err, lease.ErrUnsupported) {
		t.Errorf("nobody: %q, %t, %v; want an error, and not ErrUnsupported", version, hasV2, err)
	}
}
