package masq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// giveUp is how often nftables may say that it lacks something before Auto takes
// iptables: the same errors mean that another program was faster, but not that often.
const giveUp = 3

// choose decides by which tool each family's masquerade rules are made. It does so once;
// later it only gives up nftables where that turns out not to masquerade. A family
// that could not be decided about is to be skipped.
func (h *host) choose(ctx context.Context, t task) (skip [2]bool, errs []error) {
	for i, fam := range t.fam {
		hopeless := h.tools[i] == NFTables && t.tool == Auto && !h.nft.works && h.nft.failures >= giveUp
		if len(fam.nat) == 0 || h.chosen[i] && !hopeless {
			continue
		}
		tool, m, err := h.pick(ctx, t.tool, i == 1)
		if err != nil {
			skip[i] = true
			errs = append(errs, err)
			continue
		}
		h.chosen[i], h.tools[i], h.modes[i] = true, tool, m
	}
	return skip, errs
}

// pick decides for one family.
func (h *host) pick(ctx context.Context, want Tool, v6 bool) (Tool, mode, error) {
	if want == NFTables {
		return NFTables, 0, nil // if it can't be, the kernel says why
	}
	inCompat, nftErr := h.compatInUse(v6)
	if nftErr != nil && !missing(nftErr) {
		return 0, 0, nftPlace{}.explain(nftErr)
	}
	if nftErr == nil && !h.nft.works && h.nft.failures >= giveUp {
		nftErr = fmt.Errorf("no masquerading: %w", unix.EOPNOTSUPP)
	}
	inLegacy, err := h.legacyInUse(ctx, v6)
	if err != nil {
		return 0, 0, err
	}
	if want == Auto && nftErr == nil && (!inLegacy || inCompat) {
		return NFTables, 0, nil
	}
	order := []mode{compat, legacy}
	if inLegacy && !inCompat || nftErr != nil {
		order = []mode{legacy, compat}
	}
	var errs error
	for _, m := range order {
		p, err := h.find(ctx, v6, m)
		if p != nil {
			return IPTables, m, nil
		}
		errs = errors.Join(errs, err)
	}
	if want == Auto && nftErr == nil {
		return NFTables, 0, nil
	}
	remedy := "install iptables, or use nftables"
	if nftErr != nil {
		remedy = "use a kernel with nf_tables, nft_chain_nat and nft_masq, or install iptables"
		errs = errors.Join(errs, nftPlace{}.explain(nftErr))
	}
	err = fmt.Errorf("%w: no %s with its -save and -restore is in PATH, /usr/sbin or /sbin (%s)", ErrNoTool, command(v6), remedy)
	if errs != nil {
		err = fmt.Errorf("%w; %w", err, errs)
	}
	return 0, 0, err
}

// legacyInUse reports whether somebody has rules in legacy iptables: not we, nor flannel.
func (h *host) legacyInUse(ctx context.Context, v6 bool) (bool, error) {
	names := registered(v6)
	for _, name := range []string{"nat", "filter"} {
		if !slices.Contains(names, name) {
			continue
		}
		b, err := h.find(ctx, v6, legacy)
		if b == nil || err != nil {
			return false, err
		}
		t, err := xtPlace{h: h, b: b, v6: v6, m: legacy}.read(ctx, name)
		if err != nil {
			return false, err
		}
		for name, c := range t {
			if c.policy == "DROP" || slices.ContainsFunc(c.rules, func(f found) bool {
				return !isOurs(f.target, natPrefix) && !isOurs(f.target, fwdPrefix) && !isOurs(name, natPrefix) && !isOurs(name, fwdPrefix) &&
					!strings.HasPrefix(name, flannelOld) && !strings.HasPrefix(f.target, flannelOld)
			}) {
				return true, nil
			}
		}
	}
	return false, nil
}

// compatInUse reports whether somebody has rules in the tables of iptables-nft: chains
// of their own or a policy. An error says why nftables can't be asked.
func (h *host) compatInUse(v6 bool) (bool, error) {
	family := familyOf(0)
	if v6 {
		family = familyOf(1)
	}
	c, err := h.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	chains, err := kernel{c: c}.chains()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(chains, func(c kernelChain) bool {
		rules := c.base == nil || c.base.drop || c.use > 0
		return c.family == family && (c.table == "nat" || c.table == "filter") && rules && !strings.HasPrefix(c.name, flannelOld)
	}), nil
}

// xtPlaces returns the places of iptables that have to be looked at.
func (h *host) xtPlaces(ctx context.Context, t task, skip [2]bool, out *outcome, errs *[]error) []xtPlace {
	var places []xtPlace
	for i, fam := range t.fam {
		if skip[i] {
			continue
		}
		v6 := i == 1
		names := registered(v6)
		uses := h.uses(t, i, IPTables)
		nat := goal{name: "nat", base: "POSTROUTING", chain: t.natChain}
		fwd := goal{name: "filter", base: "FORWARD", chain: t.fwdChain, rules: fam.fwd, always: uses && h.modes[i] == legacy}
		var lists [2][]goal // by mode
		if inLegacy := uses && h.modes[i] == legacy; inLegacy || slices.Contains(names, "nat") {
			g := nat
			if inLegacy {
				g.rules = fam.nat
			}
			lists[legacy] = append(lists[legacy], g)
		}
		if uses && h.modes[i] == legacy && len(fam.fwd) > 0 || slices.Contains(names, "filter") {
			lists[legacy] = append(lists[legacy], fwd)
		}
		if uses && h.modes[i] == compat {
			g := nat
			g.rules = fam.nat
			lists[compat] = append(lists[compat], g)
		}
		for m, goals := range lists {
			if len(goals) == 0 {
				continue
			}
			b, err := h.find(ctx, v6, mode(m))
			if b == nil {
				h.blind(v6, mode(m), err, uses && h.modes[i] == mode(m), out, errs)
				continue
			}
			for j := range goals {
				goals[j].yield, goals[j].leftover, goals[j].everything = t.yield, fam.leftover, t.everything
			}
			places = append(places, xtPlace{h: h, b: b, v6: v6, m: mode(m), goals: goals})
		}
	}
	return places
}

// blind handles tables that no installed program can read. Empty ones don't matter;
// others may drop what should pass, or masquerade what should not be.
func (h *host) blind(v6 bool, m mode, err error, needed bool, out *outcome, errs *[]error) {
	if err == nil {
		err = fmt.Errorf("%s (%v) is not installed", command(v6), m)
	}
	if needed {
		*errs = append(*errs, err)
		return
	}
	for _, name := range []string{"nat", "filter"} {
		if !slices.Contains(registered(v6), name) {
			continue
		}
		if p, perr := printTable(v6, name); perr == nil && p.empty() {
			continue
		}
		out.warnings = append(out.warnings, fmt.Sprintf("legacy table %s of %s has rules that can't be looked at: %v "+
			"(install iptables with its legacy variant: what drops overlay packets there stays)", name, command(v6), err))
	}
}

// nat reports whether masquerade rules are to be here.
func (p xtPlace) nat() bool {
	return slices.ContainsFunc(p.goals, func(g goal) bool { return g.name == "nat" && len(g.rules) > 0 })
}

// idle reports whether a table filter can't stop anything: then it needs no rules of
// ours. Somebody has only looked into it.
func (g goal) idle(t table) bool {
	if g.always {
		return false
	}
	c := t[g.base]
	if c == nil || c.policy == "DROP" {
		return false
	}
	return !slices.ContainsFunc(c.rules, func(f found) bool { return !isOurs(f.target, fwdPrefix) })
}
