package diagnose

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// readFilters reads what may drop forwarded packets: the chains of nftables, which are
// also those of iptables-nft, and the table filter of legacy iptables. What can't be
// read, is left out.
func readFilters(ctx context.Context, v4, v6 bool) []filter {
	list := readNFT(ctx, v4, v6)
	for _, family := range []struct {
		want, v6 bool
		names    string
		name     string
		programs []string
	}{
		{v4, false, "ip_tables_names", "iptables-legacy", []string{"iptables-legacy-save", "iptables-save"}},
		{v6, true, "ip6_tables_names", "ip6tables-legacy", []string{"ip6tables-legacy-save", "ip6tables-save"}},
	} {
		// Without the table the program would load it.
		names, err := os.ReadFile("/proc/thread-self/net/" + family.names)
		if !family.want || err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		if text, ok := saved(ctx, family.programs); ok {
			list = append(list, parseSave(text, family.name, family.v6))
		}
	}
	return list
}

// saved runs the first of the programs that there is, and that speaks of legacy tables.
func saved(ctx context.Context, programs []string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	for _, name := range programs {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err != nil || info.IsDir() || !filepath.IsAbs(path) {
				continue
			}
			cmd := exec.CommandContext(ctx, path, "-t", "filter")
			cmd.WaitDelay = 100 * time.Millisecond
			out, err := cmd.Output()
			if first, _, _ := bytes.Cut(out, []byte("\n")); err == nil && !bytes.Contains(first, []byte("nf_tables")) {
				return string(out), true
			}
			break
		}
	}
	return "", false
}

// readNFT reads the tables of nftables that have a chain at the hook forward.
func readNFT(ctx context.Context, v4, v6 bool) (list []filter) {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	all, err := c.ListChains()
	if err != nil {
		return nil
	}
	for _, family := range []struct {
		want, v6 bool
		own      nftables.TableFamily
	}{{v4, false, nftables.TableFamilyIPv4}, {v6, true, nftables.TableFamilyIPv6}} {
		for _, b := range all {
			if !family.want || b.Table.Family != family.own && b.Table.Family != nftables.TableFamilyINet || b.Hooknum == nil || *b.Hooknum != *nftables.ChainHookForward {
				continue
			}
			name := tableName(b.Table)
			i := slices.IndexFunc(list, func(f filter) bool { return f.name == name && f.v6 == family.v6 })
			if i < 0 {
				i = len(list)
				list = append(list, filter{name: name, v6: family.v6, chains: make(map[string]*chain)})
			}
			list[i].base = append(list[i].base, b.Name)
			if !readChain(ctx, c, all, b.Table, list[i], b.Name) {
				return nil // half of the rules are worse than none
			}
		}
	}
	return list
}

// tableName is what people know a table as.
func tableName(t *nftables.Table) string {
	families := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	switch {
	case t.Name != "filter":
	case t.Family == nftables.TableFamilyIPv4:
		return "iptables"
	case t.Family == nftables.TableFamilyIPv6:
		return "ip6tables"
	}
	return nativeName + families[t.Family] + " " + t.Name
}

// readChain reads a chain and those that it leads to.
func readChain(ctx context.Context, c *nftables.Conn, all []*nftables.Chain, t *nftables.Table, f filter, name string) bool {
	if f.chains[name] != nil {
		return true
	}
	i := slices.IndexFunc(all, func(b *nftables.Chain) bool {
		return b.Name == name && b.Table.Name == t.Name && b.Table.Family == t.Family
	})
	if i < 0 || ctx.Err() != nil {
		return false
	}
	made := &chain{drop: all[i].Policy != nil && *all[i].Policy == nftables.ChainPolicyDrop}
	f.chains[name] = made
	rules, err := c.GetRules(t, all[i])
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	for _, r := range rules {
		one := decode(r.Exprs, f.v6)
		made.rules = append(made.rules, one)
		if (one.do == jump || one.do == goTo) && !readChain(ctx, c, all, t, f, one.to) {
			return false
		}
	}
	return true
}

// A value is what a register of nftables has: a function of the packet, nil if that is
// not known.
type value func(packet) []byte

// decode makes a rule of nftables' expressions, which load registers and compare them.
func decode(exprs []expr.Any, v6 bool) (r rule) {
	regs := make(map[uint32]value)
	ask := func(c cond) { r.conds = append(r.conds, c) }
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if e.SourceRegister {
				continue // sets a mark or such
			}
			regs[e.Register] = metaValue(e.Key, v6)
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				regs[e.DestRegister] = payloadValue(e, v6)
			}
		case *expr.Ct:
			regs[e.Register] = nil
			if e.Key == expr.CtKeySTATE {
				regs[e.Register] = constant(binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW))
			}
		case *expr.Bitwise:
			regs[e.DestRegister] = bitwise(regs[e.SourceRegister], e.Mask, e.Xor)
		case *expr.Cmp:
			ask(compare(regs[e.Register], e.Op, e.Data))
		case *expr.Match:
			ask(matchCond(e))
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			r.do = drop
		case *expr.Target:
			if e.Name == "REJECT" || e.Name == "DROP" {
				r.do = drop
			}
		case *expr.Verdict:
			r.do, r.to = nftVerdict(e)
		default:
			ask(unknown)
		}
	}
	return r
}
