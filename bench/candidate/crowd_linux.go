package candidate

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// maxCrowd is how many subnets of 256 addresses a place's block has.
const maxCrowd = 1 << (24 - 10)

// A crowd is many peers of host A, all of which are host B in truth: host B takes every address of the block for its own.
//
// So the sender's work is that of a large cluster (routes, neighbours, a table of n entries), the receiver's that of two
// hosts, and all packets go to one address outside, also those of the kernel's VXLAN.
type crowd struct {
	place place
	undo  undo
}

// crowdSubnet is the i-th peer's subnet.
func crowdSubnet(block netip.Prefix, i int) netip.Prefix {
	b := block.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i)<<8)
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

// begin removes the crowd there was, makes host B take the packets for n new peers, and returns their addresses. With
// n = 0 nobody is left.
func (c *crowd) begin(n int) ([]netip.Addr, error) {
	if n < 0 || n > maxCrowd {
		return nil, fmt.Errorf("candidate: %d peers (0 to %d)", n, maxCrowd)
	}
	if err := c.undo.all(); err != nil || n == 0 {
		return nil, err
	}
	b := c.place.sides[1]
	lo, err := b.Netlink().LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("candidate: find lo of %s: %w", b.Name(), err)
	}
	// As the kernel does for each address of a device: ip-route(8), type local.
	local := &netlink.Route{
		Dst: rtnl.IPNet(c.place.crowd), LinkIndex: lo.Attrs().Index,
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if err := b.Netlink().RouteAdd(local); err != nil {
		return nil, fmt.Errorf("candidate: deliver %v on %s: %w", c.place.crowd, b.Name(), err)
	}
	c.undo.add(func() error { return b.Netlink().RouteDel(local) })
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		addrs[i] = crowdSubnet(c.place.crowd, i).Addr().Next().Next() // as the first pod's
	}
	return addrs, nil
}

// route adds a route on host A to every peer's subnet. via says how the i-th is reached, by gateway and flags.
func (c *crowd) route(ctx context.Context, n int, dev string, via func(i int) (gateway netip.Addr, flags int)) error {
	nl := c.place.sides[0].Netlink()
	link, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("candidate: find %s: %w", dev, err)
	}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		gateway, flags := via(i)
		r := &netlink.Route{
			Dst: rtnl.IPNet(crowdSubnet(c.place.crowd, i)), Gw: gateway.AsSlice(),
			LinkIndex: link.Attrs().Index, Flags: flags,
		}
		if err := nl.RouteAdd(r); err != nil {
			return fmt.Errorf("candidate: route to peer %d: %w", i, err)
		}
		c.undo.add(func() error { return nl.RouteDel(r) })
	}
	return nil
}

// neighbour adds a permanent entry on host A.
func (c *crowd) neighbour(n *netlink.Neigh) error {
	nl := c.place.sides[0].Netlink()
	if err := nl.NeighSet(n); err != nil {
		return fmt.Errorf("candidate: neighbour %v: %w", n, err)
	}
	c.undo.add(func() error { return nl.NeighDel(n) })
	return nil
}
