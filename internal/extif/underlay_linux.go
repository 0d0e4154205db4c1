package extif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// underlay returns what the kernel tells, in no order, some of it twice, and some of it
// of no use. What one question gives is not lost when another one fails.
func underlay(index int) ([]netip.Prefix, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	var all []netip.Prefix
	var errs []error
	addrs, err := complete(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		errs = append(errs, fmt.Errorf("list the addresses: %w", err))
	}
	for _, a := range addrs {
		if a.LinkIndex == index {
			all = append(all, ofAddress(a)...)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := complete(func() ([]netip.Prefix, error) {
			var found []netip.Prefix
			// One by one, since a router has a million of them. It is the main table.
			err := h.RouteListFilteredIter(family, &netlink.Route{}, 0, func(r netlink.Route) bool {
				found = append(found, ofRoute(r, index)...)
				return true
			})
			return found, err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("list the routes: %w", err))
		}
		all = append(all, routes...)
	}
	return all, errors.Join(errs...)
}

// ofAddress returns an address of the external interface, and the prefix that the kernel
// makes a route for, in whichever table that is. With IFA_F_NOPREFIXROUTE it makes none,
// and whoever has set that (NetworkManager, for one) has added routes as he likes.
func ofAddress(a netlink.Addr) (all []netip.Prefix) {
	if a.IPNet == nil {
		return nil
	}
	if ip, ok := netip.AddrFromSlice(a.IP); ok {
		all = append(all, single(ip))
	}
	if a.Flags&unix.IFA_F_NOPREFIXROUTE != 0 {
		return all
	}
	if a.Peer != nil { // the prefix is that of the other end
		return append(all, prefixOf(a.Peer))
	}
	return append(all, prefixOf(a.IPNet))
}

// ofRoute returns the prefix of a route that leads out of the external interface without
// a router, and the routers of one that leads out of it, or is a default route.
//
// Other interfaces' routers are not asked for, because those of an overlay have such
// routes: for flannel's vxlan, the router of 10.5.7.0/24 is 10.5.7.0 on flannel.1.
func ofRoute(r netlink.Route, index int) (all []netip.Prefix) {
	if r.Type != unix.RTN_UNICAST {
		return nil
	}
	dst := prefixOf(r.Dst)
	usual := !dst.IsValid() || dst.Bits() == 0
	one := func(link int, gw net.IP, via netlink.Destination) {
		router, _ := netip.AddrFromSlice(gw)
		if v, ok := via.(*netlink.Via); ok && v != nil { // of the other family, RFC 5549
			router, _ = netip.AddrFromSlice(v.Addr)
		}
		switch {
		case router.IsValid() && (link == index || usual):
			all = append(all, single(router))
		case !router.IsValid() && link == index && !usual:
			all = append(all, dst)
		}
	}
	for _, n := range r.MultiPath {
		one(n.LinkIndex, n.Gw, n.Via)
	}
	if len(r.MultiPath) == 0 {
		one(r.LinkIndex, r.Gw, r.Via)
	}
	return all
}

// prefixOf returns the prefix of n without host bits, the zero Prefix if there is none.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, size := n.Mask.Size()
	if ip = ip.Unmap(); size != ip.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(ip, bits).Masked()
}
