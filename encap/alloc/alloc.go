// Package alloc is flannel's alloc backend: the host gets a lease, and no packet
// is carried. It is for networks whose routes somebody else makes, or for handing
// out subnets alone.
package alloc

import (
	"context"
	"fmt"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

// New returns a backend.New for networks of type alloc. The backend's part of the
// configuration has no keys but Type; others are ignored, as flannel does. The
// lease says nothing of the backend, and the MTU is the external interface's,
// since nothing is put in front of packets. The system is not touched.
func New() backend.New {
	return func(backend.Params) (backend.Backend, error) { return alloc{}, nil }
}

// alloc implements backend.Backend.
type alloc struct{}

// Prepare implements backend.Backend: the lease tells peers nothing.
func (alloc) Prepare(ctx context.Context, _ backend.Host) (lease.Attrs, error) {
	return lease.Attrs{}, ctx.Err()
}

// Start implements backend.Backend: the MTU is the interface's.
func (alloc) Start(ctx context.Context, host backend.Host, _ lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if host.MTU <= 0 {
		return 0, fmt.Errorf("alloc: start: the MTU of %s is %d (choose an interface that carries packets)", host.Link, host.MTU)
	}
	return host.MTU, nil
}

// Sync implements backend.Backend: there is nothing to do for peers.
func (alloc) Sync(ctx context.Context, _ []lease.Lease) error { return ctx.Err() }

// Close implements backend.Backend: there is nothing to leave behind or remove.
func (alloc) Close(bool) error { return nil }
