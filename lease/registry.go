package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	// DefaultTTL is how long a lease lives without being renewed, as flannel's.
	DefaultTTL = 24 * time.Hour
	// DefaultRenewMargin is how long before its end a lease is renewed, as flannel's
	// --subnet-lease-renew-margin.
	DefaultRenewMargin = time.Hour
	// DefaultLinger is how long a peer whose lease was deleted is still a peer.
	DefaultLinger = 5 * time.Second
	// DefaultResync is how often all leases are listed anew, in case that
	// something was missed: one request.
	DefaultResync = 5 * time.Minute
)

var (
	// ErrLost is wrapped by the error with which Run ends when another host has
	// our subnet.
	ErrLost = errors.New("lease: the subnet is another's")
	// ErrNetwork is wrapped by Registry.Network's error when there is a network
	// configuration, and it can't be used. To ask again does not help.
	ErrNetwork = errors.New("lease: bad network config")
	// ErrAttrs is wrapped by the error about attributes that no host could read: no
	// public address, or backend data that is no JSON.
	ErrAttrs = errors.New("lease: bad attributes")
	// ErrNoSubnet is wrapped by Acquire's error when all subnets are leased, or those
	// that are not overlap what RegistryConfig.Avoid names.
	ErrNoSubnet = errors.New("lease: no free subnet")
	// ErrRunning is returned by calls that can't be made while Run runs.
	ErrRunning = errors.New("lease: the registry is running")
	// ErrNotHeld is returned by calls that need a lease when Acquire has not
	// been called, or the lease was released.
	ErrNotHeld = errors.New("lease: no lease is held")
)

// A RegistryConfig has what a Registry may be told. The zero value is flannel's
// behaviour.
type RegistryConfig struct {
	// Previous is the subnet to ask for if this host has no lease: the one it
	// had before, from subnet.env. Either family may be missing.
	Previous Key
	// Avoid returns what the host's own network uses: prefixes of either family and
	// any length, in any order. A subnet that overlaps one of them is not chosen,
	// Previous included, since its route would lead the host's own traffic into the
	// overlay (flannel issue 611). A lease that this host has already is kept, with
	// a warning. It is called at each choosing by the goroutine that called
	// Acquire, and what it returns is not changed. nil means that there is nothing
	// to avoid.
	Avoid func() []netip.Prefix
	// TTL is how long the lease lives without being renewed; 0 and below means DefaultTTL.
	// It is rounded up to whole seconds by etcd.
	TTL time.Duration
	// RenewMargin is how long before its end the lease is renewed; 0 means
	// DefaultRenewMargin. A margin that is not below TTL means half of TTL.
	RenewMargin time.Duration
	// Linger is how long a peer whose lease was deleted or has expired is still
	// a peer, in case that it takes its lease again; 0 means DefaultLinger, a
	// negative value not at all. Peers that vanish because the store itself was
	// wiped or restored linger for TTL.
	Linger time.Duration
	// Resync is how often all leases are listed anew; 0 means DefaultResync.
	Resync time.Duration
	// Rand returns a random number below n; nil means math/rand/v2. It is called
	// from several goroutines.
	Rand func(n uint64) uint64
	// Log gets changes of state, never secrets; nil means none.
	Log *slog.Logger
}

