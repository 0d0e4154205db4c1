package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/internal/syncbuf"
	"github.com/flannelkit/flannelkit/lease"
)

// patience is for what should take no time at all, on a machine that is busy.
const patience = time.Minute

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// receive waits for a value.
func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("still not: %s", what)
		panic("unreachable")
	}
}

// A lockedBuffer collects what several goroutines write.
type lockedBuffer struct{ syncbuf.Buffer }

func (b *lockedBuffer) has(s string) func() bool {
	return func() bool { return strings.Contains(b.String(), s) }
}

// fakeNode is a node that does what the test says.
type fakeNode struct {
	mu       sync.Mutex
	readyErr error
	mtu      int
	stats    nodeStats
	peers    []lease.Lease
	err      error
	closes   int

	done  chan struct{}
	block chan struct{} // Ready and Close wait for it, if it is not nil
}

func newFakeNode() *fakeNode { return &fakeNode{mtu: 1472, done: make(chan struct{})} }

func (n *fakeNode) change(f func(*fakeNode)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

func (n *fakeNode) end(err error) {
	n.change(func(n *fakeNode) { n.err = err })
	close(n.done)
}

func (n *fakeNode) wait() {
	if n.block != nil {
		<-n.block
	}
}

func (n *fakeNode) Subnet() netip.Prefix  { return n.Lease().Subnet }
func (n *fakeNode) Subnet6() netip.Prefix { return n.Lease().Subnet6 }
func (n *fakeNode) Network() lease.Network {
	return lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24}, BackendType: "udp"}
}
func (n *fakeNode) Lease() lease.Lease {
	return lease.Lease{
		Key:   lease.Key{Subnet: netip.MustParsePrefix("10.5.34.0/24")},
		Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1")},
	}
}
func (n *fakeNode) Host() backend.Host {
	return backend.Host{Link: "eth0", Public4: netip.MustParseAddr("192.0.2.1")}
}
func (n *fakeNode) Done() <-chan struct{} { return n.done }

func (n *fakeNode) Peers() []lease.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers
}

func (n *fakeNode) MTU() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mtu
}

func (n *fakeNode) Stats() nodeStats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

func (n *fakeNode) Ready() error {
	n.wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.readyErr
}

func (n *fakeNode) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

func (n *fakeNode) Close() error {
	n.wait()
	n.change(func(n *fakeNode) { n.closes++ })
	return nil
}

// fakeStore is a store whose configuration is what the test says.
type fakeStore struct {
	lease.Store // the rest is not called

	mu     sync.Mutex
	err    error
	asked  int
	closed bool
}

func (s *fakeStore) Config(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return []byte("{}"), s.err
}

func (s *fakeStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *fakeStore) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *fakeStore) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// fakeKeeper keeps nothing and says what the test says.
type fakeKeeper struct {
	mu   sync.Mutex
	err  error
	kept masq.Status
}

func (k *fakeKeeper) keep(ctx context.Context, _ node, made func()) { made(); <-ctx.Done() }

func (k *fakeKeeper) state() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

func (k *fakeKeeper) status() masq.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept
}

func (k *fakeKeeper) set(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

// A manager is the service manager's end of the socket.
type manager struct {
	conn *net.UnixConn
	got  chan string
}

// listenAsManager makes NOTIFY_SOCKET of this process a socket of the test.
func listenAsManager(t *testing.T) *manager {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: conn, got: make(chan string, 1000)}
	ended := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	t.Setenv("NOTIFY_SOCKET", name)
	go func() {
		defer close(ended)
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if errors.Is(err, net.ErrClosed) || err != nil {
				return
			}
			m.got <- string(b[:n])
		}
	}()
	return m
}

// until reads messages up to one that begins so, and returns all of them.
func (m *manager) until(t *testing.T, prefix string) (all []string) {
	t.Helper()
	for {
		select {
		case s := <-m.got:
			if all = append(all, s); strings.HasPrefix(s, prefix) {
				return all
			}
		case <-time.After(patience):
			t.Fatalf("no %s among the messages to the service manager: %q", prefix, all)
		}
	}
}

// discardLog is for what does not look at the log.
func discardLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// A running is a daemon in this process.
type running struct {
	*daemon
	log   *lockedBuffer
	node  *fakeNode
	store *fakeStore
	rules *fakeKeeper
	stop  context.CancelFunc
	ended chan error
}

// startDaemon runs a daemon on a fake node. Its file is in a directory of the test; it
// makes no rules.
func startDaemon(t *testing.T, n *fakeNode, args ...string) *running {
	t.Helper()
	file := filepath.Join(t.TempDir(), "flannel", "subnet.env")
	o := parse(t, nil, append([]string{"-subnet-file=" + file, "-v=1"}, args...)...)
	r := &running{log: new(lockedBuffer), node: n, store: new(fakeStore), ended: make(chan error, 1)}
	red := newRedactor(r.log)
	r.daemon = newDaemon(o, newLogger(red, o), red.clean)
	r.rules = new(fakeKeeper)
	r.net = r.rules
	r.open = func(*options, *slog.Logger) ([]candidate, error) { return []candidate{{"3", r.store}}, nil }
	r.joiner = func(context.Context, lease.Store) (node, error) { return n, nil }
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.ended <- r.daemon.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", r.log)
		}
	})
	return r
}

// asIs takes no secrets out.
func asIs(s string) string { return s }
