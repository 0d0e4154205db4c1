// Package etcdv3 keeps leases in an etcd through its second interface, gRPC, as
// flannel does since 0.18. Any etcd since 3.2 has it. Keys, values and times to live
// are those of flannel, so that both can share a network: <prefix>/config holds the
// configuration, <prefix>/subnets/<key> an entry.
//
// An entry's time to live is that of an etcd lease, which the entry has to itself.
// To renew the entry is to renew that lease: one small request that writes no key,
// wakes no watcher and adds nothing to the history. Entry.Handle is its number.
//
// A call that finds no connection makes the client try one at once, so that what it
// says about the servers is news; between calls the client tries by itself, at most
// every few seconds. Whether the server that is reached after that is still the same
// one is checked before a watch goes on: see [Store.Watch].
package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
	"github.com/flannelkit/flannelkit/lease"
)

const (
	// DefaultPrefix is where flannel keeps its network if it is told nothing.
	DefaultPrefix = "/coreos.com/network"
	// DefaultRequestTimeout is Config.RequestTimeout if that is 0. A server whose
	// cluster elects a leader meanwhile takes up to seven seconds to say so.
	DefaultRequestTimeout = 10 * time.Second

	connectTimeout = 4 * time.Second // TCP, TLS and the server's first frame
	cleanupTimeout = 2 * time.Second // for a request that nobody waits for
	closeGrace     = time.Second     // for those at Close
)

// A Config tells where the etcd is. The zero value means one on this machine.
type Config struct {
	// Endpoints are the servers of the one etcd, as http://HOST:PORT or
	// https://HOST:PORT. None means http://127.0.0.1:2379.
	Endpoints []string
	// Prefix is what the network's keys begin with, "" for DefaultPrefix. As in
	// flannel it need not begin with a slash, and means other keys if it does not.
	Prefix string
	// CAFile holds the authorities that may sign the servers' certificates, in
	// PEM; "" leaves that to the ones the system knows. All three files are read
	// again for new connections, and may be replaced at any time.
	CAFile string
	// CertFile is our certificate, in PEM, for servers that want one. Where etcd
	// has authentication switched on and there is no Username, its common name is
	// the user.
	CertFile string
	// KeyFile is its private key, in PEM, not encrypted.
	KeyFile string
	// Username is for servers with authentication switched on; "" for none.
	Username string
	// Password belongs to Username. It is in no message.
	Password string
	// RequestTimeout is how long one request may take, a connection and a login
	// included; 0 means DefaultRequestTimeout. A watch has its own times.
	RequestTimeout time.Duration
	// Log takes what is worth knowing and is nobody's error, such as that a watch
	// had to connect again; nil discards it.
	Log *slog.Logger
}

// A Store is a [lease.Store] in one etcd. It spreads its requests over the servers
// that it reaches. Proxies that the environment names are not used.
type Store struct {
	wire    *wire
	client  *clientv3.Client
	leases  pb.LeaseClient
	session session
	config  string // the key of the configuration
	subnets string // what the entries' keys begin with, with a slash at the end
	timeout time.Duration
	times   watchTimes
	log     *slog.Logger
	trace   func(method string) // for tests: sees each request before it is sent

	life  context.Context // ends with Close
	end   context.CancelFunc
	tidy  sync.WaitGroup // requests that nobody waits for
	calls sync.WaitGroup
	mu    sync.Mutex // orders calls.Add and tidy.Add against Close
	shut  bool       // Close was called
	marks marks
}

// New makes a Store. It reads the TLS files and does not wait for a server: whether
// one is there, the first call will tell.
func New(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files := etcdtls.Files{CA: cfg.CAFile, Cert: cfg.CertFile, Key: cfg.KeyFile}
	access, err := etcdtls.New(cfg.Endpoints, files, cfg.Log)
	switch {
	case err != nil:
		return nil, fmt.Errorf("etcdv3: new: %w", err)
	case (cfg.Username == "") != (cfg.Password == ""):
		return nil, errors.New("etcdv3: new: a user name or a password without the other (give both or neither)")
	case cfg.RequestTimeout < 0:
		return nil, fmt.Errorf("etcdv3: new: request timeout %v (want more than 0)", cfg.RequestTimeout)
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	s := &Store{
		config: path.Join(cfg.Prefix, "config"), subnets: path.Join(cfg.Prefix, "subnets") + "/",
		timeout: cfg.RequestTimeout, times: defaultWatchTimes(), log: cfg.Log,
		session: newSession(cfg.Username, cfg.Password),
	}
	s.wire = newWire(access, min(connectTimeout, cfg.RequestTimeout*3/4), func() { s.forget(s.session.token.Load()) })
	s.life, s.end = context.WithCancel(context.Background())
	if err := s.connect(access.Endpoints); err != nil {
		s.end()
		return nil, fmt.Errorf("etcdv3: new: %w", err)
	}
	return s, nil
}

// connect makes the client. Of what the client could do by itself it must not:
//
//   - log: it writes JSON to stderr.
//   - log in: clientv3.New waits for that, and a server 3.4 refuses a login that
//     comes with an expired session, upon which the client logs in again and again.
//   - repeat requests: it does so up to a hundred times, and hides the reason.
func (s *Store) connect(endpoints []string) error {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:       endpoints,
		Logger:          zap.NewNop(),
		MaxUnaryRetries: 1, // as it counts, the first attempt
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(s.wire.dial),
			grpc.WithTransportCredentials(s.wire.credentials()),
			grpc.WithChainUnaryInterceptor(s.unary),
			grpc.WithChainStreamInterceptor(s.stream),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
				MinConnectTimeout: s.wire.timeout,
			}),
			// Only while something is under way, which a watch always is. A server
			// accepts that every five seconds, unless told otherwise.
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: s.times.progress, Timeout: s.times.progress}),
		},
	})
	if err != nil {
		return err
	}
	s.client, s.leases = client, pb.NewLeaseClient(client.ActiveConnection())
	return nil
}

