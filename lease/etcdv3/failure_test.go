package etcdv3

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// A failing is a way not to get in.
type failing struct {
	name string
	cfg  Config
	kind error    // lease.ErrDenied, lease.ErrUnsupported, or nil for neither
	want []string // what the message says, besides the endpoint
}

// run tries all methods that say so.
func (f failing) run(t *testing.T) {
	t.Helper()
	t.Run(f.name, func(t *testing.T) {
		if f.cfg.Prefix == "" {
			f.cfg.Prefix = "/failing"
		}
		s := open(t, f.cfg)
		for name, call := range map[string]func() error{
			"config": func() error { _, err := s.Config(background(t)); return err },
			"list":   func() error { _, err := s.List(background(t)); return err },
			"create": func() error { _, err := s.Create(background(t), key1, nil, long); return err },
			"watch":  func() error { return s.Watch(background(t), 1, func(lease.Batch) {}) },
		} {
			err := call()
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			if name == "watch" {
				t.Logf("%v", err)
			}
			f.check(t, err)
			if !strings.HasPrefix(err.Error(), "etcdv3: "+name+" ") && !strings.HasPrefix(err.Error(), "etcdv3: "+name+": ") {
				t.Errorf("%q does not say that it is etcdv3: %s", err, name)
			}
		}
	})
}

func (f failing) check(t *testing.T, err error) {
	t.Helper()
	for _, kind := range []error{lease.ErrDenied, lease.ErrUnsupported} {
		if got := errors.Is(err, kind); got != (kind == f.kind) {
			t.Errorf("%q is %q: %t", err, kind, got)
		}
	}
	for _, part := range append(f.want, f.cfg.Endpoints...) {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	for _, part := range []string{"rpc error", "desc = ", "context deadline", "context canceled", "secret"} {
		if strings.Contains(err.Error(), part) {
			t.Errorf("%q says %q", err, part)
		}
	}
}

// TestUnreachable: nobody is there, or nobody that speaks.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	check(t, err)
	defer silent.Close()
	quiet := "http://" + silent.Addr().String()
	a, b := free(), free()
	for _, f := range []failing{
		{name: "refused", cfg: Config{Endpoints: []string{a}}, want: []string{"connection refused"}},
		{name: "two refused", cfg: Config{Endpoints: []string{a, b}}, want: []string{"none of 2 servers", "connection refused"}},
		{name: "silent", cfg: Config{Endpoints: []string{quiet}, RequestTimeout: time.Second}, want: []string{"says nothing"}},
		{name: "silent, no certificate", cfg: Config{Endpoints: []string{"https" + quiet[4:]}, RequestTimeout: time.Second}, want: []string{"no answer in time"}},
		{name: "no such host", cfg: Config{Endpoints: []string{"http://nowhere.invalid:2379"}}, want: []string{"DNS"}},
		{name: "refused and silent", cfg: Config{Endpoints: []string{a, quiet}, RequestTimeout: time.Second}, want: []string{"connection refused", "says nothing"}},
	} {
		f.run(t)
	}
}

// TestForeign: servers of another kind.
func TestForeign(t *testing.T) {
	serve := func(h http.HandlerFunc) string {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		return srv.URL
	}
	old := serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, `{"etcdserver":"2.3.8","etcdcluster":"2.3.0"}`)
	})
	web := serve(http.NotFound)
	for _, f := range []failing{
		{name: "etcd 2", cfg: Config{Endpoints: []string{old}}, kind: lease.ErrUnsupported, want: []string{"2.3.8", "no v3 API", "--etcd-version=2"}},
		{name: "a web server", cfg: Config{Endpoints: []string{web}}, kind: lease.ErrUnsupported, want: []string{"not answer as an etcd"}},
	} {
		f.run(t)
	}
	s := open(t, Config{Endpoints: []string{old}})
	if version, v3, err := s.Probe(background(t)); version != "2.3.8" || v3 || err != nil {
		t.Errorf("Probe of an etcd 2: %q, %t, %v", version, v3, err)
	}
	s = open(t, Config{Endpoints: []string{web}})
	if version, v3, err := s.Probe(background(t)); !errors.Is(err, lease.ErrUnsupported) {
		t.Errorf("Probe of a web server: %q, %t, %v", version, v3, err)
	}
}

