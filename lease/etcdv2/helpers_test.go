package etcdv2

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease"
)

// config is how to reach a server of a test.
func config(srv *etcdtest.Server, prefix string) Config {
	return Config{
		Endpoints: []string{srv.Endpoint()}, Prefix: prefix,
		CAFile: srv.CAFile, CertFile: srv.CertFile, KeyFile: srv.KeyFile,
	}
}

// open makes a store that is closed with the test.
func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// list returns the listing and its entries by key.
func list(t *testing.T, s *Store) (lease.Listing, map[string]lease.Entry) {
	t.Helper()
	l, err := s.List(t.Context())
	check(t, err)
	byKey := make(map[string]lease.Entry)
	for _, e := range l.Entries {
		byKey[e.Key] = e
	}
	return l, byKey
}

// An answer is what the server says, in its own words.
type answer struct {
	status    int
	body      string
	ErrorCode int
	Node      struct {
		Key, Value    string
		TTL           int64
		Expiration    string
		ModifiedIndex uint64
	}
}

// raw sends a request to /v2/keys past everything under test, as root. form is the
// body, without one if nil.
func raw(t *testing.T, srv *etcdtest.Server, method, path, query string, form url.Values) answer {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{}}
	if srv.CAFile != "" {
		ca, err := os.ReadFile(srv.CAFile)
		check(t, err)
		tr.TLSClientConfig.RootCAs = x509.NewCertPool()
		tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(ca)
		pair, err := tls.LoadX509KeyPair(srv.CertFile, srv.KeyFile)
		check(t, err)
		tr.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	u, err := url.Parse(srv.Endpoint())
	check(t, err)
	u.Path, u.RawQuery = "/v2/keys"+path, query
	req, err := http.NewRequestWithContext(t.Context(), method, u.String(), strings.NewReader(form.Encode()))
	check(t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.SetBasicAuth("root", etcdtest.RootPassword) // ignored where there is no authentication
	resp, err := tr.RoundTrip(req)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	a := answer{status: resp.StatusCode, body: string(body)}
	if resp.StatusCode/100 != 3 {
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatalf("%s %s: status %d, %q: %v", method, path, resp.StatusCode, body, err)
		}
	}
	return a
}

// A watcher is a Watch in the background.
type watcher struct {
	cancel  context.CancelFunc
	batches chan lease.Batch
	done    chan error // what Watch returned
}

// patience is how long anything may take that should come at once.
const patience = time.Minute

// watchFrom starts one that ends with the test.
func watchFrom(t *testing.T, s *Store, after uint64) *watcher {
	w := &watcher{batches: make(chan lease.Batch, 10_000), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.done <- s.Watch(ctx, after, func(b lease.Batch) { w.batches <- b })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return w
}

// next waits for an event, written as "key=value" or "-key", and returns its batch.
func (w *watcher) next(t *testing.T, want string) lease.Batch {
	t.Helper()
	for late := time.After(patience); ; {
		select {
		case b := <-w.batches:
			if len(b.Events) == 0 {
				continue
			}
			got := b.Events[0].Entry.Key + "=" + string(b.Events[0].Entry.Value)
			if b.Events[0].Deleted {
				got = "-" + b.Events[0].Entry.Key
			}
			if got != want || len(b.Events) != 1 {
				t.Fatalf("Watch: %+v; want %s", b, want)
			}
			return b
		case err := <-w.done:
			t.Fatalf("Watch ended before %s: %v", want, err)
		case <-late:
			t.Fatalf("Watch: no %s", want)
		}
	}
}

// idle waits for a batch without events.
func (w *watcher) idle(t *testing.T) lease.Batch {
	t.Helper()
	select {
	case b := <-w.batches:
		if len(b.Events) != 0 {
			t.Fatalf("Watch: %+v; want a batch without events", b)
		}
		return b
	case err := <-w.done:
		t.Fatalf("Watch ended: %v", err)
	case <-time.After(patience):
		t.Fatal("Watch: no batch")
	}
	return lease.Batch{}
}

// end waits for the watch to end of itself.
func (w *watcher) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.done:
		return err
	case <-time.After(patience):
		t.Fatal("Watch does not end")
		return nil
	}
}

// fakeServer answers as the test likes, and returns its endpoint.
func fakeServer(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.URL
}
