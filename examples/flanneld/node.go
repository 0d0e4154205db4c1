package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// nodeStats are a node's counters and state.
type nodeStats = flannelkit.Stats

// A node is what the daemon needs of a *flannelkit.Node. Tests have their own.
type node interface {
	Subnet() netip.Prefix
	Subnet6() netip.Prefix
	Network() lease.Network
	Lease() lease.Lease
	MTU() int
	Host() backend.Host
	Peers() []lease.Lease
	Stats() nodeStats
	Ready() error
	Done() <-chan struct{}
	Err() error
	Close() error
}

var _ node = (*flannelkit.Node)(nil)

const (
	// syncLimit is how old a node's last look at its peers may be: it looks
	// every half minute, whatever happens.
	syncLimit = 3 * time.Minute
	// contactLimit is how long a node may go without an answer from etcd and
	// without an error: it asks every five minutes, and some answer or error
	// comes of that.
	contactLimit = 15 * time.Minute
)

// A pulse tells whether a node's loops turn. Errors are a sign of life too: a node
// whose etcd is dead is well, only not informed.
type pulse struct {
	errors uint64    // of the store, when last looked
	since  time.Time // of the last sign that the lease's loop turns
}

// check returns nil, or which loop is stuck.
func (p *pulse) check(s nodeStats, now time.Time) error {
	if n := s.Lease.StoreErrors + s.Lease.RenewErrors; n != p.errors || p.since.IsZero() {
		p.errors, p.since = n, now
	}
	if s.Lease.LastContact.After(p.since) {
		p.since = s.Lease.LastContact
	}
	if !s.Sync.IsZero() && now.Sub(s.Sync) > syncLimit {
		return fmt.Errorf("the backend has been stuck since %s (restart the daemon)", s.Sync.Format(time.RFC3339))
	}
	if now.Sub(p.since) > contactLimit {
		return fmt.Errorf("nothing was heard of the lease since %s, neither answers of etcd nor errors (restart the daemon)", p.since.Format(time.RFC3339))
	}
	return nil
}

// join makes this host a member of the network in the store.
func (d *daemon) join(ctx context.Context, store lease.Store) (node, error) {
	n, err := flannelkit.Join(ctx, store, flannelkit.Config{
		Backends: d.o.backends(),
		Interface: flannelkit.Interface{
			Names: d.o.ifaces, Regexps: d.o.ifaceRegexps, CanReach: d.o.canReach,
			PublicIP: d.o.publicIP, PublicIPv6: d.o.publicIPv6,
		},
		Previous:    d.file.previous(),
		RenewMargin: d.o.margin(),
		KeepDevice:  d.o.keepsState(),
		OnChange:    d.poke,
		Log:         d.log,
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// lostErr says why a node has ended, and what to do.
func lostErr(n node) error {
	err := n.Err()
	if err == nil {
		return errors.New("the node has ended without a reason (restart the daemon)")
	}
	if errors.Is(err, lease.ErrLost) {
		return fmt.Errorf("%w (restart the daemon, and what uses the subnet: it will get another one)", err)
	}
	return err
}

// publicOf returns the address that is the host's name in messages.
func publicOf(l lease.Lease) netip.Addr {
	if l.Attrs.PublicIP.IsValid() {
		return l.Attrs.PublicIP
	}
	return l.Attrs.PublicIPv6
}
