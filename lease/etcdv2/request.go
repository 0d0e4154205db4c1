package etcdv2

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
)

// A request to /v2/keys. It implements what client.Client.Do takes: unlike the
// client's KeysAPI this shows the answer's headers, and each server is asked by a
// client of its own, since that API sends a compare-and-swap again to the next
// server after a lost answer, and then reports a conflict with our own write.
type request struct {
	method string
	key    string
	query  url.Values
	form   url.Values // of a PUT
	once   bool       // a write: sent to another server only if it has not left for the first
}

// HTTPRequest makes what is sent to one server. The transport sends a write again by
// itself only if the connection was dead before the first byte.
func (r *request) HTTPRequest(ep url.URL) *http.Request {
	ep.Path, ep.RawQuery = keysPath+r.key, r.query.Encode()
	req, err := http.NewRequest(r.method, ep.String(), strings.NewReader(r.form.Encode()))
	if err != nil {
		return nil // which the client reports
	}
	if r.form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req
}

// get reads a key; quorum makes it cost a round of the cluster, and current.
func get(key string, recursive, quorum bool) *request {
	q := url.Values{"quorum": {strconv.FormatBool(quorum)}, "sorted": {"false"}}
	q.Set("recursive", strconv.FormatBool(recursive))
	return &request{method: http.MethodGet, key: key, query: q}
}

// A reply is a server's answer: event or failed is not nil, except after a long poll.
type reply struct {
	endpoint string
	event    *client.Response
	failed   error // what etcd says is wrong with the request, in its words
	code     int   // and its number, 0 if nothing is

	index   uint64 // of the whole etcd: X-Etcd-Index
	cluster uint64
	raft    uint64 // rises with every write and every consistent read; 0 if the answer has none
}

// errNoAnswer is why a request ends when its own time is up, so that it is not taken
// for the end of the caller's context.
var errNoAnswer = fmt.Errorf("etcdv2: no answer: %w", os.ErrDeadlineExceeded)

// A dialError is one from before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// do sends a request to the server used last, then to the others.
func (s *Store) do(ctx context.Context, req *request) (*reply, error) {
	ctx, leave, err := s.enter(ctx, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	first := int(s.pinned.Load())
	var errs []error
	for i := range s.clients {
		n := (first + i) % len(s.clients)
		r, err := s.try(ctx, n, req, s.timeout)
		if err == nil {
			s.pin(n, errs)
			return r, nil
		}
		errs = append(errs, err)
		if s.over(ctx) != nil || errors.Is(err, errCredentials) {
			return nil, err
		}
		if req.once && !unsent(err) {
			s.pinned.Store(int64((n + 1) % len(s.clients)))
			return nil, fmt.Errorf("%w; the outcome is unknown", err)
		}
	}
	return nil, etcdtls.Join(errs)
}

// pin keeps to a server that works.
func (s *Store) pin(n int, errs []error) {
	if s.pinned.Swap(int64(n)) != int64(n) && len(errs) > 0 {
		s.log.Info("etcdv2: using another server", "endpoint", s.access.Endpoints[n], "err", etcdtls.Join(errs))
	}
}

// try sends a request to one server. Its errors name the server.
func (s *Store) try(ctx context.Context, n int, req *request, timeout time.Duration) (*reply, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ep := s.access.Endpoints[n]
	resp, body, err := s.clients[n].Do(limited, req)
	if err != nil {
		return nil, s.explain(ctx, limited, ep, err)
	}
	r := &reply{endpoint: ep, index: number(resp.Header, "X-Etcd-Index"), raft: number(resp.Header, "X-Raft-Index")}
	r.cluster = clusterID(resp.Header.Get("X-Etcd-Cluster-Id"))
	if len(body) == 0 && resp.StatusCode == http.StatusOK && req.query.Get("wait") != "" {
		return r, nil // a long poll that has ended without an event
	}
	if err := s.parse(limited, n, r, resp.StatusCode, body); err != nil {
		return nil, err
	}
	return r, nil
}

// parse fills in the rest of a reply, or returns why that is none of an etcd's /v2/keys.
func (s *Store) parse(ctx context.Context, n int, r *reply, status int, body []byte) error {
	if status == http.StatusOK || status == http.StatusCreated {
		if err := json.Unmarshal(body, &r.event); err != nil || r.event == nil || r.event.Node == nil {
			r.event = nil
			return s.foreign(ctx, n, status)
		}
		return nil
	}
	var e client.Error
	known := json.Unmarshal(body, &e) == nil && e.Code != 0
	switch {
	case status == http.StatusUnauthorized, e.Code == client.ErrorCodeUnauthorized,
		status == http.StatusForbidden && !known: // etcd also says so of a directory
		return s.denied(r.endpoint)
	case !known:
		return s.foreign(ctx, n, status)
	}
	if r.index == 0 {
		r.index = e.Index
	}
	r.code = e.Code
	r.failed = fmt.Errorf("%s: etcd says: %s (%s), error %d", r.endpoint, e.Message, e.Cause, e.Code)
	return nil
}

// version asks a server for its version, "" if it does not say.
func (s *Store) version(ctx context.Context, n int) string {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	v, err := s.clients[n].GetVersion(ctx)
	if err != nil {
		return ""
	}
	return v.Server
}

// number reads a header, 0 if it is not there.
func number(h http.Header, name string) uint64 {
	n, _ := strconv.ParseUint(h.Get(name), 10, 64)
	return n
}

// clusterID makes a number of the header, which is one in hexadecimal.
func clusterID(text string) uint64 {
	if text == "" {
		return 0
	}
	if n, err := strconv.ParseUint(text, 16, 64); err == nil {
		return n
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return h.Sum64()
}

// dial makes a connection for http.
func (s *Store) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if s.access.Secure() {
		return nil, &dialError{errors.New("the server leads on to an address without TLS, which is refused")}
	}
	ctx, cancel := s.dialContext(ctx)
	defer cancel()
	conn, err := s.dialTCP(ctx, network, addr)
	if err != nil {
		return nil, asDialError(err)
	}
	return conn, nil
}

// dialTLS makes a connection for https, with the TLS files as they are now.
func (s *Store) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	cfg := s.access.TLS()
	if cfg == nil {
		return nil, &dialError{errors.New("the server leads on to an address with TLS (give https:// endpoints)")}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &dialError{err}
	}
	cfg.ServerName = host
	ctx, cancel := s.dialContext(ctx)
	defer cancel()
	conn, err := s.dialTCP(ctx, network, addr)
	if err != nil {
		return nil, asDialError(err)
	}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, asDialError(err)
	}
	return secured, nil
}

// dialContext limits a dial. The transport lets one that nobody waits for any more
// run on; Close ends it.
func (s *Store) dialContext(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(ctx, min(connectTimeout, s.timeout))
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// dialTCP connects. Keepalives end a long poll whose connection a router has
// forgotten.
func (s *Store) dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return s.conns.Track(c), nil
}

// Reconnect closes all connections; see [lease.Reconnector].
func (s *Store) Reconnect() { s.conns.Close() }

// asDialError marks an error as one from before anything was sent. A timeout becomes
// one of ours, since the net package's says it is the context's.
func asDialError(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return &dialError{errNoAnswer}
	}
	return &dialError{err}
}
