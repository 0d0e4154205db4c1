package diagnose

import (
	"net/netip"
	"slices"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// checkInterface looks at the interface by which peers are reached.
func checkInterface(f facts, h host) (list []report.Problem) {
	if !h.known || f.ext == "" {
		return nil
	}
	subject := "interface " + f.ext
	l, ok := h.link(f.ext)
	switch {
	case !ok:
		return append(list, problem(report.Error, subject, "bring it back, or restart flanneld to have it choose another one (-iface)",
			"the external interface %s is gone: no peer can be reached", f.ext))
	case !l.up:
		return append(list, problem(report.Error, subject, "ip link set "+f.ext+" up", "the external interface %s is down: no peer can be reached", f.ext))
	case !l.running:
		return append(list, problem(report.Error, subject, "look at the cable, the switch's port or the virtual machine's network", "the external interface %s has no carrier: no peer can be reached", f.ext))
	}
	if x := f.r.Host; x != nil {
		for _, a := range []netip.Addr{x.Addr4, x.Addr6} {
			if a.IsValid() && !h.hasAddr(a) {
				list = append(list, problem(report.Error, subject, "give it the address back (ip address add), or restart flanneld to have it take the one that there is",
					"%s no longer has the address %v, to which the peers send", f.ext, a))
			}
		}
	}
	if o, known := f.overhead(); known && f.mtu > 0 && f.mtu+o > l.mtu && !f.tunnelTooBig(h) {
		list = append(list, problem(report.Warning, subject, "raise the MTU of "+f.ext+", or restart flanneld, and then the containers, which keep the MTU that they began with",
			"%s has MTU %d, but containers have %d, and the backend %s needs %d bytes more: large packets are cut or lost", f.ext, l.mtu, f.mtu, f.backend, o))
	}
	return list
}

// overhead is how many bytes the backend puts in front of packets; known is false for
// backends that others write.
func (f facts) overhead() (bytes int, known bool) {
	v6 := f.r.Host != nil && !f.r.Host.Addr4.IsValid() && f.r.Host.Addr6.IsValid()
	switch f.backend {
	case "udp":
		if v6 {
			return encap.Overhead(netip.IPv6Unspecified()), true
		}
		return encap.Overhead(netip.IPv4Unspecified()), true
	case "vxlan": // Ethernet, VXLAN, UDP and IP; with both families, see checkDevices
		if v6 {
			return 70, true
		}
		return 50, true
	case "ipip":
		return 20, true
	case "wireguard":
		if v6 {
			return 80, true
		}
		return 60, true
	case "host-gw":
		return 0, true
	}
	return 0, false
}

// tunnelTooBig: checkDevices says what checkInterface would say.
func (f facts) tunnelTooBig(h host) bool {
	o, known := f.overhead()
	ext, ok := h.link(f.ext)
	return known && ok && slices.ContainsFunc(f.devices, func(name string) bool {
		l, ok := h.link(name)
		return ok && l.mtu+o > ext.mtu
	})
}

// checkDevices looks at the overlay's devices.
func checkDevices(f facts, h host) (list []report.Problem) {
	if !h.known || !f.running {
		return nil // they go away with the daemon, or it puts them right
	}
	if yes, _ := f.tunnels(); yes && len(f.devices) == 0 {
		return []report.Problem{problem(report.Error, "device", "look at flanneld's log, and restart it",
			"there is no device of the backend %s with an address of this host's subnet %s: no packet reaches a peer", f.backend, some(f.subnets))}
	}
	for i, name := range f.devices {
		l, ok := h.link(name)
		subject := "device " + name
		switch {
		case !ok && i >= f.must:
		case !ok:
			list = append(list, problem(report.Error, subject, "see flanneld's log for why it can't make it again, or restart it",
				"the overlay's device %s is gone: no packet reaches a peer", name))
		case !l.up:
			list = append(list, problem(report.Error, subject, "ip link set "+name+" up; find out who took it down",
				"the overlay's device %s is down: no packet reaches a peer", name))
		default:
			list = append(list, f.checkDeviceMTU(h, l)...)
		}
	}
	for _, s := range f.subnets {
		if len(list) > 0 || len(f.devices) == 0 || slices.ContainsFunc(f.devices, func(name string) bool { l, _ := h.link(name); return l.hasFirst(s) }) {
			continue
		}
		list = append(list, problem(report.Warning, "device "+f.devices[0], "restart flanneld; find out who removes it",
			"%s does not have the address %v: what this host itself sends to containers elsewhere gets no answer", f.devices[0], s.Addr()))
	}
	return list
}

// checkDeviceMTU compares a device's MTU with that of the way out and of containers.
func (f facts) checkDeviceMTU(h host, l link) (list []report.Problem) {
	subject := "device " + l.name
	o, known := f.overhead()
	ext, ok := h.link(f.ext)
	if known && ok && l.mtu+o > ext.mtu {
		list = append(list, problem(report.Warning, subject, "raise the MTU of "+f.ext+", or restart flanneld, and then the containers, which keep the MTU that they began with",
			"%s has MTU %d, and the backend %s needs %d bytes more, but %s has %d: large packets are cut or lost", l.name, l.mtu, f.backend, o, f.ext, ext.mtu))
	}
	if f.mtu > l.mtu {
		list = append(list, problem(report.Warning, subject, "ip link set "+l.name+" mtu to the former value, or restart flanneld",
			"%s has MTU %d, but containers have %d: their large packets are refused", l.name, l.mtu, f.mtu))
	}
	return list
}

// checkForwarding looks whether the kernel forwards containers' packets.
func checkForwarding(f facts, h host) (list []report.Problem) {
	severity := report.Warning // Docker switches it on when it starts
	mine := h.bridges(f.subnets)
	if len(mine) > 0 {
		severity = report.Error
	}
	add := func(key, text string) {
		list = append(list, problem(severity, "forwarding", "sysctl -w "+key+"=1, and put it into /etc/sysctl.d", "%s is 0: %s", key, text))
	}
	v4, v6 := f.families()
	if key := "net.ipv6.conf.all.forwarding"; v6 && h.sysctl[key] == "0" {
		add(key, "the kernel does not forward containers' IPv6 packets")
	}
	if key := "net.ipv4.ip_forward"; v4 && h.sysctl[key] == "0" {
		add(key, "the kernel does not forward containers' packets")
		return list // it has set those of the interfaces, too
	}
	if !v4 {
		return list
	}
	from := slices.Clone(f.devices)
	if yes, known := f.tunnels(); known && !yes && f.ext != "" {
		from = append(from, f.ext)
	}
	for _, b := range mine {
		from = append(from, b.name)
	}
	for _, name := range from {
		if key := perLink("forwarding", name); h.sysctl[key] == "0" {
			add(key, "the kernel does not forward what comes from "+name)
		}
	}
	return append(list, checkReversePath(f, h)...)
}

// checkReversePath looks for peers whose packets the kernel takes for forged, since
// those to them would take another way (RFC 3704): strict filtering does no harm as
// long as both are the same.
func checkReversePath(f facts, h host) (list []report.Problem) {
	all := h.sysctl["net.ipv4.conf.all.rp_filter"]
	for _, name := range f.devices {
		key := perLink("rp_filter", name)
		// The kernel takes the larger of both: Documentation/networking/ip-sysctl.rst.
		if v := max(all, h.sysctl[key]); v != "1" {
			continue
		}
		var stray []netip.Prefix
		for _, p := range f.r.Peers {
			if r, ok := h.best(p.Subnet); p.Subnet.IsValid() && ok && !f.isOverlay(r.dev) && !r.viaPeer(f, p.Subnet) {
				stray = append(stray, p.Subnet)
			}
		}
		if len(stray) > 0 {
			list = append(list, problem(report.Warning, "rp_filter "+name, "put the routes right, or set "+key+" and net.ipv4.conf.all.rp_filter to 2",
				"rp_filter of %s is strict, and the way to %s is another one: the kernel drops what comes from there", name, some(stray)))
		}
	}
	return list
}
