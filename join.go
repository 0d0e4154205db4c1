package flannelkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/encap/alloc"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/hostgw"
	"github.com/flannelkit/flannelkit/encap/ipip"
	"github.com/flannelkit/flannelkit/encap/udp"
	"github.com/flannelkit/flannelkit/encap/vxlan"
	"github.com/flannelkit/flannelkit/encap/wireguard"
	"github.com/flannelkit/flannelkit/internal/extif"
	"github.com/flannelkit/flannelkit/lease"
)

// ErrBackend is wrapped by Join's error when the network's configuration names a
// backend that Config.Backends does not have.
var ErrBackend = errors.New("flannelkit: unknown backend")

// A Config has what Join may be told. The zero value joins as flannel does: over the
// interface of the default route, for 24 hours at a time.
type Config struct {
	// Interface chooses the external interface and the public addresses.
	Interface Interface
	// Backends by the name in the network's configuration, in lower case; nil
	// means DefaultBackends.
	Backends map[string]backend.New
	// Previous is the subnet that this host had before, which it gets again if
	// it is free and this host has no lease; see subnetenv.File.Key.
	Previous lease.Key
	// TTL is how long the lease lives without being renewed; 0 means 24 hours.
	TTL time.Duration
	// RenewMargin is how long before its end the lease is renewed; 0 means one
	// hour.
	RenewMargin time.Duration
	// KeepDevice leaves at Close what a successor can take over. With backends
	// whose packets the kernel carries, such as vxlan and host-gw, or that make
	// routes in a cloud, packets then go on to flow while this program is not
	// there; with udp they are dropped, but take no other way, if it was made by
	// udp.New(udp.Options{Persist: true}); with nil Backends it is.
	KeepDevice bool
	// OnChange is called after the backend was brought in line, so after every
	// change of lease, peers, host and MTU, and at least twice a minute. It is
	// called by one goroutine at a time, must not block, and must not call Close
	// or Release. A change of Ready alone is not reported.
	OnChange func()
	// Log gets changes of state; never secrets, never anything per packet. nil
	// means none.
	Log *slog.Logger
}

// Interface chooses the external interface, through which peers are reached, and the
// public addresses, at which they reach this host.
type Interface = extif.Config

// DefaultBackends returns the backends that need no SDK of anybody and run no commands
// of anybody: udp, vxlan, host-gw, ipip, wireguard and alloc. The map is the caller's, to add to:
// what else there is has packages of its own, encap/extension, encap/awsvpc and
// encap/gce.
func DefaultBackends() map[string]backend.New {
	return map[string]backend.New{
		"udp":       udp.New(udp.Options{}),
		"vxlan":     vxlan.New(vxlan.Options{}),
		"host-gw":   hostgw.New(),
		"ipip":      ipip.New(ipip.Options{}),
		"wireguard": wireguard.New(wireguard.Options{}),
		"alloc":     alloc.New(),
	}
}

