package netstate

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// metric is what the kernel gives to routes that are made without one:
// IP6_RT_PRIO_USER of include/uapi/linux/ipv6_route.h for IPv6.
func metric(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1024
	}
	return 0
}

// listRoutes lists the main table's routes with the usual metric that have to do with
// the area or are wanted, by destination.
func (w *work) listRoutes() (map[netip.Prefix][]netlink.Route, error) {
	wanted := make(map[netip.Prefix]bool, len(w.state.Routes))
	has4, has6 := false, false
	for _, r := range w.state.Routes {
		wanted[r.Dst] = true
		has4, has6 = has4 || r.Dst.Addr().Is4(), has6 || r.Dst.Addr().Is6()
	}
	for _, r := range w.state.Area.Networks {
		has4, has6 = has4 || r.Prefix.Addr().Is4(), has6 || r.Prefix.Addr().Is6()
	}
	have := make(map[netip.Prefix][]netlink.Route)
	for _, family := range families(has4, has6) {
		list, err := again(func() (list []netlink.Route, err error) {
			err = w.nl.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
				list = append(list, r)
				return true
			})
			return list, err
		})
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			dst := toPrefix(r.Dst)
			if dst.IsValid() && r.Priority == metric(dst) && (wanted[dst] || w.state.Area.contains(dst)) {
				have[dst] = append(have[dst], r)
			}
		}
	}
	return have, nil
}

// routes makes the routes what they shall be.
func (w *work) routes() {
	have, err := w.listRoutes()
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: list the routes: %w", w.k.cfg.Backend, err))
		return
	}
	for _, want := range w.state.Routes {
		index, err := w.linkIndex(want.Link)
		if err != nil {
			w.fail(want, want.Peer, err)
			continue
		}
		there := false
		var inTheWay *netlink.Route
		rest := have[want.Dst][:0]
		for _, r := range have[want.Dst] {
			switch {
			case !there && same(r, want, index):
				there = true
				continue
			case !w.ours(r):
				inTheWay = &r
			}
			rest = append(rest, r)
		}
		have[want.Dst] = rest
		switch {
		case there:
			w.there[want] = true
		case inTheWay != nil:
			w.fail(want, want.Peer, fmt.Errorf("the way is taken by a route %s (remove that route, or the interface if it was left behind, or give the network another range)", w.describe(*inTheWay)))
		default:
			w.put(want, want.Peer, func() error { return w.nl.RouteReplace(toRoute(want, index)) })
			have[want.Dst] = rest[min(len(rest), 1):] // the first one is replaced
		}
	}
	if !w.state.Prune {
		return
	}
	for dst, list := range have {
		for _, r := range list {
			if w.ours(r) {
				w.drop("route to "+dst.String()+" "+w.describe(r), func() error { return w.nl.RouteDel(&r) })
			}
		}
	}
}

// toRoute is the form that netlink takes. It has the protocol boot, as flannel's
// routes do, so that flannel finds its own in ours, and we find ours in its.
func toRoute(r Route, index int) *netlink.Route {
	n := &netlink.Route{Dst: ipNet(r.Dst), LinkIndex: index, Protocol: unix.RTPROT_BOOT, Table: unix.RT_TABLE_MAIN}
	if r.Gw.IsValid() {
		n.Gw = r.Gw.AsSlice()
	} else if r.Dst.Addr().Is4() {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.OnLink {
		n.Flags = int(netlink.FLAG_ONLINK)
	}
	return n
}

// same reports whether the kernel has a route as it is wanted.
func same(have netlink.Route, want Route, index int) bool {
	return have.Type == unix.RTN_UNICAST && len(have.MultiPath) == 0 && have.LinkIndex == index &&
		have.Via == nil && toAddr(have.Gw) == want.Gw && have.Flags&int(netlink.FLAG_ONLINK) == onLink(want)
}

func onLink(r Route) int {
	if r.OnLink {
		return int(netlink.FLAG_ONLINK)
	}
	return 0
}

// ours reports whether a route is one that this backend or a predecessor has made:
// inside the network through a link of ours, or of the form that all of flannel's
// backends make. The kernel's own are made with addresses, and go with those.
func (w *work) ours(r netlink.Route) bool {
	dst := toPrefix(r.Dst)
	if r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL || len(r.MultiPath) > 0 || w.state.Area.own(dst) || !w.state.Area.contains(dst) {
		return false
	}
	for _, l := range w.state.Links {
		if link := w.links[l.Name]; link != nil && r.LinkIndex == link.Attrs().Index {
			return true
		}
	}
	return r.Gw != nil && w.state.Area.subnet(dst)
}

// describe says where a route leads.
func (w *work) describe(r netlink.Route) string {
	name := fmt.Sprintf("interface %d", r.LinkIndex)
	if l, err := w.nl.LinkByIndex(r.LinkIndex); err == nil {
		name = l.Attrs().Name
	}
	switch {
	case r.Type != unix.RTN_UNICAST:
		return fmt.Sprintf("that leads nowhere (type %d)", r.Type)
	case len(r.MultiPath) > 0:
		return "through several interfaces"
	case r.Gw != nil:
		return fmt.Sprintf("via %v through %s", r.Gw, name)
	}
	return "through " + name
}

// removeRoutes removes the routes that are in place, if they still are as they were
// made. Those of links that are removed are gone already.
func (w *work) removeRoutes() {
	have, err := w.listRoutes()
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: list the routes: %w", w.k.cfg.Backend, err))
		return
	}
	for _, want := range w.state.Routes {
		index, err := w.linkIndex(want.Link)
		if err != nil || !w.k.placed[want] {
			continue // with the link, its routes are gone
		}
		for _, r := range have[want.Dst] {
			if same(r, want, index) {
				w.drop(want.String(), func() error { return w.nl.RouteDel(&r) })
			}
		}
	}
}
