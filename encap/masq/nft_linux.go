package masq

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// natPriority is the place of our masquerade chain: next to that of others' source NAT
// (NF_IP_PRI_NAT_SRC, 100), and ahead of it. Of several NAT chains the first one that
// decides about a connection wins; with equal priorities that would be whichever
// was loaded last.
const natPriority = 99

// natChainName is the chain in our own table.
const natChainName = "postrouting"

// familyOf returns nftables' number for IPv4 (0) and IPv6 (1).
func familyOf(i int) nftables.TableFamily {
	if i == 1 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// label returns nftables' name of a family.
func label(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprintf("family %d", f)
}

// nftView is what one look at nftables sees.
type nftView struct {
	tables map[tableKey]uint32 // with their flags
	chains map[tableKey][]kernelChain
}

// nftEdit is all that has to be done in nftables, in one transaction.
type nftEdit struct {
	own    [2]ownEdit
	compat []compatEdit
	drop   []tableKey
}

// ownEdit is what has to be done to a family's own table.
type ownEdit struct {
	drop, make, refill bool
	rules              []rule
}

// compatEdit is an edit of a table that iptables-nft manages.
type compatEdit struct {
	family nftables.TableFamily
	edit
}

// nftPlace is nftables as a place of rules: our own tables, and the tables of
// iptables-nft as far as they are reached without iptables.
type nftPlace struct {
	h *host
	t task
	// native and byExec say for each family whether masquerade rules are made in
	// our own table, or by a program in iptables-nft's table nat.
	native, byExec [2]bool
	skip           [2]bool // families not to be touched now
}

// look reads the rules and returns what has to be done.
func (p nftPlace) look() (e nftEdit, warnings []string, err error) {
	c, err := p.h.dial()
	if err != nil {
		return e, nil, p.explain(err)
	}
	defer func() { _ = c.Close() }()
	k := kernel{c: c}
	var v nftView
	if v.tables, err = k.tables(); err != nil {
		return e, nil, p.explain(err)
	}
	chains, err := k.chains()
	if err != nil {
		return e, nil, p.explain(err)
	}
	v.chains = make(map[tableKey][]kernelChain)
	for _, ch := range chains {
		key := tableKey{ch.family, ch.table}
		v.chains[key] = append(v.chains[key], ch)
	}
	for i := range p.t.fam {
		if p.skip[i] {
			continue
		}
		if err := p.lookFamily(k, v, i, &e); err != nil {
			return e, nil, p.explain(err)
		}
	}
	slices.SortFunc(e.drop, func(a, b tableKey) int { return cmp.Compare(a.name, b.name) })
	warnings = p.warn(v)
	slices.Sort(warnings)
	return e, warnings, nil
}

// lookFamily adds what has to be done for IPv4 (0) or IPv6 (1).
func (p nftPlace) lookFamily(k kernel, v nftView, i int, e *nftEdit) error {
	family, fam := familyOf(i), p.t.fam[i]
	if err := p.lookOwn(k, v, i, &e.own[i]); err != nil {
		return err
	}
	for key := range v.tables {
		switch {
		case key.family != family:
		case key.name == "flannel-ipv4" || key.name == "flannel-ipv6":
			gone, err := p.leftover(k, v, key, fam)
			if err != nil {
				return err
			}
			if gone {
				e.drop = append(e.drop, key)
			}
		case p.t.everything && key.name != p.t.table && (key.name == tablePrefix || strings.HasPrefix(key.name, tablePrefix+"-")):
			e.drop = append(e.drop, key)
		}
	}
	goals := []goal{{name: "nat", base: "POSTROUTING"}, {name: "filter", base: "FORWARD", chain: p.t.fwdChain, rules: fam.fwd}}
	if !p.byExec[i] {
		goals[0].chain = p.t.natChain
	}
	for _, g := range goals {
		g.yield, g.leftover, g.everything = p.t.yield, fam.leftover, p.t.everything
		t, err := p.compat(k, v, tableKey{family, g.name}, g)
		if err != nil {
			return err
		}
		if t[g.base] == nil {
			g.rules = nil // no chain, so there is nothing that could drop
		}
		if ed := t.plan(g); !ed.isEmpty() {
			e.compat = append(e.compat, compatEdit{family, ed})
		}
	}
	return nil
}

// compat reads what a goal is about of a table of iptables-nft.
func (p nftPlace) compat(k kernel, v nftView, key tableKey, g goal) (table, error) {
	var t table
	for _, c := range v.chains[key] {
		known := c.name == g.base && c.base != nil || c.base == nil &&
			(c.name == g.chain || c.name == flannelNAT || c.name == flannelFwd || c.name == flannelOld ||
				g.everything && (isOurs(c.name, natPrefix) || isOurs(c.name, fwdPrefix)))
		if !known {
			continue
		}
		rules, err := k.rules(key.family, key.name, c.name)
		if err != nil {
			return nil, err
		}
		if t == nil {
			t = make(table)
		}
		t[c.name] = &chain{rules: rules, refs: int(c.use) - len(rules)}
	}
	return t, nil
}

// lookOwn compares our own table of a family with what it should be.
func (p nftPlace) lookOwn(k kernel, v nftView, i int, e *ownEdit) error {
	key := tableKey{familyOf(i), p.t.table}
	flags, exists := v.tables[key]
	if p.native[i] {
		e.rules = p.t.fam[i].nat
	}
	if len(e.rules) == 0 {
		e.drop = exists && p.t.table != ""
		return nil
	}
	want := baseChain{typ: "nat", hook: unix.NF_INET_POST_ROUTING, priority: natPriority}
	chains := v.chains[key]
	// A table with a flag may be dormant: all there, and doing nothing.
	if !exists || flags != 0 || len(chains) != 1 || chains[0].name != natChainName || chains[0].base == nil || *chains[0].base != want {
		e.drop, e.make = exists, true
		return nil
	}
	rules, err := k.rules(key.family, key.name, natChainName)
	if err != nil {
		return err
	}
	e.refill = !(&chain{rules: rules}).holds(e.rules)
	return nil
}

// leftover reports whether a table of flannel is about a network of ours.
func (p nftPlace) leftover(k kernel, v nftView, key tableKey, fam family) (bool, error) {
	if p.t.everything {
		return true, nil
	}
	if len(fam.leftover) == 0 {
		return false, nil
	}
	g := goal{leftover: fam.leftover}
	var all chain
	for _, c := range v.chains[key] {
		rules, err := k.rules(key.family, key.name, c.name)
		if err != nil {
			return false, err
		}
		all.rules = append(all.rules, rules...)
	}
	return g.concerned(&all), nil
}

// warn returns what drops forwarded packets where no rule of ours can help.
func (p nftPlace) warn(v nftView) []string {
	if len(p.t.fam[0].fwd)+len(p.t.fam[1].fwd) == 0 {
		return nil
	}
	var out []string
	for key, chains := range v.chains {
		compat := key.name == "filter" && (key.family == nftables.TableFamilyIPv4 || key.family == nftables.TableFamilyIPv6)
		relevant := key.family == nftables.TableFamilyINet ||
			key.family == nftables.TableFamilyIPv4 && len(p.t.fam[0].fwd) > 0 ||
			key.family == nftables.TableFamilyIPv6 && len(p.t.fam[1].fwd) > 0
		for _, c := range chains {
			ours := compat && c.name == "FORWARD"
			if relevant && !ours && c.base != nil && c.base.drop && c.base.hook == unix.NF_INET_FORWARD {
				out = append(out, fmt.Sprintf("nftables chain %s %s %s drops forwarded packets by its policy, which rules elsewhere can't overrule: "+
					"accept the overlay network's packets in it", label(key.family), key.name, c.name))
			}
		}
	}
	return out
}

func (e nftEdit) changes() []string {
	var out []string
	for i, o := range e.own {
		what := ""
		switch {
		case o.make:
			what = "table made"
		case o.refill:
			what = "rules replaced"
		case o.drop:
			what = "table removed"
		default:
			continue
		}
		out = append(out, fmt.Sprintf("nftables %s %s", label(familyOf(i)), what))
	}
	for _, c := range e.compat {
		out = append(out, fmt.Sprintf("nftables %s %s", label(c.family), c.edit))
	}
	for _, key := range e.drop {
		out = append(out, fmt.Sprintf("nftables %s %s removed", label(key.family), key.name))
	}
	return out
}

// commit does all of an edit in one transaction. If that fails, each family is tried
// alone: a kernel without IPv6 NAT must not keep IPv4 from its rules.
func (p nftPlace) commit(e nftEdit) error {
	err := p.flush(e, familyOf(0), familyOf(1))
	if err == nil || errors.Is(err, os.ErrPermission) || len(e.only(familyOf(0)).changes()) == 0 || len(e.only(familyOf(1)).changes()) == 0 {
		return p.explain(err)
	}
	return p.explain(errors.Join(p.flush(e, familyOf(0)), p.flush(e, familyOf(1))))
}

// only returns what of an edit is about one family.
func (e nftEdit) only(family nftables.TableFamily) nftEdit {
	var out nftEdit
	for i := range e.own {
		if familyOf(i) == family {
			out.own[i] = e.own[i]
		}
	}
	for _, c := range e.compat {
		if c.family == family {
			out.compat = append(out.compat, c)
		}
	}
	for _, key := range e.drop {
		if key.family == family {
			out.drop = append(out.drop, key)
		}
	}
	return out
}

// flush does what of an edit is about some families.
func (p nftPlace) flush(all nftEdit, families ...nftables.TableFamily) error {
	c, err := p.h.conn()
	if err != nil {
		return err
	}
	for _, family := range families {
		e := all.only(family)
		for _, key := range e.drop {
			c.DelTable(&nftables.Table{Name: key.name, Family: key.family})
		}
		for i, o := range e.own {
			p.commitOwn(c, i, o)
		}
		for _, ed := range e.compat {
			if err := commitCompat(c, ed); err != nil {
				return err
			}
		}
	}
	return c.Flush()
}

// commitOwn adds what has to be done to our own table.
func (p nftPlace) commitOwn(c *nftables.Conn, i int, o ownEdit) {
	t := &nftables.Table{Name: p.t.table, Family: familyOf(i)}
	ch := &nftables.Chain{Name: natChainName, Table: t}
	if o.drop {
		c.DelTable(t)
	}
	if o.make {
		accept := nftables.ChainPolicyAccept
		c.AddTable(t)
		ch.Type, ch.Hooknum, ch.Policy = nftables.ChainTypeNAT, nftables.ChainHookPostrouting, &accept
		ch.Priority = nftables.ChainPriorityRef(natPriority)
		c.AddChain(ch)
	}
	if o.make || o.refill {
		c.FlushChain(ch) // a new one, too: another process may have made it meanwhile
		for _, r := range o.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r.exprs(i == 1)})
		}
	}
}

