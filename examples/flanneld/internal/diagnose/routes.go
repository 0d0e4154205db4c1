package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// checkRoutes looks for routes that take packets for the network elsewhere, and for
// peers without any.
func checkRoutes(f facts, h host) (list []report.Problem) {
	switch {
	case !h.known || len(f.networks) == 0:
		return nil
	case f.backend == "alloc" || f.backend == "extension":
		return nil // the routes are an operator's business
	}
	for _, r := range h.routes {
		if p, ok := f.judgeRoute(h, r); ok {
			list = append(list, p)
		}
	}
	return append(list, f.unrouted(h)...)
}

// judgeRoute says whether a route is in the overlay's way.
func (f facts) judgeRoute(h host, r route) (p report.Problem, bad bool) {
	network, own := f.network(r.dst.Addr()), f.own(r.dst.Addr())
	where := r.where()
	switch l, _ := h.link(r.dev); {
	case !within(r.dst, network), f.isOverlay(r.dev) && !r.gw.IsValid(), r.dev == "lo":
		return p, false
	case within(r.dst, own):
		if !r.gw.IsValid() || r.dead || l.kind == "bridge" {
			return p, false // containers, in whatever way they are attached
		}
		return problem(report.Error, fmt.Sprintf("route %v", r.dst), r.del(),
			"%v is in this host's own subnet %v, but is routed %s: containers there are not reached, and Docker refuses to start", r.dst, own, where), true
	case f.isOverlay(r.dev) && f.backend != "host-gw": // vxlan and ipip
		return p, false
	case r.kernel && !r.gw.IsValid():
		return p, false // of an interface's address, see checkOverlaps
	case r.viaPeer(f, r.dst):
		return p, false // host-gw, and DirectRouting
	case r.dst == network && f.outranked(h, r):
		return p, false
	case r.dead && r.dst == network:
		return p, false // a guard against the default route
	case f.backend == "" && r.gw.IsValid():
		return p, false // with no daemon nobody knows what routes there should be
	}
	severity, what := report.Error, "packets for it do not take the overlay"
	if _, ok := f.peer(r.dst); !ok && r.dst != network {
		severity = report.Warning
		what = "packets for containers there do not take the overlay"
	}
	return problem(severity, fmt.Sprintf("route %v", r.dst), fmt.Sprintf("find out who made it (another network plugin, a VPN, a second flanneld), and remove it: %s", r.del()),
		"%v is part of the overlay network %v, but is routed %s: %s", r.dst, network, where, what), true
}

// where says where a route leads.
func (r route) where() string {
	switch {
	case r.dead:
		return "nowhere"
	case r.gw.IsValid() && r.dev != "":
		return fmt.Sprintf("to %v by %s", r.gw, r.dev)
	case r.gw.IsValid():
		return fmt.Sprintf("to %v", r.gw)
	case r.dev != "":
		return "to " + r.dev
	}
	return "several ways"
}

// del is the command that removes this route, and no other one to the same.
func (r route) del() string {
	words := []string{"ip route del"}
	if r.dead {
		words = append(words, r.kind)
	}
	words = append(words, r.dst.String())
	if r.gw.IsValid() && r.gw.Is4() != r.dst.Addr().Is4() {
		words = append(words, "via inet6", r.gw.String())
	} else if r.gw.IsValid() {
		words = append(words, "via", r.gw.String())
	}
	if r.dev != "" && !r.dead {
		words = append(words, "dev", r.dev)
	}
	if r.metric != 0 {
		words = append(words, fmt.Sprintf("metric %d", r.metric))
	}
	return strings.Join(words, " ")
}

// viaPeer: the route leads to a peer's subnet straight by the peer.
func (r route) viaPeer(f facts, subnet netip.Prefix) bool {
	p, ok := f.peer(subnet)
	return ok && r.dst == subnet && r.gw.IsValid() && (r.gw == p.PublicIP || r.gw == p.PublicIPv6)
}

// outranked: there is a route of the overlay to the same that the kernel prefers.
func (f facts) outranked(h host, r route) bool {
	for _, o := range h.routes {
		if o.dst == r.dst && f.isOverlay(o.dev) && o.metric < r.metric {
			return true
		}
	}
	return false
}

// unrouted tells of peers that only the default route leads to, or none.
func (f facts) unrouted(h host) []report.Problem {
	var lost []netip.Prefix
	for _, p := range f.r.Peers {
		switch f.backend {
		case "udp", "vxlan", "host-gw", "ipip", "wireguard":
		default:
			continue // the cloud has the routes, or somebody who is not known
		}
		for _, s := range valid(p.Subnet, p.Subnet6) {
			if r, ok := h.best(s); f.reaches(p) && f.network(s.Addr()).IsValid() && (!ok || !within(r.dst, f.network(s.Addr()))) {
				lost = append(lost, s)
			}
		}
	}
	if !f.running || len(lost) == 0 || len(f.r.Unserved) > 0 {
		return nil // of the last, the daemon says why
	}
	return []report.Problem{problem(report.Error, "route", "see flanneld's log for why it can't be made, or restart it; find out who removes it",
		"there is no route to %s of %d peers (%s)", plural(len(lost), "subnet"), len(f.r.Peers), some(lost))}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// checkOverlaps looks for interfaces whose own network has a part of the overlay's
// addresses.
func checkOverlaps(f facts, h host) (list []report.Problem) {
	for _, l := range h.links {
		if l.name == "lo" || f.isOverlay(l.name) || f.isContainers(h, l) {
			continue // for the last, see checkBridges
		}
		for _, a := range l.global() {
			network, own := f.network(a.Addr()), f.own(a.Addr())
			if !network.Overlaps(a) || own.Contains(a.Addr()) {
				continue
			}
			severity, effect := report.Error, "packets for containers there go to it"
			if a.Bits() < network.Bits() {
				severity, effect = report.Warning, "hosts there with addresses of the overlay network can't be reached"
			}
			list = append(list, problem(severity, "interface "+l.name, "give one of them another range: the overlay network's is in etcd (config), and must not be used otherwise",
				"%s has the address %v, and the overlay network is %v: %s", l.name, a, network, effect))
		}
	}
	return list
}
