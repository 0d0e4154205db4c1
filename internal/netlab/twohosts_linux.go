package netlab

import (
	"errors"
	"fmt"
	"net/netip"
)

// TwoHostsConfig says what TwoHosts builds. Its zero value is two bare hosts
// on an Ethernet link.
type TwoHostsConfig struct {
	MTU        int  // of the underlay link, bytes; 0 is 1500
	OverlayMTU int  // of the overlay route and the pods; 0 is MTU-28 (IPv4 and UDP header)
	Pods       bool // a namespace with one pod behind each host
	IPv6       bool // IPv6 on everything, next to IPv4
	RPFilter   int  // IPv4 reverse path filter in the hosts: 0 off, 1 strict, 2 loose

	// Impairment, if not nil, puts an Impairer between the hosts.
	Impairment *Impairment
}

// TwoHosts is the network that flannel is for, small: two hosts on one link,
// each with a subnet of the overlay network and, with Pods, one pod in it.
//
//	PodA 10.244.1.2                                        PodB 10.244.2.2
//	  | eth0                                                 | eth0
//	  | pod0 10.244.1.1                                      | pod0 10.244.2.1
//	HostA eth0 192.0.2.1/24 --------------- eth0 192.0.2.2/24 HostB
//
// The hosts forward. The tunnel between them is the caller's: it opens a TUN
// device in each host (Host.Do) and calls Host.AttachOverlay.
type TwoHosts struct {
	HostA, HostB *Host
	PodA, PodB   *NS // nil without Pods

	Network4 netip.Prefix // 10.244.0.0/16, the overlay
	Network6 netip.Prefix // fd00:244::/32; used with IPv6 only

	MTU, OverlayMTU int       // as configured, defaults filled in
	Link            *Impairer // nil without Impairment
}

// A Host is one side of TwoHosts. The IPv6 fields are filled in always, and
// assigned with TwoHostsConfig.IPv6 only.
type Host struct {
	*NS          // the host itself
	Pod      *NS // nil without pods
	Underlay string
	PodLink  string // the host's end of the pod's veth; the pod's end is "eth0"

	Addr4, Addr6       netip.Prefix // on the underlay: 192.0.2.1/24, 2001:db8::1/64
	Subnet4, Subnet6   netip.Prefix // the host's part of the overlay: 10.244.1.0/24, fd00:244:1::/64
	Gateway4, Gateway6 netip.Addr   // on PodLink: 10.244.1.1, fd00:244:1::1
	PodAddr4, PodAddr6 netip.Addr   // in the pod: 10.244.1.2, fd00:244:1::2

	overlay *TwoHosts
	ipv6    bool
}

// TwoHosts builds the network. After an error the lab holds parts of it, which
// Close removes.
func (l *Lab) TwoHosts(cfg TwoHostsConfig) (*TwoHosts, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	if cfg.OverlayMTU == 0 {
		cfg.OverlayMTU = cfg.MTU - 28
	}
	t := &TwoHosts{
		Network4:   netip.MustParsePrefix("10.244.0.0/16"),
		Network6:   netip.MustParsePrefix("fd00:244::/32"),
		MTU:        cfg.MTU,
		OverlayMTU: cfg.OverlayMTU,
	}
	var err error
	if t.HostA, err = l.newHost(t, cfg, 1); err != nil {
		return nil, err
	}
	if t.HostB, err = l.newHost(t, cfg, 2); err != nil {
		return nil, err
	}
	if cfg.Impairment != nil {
		t.Link, err = l.Impaired(t.HostA.NS, t.HostA.Underlay, t.HostB.NS, t.HostB.Underlay, cfg.MTU, *cfg.Impairment)
	} else {
		err = l.Veth(t.HostA.NS, t.HostA.Underlay, t.HostB.NS, t.HostB.Underlay, cfg.MTU)
	}
	if err != nil {
		return nil, err
	}
	for _, h := range []*Host{t.HostA, t.HostB} {
		if err := h.addAddrs(h.NS, h.Underlay, h.Addr4, h.Addr6); err != nil {
			return nil, err
		}
		if cfg.Pods {
			if err := l.addPod(h, cfg.OverlayMTU); err != nil {
				return nil, err
			}
		}
	}
	t.PodA, t.PodB = t.HostA.Pod, t.HostB.Pod
	return t, nil
}