// commitCompat adds what has to be done to a table of iptables-nft.
func commitCompat(c *nftables.Conn, e compatEdit) error {
	v6 := e.family == nftables.TableFamilyIPv6
	t := &nftables.Table{Name: e.name, Family: e.family}
	named := func(name string) *nftables.Chain { return &nftables.Chain{Name: name, Table: t} }
	if e.fill {
		c.AddChain(named(e.chain))
		c.FlushChain(named(e.chain))
		for _, r := range e.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: named(e.chain), Exprs: r.exprs(v6)})
		}
	}
	if e.insert {
		r := &nftables.Rule{Table: t, Chain: named(e.base), Position: e.before, Exprs: rule{target: e.chain}.exprs(v6)}
		if e.before != 0 {
			c.InsertRule(r)
		} else {
			c.AddRule(r)
		}
	}
	for _, f := range e.remove {
		if err := c.DelRule(&nftables.Rule{Table: t, Chain: named(e.base), Handle: f.handle}); err != nil {
			return err
		}
	}
	for _, name := range append(e.empty, e.drop...) {
		c.FlushChain(named(name))
	}
	for _, name := range e.drop {
		c.DelChain(named(name))
	}
	return nil
}

// explain says what an error of the kernel means here, and what to do.
func (p nftPlace) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("nftables: %w (needs CAP_NET_ADMIN in the network namespace's user namespace)", err)
	case missing(err):
		return fmt.Errorf("nftables: %w (does the kernel have nf_tables, nft_chain_nat and nft_masq?)", err)
	}
	return fmt.Errorf("nftables: %w", err)
}

// missing reports whether an error means that the kernel does not have something: no
// such protocol or subsystem (EINVAL is what nfnetlink says to requests for one
// that is not there), chain type or expression.
func missing(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.ENOENT)
}
