package diagnose

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// filterMatters: it is known which packets are to pass.
func (f facts) filterMatters() bool { return len(f.networks) > 0 && len(f.subnets) > 0 }

// settleRules removes the daemon's warnings about policies of nftables' chains that were
// read here: it tells the policy only, but checkFilters takes packets through the rules.
func settleRules(r *report.Report, h host) {
	r.Problems = slices.DeleteFunc(r.Problems, func(p report.Problem) bool {
		return p.Subject == "rules" && slices.ContainsFunc(h.filters, func(f filter) bool {
			table, native := strings.CutPrefix(f.name, nativeName)
			return native && slices.ContainsFunc(f.base, func(base string) bool {
				// As encap/masq has it.
				return strings.HasPrefix(p.Text, "nftables chain "+table+" "+base+" drops forwarded packets by its policy")
			})
		})
	})
}

// checkFilters looks whether containers' packets would be dropped.
func checkFilters(f facts, h host) (list []report.Problem) {
	if !f.filterMatters() {
		return nil
	}
	for _, table := range h.filters {
		for _, own := range f.subnets {
			if there := remote(f, own); own.Addr().Is4() != table.v6 && there.IsValid() {
				list = append(list, f.trial(h, own, there).check(table, f.network(own.Addr()))...)
			}
		}
	}
	return list
}

// A trial is what packets are sent through the tables.
type trial struct {
	own         netip.Prefix
	here, there netip.Addr
	bridges     []string // of the subnet, "" if there is none
	device      string   // by which packets of other hosts come, "" if it is not known
	marked      bool
	forward     bool // flanneld makes rules
}

// trial finds out by which interfaces packets of a subnet go.
func (f facts) trial(h host, own netip.Prefix, there netip.Addr) trial {
	t := trial{own: own, here: last(own), there: there, forward: f.r.Rules != nil && f.r.Rules.Forward}
	for _, b := range h.bridges([]netip.Prefix{own}) {
		t.bridges = append(t.bridges, b.name)
	}
	if len(t.bridges) == 0 {
		t.bridges = []string{""}
	}
	if tunnels, known := f.tunnels(); known && !tunnels {
		t.device = f.ext
	} else if len(f.devices) > 0 {
		t.device = f.devices[0]
		for _, name := range f.devices { // each family may have its own
			if l, ok := h.link(name); ok && l.hasFirst(own) {
				t.device = name
				break
			}
		}
	}
	t.marked = slices.ContainsFunc(h.filters, func(other filter) bool { return other.marks && other.v6 == own.Addr().Is6() })
	return t
}

// check sends packets through a table, and tells why they are dropped.
func (t trial) check(table filter, network netip.Prefix) (list []report.Problem) {
	in := packet{src: t.there, dst: t.here, in: t.device, out: t.bridges[0], marked: t.marked}
	out := packet{src: t.here, dst: t.there, in: t.bridges[0], out: t.device, marked: t.marked}
	chains := table.base
	if table.kept && t.forward {
		chains = nil
	}
	direct, why := t.direct(table)
	if len(direct) > 0 {
		list = append(list, problem(report.Error, "filter "+table.name, t.dockerRemedy(),
			"%s drops what comes from other hosts to %s (%s), since it does not come from the containers' own bridge: so Docker 28 and later keep hosts from containers", table.name, some(direct), some(why)))
	} else {
		chains = append(slices.Clone(chains), table.before...)
	}
	var reasons []string
	for _, p := range []packet{out, in} {
		for _, name := range chains {
			if v := table.walk(name, p); v.dropped && !v.unsure && !slices.Contains(reasons, v.why) {
				reasons = append(reasons, v.why)
			}
		}
	}
	if len(reasons) > 0 {
		list = append(list, problem(report.Error, "filter "+table.name, table.remedy(network),
			"%s drops containers' packets to or from other hosts (%s): no rule accepts those of %v", table.name, some(reasons), network))
	}
	return list
}

// remedy says how a table comes to accept the network's packets.
func (f filter) remedy(network netip.Prefix) string {
	switch {
	case f.name == nativeName+"inet firewalld":
		return "have firewalld trust the network: firewall-cmd --permanent --zone=trusted --add-source=" + network.String() + " && firewall-cmd --reload"
	case f.kept:
		return "run flanneld without -iptables-forward-rules=false, or add rules at the top of FORWARD that accept what comes from and goes to " + network.String()
	}
	return "have this very table accept what comes from and goes to (no rule elsewhere can overrule it) " + network.String()
}

// direct returns what of this host's subnet other hosts do not reach, since a table drops,
// before it routes them, packets that come by another interface than the containers'.
func (t trial) direct(table filter) (what, why []string) {
	for _, to := range append([]target{{addr: t.here}}, table.named...) {
		if !t.own.Contains(to.addr) {
			continue
		}
		p := packet{src: t.there, dst: to.addr, port: to.port, in: t.device, marked: t.marked}
		for _, name := range table.before {
			v := table.walk(name, p)
			if !v.dropped || v.unsure || !slices.ContainsFunc(t.bridges, func(bridge string) bool {
				q := p
				q.in = bridge
				w := table.walk(name, q)
				return !w.dropped || w.unsure
			}) {
				continue
			}
			if !slices.Contains(why, v.why) {
				why = append(why, v.why)
			}
			if to.addr == t.here && to.port == 0 {
				return []string{t.own.String()}, why // then all of them
			}
			what = append(what, to.String())
			break
		}
	}
	return what, why
}

// dockerRemedy says how Docker lets the overlay's packets pass.
func (t trial) dockerRemedy() string {
	device := t.device
	if device == "" {
		device = "the overlay's device"
	}
	return "start dockerd with --allow-direct-routing (Docker 28.2; 28.0 and 28.1: with DOCKER_INSECURE_NO_IPTABLES_RAW=1 in its environment), " +
		"or make the containers' network with -o com.docker.network.bridge.trusted_host_interfaces=" + device
}

// remote is the address of a container on another host.
func remote(f facts, own netip.Prefix) netip.Addr {
	for _, p := range f.r.Peers {
		for _, s := range valid(p.Subnet, p.Subnet6) {
			if s.Addr().Is4() == own.Addr().Is4() {
				return last(s)
			}
		}
	}
	network := f.network(own.Addr())
	if !network.IsValid() || own.Contains(network.Addr()) && own.Contains(last(network)) {
		return netip.Addr{}
	}
	if !own.Contains(last(network)) {
		return last(network)
	}
	return network.Addr().Next()
}

// last is the last address but one of a prefix: an address that nobody has a rule for.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		switch bits := p.Bits() - 8*i; {
		case bits <= 0:
			b[i] = 0xff
		case bits < 8:
			b[i] |= 0xff >> bits
		}
	}
	a, _ := netip.AddrFromSlice(b)
	if before := a.Prev(); p.Contains(before) {
		return before
	}
	return a
}