// withDefaults fills in what is zero.
func (c RegistryConfig) withDefaults() RegistryConfig {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	def(&c.TTL, DefaultTTL)
	def(&c.RenewMargin, DefaultRenewMargin)
	if c.Linger == 0 {
		c.Linger = DefaultLinger
	}
	def(&c.Resync, DefaultResync)
	if c.RenewMargin >= c.TTL {
		c.RenewMargin = c.TTL / 2
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64N
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Registry is one host's part in a network: it takes a lease out of a Store, keeps
// it, and tells who the peers are. Its methods may be called from any goroutine.
//
// The order is Network, Acquire, Run; all may be called again after an error. The
// Store stays the caller's.
type Registry struct {
	store Store
	cfg   RegistryConfig
	log   *slog.Logger
	wake  chan struct{} // Run looks at want; capacity 1

	mu        sync.Mutex
	running   bool
	rawConfig string // as Network has read it
	network   Network
	held      bool
	own       Lease
	entry     Entry                 // the store's, as we know it
	expires   time.Time             // zero for a reservation
	want      Attrs                 // what own shall become
	announced map[netip.Addr]uint64 // public addresses that our lease has had, and when that entry was created
	first     Listing               // the listing that Run starts from, after Acquire
	roster    *roster               // what Run goes on from, after another Run; only Run uses it
	stats     Stats
}

// Stats are a Registry's counters and state.
type Stats struct {
	// Renewals that succeeded.
	Renewals uint64
	// RenewErrors: renewals that failed, and were or will be repeated.
	RenewErrors uint64
	// StoreErrors: calls of the store that failed, renewals included.
	StoreErrors uint64
	// Retaken: how often our lease was gone and has been taken again.
	Retaken uint64
	// Conflicts: how often an entry was not as this host had seen it, mostly
	// because another host was faster.
	Conflicts uint64
	// Relists: how often all leases had to be listed again, the periodic ones
	// included.
	Relists uint64
	// Unreadable: entries that were skipped because they could not be read,
	// each value counted once.
	Unreadable uint64
	// UnreadableNow is how many of the store's entries can't be read at present: 0
	// again when they have been mended or removed.
	UnreadableNow int
	// Peers is the number of other hosts' leases.
	Peers int
	// LastContact is when the store has last answered.
	LastContact time.Time
	// Expires is when our lease ends unless it is renewed; the zero Time for a
	// reservation.
	Expires time.Time
}

// NewRegistry returns a Registry that has done nothing yet.
func NewRegistry(store Store, cfg RegistryConfig) *Registry {
	cfg = cfg.withDefaults()
	return &Registry{store: store, cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), announced: make(map[netip.Addr]uint64)}
}

// Network reads the network's configuration. The error is the store's, ErrNoConfig if
// there is none yet, or says what is wrong with it.
func (r *Registry) Network(ctx context.Context) (Network, error) {
	raw, err := r.store.Config(ctx)
	if err != nil {
		if !errors.Is(err, ErrNoConfig) {
			r.failed()
		}
		return Network{}, err
	}
	r.contact()
	n, err := ParseNetwork(raw)
	if err != nil {
		return Network{}, &networkError{err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.network, r.rawConfig = n, string(raw)
	return n, nil
}

// A networkError is ParseNetwork's error, and ErrNetwork.
type networkError struct{ error }

func (e *networkError) Is(target error) bool { return target == ErrNetwork }
func (e *networkError) Unwrap() error        { return e.error }

// Lease returns the lease held, and whether one is.
func (r *Registry) Lease() (Lease, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.own, r.held
}

// Stats returns the counters.
func (r *Registry) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Expires = r.expires
	return s
}

// SetAttrs changes what the lease says of this host, such as its public address. It
// returns at once; Run writes it, and keeps trying while the store can't be reached. The
// error is about attributes that no host could read; nothing is changed then.
func (r *Registry) SetAttrs(a Attrs) error {
	a = a.canonical()
	if err := a.check(); err != nil {
		return err
	}
	r.mu.Lock()
	r.want = a
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// Release gives the lease back, so that another host may have the subnet at once. A
// reservation stays. It returns ErrRunning while Run runs. A lease that is another's
// by now is left alone, and that is no error.
func (r *Registry) Release(ctx context.Context) error {
	r.mu.Lock()
	entry, held, running := r.entry, r.held, r.running
	r.mu.Unlock()
	switch {
	case running:
		return ErrRunning
	case !held:
		return nil
	}
	if !entry.Permanent {
		if err := r.giveBack(ctx, entry); err != nil {
			return fmt.Errorf("lease: release %s: %w (it ends by itself after its time to live)", entry.Key, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = false
	return nil
}

// giveBack removes our entry. One that is not as we know it may still be ours: the
// answer to our last write may have been lost.
func (r *Registry) giveBack(ctx context.Context, entry Entry) error {
	err := r.store.Delete(ctx, entry)
	if errors.Is(err, ErrConflict) {
		r.contact()
		var l Listing
		if l, err = r.store.List(ctx); err == nil {
			for _, e := range l.Entries {
				if now, bad := parseEntry(e); e.Key == entry.Key && bad == nil && !e.Permanent && r.ours(now.Attrs, e.Created) {
					err = r.store.Delete(ctx, e)
				}
			}
		}
	}
	if err != nil && !errors.Is(err, ErrConflict) {
		r.failed()
		return err
	}
	r.contact()
	return nil
}

// ours reports whether the value of an entry may be this host's own word: what it says,
// will say, or has said before in the same entry. In another one, a former address of
// ours is that of whoever has it now.
func (r *Registry) ours(a Attrs, created uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, before := r.announced[a.public()]
	return a.sameHost(r.own.Attrs) || a.sameHost(r.want) || before && in != 0 && in == created
}

// hold makes an entry written at a time our lease.
func (r *Registry) hold(e Entry, key Key, attrs Attrs, asked time.Time) Lease {
	own := Lease{Key: key, Attrs: attrs, Reserved: e.Permanent, Revision: e.Revision}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Created == 0 && r.held && e.Key == r.entry.Key {
		e.Created = r.entry.Created
	}
	r.announced[attrs.public()] = e.Created
	r.held, r.own, r.entry, r.expires = true, own, e, time.Time{}
	if !e.Permanent {
		r.expires = asked.Add(e.TTL)
	}
	return own
}

// ttlOf returns what an entry of ours is written with: reservations stay what they are.
func (r *Registry) ttlOf(e Entry) time.Duration {
	if e.Permanent {
		return 0
	}
	return r.cfg.TTL
}

// contact notes that the store has answered, failed that it has not.
func (r *Registry) contact() { r.count(func(s *Stats) { s.LastContact = time.Now() }) }
func (r *Registry) failed()  { r.count(func(s *Stats) { s.StoreErrors++ }) }

// count changes the counters.
func (r *Registry) count(change func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.stats)
}
