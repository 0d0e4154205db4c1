package netstate

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// Clean removes from the network namespace of the calling thread what a backend has
// left behind: the devices for which ours returns true, and routes of the form that
// flannel's backends make in the area. It calls removed for each. What fails does not
// keep the rest from being removed.
func Clean(area Area, ours func(netlink.Link) bool, removed func(what, name string)) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	links, err := rtnl.Again(nl.LinkList)
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", explain(err))
	}
	var errs []error
	for _, l := range links {
		if !ours(l) {
			continue
		}
		if err := nl.LinkDel(l); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove device %s: %w", l.Attrs().Name, explain(err)))
			continue
		}
		removed("device", l.Attrs().Name)
	}
	w := newWork(nl, State{Area: area})
	have, err := w.listRoutes()
	if err != nil {
		errs = append(errs, fmt.Errorf("list the routes: %w", explain(err)))
	}
	for dst, list := range have {
		for _, r := range list {
			if !w.ours(r) {
				continue
			}
			name := dst.String() + " " + w.describe(r)
			if err := nl.RouteDel(&r); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("remove the route to %s: %w", name, explain(err)))
				continue
			}
			removed("route", name)
		}
	}
	return errors.Join(errs...)
}
