package rtnl

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Again repeats a dump that was interrupted by changes, which happens all the time while
// containers start: an incomplete list would make us put back what is there.
func Again[T any](dump func() ([]T, error)) (list []T, err error) {
	for range 20 {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, err
}

// IPNet is the form of a prefix that netlink takes, host bits included.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Prefix is the prefix of what netlink returns, the zero Prefix where there is none.
func Prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

// Addr is the address of what netlink returns, the zero Addr where there is none.
func Addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
