package diagnose

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// readWays asks the kernel where it would send packets to the peers, if there are any
// rules beside those that every host has: what this host itself sends, and what its
// containers do. What takes too long is left out.
func readWays(ctx context.Context, f facts, h host) ([]policy, []way) {
	const limit = time.Second / 2
	end := time.Now().Add(limit)
	targets := f.routed(h)
	if len(targets) == 0 {
		return nil, nil
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil
	}
	defer nl.Close()
	policies := readPolicies(nl)
	names := make(map[int]string, len(h.links))
	for _, l := range h.links {
		names[l.index] = l.name
	}
	var ways []way
	for _, to := range targets {
		if ctx.Err() != nil || time.Now().After(end) {
			break
		}
		v6 := to.Addr().Is6()
		if !slices.ContainsFunc(policies, func(p policy) bool { return p.v6 == v6 }) {
			continue
		}
		var asked []*netlink.RouteGetOptions
		asked = append(asked, nil)
		if at := h.bridges([]netip.Prefix{f.own(to.Addr())}); len(at) > 0 {
			src := last(f.own(to.Addr()))
			asked = append(asked, &netlink.RouteGetOptions{IifIndex: at[0].index, SrcAddr: src.AsSlice()})
		}
		for _, options := range asked {
			if w, ok := readWay(nl, to, options, names); ok {
				ways = append(ways, w)
			}
		}
	}
	return policies, ways
}

// readPolicies reads the rules beside those for the tables local, main and default.
func readPolicies(nl *netlink.Handle) (list []policy) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := rtnl.Again(func() ([]netlink.Rule, error) { return nl.RuleList(family) })
		if err != nil {
			continue // a kernel without
		}
		for _, r := range all {
			switch r.Table {
			case unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT:
			default:
				list = append(list, policy{v6: family == netlink.FAMILY_V6, pref: r.Priority, table: r.Table, src: rtnl.Prefix(r.Src), dst: rtnl.Prefix(r.Dst)})
			}
		}
	}
	return list
}

// readWay asks for the first address in a subnet that a container may have. Of a
// container's own packets only that counts which is known: the kernel also refuses
// them where forwarding is off, or their sender is not plausible.
func readWay(nl *netlink.Handle, to netip.Prefix, options *netlink.RouteGetOptions, names map[int]string) (w way, ok bool) {
	w = way{to: to, forwarded: options != nil}
	list, err := nl.RouteGetWithOptions(to.Masked().Addr().Next().AsSlice(), options)
	switch {
	case err == nil && len(list) > 0:
	case options == nil && refusal(err):
		w.refused = err.Error()
		return w, true
	default:
		return w, false
	}
	r := list[0]
	w.dev, w.gw, w.table = names[r.LinkIndex], rtnl.Addr(r.Gw), r.Table
	if via, is := r.Via.(*netlink.Via); is {
		w.gw = rtnl.Addr(via.Addr)
	}
	switch r.Type {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		w.refused = "blackhole, unreachable or prohibit"
	}
	return w, true
}

// refusal: what the kernel says of a rule or a route of type blackhole, prohibit or
// unreachable (fib_props in net/ipv4/fib_semantics.c, fib_rule_action).
func refusal(err error) bool {
	for _, is := range []error{unix.EINVAL, unix.EACCES, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}
