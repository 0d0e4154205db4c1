// Package etcdv2 keeps leases in an etcd through its first interface, /v2/keys, as
// flannel did up to 0.17. It is there up to etcd 3.5, since 3.4 only where the server
// is started with --enable-v2; [Store.Probe] tells. Keys, values and times to live
// are those of flannel, so that both can share a network.
//
// What this interface is like shapes the store. An entry's time to live is its own
// and ends by the servers' clocks, also while they are down; to delete it means to
// have it end, since flannel understands no other event. The servers remember
// the last 1000 events of the whole etcd, not of the network: whoever comes back
// later than that has to list again. Nothing but a request tells whether a server
// is alive, so a watch asks every ten seconds.
package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

const (
	// DefaultPrefix is where flannel keeps its network if it is told nothing.
	DefaultPrefix = "/coreos.com/network"
	// DefaultRequestTimeout is Config.RequestTimeout if that is 0. A server whose
	// cluster elects a leader meanwhile takes up to seven seconds to say so.
	DefaultRequestTimeout = 10 * time.Second

	connectTimeout = 5 * time.Second // TCP and TLS
	keysPath       = "/v2/keys"
)

// A Config tells where the etcd is. The zero value means one on this machine.
type Config struct {
	// Endpoints are the servers of the one etcd, as http://HOST:PORT or
	// https://HOST:PORT. None means http://127.0.0.1:2379.
	Endpoints []string
	// Prefix is the key below which the network is, "" for DefaultPrefix.
	Prefix string
	// CAFile holds the authorities that may sign the servers' certificates, in
	// PEM; "" leaves that to the ones the system knows. All three files are read
	// again for new connections, and may be replaced at any time.
	CAFile string
	// CertFile is our certificate, in PEM, for servers that want one.
	CertFile string
	// KeyFile is its private key, in PEM, not encrypted.
	KeyFile string
	// Username is for servers with authentication switched on; "" for none.
	Username string
	// Password belongs to Username. It is in no message.
	Password string
	// RequestTimeout is how long one server has for one answer, from the
	// connection to the last byte; 0 means DefaultRequestTimeout. A watch has its
	// own times.
	RequestTimeout time.Duration
	// Log takes what is worth knowing and is nobody's error, such as that another
	// server is used from now on; nil discards it.
	Log *slog.Logger
}

// A Store is a [lease.Store] in one etcd. Proxies that the environment names are not
// used.
type Store struct {
	access    *etcdtls.Access
	conns     etcdtls.Conns
	clients   []client.Client // one for each endpoint: whether to try the next is ours to decide
	transport *http.Transport
	config    string // the key of the configuration
	subnets   string // the directory of the entries
	username  string
	timeout   time.Duration
	times     watchTimes
	log       *slog.Logger
	trace     func(*http.Request) // for tests: sees each request before it is sent

	life   context.Context // ends with Close
	end    context.CancelFunc
	calls  sync.WaitGroup
	mu     sync.Mutex // orders calls.Add against Close, and guards seen
	seen   identity   // of the etcd, as the last List and the watches after it saw it
	pinned atomic.Int64
}

// New makes a Store. It reads the TLS files and does nothing else: whether a server
// is there, the first call will tell.
func New(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files := etcdtls.Files{CA: cfg.CAFile, Cert: cfg.CertFile, Key: cfg.KeyFile}
	access, err := etcdtls.New(cfg.Endpoints, files, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("etcdv2: new: %w", err)
	}
	if cfg.Password != "" && cfg.Username == "" {
		return nil, errors.New("etcdv2: new: a password without a user name (give both or neither)")
	}
	if cfg.RequestTimeout < 0 {
		return nil, fmt.Errorf("etcdv2: new: request timeout %v (want more than 0)", cfg.RequestTimeout)
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	prefix := path.Clean("/" + cfg.Prefix)
	s := &Store{
		access: access, config: path.Join(prefix, "config"), subnets: path.Join(prefix, "subnets"),
		username: cfg.Username, timeout: cfg.RequestTimeout, times: defaultWatchTimes(), log: cfg.Log,
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.transport = &http.Transport{
		DialContext:         s.dial,
		DialTLSContext:      s.dialTLS,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     time.Minute,
	}
	for _, ep := range access.Endpoints {
		c, err := client.New(client.Config{
			Endpoints: []string{ep}, Transport: tracing{s.transport, s}, Username: cfg.Username, Password: cfg.Password,
		})
		if err != nil {
			return nil, fmt.Errorf("etcdv2: new: %s: %w", ep, err)
		}
		s.clients = append(s.clients, c)
	}
	s.pinned.Store(rand.Int64N(int64(len(s.clients)))) // not all hosts on one server
	return s, nil
}

// tracing is the transport, seen by a test.
type tracing struct {
	*http.Transport
	s *Store
}

func (t tracing) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.s.trace != nil {
		t.s.trace(req)
	}
	return t.Transport.RoundTrip(req)
}

// Close ends all calls and closes all connections. It waits for the calls, except for
// watches, whose function may be what calls Close.
func (s *Store) Close() error {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.calls.Wait()
	s.transport.CloseIdleConnections()
	return nil
}

// errClosed is why calls end after Close.
var errClosed = fmt.Errorf("the store is closed: %w", net.ErrClosed)

// enter begins a call: it returns a context that also ends with the store, and what to
// call at the call's end.
func (s *Store) enter(ctx context.Context, waitedFor bool) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
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
		} else if s.life.Err() != nil {
			s.transport.CloseIdleConnections()
		}
	}, nil
}

