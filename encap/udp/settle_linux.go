package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// settle makes MTU, addresses, state and routes what the plan says. The order
// matters: a device that is down has no routes and no IPv6 addresses, and one of an
// MTU below 1280 has no IPv6.
func (k *kernelDevices) settle(p plan) (done []string, err error) {
	link, _, err := k.link()
	if err != nil {
		return nil, err
	}
	var errs []error
	// need does what was missing.
	need := func(what string, do func() error) {
		done = append(done, what)
		if err := do(); err != nil {
			errs = append(errs, fmt.Errorf("%s of %s: %w", what, k.name, explain(err)))
		}
	}
	if mtu := link.Attrs().MTU; mtu != p.mtu {
		need(fmt.Sprintf("MTU %d", p.mtu), func() error { return k.dev.SetMTU(p.mtu) })
		if mtu < minMTU6 { // IPv6 begins anew, with its defaults and an address
			k.quieten(link, p)
			k.strays = true
		}
	}
	have, err := k.addresses(link)
	errs = append(errs, err)
	up := link.Attrs().Flags&net.FlagUp != 0
	for _, s := range p.local { // IPv4 is first
		if s.Addr().Is6() && !up {
			need("state up", func() error { return k.nl.LinkSetUp(link) })
			up = true
		}
		if a := hostAddress(s); !has(have, a) {
			need("address "+a.String(), func() error { return k.addAddress(link, a) })
		}
	}
	if !up {
		need("state up", func() error { return k.nl.LinkSetUp(link) })
	}
	for _, r := range p.routes {
		there, err := k.routed(r)
		errs = append(errs, err)
		if !there && err == nil {
			need("route to "+r.String(), func() error { return k.addRoute(r) })
		}
	}
	if err := errors.Join(errs...); err != nil {
		return done, err
	}
	return done, errors.Join(k.clean(link, p), k.unguard())
}

// hostAddress is the address of the device in a subnet: the first, alone, as
// flannel has had it since 0.11. A longer prefix would be a route of its own.
func hostAddress(subnet netip.Prefix) netip.Prefix {
	a := subnet.Masked().Addr()
	return netip.PrefixFrom(a, a.BitLen())
}

// addresses returns what addresses a device has.
func (k *kernelDevices) addresses(link netlink.Link) (map[netip.Prefix]netlink.Addr, error) {
	list, err := rtnl.Again(func() ([]netlink.Addr, error) { return k.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	all := make(map[netip.Prefix]netlink.Addr, len(list))
	for _, a := range list {
		all[rtnl.Prefix(a.IPNet)] = a
	}
	return all, nil
}

func has(m map[netip.Prefix]netlink.Addr, p netip.Prefix) bool {
	_, ok := m[p]
	return ok
}

// addAddress gives the device an address. Nobody on a tunnel answers duplicate
// address detection, which would only delay the use of an IPv6 one.
func (k *kernelDevices) addAddress(link netlink.Link, a netip.Prefix) error {
	addr := &netlink.Addr{IPNet: rtnl.IPNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := k.nl.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		if a.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
			return fmt.Errorf("%w (IPv6 is off: set net.ipv6.conf.all.disable_ipv6 to 0, or take the IPv6 range out of the network)", err)
		}
		return err
	}
	return nil
}

// routesTo lists the main table's routes to exactly that network.
func (k *kernelDevices) routesTo(r netip.Prefix) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if r.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	found, err := rtnl.Again(func() (found []netlink.Route, err error) {
		err = k.nl.RouteListFilteredIter(family, &netlink.Route{}, 0, func(route netlink.Route) bool {
			if rtnl.Prefix(route.Dst) == r {
				found = append(found, route)
			}
			return true
		})
		return found, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes to %v: %w", r, err)
	}
	return found, nil
}

// routed reports whether the network is routed to the device. A route of somebody
// else's to the same network is an error: with it, some or all packets would go
// there. One that goes nowhere, and only if ours is not there, is welcome.
func (k *kernelDevices) routed(r netip.Prefix) (bool, error) {
	routes, err := k.routesTo(r)
	there := false
	for _, route := range routes {
		switch {
		case route.LinkIndex == int(k.index.Load()):
			there = there || route.Type == unix.RTN_UNICAST && route.Gw == nil
		case route.Type != unix.RTN_UNICAST && route.Priority > metric(r):
		default:
			return there, fmt.Errorf("the network %v is routed to %s already (remove that route, or the interface if it was left behind, or give the network another range)", r, k.routeName(route))
		}
	}
	return there, err
}

// routeName says where a route leads.
func (k *kernelDevices) routeName(r netlink.Route) string {
	switch {
	case r.Type != unix.RTN_UNICAST:
		return "nowhere (a route of type " + fmt.Sprint(r.Type) + ")"
	case r.LinkIndex == 0:
		return "several interfaces"
	}
	if l, err := k.nl.LinkByIndex(r.LinkIndex); err == nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("interface %d", r.LinkIndex)
}

// metric is what the kernel gives to routes that are made without one.
func metric(r netip.Prefix) int {
	if r.Addr().Is6() {
		return 1024 // IP6_RT_PRIO_USER of include/uapi/linux/ipv6_route.h
	}
	return 0
}

// prune removes what a predecessor with another backend has left: routes to single
// peers' subnets, which as the longer prefixes would take their packets.
func (k *kernelDevices) prune(area netstate.Area) error {
	return netstate.Clean(area, func(netlink.Link) bool { return false }, func(what, name string) {
		k.log.Info("removed what another backend has left", "what", what, "name", name)
	})
}

func (k *kernelDevices) addRoute(r netip.Prefix) error {
	err := k.nl.RouteAdd(&netlink.Route{LinkIndex: int(k.index.Load()), Dst: rtnl.IPNet(r)})
	if errors.Is(err, unix.EEXIST) {
		return nil // somebody was faster; the next look says who
	}
	return err
}

// explain adds the remedy to errors of netlink that have one.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}
