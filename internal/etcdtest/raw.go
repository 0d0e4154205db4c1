package etcdtest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The requests in this file go to the server by the shortest way, as root where there
// is authentication: they are how a test sees what is stored, and how it plays the
// other clients.

// requestTime is enough for any request to a server that is there.
const requestTime = 20 * time.Second

// V3 returns a client of the v3 API. The server closes it, and gives a new one after
// every start: a client that is logged in to a server 3.4 cannot log in again once its
// session is gone, since it shows the old one with the password. The other methods
// use clients of their own, which are gone when they return.
func (s *Server) V3() *clientv3.Client {
	s.t.Helper()
	if s.v3 == nil {
		s.v3 = s.newV3()
	}
	return s.v3
}

// newV3 makes a client.
func (s *Server) newV3() *clientv3.Client {
	s.t.Helper()
	cfg := clientv3.Config{Endpoints: []string{s.Endpoint()}, TLS: s.ownTLS(), Logger: zap.NewNop(), DialTimeout: requestTime}
	if s.cfg.Auth {
		cfg.Username, cfg.Password = "root", RootPassword
	}
	cfg.DialOptions = append(cfg.DialOptions, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		return s.dial(ctx, "tcp", addr)
	}))
	c, err := clientv3.New(cfg)
	if err != nil {
		s.t.Fatalf("etcdtest: v3 client: %v", err)
	}
	return c
}

// forgetV3 closes the client, if there is one.
func (s *Server) forgetV3() {
	if s.v3 != nil {
		s.v3.Close()
		s.v3 = nil
	}
}

// Put writes a v3 key, for ever.
func (s *Server) Put(key, value string) {
	s.t.Helper()
	s.try("put "+key, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, key, value)
		return err
	})
}

// Get reads a v3 key.
func (s *Server) Get(key string) (value string, ok bool) {
	s.t.Helper()
	s.try("get "+key, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, key)
		if err == nil && len(resp.Kvs) == 1 {
			value, ok = string(resp.Kvs[0].Value), true
		}
		return err
	})
	return value, ok
}

// Delete removes a v3 key.
func (s *Server) Delete(key string) {
	s.t.Helper()
	s.try("delete "+key, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, key)
		return err
	})
}

// Revision returns the v3 revision of the whole server.
func (s *Server) Revision() (rev int64) {
	s.t.Helper()
	s.try("revision", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, "/", clientv3.WithCountOnly())
		if err == nil {
			rev = resp.Header.Revision
		}
		return err
	})
	return rev
}

// Leases returns the v3 leases that exist.
func (s *Server) Leases() (ids []clientv3.LeaseID) {
	s.t.Helper()
	s.try("leases", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Leases(ctx)
		if err == nil {
			for _, l := range resp.Leases {
				ids = append(ids, l.ID)
			}
		}
		return err
	})
	return ids
}

// Compact drops the v3 history up to now, without trace.
func (s *Server) Compact() {
	s.t.Helper()
	rev := s.Revision()
	s.try("compact", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical())
		return err
	})
}

// User makes a user, in both APIs, that may read and write all keys that begin with
// prefix, or none if that is empty.
func (s *Server) User(name, password, prefix string) {
	s.t.Helper()
	u := user{name, password, prefix}
	s.users = append(s.users, u)
	s.makeUser(u)
}

// try runs one v3 request.
func (s *Server) try(what string, fn func(context.Context, *clientv3.Client) error) {
	s.t.Helper()
	c := s.newV3()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	if err := fn(ctx, c); err != nil {
		s.t.Fatalf("etcdtest: %s: %v", what, err)
	}
}

// A V2Reply is what the v2 API answers, as far as tests ask.
type V2Reply struct {
	// Status is the HTTP status.
	Status int
	// ErrorCode is etcd's, such as 100 for a key that is not there; 0 if none.
	ErrorCode int
	// Index is the X-Etcd-Index of the whole server.
	Index uint64
	// Node is the key that was asked for; zero if there is none.
	Node V2Node
}

// A V2Node is one v2 key.
type V2Node struct {
	// Key is its whole name.
	Key string
	// Value is what is stored there.
	Value string
	// Dir says that it is a directory.
	Dir bool
	// TTL is how many seconds it has left, 0 if it stays.
	TTL int
	// ModifiedIndex is when it was last written.
	ModifiedIndex uint64
	// CreatedIndex is when it was made.
	CreatedIndex uint64
	// Nodes is what is in a directory.
	Nodes []V2Node
}

// PutV2 writes a v2 key; ttl in whole seconds, 0 is for ever.
func (s *Server) PutV2(key, value string, ttl time.Duration) V2Reply {
	s.t.Helper()
	form := url.Values{"value": {value}}
	if ttl > 0 {
		form.Set("ttl", strconv.Itoa(int(ttl/time.Second)))
	}
	return s.keysV2(http.MethodPut, key, form)
}

// GetV2 reads a v2 key, or all below a directory.
func (s *Server) GetV2(key string) V2Reply {
	s.t.Helper()
	return s.keysV2(http.MethodGet, key+"?recursive=true&quorum=true", nil)
}

// DeleteV2 removes a v2 key, or all below a directory.
func (s *Server) DeleteV2(key string) V2Reply {
	s.t.Helper()
	return s.keysV2(http.MethodDelete, key+"?recursive=true", nil)
}

// CompactV2 makes the server forget its v2 history up to now: it keeps the last 1000
// events, so this writes that many to a key of its own.
func (s *Server) CompactV2() {
	s.t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			for range 1024/cap(errs) + 1 {
				if _, err := s.doV2(http.MethodPut, "/v2/keys/etcdtest-history", url.Values{"value": {"x"}}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		s.t.Fatalf("etcdtest: %v", err)
	}
}

func (s *Server) keysV2(method, key string, form url.Values) V2Reply {
	s.t.Helper()
	reply, err := s.doV2(method, "/v2/keys"+key, form)
	if err != nil {
		s.t.Fatalf("etcdtest: %v", err)
	}
	return reply
}

// doV2 makes one request of the keys API.
func (s *Server) doV2(method, path string, form url.Values) (V2Reply, error) {
	status, header, body, err := s.http(method, path, "application/x-www-form-urlencoded", form.Encode())
	if err != nil {
		return V2Reply{}, err
	}
	reply := V2Reply{Status: status}
	if err := json.Unmarshal(body, &reply); err != nil {
		return V2Reply{}, fmt.Errorf("%s %s: status %d, %.200q: %w", method, path, status, body, err)
	}
	reply.Index, _ = strconv.ParseUint(header.Get("X-Etcd-Index"), 10, 64)
	return reply, nil
}

// http makes one HTTP request as root.
func (s *Server) http(method, path, kind, body string) (int, http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Endpoint()+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", kind)
	if s.cfg.Auth {
		req.SetBasicAuth("root", RootPassword)
	}
	transport := &http.Transport{TLSClientConfig: s.ownTLS(), DialContext: s.dial, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return resp.StatusCode, resp.Header, text, nil
}

// healthy reports why the server does not serve yet.
func (s *Server) healthy() error {
	status, _, body, err := s.http(http.MethodGet, "/health", "", "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("/health: status %d: %.200s", status, body)
	}
	return err
}

// ownTLS returns what these requests use, nil without TLS.
func (s *Server) ownTLS() *tls.Config {
	if s.cfg.TLS == NoTLS {
		return nil
	}
	return s.clientTLS(s.t)
}

// dial connects to the server from where it runs.
func (s *Server) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = inside(s.cfg.Namespace, func() error {
		// An address, never a name, so that no other goroutine opens the socket.
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
