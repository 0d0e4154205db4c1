package flannelkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// The tests of this file run a Node without the goroutine that waits for the kernel, so
// that hours pass at once in a bubble. What that goroutine would tell, they tell.

// quietBackend notes when it was called, and fails as the test says.
type quietBackend struct {
	mu       sync.Mutex
	got      received
	startErr error
}

// received is what a quietBackend was called with.
type received struct {
	starts []time.Time
	hosts  []backend.Host
	owns   []lease.Lease
	syncs  []time.Time
	sets   []int // how many peers
}

func (b *quietBackend) Prepare(context.Context, backend.Host) (lease.Attrs, error) {
	return lease.Attrs{}, nil
}

func (b *quietBackend) Start(_ context.Context, host backend.Host, own lease.Lease) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := &b.got
	g.starts, g.hosts, g.owns = append(g.starts, time.Now()), append(g.hosts, host), append(g.owns, own)
	return host.MTU, b.startErr
}

func (b *quietBackend) Sync(_ context.Context, peers []lease.Lease) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got.syncs, b.got.sets = append(b.got.syncs, time.Now()), append(b.got.sets, len(peers))
	return nil
}

func (b *quietBackend) Close(bool) error { return nil }

// fail sets what Start returns from now on, and forgets the calls up to now.
func (b *quietBackend) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.startErr, b.got = err, received{}
}

// seen returns the calls since fail, when all is quiet.
func (b *quietBackend) seen() received {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

var testHost = backend.Host{
	Link: "eth0", LinkIndex: 2, MTU: 1500,
	Addr4: netip.MustParseAddr("192.0.2.1"), Public4: netip.MustParseAddr("192.0.2.1"),
}

// bubbleNode is a Node that has joined, in a bubble. It ends with the test.
func bubbleNode(t *testing.T, store lease.Store, cfg Config) (*Node, *quietBackend) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Previous.Subnet = netip.MustParsePrefix("10.5.9.0/24") // no peer's
	b := &quietBackend{}
	registry := lease.NewRegistry(store, lease.RegistryConfig{Previous: cfg.Previous, TTL: cfg.TTL, RenewMargin: cfg.RenewMargin, Log: cfg.Log})
	network, err := registry.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: cfg, store: store, registry: registry, network: network, backend: b, done: make(chan struct{}), changed: make(chan struct{}, 1)}
	if n.own, err = registry.Acquire(t.Context(), n.attrs(testHost)); err != nil {
		t.Fatal(err)
	}
	if n.mtu, err = b.Start(t.Context(), testHost, n.own); err != nil {
		t.Fatal(err)
	}
	n.host = testHost
	ctx, cancel := context.WithCancelCause(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	ready := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { _ = registry.Run(ctx, n.report) })
	all.Go(func() { n.serve(ctx, ready) })
	go func() { all.Wait(); close(n.ended) }()
	t.Cleanup(func() { _ = n.Close() })
	<-ready
	synctest.Wait()
	return n, b
}

// tell is what the watch of the interface would say.
func (n *Node) tell(h backend.Host, err error) {
	n.mu.Lock()
	n.next, n.nextErr, n.moved = h, err, true
	n.mu.Unlock()
	n.poke()
	synctest.Wait()
}

func newStore() *memory.Store {
	return memory.New(memory.Config{Network: `{"Network": "10.5.0.0/16"}`})
}

// TestSyncRepeats: what somebody else removed is put back, even if nothing else changes.
func TestSyncRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b := bubbleNode(t, newStore(), Config{})
		b.fail(nil)
		begin := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := len(b.seen().syncs); got < 115 || got > 121 {
			t.Errorf("%d syncs in an hour, want one in 30 s", got)
		}
		last := begin
		for _, at := range b.seen().syncs {
			if at.Sub(last) > time.Minute {
				t.Errorf("%v without a sync", at.Sub(last))
			}
			last = at
		}
		if age := time.Since(n.Stats().Sync); age > time.Minute {
			t.Errorf("Stats().Sync is %v ago", age)
		}
		if len(b.seen().starts) != 0 {
			t.Errorf("%d starts without a reason", len(b.seen().starts))
		}
	})
}

// TestOnChangeRepeats: whoever looks only when called looks twice a minute at least.
func TestOnChangeRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int64
		_, _ = bubbleNode(t, newStore(), Config{OnChange: func() { changes.Add(1) }})
		changes.Store(0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := changes.Load(); n < 119 || n > 130 {
			t.Errorf("OnChange was called %d times in an hour, want about twice a minute", n)
		}
	})
}

