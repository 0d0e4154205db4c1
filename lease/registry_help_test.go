package lease_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// A tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

const (
	network4  = `{"Network":"10.5.0.0/16"}`
	network46 = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`
	network6  = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`
)

// A cluster is some hosts on one store. Everything that it starts has ended when
// close returns, else the bubble of synctest that it lives in does not end.
type cluster struct {
	t     tester
	mem   *memory.Store // an operator's way to the store
	hosts []*simHost
}

func newCluster(t tester, network string) *cluster {
	return &cluster{t: t, mem: memory.New(memory.Config{Network: network})}
}

// close stops all hosts.
func (c *cluster) close() {
	for _, h := range c.hosts {
		h.stop()
	}
}

// A simHost is one Registry, and what it has reported.
type simHost struct {
	t     tester
	reg   *lease.Registry
	store *tap
	log   *journal
	attrs lease.Attrs

	cancel context.CancelFunc // nil if not running
	done   chan struct{}
	err    error // Run's

	mu    sync.Mutex
	fresh bool // Run has begun, and reported nothing yet
	views []lease.View
	at    []time.Time
}

// addr4 returns a public address.
func addr4(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(2 + n>>8), byte(n)}) }

// value returns what a host of the udp backend stores.
func value(n int) string { return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null}`, addr4(n)) }

// safeRand is a seeded source that any goroutine may ask.
func safeRand(seed uint64) func(uint64) uint64 {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 20))
	return func(n uint64) uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64N(n)
	}
}

// host adds a host with a public address of that number, which has done nothing yet.
func (c *cluster) host(n int, edit ...func(*lease.RegistryConfig)) *simHost {
	h := &simHost{t: c.t, store: newTap(c.mem.Share()), log: new(journal), attrs: lease.Attrs{PublicIP: addr4(n)}}
	cfg := lease.RegistryConfig{Rand: safeRand(uint64(n)), Log: h.log.logger()}
	for _, e := range edit {
		e(&cfg)
	}
	h.reg = lease.NewRegistry(h.store, cfg)
	c.hosts = append(c.hosts, h)
	return h
}

// start adds n hosts that run.
func (c *cluster) start(n int, edit ...func(*lease.RegistryConfig)) []*simHost {
	var all []*simHost
	for range n {
		h := c.host(len(c.hosts)+1, edit...)
		h.join()
		h.run()
		all = append(all, h)
	}
	settle(time.Second)
	return all
}

// settle lets virtual time pass, and everything be done that is due by then.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// join takes a lease.
func (h *simHost) join() lease.Lease {
	h.t.Helper()
	l, err := h.tryJoin(context.Background())
	if err != nil {
		h.t.Fatalf("%s: join: %v", h.attrs.PublicIP, err)
	}
	return l
}

func (h *simHost) tryJoin(ctx context.Context) (lease.Lease, error) {
	if _, err := h.reg.Network(ctx); err != nil {
		return lease.Lease{}, err
	}
	return h.reg.Acquire(ctx, h.attrs)
}

// run starts Run.
func (h *simHost) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	h.cancel, h.done = cancel, done
	h.mu.Lock()
	h.fresh = true // another Run begins with what the last one has said
	h.mu.Unlock()
	go func() {
		defer close(done)
		h.err = h.reg.Run(ctx, h.report)
	}()
}

// report takes a view, and checks what holds for every one.
func (h *simHost) report(v lease.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := soundView(v); err != nil {
		h.t.Errorf("%s: %v", h.attrs.PublicIP, err)
	}
	if n := len(h.views); n > 0 && !h.fresh && sameView(h.views[n-1], v) {
		h.t.Errorf("%s: the same view twice: %v", h.attrs.PublicIP, keysOf(v.Peers))
	}
	h.fresh = false
	h.views, h.at = append(h.views, v), append(h.at, time.Now())
}

// soundView returns what is wrong with a view by itself.
func soundView(v lease.View) error {
	for i, p := range v.Peers {
		switch {
		case p.Key == v.Own.Key:
			return fmt.Errorf("own lease %s is among the peers", p.Key)
		case i > 0 && v.Peers[i-1].Prefixes()[0].Addr().Compare(p.Prefixes()[0].Addr()) > 0:
			return fmt.Errorf("peers are not in order: %v", keysOf(v.Peers))
		case i > 0 && v.Peers[i-1].Key == p.Key:
			return fmt.Errorf("peer %s twice", p.Key)
		case p.Attrs.PublicIP.IsValid() && p.Attrs.PublicIP == v.Own.Attrs.PublicIP:
			return fmt.Errorf("peer %s is this host itself", p.Key)
		case !p.Attrs.PublicIP.IsValid() && !p.Attrs.PublicIPv6.IsValid():
			return fmt.Errorf("peer %s has no address", p.Key)
		}
	}
	if !v.Own.Attrs.PublicIP.IsValid() && !v.Own.Attrs.PublicIPv6.IsValid() {
		return fmt.Errorf("own lease %s is reported without an address", v.Own.Key)
	}
	return nil
}

// sameView reports whether two views say the same, revisions aside.
func sameView(a, b lease.View) bool {
	eq := func(x, y lease.Lease) bool {
		return x.Key == y.Key && x.Reserved == y.Reserved && x.Attrs.Equal(y.Attrs)
	}
	return eq(a.Own, b.Own) && slices.EqualFunc(a.Peers, b.Peers, eq)
}

// stop ends Run as a signal would, and returns its error.
func (h *simHost) stop() error {
	if h.cancel == nil {
		return h.err
	}
	h.cancel()
	<-h.done
	h.cancel = nil
	return h.err
}

// ended reports whether Run has returned by itself.
func (h *simHost) ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// seen returns the views so far.
func (h *simHost) seen() []lease.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.views)
}

// last returns the latest view.
func (h *simHost) last() lease.View {
	all := h.seen()
	if len(all) == 0 {
		h.t.Fatalf("%s has reported nothing", h.attrs.PublicIP)
	}
	return all[len(all)-1]
}

// key returns the subnet of the host.
func (h *simHost) key() lease.Key {
	l, held := h.reg.Lease()
	if !held {
		h.t.Fatalf("%s holds no lease", h.attrs.PublicIP)
	}
	return l.Key
}

// has fails unless the latest view has exactly these peers.
func (h *simHost) has(peers ...*simHost) {
	h.t.Helper()
	var want []string
	for _, p := range peers {
		want = append(want, p.key().String())
	}
	h.hasKeys(want...)
}

func (h *simHost) hasKeys(want ...string) {
	h.t.Helper()
	got := keysOf(h.last().Peers)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		h.t.Errorf("%s has peers %v, want %v", h.attrs.PublicIP, got, want)
	}
}

// neverWithout fails if some view from number `from` on lacks one of the keys.
func (h *simHost) neverWithout(from int, keys ...lease.Key) {
	h.t.Helper()
	for i, v := range h.seen()[from:] {
		for _, k := range keys {
			if !slices.ContainsFunc(v.Peers, func(l lease.Lease) bool { return l.Key == k }) {
				h.t.Errorf("%s: view %d lacks peer %s, has %v", h.attrs.PublicIP, from+i, k, keysOf(v.Peers))
			}
		}
	}
}

func keysOf(all []lease.Lease) []string {
	keys := make([]string, 0, len(all))
	for _, l := range all {
		keys = append(keys, l.Key.String())
	}
	return keys
}

// entry returns what the store has for a key.
func (c *cluster) entry(key string) (lease.Entry, bool) {
	l, err := c.mem.List(context.Background())
	if err != nil {
		c.t.Fatalf("list: %v", err)
	}
	i := slices.IndexFunc(l.Entries, func(e lease.Entry) bool { return e.Key == key })
	if i < 0 {
		return lease.Entry{}, false
	}
	return l.Entries[i], true
}

// entries returns everything in the store.
func (c *cluster) entries() []lease.Entry {
	l, err := c.mem.List(context.Background())
	if err != nil {
		c.t.Fatalf("list: %v", err)
	}
	slices.SortFunc(l.Entries, func(a, b lease.Entry) int { return strings.Compare(a.Key, b.Key) })
	return l.Entries
}

// put writes a key as an operator does, whatever is there; ttl 0 is for ever.
func (c *cluster) put(key, value string, ttl time.Duration) lease.Entry {
	c.t.Helper()
	ctx := context.Background()
	e, err := c.mem.Create(ctx, key, []byte(value), ttl)
	if errors.Is(err, lease.ErrExists) {
		old, _ := c.entry(key)
		e, err = c.mem.Update(ctx, old, []byte(value), ttl)
	}
	if err != nil {
		c.t.Fatalf("put %s: %v", key, err)
	}
	return e
}

// remove deletes a key as an operator does.
func (c *cluster) remove(key string) {
	c.t.Helper()
	if e, ok := c.entry(key); ok {
		if err := c.mem.Delete(context.Background(), e); err != nil {
			c.t.Fatalf("delete %s: %v", key, err)
		}
	}
}

// untouched fails unless the store has exactly this entry.
func (c *cluster) untouched(want lease.Entry) {
	c.t.Helper()
	got, ok := c.entry(want.Key)
	if !ok || got.Revision != want.Revision || string(got.Value) != string(want.Value) || got.Permanent != want.Permanent {
		c.t.Errorf("entry %s is (%t) revision %d %q permanent %t, want revision %d %q permanent %t",
			want.Key, ok, got.Revision, got.Value, got.Permanent, want.Revision, want.Value, want.Permanent)
	}
}

// disjoint fails if two keys in the store overlap.
func (c *cluster) disjoint() {
	c.t.Helper()
	all := c.entries()
	for i, a := range all {
		for _, b := range all[:i] {
			ka, errA := lease.ParseKey(a.Key)
			kb, errB := lease.ParseKey(b.Key)
			if errA == nil && errB == nil && ka.Overlaps(kb) {
				c.t.Errorf("%s (%s) and %s (%s) overlap", a.Key, a.Value, b.Key, b.Value)
			}
		}
	}
}

// down takes the store away from every host, or brings it back.
func (c *cluster) down(down bool) {
	for _, h := range c.hosts {
		h.store.setDown(down)
	}
}

// short makes times to live short.
func ttl(ttl, margin time.Duration) func(*lease.RegistryConfig) {
	return func(c *lease.RegistryConfig) { c.TTL, c.RenewMargin = ttl, margin }
}

// snapshot is a backup of the store.
func (c *cluster) snapshot() []lease.Entry { return c.entries() }

// restore puts a store that was made of a backup in the place of the one that runs: the
// same cluster, at a lower revision.
func (c *cluster) restore(backup []lease.Entry) {
	c.t.Helper()
	config, err := c.mem.Config(context.Background())
	if err != nil {
		c.t.Fatalf("config: %v", err)
	}
	c.mem = memory.New(memory.Config{Network: string(config)})
	for _, e := range backup {
		c.put(e.Key, string(e.Value), e.TTL)
	}
	for _, h := range c.hosts {
		h.store.swap(c.mem.Share())
	}
}
