package candidate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// kernelVXLAN is the kernel's VXLAN device between the two hosts, made with the kernel's defaults (outer UDP checksum on), as
// flannel's vxlan backend makes it.
type kernelVXLAN struct {
	kernel
	spec   spec
	device string
	crowd  crowd
}

// vxlanOverhead is an IPv4, a UDP, a VXLAN and an Ethernet header (RFC 7348): 20+8+8+14.
const vxlanOverhead = 50

// vxlanPort is flannel's, and the default of Linux.
const vxlanPort = 8472

func vxlanOptions() []option {
	return []option{{name: "csum", about: "the outer UDP checksum is zero", words: []string{"off"}}}
}

func newKernelVXLAN(s spec) (Candidate, error) {
	return &kernelVXLAN{kernel: kernel{named: named(s.text)}, spec: s}, nil
}

func (v *kernelVXLAN) Up(_ context.Context, bed Bed) error {
	if err := netlab.Check(netlab.NeedVXLAN); err != nil {
		return fmt.Errorf("candidate: vxlan: %w: %w", ErrUnavailable, err)
	}
	p, err := newPlace(bed)
	if err != nil {
		return err
	}
	v.crowd.place, v.device = p, p.device("vxlan")
	v.a, v.b, v.mtu = p.sides[0].first, p.sides[1].first, bed.Hosts.MTU-vxlanOverhead
	for _, s := range p.sides {
		err := s.VXLAN(v.device, netlab.VXLANConfig{
			VNI: p.n, Port: int(p.port(vxlanPort, v.spec)), NoChecksum: v.spec.is("csum", "off"),
			Local: s.Addr4.Addr(), Remote: s.other.Addr4.Addr(), Dev: s.Underlay, MTU: v.mtu,
		})
		if err != nil {
			return err
		}
		v.undo.add(func() error { return s.DelLink(v.device) })
		if err := s.AddAddr(v.device, netip.PrefixFrom(s.first, p.network.Bits())); err != nil {
			return err
		}
	}
	return nil
}

// Peers implements Crowd. For each peer there is what flannel has: a route by way of the first address of the peer's subnet,
// which is that of the peer's device, and a permanent neighbour entry for that. The one forwarding entry is for the address
// of host B's device, which stands in for everybody's: with addresses of their own they would be n entries.
func (v *kernelVXLAN) Peers(ctx context.Context, n int) ([]netip.Addr, error) {
	addrs, err := v.crowd.begin(n)
	if err != nil || n == 0 {
		return nil, err
	}
	a, b := v.crowd.place.sides[0], v.crowd.place.sides[1]
	here, errA := a.Netlink().LinkByName(v.device)
	there, errB := b.Netlink().LinkByName(v.device)
	if err := errors.Join(errA, errB); err != nil {
		return nil, fmt.Errorf("candidate: find %s: %w", v.device, err)
	}
	index, mac := here.Attrs().Index, there.Attrs().HardwareAddr
	err = v.crowd.neighbour(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		HardwareAddr: mac, IP: b.Addr4.Addr().AsSlice(),
	})
	if err != nil {
		return nil, err
	}
	gateway := func(i int) (netip.Addr, int) { return crowdSubnet(v.crowd.place.crowd, i).Addr(), unix.RTNH_F_ONLINK }
	for i := range n {
		addr, _ := gateway(i)
		err := v.crowd.neighbour(&netlink.Neigh{
			LinkIndex: index, State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST, HardwareAddr: mac, IP: addr.AsSlice(),
		})
		if err := errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
	}
	return addrs, v.crowd.route(ctx, n, v.device, gateway)
}

func (v *kernelVXLAN) Down() error { return errors.Join(v.crowd.undo.all(), v.kernel.Down()) }
