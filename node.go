package flannelkit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/extif"
	"github.com/flannelkit/flannelkit/lease"
)

// resync is how often the backend is asked to look whether everything is in place,
// even when nothing has changed.
const resync = 30 * time.Second

// A Node is this host's membership in a network. Its methods may be called from any
// goroutine.
//
// It is served by the registry's Run, which keeps the lease and follows the peers, by
// serve, the only one that calls the backend, and by watchInterface.
type Node struct {
	cfg       Config
	store     lease.Store
	registry  *lease.Registry
	network   lease.Network
	backend   backend.Backend
	data      lease.Attrs // what Prepare returned
	changed   chan struct{}
	oneFamily atomic.Bool // it is logged that peers are reached over one family only
	blind     atomic.Bool // that the underlay can't be looked at
	nested    atomic.Bool // that the network is a part of the underlay

	cancel  context.CancelCauseFunc
	ended   chan struct{} // the goroutines have ended
	lost    error         // why Run has ended by itself; to be read after ended
	done    chan struct{}
	closing sync.Once

	mu       sync.Mutex
	host     backend.Host
	own      lease.Lease
	peers    []lease.Lease
	mtu      int
	next     backend.Host // the interface as it is now
	nextErr  error        // or why there is none
	moved    bool         // one of these is new
	synced   bool
	lastSync time.Time
	startErr error // of the last Start
	syncErr  error // of the last Sync
	err      error // why it ended
	closeErr error
}

// Stats are a Node's counters and state.
type Stats struct {
	// Packets are the backend's counters, zero for a backend whose packets do
	// not pass through this process.
	Packets encap.Stats
	// Lease is the registry's part.
	Lease lease.Stats
	// Sync is when the backend was last brought in line with the peers. It is
	// at most a minute ago in a Node that works.
	Sync time.Time
	// SyncErr says which peers can't be served, and why; nil if all are.
	SyncErr error
}

// errClosed is the cause of a Node's end when Close or Release was called.
var errClosed = errors.New("flannelkit: the node was closed")

// Subnet returns this host's IPv4 subnet, the zero Prefix in a network without IPv4.
func (n *Node) Subnet() netip.Prefix { return n.Lease().Subnet }

// Subnet6 returns this host's IPv6 subnet, the zero Prefix in a network without IPv6.
func (n *Node) Subnet6() netip.Prefix { return n.Lease().Subnet6 }

// Network returns the network's configuration.
func (n *Node) Network() lease.Network { return n.network }

// Lease returns this host's lease.
func (n *Node) Lease() lease.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own
}

// MTU returns the MTU in bytes for containers.
func (n *Node) MTU() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mtu
}

// Host returns the external interface and its addresses.
func (n *Node) Host() backend.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.host
}

// Peers returns the other hosts' leases, in the order of their subnets.
func (n *Node) Peers() []lease.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.peers)
}

// Stats returns counters and state.
func (n *Node) Stats() Stats {
	s := Stats{Lease: n.registry.Stats()}
	if c, ok := n.backend.(backend.Counter); ok {
		s.Packets = c.Stats()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Sync, s.SyncErr = n.lastSync, n.syncErr
	return s
}

// Ready returns nil if this host has its lease and packets can flow, else what is
// wrong. It asks nobody, so it may be called often.
func (n *Node) Ready() error {
	select {
	case <-n.done:
		return fmt.Errorf("the node has ended: %w", n.cause())
	default:
	}
	n.mu.Lock()
	synced, startErr := n.synced, n.startErr
	n.mu.Unlock()
	switch expires := n.registry.Stats().Expires; {
	case !synced:
		return errors.New("the peers are not set up yet")
	case startErr != nil:
		return startErr
	case !expires.IsZero() && time.Now().After(expires):
		return fmt.Errorf("the lease has run out at %s and could not be renewed (is the lease store reachable?)", expires.Format(time.RFC3339))
	}
	if p, ok := n.backend.(backend.Prober); ok {
		return p.Probe()
	}
	return nil
}

// Done returns a channel that is closed when the Node has ended and nothing of it is
// left: after Close or Release, or when the lease was lost for good.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns why the Node has ended by itself, such as an error that wraps
// lease.ErrLost; nil while it lives, and after Close or Release.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// cause returns why the Node has ended.
func (n *Node) cause() error {
	if err := n.Err(); err != nil {
		return err
	}
	return errClosed
}

// Close ends the membership and waits until it has ended. The lease is kept in the
// store, as flannel does, so that this host gets the same subnet next time. Closing
// twice returns the same result.
func (n *Node) Close() error {
	n.finish(nil, n.cfg.KeepDevice)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closeErr
}

// Release is Close, and gives the lease back, so that another host may have the subnet
// at once. Containers that still have addresses in it must be gone by then. If the
// store can't be reached the Node is closed, and the error says that the lease stays.
// After Close only the lease is left to be given back: a device that was kept stays.
func (n *Node) Release(ctx context.Context) error {
	n.finish(nil, false)
	n.mu.Lock()
	err := n.closeErr
	n.mu.Unlock()
	return errors.Join(err, n.registry.Release(ctx))
}

// finish ends everything, once, with an error if it ended by itself.
func (n *Node) finish(err error, keep bool) {
	n.closing.Do(func() {
		n.stop()
		if n.lost != nil { // a moment before it was closed, maybe
			err, keep = n.lost, false // nothing of another's subnet may stay
		}
		closeErr := n.backend.Close(keep)
		n.mu.Lock()
		n.err, n.closeErr = err, closeErr
		n.mu.Unlock()
		close(n.done)
	})
	<-n.done
}

// stop ends the goroutines and waits for them.
func (n *Node) stop() {
	n.cancel(errClosed)
	<-n.ended
}

// start begins to serve, and returns a channel that is closed after the first Sync.
func (n *Node) start() (first <-chan struct{}) {
	ctx, cancel := context.WithCancelCause(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.registry.Run(ctx, n.report); ctx.Err() == nil || errors.Is(err, lease.ErrLost) {
			n.lost = err
			cancel(err)
		}
	})
	wg.Go(func() { n.serve(ctx, ready) })
	wg.Go(func() {
		n.watchInterface(ctx)
	})
	go func() {
		wg.Wait()
		close(n.ended)
		if n.lost != nil {
			n.cfg.Log.Info("the node ends", "why", n.lost)
			n.finish(n.lost, false)
		}
	}()
	return ready
}

