// Package netstate makes the links, addresses, routes, neighbours and forwarding
// entries of a network namespace what a backend wants them to be, and keeps them so.
//
// A backend says what it wants as one State, made anew for every round from the
// complete set of its peers. A [Keeper] compares that with what the kernel has, and
// changes only what differs: nothing after a restart that finds all in place, three
// entries when a VXLAN peer joins. Rounds come when the backend has news, when the
// kernel reports a change of something of ours (rtnetlink(7)), from time to time, and
// again after failures. What a dead predecessor left behind is compared like everything
// else: it is taken over, or removed.
//
// An entry that can't be made does not keep the others from being made.
package netstate

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
)

// A State is all that a backend wants of its network namespace.
type State struct {
	// Links are its devices, which it owns: what is on them and not wanted is
	// removed, within the limits of Prune.
	Links []Link
	// Addrs are addresses of those.
	Addrs []Addr
	// Neighs are permanent neighbour entries (ARP, NDP) on them.
	Neighs []Neigh
	// FDB are permanent forwarding entries of those that are VXLAN devices.
	FDB []FDB
	// Routes are routes in the main table, through any link.
	Routes []Route

	// Watch names further links whose changes are a reason to look, such as the
	// external interface: the kernel removes routes with a link that goes down,
	// and does not say so.
	Watch []string
	// Area is where the backend's addresses are. The zero Area is nowhere.
	Area Area
	// Prune removes what is the backend's and not wanted: in the Area on its
	// Links all addresses, permanent neighbours and routes, and all forwarding
	// entries; through other links, routes that this Keeper has made, and those of
	// the form that flannel's backends make: to what can be a host's subnet, with
	// the usual metric and the protocol boot, via a gateway that is no router to
	// anything else, and not through a tunnel of another network. Without Prune nothing is removed: while the peers
	// are not known yet, a predecessor's entries stay.
	Prune bool
}

// An Area is the network, or networks, that a backend's subnets are parts of.
type Area struct {
	// Networks are its ranges, without host bits: an IPv4 one, an IPv6 one, or
	// both.
	Networks []Range
	// Own are this host's subnets; routes inside them are not the backend's.
	Own []netip.Prefix
}

// A Range is one network and how long its subnets are.
type Range struct {
	// Prefix is the network.
	Prefix netip.Prefix
	// SubnetLen is the length of the subnets' prefixes in bits.
	SubnetLen int
	// Min and Max are the first addresses of the first and of the last subnet
	// that hosts can have; the zero Addr is no limit. Networks as wide as
	// 10.0.0.0/8 have other things in them than subnets of hosts.
	Min, Max netip.Addr
}

// AreaOf returns the area of a network, for a host with that lease.
func AreaOf(network lease.Network, own lease.Key) Area {
	a := Area{Own: own.Prefixes()}
	for _, r := range []lease.Range{network.IPv4, network.IPv6} {
		if r.Enabled() {
			a.Networks = append(a.Networks, Range{Prefix: r.Prefix.Masked(), SubnetLen: r.SubnetLen, Min: r.Min, Max: r.Max})
		}
	}
	return a
}

// A Link is a device of the backend's own.
type Link struct {
	// Name is its name, at most 15 bytes.
	Name string
	// MTU is its MTU in bytes; 0 leaves it as it is.
	MTU int
	// MAC is its hardware address; the zero MAC leaves it as it is.
	MAC MAC
	// New is the device as it is to be made by netlink; its name, MTU and
	// hardware address are filled in. nil where Make is there.
	New func() (netlink.Link, error)
	// Make makes the device where that takes more than netlink. It is called in
	// the namespace.
	Make func() error
	// Unfit says what of an existing device of that name can't be changed and
	// is not as it must be; "" if nothing. An unfit device is removed and made
	// anew. nil finds none unfit.
	Unfit func(have netlink.Link) string
	// Sysctls are kernel variables below /proc/sys/net and their values, with *
	// for the link's name: {"ipv6/conf/*/accept_ra", "0"}. They are set before
	// the link is up. One that can't be set is logged, and no error.
	Sysctls [][2]string
	// Tune, if not nil, looks after what else the device needs, in each round
	// when it is up and has its addresses, and says what it had to put right of
	// what had been in place. It is called in the namespace.
	Tune func(have netlink.Link) (done []string, err error)
	// Module is the kernel module and the configuration option that the device
	// type comes from, for the error where the kernel lacks it, such as
	// "vxlan" and "CONFIG_VXLAN".
	Module, Option string
}

// An Addr is an address of a link.
type Addr struct {
	// Link is the name of one of the State's Links.
	Link string
	// Prefix is the address with its length, such as 10.5.3.0/32.
	Prefix netip.Prefix
}

// A MAC is an Ethernet address; the zero MAC is none.
type MAC [6]byte

// ParseMAC reads the usual form, aa:bb:cc:dd:ee:ff, of a single host's address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil:
		return MAC{}, fmt.Errorf("%.64q is no Ethernet address (six bytes, such as 7a:ac:15:15:2b:61)", s)
	case len(hw) != 6:
		return MAC{}, fmt.Errorf("%q is %d bytes long (an Ethernet address has six)", s, len(hw))
	case hw[0]&1 != 0 || bytes.Equal(hw, make([]byte, 6)):
		return MAC{}, fmt.Errorf("%q is no single host's Ethernet address", s)
	}
	return MAC(hw), nil
}

// String is the usual form, "" for the zero MAC.
func (m MAC) String() string {
	if m == (MAC{}) {
		return ""
	}
	return net.HardwareAddr(m[:]).String()
}

// A Neigh says that an IP address on a link has a hardware address.
type Neigh struct {
	// Link is the name of one of the State's Links.
	Link string
	// IP is the neighbour's address.
	IP netip.Addr
	// MAC is its hardware address.
	MAC MAC
	// Peer names whom it is for, in errors.
	Peer string
}

// An FDB entry says that a hardware address is behind a VXLAN endpoint.
type FDB struct {
	// Link is the name of one of the State's Links, a VXLAN device.
	Link string
	// MAC is the hardware address.
	MAC MAC
	// Dst is the endpoint.
	Dst netip.Addr
	// Peer names whom it is for, in errors.
	Peer string
}

// A Route is a unicast route in the main table, with the usual metric.
type Route struct {
	// Dst is where it leads.
	Dst netip.Prefix
	// Gw is the next hop; the zero Addr if Dst is on the link.
	Gw netip.Addr
	// Link is the name of the link, of any.
	Link string
	// OnLink takes the next hop for a neighbour on the link although no route
	// says so.
	OnLink bool
	// Peer names whom it is for, in errors; "" if for all.
	Peer string
}

func (a Addr) String() string { return fmt.Sprintf("address %v of %s", a.Prefix, a.Link) }

func (n Neigh) String() string { return fmt.Sprintf("neighbour %v of %s", n.IP, n.Link) }

func (f FDB) String() string { return fmt.Sprintf("forwarding entry %v of %s", f.MAC, f.Link) }

func (r Route) String() string {
	if !r.Gw.IsValid() {
		return fmt.Sprintf("route to %v through %s", r.Dst, r.Link)
	}
	return fmt.Sprintf("route to %v via %v through %s", r.Dst, r.Gw, r.Link)
}
