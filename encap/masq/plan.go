package masq

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A found is a rule as found on a host.
type found struct {
	rule
	comment string
	odd     bool   // it says more than rule can
	text    string // iptables: all after "-A CHAIN "
	handle  uint64 // nftables: its handle
}

// A chain is one as found on a host.
type chain struct {
	rules  []found
	policy string // "ACCEPT" or "DROP" for a base chain, otherwise ""
	refs   int    // jumps to it, from anywhere
}

// A table is a table of iptables, as much of it as was read: nil if there is none.
type table map[string]*chain

// Chains and comments of flannel, and since when.
const (
	flannelNAT     = "FLANNEL-POSTRTG" // 0.20
	flannelFwd     = "FLANNEL-FWD"     // 0.20
	flannelOld     = "FLANNEL"         // 0.4 to 0.5.5, in table nat
	flannelMasqued = "flanneld masq"
	flannelForward = "flanneld forward"
)

// A goal is how one base chain of a table is to be.
type goal struct {
	name  string // of the table: "nat" or "filter"
	base  string // POSTROUTING or FORWARD
	chain string // ours, that base jumps to; empty: none
	rules []rule // of our chain; none: there shall be no chain

	yield      []string
	leftover   []netip.Prefix // of flannel, what is about these networks goes
	everything bool           // of flannel and of ours everything goes
	always     bool           // even where base could not drop anything
}

// An edit is what is to be done to a table, all at once.
type edit struct {
	goal
	fill   bool     // make our chain, or make it anew
	remove []found  // from base
	insert bool     // put the jump into base,
	at     int      // ahead of what is at this place when remove is removed
	before uint64   // and that has this handle; 0: at the end
	drop   []string // chains to empty and delete,
	empty  []string // or only to empty, because somebody else refers to them
}

func (e edit) isEmpty() bool {
	return !e.fill && !e.insert && len(e.remove)+len(e.drop)+len(e.empty) == 0
}

// String says what is to be done, for a log.
func (e edit) String() string {
	var did []string
	if e.fill {
		did = append(did, "chain "+e.chain+" filled")
	}
	if e.insert {
		did = append(did, fmt.Sprintf("jump to %s put at place %d of %s", e.chain, e.at+1, e.base))
	}
	others := 0
	for _, f := range e.remove {
		if f.target != e.chain || !e.insert {
			others++
		}
	}
	if others > 0 {
		did = append(did, fmt.Sprintf("%d old rules removed from %s", others, e.base))
	}
	if gone := append(slices.Clone(e.drop), e.empty...); len(gone) > 0 {
		did = append(did, "removed "+strings.Join(gone, ", "))
	}
	return e.name + ": " + strings.Join(did, ", ")
}

// plan compares a table with a goal and returns what has to be done: nothing if all
// is right. It is the one place where both tools decide what belongs to whom.
func (t table) plan(g goal) edit {
	e := edit{goal: g}
	want := g.chain != "" && len(g.rules) > 0
	base := t[g.base]
	if base == nil {
		base = new(chain)
	}

	// Chains that have to go.
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		switch own := name == g.chain; {
		case own && want: // stays
		case own, g.isLeftover(name, t[name]):
			gone = append(gone, name)
		}
	}

	// Rules of the base chain that have to go with them, or that flannel put there directly.
	direct := g.directLeftovers(base.rules)
	var rest []found
	var jumps []int // ours, as indexes of rest
	for i, f := range base.rules {
		switch {
		case slices.Contains(gone, f.target) || slices.Contains(direct, i):
			e.remove = append(e.remove, f)
		case want && f.target == g.chain:
			jumps = append(jumps, len(rest))
			rest = append(rest, f)
		default:
			rest = append(rest, f)
		}
	}
	for _, name := range gone {
		here := 0
		for _, f := range e.remove {
			if f.target == name {
				here++
			}
		}
		switch {
		case t[name].refs <= here:
			e.drop = append(e.drop, name)
		case len(t[name].rules) > 0:
			e.empty = append(e.empty, name)
		}
	}
	if !want {
		return e
	}
	e.fill = !t[g.chain].holds(g.rules)
	g.placeJump(&e, rest, jumps)
	return e
}

// placeJump sees to it that there is one jump, at the right place: behind the leading
// jumps to policy chains and ahead of all else. Jumps of this package for other
// networks don't count, or two of us would overtake each other for ever.
func (g goal) placeJump(e *edit, rest []found, jumps []int) {
	prefix := natPrefix
	if g.name == "filter" {
		prefix = fwdPrefix
	}
	if len(jumps) == 1 && rest[jumps[0]] == g.jump(rest[jumps[0]]) {
		ahead, leading, still := 0, 0, true
		for i, f := range rest {
			if isOurs(f.target, prefix) {
				continue
			}
			if i < jumps[0] {
				ahead++
			}
			if still = still && g.yields(f); still {
				leading++
			}
		}
		if ahead == leading {
			return
		}
	}
	var others []found
	for i, f := range rest {
		if slices.Contains(jumps, i) {
			e.remove = append(e.remove, f)
		} else {
			others = append(others, f)
		}
	}
	e.insert = true
	for i, f := range others {
		if g.yields(f) {
			e.at = i + 1
		} else if !isOurs(f.target, prefix) {
			break
		}
	}
	if e.at < len(others) {
		e.before = others[e.at].handle
	}
}