// Join makes this host a member of the network in the store: it takes a lease, starts
// the network's backend, and returns when packets can flow to the peers known by then.
// The Node lives until Close, or until its subnet is another's (see Node.Done); ctx is
// for joining only, and when it ends, Join undoes what it has done, except that a lease
// that was taken stays, as after Close.
//
// While the store can't be reached, or has no network configuration, Join waits, and
// logs why. It returns an error for what waiting does not mend: access denied, a
// configuration that can't be used (lease.ErrNetwork), an unknown backend (ErrBackend),
// no interface, no free subnet (lease.ErrNoSubnet), or the system's refusal.
//
// On Linux, a host without a lease gets no subnet that overlaps what its own network
// uses: the prefixes of the external interface, its addresses, and routers. A lease
// that it has already is kept, with a warning.
//
// The Store stays the caller's, and must stay open as long as the Node. On Linux the
// Node works in the network namespace of the process: Join must not be called by a
// thread that has gone into another one.
func Join(ctx context.Context, store lease.Store, cfg Config) (*Node, error) {
	if store == nil {
		return nil, errors.New("flannelkit: join: no store (lease/memory, lease/etcdv2 and lease/etcdv3 have some)")
	}
	if cfg.TTL < 0 || cfg.RenewMargin < 0 {
		return nil, fmt.Errorf("flannelkit: join: Config.TTL is %v and RenewMargin %v (give times above 0, or 0 for the usual ones)", cfg.TTL, cfg.RenewMargin)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Backends == nil {
		cfg.Backends = DefaultBackends()
		cfg.Backends["udp"] = udp.New(udp.Options{Persist: cfg.KeepDevice})
	}
	n := &Node{cfg: cfg, store: store, done: make(chan struct{}), changed: make(chan struct{}, 1)}
	n.registry = lease.NewRegistry(store, lease.RegistryConfig{
		Previous: cfg.Previous, TTL: cfg.TTL, RenewMargin: cfg.RenewMargin, Log: cfg.Log, Avoid: func() []netip.Prefix { return n.underlay(n.host) },
	})
	network, err := insist(ctx, cfg.Log, "the network's configuration", n.registry.Network)
	if err != nil {
		return nil, fmt.Errorf("flannelkit: join: %w", err)
	}
	n.network = network
	makeBackend := cfg.Backends[network.BackendType]
	if makeBackend == nil {
		known := slices.Sorted(maps.Keys(cfg.Backends))
		return nil, fmt.Errorf("%w %q in the network's configuration (this program has %s)", ErrBackend, network.BackendType, strings.Join(known, ", "))
	}
	b, err := makeBackend(backend.Params{Network: network, Underlay: n.underlay, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("flannelkit: join: %w", err)
	}
	n.backend = b
	if err := n.join(ctx); err != nil {
		err = fmt.Errorf("flannelkit: join: %w", err)
		if n.cancel == nil { // nothing runs yet
			return nil, errors.Join(err, b.Close(cfg.KeepDevice))
		}
		n.finish(err, cfg.KeepDevice)
		return nil, errors.Join(err, n.closeErr)
	}
	return n, nil
}

// join takes a lease and starts the backend.
func (n *Node) join(ctx context.Context) error {
	host, err := n.choose(ctx)
	if err != nil {
		return err
	}
	if n.data, err = n.backend.Prepare(ctx, host); err != nil {
		return err
	}
	n.host = host // for underlay
	attrs := n.attrs(host)
	own, err := insist(ctx, n.cfg.Log, "a lease", func(ctx context.Context) (lease.Lease, error) {
		return n.registry.Acquire(ctx, attrs)
	})
	if err != nil {
		return err
	}
	mtu, err := n.backend.Start(ctx, host, own)
	if err != nil {
		return err
	}
	n.own, n.mtu = own, mtu
	n.next = host // so that the first look of watchInterface is no news
	first := n.start()
	select {
	case <-first:
		return nil
	case <-n.done:
		return n.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// choose picks the external interface.
func (n *Node) choose(ctx context.Context) (backend.Host, error) {
	host, err := extif.Choose(ctx, n.cfg.Interface, n.network.IPv4.Enabled(), n.network.IPv6.Enabled())
	return n.orOneFamily(ctx, host, err)
}

// orOneFamily chooses anew for one family alone if a network with both has failed to
// find both: packets of one can be carried over the other.
func (n *Node) orOneFamily(ctx context.Context, host backend.Host, err error) (backend.Host, error) {
	if err == nil || !n.network.IPv4.Enabled() || !n.network.IPv6.Enabled() {
		n.oneFamily.Store(false)
		return host, err
	}
	one, errOne := extif.Choose(ctx, n.cfg.Interface, true, false)
	if errOne != nil {
		one, errOne = extif.Choose(ctx, n.cfg.Interface, false, true)
	}
	if errOne != nil {
		return host, err
	}
	if n.oneFamily.CompareAndSwap(false, true) {
		n.cfg.Log.Info("peers are reached over one family only", "interface", one.Link, "public4", one.Public4, "public6", one.Public6, "why", err)
	}
	return one, nil
}

// underlay returns what a host's own network uses, of which the overlay must not have
// anything: the route to such a subnet would cut off the underlay's hosts from this
// one, or this one from its router (flannel issue 611).
//
// A prefix that the whole range is in, as in a network of 10.5.0.0/16 for hosts in
// 10.0.0.0/8, is not among it: nothing would be left, and whoever has planned that has
// kept this part free of hosts. This host's own addresses and its routers' are even
// then.
func (n *Node) underlay(host backend.Host) (uses []netip.Prefix) {
	all, err := extif.Underlay(host)
	if err != nil && n.blind.CompareAndSwap(false, true) {
		n.cfg.Log.Warn("can't tell all that the host's own network uses; a subnet may overlap it", "interface", host.Link, "err", err)
	}
	for _, p := range all {
		within := false
		for _, r := range []lease.Range{n.network.IPv4, n.network.IPv6} {
			within = within || r.Enabled() && p.Contains(r.Min) && p.Contains(r.Max)
		}
		if !within || p.IsSingleIP() {
			uses = append(uses, p)
			continue
		}
		if n.nested.CompareAndSwap(false, true) {
			n.cfg.Log.Info("the network is a part of what the host's own network uses; hosts of that with addresses in a leased subnet can't be reached",
				"network", n.network, "interface", host.Link, "used", p)
		}
	}
	return uses
}

// attrs returns what the lease says of this host.
func (n *Node) attrs(host backend.Host) lease.Attrs {
	a := n.data
	a.PublicIP = host.Public4
	if n.network.IPv6.Enabled() {
		a.PublicIPv6 = host.Public6
	}
	return a
}

const (
	leastWait = 250 * time.Millisecond
	mostWait  = 5 * time.Second
	noConfig  = time.Second // between looks for a configuration, as flannel
)

// insist asks the store until it answers. It logs once for each reason, and from time
// to time that it still waits.
func insist[T any](ctx context.Context, log *slog.Logger, what string, ask func(context.Context) (T, error)) (T, error) {
	var lastReason string
	var lastLog time.Time
	waited := false
	for wait := leastWait; ; wait = min(2*wait, mostWait) {
		v, err := ask(ctx)
		if err == nil && waited {
			log.Info("the lease store has answered", "asked for", what)
		}
		if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) && !errors.Is(err, ctx.Err()) {
			return v, fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
		if err == nil || ctx.Err() != nil || final(err) {
			return v, err
		}
		reason := err.Error()
		if errors.Is(err, lease.ErrNoConfig) {
			wait = noConfig
			reason = "the network is not configured (put its configuration, such as {\"Network\": \"10.5.0.0/16\"}, under <prefix>/config)"
		}
		if reason != lastReason || time.Since(lastLog) > time.Minute {
			log.Warn("waiting for the lease store", "asked for", what, "why", reason)
			lastReason, lastLog = reason, time.Now()
		}
		waited = true
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return v, fmt.Errorf("%w (last: %s)", context.Cause(ctx), reason)
		}
	}
}

// final reports whether asking again does not help.
func final(err error) bool {
	for _, e := range []error{lease.ErrDenied, lease.ErrUnsupported, lease.ErrNetwork, lease.ErrNoSubnet, lease.ErrAttrs} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
