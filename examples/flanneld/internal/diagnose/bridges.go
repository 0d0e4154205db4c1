package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// isRuntime: a bridge of that name is a container runtime's.
func isRuntime(name string) bool {
	return strings.HasPrefix(name, "br-") || slices.Contains([]string{"docker0", "cni0", "cbr0", "kube-bridge"}, name)
}

// checkBridges compares the bridges of container runtimes with this host's subnet.
func checkBridges(f facts, h host) (list []report.Problem) {
	if len(f.subnets) == 0 {
		return nil
	}
	mine := h.bridges(f.subnets)
	for _, l := range h.links {
		switch {
		case l.kind != "bridge" || f.isOverlay(l.name):
		case slices.ContainsFunc(mine, func(m link) bool { return m.name == l.name }):
			list = append(list, f.checkOwnBridge(l)...)
		default:
			list = append(list, f.checkForeignBridge(l, mine)...)
		}
	}
	for _, s := range f.subnets {
		both := h.bridges([]netip.Prefix{s})
		if len(both) < 2 {
			continue
		}
		severity, names := report.Warning, make([]string, 0, len(both))
		busy := 0
		for _, b := range both {
			names = append(names, b.name)
			busy += min(b.ports, 1)
		}
		if busy > 1 {
			severity = report.Error
		}
		list = append(list, problem(severity, "bridge "+names[1], "leave the subnet to one of them: give the other runtime's bridge other addresses, or remove it (ip link del)",
			"the bridges %s all have addresses of this host's subnet %v: containers of one of them are not reached", strings.Join(names, ", "), s))
	}
	return list
}

// checkOwnBridge looks at a bridge that has an address of the subnet.
func (f facts) checkOwnBridge(l link) (list []report.Problem) {
	subject := "bridge " + l.name
	for _, s := range f.subnets {
		for _, a := range l.in(s) {
			if a.Bits() < s.Bits() {
				list = append(list, problem(report.Error, subject, remedy(l.name), "%s has %v, which is more than this host's subnet %v: its containers look for those of other hosts on the bridge", l.name, a, s))
			}
		}
	}
	for _, a := range l.global() {
		// The subnet has changed, and somebody has added the new one's address.
		if network, own := f.network(a.Addr()), f.own(a.Addr()); network.Contains(a.Addr()) && !own.Contains(a.Addr()) {
			list = append(list, problem(report.Warning, subject, remedy(l.name), "%s has %v besides, which is another host's part of the network or nobody's (this host's subnet is %v)", l.name, a, own))
		}
	}
	if l.ports > 0 && f.mtu > 0 && l.portMTU > f.mtu {
		list = append(list, problem(report.Warning, subject, remedy(l.name), "an interface in %s has MTU %d, but packets to other hosts may have %d bytes: large ones are lost where ICMP is filtered", l.name, l.portMTU, f.mtu))
	}
	return list
}

// checkForeignBridge looks at a bridge that has no address of the subnet.
func (f facts) checkForeignBridge(l link, mine []link) (list []report.Problem) {
	subject := "bridge " + l.name
	for _, own := range f.subnets {
		i := slices.IndexFunc(l.global(), func(a netip.Prefix) bool { return a.Addr().Is4() == own.Addr().Is4() })
		if i < 0 {
			continue
		}
		a := l.global()[i]
		severity := report.Warning
		if l.ports > 0 && len(mine) == 0 {
			severity = report.Error
		}
		switch network := f.network(a.Addr()); {
		case network.Contains(a.Addr()) && isRuntime(l.name):
			list = append(list, problem(severity, subject, remedy(l.name), "%s has %v, but this host's subnet is %v: it was another one when %s was made, and other hosts do not find its containers", l.name, a, own, l.name))
		case !slices.Contains([]string{"docker0", "cni0", "cbr0"}, l.name):
			// A network of its own, as docker network create makes it.
		case len(mine) > 0 && l.ports == 0:
			// Docker's, where another runtime has the containers.
		default:
			list = append(list, problem(severity, subject, remedy(l.name), "%s has %v, not an address of this host's subnet %v: its runtime was started without flanneld's options, and other hosts do not find its containers", l.name, a, own))
		}
		break // once for both families
	}
	return list
}

// remedy says how a bridge gets its runtime's present settings.
func remedy(bridge string) string {
	switch bridge {
	case "docker0":
		return "have dockerd start with the options that flanneld mk-docker-opts writes (--bip, --mtu), and restart it: systemctl restart docker"
	case "cni0":
		return "stop the pods of this host, ip link delete cni0, and start them again: the CNI plugin makes it anew"
	}
	return fmt.Sprintf("make %s anew with the settings that the subnet file says", bridge)
}
