package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A clock stands where the test puts it.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// get asks a handler.
func get(h http.Handler, method, path string) (code int, body string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

func TestHealthAndReadiness(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	s := newHealth()
	s.now = c.now
	h := handler(s, prometheus.NewRegistry(), asIs)
	good := []check{{"node", nil}, {"rules", nil}, {"subnet-file", nil}}
	for _, step := range []struct {
		what   string
		do     func()
		health int
		ready  int
		body   string
	}{
		{"at the start", func() {}, 200, 503, "daemon: ok\nnode: starting\n"},
		{"without etcd", func() { s.waiting(errors.New("waiting for etcd:\nrefused")) }, 200, 503, "daemon: ok\nnode: waiting for etcd:; refused\n"},
		{"waiting for hours", func() { c.t = c.t.Add(5 * time.Hour) }, 200, 503, "daemon: ok\nnode: waiting for etcd:; refused\n"},
		{"all well", func() { s.set(look{checks: good}) }, 200, 200, "daemon: ok\nnode: ok\nrules: ok\nsubnet-file: ok\n"},
		{"a look is late", func() { c.t = c.t.Add(turnLimit) }, 200, 200, "daemon: ok\nnode: ok\nrules: ok\nsubnet-file: ok\n"},
		{"the loop is stuck", func() { c.t = c.t.Add(time.Second) }, 503, 503, "daemon: the daemon's loop has been stuck since " + time.Unix(1000, 0).Add(5*time.Hour).Format(time.RFC3339) + " (restart it)\nnode: ok\nrules: ok\nsubnet-file: ok\n"},
		{"it goes on", func() { s.set(look{checks: good}) }, 200, 200, "daemon: ok\nnode: ok\nrules: ok\nsubnet-file: ok\n"},
		{"the file is gone", func() { s.set(look{checks: []check{{"node", nil}, {"subnet-file", errors.New("gone")}}}) }, 200, 503, "daemon: ok\nnode: ok\nsubnet-file: gone\n"},
		{"the node is stuck", func() { s.set(look{checks: good, stuck: errors.New("stuck")}) }, 503, 503, "daemon: stuck\nnode: ok\nrules: ok\nsubnet-file: ok\n"},
		{"the end", func() { s.finish(errors.New("the daemon ends")) }, 200, 503, "daemon: ok\nnode: the daemon ends\n"},
		{"after the end", func() { s.set(look{checks: good}) }, 200, 503, "daemon: ok\nnode: the daemon ends\n"},
	} {
		step.do()
		if code, body := get(h, "GET", "/healthz"); code != step.health || code == 200 && body != "flanneld is running\n" {
			t.Errorf("%s: /healthz = %d %q, want %d", step.what, code, body, step.health)
		}
		code, body := get(h, "GET", "/readyz")
		if code != step.ready || body != step.body {
			t.Errorf("%s: /readyz = %d %q, want %d %q", step.what, code, body, step.ready, step.body)
		}
	}
}

func TestOtherRequests(t *testing.T) {
	h := handler(newHealth(), prometheus.NewRegistry(), asIs)
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{"HEAD", "/healthz", 200}, {"POST", "/healthz", 405}, {"DELETE", "/readyz", 405}, {"GET", "/", 404},
		{"GET", "/healthz/more", 404}, {"GET", "/debug/pprof/", 404}, {"GET", "/metrics", 200}, {"POST", "/metrics", 405},
	} {
		if code, _ := get(h, c.method, c.path); code != c.code {
			t.Errorf("%s %s = %d, want %d", c.method, c.path, code, c.code)
		}
	}
}

// TestServe listens for real.
func TestServe(t *testing.T) {
	l := httptest.NewServer(http.NotFoundHandler()) // has a port that is taken
	defer l.Close()
	port := l.URL[strings.LastIndex(l.URL, ":")+1:]
	o := parse(t, nil, "-healthz-ip=127.0.0.1", "-healthz-port="+port)
	if _, err := serve(t.Context(), o, http.NotFoundHandler(), discardLog()); err == nil || !strings.Contains(err.Error(), "-healthz-port") {
		t.Errorf("a port that is taken: error %v, want one that names the flag", err)
	}
	l.Close()
	h := handler(newHealth(), prometheus.NewRegistry(), asIs)
	stop, err := serve(t.Context(), o, h, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get("http://127.0.0.1:" + port + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || string(body) != "flanneld is running\n" {
		t.Errorf("/healthz = %q, %v", body, err)
	}
	stop()
	if _, err := http.Get("http://127.0.0.1:" + port + "/healthz"); err == nil {
		t.Error("still served after stop")
	}
}
