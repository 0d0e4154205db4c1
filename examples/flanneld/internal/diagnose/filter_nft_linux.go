package diagnose

import (
	"context"
	"errors"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// An nftReader reads the tables of nftables that forwarded packets meet.
type nftReader struct {
	ctx  context.Context
	c    *nftables.Conn
	all  []*nftables.Chain
	list []filter
}

// readNFT reads the chains of a type that packets of a family meet: all, or nothing and
// false, since half of the rules are worse than none.
func readNFT(ctx context.Context, v6 bool, kind nftables.ChainType) (list []filter, ok bool) {
	c, err := nftables.New()
	if err != nil {
		return nil, false
	}
	n := nftReader{ctx: ctx, c: c}
	if n.all, err = c.ListChains(); err != nil {
		return nil, false
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, false
	}
	n.all = slices.DeleteFunc(n.all, func(b *nftables.Chain) bool {
		// NFT_TABLE_F_DORMANT of linux/netfilter/nf_tables.h, in the kernel's order of
		// bytes (big endian), or in the host's.
		const dormant = 1 | 1<<24
		return slices.ContainsFunc(tables, func(t *nftables.Table) bool {
			return t.Name == b.Table.Name && t.Family == b.Table.Family && t.Flags&dormant != 0
		})
	})
	if !n.read(v6, kind) {
		return nil, false
	}
	return n.list, true
}

// read reads the chains of a type, and those that they lead to.
func (n *nftReader) read(v6 bool, kind nftables.ChainType) bool {
	own := nftables.TableFamilyIPv4
	if v6 {
		own = nftables.TableFamilyIPv6
	}
	for _, b := range n.all {
		if b.Table.Family != own && b.Table.Family != nftables.TableFamilyINet || b.Hooknum == nil || b.Type != kind {
			continue
		}
		before := *b.Hooknum == *nftables.ChainHookPrerouting
		if !before && *b.Hooknum != *nftables.ChainHookForward {
			continue
		}
		name, kept := tableName(b)
		i := slices.IndexFunc(n.list, func(f filter) bool { return f.name == name })
		if i < 0 {
			i = len(n.list)
			n.list = append(n.list, filter{name: name, v6: v6, kept: kept, chains: make(map[string]*chain)})
		}
		f := &n.list[i]
		switch {
		case kind != nftables.ChainTypeFilter: // only to know who marks
		case before:
			f.before = append(f.before, b.Name)
		default:
			f.base = append(f.base, b.Name)
		}
		if !n.chain(f, b.Table, b.Name) {
			return false
		}
	}
	return true
}

// tableName is what people know a chain's table as. It is iptables' own one if the chain
// is where iptables has its rules, too; kept is as of a filter.
func tableName(b *nftables.Chain) (name string, kept bool) {
	families := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	family := families[b.Table.Family]
	theirs := slices.Contains([]string{"raw", "mangle", "filter", "security", "nat"}, b.Table.Name) && (b.Name == "FORWARD" || b.Name == "PREROUTING")
	switch {
	case b.Table.Family == nftables.TableFamilyINet || !theirs:
		return nativeName + family + " " + b.Table.Name, false
	case b.Table.Name == "filter":
		return family + "tables", b.Name == "FORWARD"
	}
	return family + "tables " + b.Table.Name, false
}

// chain reads a chain and those that it leads to.
func (n *nftReader) chain(f *filter, t *nftables.Table, name string) bool {
	if f.chains[name] != nil {
		return true
	}
	i := slices.IndexFunc(n.all, func(b *nftables.Chain) bool {
		return b.Name == name && b.Table.Name == t.Name && b.Table.Family == t.Family
	})
	if i < 0 || n.ctx.Err() != nil {
		return false
	}
	made := &chain{drop: n.all[i].Policy != nil && *n.all[i].Policy == nftables.ChainPolicyDrop}
	f.chains[name] = made
	rules, err := n.c.GetRules(t, n.all[i])
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	for _, r := range rules {
		parts := decode(r.Exprs, f.v6, func(set string) []nftables.SetElement { return n.elements(t, set) })
		f.add(made, parts...)
		for _, one := range parts {
			if (one.do == jump || one.do == goTo) && !n.chain(f, t, one.to) {
				return false
			}
		}
	}
	return true
}

// elements reads a set, nil if that can't be.
func (n *nftReader) elements(t *nftables.Table, name string) []nftables.SetElement {
	list, err := n.c.GetSetElements(&nftables.Set{Table: t, Name: name})
	if err != nil || n.ctx.Err() != nil {
		return nil
	}
	return list
}
