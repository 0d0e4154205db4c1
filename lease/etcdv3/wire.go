package etcdv3

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
)

// grpc connects by itself, to all servers, and when a request finds none connected it
// fails with the text of one of the reasons. So the connections are opened here, where
// the reasons are known, for each server.

var (
	errHTTP1  = errors.New("it answers in HTTP/1.1")
	errAlert  = errors.New("it answers with a TLS alert")
	errSilent = errors.New("it accepts connections and says nothing")
)

// A wire opens the connections.
type wire struct {
	access  *etcdtls.Access
	timeout time.Duration // for one to come about
	servers []*server     // in the order of the endpoints
	cut     func()        // is called when the last connection is lost
	conns   etcdtls.Conns

	mu      sync.Mutex    // guards what follows, and the servers
	changed chan struct{} // closed and replaced with every outcome
}

// A server is what became of the last connection to an endpoint.
type server struct {
	endpoint string // scheme://host:port
	addr     string // host:port
	host     string

	up    bool
	began time.Time // the attempt whose outcome this is
	err   error     // why it is not up, nil if it was not tried yet
}

func newWire(access *etcdtls.Access, timeout time.Duration, cut func()) *wire {
	n := &wire{access: access, timeout: timeout, cut: cut, changed: make(chan struct{})}
	for _, ep := range access.Endpoints {
		_, addr, _ := strings.Cut(ep, "://")
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		n.servers = append(n.servers, &server{endpoint: ep, addr: addr, host: host})
	}
	return n
}

// dial is grpc's way to open a connection.
func (n *wire) dial(ctx context.Context, addr string) (net.Conn, error) {
	var srv *server
	for _, s := range n.servers {
		if s.addr == addr {
			srv = s
		}
	}
	if srv == nil {
		return nil, errors.New("no such endpoint: " + addr)
	}
	began := time.Now()
	c, err := (&net.Dialer{Timeout: n.timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		n.outcome(srv, began, err)
		return nil, err
	}
	return n.newConn(n.conns.Track(c), srv, began), nil
}

// credentials is grpc's way to secure a connection.
func (n *wire) credentials() credentials.TransportCredentials {
	if !n.access.Secure() {
		return insecure.NewCredentials()
	}
	return handshaker{credentials.NewTLS(nil), n}
}

// A handshaker does TLS with the files as they are now, for the host of the endpoint.
type handshaker struct {
	credentials.TransportCredentials // for what is not worth repeating
	n                                *wire
}

func (h handshaker) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("not a connection of ours")
	}
	cfg := h.n.access.TLS()
	cfg.ServerName, cfg.NextProtos = c.server.host, []string{"h2"}
	t := tls.Client(c.Conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		h.n.outcome(c.server, c.began, err)
		raw.Close()
		return nil, nil, err
	}
	info := credentials.TLSInfo{State: t.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	return h.n.newConn(t, c.server, c.began), info, nil
}

func (h handshaker) Clone() credentials.TransportCredentials { return h }

// A conn sees what the server says first, which shows what it is. Its remote address is
// the endpoint, since that is what a user knows it by.
type conn struct {
	net.Conn
	wire   *wire
	server *server
	began  time.Time
	heard  bool // only the goroutine that reads touches it

	once  sync.Once
	known chan struct{} // closed when something was heard, or never will be
}

func (n *wire) newConn(c net.Conn, srv *server, began time.Time) *conn {
	return &conn{Conn: c, wire: n, server: srv, began: began, known: make(chan struct{})}
}

func (c *conn) Read(b []byte) (int, error) {
	got, err := c.Conn.Read(b)
	switch {
	case err != nil && c.heard:
		c.wire.outcome(c.server, c.began, &lost{err})
	case err != nil && got == 0:
		if errors.Is(err, net.ErrClosed) { // by grpc, which waits no longer
			err = errSilent
		}
		c.wire.outcome(c.server, c.began, err)
	case !c.heard:
		c.heard = true
		switch said := b[:got]; {
		case bytes.HasPrefix(said, []byte("HTTP/")):
			c.wire.outcome(c.server, c.began, errHTTP1)
		case bytes.HasPrefix(said, []byte{0x15, 3}): // RFC 8446, section 5.1: alert
			c.wire.outcome(c.server, c.began, errAlert)
		default:
			c.wire.outcome(c.server, c.began, nil)
		}
	}
	c.once.Do(func() { close(c.known) })
	return got, err
}

// Write lets a server that does not want us have its say. With TLS 1.3 the handshake is
// over before the server has looked at our certificate, so that its alert may cross
// our first words, which then find the connection closed; and grpc ends a connection
// that it can't write to without reading what has come.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		select {
		case <-c.known:
		case <-time.After(200 * time.Millisecond):
		}
	}
	return n, err
}

func (c *conn) RemoteAddr() net.Addr { return endpointAddr{c.Conn.RemoteAddr(), c.server.endpoint} }

// An endpointAddr is an address that reads as the endpoint.
type endpointAddr struct {
	net.Addr
	endpoint string
}

func (a endpointAddr) String() string { return a.endpoint }

// A lost connection was one before.
type lost struct{ cause error }

func (l *lost) Error() string { return "the connection was lost: " + l.cause.Error() }
func (l *lost) Unwrap() error { return l.cause }

// outcome notes what became of the connection that began then: nil is up.
func (n *wire) outcome(s *server, began time.Time, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if began.Before(s.began) || errors.As(err, new(*lost)) && (s.err == errHTTP1 || s.err == errAlert) {
		return // there was a newer one; or there is more to say
	}
	was := s.up
	s.up, s.err, s.began = err == nil, err, began
	close(n.changed)
	n.changed = make(chan struct{})
	if was && !slices.ContainsFunc(n.servers, func(s *server) bool { return s.up }) {
		n.cut()
	}
}

// settled waits until there is a connection, which it reports, or until an attempt to
// connect to each server has failed that began after since.
func (n *wire) settled(ctx context.Context, since time.Time) (up bool) {
	for {
		n.mu.Lock()
		changed, all := n.changed, true
		for _, s := range n.servers {
			up = up || s.up
			all = all && s.began.After(since)
		}
		n.mu.Unlock()
		if up || all {
			return up
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// failures returns the servers with what is wrong with them.
func (n *wire) failures() []server {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []server
	for _, s := range n.servers {
		if s.err != nil {
			all = append(all, *s)
		}
	}
	return all
}

// speaksTLS tries whether a server does that has closed a plain connection without a
// word. Nothing that is said depends on who it is.
func (n *wire) speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	err = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	return err == nil || strings.Contains(err.Error(), "remote error: tls: ")
}

// speaksHTTP tries whether a server does that has closed a TLS connection without a
// word.
func (n *wire) speaksHTTP(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/version", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return true
}

// version asks a server that speaks HTTP only for its etcd version, "" if it has none.
func (n *wire) version(ctx context.Context, endpoint string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/version", nil)
	if err != nil {
		return ""
	}
	t := &http.Transport{TLSClientConfig: n.access.TLS(), DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return ""
	}
	var v struct {
		Server string `json:"etcdserver"`
	}
	if json.Unmarshal(text, &v) != nil {
		return ""
	}
	return v.Server
}

// isClosed reports whether a server has ended a connection without a word.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
