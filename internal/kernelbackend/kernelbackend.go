// Package kernelbackend is what backends have in common whose packets the kernel
// carries: they only say what links, neighbours and routes there shall be (package
// netstate), for the peers that they can serve (package peerset).
package kernelbackend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// A Config is what makes a backend of its own.
type Config struct {
	// Name is flannel's name of it; the leases of its hosts have it as their
	// BackendType.
	Name string
	// Params are the ones of backend.New.
	Params backend.Params
	// Tunnel is peerset's: packets are put into others.
	Tunnel bool
	// Prepare is backend.Backend's.
	Prepare func(ctx context.Context, host backend.Host) (lease.Attrs, error)
	// MTU returns the MTU in bytes for containers, or why the host can't be
	// served. It is called before anything is touched.
	MTU func(host backend.Host, own lease.Lease) (int, error)
	// End is peerset's.
	End func(s Situation, l lease.Lease, subnet netip.Prefix) (at netip.Addr, why string)
	// Plan says what there shall be, as netstate.Config.Plan does. Area and
	// Prune of the State are filled in, and Watch with the external interface.
	Plan func(s Situation, k netstate.Kernel) (netstate.State, error)
	// Closed, if not nil, is called by Close after all else, for what the backend
	// holds besides.
	Closed func(keep bool) error
}

// A Situation is all that a plan depends on.
type Situation struct {
	// Host is this machine.
	Host backend.Host
	// Own is its lease.
	Own lease.Lease
	// Self is what can't be a peer's.
	Self peerset.Self
	// Peers are those that can be served; nil before the first Sync.
	Peers []peerset.Peer
}

// A Backend implements backend.Backend and backend.Prober.
type Backend struct {
	cfg     Config
	log     *slog.Logger
	chooser peerset.Chooser

	mu     sync.Mutex // guards what follows; Probe may be called at any time
	keeper *netstate.Keeper
	closed bool

	// Written between rounds (netstate.Keeper.Apply), read in rounds.
	now    Situation
	synced bool

	leases []lease.Lease // of the last Sync; for Start and Sync alone
}

// New returns a backend that has touched nothing yet.
func New(cfg Config) *Backend {
	log := cfg.Params.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Backend{cfg: cfg, log: log, chooser: peerset.Chooser{
		Backend: cfg.Name, Types: []string{cfg.Name}, Network: cfg.Params.Network, Tunnel: cfg.Tunnel, Log: log,
	}}
}

// Prepare implements backend.Backend.
func (b *Backend) Prepare(ctx context.Context, host backend.Host) (lease.Attrs, error) {
	if err := ctx.Err(); err != nil {
		return lease.Attrs{}, err
	}
	return b.cfg.Prepare(ctx, host)
}

// Start implements backend.Backend. What is made belongs to the network namespace of
// the first Start's thread.
func (b *Backend) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	mtu, err = b.cfg.MTU(host, own)
	if err != nil {
		return 0, err
	}
	keeper, closed := b.state()
	next := Situation{Host: host, Own: own, Self: b.self(host, own)}
	switch {
	case closed:
		return 0, fmt.Errorf("%s: start: the backend is closed (make another one)", b.cfg.Name)
	case keeper == nil:
		err = b.startFirst(ctx, next)
	default:
		err = b.startAgain(ctx, keeper, next)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: start: %w", b.cfg.Name, err)
	}
	b.log.Info("the kernel carries packets", "backend", b.cfg.Name, "mtu", mtu, "subnets", own.Key.String(), "interface", host.Link)
	return mtu, nil
}

func (b *Backend) state() (*netstate.Keeper, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keeper, b.closed
}

