package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch listens to the kernel's announcements of changes to links, addresses and
// routes, and calls changed for those that concern the device or the network. What
// changed is not of interest: settle looks for itself. So one socket serves for all
// of it, and one that overflowed need not be replaced.
func (k *kernelDevices) watch(routes []netip.Prefix, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("watch the device: %w", os.NewSyscallError("socket", err))
	}
	k.events = os.NewFile(uintptr(fd), "netlink")
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		err = errors.Join(fmt.Errorf("watch the device: %w", os.NewSyscallError("bind", err)), k.events.Close())
		k.events = nil
		return err
	}
	k.watcher.Go(func() {
		buf := make([]byte, 64<<10) // more than any message
		for {
			n, err := k.events.Read(buf)
			switch {
			case errors.Is(err, unix.ENOBUFS):
				changed() // some announcements are lost
			case err != nil:
				if !errors.Is(err, os.ErrClosed) {
					k.log.Error("changes of the device are not noticed any more, but by Sync", "err", err)
				}
				return
			case k.concerns(buf[:n], routes):
				changed()
			}
		}
	})
	return nil
}

// concerns reports whether one of the messages is about the device or the network.
func (k *kernelDevices) concerns(b []byte, routes []netip.Prefix) bool {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	index := uint32(k.index.Load())
	return slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
			// The index is in the same place of struct ifinfomsg and ifaddrmsg.
			return len(m.Data) < 8 || binary.NativeEndian.Uint32(m.Data[4:]) == index
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			return routeConcerns(m, index, routes)
		}
		return false
	})
}

func routeConcerns(m syscall.NetlinkMessage, index uint32, routes []netip.Prefix) bool {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return true
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_OIF:
			if len(a.Value) == 4 && binary.NativeEndian.Uint32(a.Value) == index {
				return true
			}
		case unix.RTA_DST:
			addr, ok := netip.AddrFromSlice(a.Value)
			if ok && slices.Contains(routes, netip.PrefixFrom(addr, int(m.Data[1]))) { // rtm_dst_len
				return true
			}
		}
	}
	return false
}
