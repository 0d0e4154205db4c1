package diagnose

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables/expr"

	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// needNFT skips a test without nft, unless it is said that it must be there.
func needNFT(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("FLANNELKIT_NEED_NFT") != "" {
			t.Fatalf("%v, and FLANNELKIT_NEED_NFT is set (install nftables)", err)
		}
		t.Skipf("%v (install nftables)", err)
	}
}

// nft replaces all tables. The script may have on one line what nft wants on several.
func (h *labHost) nft(script string) {
	h.c.t.Helper()
	h.feed("flush ruleset\n"+strings.ReplaceAll(script, "} }", "\n}\n}\n"), "nft", "-f", "-")
}

// feed runs a program with standard input.
func (h *labHost) feed(input string, args ...string) {
	h.c.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	out := new(strings.Builder)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), out, out
	if err := h.Run(cmd); err != nil {
		h.c.t.Fatalf("%q: %v: %s\n%s", args, err, out, input)
	}
}

// kept is the report of a daemon that makes rules.
func (h *labHost) kept() *report.Report {
	r := h.report()
	r.Rules = &report.Rules{Forward: true}
	return r
}

// TestFilterBesides: tables that drop besides the one that flanneld's rules are in.
func TestFilterBesides(t *testing.T) {
	t.Parallel()
	needNFT(t)
	h := newCluster(t, 2, "46", `{"Type":"vxlan"}`).hosts[0]
	const firewalld = `table inet firewalld {
	chain policies { iifname "eth0" accept
		TRUST
	}
	chain filter_FORWARD { type filter hook forward priority 10; policy accept
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		ip6 daddr { ::/96, 2002::/16 } reject
		jump policies
		reject with icmpx admin-prohibited
	}
}`
	for _, c := range []struct {
		name, script string
		want         []string
	}{
		{"firewalld", strings.Replace(firewalld, "TRUST", "", 1), []string{
			"error filter nftables inet firewalld: nftables inet firewalld drops containers' packets to or from other hosts (rule 7 of filter_FORWARD): no rule accepts those of 10.5.0.0/16",
			"error filter nftables inet firewalld: nftables inet firewalld drops containers' packets to or from other hosts (rule 7 of filter_FORWARD): no rule accepts those of fd00:5::/32",
		}},
		{"firewalld with trust", strings.Replace(firewalld, "TRUST", "ip saddr 10.5.0.0/16 accept; ip6 saddr fd00:5::/32 accept", 1), nil},
		{"each family's device", `table inet fw { chain forward { type filter hook forward priority 0; policy drop
			iifname { "flannel.1", "flannel-v6.1", "docker0" } accept } }`, nil},
		{"one family's device", `table inet fw { chain forward { type filter hook forward priority 0; policy drop
			iifname { "flannel.1", "docker0" } accept } }`, []string{"(policy of forward): no rule accepts those of fd00:5::/32"}},
		{"iptables' name, but not its chain", `table ip filter { chain forward { type filter hook forward priority 0; policy drop } }`,
			[]string{"error filter nftables ip filter: nftables ip filter drops containers' packets to or from other hosts (policy of forward)"}},
		{"iptables' other table", `table ip mangle { chain FORWARD { type filter hook forward priority -150; ip daddr 10.5.0.0/16 drop } }`,
			[]string{"error filter iptables mangle: iptables mangle drops containers' packets to or from other hosts (rule 1 of FORWARD)"}},
		{"asleep", `table inet fw { flags dormant; chain forward { type filter hook forward priority 0; policy drop } }`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.c.t = t
			h.nft(c.script)
			wantProblems(t, h.look(h.kept()).Problems, c.want...)
		})
	}
}

