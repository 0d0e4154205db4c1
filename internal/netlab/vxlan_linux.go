package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VXLANConfig describes a point-to-point VXLAN device.
type VXLANConfig struct {
	VNI    int        // network identifier, 24 bits
	Port   int        // UDP port of both sides; 0 is 8472, as the kernel's and flannel's
	Local  netip.Addr // outer source
	Remote netip.Addr // outer destination of everything; same family as Local
	Dev    string     // the underlay device
	MTU    int        // 0 leaves it to the kernel: that of Dev less the headers

	// NoChecksum sends an outer UDP checksum of zero. IPv4 only: IPv6 has a
	// setting of its own, and the receiver would have to agree (RFC 6935).
	NoChecksum bool
}

// VXLAN creates a VXLAN device that sends everything to one remote, and brings
// it up. The outer UDP checksum is the kernel's default, on, unless the
// configuration says otherwise. Addresses and routes are the caller's.
func (n *NS) VXLAN(name string, cfg VXLANConfig) error {
	if cfg.Port == 0 {
		cfg.Port = 8472
	}
	op := "create vxlan " + name + " on"
	var err error
	if cfg.NoChecksum {
		err = n.plainVXLAN(op, name, cfg)
	} else {
		err = n.withLink(op, cfg.Dev, func(h *netlink.Handle, dev netlink.Link) error {
			return h.LinkAdd(&netlink.Vxlan{
				LinkAttrs:    netlink.LinkAttrs{Name: name, MTU: cfg.MTU},
				VxlanId:      cfg.VNI,
				VtepDevIndex: dev.Attrs().Index,
				SrcAddr:      cfg.Local.AsSlice(),
				Group:        cfg.Remote.AsSlice(), // a unicast "group" is the default remote
				Port:         cfg.Port,
				Learning:     false, // there is one place to send to
			})
		})
	}
	if err != nil {
		return err
	}
	return n.Up(name)
}

// plainVXLAN creates a device without outer checksums. package netlink can't:
// it leaves IFLA_VXLAN_UDP_CSUM out instead of sending a zero, and the kernel
// (drivers/net/vxlan/vxlan_core.c) takes that for the default and refuses to
// change it afterwards.
func (n *NS) plainVXLAN(op, name string, cfg VXLANConfig) error {
	if !cfg.Local.Is4() || !cfg.Remote.Is4() {
		return n.errorf(op+" "+cfg.Dev, fmt.Errorf("no checksum from %v to %v (that is for IPv4 only)", cfg.Local, cfg.Remote))
	}
	index, err := n.linkIndex(cfg.Dev)
	if err != nil {
		return err
	}
	err = n.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		if cfg.MTU > 0 {
			req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(cfg.MTU))))
		}
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
		data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(cfg.VNI)))
		data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(index)))
		data.AddRtAttr(nl.IFLA_VXLAN_LOCAL, cfg.Local.AsSlice())
		data.AddRtAttr(nl.IFLA_VXLAN_GROUP, cfg.Remote.AsSlice())
		data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(cfg.Port)))
		data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0))
		data.AddRtAttr(nl.IFLA_VXLAN_UDP_CSUM, nl.Uint8Attr(0))
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return n.errorf(op+" "+cfg.Dev, err)
	}
	return nil
}