// TestPeersComeAndGo: every change is a complete set; a peer whose lease is deleted
// lingers, and goes.
func TestPeersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore()
		n, b := bubbleNode(t, store, Config{})
		var made []lease.Entry
		for i := range 3 {
			e, err := store.Create(t.Context(), fmt.Sprintf("10.5.%d.0-24", 200+i), fmt.Appendf(nil, `{"PublicIP":"198.51.100.%d"}`, i+1), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, e)
			time.Sleep(time.Second)
		}
		if err := store.Delete(t.Context(), made[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if len(n.Peers()) != 3 {
			t.Error("a peer is gone with its lease, at once: it may take it again")
		}
		time.Sleep(10 * time.Second)
		if _, err := store.Update(t.Context(), made[1], []byte(`{"PublicIP":"198.51.100.77"}`), time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if p := n.Peers(); len(p) != 2 || p[0].Attrs.PublicIP.String() != "198.51.100.77" {
			t.Errorf("peers %v, want two, one of them moved", p)
		}
		if got := fmt.Sprint(slices.Compact(b.seen().sets)); got != "[0 1 2 3 2]" {
			t.Errorf("the sets had %s peers", got)
		}
	})
}

// TestReadyWithoutStore: a Node that can't renew says so when its lease has run out, not
// before, and recovers.
func TestReadyWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &downStore{Store: newStore()}
		n, b := bubbleNode(t, store, Config{TTL: time.Hour, RenewMargin: 10 * time.Minute})
		store.set(true)
		time.Sleep(59 * time.Minute)
		if err := n.Ready(); err != nil {
			t.Errorf("Ready = %v with a lease that lives", err)
		}
		time.Sleep(2 * time.Minute)
		if err := n.Ready(); err == nil {
			t.Error("Ready = nil with a lease that has run out")
		}
		select {
		case <-n.Done():
			t.Error("it has ended")
		default:
		}
		store.set(false)
		time.Sleep(2 * time.Minute)
		if err := n.Ready(); err != nil {
			t.Errorf("Ready = %v after the store came back", err)
		}
		if len(b.seen().starts) != 1 {
			t.Errorf("%d starts", len(b.seen().starts))
		}
	})
}

// downStore is a store that can be down.
type downStore struct {
	*memory.Store
	mu         sync.Mutex
	down       bool
	reconnects int
}

func (s *downStore) Reconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reconnects++
}

func (s *downStore) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *downStore) state() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("test: connection refused")
	}
	return nil
}

func (s *downStore) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if err := s.state(); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Renew(ctx, old, ttl)
}

func (s *downStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	if err := s.state(); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *downStore) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	if err := s.state(); err != nil {
		return lease.Entry{}, err
	}
	return s.Store.Update(ctx, old, value, ttl)
}

// moved returns testHost at another address.
func moved(addr string) backend.Host {
	h := testHost
	h.Addr4, h.Public4 = netip.MustParseAddr(addr), netip.MustParseAddr(addr)
	return h
}

// TestHostMoves: the new address is in the lease and at the backend, once.
func TestHostMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore()
		n, b := bubbleNode(t, store, Config{})
		b.fail(nil)
		before := n.Lease()
		n.tell(moved("192.0.2.8"), nil)
		time.Sleep(time.Second)
		if len(b.seen().starts) != 1 || b.seen().hosts[0] != moved("192.0.2.8") || b.seen().owns[0].Key != before.Key || b.seen().owns[0].Attrs.PublicIP.String() != "192.0.2.8" {
			t.Errorf("starts %v with %v", b.seen().hosts, b.seen().owns)
		}
		if own := n.Lease(); own.Key != before.Key || own.Attrs.PublicIP.String() != "192.0.2.8" || n.Host() != moved("192.0.2.8") {
			t.Errorf("lease %v, host %v", own, n.Host())
		}
		l, err := store.List(t.Context())
		if err != nil || len(l.Entries) != 1 || string(l.Entries[0].Value) != `{"PublicIP":"192.0.2.8","PublicIPv6":null}` {
			t.Errorf("the store has %v, %v", l.Entries, err)
		}
		n.tell(moved("192.0.2.8"), nil) // nothing new
		jumbo := moved("192.0.2.8")
		jumbo.MTU = 9000
		n.tell(jumbo, nil)
		if len(b.seen().starts) != 2 || n.MTU() != 9000 {
			t.Errorf("%d starts, MTU %d", len(b.seen().starts), n.MTU())
		}
		if err := n.Ready(); err != nil {
			t.Error(err)
		}
	})
}