// report takes what the registry knows.
func (n *Node) report(v lease.View) {
	n.mu.Lock()
	n.own, n.peers = v.Own, v.Peers
	n.mu.Unlock()
	n.poke()
}

// poke has serve look.
func (n *Node) poke() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// watchInterface tells serve what the external interface is now, until ctx ends.
func (n *Node) watchInterface(ctx context.Context) {
	for wait := leastWait; ; wait = min(2*wait, mostWait) {
		err := extif.Watch(ctx, n.cfg.Interface, n.network.IPv4.Enabled(), n.network.IPv6.Enabled(), func(h backend.Host, err error) {
			h, err = n.orOneFamily(ctx, h, err)
			n.mu.Lock()
			same := h == n.next && err == nil && n.nextErr == nil
			n.next, n.nextErr, n.moved = h, err, n.moved || !same
			n.mu.Unlock()
			if !same {
				n.poke()
			}
		})
		if ctx.Err() == nil && wait == leastWait {
			n.cfg.Log.Warn("changes of the external interface are not noticed, trying again", "err", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// serve is the only goroutine that calls the backend. ready is closed after the first
// Sync.
func (n *Node) serve(ctx context.Context, ready chan<- struct{}) {
	timer := time.NewTimer(resync) // the first report comes at once, and pokes
	defer timer.Stop()
	wait := leastWait
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-timer.C:
		}
		moved := n.move(ctx)
		synced := n.sync(ctx)
		if ctx.Err() != nil {
			return
		}
		if synced && ready != nil {
			close(ready)
			ready = nil
		}
		next := resync
		if moved != nil {
			next, wait = wait, min(2*wait, mostWait)
		} else {
			wait = leastWait
		}
		timer.Reset(next)
	}
}

// sync brings the backend in line with the peers. It reports whether there was a set of
// peers to do that with.
func (n *Node) sync(ctx context.Context) bool {
	n.mu.Lock()
	peers, known, before := n.peers, n.peers != nil, n.syncErr
	n.mu.Unlock()
	if !known {
		return false
	}
	err := n.backend.Sync(ctx, peers)
	if ctx.Err() != nil {
		return false
	}
	switch {
	case err != nil && (before == nil || err.Error() != before.Error()):
		n.cfg.Log.Warn("not all peers can be served", "err", err)
	case err == nil && before != nil:
		n.cfg.Log.Info("all peers can be served")
	}
	n.mu.Lock()
	n.synced, n.syncErr, n.lastSync = true, err, time.Now()
	n.mu.Unlock()
	if n.cfg.OnChange != nil {
		n.cfg.OnChange()
	}
	return true
}

// move follows a change of the external interface or its addresses, and returns an error
// if that is to be tried again.
func (n *Node) move(ctx context.Context) error {
	n.mu.Lock()
	next, err, moved, host, own, failed := n.next, n.nextErr, n.moved, n.host, n.own, n.startErr
	n.moved = false
	n.mu.Unlock()
	if !moved && failed == nil {
		return nil
	}
	if err == nil && moved && next != host {
		n.cfg.Log.Info("the external interface has changed", "interface", next.Link, "public4", next.Public4, "public6", next.Public6, "mtu", next.MTU)
		if r, ok := n.store.(lease.Reconnector); ok {
			r.Reconnect()
		}
	}
	if err == nil && (next != host || failed != nil) {
		err = n.startAt(ctx, next, own)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil && (failed == nil || failed.Error() != err.Error()) {
		n.cfg.Log.Warn("can't use the external interface, trying again", "err", err)
	}
	n.mu.Lock()
	n.startErr = err
	n.mu.Unlock()
	return err
}

// startAt tells the peers of this host's new address, and has the backend use it.
func (n *Node) startAt(ctx context.Context, host backend.Host, own lease.Lease) error {
	own.Attrs = n.attrs(host)
	if err := n.registry.SetAttrs(own.Attrs); err != nil {
		return err
	}
	mtu, err := n.backend.Start(ctx, host, own)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.host, n.mtu = host, mtu
	return nil
}
