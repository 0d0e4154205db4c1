// Package rtnl has what everybody needs who talks to the kernel's network by
// github.com/vishvananda/netlink: its addresses in the form of net/netip, and lists that
// are whole.
package rtnl
