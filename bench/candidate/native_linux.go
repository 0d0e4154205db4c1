package candidate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// native is no tunnel at all: the addresses of the link itself. Its crowd is what flannel's host-gw makes: a route for each
// peer's subnet.
type native struct {
	kernel
	link  string
	crowd crowd
}

func (n *native) Up(_ context.Context, bed Bed) (err error) {
	n.a, n.b, n.mtu = bed.Hosts.HostA.Addr4.Addr(), bed.Hosts.HostB.Addr4.Addr(), bed.Hosts.MTU
	n.link = bed.Hosts.HostA.Underlay
	n.crowd.place, err = newPlace(bed)
	return err
}

// Peers implements Crowd.
func (n *native) Peers(ctx context.Context, count int) ([]netip.Addr, error) {
	addrs, err := n.crowd.begin(count)
	if err == nil && count > 0 {
		err = n.crowd.route(ctx, count, n.link, func(int) (netip.Addr, int) { return n.b, 0 })
	}
	return addrs, err
}

func (n *native) Down() error { return errors.Join(n.crowd.undo.all(), n.kernel.Down()) }

// nativeMTU is native with packets as small as the udp tunnel's, so that TCP has the same segment size: what is missing from
// it is the tunnel's work and not its headers. It has addresses of its own on the link, and a route with that MTU between
// them.
type nativeMTU struct{ kernel }

func (n *nativeMTU) Up(_ context.Context, bed Bed) error {
	p, err := newPlace(bed)
	if err != nil {
		return err
	}
	n.a, n.b = p.sides[0].first, p.sides[1].first
	n.mtu = bed.Hosts.MTU - encap.Overhead(bed.Hosts.HostA.Addr4.Addr())
	for i, s := range p.sides {
		if err := s.addAddr(&n.undo, s.Underlay, single(s.first)); err != nil {
			return err
		}
		if err := n.route(s, p.sides[1-i].first); err != nil {
			return err
		}
	}
	return nil
}

// route leads from a side's address to the other's. The source is said: the link's own address would have the link's MTU on
// the way back.
func (n *nativeMTU) route(s side, to netip.Addr) error {
	nl := s.Netlink()
	link, err := nl.LinkByName(s.Underlay)
	if err != nil {
		return fmt.Errorf("candidate: find %s of %s: %w", s.Underlay, s.Name(), err)
	}
	r := &netlink.Route{
		Dst: rtnl.IPNet(single(to)), LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: s.first.AsSlice(), MTU: n.mtu,
	}
	if err := nl.RouteAdd(r); err != nil {
		return fmt.Errorf("candidate: route to %v on %s: %w", to, s.Name(), err)
	}
	n.undo.add(func() error { return nl.RouteDel(r) })
	return nil
}
