package udp

import (
	"fmt"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// choose makes the engines' peers of leases. Whatever is wrong with one of them, the
// others are served; notes say what was left out. mixed is true if some peer can
// only be reached over IPv6, and others over IPv4.
func (o *overlay) choose(leases []lease.Lease, p plan) (peers []encap.Peer, mixed bool, notes []peerset.Note) {
	usable, notes := o.chooser.Choose(p.self, leases, func(l lease.Lease, _ netip.Prefix) (netip.Addr, string) {
		return endpoint(l.Attrs, p)
	})
	peers = make([]encap.Peer, 0, len(usable))
	v6 := false
	for _, u := range usable {
		e := encap.Peer{}
		at := u.At
		if u.Subnet.IsValid() {
			e.Subnets = append(e.Subnets, u.Subnet)
		}
		if u.Subnet6.IsValid() {
			e.Subnets, at = append(e.Subnets, u.Subnet6), u.At6
		}
		e.Endpoint = netip.AddrPortFrom(at, o.port)
		peers = append(peers, e)
		v6 = v6 || at.Is6()
	}
	return peers, p.have4 && v6, notes
}

// endpoint is where a peer's datagrams go, whatever the family of what is inside, or
// why they can't go there. Both sides choose alike, because each takes only datagrams
// from the address that it sends to.
func endpoint(a lease.Attrs, p plan) (at netip.Addr, why string) {
	v4, v6 := a.PublicIP.Unmap(), a.PublicIPv6.Unmap()
	switch {
	case p.have4 && v4.Is4() && !v4.IsUnspecified():
		at = v4
	case p.have6 && v6.Is6() && !v6.IsUnspecified():
		at = v6
	default:
		return at, fmt.Sprintf("it has no public address of a family that this host has (IPv4 %v, IPv6 %v, here: %s)", a.PublicIP, a.PublicIPv6, p.families())
	}
	return at, p.self.Unreachable(at)
}

// families names what peers can be reached over.
func (p plan) families() string {
	switch {
	case p.have4 && p.have6:
		return "IPv4 and IPv6"
	case p.have4:
		return "IPv4"
	}
	return "IPv6"
}