// Config implements [lease.Store].
func (s *Store) Config(ctx context.Context) ([]byte, error) {
	r, err := s.do(ctx, get(s.config, false, true))
	switch {
	case err != nil:
		return nil, fmt.Errorf("etcdv2: config: %w", err)
	case r.code == client.ErrorCodeKeyNotFound:
		return nil, fmt.Errorf("etcdv2: config: %s: %w", s.config, lease.ErrNoConfig)
	case r.failed != nil:
		return nil, fmt.Errorf("etcdv2: config: %w", r.failed)
	case r.event.Node.Dir:
		return nil, fmt.Errorf("etcdv2: config: %s is a directory, not a value", s.config)
	}
	return []byte(r.event.Node.Value), nil
}

// List implements [lease.Store], with one request. Cluster is etcd's own, which it
// computes from its configuration: an etcd set up again in the same way has the same,
// and Watch tells by other numbers.
func (s *Store) List(ctx context.Context) (lease.Listing, error) {
	r, err := s.do(ctx, get(s.subnets, true, true))
	if err != nil {
		return lease.Listing{}, fmt.Errorf("etcdv2: list: %w", err)
	}
	l := lease.Listing{Revision: r.index, Cluster: r.cluster}
	switch {
	case r.code == client.ErrorCodeKeyNotFound: // nobody has had a lease yet
	case r.failed != nil:
		return lease.Listing{}, fmt.Errorf("etcdv2: list: %w", r.failed)
	case !r.event.Node.Dir:
		return lease.Listing{}, fmt.Errorf("etcdv2: list: %s is a value, not a directory (remove it)", s.subnets)
	default:
		l.Entries = s.entries(r.event.Node.Nodes)
	}
	if l.Revision == 0 {
		return lease.Listing{}, fmt.Errorf("etcdv2: list: %s: the answer has no X-Etcd-Index (does something in between remove it?)", r.endpoint)
	}
	s.mu.Lock()
	s.seen = identity{cluster: r.cluster, raft: r.raft}
	s.mu.Unlock()
	return l, nil
}

// Probe asks what server is there: its version, such as 3.4.23, and whether it has
// this interface. An etcd that has not may well have the other one. err is as with
// other calls; that the interface is missing is none.
func (s *Store) Probe(ctx context.Context) (version string, hasV2 bool, err error) {
	_, err = s.do(ctx, get(s.config, false, false))
	var missing *noInterface
	switch {
	case errors.As(err, &missing):
		if missing.version == "" {
			return "", false, fmt.Errorf("etcdv2: probe: %w", err)
		}
		return missing.version, false, nil
	case err != nil && !errors.Is(err, errCredentials): // who asks for a password has what it protects
		return "", false, fmt.Errorf("etcdv2: probe: %w", err)
	}
	ctx, leave, err := s.enter(ctx, true)
	if err != nil {
		return "", true, fmt.Errorf("etcdv2: probe: %w", err)
	}
	defer leave()
	return s.version(ctx, int(s.pinned.Load())), true, nil
}

// entries returns what is in these nodes and below them. Directories are none, whatever
// they are named.
func (s *Store) entries(nodes client.Nodes) []lease.Entry {
	var all []lease.Entry
	for _, n := range nodes {
		if n == nil {
			continue
		}
		if n.Dir {
			all = append(all, s.entries(n.Nodes)...)
		} else if key, ok := s.entryKey(n.Key); ok {
			all = append(all, entryOf(key, n))
		}
	}
	return all
}

// entryKey returns a node's name below the entries' directory. It has a slash in it
// if somebody has made directories there.
func (s *Store) entryKey(nodeKey string) (string, bool) {
	key, ok := strings.CutPrefix(nodeKey, s.subnets+"/")
	return key, ok && key != ""
}

// entryOf makes an entry of a node. Only the duration counts: the moment of expiry
// is by the server's clock. To etcd a write without a condition, such as flannel's,
// makes a new entry.
func entryOf(key string, n *client.Node) lease.Entry {
	return lease.Entry{
		Key: key, Value: []byte(n.Value), Revision: n.ModifiedIndex, Created: n.CreatedIndex,
		Permanent: n.TTL == 0 && n.Expiration == nil,
		TTL:       max(0, n.TTLDuration()), // below 0 where it is about to expire
	}
}
