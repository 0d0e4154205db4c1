// Package hostgw is flannel's host-gw backend: every host is the router to its own
// subnet, and the other hosts on the link send packets for it straight there. Nothing
// is put in front of packets, so that nothing is faster; it takes that all hosts are
// on one link, an Ethernet segment without routers and address translation in between.
//
// All there is in the kernel is one route for each peer's subnet, in the main table:
//
//	10.5.34.0/24 via 192.0.2.34 dev eth0
//
// the same as flannel's own, which takes over ours, and whose routes we take over. They
// are looked after: what somebody removes, or the kernel with an interface that goes
// down, is put back within two seconds, and what belongs to no peer any more is
// removed, be it of this process or of a dead predecessor.
package hostgw

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// name is flannel's.
const name = "host-gw"

// New returns a backend.New for networks of type host-gw. The backend's part of the
// configuration has no keys but Type; others are ignored, as flannel does. IPv4 subnets
// are routed to the peers' PublicIP, IPv6 ones to their PublicIPv6. The MTU for
// containers is that of the external interface.
//
// Prepare and Start return an error on a host that peers know by another address than
// its own, that is behind network address translation: there is a router in between.
// Sync returns one for each peer that is not on the link of the external interface, and
// serves the others; such a peer is looked at again from time to time, and served
// when it can be reached.
func New() backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		return kernelbackend.New(kernelbackend.Config{
			Name:   name,
			Params: p,
			Prepare: func(_ context.Context, host backend.Host) (lease.Attrs, error) {
				return lease.Attrs{BackendType: name}, usable(host, p.Network.IPv4.Enabled(), p.Network.IPv6.Enabled())
			},
			MTU: func(host backend.Host, own lease.Lease) (int, error) {
				return host.MTU, usable(host, own.Subnet.IsValid(), own.Subnet6.IsValid())
			},
			End:  end,
			Plan: plan,
		}), nil
	}
}

// usable says why a host can't be a member of a network with those families.
func usable(host backend.Host, v4, v6 bool) error {
	if host.MTU <= 0 {
		return fmt.Errorf("%s: the MTU of %s is %d (choose an interface that carries packets)", name, host.Link, host.MTU)
	}
	check := func(family string, addr, public netip.Addr) error {
		switch {
		case !addr.IsValid():
			return fmt.Errorf("%s: %s has no %s address, and the network has an %s range (choose another interface, or take the range out of the network)", name, host.Link, family, family)
		case public.IsValid() && public.Unmap() != addr.Unmap():
			return fmt.Errorf("%s: peers reach this host at %v, and the address of %s is %v: behind network address translation there is a router between the hosts, "+
				"and host-gw works on one link only (leave the public address out if peers can reach %[4]v, or use the backend vxlan or udp)", name, public, host.Link, addr)
		}
		return nil
	}
	var err4, err6 error
	if v4 {
		err4 = check("IPv4", host.Addr4, host.Public4)
	}
	if v6 {
		err6 = check("IPv6", host.Addr6, host.Public6)
	}
	return errors.Join(err4, err6)
}

// end is the router to a peer's subnet: the peer, in the family of the subnet.
func end(s kernelbackend.Situation, l lease.Lease, subnet netip.Prefix) (at netip.Addr, why string) {
	if subnet.Addr().Is6() {
		at = l.Attrs.PublicIPv6
		if !at.IsValid() {
			return at, fmt.Sprintf("%v has no PublicIPv6 to lead to it", subnet)
		}
		return at, s.Self.Unreachable(at)
	}
	at = l.Attrs.PublicIP.Unmap()
	return at, s.Self.Unreachable(at)
}

// plan wants a route for each subnet of the peers that are on the link.
func plan(s kernelbackend.Situation, k netstate.Kernel) (state netstate.State, err error) {
	state.Routes = make([]netstate.Route, 0, len(s.Peers))
	var errs []error
	add := func(p peerset.Peer, subnet netip.Prefix, at netip.Addr) (why string) {
		doubt, why := offLink(s.Host.Link, at, k)
		if why == "" {
			state.Routes = append(state.Routes, netstate.Route{Dst: subnet, Gw: at, Link: s.Host.Link, Peer: p.String() + doubt})
		}
		return why
	}
	for _, p := range s.Peers {
		why := ""
		if p.Subnet.IsValid() {
			why = add(p, p.Subnet, p.At)
		}
		if p.Subnet6.IsValid() {
			why = cmp.Or(why, add(p, p.Subnet6, p.At6))
		}
		if why != "" {
			errs = append(errs, fmt.Errorf("%s: %w", name, &netstate.PeerError{Peer: p.String(), Err: errors.New(why)}))
		}
	}
	return state, errors.Join(errs...)
}

// offLink says why an address can't be a router's on a link, or what speaks against
// it where only the kernel can tell, when it gets the route.
func offLink(link string, at netip.Addr, k netstate.Kernel) (doubt, why string) {
	hop, err := k.Hop(at)
	switch {
	case err != nil:
		// While the interface is down, say. A route that is there is left to the
		// kernel, which removes it or not.
		return "", ""
	case hop.Local:
		return "", fmt.Sprintf("%v is an address of this host (an old lease of this host, or two hosts with one address)", at)
	case hop.Gw.IsValid() && hop.Gw != at: // else the peer's own subnet has its address
		return "", fmt.Sprintf("%v is reached through the router %v on %s, and host-gw needs all hosts on one link (move the host to the link of %s, or use the backend vxlan or udp, or vxlan with DirectRouting, which has a tunnel for the hosts behind routers only)",
			at, hop.Gw, hop.Link, link)
	case hop.Link != link:
		// Two interfaces may be on one link, and the kernel prefers the other one
		// for what it sends itself. flannel takes the external one, and so do we:
		// the kernel refuses the route if the peer is not there.
		return fmt.Sprintf(" (which the kernel itself reaches through %s; host-gw needs all hosts on the link of %s)", hop.Link, link), ""
	}
	return "", ""
}
