package flannelkit_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// patience bounds what must happen sooner or later. No test measures time.
const patience = 30 * time.Second

const (
	fakeNetwork = `{"Network": "10.5.0.0/16", "Backend": {"Type": "fake"}}`
	// here is an address that every machine has.
	here = "127.0.0.1"
)

var errStop = errors.New("test: enough")

// A call is one call of a fakeBackend.
type call struct {
	op    string // prepare, start, sync or close
	host  backend.Host
	own   lease.Lease
	peers []lease.Lease
	keep  bool
}

// fakeBackend records its calls, does in each what the test says, and notes what
// breaks the contract of backend.Backend.
type fakeBackend struct {
	// on is what a call does, nil for nothing; n counts the calls of that op from 1.
	on    func(ctx context.Context, c call, n int) error
	calls chan call // in order, when they begin

	mu      sync.Mutex
	busy    string
	counts  map[string]int
	started bool // once without error
	broken  []string
	probe   error
	params  backend.Params
}

func newFake() *fakeBackend {
	return &fakeBackend{calls: make(chan call, 100000), counts: map[string]int{}}
}

// backends is a Config.Backends that has b only.
func (b *fakeBackend) backends() map[string]backend.New {
	return map[string]backend.New{"fake": func(p backend.Params) (backend.Backend, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.counts["new"]++
		b.params = p
		return b, nil
	}}
}

func (b *fakeBackend) do(ctx context.Context, c call) error {
	b.mu.Lock()
	b.counts[c.op]++
	n := b.counts[c.op]
	breaks := func(broken bool, format string, args ...any) {
		if broken {
			b.broken = append(b.broken, fmt.Sprintf(format, args...))
		}
	}
	breaks(b.busy != "", "%s while %s is under way", c.op, b.busy)
	breaks(b.counts["close"] > 0 && (c.op != "close" || n > 1), "%s after close", c.op)
	breaks(c.op == "prepare" && n > 1, "prepare once more")
	breaks(c.op != "prepare" && c.op != "close" && b.counts["prepare"] == 0, "%s before prepare", c.op)
	breaks(c.op == "sync" && !b.started, "sync before start")
	breaks(c.op == "sync" && c.peers == nil, "sync without a set")
	b.busy = c.op
	on := b.on
	b.mu.Unlock()
	b.calls <- c
	var err error
	if on != nil {
		err = on(ctx, c, n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy = ""
	b.started = b.started || c.op == "start" && err == nil
	return err
}

func (b *fakeBackend) Prepare(ctx context.Context, _ backend.Host) (lease.Attrs, error) {
	return lease.Attrs{BackendType: "fake", BackendData: []byte(`{"Key":1}`)}, b.do(ctx, call{op: "prepare"})
}

func (b *fakeBackend) Start(ctx context.Context, host backend.Host, own lease.Lease) (int, error) {
	return host.MTU - 28, b.do(ctx, call{op: "start", host: host, own: own})
}

func (b *fakeBackend) Sync(ctx context.Context, peers []lease.Lease) error {
	return b.do(ctx, call{op: "sync", peers: slices.Clone(peers)})
}

func (b *fakeBackend) Close(keep bool) error {
	return b.do(context.Background(), call{op: "close", keep: keep})
}

func (b *fakeBackend) Stats() (s encap.Stats) { s.RX.Packets = 42; return s }

func (b *fakeBackend) Probe() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probe
}

// count returns how often something was called.
func (b *fakeBackend) count(op string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[op]
}

// next waits for the next call of an op for which ok, and skips others.
func (b *fakeBackend) next(t *testing.T, op string, ok func(call) bool) call {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case c := <-b.calls:
			if c.op == op && (ok == nil || ok(c)) {
				return c
			}
		case <-timeout:
			t.Fatalf("no call of %s as it should be; the backend got %v", op, b.counts)
		}
	}
}

// sound fails the test if the contract was broken, or closes is not how often the
// backend was closed.
func (b *fakeBackend) sound(t *testing.T, closes int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.broken {
		t.Errorf("the backend's contract: %s", text)
	}
	if got := b.counts["close"]; got != closes {
		t.Errorf("the backend was closed %d times, want %d", got, closes)
	}
}

