package udp

import (
	"fmt"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// A plan is what there is to be: Start makes it, the keeper keeps it.
type plan struct {
	listen netip.AddrPort // of the sockets
	have4  bool           // peers reach this host over IPv4
	have6  bool           // over IPv6
	mtu    int            // of the device
	self   peerset.Self   // what is this host's own
	host   backend.Host   // that it is for
	local  []netip.Prefix // this host's subnets
	routes []netip.Prefix // the networks that they are part of
}

const (
	// maxMTU is the largest packet that fits a datagram over IPv4.
	maxMTU = 65535 - 20 - 8
	// minMTU6 is IPv6's (RFC 8200 section 5); below it Linux has no IPv6.
	minMTU6 = 1280
)

// newPlan finds out what a host has to do for its lease.
func newPlan(network lease.Network, port uint16, host backend.Host, own lease.Lease) (plan, error) {
	var p plan
	for _, part := range []struct {
		subnet netip.Prefix
		of     lease.Range
	}{{own.Subnet, network.IPv4}, {own.Subnet6, network.IPv6}} {
		switch {
		case !part.subnet.IsValid():
		case !inside(part.subnet, part.of):
			return p, fmt.Errorf("udp: start: the host's subnet %v is not in the network's range %v", part.subnet, part.of.Prefix)
		default:
			p.local = append(p.local, part.subnet.Masked())
			p.routes = append(p.routes, part.of.Prefix.Masked())
		}
	}
	if len(p.local) == 0 {
		return p, fmt.Errorf("udp: start: the lease %v has no subnet of the network", own.Key)
	}
	p.self.Key = own.Key
	for _, a := range []netip.Addr{own.Attrs.PublicIP, own.Attrs.PublicIPv6, host.Addr4, host.Addr6, host.Public4, host.Public6} {
		if a.IsValid() {
			p.self.Addrs = append(p.self.Addrs, a.Unmap())
		}
	}
	// The lease says where the peers send to; the interface, where to listen.
	p.have4 = host.Addr4.IsValid() && (own.Attrs.PublicIP.IsValid() || host.Public4.IsValid())
	p.have6 = host.Addr6.IsValid() && (own.Attrs.PublicIPv6.IsValid() || host.Public6.IsValid())
	switch {
	case p.have4:
		p.listen = netip.AddrPortFrom(host.Addr4, port)
	case p.have6:
		p.listen = netip.AddrPortFrom(host.Addr6, port)
	default:
		return p, fmt.Errorf("udp: start: %s has no address of a family that the lease's public addresses have (IPv4 %v and %v, IPv6 %v and %v; choose another interface or public address)",
			host.Link, host.Addr4, own.Attrs.PublicIP, host.Addr6, own.Attrs.PublicIPv6)
	}
	p.mtu = min(host.MTU-encap.Overhead(p.listen.Addr()), maxMTU)
	least := tun.MinMTU
	if own.Subnet6.IsValid() {
		least = minMTU6
	}
	if p.mtu < least {
		return p, fmt.Errorf("udp: start: the MTU of %s is %d, which leaves %d for packets inside (they need at least %d: raise it, or choose another interface)",
			host.Link, host.MTU, p.mtu, least)
	}
	return p, nil
}

// ipv6 reports whether there is IPv6 inside.
func (p plan) ipv6() bool { return p.local[len(p.local)-1].Addr().Is6() }

// everywhere is where to listen when some peers are reached over IPv4 and others
// over IPv6: an engine has one socket, and only one on [::] does both.
func (p plan) everywhere() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Unspecified(), p.listen.Port())
}

// inside reports whether a subnet is a part of a network's range.
func inside(subnet netip.Prefix, r lease.Range) bool {
	return r.Enabled() && subnet.Bits() >= r.Prefix.Bits() && r.Prefix.Overlaps(subnet)
}
