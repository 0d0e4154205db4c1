package vxlan

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/vishvananda/netlink"
)

// A device is a VXLAN device as it is to be.
type device struct {
	name     string
	mtu      int
	vni      int
	port     int
	src      netip.Addr // where its packets come from
	link     string     // through which they leave
	gbp      bool
	learning bool
}

// device says what a family's device is to be.
func (o *overlay) device(f family, s kernelbackend.Situation, k netstate.Kernel) device {
	d := device{
		name: deviceName(f, o.cfg.vni), vni: o.cfg.vni, port: o.cfg.port, link: s.Host.Link,
		src: s.Host.Addr4, mtu: o.linkMTU(s.Host) - overhead4, gbp: o.cfg.gbp, learning: o.cfg.learning,
	}
	public := s.Own.Attrs.PublicIP
	if f == v6 {
		d.src, d.mtu, public = s.Host.Addr6, o.linkMTU(s.Host)-overhead6, s.Own.Attrs.PublicIPv6
	}
	// The public address, so that packets come from where peers send to; but the
	// kernel sends only from addresses of this host, and behind NAT that is none
	// (ip_route_output_key_hash_rcu in net/ipv4/route.c).
	if public.IsValid() && public != d.src {
		if hop, err := k.Hop(public); err == nil && hop.Local {
			d.src = public
		}
	}
	return d
}

// make is netstate's New. It is only called where there is no such device.
func (d device) make() (netlink.Link, error) {
	index, err := linkIndex(d.link)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", d.link, err)
	}
	others, err := listVXLAN()
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if err := d.conflict(other); err != nil {
			return nil, err
		}
	}
	return &netlink.Vxlan{
		LinkAttrs: netlink.NewLinkAttrs(), VxlanId: d.vni, VtepDevIndex: index, SrcAddr: d.src.AsSlice(),
		Port: d.port, GBP: d.gbp, Learning: d.learning,
	}, nil
}

// conflict says why the device can't be beside another VXLAN device. The kernel says
// "file exists", which is true of something else too, and for a port only when the
// device is set up (vxlan_config_validate, vxlan_find_sock in
// drivers/net/vxlan/vxlan_core.c).
func (d device) conflict(other *netlink.Vxlan) error {
	if other.Name == d.name || other.Port != d.port {
		return nil
	}
	if !other.FlowBased && overIPv6(other) != d.src.Is6() {
		return nil
	}
	switch {
	case !other.FlowBased && other.VxlanId == d.vni && other.GBP == d.gbp:
		return fmt.Errorf("the device %s has VNI %d on UDP port %d already (remove it: ip link delete %s; or give the network another VNI or Port)",
			other.Name, d.vni, d.port, other.Name)
	case other.Flags&net.FlagUp != 0 && (other.FlowBased || other.GBP != d.gbp):
		return fmt.Errorf("the device %s has UDP port %d for VXLAN of another kind (external: %t, GBP: %t; remove it: ip link delete %s; or give the network another Port or GBP)",
			other.Name, d.port, other.FlowBased, other.GBP, other.Name)
	}
	return nil
}

// overIPv6 reports whether a device's packets travel over IPv6.
func overIPv6(x *netlink.Vxlan) bool {
	ip := x.SrcAddr
	if ip == nil {
		ip = x.Group
	}
	return ip != nil && ip.To4() == nil
}

// unfit is netstate's Unfit: what of an existing device would have packets lost, or
// sent elsewhere, and can't be changed.
func (d device) unfit(have netlink.Link) string {
	x, ok := have.(*netlink.Vxlan)
	if !ok {
		return "it is of type " + have.Type()
	}
	src, _ := netip.AddrFromSlice(x.SrcAddr)
	index, err := linkIndex(d.link)
	switch {
	case x.FlowBased:
		return "it is external, without a VNI"
	case x.VxlanId != d.vni:
		return fmt.Sprintf("its VNI is %d and not %d", x.VxlanId, d.vni)
	case x.Port != d.port:
		return fmt.Sprintf("its port is %d and not %d", x.Port, d.port)
	case err == nil && x.VtepDevIndex != index: // a missing interface is reported elsewhere
		return fmt.Sprintf("its interface is number %d and not %d, %s", x.VtepDevIndex, index, d.link)
	case src.Unmap() != d.src:
		return fmt.Sprintf("its source address is %v and not %v", src.Unmap(), d.src)
	case x.Group != nil && !x.Group.IsUnspecified():
		return fmt.Sprintf("it floods to %v", x.Group)
	case x.GBP != d.gbp:
		return fmt.Sprintf("its GBP is %t and not %t", x.GBP, d.gbp)
	case x.Learning != d.learning:
		return fmt.Sprintf("its learning is %t and not %t", x.Learning, d.learning)
	case x.L2miss || x.L3miss || x.Proxy || x.RSC:
		return "it asks a program for addresses (flannel before 0.9)"
	case d.src.Is6() && x.UDP6ZeroCSumTx:
		return "it sends no UDP checksums, which IPv6 hosts expect"
	}
	return ""
}
