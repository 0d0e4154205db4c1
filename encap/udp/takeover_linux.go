package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// takeOver attaches to the device that a predecessor has left, if there is one. A
// device in use is never touched; then open makes another, or says what is in the
// way.
func (k *kernelDevices) takeOver(p plan) error {
	found, err := k.predecessors(p)
	if err != nil {
		return err
	}
	for _, dev := range found {
		name := dev.Name
		many := dev.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
		switch {
		case dev.NonPersist || many && dev.Queues > 0:
			// Somebody has it. One more queue could be attached all the same,
			// and would get a part of the packets.
			err = fmt.Errorf("%s: %w (another process has the device open: stop it, or set another Options.Device)", name, unix.EBUSY)
		case many != (k.opts.Engines > 1) && k.ours(dev, p):
			err = k.remake(dev, p)
		default:
			err = k.attach(name, p)
		}
		switch {
		case err == nil:
			k.found, k.strays = true, true
			k.log.Info("took over the device of a predecessor", "device", name)
			return nil
		case strings.Contains(k.opts.Device, "%") && errors.Is(err, unix.EBUSY):
			continue
		default:
			return err
		}
	}
	return nil
}

// predecessors returns the devices to try, the most promising first: the one of the
// wanted name, or those with a number that carry our address or route.
func (k *kernelDevices) predecessors(p plan) (found []*netlink.Tuntap, err error) {
	before, after, pattern := strings.Cut(k.opts.Device, "%d")
	if !pattern {
		link, err := k.nl.LinkByName(k.opts.Device)
		if dev, ok := link.(*netlink.Tuntap); err == nil && ok {
			return []*netlink.Tuntap{dev}, nil
		}
		return nil, nil // tun.Open says what is wrong
	}
	links, err := rtnl.Again(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, link := range links {
		dev, ok := link.(*netlink.Tuntap)
		number := strings.TrimSuffix(strings.TrimPrefix(link.Attrs().Name, before), after)
		if ok && before+number+after == dev.Name && number != "" && strings.Trim(number, "0123456789") == "" && k.ours(dev, p) {
			found = append(found, dev)
		}
	}
	return found, nil
}

// ours reports whether a device carries our address, or the route to our network.
func (k *kernelDevices) ours(dev *netlink.Tuntap, p plan) bool {
	have, err := k.addresses(dev)
	if err != nil {
		return false
	}
	for _, s := range p.local {
		if _, ok := have[hostAddress(s)]; ok {
			return true
		}
	}
	for _, r := range p.routes {
		routes, err := k.routesTo(r)
		if err != nil {
			return false
		}
		for _, route := range routes {
			if route.LinkIndex == dev.Index {
				return true
			}
		}
	}
	return false
}

// remake replaces a device that was made for one queue by one for several, or the
// other way round: the kernel can't change that. Meanwhile guard routes keep packets
// for the network from leaving by the default route.
func (k *kernelDevices) remake(dev *netlink.Tuntap, p plan) error {
	for _, r := range p.routes {
		k.guarded = append(k.guarded, r)
		if err := k.nl.RouteReplace(guard(r)); err != nil {
			return fmt.Errorf("guard route to %v: %w", r, explain(err))
		}
	}
	if err := k.nl.LinkDel(dev); err != nil {
		return fmt.Errorf("remove %s, which has another number of queues: %w", dev.Name, explain(err))
	}
	return k.attach(dev.Name, p)
}

// guardMetric is worse than that of any route one would make for a network.
const guardMetric = 1 << 30

func guard(r netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: rtnl.IPNet(r), Type: unix.RTN_BLACKHOLE, Priority: guardMetric}
}

// unguard removes the guard routes, once the device's are there.
func (k *kernelDevices) unguard() error {
	var errs []error
	for _, r := range k.guarded {
		if err := k.nl.RouteDel(guard(r)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the guard route to %v: %w", r, explain(err)))
		}
	}
	k.guarded = nil
	return errors.Join(errs...)
}

// clean removes what a predecessor has left on its device and is not of this plan:
// addresses of its subnet, routes to its network. It comes after settle, because the
// kernel drops all routes of a device with its last IPv4 address.
func (k *kernelDevices) clean(link netlink.Link, p plan) error {
	if !k.strays {
		return nil
	}
	k.strays = false
	var errs []error
	have, err := k.addresses(link)
	errs = append(errs, err)
	for _, s := range p.local {
		delete(have, hostAddress(s))
	}
	for prefix, addr := range have {
		if err := k.nl.AddrDel(link, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove the old address %v: %w", prefix, explain(err)))
		}
	}
	routes, err := rtnl.Again(func() ([]netlink.Route, error) { return k.nl.RouteList(link, netlink.FAMILY_ALL) })
	errs = append(errs, err)
	for _, r := range routes {
		dst := rtnl.Prefix(r.Dst)
		if r.Protocol == unix.RTPROT_KERNEL || slices.Contains(p.routes, dst) {
			continue
		}
		if err := k.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the old route to %v: %w", dst, explain(err)))
		}
	}
	return errors.Join(errs...)
}
