package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cleanKernel removes devices and routes, and calls removed for each.
func cleanKernel(was lease.Key, removed func(what, name string)) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	if err = removeDevices(nl, was, removed); err == nil { // else a daemon runs, and wants its routes
		err = removeHoles(nl, removed)
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}

// usualName reports whether a udp backend may have given that name.
func usualName(name string) bool {
	number, ok := strings.CutPrefix(name, "flannel")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// removeDevices removes TUN devices that a daemon has left behind: persistent ones that
// no process has open, with the address of the subnet that the subnet file tells, or
// with the usual name. flannel's own are not persistent, and end with it.
func removeDevices(nl *netlink.Handle, was lease.Key, removed func(what, name string)) error {
	links, err := nl.LinkList()
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	var all []error
	for _, l := range links {
		dev, ok := l.(*netlink.Tuntap)
		if !ok || dev.Mode != netlink.TUNTAP_MODE_TUN {
			continue
		}
		ours := hasAddress(nl, l, was)
		if !ours && !usualName(dev.Name) {
			continue
		}
		if dev.NonPersist || dev.Queues > 0 && dev.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 || dev.RawFlags&unix.IFF_LOWER_UP != 0 {
			if ours {
				all = append(all, fmt.Errorf("device %s is in use (stop flanneld first)", dev.Name))
			}
			continue // another daemon's
		}
		if err := nl.LinkDel(l); err != nil {
			all = append(all, fmt.Errorf("remove device %s: %w", dev.Name, err))
			continue
		}
		removed("device", dev.Name)
	}
	return errors.Join(all...)
}

// hasAddress reports whether a device has the address that a udp backend gives it: the
// first one of the subnet.
func hasAddress(nl *netlink.Handle, l netlink.Link, was lease.Key) bool {
	addrs, err := nl.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		have, _ := netip.AddrFromSlice(a.IP)
		for _, p := range was.Prefixes() {
			if have.Unmap() == p.Addr() {
				return true
			}
		}
	}
	return false
}
