// Package backend is the contract between a Node, which holds a lease and knows its
// peers, and the backends, each of which carries packets to them in its own way.
// Whoever writes a backend implements [Backend] and hands a [New] to Join.
package backend

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/lease"
)

// A Host is what a backend needs to know of the machine it runs on.
type Host struct {
	// Link is the external interface, through which peers are reached.
	Link string
	// LinkIndex is its number in the network namespace of the process.
	LinkIndex int
	// MTU is its MTU in bytes.
	MTU int
	// Addr4 is its IPv4 address, to bind to; the zero Addr if there is none.
	Addr4 netip.Addr
	// Addr6 is its IPv6 address, to bind to; the zero Addr if there is none.
	Addr6 netip.Addr
	// Public4 is the IPv4 address that peers use for this host: Addr4, or
	// another one that leads here.
	Public4 netip.Addr
	// Public6 is the IPv6 address that peers use for this host.
	Public6 netip.Addr
}

// A Backend carries packets between this host's subnet and the peers'. Its methods
// are called one at a time, in this order: Prepare once, Start, any number of Sync
// and Start, Close once.
type Backend interface {
	// Prepare returns what the lease shall say of this host to its peers. The
	// public addresses are filled in by the caller. It may make what that takes
	// (a key, say), but nothing that carries packets; an error says why this
	// host can't be a member with this backend, before it has taken a lease.
	Prepare(ctx context.Context, host Host) (lease.Attrs, error)

	// Start makes what the backend needs in the kernel and lets packets flow,
	// and returns the MTU in bytes that containers are to use. It is called
	// again when the host's interface or address has changed; the subnet never
	// does. Devices left behind by a predecessor are taken over. After an error
	// nothing new is left behind, except Close.
	Start(ctx context.Context, host Host, own lease.Lease) (mtu int, err error)

	// Sync makes the peers exactly those, each time the complete set without
	// this host itself. It is idempotent, and called again from time to time
	// even when nothing has changed: what somebody else removed is put back. A
	// peer that can't be served must not keep the others from it: the errors
	// are joined. Peers of another backend are not for this one.
	Sync(ctx context.Context, peers []lease.Lease) error

	// Close ends it and waits for its goroutines. keep leaves in the kernel
	// what a successor can take over, so that no packet takes another way in
	// between; otherwise everything is removed that the backend made.
	Close(keep bool) error
}

// A Counter is a Backend whose packets pass through this process.
type Counter interface {
	// Stats returns its counters since Start, summed over all engines and over
	// engines that ended. It may be called from any goroutine, at any time.
	Stats() encap.Stats
}

// A Prober is a Backend that can tell whether packets flow.
type Prober interface {
	// Probe returns nil if they can, else what is wrong and what to do. It is
	// cheap and may be called from any goroutine, at any time.
	Probe() error
}

// Params is what a New gets.
type Params struct {
	// Network is the network's configuration, with the backend's own part.
	Network lease.Network
	// Underlay, if not nil, returns what a host's own network uses: a peer's subnet
	// that overlaps it is not to be routed to the peer, which would cut the host
	// off. It may be called by Start and Sync.
	Underlay func(Host) []netip.Prefix
	// Log is never nil.
	Log *slog.Logger
}

// New makes a Backend for a network, without touching the system. An error says
// which key of the backend's part is wrong, and why.
type New func(Params) (Backend, error)