// newHost creates the namespace of host number i (1 or 2) as a router.
func (l *Lab) newHost(t *TwoHosts, cfg TwoHostsConfig, i int) (*Host, error) {
	ns, err := l.Namespace([]string{"", "hostA", "hostB"}[i])
	if err != nil {
		return nil, err
	}
	h := &Host{
		NS:       ns,
		Underlay: "eth0",
		PodLink:  "pod0",
		Addr4:    netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i)),
		Addr6:    netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i)),
		Subnet4:  netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
		Subnet6:  netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", i)),
		overlay:  t,
		ipv6:     cfg.IPv6,
	}
	h.Gateway4, h.Gateway6 = h.Subnet4.Addr().Next(), h.Subnet6.Addr().Next()
	h.PodAddr4, h.PodAddr6 = h.Gateway4.Next(), h.Gateway6.Next()

	// The reverse path filter is set even to 0: a new namespace inherits the
	// machine's, and the lab should be the same on every machine. The kernel
	// takes the larger of "all" and the device's, which starts as "default".
	settings := [][2]string{
		{"net/ipv4/conf/all/rp_filter", fmt.Sprint(cfg.RPFilter)},
		{"net/ipv4/conf/default/rp_filter", fmt.Sprint(cfg.RPFilter)},
		{"net/ipv4/ip_forward", "1"},
	}
	if cfg.IPv6 {
		settings = append(settings, [2]string{"net/ipv6/conf/all/forwarding", "1"})
	}
	for _, s := range settings {
		if err := ns.Sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// addPod creates the pod of a host and connects it.
func (l *Lab) addPod(h *Host, mtu int) error {
	pod, err := l.Namespace("pod" + h.Name()[len("host"):])
	if err != nil {
		return err
	}
	h.Pod = pod
	if err := l.Veth(h.NS, h.PodLink, pod, "eth0", mtu); err != nil {
		return err
	}
	in := func(addr netip.Addr, subnet netip.Prefix) netip.Prefix { return netip.PrefixFrom(addr, subnet.Bits()) }
	err = errors.Join(
		h.addAddrs(h.NS, h.PodLink, in(h.Gateway4, h.Subnet4), in(h.Gateway6, h.Subnet6)),
		h.addAddrs(pod, "eth0", in(h.PodAddr4, h.Subnet4), in(h.PodAddr6, h.Subnet6)),
	)
	if err != nil {
		return err
	}
	err = pod.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), h.Gateway4, "eth0", 0)
	if err == nil && h.ipv6 {
		err = pod.AddRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), h.Gateway6, "eth0", 0)
	}
	return err
}

// addAddrs adds the IPv4 address, and the IPv6 address if the network has IPv6.
func (h *Host) addAddrs(ns *NS, link string, addr4, addr6 netip.Prefix) error {
	err := ns.AddAddr(link, addr4)
	if err == nil && h.ipv6 {
		err = ns.AddAddr(link, addr6)
	}
	return err
}

// AttachOverlay makes a device of the host, usually its TUN device, the way to
// the overlay, as flannel does: it brings the device up with the overlay MTU,
// gives it the first address of the host's subnet (10.244.1.0/32,
// fd00:244:1::/128), and routes the whole network to it.
func (h *Host) AttachOverlay(dev string) error {
	t := h.overlay
	if err := h.SetMTU(dev, t.OverlayMTU); err != nil {
		return err
	}
	if err := h.Up(dev); err != nil {
		return err
	}
	single := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }
	if err := h.addAddrs(h.NS, dev, single(h.Subnet4), single(h.Subnet6)); err != nil {
		return err
	}
	err := h.AddRoute(t.Network4, netip.Addr{}, dev, t.OverlayMTU)
	if err == nil && h.ipv6 {
		err = h.AddRoute(t.Network6, netip.Addr{}, dev, t.OverlayMTU)
	}
	return err
}
