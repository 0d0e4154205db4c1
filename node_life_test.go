package flannelkit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// TestNodeServes: the calls of the backend, what the Node tells, and what is left.
func TestNodeServes(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	addPeer(t, store.Store, "10.5.7.0-24", "192.0.2.7")
	n := joinFake(t, store, b, func(c *flannelkit.Config) {
		c.Interface.PublicIP = "192.0.2.9"
	})
	if err := n.Ready(); err != nil {
		t.Errorf("Ready = %v after Join", err)
	}
	own := netip.MustParsePrefix("10.5.9.0/24")
	if n.Subnet() != own || n.Subnet6().IsValid() || n.Lease().Subnet != own || n.Network().BackendType != "fake" {
		t.Errorf("subnets %v, %v, lease %v, network %v", n.Subnet(), n.Subnet6(), n.Lease(), n.Network())
	}
	if h := n.Host(); h.Addr4.String() != here || h.Public4.String() != "192.0.2.9" || n.MTU() != h.MTU-28 {
		t.Errorf("host %+v, MTU %d", h, n.MTU())
	}
	if s := n.Stats(); s.Packets.RX.Packets != 42 || s.Sync.IsZero() || s.SyncErr != nil || s.Lease.Expires.IsZero() {
		t.Errorf("stats %+v", s)
	}
	value := string(entries(t, store.Store)["10.5.9.0-24"].Value)
	if want := `{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"fake","BackendData":{"Key":1}}`; value != want {
		t.Errorf("the lease is %s, want %s", value, want)
	}
	if b.params.Log == nil || b.params.Network.IPv4.Prefix.String() != "10.5.0.0/16" {
		t.Errorf("the backend was made with %+v", b.params)
	}
	for _, op := range []string{"prepare", "start", "sync"} {
		c := <-b.calls
		if c.op != op {
			t.Fatalf("call of %s, want %s", c.op, op)
		}
		if op == "start" && (c.own.Subnet != own || c.host != n.Host() || c.own.Attrs.PublicIP.String() != "192.0.2.9") {
			t.Errorf("started with %+v", c)
		}
		if op == "sync" && fmt.Sprint(subnets(c.peers)) != "[10.5.7.0/24]" {
			t.Errorf("the first set of peers is %v", c.peers)
		}
	}
	addPeer(t, store.Store, "10.5.3.0-24", "192.0.2.3")
	c := b.next(t, "sync", nil) // and not the first set once more
	if got := fmt.Sprint(subnets(c.peers)); got != "[10.5.3.0/24 10.5.7.0/24]" {
		t.Errorf("a new peer: the set is %s, want both in order", got)
	}
	if peers := n.Peers(); !slices.Equal(subnets(peers), subnets(c.peers)) {
		t.Errorf("Peers = %v", peers)
	} else {
		peers[0] = lease.Lease{} // it is the caller's
		if !n.Peers()[0].Subnet.IsValid() {
			t.Error("Peers does not return a copy")
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if c := b.next(t, "close", nil); c.keep {
		t.Error("closed with keep, without KeepDevice")
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Ready = %v after Close", err)
	}
	if n.Err() != nil {
		t.Errorf("Err = %v after Close", n.Err())
	}
	if len(n.Peers()) != 2 || n.Subnet() != own || n.Stats().Packets.RX.Packets != 42 {
		t.Error("what the Node was is lost with Close")
	}
	if string(entries(t, store.Store)["10.5.9.0-24"].Value) != value {
		t.Error("Close did not keep the lease")
	}
}

// TestNodeRestart: the same subnet again, by the public address.
func TestNodeRestart(t *testing.T) {
	noLeaks(t)
	store := newScripted(fakeNetwork)
	var first netip.Prefix
	for i := range 3 {
		b := newFake()
		n := joinFake(t, store.Share(), b, func(c *flannelkit.Config) { c.KeepDevice = true })
		if i == 0 {
			first = n.Subnet()
		}
		if n.Subnet() != first {
			t.Errorf("subnet %v after restart %d, was %v", n.Subnet(), i, first)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if c := b.next(t, "close", nil); !c.keep {
			t.Error("closed without keep, with KeepDevice")
		}
	}
	if n := len(entries(t, store.Store)); n != 1 {
		t.Errorf("%d leases", n)
	}
}

// TestNodeAlone is ready without peers.
func TestNodeAlone(t *testing.T) {
	noLeaks(t)
	b := newFake()
	n := joinFake(t, newScripted(fakeNetwork), b, nil)
	if err := n.Ready(); err != nil || len(n.Peers()) != 0 {
		t.Errorf("Ready = %v, peers %v", err, n.Peers())
	}
	errProbe := errors.New("test: no packets")
	b.mu.Lock()
	b.probe = errProbe
	b.mu.Unlock()
	if err := n.Ready(); !errors.Is(err, errProbe) {
		t.Errorf("Ready = %v, want what the backend's Probe says", err)
	}
}

// TestNodeAlloc is the zero Config but for the interface, without any privilege.
func TestNodeAlloc(t *testing.T) {
	noLeaks(t)
	store := newScripted(`{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}`)
	n, err := flannelkit.Join(t.Context(), store, flannelkit.Config{Interface: flannelkit.Interface{Names: []string{here}}})
	if err != nil {
		t.Fatal(err)
	}
	if n.MTU() != n.Host().MTU || n.MTU() == 0 || n.Subnet().Bits() != 24 || n.Ready() != nil {
		t.Errorf("MTU %d of %d, subnet %v, ready %v", n.MTU(), n.Host().MTU, n.Subnet(), n.Ready())
	}
	if e := entries(t, store.Store); len(e) != 1 || !strings.Contains(string(e[lease.Key{Subnet: n.Subnet()}.String()].Value), `{"PublicIP":"127.0.0.1","PublicIPv6":null}`) {
		t.Errorf("entries %v", e)
	}
	if err := n.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if e := entries(t, store.Store); len(e) != 0 {
		t.Errorf("entries %v after Release", e)
	}
}

// TestNodeRetakes: a lease that was deleted is taken again; the backend is not started
// anew, and no peer is withdrawn.
func TestNodeRetakes(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	addPeer(t, store.Store, "10.5.255.0-24", "192.0.2.3")
	n := joinFake(t, store, b, nil)
	key := lease.Key{Subnet: n.Subnet()}.String()
	old := entries(t, store.Store)[key]
	if err := store.Store.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the lease is taken again", func() bool { return n.Stats().Lease.Retaken == 1 })
	if e := entries(t, store.Store)[key]; string(e.Value) != string(old.Value) {
		t.Errorf("the lease was %s and is %s", old.Value, e.Value)
	}
	if err := n.Ready(); err != nil {
		t.Errorf("Ready = %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for len(b.calls) > 0 {
		if c := <-b.calls; c.op == "sync" && len(c.peers) != 1 {
			t.Errorf("a sync with %v in between", c.peers)
		}
	}
	if b.count("start") != 1 {
		t.Errorf("%d starts", b.count("start"))
	}
}

// TestNodeSyncError: peers that can't be served do not end the Node.
func TestNodeSyncError(t *testing.T) {
	noLeaks(t)
	store, b, log := newScripted(fakeNetwork), newFake(), &testlog.Messages{}
	errPeer := errors.New("test: peer 10.5.255.0/24 can't be served")
	b.on = func(_ context.Context, c call, _ int) error {
		if c.op == "sync" && len(c.peers) < 3 {
			return errPeer
		}
		return nil
	}
	changes := make(chan struct{}, 1000)
	n := joinFake(t, store, b, func(c *flannelkit.Config) {
		c.Log = log.Logger()
		c.OnChange = func() { changes <- struct{}{} }
	})
	if s := n.Stats(); !errors.Is(s.SyncErr, errPeer) || s.Sync.IsZero() {
		t.Errorf("stats %+v", s)
	}
	for i := range 3 {
		addPeer(t, store.Store, fmt.Sprintf("10.5.%d.0-24", 200+i), fmt.Sprintf("192.0.2.%d", i+1))
		waitFor(t, "all peers are there", func() bool { return len(n.Peers()) == i+1 })
		if i < 2 && !errors.Is(n.Stats().SyncErr, errPeer) {
			t.Errorf("SyncErr = %v", n.Stats().SyncErr)
		}
	}
	waitFor(t, "no error is left", func() bool { return n.Stats().SyncErr == nil })
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	if len(log.With("WARN", "not all peers")) != 1 || len(log.With("INFO", "all peers can be served")) != 1 {
		t.Errorf("the log is\n%s", strings.Join(log.With(), "\n"))
	}
	if len(changes) < 2 {
		t.Errorf("OnChange was called %d times", len(changes))
	}
}

// TestNodeOnChange is called by one goroutine at a time, and may ask the Node.
func TestNodeOnChange(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	var busy, ended atomic.Bool
	var node atomic.Pointer[flannelkit.Node]
	seen := make(chan int, 1000)
	n := joinFake(t, store, b, func(c *flannelkit.Config) {
		c.OnChange = func() {
			if !busy.CompareAndSwap(false, true) {
				t.Error("OnChange is called twice at once")
			}
			defer busy.Store(false)
			if ended.Load() {
				t.Error("OnChange is called after Close")
			}
			if n := node.Load(); n != nil {
				_, _, _, _ = n.Stats(), n.Ready(), n.MTU(), n.Host()
				seen <- len(n.Peers())
			}
			time.Sleep(time.Millisecond) // longer than a change takes to come
		}
	})
	node.Store(n)
	const peers = 50
	var all sync.WaitGroup
	for i := range peers {
		all.Go(func() {
			addPeer(t, store.Store.Share(), fmt.Sprintf("10.5.%d.0-24", 200+i), fmt.Sprintf("198.51.100.%d", i+1))
		})
	}
	all.Wait()
	timeout := time.After(patience)
	for got := 0; got < peers; {
		select {
		case got = <-seen:
		case <-timeout:
			t.Fatalf("OnChange has seen %d of %d peers", got, peers)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	ended.Store(true)
}

// TestNodeReservation never runs out.
func TestNodeReservation(t *testing.T) {
	noLeaks(t)
	store, b := newScripted(fakeNetwork), newFake()
	if _, err := store.Store.Create(t.Context(), "10.5.77.0-24", []byte(`{"PublicIP":"127.0.0.1"}`), 0); err != nil {
		t.Fatal(err)
	}
	n := joinFake(t, store, b, nil)
	if !n.Lease().Reserved || n.Subnet().String() != "10.5.77.0/24" || n.Ready() != nil {
		t.Errorf("lease %+v, ready %v", n.Lease(), n.Ready())
	}
	if err := n.Release(t.Context()); err != nil || len(entries(t, store.Store)) != 1 {
		t.Errorf("Release = %v; %d entries, want the reservation to stay", err, len(entries(t, store.Store)))
	}
}

// TestNodesShareProcess: two networks, two backends, nothing in common.
func TestNodesShareProcess(t *testing.T) {
	noLeaks(t)
	var nodes []*flannelkit.Node
	var fakes []*fakeBackend
	for i := range 2 {
		b := newFake()
		store := newScripted(fmt.Sprintf(`{"Network": "10.%d.0.0/16", "Backend": {"Type": "fake"}}`, 5+i))
		nodes, fakes = append(nodes, joinFake(t, store, b, nil)), append(fakes, b)
	}
	if err := nodes[0].Close(); err != nil {
		t.Error(err)
	}
	if nodes[1].Ready() != nil || fakes[1].count("close") != 0 || nodes[1].Subnet().Overlaps(nodes[0].Subnet()) {
		t.Error("the second network has noticed the end of the first")
	}
}

// TestBackendsAreTheCallers: DefaultBackends is a new map each time.
func TestBackendsAreTheCallers(t *testing.T) {
	flannelkit.DefaultBackends()["mine"] = func(backend.Params) (backend.Backend, error) { return nil, errStop }
	names := slices.Sorted(maps.Keys(flannelkit.DefaultBackends()))
	// Not among them: what runs commands out of the store, and what needs a cloud's SDK.
	if want := []string{"alloc", "host-gw", "ipip", "udp", "vxlan", "wireguard"}; !slices.Equal(names, want) {
		t.Errorf("the default backends are %v, want %v", names, want)
	}
}
