package masq

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The names of what this package makes. Chains of iptables may have 28 letters
// (XT_EXTENSION_MAXNAMELEN in include/uapi/linux/netfilter/x_tables.h, less the NUL).
const (
	tablePrefix = "flannelkit"     // table of nftables, in the families ip and ip6
	natPrefix   = "FLANNELKIT-NAT" // chain of iptables' table nat
	fwdPrefix   = "FLANNELKIT-FWD" // chain of iptables' table filter
	maxLabel    = 28 - len(natPrefix) - len("-")
)

// Targets of rules, as iptables calls them.
const (
	toReturn     = "RETURN"
	toAccept     = "ACCEPT"
	toMasquerade = "MASQUERADE"
)

// kubeMark is the bit that kube-proxy sets on packets that it is going to masquerade,
// and by which both the rule and its mask go (--masquerade-bit, 14 by default).
const kubeMark = 0x4000

// A match is a prefix that an address has to be in, or not. The zero match is any address.
type match struct {
	prefix netip.Prefix
	not    bool
}

// A rule is one rule as far as this package makes them, comparable with ==.
type rule struct {
	mark     bool // only packets with kubeMark
	src, dst match
	target   string // "RETURN", "ACCEPT", "MASQUERADE" or a chain to jump to
	random   bool   // with MASQUERADE: all source ports at random
}

// A family is what is to be for IPv4 or IPv6. Its zero value is: nothing.
type family struct {
	network  netip.Prefix
	leftover []netip.Prefix // networks whose flannel rules are to go; those that overlap, too
	nat, fwd []rule
}

// A task is what to do on a host.
type task struct {
	table, natChain, fwdChain string // the names for this network

	fam   [2]family // IPv4, IPv6
	tool  Tool
	yield []string

	dry        bool // only say what would be done
	thorough   bool // look even if nothing seems to have changed
	everything bool // nothing of this package or flannel may remain, under any name
}

// An outcome is what was done.
type outcome struct {
	changes  []string // what was, or would be, changed, for a person to read
	warnings []string
	looked   bool // rules were read; else nothing had changed
	tools    [2]Tool
}

// newTask checks a configuration and makes the rules of it.
func newTask(cfg Config) (task, error) {
	var t task
	if cfg.Tool < Auto || cfg.Tool > IPTables {
		return t, fmt.Errorf("unknown %v (want Auto, NFTables or IPTables)", cfg.Tool)
	}
	if cfg.Resync < 0 {
		return t, fmt.Errorf("bad Resync %v: negative (0 means %v)", cfg.Resync, DefaultResync)
	}
	if 0 < cfg.Resync && cfg.Resync < time.Millisecond {
		return t, fmt.Errorf("bad Resync %v: less than a millisecond (was a number without a unit meant as seconds?)", cfg.Resync)
	}
	if !cfg.Network4.IsValid() && !cfg.Network6.IsValid() && !cfg.Subnet4.IsValid() && !cfg.Subnet6.IsValid() {
		return t, errors.New("neither Network4 nor Network6 is set (at least one family is needed)")
	}
	for _, ex := range cfg.Exclude {
		if !ex.IsValid() || ex.Addr().Is4In6() || ex.Bits() == 0 {
			return t, fmt.Errorf("bad Exclude: %v is no network of IPv4 or IPv6 (to exclude everything turn Masquerade off)", ex)
		}
	}
	if i := slices.IndexFunc(cfg.Yield, func(y string) bool { return strings.Trim(y, "*") == "" }); i >= 0 {
		return t, fmt.Errorf("bad Yield: %q would let every jump stay ahead", cfg.Yield[i])
	}
	t.setName(cfg.Name)
	t.tool = cfg.Tool
	t.yield = append(policyChains(), cfg.Yield...)
	for i, p := range [2][2]netip.Prefix{{cfg.Network4, cfg.Subnet4}, {cfg.Network6, cfg.Subnet6}} {
		network, subnet, err := checkFamily(i == 1, p[0], p[1])
		if err != nil {
			return t, err
		}
		if !network.IsValid() {
			continue
		}
		f := &t.fam[i]
		f.network = network
		f.leftover = []netip.Prefix{network}
		if cfg.Masquerade {
			f.nat = natRules(network, subnet, cfg.Exclude, !cfg.NoRandom)
		}
		if cfg.Forward {
			f.fwd = []rule{{src: match{prefix: network}, target: toAccept}, {dst: match{prefix: network}, target: toAccept}}
		}
	}
	return t, nil
}

