package netstate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// metric is what the kernel gives to routes that are made without one:
// IP6_RT_PRIO_USER of include/uapi/linux/ipv6_route.h for IPv6.
func metric(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1024
	}
	return 0
}

// dumps is how often at most something is listed in a round.
const dumps = 4

// listRoutes lists the main table's routes that have to do with the area or are wanted,
// by destination: those with the usual metric, and those that go before them.
//
// While others change IPv6 routes a dump can have a route twice or not at all, and
// does not say so: the kernel takes a long one up again by counting (ip6_fib.c,
// fib6_dump_node). So what seems to be missing is looked for again, and what is there
// twice is one.
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
	w.routers = map[netip.Addr]bool{}
	for _, family := range families(has4, has6) {
		for range dumps {
			list, err := w.dumpRoutes(family)
			if err != nil {
				return nil, err
			}
			for _, r := range list {
				dst := rtnl.Prefix(r.Dst)
				if n, in := w.state.Area.network(dst); r.Gw != nil && (!in || dst.Bits() < n.SubnetLen) {
					w.routers[rtnl.Addr(r.Gw)] = true // to something else, or to much of the network
				}
				twice := slices.ContainsFunc(have[dst], func(old netlink.Route) bool { return old.Equal(r) })
				if dst.IsValid() && r.Tos == 0 && r.Priority <= metric(dst) && (wanted[dst] || w.state.Area.contains(dst)) && !twice {
					have[dst] = append(have[dst], r)
				}
			}
			if family == netlink.FAMILY_V4 || !w.seemsIncomplete(have) {
				break
			}
		}
	}
	return have, nil
}

// dumpRoutes lists the main table's routes of a family.
func (w *work) dumpRoutes(family int) ([]netlink.Route, error) {
	return rtnl.Again(func() (list []netlink.Route, err error) {
		err = w.nl.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			list = append(list, r)
			return true
		})
		return list, err
	})
}

// seemsIncomplete reports whether an IPv6 route is missing that was in place.
func (w *work) seemsIncomplete(have map[netip.Prefix][]netlink.Route) bool {
	if w.k == nil {
		return false
	}
	return slices.ContainsFunc(w.state.Routes, func(r Route) bool {
		return r.Dst.Addr().Is6() && w.k.placed[r] && len(have[r.Dst]) == 0
	})
}

// routes makes the routes what they shall be.
func (w *work) routes() {
	have, err := w.listRoutes()
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: list the routes: %w", w.k.cfg.Backend, err))
		return
	}
	for _, want := range distinct(w, w.state.Routes, func(r Route) any { return r.Dst }, func(r Route) string { return r.Peer }) {
		have[want.Dst] = w.route(want, have[want.Dst])
	}
	if !w.state.Prune {
		return
	}
	for dst, list := range have {
		for _, r := range list {
			if w.ours(r) {
				w.drop(identOf(r), "route to "+dst.String()+" "+w.describe(r), func() error { return w.nl.RouteDel(&r) })
			}
		}
	}
}

// route makes one route, and returns the rest of those to the same destination.
func (w *work) route(want Route, have []netlink.Route) (rest []netlink.Route) {
	index, err := w.linkIndex(want.Link)
	if err != nil {
		own := slices.ContainsFunc(w.state.Links, func(l Link) bool { return l.Name == want.Link }) // link has told why
		if !own && !w.missing[want.Link] {                                                          // it is no single peer's trouble, and said once
			w.missing[want.Link] = true
			w.fail(want, "", err)
		}
		return have
	}
	there := false
	var inTheWay *netlink.Route
	for _, r := range have {
		switch {
		case same(r, want, index):
			there = true
			continue
		case !w.ours(r):
			inTheWay = &r
		}
		rest = append(rest, r)
	}
	switch {
	case inTheWay != nil && (!there || inTheWay.Priority < metric(want.Dst)):
		w.fail(want, want.Peer, fmt.Errorf("the way is taken by a route %s (remove that route, or the interface if it was left behind, or give the network another range)", w.describe(*inTheWay)))
	case there:
		w.there[want] = true
	default:
		w.put(want, want.Peer, func() error { return w.replace(want, index, rest) })
		if w.there[want] && len(rest) > 0 {
			return rest[1:] // the first one is replaced
		}
	}
	return rest
}

