package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// The packet filter is asked as the kernel does it: two packets that begin a connection,
// one from a container to another host's and one the other way, go through the rules of
// every table that sees forwarded packets. What a rule asks of a packet that we can't
// tell (a port, a set, a rate) may hold or not; where it is a matter of such rules,
// nothing is reported. They are TCP's, since many a firewall lets ICMP pass.

// A filter is a table of a packet filter, of one address family.
type filter struct {
	name   string // for people: "iptables", "nftables inet firewall"
	v6     bool
	base   []string // chains that see forwarded packets
	chains map[string]*chain
}

// nativeName begins the names of tables that are not iptables'.
const nativeName = "nftables "

// A chain is a list of rules.
type chain struct {
	drop  bool // its policy
	rules []rule
}

// A rule is what is asked of a packet, and what becomes of it.
type rule struct {
	conds []cond
	do    action
	to    string // for jump and goTo
}

// A cond is a question about a packet.
type cond func(packet) answer

type answer int

const (
	no answer = iota
	maybe
	yes
)

type action int

const (
	proceed action = iota // nothing: to the next rule
	accept
	drop
	jump
	goTo
	back // to the chain that jumped here, or to the policy
)

// A packet begins a connection. An empty name of an interface is not known.
type packet struct {
	src, dst netip.Addr
	in, out  string
}

// A verdict is the end of a packet's way through a table.
type verdict struct {
	dropped bool
	// why is the rule or policy, for people.
	why string
	// unsure: a rule before the end may have accepted the packet.
	unsure bool
}

// maxSteps bounds the walk: a host with Kubernetes may have tens of thousands of rules.
const maxSteps = 100_000

// walk takes a packet through a base chain.
func (f filter) walk(base string, p packet) (v verdict) {
	steps := maxSteps
	c := f.chains[base]
	if f.follow(base, p, 0, &steps, &v) == proceed && c != nil && c.drop {
		v.dropped, v.why = true, "policy of "+base
	}
	if steps <= 0 {
		v.unsure = true
	}
	return v
}

// follow takes a packet through one chain. It returns accept or drop, or proceed at the
// chain's end.
func (f filter) follow(name string, p packet, depth int, steps *int, v *verdict) action {
	const maxDepth = 16 // the kernel's: NFT_JUMP_STACK_SIZE
	c := f.chains[name]
	if c == nil || depth > maxDepth {
		return proceed
	}
	for i, r := range c.rules {
		if *steps--; *steps <= 0 {
			return proceed
		}
		holds := r.holds(p)
		if holds == no {
			continue
		}
		do := r.do
		if do == jump || do == goTo {
			// A chain that may be entered and accepts may accept.
			inner := verdict{}
			do = f.follow(r.to, p, depth+1, steps, &inner)
			v.unsure = v.unsure || inner.unsure
			v.why = inner.why
			if do == proceed && r.do == goTo {
				do = back
			}
		} else if do == drop {
			v.why = fmt.Sprintf("rule %d of %s", i+1, name)
		}
		switch {
		case do == proceed:
		case holds == maybe:
			v.unsure = v.unsure || do != drop
		case do == back:
			return proceed
		default:
			v.dropped = do == drop
			return do
		}
	}
	return proceed
}

// holds says whether all of a rule's conditions hold.
func (r rule) holds(p packet) answer {
	all := yes
	for _, c := range r.conds {
		all = min(all, c(p))
		if all == no {
			break
		}
	}
	return all
}

// truth is the answer to a question that can be answered.
func truth(b bool) answer {
	if b {
		return yes
	}
	return no
}

// invert turns an answer around.
func (a answer) invert() answer { return yes - a }

func unknown(packet) answer { return maybe }

// not turns a question around, if it is negated.
func not(negated bool, c cond) cond {
	if !negated {
		return c
	}
	return func(p packet) answer { return c(p).invert() }
}

// addrIn asks for an address.
func addrIn(src bool, in netip.Prefix) cond {
	return func(p packet) answer {
		if src {
			return truth(in.Contains(p.src))
		}
		return truth(in.Contains(p.dst))
	}
}

// linkIs asks for an interface; a name that ends in + is the beginning of one.
func linkIs(out bool, name string) cond {
	return func(p packet) answer {
		have := p.in
		if out {
			have = p.out
		}
		if have == "" {
			return maybe
		}
		if start, ok := strings.CutSuffix(name, "+"); ok {
			return truth(strings.HasPrefix(have, start))
		}
		return truth(have == name)
	}
}

// filterMatters: nobody else makes and checks rules that accept the overlay's packets.
func (f facts) filterMatters() bool {
	return len(f.networks) > 0 && len(f.subnets) > 0 && (f.r.Rules == nil || !f.r.Rules.Forward)
}

// checkFilters looks whether containers' packets would be dropped.
func checkFilters(f facts, h host) (list []report.Problem) {
	if !f.filterMatters() {
		return nil
	}
	for _, filter := range h.filters {
		for _, own := range f.subnets {
			network, there := f.network(own.Addr()), remote(f, own)
			if own.Addr().Is4() == filter.v6 || !there.IsValid() {
				continue
			}
			reasons := f.dropped(h, filter, own, there)
			if len(reasons) == 0 {
				continue
			}
			remedy := "run flanneld without -iptables-forward-rules=false, or add rules at the top of FORWARD that accept what comes from and goes to "
			if strings.HasPrefix(filter.name, nativeName) {
				remedy = "have this very table accept what comes from and goes to (no rule elsewhere can overrule it) "
			}
			list = append(list, problem(report.Error, "filter "+filter.name, remedy+network.String(),
				"%s drops containers' packets to or from other hosts (%s): no rule accepts those of %v", filter.name, some(reasons), network))
		}
	}
	return list
}

// dropped sends packets of both directions through a table, and returns why they are
// dropped.
func (f facts) dropped(h host, table filter, own netip.Prefix, there netip.Addr) (reasons []string) {
	bridge, device, here := "", "", last(own)
	if b := h.bridges([]netip.Prefix{own}); len(b) > 0 {
		bridge = b[0].name
	}
	if yes, known := f.tunnels(); known && !yes {
		device = f.ext
	} else if len(f.devices) > 0 {
		device = f.devices[0]
	}
	for _, p := range []packet{{here, there, bridge, device}, {there, here, device, bridge}} {
		for _, base := range table.base {
			if v := table.walk(base, p); v.dropped && !v.unsure && !slices.Contains(reasons, v.why) {
				reasons = append(reasons, v.why)
			}
		}
	}
	return reasons
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
