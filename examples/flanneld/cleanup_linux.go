package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cleanKernel removes devices and routes, and calls removed for each. was is what the
// subnet file says, the zero File if there is none.
func cleanKernel(was subnetenv.File, removed func(what, name string)) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	if err = removeDevices(nl, was.Key(), removed); err == nil { // else a daemon runs, and wants its routes
		err = errors.Join(removeTunnels(nl, was, removed), removeHoles(nl, was, removed))
	}
	if errors.Is(err, os.ErrPermission) && !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		err = fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}

// removeTunnels removes the devices and routes of the backends whose packets the
// kernel carries, which runCleanup has seen nobody to want. The devices are known by name and type, and by an address in the network
// where the subnet file tells that; another daemon's are in another network.
func removeTunnels(nl *netlink.Handle, was subnetenv.File, removed func(what, name string)) error {
	area := netstate.Area{Own: was.Key().Prefixes()}
	for _, r := range []netstate.Range{{Prefix: was.Network, SubnetLen: was.Subnet.Bits()}, {Prefix: was.Network6, SubnetLen: was.Subnet6.Bits()}} {
		if r.Prefix.IsValid() && r.SubnetLen > 0 {
			area.Networks = append(area.Networks, r)
		}
	}
	return netstate.Clean(area, func(l netlink.Link) bool {
		return isTunnel(l) && (len(area.Networks) == 0 || addressIn(nl, l, area.Networks))
	}, removed)
}

// The digits of VNIs in the names of VXLAN devices: those of long ones are hexadecimal,
// or the names would be too long.
const (
	decimal     = "0123456789"
	hexadecimal = "0123456789abcdef"
)

// isTunnel reports whether a backend, flannel's or ours, may have made the device.
func isTunnel(l netlink.Link) bool {
	switch name := l.Attrs().Name; l.Type() {
	case "vxlan":
		for prefix, digits := range map[string]string{"flannel.": decimal, "flannel-v6.": decimal, "flannel.x": hexadecimal, "flannel6.": hexadecimal} {
			number, ok := strings.CutPrefix(name, prefix)
			if ok && number != "" && strings.Trim(number, digits) == "" {
				return true
			}
		}
	case "ipip":
		return name == "flannel.ipip"
	case "wireguard":
		return name == "flannel-wg" || name == "flannel-wg-v6"
	}
	return false
}

// addressIn reports whether a device has an address in one of the networks, or none
// but link-local ones: it is half made then.
func addressIn(nl *netlink.Handle, l netlink.Link, networks []netstate.Range) bool {
	addrs, err := nl.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	global := false
	for _, a := range addrs {
		have, _ := netip.AddrFromSlice(a.IP)
		have = have.Unmap()
		global = global || !have.IsLinkLocalUnicast()
		for _, r := range networks {
			if r.Prefix.Contains(have) {
				return true
			}
		}
	}
	return !global
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
