package vxlan

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// existingMAC is the Ethernet address of a VXLAN device of the calling thread's
// network namespace, the zero MAC if there is none that can be used.
func existingMAC(name string) netstate.MAC {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netstate.MAC{}
	}
	defer nl.Close()
	l, err := nl.LinkByName(name)
	if err != nil || l.Type() != "vxlan" {
		return netstate.MAC{}
	}
	mac, err := netstate.ParseMAC(l.Attrs().HardwareAddr.String())
	if err != nil {
		return netstate.MAC{}
	}
	return mac
}

// listVXLAN lists the VXLAN devices of the calling thread's network namespace.
func listVXLAN() ([]*netlink.Vxlan, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	// An interrupted dump lacks, at worst, a device that is just being made.
	links, err := nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the devices: %w", err)
	}
	var all []*netlink.Vxlan
	for _, l := range links {
		if x, ok := l.(*netlink.Vxlan); ok {
			all = append(all, x)
		}
	}
	return all, nil
}

// linkIndex is the number of a link in the calling thread's network namespace.
func linkIndex(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	fd, err := openControl()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

// openControl opens a socket for ioctls about devices (netdevice(7)).
func openControl() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	return fd, os.NewSyscallError("socket", err)
}

// tuner is netstate's Tune of a device.
func (o *overlay) tuner(f family) func(netlink.Link) ([]string, error) {
	want := o.offload()
	if want == Auto && (f == v6 || !o.cfg.direct) {
		return nil
	}
	return func(have netlink.Link) (done []string, err error) {
		name := have.Attrs().Name
		if want != Auto {
			changed, failed := setTxChecksum(name, want == On)
			if changed {
				done = append(done, fmt.Sprintf("checksum offload (now %v) of %s", want, name))
			}
			err = failed
		}
		if f == v4 && o.cfg.direct && loosen(name) {
			done = append(done, "reverse path filter of "+name)
		}
		return done, err
	}
}

// setTxChecksum switches a device's checksum offload, if it is not as wished.
func setTxChecksum(name string, on bool) (changed bool, err error) {
	fd, err := openControl()
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	have, err := ethtoolValue(fd, name, unix.ETHTOOL_GTXCSUM, 0)
	if err != nil || (have != 0) == on {
		return false, err
	}
	var value uint32
	if on {
		value = 1
	}
	if _, err = ethtoolValue(fd, name, unix.ETHTOOL_STXCSUM, value); err != nil {
		return false, err
	}
	// The kernel does not say so when something else keeps it as it was.
	if have, err = ethtoolValue(fd, name, unix.ETHTOOL_GTXCSUM, 0); err == nil && (have != 0) != on {
		err = errors.New("the kernel does not switch checksum offload")
	}
	return err == nil, err
}

// loosen has the reverse path filter of a device accept sources whose route leads
// elsewhere (2, RFC 3704's loose mode), where it is strict (1): with DirectRouting a
// peer may send to this host inside VXLAN, while this host sends to it directly. The
// kernel takes the larger of the variables of the device and of all.
func loosen(name string) bool {
	path := func(of string) string { return filepath.Join("/proc/sys/net/ipv4/conf", of, "rp_filter") }
	read := func(of string) string {
		v, err := os.ReadFile(path(of))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(v))
	}
	all, own := read("all"), read(name)
	if all == "2" || own == "2" || all != "1" && own != "1" {
		return false
	}
	return os.WriteFile(path(name), []byte("2"), 0) == nil
}