// TestStartFailsAtMove: it is tried again, not too often, Ready tells, and it recovers.
func TestStartFailsAtMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &downStore{Store: newStore()}
		n, b := bubbleNode(t, store, Config{})
		errPort := errors.New("test: the port is in use")
		b.fail(errPort)
		n.tell(moved("192.0.2.8"), nil)
		if err := n.Ready(); !errors.Is(err, errPort) {
			t.Errorf("Ready = %v, want why the backend did not start", err)
		}
		time.Sleep(time.Minute)
		if got := len(b.seen().starts); got < 10 || got > 30 {
			t.Errorf("%d starts in a minute, want one at least every 5 s, and slower and slower", got)
		}
		if store.reconnects != 1 {
			t.Errorf("the store had to connect again %d times, want once: its address has changed once", store.reconnects)
		}
		if n.Host() != testHost {
			t.Errorf("host %v, want the one that is in force", n.Host())
		}
		if age := time.Since(n.Stats().Sync); age > time.Minute {
			t.Errorf("no sync for %v: the peers still change", age)
		}
		b.fail(nil)
		time.Sleep(6 * time.Second)
		if err := n.Ready(); err != nil || n.Host() != moved("192.0.2.8") || len(b.seen().starts) != 1 {
			t.Errorf("Ready = %v, host %v, %d starts", err, n.Host(), len(b.seen().starts))
		}
		time.Sleep(time.Hour)
		if len(b.seen().starts) != 1 {
			t.Errorf("%d starts after the recovery", len(b.seen().starts))
		}
	})
}

// TestMoveAgainWhileFailing: the backend gets the last host, not the one it failed with.
func TestMoveAgainWhileFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore()
		n, b := bubbleNode(t, store, Config{})
		b.fail(errors.New("test: not now"))
		n.tell(moved("192.0.2.8"), nil)
		time.Sleep(time.Minute)
		b.fail(nil)
		n.tell(moved("192.0.2.9"), nil)
		if len(b.seen().hosts) != 1 || b.seen().hosts[0] != moved("192.0.2.9") || n.Ready() != nil {
			t.Errorf("started with %v, ready %v", b.seen().hosts, n.Ready())
		}
		b.fail(errors.New("test: not now"))
		n.tell(moved("192.0.2.8"), nil)
		b.fail(nil)
		n.tell(moved("192.0.2.9"), nil) // back to where it is in force
		time.Sleep(time.Minute)
		if len(b.seen().hosts) == 0 || b.seen().hosts[len(b.seen().hosts)-1] != moved("192.0.2.9") || n.Ready() != nil {
			t.Errorf("back again: started with %v, ready %v", b.seen().hosts, n.Ready())
		}
		if own := n.Lease(); own.Attrs.PublicIP.String() != "192.0.2.9" {
			t.Errorf("the lease says %v", own.Attrs.PublicIP)
		}
	})
}

// TestInterfaceGone: Ready tells, the lease and the backend stay, and all is well when
// it comes back.
func TestInterfaceGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b := bubbleNode(t, newStore(), Config{})
		b.fail(nil)
		errGone := errors.New("test: eth0 is gone")
		n.tell(backend.Host{}, errGone)
		if err := n.Ready(); !errors.Is(err, errGone) {
			t.Errorf("Ready = %v", err)
		}
		time.Sleep(10 * time.Minute)
		if len(b.seen().starts) != 0 || n.Host() != testHost || n.Lease().Attrs.PublicIP != testHost.Public4 {
			t.Errorf("%d starts, host %v, lease %v", len(b.seen().starts), n.Host(), n.Lease())
		}
		n.tell(testHost, nil)
		if err := n.Ready(); err != nil {
			t.Errorf("Ready = %v after it came back", err)
		}
		starts := len(b.seen().starts)
		time.Sleep(time.Hour)
		if starts > 1 || len(b.seen().starts) != starts {
			t.Errorf("%d starts at its return, %d afterwards", starts, len(b.seen().starts)-starts)
		}
	})
}

// TestMoveDuringOutage: the new address is in the lease when the store is back.
func TestMoveDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &downStore{Store: newStore()}
		n, b := bubbleNode(t, store, Config{})
		b.fail(nil)
		store.set(true)
		n.tell(moved("192.0.2.8"), nil)
		time.Sleep(5 * time.Minute)
		if len(b.seen().starts) != 1 || n.Host() != moved("192.0.2.8") {
			t.Errorf("%d starts, host %v: the backend must not wait for the store", len(b.seen().starts), n.Host())
		}
		store.set(false)
		time.Sleep(2 * time.Minute)
		if got := n.Lease().Attrs.PublicIP.String(); got != "192.0.2.8" {
			t.Errorf("the lease says %s", got)
		}
	})
}