// TestFilterPolicy: the daemon's warning of a policy is no problem where rules accept.
func TestFilterPolicy(t *testing.T) {
	t.Parallel()
	needNFT(t)
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	warned := func() *report.Report {
		t.Helper()
		rules, err := masq.New(masq.Config{Network4: h.c.network.IPv4.Prefix, Subnet4: h.own.Subnet, Forward: true})
		check(t, err, h.Do(func() error { return rules.Apply(t.Context()) }))
		r := h.kept()
		if r.Rules.Warnings = rules.Status().Warnings; len(r.Rules.Warnings) != 1 {
			t.Fatalf("the daemon warns: %q", r.Rules.Warnings)
		}
		r.Add(report.Own(&report.Report{Daemon: r.Daemon, Rules: r.Rules})...)
		wantProblems(t, r.Problems, "warning rules: nftables chain inet fw forward drops forwarded packets")
		return r
	}
	const fw = `table inet fw { chain forward { type filter hook forward priority 0; policy drop; RULES } }`
	h.nft(strings.Replace(fw, "RULES", "ip saddr 10.5.0.0/16 accept; ip daddr 10.5.0.0/16 accept", 1))
	wantProblems(t, h.look(warned()).Problems)
	h.nft(strings.Replace(fw, "RULES", "ip saddr 10.6.0.0/16 accept", 1))
	wantProblems(t, h.look(warned()).Problems, "error filter nftables inet fw: nftables inet fw drops containers' packets to or from other hosts (policy of forward)")
	// Where it could not be looked, the warning stays.
	r := warned()
	settleRules(r, host{})
	wantProblems(t, r.Problems, "warning rules: ")
}

// TestFilterUnsure: rules of which nobody knows whether they accept, and marks.
func TestFilterUnsure(t *testing.T) {
	t.Parallel()
	needNFT(t)
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	const dropped = "error filter nftables inet fw: nftables inet fw drops"
	for _, c := range []struct{ name, rules, want string }{
		{"verdicts by interface", `iifname vmap { "docker0" : accept, "flannel.1" : accept }`, ""},
		{"verdicts of one", `iifname vmap { "docker0" : accept, "flannel.2" : accept }`, dropped},
		{"verdicts by state", "ct state vmap { established : accept, related : accept, invalid : drop }", dropped},
		{"verdicts by addresses", "ip saddr vmap { 10.4.0.0/16 : drop, 10.5.0.0/16 : accept, 10.6.0.0-10.7.255.255 : drop }", ""},
		{"verdicts by others' addresses", "ip saddr vmap { 10.4.0.0-10.5.0.255 : accept, 10.6.0.0/16 : accept }", dropped},
		{"verdicts for all others", "iifname vmap { lo : drop, * : accept }", ""},
		{"verdicts by ports", "tcp dport vmap { 22 : drop, 80 : accept }", ""},
		{"a named map", "iifname vmap @by", ""},
		{"a named set", "ip saddr @some accept", ""},
		{"a set", "ip saddr { 10.4.0.0/16, 10.5.0.0/16 } accept", ""},
		{"all but a set", "ip saddr != { 10.4.0.0/16, 10.5.0.0/16 } accept", dropped},
		{"several fields", `iifname . oifname { "docker0" . "flannel.1", "flannel.1" . "docker0" } accept`, ""},
		{"its own mark", "meta mark set 1; meta mark 1 accept", ""},
		{"nobody's mark", "meta mark 1 accept", dropped},
		{"another table's mark", "meta mark 1 accept; } } table ip other { chain pre { type nat hook prerouting priority -100; ip daddr 10.5.0.0/16 meta mark set 1;", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.c.t = t
			h.nft(`table inet fw {
	set some { type ipv4_addr; flags interval; elements = { 10.5.0.0/16 } }
	map by { type ifname : verdict; elements = { docker0 : accept, flannel.1 : accept } }
	chain forward { type filter hook forward priority 0; policy drop; ` + c.rules + " } }")
			var want []string
			if c.want != "" {
				want = append(want, c.want)
			}
			wantProblems(t, h.look(h.report()).Problems, want...)
		})
	}
}

// TestFilterQueue: not every kernel that runs tests has nft_queue.
func TestFilterQueue(t *testing.T) {
	for _, e := range []expr.Any{&expr.Queue{Num: 1}, &expr.Target{Name: "NFQUEUE"}, &expr.Verdict{Kind: 3}} {
		all := filter{chains: map[string]*chain{"forward": {drop: true}}}
		all.add(all.chains["forward"], decode([]expr.Any{e}, false, nil)...)
		if v := all.walk("forward", packet{}); !v.unsure {
			t.Errorf("%#v: %+v", e, v)
		}
	}
}