// replace makes a route in place of the first of the old ones, which are all of the
// form that is ours. IPv6 does not let a next hop move to another link while the old
// route leads to it (ip6_validate_gw in net/ipv6/route.c): then there is a moment
// without a route.
func (w *work) replace(want Route, index int, old []netlink.Route) error {
	err := w.nl.RouteReplace(toRoute(want, index))
	if !errors.Is(err, unix.EINVAL) || len(old) == 0 || old[0].LinkIndex == index {
		return err
	}
	if err := w.nl.RouteDel(&old[0]); err != nil && !gone(err) {
		return err
	}
	return w.nl.RouteReplace(toRoute(want, index))
}

// toRoute is the form that netlink takes. It has the protocol boot, as flannel's
// routes do, so that flannel finds its own in ours, and we find ours in its.
func toRoute(r Route, index int) *netlink.Route {
	n := &netlink.Route{Dst: rtnl.IPNet(r.Dst), LinkIndex: index, Protocol: unix.RTPROT_BOOT, Table: unix.RT_TABLE_MAIN}
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
		have.Priority == metric(want.Dst) && have.Via == nil && rtnl.Addr(have.Gw) == want.Gw && have.Flags&int(netlink.FLAG_ONLINK) == onLink(want)
}

func onLink(r Route) int {
	if r.OnLink {
		return int(netlink.FLAG_ONLINK)
	}
	return 0
}

// identOf is what a route is known by.
func identOf(r netlink.Route) routeIdent {
	return routeIdent{rtnl.Prefix(r.Dst), rtnl.Addr(r.Gw), r.LinkIndex, r.Flags&int(netlink.FLAG_ONLINK) != 0}
}

// ours reports whether a route is one that this backend or a predecessor has made:
// inside the network through a link of ours, or of the form that all of flannel's
// backends make. The kernel's own are made with addresses, and go with those. Networks
// may have an operator's routes in them, too, above all wide ones like 10.0.0.0/8:
// whose gateway is a router to other things is no host's route to its subnet; nor is
// one through the tunnel of a network inside this one.
func (w *work) ours(r netlink.Route) bool {
	dst, area := rtnl.Prefix(r.Dst), w.state.Area
	if r.Type != unix.RTN_UNICAST || r.Priority != metric(dst) || len(r.MultiPath) > 0 {
		return false
	}
	if w.mine[identOf(r)] {
		return true
	}
	if r.Protocol == unix.RTPROT_KERNEL || area.own(dst) || !area.contains(dst) {
		return false
	}
	for _, l := range w.state.Links {
		if link := w.links[l.Name]; link != nil && r.LinkIndex == link.Attrs().Index {
			return true
		}
	}
	return r.Gw != nil && r.Protocol == unix.RTPROT_BOOT && area.subnet(dst) && !w.routers[rtnl.Addr(r.Gw)] && !w.othersTunnel(r.LinkIndex)
}

// othersTunnel reports whether a link is a tunnel with an address that is not in this
// host's subnets: that of another network. A predecessor's has one that is.
func (w *work) othersTunnel(index int) bool {
	others, known := w.tunnels[index]
	if known {
		return others
	}
	if l, err := w.nl.LinkByIndex(index); err == nil && slices.Contains([]string{"vxlan", "ipip", "wireguard", "tuntap"}, l.Type()) {
		list, _ := rtnl.Again(func() ([]netlink.Addr, error) { return w.nl.AddrList(l, netlink.FAMILY_ALL) })
		for _, a := range list {
			p := rtnl.Prefix(a.IPNet)
			if p.Addr().IsLinkLocalUnicast() {
				continue
			}
			if others = !w.state.Area.own(netip.PrefixFrom(p.Addr(), p.Addr().BitLen())); !others {
				break
			}
		}
	}
	w.tunnels[index] = others
	return others
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
				w.drop(identOf(r), want.String(), func() error { return w.nl.RouteDel(&r) })
			}
		}
	}
}
