package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// holeMetric is the worst metric that anything has, so that any other route to the
// subnet, above all the bridge's, goes before ours. It is also how cleanup knows our
// blackhole routes, and those that a udp backend may leave when it is killed while it
// replaces its device.
const holeMetric = 1 << 30

// addHoles makes a blackhole route for each subnet that has none.
func addHoles(subnets []netip.Prefix) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("blackhole route: netlink: %w", err)
	}
	defer nl.Close()
	var all []error
	for _, s := range subnets {
		err := nl.RouteReplace(&netlink.Route{Dst: rtnl.IPNet(s), Type: unix.RTN_BLACKHOLE, Priority: holeMetric})
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
		}
		if err != nil {
			all = append(all, fmt.Errorf("blackhole route to %v: %w", s, err))
		}
	}
	return errors.Join(all...)
}

// removeHoles removes the blackhole routes of ours, and of a backend's, that have to do
// with the networks of the subnet file, or all if it tells of none: another daemon's
// keep packets from leaving in the clear. It calls removed for each.
func removeHoles(nl *netlink.Handle, was subnetenv.File, removed func(what, name string)) error {
	var all []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// By type and not by metric, for which netlink has no filter.
		routes, err := nl.RouteListFiltered(family, &netlink.Route{Type: unix.RTN_BLACKHOLE}, netlink.RT_FILTER_TYPE)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			all = append(all, fmt.Errorf("list routes: %w", err))
		}
		for _, r := range routes {
			if r.Priority != holeMetric || r.Dst == nil || !concerns(was, r.Dst) {
				continue
			}
			if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				all = append(all, fmt.Errorf("remove blackhole route to %v: %w", r.Dst, err))
				continue
			}
			removed("blackhole route", r.Dst.String())
		}
	}
	return errors.Join(all...)
}

// concerns reports whether a destination is in the networks of a subnet file, or the
// file tells of none.
func concerns(was subnetenv.File, dst *net.IPNet) bool {
	told := false
	for _, n := range []netip.Prefix{was.Network, was.Network6} {
		told = told || n.IsValid()
		a, _ := netip.AddrFromSlice(dst.IP)
		if n.IsValid() && n.Contains(a.Unmap()) {
			return true
		}
	}
	return !told
}