// TestCertificates: bad ones, on either side, and none.
func TestCertificates(t *testing.T) {
	t.Parallel()
	plain := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	tls := etcdtest.Start(t, etcdtest.Config{NoV2: true, TLS: etcdtest.ServerTLS})
	mutual := etcdtest.Start(t, etcdtest.Config{NoV2: true, TLS: etcdtest.MutualTLS})
	expired := etcdtest.Start(t, etcdtest.Config{NoV2: true, TLS: etcdtest.ServerTLS, Certificate: etcdtest.ExpiredCertificate})
	other := etcdtest.Start(t, etcdtest.Config{NoV2: true, TLS: etcdtest.ServerTLS, Certificate: etcdtest.OtherNameCertificate})
	at := func(srv *etcdtest.Server, ca, cert, key string) Config {
		return Config{Endpoints: []string{srv.Endpoint()}, CAFile: ca, CertFile: cert, KeyFile: key}
	}
	wrong := func(srv *etcdtest.Server, scheme string) Config {
		return Config{Endpoints: []string{scheme + "://" + srv.Addr()}}
	}
	for _, f := range []failing{
		{name: "alien CA", cfg: at(tls, tls.AlienCAFile, "", ""), want: []string{"not signed by an authority in " + tls.AlienCAFile}},
		{name: "no CA", cfg: at(tls, "", "", ""), want: []string{"authority this system does not know"}},
		{name: "expired server", cfg: at(expired, expired.CAFile, "", ""), want: []string{"the server's certificate has expired"}},
		{name: "other name", cfg: at(other, other.CAFile, "", ""), want: []string{"the server's certificate is not for that host"}},
		{name: "no client certificate", cfg: at(mutual, mutual.CAFile, "", ""), want: []string{"wants a client certificate"}},
		{name: "alien client", cfg: at(mutual, mutual.CAFile, mutual.AlienCertFile, mutual.AlienKeyFile), want: []string{"rejects our certificate " + mutual.AlienCertFile}},
		{name: "expired client", cfg: at(mutual, mutual.CAFile, mutual.ExpiredCertFile, mutual.ExpiredKeyFile), want: []string{"rejects our certificate", "has expired at"}},
		{name: "https to a plain port", cfg: wrong(plain, "https"), want: []string{"does not speak TLS", "http://"}},
		{name: "http to a TLS port", cfg: wrong(tls, "http"), want: []string{"speaks TLS", "https://"}},
		{name: "http to a port with mutual TLS", cfg: wrong(mutual, "http"), want: []string{"speaks TLS", "https://"}},
		{name: "two of a kind", cfg: Config{Endpoints: []string{tls.Endpoint(), other.Endpoint()}, CAFile: tls.AlienCAFile}, want: []string{"none of 2 servers"}},
	} {
		f.kind = lease.ErrDenied
		f.run(t)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l.Close()
	failing{name: "refused by one, no answer from the other", want: []string{"none of 2 servers", "wants a client certificate", "connection refused"},
		cfg: Config{Endpoints: []string{mutual.Endpoint(), "https://" + l.Addr().String()}, CAFile: mutual.CAFile}}.run(t)

	// One of several is enough.
	s := open(t, Config{Endpoints: []string{"https://" + l.Addr().String(), mutual.Endpoint()}, CAFile: mutual.CAFile, CertFile: mutual.CertFile, KeyFile: mutual.KeyFile})
	if _, err := s.List(background(t)); err != nil {
		t.Errorf("List with one of two servers: %v", err)
	}
	if _, err := New(Config{Endpoints: []string{"http://a:1", "https://b:1"}}); err == nil || !strings.Contains(err.Error(), "mixed") {
		t.Errorf("New with http and https: %v", err)
	}
}

// TestCertificateReplaced: files are read again for new connections.
func TestCertificateReplaced(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true, TLS: etcdtest.MutualTLS})
	dir := t.TempDir()
	cfg := config(srv, "/x")
	put := func(ca, cert, key string) {
		t.Helper()
		for to, from := range map[string]string{"ca": ca, "cert": cert, "key": key} {
			text, err := os.ReadFile(from)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(dir, to), text, 0o600))
		}
	}
	put(srv.AlienCAFile, srv.ExpiredCertFile, srv.ExpiredKeyFile)
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	s := open(t, cfg)
	if _, err := s.List(background(t)); !errors.Is(err, lease.ErrDenied) {
		t.Errorf("List with bad files: %v", err)
	}
	put(srv.CAFile, srv.CertFile, srv.KeyFile)
	if _, err := s.List(background(t)); err != nil {
		t.Errorf("List with good files in their place: %v", err)
	}
}