// scriptedStore is a store in memory that first does what the test says.
type scriptedStore struct {
	*memory.Store
	// on is called first; an error is the call's result. n counts from 1.
	on func(ctx context.Context, op string, n int) error

	mu     sync.Mutex
	counts map[string]int
}

func newScripted(network string) *scriptedStore {
	return &scriptedStore{Store: memory.New(memory.Config{Network: network}), counts: map[string]int{}}
}

func (s *scriptedStore) first(ctx context.Context, op string) error {
	s.mu.Lock()
	s.counts[op]++
	n, on := s.counts[op], s.on
	s.mu.Unlock()
	if on == nil {
		return nil
	}
	return on(ctx, op, n)
}

func (s *scriptedStore) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

func (s *scriptedStore) Config(ctx context.Context) ([]byte, error) {
	if err := s.first(ctx, "config"); err != nil {
		return nil, err
	}
	return s.Store.Config(ctx)
}

func (s *scriptedStore) List(ctx context.Context) (lease.Listing, error) {
	if err := s.first(ctx, "list"); err != nil {
		return lease.Listing{}, err
	}
	return s.Store.List(ctx)
}

func (s *scriptedStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	if err := s.first(ctx, "create"); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *scriptedStore) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	if err := s.first(ctx, "update"); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Update(ctx, old, value, ttl)
}

func (s *scriptedStore) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if err := s.first(ctx, "renew"); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Renew(ctx, old, ttl)
}

func (s *scriptedStore) Delete(ctx context.Context, old lease.Entry) error {
	if err := s.first(ctx, "delete"); err != nil {
		return err
	}
	return s.Store.Delete(ctx, old)
}

func (s *scriptedStore) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	if err := s.first(ctx, "watch"); err != nil {
		return err
	}
	return s.Store.Watch(ctx, after, fn)
}

func (s *scriptedStore) Reconnect() { _ = s.first(context.Background(), "reconnect") }

// hang waits for ctx's end as a server that does not answer makes a store wait.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("test: hangs: %w", ctx.Err())
}

// entries returns what a store has, by key.
func entries(t *testing.T, s lease.Store) map[string]lease.Entry {
	t.Helper()
	l, err := s.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]lease.Entry{}
	for _, e := range l.Entries {
		all[e.Key] = e
	}
	return all
}

// addPeer makes another host's lease.
func addPeer(t *testing.T, s lease.Store, key, public string) lease.Entry {
	t.Helper()
	e, err := s.Create(context.Background(), key, fmt.Appendf(nil, `{"PublicIP":%q,"BackendType":"fake"}`, public), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// goroutines returns the stack of every goroutine, by its number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	all := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		number, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		all[number] = stack
	}
	return all
}

// leftOver waits for the end of all goroutines that were not there before, and returns
// the stacks of those that stay.
func leftOver(before map[string]string) (left []string) {
	for late := time.Now().Add(patience / 10); ; time.Sleep(5 * time.Millisecond) {
		left = nil
		for number, stack := range goroutines() {
			// The runtime starts some of its own at the first use of what they serve.
			if _, old := before[number]; !old && !strings.Contains(stack, "os/signal.") && !strings.Contains(stack, "testing.tRunner") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(late) {
			return left
		}
	}
}

// noLeaks fails the test if it leaves goroutines behind. Not for parallel tests.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		if left := leftOver(before); len(left) > 0 {
			t.Errorf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
		}
	})
}

// previous is the subnet to ask for: a random one would now and then be a test's peer's.
func previous() lease.Key { return lease.Key{Subnet: netip.MustParsePrefix("10.5.9.0/24")} }

// joinFake joins with a fake backend on the loopback interface.
func joinFake(t *testing.T, s lease.Store, b *fakeBackend, adjust func(*flannelkit.Config)) *flannelkit.Node {
	t.Helper()
	cfg := flannelkit.Config{Interface: flannelkit.Interface{Names: []string{here}}, Backends: b.backends(), Previous: previous()}
	if adjust != nil {
		adjust(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, err := flannelkit.Join(ctx, s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		b.sound(t, 1)
	})
	return n
}

// waitFor polls what no event tells.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// subnets returns the IPv4 subnets of leases.
func subnets(leases []lease.Lease) (all []netip.Prefix) {
	for _, l := range leases {
		all = append(all, l.Subnet)
	}
	return all
}