// startFirst makes everything, or nothing.
func (b *Backend) startFirst(ctx context.Context, next Situation) error {
	keeper, err := netstate.Open(netstate.Config{Backend: b.cfg.Name, Plan: b.plan, Log: b.log})
	if err != nil {
		return err
	}
	if err := keeper.Apply(ctx, func() { b.now = next }); err != nil {
		return errors.Join(err, keeper.Close(netstate.Undo))
	}
	for _, key := range netstate.NotForwarding(next.Own.Key) {
		b.log.Warn("the kernel does not forward packets: containers will not reach other hosts", "remedy", "sysctl -w "+key+"=1")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keeper = keeper
	return nil
}

// startAgain moves to another interface or address. After an error the old ones stay
// in force. What is wrong with single peers is no reason not to move.
func (b *Backend) startAgain(ctx context.Context, keeper *netstate.Keeper, next Situation) error {
	before := b.now // only Start and Sync write it
	if next.Own.Key != before.Own.Key {
		return fmt.Errorf("the subnet was %v and is now %v (close the backend and make another one)", before.Own.Key, next.Own.Key)
	}
	if b.synced {
		next.Peers, _ = b.chooser.Choose(next.Self, b.leases, b.end(next))
	}
	if err := netstate.Common(keeper.Apply(ctx, func() { b.now = next })); err != nil {
		back := keeper.Apply(context.WithoutCancel(ctx), func() { b.now = before })
		if back != nil {
			b.log.Warn("can't go back to what was, trying again", "err", back)
		}
		return err
	}
	return nil
}

// end is the Config's, in a situation.
func (b *Backend) end(s Situation) peerset.End {
	return func(l lease.Lease, subnet netip.Prefix) (netip.Addr, string) { return b.cfg.End(s, l, subnet) }
}

// Sync implements backend.Backend.
func (b *Backend) Sync(ctx context.Context, leases []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	keeper, closed := b.state()
	if keeper == nil || closed {
		return fmt.Errorf("%s: sync: the backend is not running (call Start first)", b.cfg.Name)
	}
	b.leases = slices.Clone(leases)
	next := b.now // only Start and Sync write it
	next.Self = b.self(next.Host, next.Own)
	peers, notes := b.chooser.Choose(next.Self, b.leases, b.end(next))
	said := b.chooser.Say(notes)
	next.Peers = peers
	err := keeper.Apply(ctx, func() { b.now, b.synced = next, true })
	return errors.Join(said, err)
}

// Close implements backend.Backend.
func (b *Backend) Close(keep bool) error {
	b.mu.Lock()
	keeper, closed := b.keeper, b.closed
	b.closed = true
	b.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if keeper != nil {
		fate := netstate.Remove
		if keep {
			fate = netstate.Leave
		}
		err = keeper.Close(fate)
	}
	if b.cfg.Closed != nil {
		err = errors.Join(err, b.cfg.Closed(keep))
	}
	if err != nil {
		return fmt.Errorf("%s: close: %w", b.cfg.Name, err)
	}
	return nil
}

// Probe implements backend.Prober: it tells of what could not be put in place when
// last looked at, but not of single peers that can't be served: that is Sync's to tell.
func (b *Backend) Probe() error {
	keeper, closed := b.state()
	switch {
	case closed:
		return fmt.Errorf("%s: closed", b.cfg.Name)
	case keeper == nil:
		return fmt.Errorf("%s: not started", b.cfg.Name)
	}
	return keeper.Trouble()
}

// Stats returns how much work the kernel's state has been.
func (b *Backend) Stats() netstate.Stats {
	keeper, _ := b.state()
	if keeper == nil {
		return netstate.Stats{}
	}
	return keeper.Stats()
}

// plan completes the Config's.
func (b *Backend) plan(k netstate.Kernel) (netstate.State, error) {
	s, err := b.cfg.Plan(b.now, k)
	s.Prune = b.synced
	s.Watch = append(s.Watch, b.now.Host.Link)
	s.Area = netstate.AreaOf(b.cfg.Params.Network, b.now.Own.Key)
	return s, err
}

// self collects what is the host's own.
func (b *Backend) self(host backend.Host, own lease.Lease) peerset.Self {
	s := peerset.Self{Key: own.Key}
	if b.cfg.Params.Underlay != nil {
		s.Underlay = b.cfg.Params.Underlay(host)
	}
	for _, a := range []netip.Addr{own.Attrs.PublicIP, own.Attrs.PublicIPv6, host.Addr4, host.Addr6, host.Public4, host.Public6} {
		if a.IsValid() {
			s.Addrs = append(s.Addrs, a.Unmap())
		}
	}
	return s
}

// FirstAddr is the address that flannel's devices have in a subnet: the first, alone.
func FirstAddr(subnet netip.Prefix) netip.Prefix {
	a := subnet.Masked().Addr()
	return netip.PrefixFrom(a, a.BitLen())
}
