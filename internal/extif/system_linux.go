package extif

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A kernel is the network namespace in which it was opened.
type kernel struct{ h *netlink.Handle }

func openSystem() (system, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("extif: open a netlink socket: %w", err)
	}
	return kernel{h}, nil
}

func (k kernel) close() { k.h.Close() }

// complete repeats a dump that the kernel says was mixed with changes. On a host
// where containers come and go that may never end: what is there by then is taken.
func complete[T any](dump func() (T, error)) (T, error) {
	for range 4 {
		all, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	all, err := dump()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return all, err
}

func (k kernel) links() ([]link, error) {
	devices, err := complete(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	addrs, err := complete(func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	var links []link
	for _, d := range devices {
		at := d.Attrs()
		l := link{alt: at.AltNames}
		l.Index, l.Name, l.MTU, l.Flags, l.HardwareAddr = at.Index, at.Name, at.MTU, at.Flags, at.HardwareAddr
		for _, a := range addrs {
			if a.LinkIndex != at.Index || a.IPNet == nil {
				continue
			}
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				l.addrs = append(l.addrs, newAddress(ip.Unmap(), a))
			}
		}
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b link) int { return cmp.Compare(a.Index, b.Index) })
	return links, nil
}

// newAddress reads the flags of linux/if_addr.h. IFA_F_SECONDARY and IFA_F_TEMPORARY
// are one bit, and for us say the same: not the first choice.
func newAddress(ip netip.Addr, a netlink.Addr) address {
	bits, _ := a.Mask.Size()
	if a.Peer != nil {
		bits, _ = a.Peer.Mask.Size() // the address's own mask says nothing then
	}
	n := address{ip: ip, bits: bits}
	n.permanent = a.Flags&unix.IFA_F_PERMANENT != 0
	n.temporary = a.Flags&unix.IFA_F_TEMPORARY != 0
	switch {
	case a.Flags&unix.IFA_F_DADFAILED != 0:
		n.unusable = "another host's as well"
	case a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0:
		n.unusable = tentative
	case a.Flags&unix.IFA_F_DEPRECATED != 0:
		n.unusable = deprecated
	}
	return n
}

// A defaultHop is one next hop of a default route, with what it is ordered by.
type defaultHop struct {
	hop
	dead   bool // the kernel does not use it at the moment
	metric uint32
	weight int
}

func (k kernel) defaults(_ context.Context, six bool) ([]hop, error) {
	family := netlink.FAMILY_V4
	if six {
		family = netlink.FAMILY_V6
	}
	all, err := complete(func() ([]defaultHop, error) {
		var all []defaultHop
		// One by one, since a router has a million others.
		err := k.h.RouteListFilteredIter(family, &netlink.Route{}, 0, func(r netlink.Route) bool {
			all = append(all, defaultHops(r)...)
			return true
		})
		return all, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	rank := func(a, b defaultHop) int {
		switch {
		case a.dead == b.dead:
			return cmp.Compare(a.metric, b.metric)
		case b.dead:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b defaultHop) int {
		return cmp.Or(rank(a, b), cmp.Compare(b.weight, a.weight))
	})
	var best []hop
	for _, h := range all {
		if rank(all[0], h) == 0 {
			best = append(best, h.hop)
		}
	}
	return best, nil
}

// defaultHops returns the next hops of a route if it is a default one: several of a
// multipath route, none of another.
func defaultHops(r netlink.Route) []defaultHop {
	if r.Type != unix.RTN_UNICAST || r.Tos != 0 {
		return nil
	}
	if r.Dst != nil {
		if bits, _ := r.Dst.Mask.Size(); bits != 0 {
			return nil
		}
	}
	src, _ := netip.AddrFromSlice(r.Src)
	one := func(index, flags, weight int) defaultHop {
		return defaultHop{hop: hop{index: index, src: src.Unmap()}, dead: flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) != 0,
			metric: uint32(r.Priority), weight: weight}
	}
	var all []defaultHop
	for _, n := range r.MultiPath {
		all = append(all, one(n.LinkIndex, n.Flags, n.Hops))
	}
	if len(r.MultiPath) == 0 && r.LinkIndex != 0 {
		all = append(all, one(r.LinkIndex, r.Flags, 0))
	}
	return all
}

func (k kernel) reach(_ context.Context, to netip.Addr) (hop, error) {
	var opt netlink.RouteGetOptions
	if zone := to.Zone(); zone != "" {
		opt.Oif = zone
	}
	routes, err := k.h.RouteGetWithOptions(to.AsSlice(), &opt)
	if err != nil {
		return hop{}, fmt.Errorf("ask for the route: %w (add one, or name the interface with --iface)", err)
	}
	for _, r := range routes {
		src, _ := netip.AddrFromSlice(r.Src)
		if r.LinkIndex != 0 {
			return hop{index: r.LinkIndex, src: src.Unmap()}, nil
		}
	}
	return hop{}, errors.New("no route leads there (add one, or name the interface with --iface)")
}