// Close ends all calls and closes all connections. It waits for the calls, except for
// watches, whose function may be what calls Close.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.shut
	s.shut = true
	s.mu.Unlock()
	if first {
		// A call that was cancelled a moment ago may have left an etcd lease.
		done := make(chan struct{})
		go func() { s.tidy.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(closeGrace):
		}
		s.end()
		s.client.Close() // the error is that of a context of its own, which it has just cancelled
	}
	s.calls.Wait()
	s.tidy.Wait()
	return nil
}

// Reconnect closes all connections; see [lease.Reconnector].
func (s *Store) Reconnect() { s.wire.conns.Close() }

// errClosed is why calls end after Close.
var errClosed = fmt.Errorf("the store is closed: %w", net.ErrClosed)

// enter begins a call: it returns a context that also ends with the store, and what to
// call at the call's end.
func (s *Store) enter(ctx context.Context, waitedFor bool) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return nil, nil, errClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if waitedFor {
		s.calls.Add(1)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(errClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		if waitedFor {
			s.calls.Done()
		}
	}, nil
}

// ended says why a context that enter has made is over. A cause of the caller's own is
// none of ours to tell.
func ended(ctx context.Context) error {
	for _, cause := range []error{errClosed, errLate} {
		if errors.Is(context.Cause(ctx), cause) {
			return cause
		}
	}
	return ctx.Err()
}

// Config implements [lease.Store].
func (s *Store) Config(ctx context.Context) ([]byte, error) {
	var resp *clientv3.GetResponse
	err := s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = s.client.Get(ctx, s.config)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("etcdv3: config: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("etcdv3: config: %s: %w", s.config, lease.ErrNoConfig)
	}
	return resp.Kvs[0].Value, nil
}

// List implements [lease.Store], with one request.
func (s *Store) List(ctx context.Context) (lease.Listing, error) {
	var resp *clientv3.GetResponse
	err := s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = s.client.Get(ctx, s.subnets, clientv3.WithPrefix())
		return err
	})
	if err != nil {
		return lease.Listing{}, fmt.Errorf("etcdv3: list: %w", err)
	}
	l := lease.Listing{Revision: uint64(resp.Header.Revision), Cluster: resp.Header.ClusterId}
	m := mark{cluster: l.Cluster}
	for _, kv := range resp.Kvs {
		l.Entries = append(l.Entries, s.entry(kv))
		m.see(kv)
	}
	s.marks.set(l.Revision, m)
	return l, nil
}

// entry makes an entry of what is stored. How long it lives on would take a request.
func (s *Store) entry(kv *mvccpb.KeyValue) lease.Entry {
	return lease.Entry{
		Key: strings.TrimPrefix(string(kv.Key), s.subnets), Value: kv.Value, Revision: uint64(kv.ModRevision), Created: uint64(kv.CreateRevision),
		Permanent: kv.Lease == 0, Handle: kv.Lease,
	}
}

// Probe asks what server is there: its version, such as 3.5.35, and whether it has
// this interface. An etcd that has not may well have the other one. err is as with
// other calls; that the interface is missing is none.
func (s *Store) Probe(ctx context.Context) (version string, hasV3 bool, err error) {
	var resp *pb.StatusResponse
	err = s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = pb.NewMaintenanceClient(s.client.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
		return err
	})
	var missing *noInterface
	var refused *refusal
	switch {
	case err == nil:
		return resp.Version, true, nil
	case errors.As(err, &missing) && missing.version != "":
		return missing.version, false, nil
	case errors.As(err, &refused): // who asks for a password has what it protects
		return "", true, nil
	}
	return "", false, fmt.Errorf("etcdv3: probe: %w", err)
}