// TestPasswords: wrong ones, none, and rights that are missing.
func TestPasswords(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true, Auth: true})
	tls := etcdtest.Start(t, etcdtest.Config{NoV2: true, Auth: true, TLS: etcdtest.MutualTLS})
	srv.User("flannel", "secret", "/right/")
	srv.User("nobody", "secret", "")
	srv.User("half", "secret", "/half/config")
	as := func(user, password, prefix string) Config {
		return Config{Endpoints: []string{srv.Endpoint()}, Username: user, Password: password, Prefix: prefix}
	}
	for _, f := range []failing{
		{name: "wrong password", cfg: as("flannel", "secretive", "/right"), want: []string{`does not know user "flannel" with this password`}},
		{name: "unknown user", cfg: as("unknown", "secret", "/right"), want: []string{`does not know user "unknown" with this password`}},
		{name: "none", cfg: as("", "", "/right"), want: []string{"give a user name and a password"}},
		{name: "other prefix", cfg: as("flannel", "secret", "/wrong"), want: []string{`user "flannel" has no right`, "/wrong/config", "/wrong/subnets/"}},
		{name: "no rights at all", cfg: as("nobody", "secret", "/right"), want: []string{`user "nobody" has no right`}},
		{name: "by certificate", cfg: config(tls, "/right"), want: []string{"the user named in our certificate has no right"}},
	} {
		f.kind = lease.ErrDenied
		f.run(t)
	}
	half := open(t, as("half", "secret", "/half"))
	if _, err := half.Config(background(t)); !errors.Is(err, lease.ErrNoConfig) {
		t.Errorf("Config with the right to read it: %v", err)
	}
	if err := half.Watch(background(t), 1, func(lease.Batch) {}); !errors.Is(err, lease.ErrDenied) {
		t.Errorf("Watch without the right to: %v", err)
	}
	if version, v3, err := open(t, as("flannel", "secretive", "")).Probe(background(t)); !v3 || err != nil {
		t.Errorf("Probe with a wrong password: %q, %t, %v", version, v3, err)
	}
	plain := etcdtest.Start(t, etcdtest.Config{NoV2: true})
	s := open(t, Config{Endpoints: []string{plain.Endpoint()}, Username: "flannel", Password: "secret"})
	if _, err := s.List(background(t)); err != nil {
		t.Errorf("List with a password that nobody asks for: %v", err)
	}
	if version, v3, err := s.Probe(background(t)); version != plain.Version() || !v3 || err != nil {
		t.Errorf("Probe: %q, %t, %v; want %s", version, v3, err, plain.Version())
	}
}

// TestLogin: a session that is gone is made anew, and nobody notices.
func TestLogin(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Config{NoV2: true, Auth: true, TokenTTL: time.Second})
	srv.User("flannel", "secret", "/right/")
	cfg := config(srv, "/right")
	cfg.Username, cfg.Password = "flannel", "secret"
	s := open(t, cfg)
	logins := 0
	s.trace = func(method string) {
		if strings.HasSuffix(method, "/Authenticate") {
			logins++
		}
	}
	for i := range 3 {
		e, err := s.Create(background(t), fmt.Sprintf("10.5.%d.0-24", i), nil, long)
		check(t, err)
		_, err = s.Renew(background(t), e, long)
		check(t, err)
	}
	if logins != 1 {
		t.Errorf("%d logins for three entries; want 1", logins)
	}
	stale := "no such session.1"
	s.session.token.Store(&stale)
	if _, err := s.List(background(t)); err != nil || logins != 2 {
		t.Errorf("List in a session that is gone: %v, %d logins; want 2", err, logins)
	}
	s.session.token.Store(&stale)
	w := watchOf(t, s, 0)
	w.until("three entries", func(events []lease.Event) bool { return len(events) == 3 })
	_, err := s.Create(background(t), "10.5.9.0-24", nil, long)
	check(t, err)
	w.until("the fourth", func(events []lease.Event) bool { return len(events) == 4 })
	srv.Restart()
	eventually(t, func() error { _, err := s.Create(background(t), "10.5.10.0-24", nil, long); return err })
	w.until("the fifth", func(events []lease.Event) bool { return len(events) == 5 })
}
