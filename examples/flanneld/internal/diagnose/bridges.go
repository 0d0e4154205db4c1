package diagnose

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// isRuntime: a bridge of that name is a container runtime's.
func isRuntime(name string) bool {
	if slices.Contains([]string{"docker0", "docker_gwbridge", "cni0", "cbr0", "kube-bridge"}, name) {
		return true
	}
	for _, prefix := range []string{"br-", "cni-", "podman", "nerdctl"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// inNetwork: the link has an address of the overlay network, and not of more than that.
func (f facts) inNetwork(l link) bool {
	return slices.ContainsFunc(l.global(), func(a netip.Prefix) bool { return within(a, f.network(a.Addr())) })
}

// isContainers: a bridge is a container runtime's, by its name, or because it has an
// address of the network and is no way to a router or to peers.
func (f facts) isContainers(h host, l link) bool {
	if l.kind != "bridge" || f.isOverlay(l.name) {
		return false
	}
	lan := l.name == f.ext || slices.ContainsFunc(h.routes, func(r route) bool { return r.dev == l.name && r.gw.IsValid() })
	return isRuntime(l.name) || !lan && f.inNetwork(l)
}

// usesCNI: containers of this host get their addresses by CNI, as far as can be seen: of
// its bridges' names, or by the configuration of the plugin flannel.
func (f facts) usesCNI(h host) bool {
	return h.files.cni || slices.ContainsFunc(h.links, func(l link) bool {
		return l.kind == "bridge" && (slices.Contains([]string{"cni0", "cbr0", "kube-bridge"}, l.name) || strings.HasPrefix(l.name, "cni-") && f.inNetwork(l))
	})
}

// leavesDocker: Docker has addresses of its own beside a runtime that has flannel's,
// which is how hosts of Kubernetes often are.
func (f facts) leavesDocker(h host) bool {
	mine := h.bridges(f.subnets)
	if slices.ContainsFunc(mine, func(l link) bool { return l.name == "docker0" }) {
		return false
	}
	return len(mine) > 0 || f.usesCNI(h)
}

// dockerIsMeant: somebody has told Docker to take addresses of this host's subnet.
func (f facts) dockerIsMeant(h host) bool {
	if slices.ContainsFunc(h.files.docker, func(file file) bool { return options(file.text)["bip"] != "" }) {
		return true
	}
	var config struct{ Bip string }
	return json.Unmarshal(h.files.config.text, &config) == nil && config.Bip != "" && f.isOwn(config.Bip)
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
			list = append(list, f.checkForeignBridge(h, l, mine)...)
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
func (f facts) checkForeignBridge(h host, l link, mine []link) (list []report.Problem) {
	subject := "bridge " + l.name
	if i := slices.IndexFunc(l.global(), func(a netip.Prefix) bool { return f.network(a.Addr()).Contains(a.Addr()) && f.own(a.Addr()).IsValid() }); i >= 0 {
		a := l.global()[i]
		if !f.isContainers(h, l) {
			return nil // see checkOverlaps
		}
		severity := report.Warning
		if l.ports > 0 || slices.ContainsFunc(f.r.Peers, func(p report.Peer) bool { return p.Subnet.Overlaps(a) || p.Subnet6.Overlaps(a) }) {
			severity = report.Error
		}
		return []report.Problem{problem(severity, subject, remedy(l.name), "%s has %v, but this host's subnet is %v: it was another one when %s was made, and other hosts do not find its containers", l.name, a, f.own(a.Addr()), l.name)}
	}
	severity := report.Warning
	if l.ports > 0 && len(mine) == 0 {
		severity = report.Error
	}
	switch l.name {
	case "docker0":
		switch {
		case f.leavesDocker(h) && (len(mine) > 0 || l.ports == 0 || !f.dockerIsMeant(h)):
			return nil
		case f.leavesDocker(h):
			severity = report.Warning
		}
	case "cni0", "cbr0":
		if len(mine) > 0 && (l.ports == 0 || !h.files.cni) {
			return nil // of another network, where another runtime has flannel's
		}
	default:
		return nil // a network of its own, as docker network create makes it
	}
	for _, a := range l.global() {
		if own := f.own(a.Addr()); own.IsValid() {
			return []report.Problem{problem(severity, subject, remedy(l.name), "%s has %v, not an address of this host's subnet %v: its runtime was started without flanneld's options, and other hosts do not find its containers", l.name, a, own)}
		}
	}
	return nil
}

// remedy says how a bridge gets its runtime's present settings.
func remedy(bridge string) string {
	switch {
	case bridge == "docker0":
		return "have dockerd start with the options that flanneld mk-docker-opts writes (--bip, --mtu), and restart it: systemctl restart docker"
	case bridge == "cni0":
		return "stop the pods of this host, ip link delete cni0, and start them again: the CNI plugin makes it anew"
	case strings.HasPrefix(bridge, "br-"):
		return "it is of a network of Docker's: remove that (docker network ls, docker network rm), and make it anew with a --subnet that is not in the overlay network"
	}
	return fmt.Sprintf("stop the containers that use it, ip link delete %s, and start them again: their runtime makes it anew; if it is no container runtime's, give it addresses outside of the overlay network", bridge)
}
