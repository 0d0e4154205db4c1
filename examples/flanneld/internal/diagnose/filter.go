package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The packet filter is asked as the kernel does it: two packets that begin a connection,
// one from a container to another host's and one the other way, go through the rules of
// every table that sees forwarded packets. What a rule asks of a packet that we can't
// tell (a port, a set, a rate) may hold or not; where it is a matter of such rules,
// nothing is reported. They are TCP's, since many a firewall lets ICMP pass.

// A filter is a table of a packet filter, of one address family.
type filter struct {
	name string // for people: "iptables", "iptables raw", "nftables inet firewall"
	v6   bool
	// kept: flanneld's rules stand first in base, if it is to make any.
	kept   bool
	base   []string // chains that see forwarded packets,
	before []string // and those that see them before it is known where they go
	chains map[string]*chain
	// named are single destinations that rules name.
	named []target
	// marks: a rule marks packets; asks: a rule asks for a mark.
	marks, asks bool
}

// A target is where a packet goes to; 0 is any port.
type target struct {
	addr netip.Addr
	port uint16
}

func (t target) String() string {
	if t.port == 0 {
		return t.addr.String()
	}
	return netip.AddrPortFrom(t.addr, t.port).String()
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
	at    int // its number in the chain, from 1: one with a map of verdicts is several here
	conds []cond
	do    action
	to    string // for jump and goTo
	// dst is the destination that is asked for, if that is a single one.
	dst         target
	marks, asks bool // as of a filter
}

// add adds a rule, which may be made of several, to a chain.
func (f *filter) add(c *chain, rules ...rule) {
	at := 1
	if n := len(c.rules); n > 0 {
		at = c.rules[n-1].at + 1
	}
	for _, r := range rules {
		r.at = at
		c.rules = append(c.rules, r)
		f.marks, f.asks = f.marks || r.marks, f.asks || r.asks
		if r.dst.addr.IsValid() && !slices.Contains(f.named, r.dst) {
			f.named = append(f.named, r.dst)
		}
	}
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
	// perhaps: who knows, it may be accepted or not.
	perhaps
)

// A packet begins a connection. An empty name of an interface and port 0 are not known.
type packet struct {
	src, dst netip.Addr
	in, out  string
	port     uint16 // of the destination
	marked   bool   // somebody may have marked it; else nobody has
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
	for _, r := range c.rules {
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
			v.why = fmt.Sprintf("rule %d of %s", r.at, name)
		}
		switch {
		case do == proceed:
		case do == perhaps:
			v.unsure = true
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

// noMark asks whether a packet has no mark, or the other way round.
func noMark(want bool) cond {
	return func(p packet) answer {
		if p.marked {
			return maybe
		}
		return truth(want)
	}
}

// portIn asks for the destination's port.
func portIn(first, last uint16) cond {
	return func(p packet) answer {
		if p.port == 0 {
			return maybe
		}
		return truth(first <= p.port && p.port <= last)
	}
}

// xtTarget is what a target of iptables does that is no verdict and no chain.
// Those that are not known here may do anything: NFQUEUE asks a program.
func xtTarget(name string) action {
	switch name {
	case "ACCEPT":
		return accept
	case "DROP", "REJECT":
		return drop
	case "RETURN":
		return back
	case "MARK", "CONNMARK", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "TCPMSS", "TCPOPTSTRIP", "CHECKSUM", "CLASSIFY", "CT", "NOTRACK",
		"SET", "DSCP", "TOS", "ECN", "TTL", "HL", "SECMARK", "CONNSECMARK", "IDLETIMER", "LED", "RATEEST", "TEE":
		return proceed
	}
	return perhaps
}

// xtMarks reports whether a target of iptables marks packets.
func xtMarks(name string) bool { return name == "MARK" || name == "CONNMARK" || name == "TPROXY" }

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
