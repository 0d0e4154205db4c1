package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// The network, with the names it has in the namespaces. Both ways from
// container to container cross the same link and the same two kernels, which
// forward; the tunnel is the only difference between them.
//
//	PodA                HostA                          HostB                PodB
//	eth0 10.244.1.2 --- pod0 --- flannel0 = UDP = flannel0 --- pod0 --- eth0 10.244.2.2
//	eth1 10.245.1.2 --- plain0 ---- eth0 ----- eth0 ---- plain0 ------- eth1 10.245.2.2

// A way is one way from container A to container B.
type way struct {
	name string
	a, b end
}

// end is a container on a way.
type end struct {
	place traffic.Place
	addr  netip.Addr
}

// reverse is the way from B to A.
func (w way) reverse() way { return way{w.name, w.b, w.a} }

// setUp makes the network, starts both hosts' processes, and notes what the
// report says about them. died is told when a process ends by itself.
func (d *demo) setUp(ctx context.Context, died context.CancelCauseFunc) error {
	if err := d.build(); err != nil {
		return err
	}
	a, b := d.hosts.HostA, d.hosts.HostB
	for i, end := range []struct {
		name        string
		host, other *netlab.Host
		pod         end
	}{{"A", a, b, d.tunnel.a}, {"B", b, a, d.tunnel.b}} {
		p, err := d.startHost(ctx, end.name, end.host, end.other, died)
		if err != nil {
			return err
		}
		d.procs = append(d.procs, p)
		d.noted = append(d.noted, counters{})
		d.report.Hosts = append(d.report.Hosts, host{
			Name: end.name, Underlay: d.underlay(end.host), Subnet: d.subnet(end.host),
			Pod: end.pod.addr, PodPlain: d.podPlain(i + 1), Drops: []drop{}, OverloadDrops: []drop{},
		})
	}
	d.report.Network = network{
		MTU: d.MTU, TunnelMTU: d.tunnelMTU(), Port: encap.DefaultPort, IPv6: d.IPv6, Wire: d.Wire,
		EnginesPerHost: d.Engines, SecondsPerSpeed: d.Duration.Seconds(),
	}
	d.report.System = thisSystem()
	return nil
}

// thisSystem says where this runs.
func thisSystem() system {
	s := system{OS: "Linux", Arch: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		s.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return s
}

// build makes the network, all but the tunnel.
func (d *demo) build() (err error) {
	d.hosts, err = d.lab.TwoHosts(netlab.TwoHostsConfig{MTU: d.MTU, OverlayMTU: d.tunnelMTU(), Pods: true, IPv6: d.IPv6})
	if err != nil {
		return err
	}
	a, b := d.hosts.HostA, d.hosts.HostB
	if !d.IPv6 {
		// Or the kernel looks for IPv6 routers by multicast on every device.
		// The tunnel can't carry that and counts it as not-unicast.
		for _, ns := range []*netlab.NS{a.NS, b.NS, a.Pod, b.Pod} {
			if err := disableIPv6(ns); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(d.addPlain(a, b, 1, 2), d.addPlain(b, a, 2, 1)); err != nil {
		return err
	}
	if d.Wire {
		if err := d.lab.SetLinkMode(netlab.M2, netlab.End{NS: a.NS, Link: a.Underlay}, netlab.End{NS: b.NS, Link: b.Underlay}); err != nil {
			return err
		}
	}
	// What a socket in the container makes in one piece should cross the
	// tunnel in one piece: see tun.Config.FitGSO. Only the container's end
	// needs it; the host's end carries what an engine has joined already.
	size, segs := tun.GSOLimits(d.tunnelMTU())
	if err := errors.Join(a.Pod.SetGSOMax("eth0", size, segs), b.Pod.SetGSOMax("eth0", size, segs)); err != nil {
		return err
	}
	if d.IPv6 {
		if err := errors.Join(quietIPv6(a.NS), quietIPv6(b.NS)); err != nil {
			return err
		}
	}
	d.plain = way{"the plain link", end{traffic.In(a.Pod), d.podPlain(1)}, end{traffic.In(b.Pod), d.podPlain(2)}}
	d.tunnel = way{"flannelkit", end{traffic.In(a.Pod), d.podAddr(a)}, end{traffic.In(b.Pod), d.podAddr(b)}}
	return nil
}

// tunnelMTU is what the outer headers leave of the link's MTU.
func (d *demo) tunnelMTU() int {
	outer := netip.IPv4Unspecified()
	if d.IPv6 {
		outer = netip.IPv6Unspecified()
	}
	return d.MTU - encap.Overhead(outer)
}

// plainSubnet is the second subnet of host 1 or 2, of which the tunnel knows
// nothing.
func (d *demo) plainSubnet(i int) netip.Prefix {
	if d.IPv6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd00:245:%d::/64", i))
	}
	return netip.MustParsePrefix(fmt.Sprintf("10.245.%d.0/24", i))
}

func (d *demo) podPlain(i int) netip.Addr { return d.plainSubnet(i).Addr().Next().Next() }

// addPlain gives the container of host number i a second interface, and routes
// to the other's second subnet by way of the other host, as on any network.
func (d *demo) addPlain(h, other *netlab.Host, i, o int) error {
	const inHost, inPod = "plain0", "eth1"
	if err := d.lab.Veth(h.NS, inHost, h.Pod, inPod, d.MTU); err != nil {
		return err
	}
	here, there := d.plainSubnet(i), d.plainSubnet(o)
	gateway := here.Addr().Next()
	return errors.Join(
		h.AddAddr(inHost, netip.PrefixFrom(gateway, here.Bits())),
		h.Pod.AddAddr(inPod, netip.PrefixFrom(d.podPlain(i), here.Bits())),
		h.Pod.AddRoute(there, gateway, inPod, 0),
		h.AddRoute(there, d.underlay(other), h.Underlay, 0),
	)
}

// underlay, podAddr and subnet choose by IP version.
func (d *demo) underlay(h *netlab.Host) netip.Addr {
	if d.IPv6 {
		return h.Addr6.Addr()
	}
	return h.Addr4.Addr()
}

func (d *demo) podAddr(h *netlab.Host) netip.Addr {
	if d.IPv6 {
		return h.PodAddr6
	}
	return h.PodAddr4
}

func (d *demo) subnet(h *netlab.Host) netip.Prefix {
	if d.IPv6 {
		return h.Subnet6
	}
	return h.Subnet4
}

// disableIPv6 switches IPv6 off in a namespace, where the kernel has it.
func disableIPv6(ns *netlab.NS) error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil
	}
	return ns.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
}

// quietIPv6 keeps a host's kernel from sending multicast into the TUN device
// that is to be opened. Without an address of the kernel's own choice
// (addr_gen_mode) it looks for no routers there, and a device that is no router
// itself joins no routers' groups. The host forwards all the same: for that
// the kernel asks conf/all.
func quietIPv6(ns *netlab.NS) error {
	return errors.Join(
		ns.Sysctl("net/ipv6/conf/default/addr_gen_mode", "1"),
		ns.Sysctl("net/ipv6/conf/default/forwarding", "0"),
	)
}
