package diagnose

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
)

// readFilters reads what may drop forwarded packets: the chains of nftables, which are
// also those of iptables-nft, and the tables of legacy iptables. What can't be read, is
// left out.
func readFilters(ctx context.Context, v4, v6 bool) (list []filter) {
	for _, family := range []struct{ want, v6 bool }{{v4, false}, {v6, true}} {
		if !family.want {
			continue
		}
		own, native := readNFT(ctx, family.v6, nftables.ChainTypeFilter)
		own = append(own, readLegacy(ctx, family.v6, "raw", "mangle", "filter", "security")...)
		// In the table nat nobody may drop, but mark; it is the large one on many hosts.
		if slices.ContainsFunc(own, func(f filter) bool { return f.asks }) {
			nat, ok := readNFT(ctx, family.v6, nftables.ChainTypeNAT)
			own = append(append(own, nat...), readLegacy(ctx, family.v6, "nat")...)
			if native && !ok { // then who knows
				own = append(own, filter{name: "nftables", v6: family.v6, marks: true})
			}
		}
		list = append(list, own...)
	}
	return list
}

// readLegacy reads those of legacy iptables' tables that there are.
func readLegacy(ctx context.Context, v6 bool, tables ...string) (list []filter) {
	file, name, programs := "ip_tables_names", "iptables-legacy", []string{"iptables-legacy-save", "iptables-save"}
	if v6 {
		file, name, programs = "ip6_tables_names", "ip6tables-legacy", []string{"ip6tables-legacy-save", "ip6tables-save"}
	}
	names, err := os.ReadFile("/proc/thread-self/net/" + file)
	if err != nil {
		return nil
	}
	for _, table := range tables {
		// Without the table the program would load it.
		if slices.Contains(strings.Fields(string(names)), table) {
			if text, ok := saved(ctx, programs, table); ok {
				list = append(list, parseSave(text, name, v6))
			}
		}
	}
	return list
}

// saved runs the first of the programs that there is and that speaks of legacy tables.
func saved(ctx context.Context, programs []string, table string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	for _, name := range programs {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err != nil || info.IsDir() || !filepath.IsAbs(path) {
				continue
			}
			cmd := exec.CommandContext(ctx, path, "-t", table)
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
