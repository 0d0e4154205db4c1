package diagnose

import (
	"net/netip"
	"slices"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// A host is a snapshot of one.
type host struct {
	// known: links, addresses and routes could be read.
	known  bool
	links  []link
	routes []route
	// policies are the rules of policy routing, ways where they lead packets to peers.
	policies []policy
	ways     []way
	sysctl   map[string]string // such as "net.ipv4.ip_forward": "1", of those in sysctls
	files    files
	// filters are packet filters that see forwarded packets.
	filters []filter
}

// A link is an interface.
type link struct {
	index   int
	name    string
	kind    string // as of ip -d link: "bridge", "tun", "vxlan", "veth"; "device" for hardware
	up      bool
	running bool // up, and with a carrier
	mtu     int
	addrs   []netip.Prefix
	ports   int // of a bridge: the interfaces in it
	portMTU int // the largest MTU of these
	// tx and rx are the kernel's counters.
	tx, rx report.DeviceDirection
}

// hasFirst reports whether the link has the first address of a subnet, which flannel
// gives the overlay's device, of whatever length: the first versions made it the
// network's.
func (l link) hasFirst(subnet netip.Prefix) bool {
	return slices.ContainsFunc(l.addrs, func(a netip.Prefix) bool { return a.Addr() == subnet.Masked().Addr() })
}

// in returns the link's addresses inside of a prefix.
func (l link) in(p netip.Prefix) (list []netip.Prefix) {
	for _, a := range l.addrs {
		if p.Contains(a.Addr()) {
			list = append(list, a)
		}
	}
	return list
}

// global are the link's addresses but for IPv6's link-local ones.
func (l link) global() (list []netip.Prefix) {
	for _, a := range l.addrs {
		if !a.Addr().IsLinkLocalUnicast() || a.Addr().Is4() {
			list = append(list, a)
		}
	}
	return list
}

// A route is one of the main table.
type route struct {
	dst    netip.Prefix
	dev    string // "" if it goes nowhere, or several ways
	gw     netip.Addr
	metric int
	// kernel: it comes with an interface's address.
	kernel bool
	// dead: packets are dropped or refused.
	dead bool
	// kind is how ip route calls it, if it is dead: "blackhole" and the like.
	kind string
}

// link returns the interface of that name.
func (h host) link(name string) (link, bool) {
	i := slices.IndexFunc(h.links, func(l link) bool { return l.name == name })
	if i < 0 {
		return link{}, false
	}
	return h.links[i], true
}

// hasAddr reports whether any interface has the address.
func (h host) hasAddr(a netip.Addr) bool {
	return slices.ContainsFunc(h.links, func(l link) bool {
		return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// best returns the route that the kernel takes to all of a prefix, as far as the main
// table decides that.
func (h host) best(to netip.Prefix) (best route, ok bool) {
	for _, r := range h.routes {
		if !within(to, r.dst) {
			continue
		}
		if !ok || r.dst.Bits() > best.dst.Bits() || r.dst.Bits() == best.dst.Bits() && r.metric < best.metric {
			best, ok = r, true
		}
	}
	return best, ok
}

// bridges returns the bridges that have an address in one of the prefixes.
func (h host) bridges(in []netip.Prefix) (list []link) {
	for _, l := range h.links {
		if l.kind == "bridge" && slices.ContainsFunc(in, func(p netip.Prefix) bool { return len(l.in(p)) > 0 }) {
			list = append(list, l)
		}
	}
	return list
}

// sysctls are the kernel variables of which a snapshot has the values, for the given
// interfaces.
func sysctls(links []link) []string {
	keys := []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter"}
	for _, l := range links {
		// A hundred containers are a hundred interfaces, of which none matters.
		if l.kind != "veth" || l.ports > 0 {
			keys = append(keys, perLink("forwarding", l.name), perLink("rp_filter", l.name))
		}
	}
	return keys
}

// perLink is an IPv4 variable of one interface. sysctl(8) writes the dots of a name as
// slashes.
func perLink(key, name string) string {
	dotless := []byte(name)
	for i, c := range dotless {
		if c == '.' {
			dotless[i] = '/'
		}
	}
	return "net.ipv4.conf." + string(dotless) + "." + key
}
