package candidate

import (
	"context"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// kernelVXLAN is the kernel's VXLAN device between the two hosts, made with the kernel's defaults (outer UDP checksum on), as
// flannel's vxlan backend makes it.
type kernelVXLAN struct{ kernel }

// vxlanOverhead is an IPv4, a UDP, a VXLAN and an Ethernet header (RFC 7348): 20+8+8+14.
const vxlanOverhead = 50

const vxlanDevice = "vxlan0"

func (v *kernelVXLAN) Name() string { return "vxlan" }

func (v *kernelVXLAN) Up(_ context.Context, bed Bed) error {
	subnet := netip.MustParsePrefix("10.250.0.0/24")
	v.mtu = bed.Hosts.MTU - vxlanOverhead
	v.a = subnet.Addr().Next()
	v.b = v.a.Next()
	a, b := bed.Hosts.HostA, bed.Hosts.HostB
	for _, end := range []struct {
		host, other *netlab.Host
		addr        netip.Addr
	}{{a, b, v.a}, {b, a, v.b}} {
		err := end.host.VXLAN(vxlanDevice, netlab.VXLANConfig{
			VNI: 1, Local: end.host.Addr4.Addr(), Remote: end.other.Addr4.Addr(), Dev: end.host.Underlay, MTU: v.mtu,
		})
		if err != nil {
			return err
		}
		if err := end.host.AddAddr(vxlanDevice, netip.PrefixFrom(end.addr, subnet.Bits())); err != nil {
			return err
		}
	}
	return nil
}