// jump returns how a jump of ours looks, apart from what identifies it.
func (g goal) jump(f found) found {
	return found{rule: rule{target: g.chain}, text: f.text, handle: f.handle, comment: f.comment}
}

// yields reports whether a rule may stay ahead of our jump.
func (g goal) yields(f found) bool {
	return slices.ContainsFunc(g.yield, func(pattern string) bool {
		if prefix, any := strings.CutSuffix(pattern, "*"); any {
			return strings.HasPrefix(f.target, prefix)
		}
		return f.target == pattern
	})
}

// holds reports whether a chain has exactly these rules.
func (c *chain) holds(rules []rule) bool {
	return c != nil && slices.EqualFunc(c.rules, rules, func(f found, r rule) bool { return f.rule == r && !f.odd })
}

// isLeftover reports whether a chain is one that has to go, apart from our own.
func (g goal) isLeftover(name string, c *chain) bool {
	switch {
	case g.everything && (g.name == "nat" && isOurs(name, natPrefix) || g.name == "filter" && isOurs(name, fwdPrefix)):
		return true
	case name == flannelNAT && g.name == "nat", name == flannelFwd && g.name == "filter":
		return g.everything || g.concerned(c)
	case name == flannelOld && g.name == "nat":
		// The name alone is no proof: flannel's chain has these two rules and no other.
		return len(c.rules) == 2 && c.rules[0].target == toAccept && c.rules[0].dst.prefix.IsValid() &&
			c.rules[1].target == toMasquerade && c.rules[1].dst.not && (g.everything || g.concerned(c))
	}
	return false
}

// concerned reports whether a chain of flannel is about a network of ours, or about
// none: flannel's own cleanup empties its chain and fails to delete it. A chain
// about another network may belong to a flannel that is alive.
func (g goal) concerned(c *chain) bool {
	if len(g.leftover) == 0 {
		return false
	}
	for _, f := range c.rules {
		if g.overlaps(f.src.prefix) || g.overlaps(f.dst.prefix) {
			return true
		}
	}
	return len(c.rules) == 0
}

func (g goal) overlaps(p netip.Prefix) bool {
	return p.IsValid() && slices.ContainsFunc(g.leftover, p.Overlaps)
}

// directLeftovers returns the indexes of rules that flannel before 0.20 put into the
// base chain itself. Its masquerade rules are told by their form; a RETURN or an
// ACCEPT could be anybody's, so that a RETURN counts only next to such a masquerade
// rule for the same network, and an ACCEPT (which harms nobody) only with flannel's
// comment.
func (g goal) directLeftovers(rules []found) []int {
	var del []int
	masqueraded := make(map[netip.Prefix]bool)
	for i, f := range rules {
		n, ok := g.oldMasquerade(f)
		if ok {
			masqueraded[n] = true
			del = append(del, i)
		}
	}
	for i, f := range rules {
		mine := f.comment == flannelMasqued || f.comment == flannelForward
		near := f.src.prefix.IsValid() && masqueraded[f.src.prefix] && f.target == toReturn && !f.odd && !f.mark &&
			(f.dst.prefix == f.src.prefix && !f.dst.not && !f.src.not || // -s N -d N
				f.src.not && !f.dst.not && f.dst.prefix.IsValid() && f.src.prefix.Overlaps(f.dst.prefix)) // ! -s N -d OWN
		named := mine && !f.odd && (f.target == toReturn || f.target == toAccept || f.target == toMasquerade) &&
			(g.everything || g.overlaps(f.src.prefix) || g.overlaps(f.dst.prefix))
		if (near || named) && !slices.Contains(del, i) {
			del = append(del, i)
		}
	}
	return del
}

// oldMasquerade reports whether a rule is one of the two by which flannel before 0.20
// masqueraded a network of ours, and returns that.
func (g goal) oldMasquerade(f found) (netip.Prefix, bool) {
	if g.name != "nat" || f.target != toMasquerade || f.odd || f.mark {
		return netip.Prefix{}, false
	}
	n := f.src.prefix
	if !n.IsValid() || !slices.Contains(g.leftover, n) {
		return n, false
	}
	outward := !f.src.not && f.dst == match{prefix: multicast(n.Addr().Is6()), not: true} // -s N ! -d multicast
	inward := f.src.not && f.dst == match{prefix: n}                                      // ! -s N -d N
	return n, outward || inward
}
