package diagnose

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// mostWays is how many addresses the kernel is asked for: it takes some microseconds
// for each. Of more peers every second, third and so on is looked at.
const mostWays = 1000

// A way is what the kernel does with a packet, rules of policy routing included.
type way struct {
	to  netip.Prefix // the peer's subnet
	dev string
	gw  netip.Addr
	// table is where the kernel has found it; 0 if it is not known.
	table int
	// refused is why the kernel does not send it at all.
	refused string
	// forwarded: of a container's packet, not of one of this host itself.
	forwarded bool
}

// A policy is one rule of policy routing, as of ip rule, beside those that every host
// has.
type policy struct {
	v6    bool
	pref  int
	table int // 0 if it names none
	// src and dst are what it is for; zero for all.
	src, dst netip.Prefix
}

// routed are the peers' subnets that the main table leads to by the overlay: of the
// others checkRoutes tells.
func (f facts) routed(h host) (list []netip.Prefix) {
	switch f.backend {
	case "udp", "vxlan", "host-gw", "ipip", "wireguard":
	default:
		return nil
	}
	for _, p := range f.r.Peers {
		for _, s := range valid(p.Subnet, p.Subnet6) {
			if r, ok := h.best(s); ok && f.reaches(p) && (f.isOverlay(r.dev) || r.viaPeer(f, s)) {
				list = append(list, s)
			}
		}
	}
	if step := (len(list) + mostWays - 1) / mostWays; step > 1 {
		for i := 0; i*step < len(list); i++ {
			list[i] = list[i*step]
		}
		list = list[:(len(list)+step-1)/step]
	}
	return list
}

// checkWays looks for packets to peers that rules of policy routing lead away from the
// routes of the main table.
func checkWays(f facts, h host) (list []report.Problem) {
	type kind struct {
		dev     string
		gw      netip.Addr
		table   int
		refused string
	}
	ofHost := make(map[kind]bool)
	strays, order := make(map[kind][]netip.Prefix), []kind(nil)
	for _, w := range h.ways {
		direct := route{dst: w.to, gw: w.gw}.viaPeer(f, w.to)
		if w.refused == "" && (f.isOverlay(w.dev) || direct || isCommon(w.table)) {
			continue
		}
		k := kind{w.dev, w.gw, w.table, w.refused}
		if strays[k] == nil {
			order = append(order, k)
		}
		ofHost[k] = ofHost[k] || !w.forwarded
		if !slices.Contains(strays[k], w.to) {
			strays[k] = append(strays[k], w.to)
		}
	}
	for _, k := range order {
		to := strays[k]
		subject, which := "rule", "a rule of policy routing (ip rule)"
		del := "find it (ip rule; ip route get ADDRESS)"
		if p, ok := h.policyOf(k.table, to[0]); ok {
			subject, which = fmt.Sprintf("rule %d", p.pref), fmt.Sprintf("rule %d (lookup %d)", p.pref, p.table)
			del = fmt.Sprintf("remove it (ip rule del pref %d)", p.pref)
		}
		whose := "packets"
		if !ofHost[k] {
			whose = "containers' packets"
		}
		what := "routed " + route{dev: k.dev, gw: k.gw}.where()
		if k.refused != "" {
			what = "refused by the kernel (" + k.refused + ")"
		}
		list = append(list, problem(report.Error, subject, fmt.Sprintf("%s, or have one before it that leaves the overlay to the main table: ip rule add to %v lookup main pref N", del, f.network(to[0].Addr())),
			"%s to %s are %s, not by the overlay as the main table says: %s comes before it", whose, some(to), what, which))
	}
	return list
}

// isCommon: the main table and that of local addresses, which checkRoutes and
// checkOverlaps know; 0 is unknown.
func isCommon(table int) bool { return table == 0 || table == 254 || table == 255 }

// policyOf returns the first rule that leads packets to a table.
func (h host) policyOf(table int, to netip.Prefix) (policy, bool) {
	all := slices.SortedFunc(slices.Values(h.policies), func(a, b policy) int { return cmp.Compare(a.pref, b.pref) })
	i := slices.IndexFunc(all, func(p policy) bool {
		return p.table == table && table != 0 && p.v6 == to.Addr().Is6() && (!p.dst.IsValid() || p.dst.Overlaps(to))
	})
	if i < 0 {
		return policy{}, false
	}
	return all[i], true
}
