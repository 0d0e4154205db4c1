package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// Veth connects two namespaces with a veth pair. Both ends have the given MTU,
// in bytes without the Ethernet header, and are up with carrier when Veth
// returns. The namespaces may be the same one.
func (l *Lab) Veth(a *NS, nameA string, b *NS, nameB string, mtu int) error {
	op := fmt.Sprintf("create veth to %s/%s: link add", b.name, nameB)
	err := a.withNetlink(op, func(h *netlink.Handle) error {
		b.mu.RLock()
		defer b.mu.RUnlock()
		if b.fd < 0 {
			return ErrClosed
		}
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nameA, MTU: mtu},
			PeerName:      nameB,
			PeerMTU:       uint32(mtu),
			PeerNamespace: netlink.NsFd(b.fd),
		})
	})
	if err != nil {
		return err
	}
	if err := errors.Join(a.Up(nameA), b.Up(nameB)); err != nil {
		return err
	}
	// The first end gets its carrier and its queue from the kernel's link
	// watch, a moment later. A packet sent before would be lost, and a TCP
	// connection would begin with a second of waiting.
	return errors.Join(a.waitCarrier(nameA), b.waitCarrier(nameB))
}

// waitCarrier waits until the device may send.
func (n *NS) waitCarrier(link string) error {
	const patience = 5 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var state netlink.LinkOperState
		err := n.withLink("wait for carrier of", link, func(_ *netlink.Handle, dev netlink.Link) error {
			state = dev.Attrs().OperState
			return nil
		})
		if err != nil || state == netlink.OperUp {
			return err
		}
		if time.Now().After(deadline) {
			return n.errorf("wait for carrier of "+link, fmt.Errorf("still %v after %v", state, patience))
		}
	}
}

// Bridge creates a bridge with the given devices as its ports, and brings it
// up.
func (n *NS) Bridge(name string, ports ...string) error {
	err := n.withNetlink("create bridge "+name, func(h *netlink.Handle) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := h.LinkAdd(br); err != nil {
			return err
		}
		for _, port := range ports {
			dev, err := h.LinkByName(port)
			if err != nil {
				return fmt.Errorf("find port %s: %w", port, err)
			}
			if err := h.LinkSetMaster(dev, br); err != nil {
				return fmt.Errorf("add port %s: %w", port, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.Up(name)
}

// Up brings a device up.
func (n *NS) Up(link string) error {
	return n.withLink("bring up", link, (*netlink.Handle).LinkSetUp)
}

// Down takes a device down. The kernel forgets its routes, and its IPv6
// addresses.
func (n *NS) Down(link string) error {
	return n.withLink("take down", link, (*netlink.Handle).LinkSetDown)
}

// DelLink removes a device, and the other end of a veth pair with it.
func (n *NS) DelLink(link string) error {
	return n.withLink("delete", link, (*netlink.Handle).LinkDel)
}

// SetMTU sets the MTU of a device in bytes, without the link header.
func (n *NS) SetMTU(link string, mtu int) error {
	return n.withLink("set mtu of", link, func(h *netlink.Handle, dev netlink.Link) error {
		return h.LinkSetMTU(dev, mtu)
	})
}

// SetGSOMax limits the super-packets that the stack hands to a device: size in
// bytes (for IPv4 and IPv6 alike) and segments. 0 leaves a limit as it is. The
// kernel's defaults are 65536 and 65535.
func (n *NS) SetGSOMax(link string, size, segs int) error {
	return n.withLink("set gso limits of", link, func(h *netlink.Handle, dev netlink.Link) error {
		if size > 0 {
			if err := h.LinkSetGSOMaxSize(dev, size); err != nil {
				return fmt.Errorf("size %d: %w", size, err)
			}
			// Beyond 64 KB IPv4 has a limit of its own, since Linux 6.3.
			if err := h.LinkSetGSOIPv4MaxSize(dev, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("ipv4 size %d: %w", size, err)
			}
		}
		if segs > 0 {
			if err := h.LinkSetGSOMaxSegs(dev, segs); err != nil {
				return fmt.Errorf("segments %d: %w", segs, err)
			}
		}
		return nil
	})
}

// AddAddr gives a device an address. The prefix length makes the connected
// route. An IPv6 address can be used at once.
func (n *NS) AddAddr(link string, prefix netip.Prefix) error {
	return n.withLink("add address "+prefix.String()+" to", link, func(h *netlink.Handle, dev netlink.Link) error {
		addr := &netlink.Addr{IPNet: rtnl.IPNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		return h.AddrAdd(dev, addr)
	})
}

// AddRoute adds a route to dst by way of a gateway, a device, or both: via may
// be the zero Addr and dev may be empty, but not both. With mtu 0 the route
// has the MTU of its device.
func (n *NS) AddRoute(dst netip.Prefix, via netip.Addr, dev string, mtu int) error {
	return n.changeRoute("add", dst, via, dev, mtu, (*netlink.Handle).RouteAdd)
}

// DelRoute removes a route that was added with the same arguments.
func (n *NS) DelRoute(dst netip.Prefix, via netip.Addr, dev string) error {
	return n.changeRoute("delete", dst, via, dev, 0, (*netlink.Handle).RouteDel)
}

func (n *NS) changeRoute(verb string, dst netip.Prefix, via netip.Addr, dev string, mtu int, change func(*netlink.Handle, *netlink.Route) error) error {
	op := fmt.Sprintf("%s route %v via %v dev %q", verb, dst, via, dev)
	return n.withNetlink(op, func(h *netlink.Handle) error {
		route := &netlink.Route{Dst: rtnl.IPNet(dst), MTU: mtu}
		if via.IsValid() {
			route.Gw = via.AsSlice()
		} else if dst.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if dev != "" {
			link, err := h.LinkByName(dev)
			if err != nil {
				return err
			}
			route.LinkIndex = link.Attrs().Index
		}
		return change(h, route)
	})
}

// LinkStats counts what a device has carried since it was created.
type LinkStats struct {
	RxPackets, TxPackets uint64 // a super-packet counts as one
	RxBytes, TxBytes     uint64
	RxDropped, TxDropped uint64
	RxErrors, TxErrors   uint64
}

// LinkStats reads the counters of a device.
func (n *NS) LinkStats(link string) (LinkStats, error) {
	var stats LinkStats
	err := n.withLink("read counters of", link, func(_ *netlink.Handle, dev netlink.Link) error {
		s := dev.Attrs().Statistics
		if s == nil {
			return errors.New("the kernel sent none")
		}
		stats = LinkStats{
			RxPackets: s.RxPackets, TxPackets: s.TxPackets,
			RxBytes: s.RxBytes, TxBytes: s.TxBytes,
			RxDropped: s.RxDropped, TxDropped: s.TxDropped,
			RxErrors: s.RxErrors, TxErrors: s.TxErrors,
		}
		return nil
	})
	return stats, err
}

// linkIndex returns the number of a device.
func (n *NS) linkIndex(link string) (int, error) {
	var index int
	err := n.withLink("find", link, func(_ *netlink.Handle, dev netlink.Link) error {
		index = dev.Attrs().Index
		return nil
	})
	return index, err
}