// checkFamily returns the network and the subnet of a family without stray bits.
func checkFamily(v6 bool, network, subnet netip.Prefix) (netip.Prefix, netip.Prefix, error) {
	suffix, want := "4", "IPv4"
	if v6 {
		suffix, want = "6", "IPv6"
	}
	for _, p := range []struct {
		field string
		netip.Prefix
	}{{"Network" + suffix, network}, {"Subnet" + suffix, subnet}} {
		if a := p.Addr(); p.IsValid() && (a.Is6() != v6 || a.Is4In6()) {
			return network, subnet, fmt.Errorf("bad %s %v: not %s (the other family has fields of its own)", p.field, p, want)
		}
	}
	switch {
	case !network.IsValid() && !subnet.IsValid():
		return network, subnet, nil
	case !network.IsValid():
		return network, subnet, fmt.Errorf("bad Subnet%s %v: Network%[1]s is not set", suffix, subnet)
	case !subnet.IsValid():
		return network, subnet, fmt.Errorf("bad Network%s %v: Subnet%[1]s, this host's part of it, is not set", suffix, network)
	case network.Bits() == 0:
		return network, subnet, fmt.Errorf("bad Network%s %v: that is every address, and nothing is outside of it", suffix, network)
	case subnet.Bits() < network.Bits() || !network.Contains(subnet.Addr()):
		return network, subnet, fmt.Errorf("bad Subnet%s %v: not inside of Network%[1]s %[3]v", suffix, subnet, network)
	}
	return network.Masked(), subnet.Masked(), nil
}

// natRules returns the masquerade rules in their order; see the package comment.
func natRules(network, own netip.Prefix, exclude []netip.Prefix, random bool) []rule {
	n, o := match{prefix: network}, match{prefix: own}
	notN := match{prefix: network, not: true}
	rules := []rule{
		{mark: true, target: toReturn},
		{src: o, dst: n, target: toReturn},
		{src: n, dst: o, target: toReturn},
		{src: notN, dst: o, target: toReturn},
	}
	var seen []netip.Prefix
	for _, ex := range exclude {
		ex = ex.Masked()
		if ex.Addr().Is6() == network.Addr().Is6() && !slices.Contains(seen, ex) {
			seen = append(seen, ex)
			rules = append(rules, rule{dst: match{prefix: ex}, target: toReturn})
		}
	}
	return append(rules,
		rule{src: n, dst: match{prefix: multicast(network.Addr().Is6()), not: true}, target: toMasquerade, random: random},
		rule{src: notN, dst: n, target: toMasquerade, random: random})
}

// multicast returns all multicast addresses (RFC 5771, RFC 4291 section 2.7). A packet
// to a group must keep its source: there is no reply that could be translated back.
func multicast(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
}

// setName derives the names of chains and tables from a network's name, which may
// be anything: what does not fit is replaced by its hash.
func (t *task) setName(name string) {
	t.table, t.natChain, t.fwdChain = tablePrefix, natPrefix, fwdPrefix
	if name == "" {
		return
	}
	label := name
	fits := func(c rune) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.'
	}
	if len(name) > maxLabel || strings.ContainsFunc(name, func(c rune) bool { return !fits(c) }) {
		sum := sha256.Sum256([]byte(name))
		label = hex.EncodeToString(sum[:])[:maxLabel-1] + "_"
	}
	t.table += "-" + label
	t.natChain += "-" + label
	t.fwdChain += "-" + label
}

// removal is the task that undoes this one.
func (t *task) removal() task {
	r := task{table: t.table, natChain: t.natChain, fwdChain: t.fwdChain, yield: t.yield, tool: t.tool, thorough: true}
	return r
}

// policyChains are the chains whose jumps stay ahead of ours: they are there so that
// an administrator or a policy has the first word, or belong to programs that put
// themselves first again and again, with whom there must be no fight.
func policyChains() []string {
	return []string{
		"DOCKER-USER", // Docker: rules of the administrator, never changed by Docker
		"ufw-before-*",
		"KUBE-*", // kube-proxy, kube-router: service firewalls and network policies
		"cali-*", // Calico
		"CILIUM_*",
		"WEAVE-NPC*",
	}
}

// isOurs reports whether a chain has a name that this package gives, for any network.
func isOurs(chain, prefix string) bool {
	return chain == prefix || strings.HasPrefix(chain, prefix+"-")
}

func joined(s []string) string { return strings.Join(s, "; ") }