// direct are rules as Docker 28 makes them, and others of their kind.
func direct() []struct{ name, rules, want string } {
	return []struct{ name, rules, want string }{
		{"Docker 28.2", "-A PREROUTING -d 10.5.1.2/32 ! -i docker0 -j DROP\n-A PREROUTING -d 10.5.1.3/32 ! -i docker0 -j DROP\n",
			"to 10.5.1.2, 10.5.1.3 (rule 1 of PREROUTING, rule 2 of PREROUTING), since"},
		{"Docker 28.0", "-A PREROUTING -d 10.5.1.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DROP\n", "to 10.5.1.2:80 (rule 1 of PREROUTING), since"},
		{"a whole subnet", "-A PREROUTING -d 10.5.1.0/24 -i lo -j ACCEPT\n-A PREROUTING -d 10.5.1.0/24 ! -i docker0 -j DROP\n", "to 10.5.1.0/24 (rule 2 of PREROUTING), since"},
		{"trusted", "-A PREROUTING -d 10.5.1.2/32 -i flannel.1 -j ACCEPT\n-A PREROUTING -d 10.5.1.2/32 ! -i docker0 -j DROP\n", ""},
		{"another network's", "-A PREROUTING -d 172.18.0.2/32 ! -i br-1 -j DROP\n", ""},
		{"a wish", "-A PREROUTING -d 10.5.1.2/32 -j DROP\n", ""},
		{"all", "-A PREROUTING -d 10.5.0.0/16 -j DROP\n", "containers' packets to or from other hosts (rule 1 of PREROUTING)"},
	}
}

// TestFilterDirect: rules that drop before packets are routed, and how iptables' marks
// and programs are seen.
func TestFilterDirect(t *testing.T) {
	t.Parallel()
	for _, tool := range []struct{ restore, name string }{{"iptables-nft-restore", "iptables"}, {"iptables-legacy-restore", "iptables-legacy"}} {
		t.Run(tool.name, func(t *testing.T) {
			t.Parallel()
			needPrograms(t, tool.restore)
			h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
			for _, c := range direct() {
				for _, table := range []string{"raw", "mangle"} {
					t.Run(c.name+" in "+table, func(t *testing.T) {
						h.c.t = t
						h.feed("*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*"+table+"\n:PREROUTING ACCEPT [0:0]\n"+c.rules+"COMMIT\n", tool.restore)
						var want []string
						if name := tool.name + " " + table; c.want != "" {
							want = append(want, "error filter "+name+": "+name+" drops ")
						}
						r := h.look(h.kept())
						wantProblems(t, r.Problems, want...)
						if len(want) > 0 && (!strings.Contains(r.Problems[0].Text, c.want) || strings.Contains(c.want, "since") != strings.Contains(r.Problems[0].Remedy, "trusted_host_interfaces=flannel.1")) {
							t.Errorf("not %q: %+v", c.want, r.Problems[0])
						}
					})
				}
			}
			filter := func(name, want, mangle, rules string) {
				t.Run(name, func(t *testing.T) {
					h.c.t = t
					h.feed("*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\n"+mangle+"COMMIT\n*filter\n:FORWARD DROP [0:0]\n"+rules+"COMMIT\n", tool.restore)
					checkFilter(t, h.look(h.report()).Problems, tool.name, want)
				})
			}
			const marked = "-A FORWARD -m mark --mark 0x1 -j ACCEPT\n"
			filter("nobody's mark", "(policy of FORWARD)", "", marked)
			filter("a mark", "", "-A PREROUTING -s 10.5.0.0/16 -j MARK --set-xmark 0x1/0xffffffff\n", marked)
			filter("a mark of connections", "", "-A PREROUTING -j CONNMARK --restore-mark\n", marked)
			filter("a program", "", "", "-A FORWARD -j NFQUEUE --queue-num 1 --queue-bypass\n")
			filter("a log", "(policy of FORWARD)", "", "-A FORWARD -j LOG\n")
			filter("a mark by NAT", "", "", marked+"COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 10.5.0.0/16 -j MARK --set-xmark 0x1/0xffffffff\n")
		})
	}
}

// TestFilterDockerNative: a container's address in a table of Docker's own, as its engine
// makes it without iptables.
func TestFilterDockerNative(t *testing.T) {
	t.Parallel()
	needNFT(t)
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	h.nft(`table ip docker-bridges { chain raw-PREROUTING { type filter hook prerouting priority raw; policy accept
		ip daddr 10.5.1.2 iifname != { "docker0", "lo" } counter drop } }`)
	wantProblems(t, h.look(h.kept()).Problems, "error filter nftables ip docker-bridges: nftables ip docker-bridges drops what comes from other hosts to 10.5.1.2 (rule 1 of raw-PREROUTING)")
}
