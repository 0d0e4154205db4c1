package masq

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// parse returns a table from rules without counters: "-A" lines, and chains by ":".
func parse(t interface{ Fatal(...any) }, name, rules string) table {
	tab, err := parseSave("*"+name+"\n"+rules+"\nCOMMIT\n", name)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func forwardGoal() goal {
	return goal{
		name: "filter", base: "FORWARD", chain: fwdPrefix, yield: append(policyChains(), "mine-*"),
		rules: []rule{{src: match{prefix: netip.MustParsePrefix("10.244.0.0/16")}, target: toAccept}},
	}
}

const filled = ":FLANNELKIT-FWD - [0:0]\n-A FLANNELKIT-FWD -s 10.244.0.0/16 -j ACCEPT\n"

// TestJumpPlace shows where the jump is put, and when it is right where it is.
func TestJumpPlace(t *testing.T) {
	for _, c := range []struct{ base, want string }{ // want: "" if nothing has to be done
		{"", "-I FORWARD 1 -j FLANNELKIT-FWD"},
		{"-A FORWARD -j FLANNELKIT-FWD", ""},
		{"-A FORWARD -m comment --comment ours -j FLANNELKIT-FWD", ""},
		{"-A FORWARD -j X\n-A FORWARD -j Y", "-I FORWARD 1 -j FLANNELKIT-FWD"},
		{"-A FORWARD -j X\n-A FORWARD -j FLANNELKIT-FWD", "-D FORWARD -j FLANNELKIT-FWD\n-I FORWARD 1 -j FLANNELKIT-FWD"},
		{"-A FORWARD -j DOCKER-USER\n-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j DOCKER-FORWARD", ""},
		{"-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD", "-I FORWARD 2 -j FLANNELKIT-FWD"},
		{"-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j DOCKER-USER", "-D FORWARD -j FLANNELKIT-FWD\n-I FORWARD 2 -j FLANNELKIT-FWD"},
		{"-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j X\n-A FORWARD -j DOCKER-USER", ""},
		{"-A FORWARD -m comment --comment \"cali:x\" -j cali-FORWARD\n-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n" +
			"-A FORWARD -j mine-1\n-A FORWARD -j FLANNELKIT-FWD", ""},
		{"-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j FLANNELKIT-FWD",
			"-D FORWARD -j FLANNELKIT-FWD\n-D FORWARD -j FLANNELKIT-FWD\n-I FORWARD 1 -j FLANNELKIT-FWD"},
		{"-A FORWARD -i eth0 -j FLANNELKIT-FWD", "-D FORWARD -i eth0 -j FLANNELKIT-FWD\n-I FORWARD 1 -j FLANNELKIT-FWD"},
		{"-A FORWARD -g FLANNELKIT-FWD", "-D FORWARD -g FLANNELKIT-FWD\n-I FORWARD 1 -j FLANNELKIT-FWD"},
		// Another network's jump is as good ahead of ours as behind it.
		{"-A FORWARD -j FLANNELKIT-FWD-a\n-A FORWARD -j FLANNELKIT-FWD", ""},
		{"-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j FLANNELKIT-FWD-a", ""},
		{"-A FORWARD -j DOCKER-USER\n-A FORWARD -j FLANNELKIT-FWD-a\n-A FORWARD -j FLANNELKIT-FWD\n-A FORWARD -j X", ""},
		{"-A FORWARD -j FLANNELKIT-FWD-a\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j X", "-I FORWARD 3 -j FLANNELKIT-FWD"},
	} {
		e := parse(t, "filter", filled+c.base).plan(forwardGoal())
		got := strings.TrimSuffix(strings.TrimPrefix(e.restore(), "*filter\n"), "COMMIT\n")
		if want := strings.TrimPrefix(c.want+"\n", "\n"); got != want || e.isEmpty() != (c.want == "") {
			t.Errorf("with\n%s\n%s\nis planned, want\n%s", c.base, got, want)
		}
	}
}

// TestPlanChain shows what makes a chain of ours be filled anew, emptied or removed.
func TestPlanChain(t *testing.T) {
	jump := "-A FORWARD -j FLANNELKIT-FWD\n"
	fill := ":FLANNELKIT-FWD - [0:0]\n-A FLANNELKIT-FWD -s 10.244.0.0/16 -j ACCEPT\n"
	for _, c := range []struct{ rules, want, remove string }{
		{"", fill + "-I FORWARD 1 -j FLANNELKIT-FWD\n", ""},
		{filled + jump, "", "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n-X FLANNELKIT-FWD\n"},
		{":FLANNELKIT-FWD - [0:0]\n" + jump, fill, "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n-X FLANNELKIT-FWD\n"},
		{filled + "-A FLANNELKIT-FWD -j DROP\n" + jump, fill, "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n-X FLANNELKIT-FWD\n"},
		{":FLANNELKIT-FWD - [0:0]\n-A FLANNELKIT-FWD -s 10.244.0.0/16 -p tcp -j ACCEPT\n" + jump, fill, "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n-X FLANNELKIT-FWD\n"},
		{":FLANNELKIT-FWD - [0:0]\n-A FLANNELKIT-FWD -s 10.243.0.0/16 -j ACCEPT\n" + jump, fill, "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n-X FLANNELKIT-FWD\n"},
		// Somebody else jumps to it: deleting it would fail, and with it everything.
		{filled + jump + "-A INPUT -j FLANNELKIT-FWD\n", "", "-D FORWARD -j FLANNELKIT-FWD\n-F FLANNELKIT-FWD\n"},
		{":FLANNELKIT-FWD - [0:0]\n-A INPUT -j FLANNELKIT-FWD\n", fill + "-I FORWARD 1 -j FLANNELKIT-FWD\n", ""},
	} {
		tab := parse(t, "filter", c.rules)
		g := forwardGoal()
		for _, want := range []string{c.want, c.remove} {
			got := strings.TrimSuffix(strings.TrimPrefix(tab.plan(g).restore(), "*filter\n"), "COMMIT\n")
			if got != want {
				t.Errorf("with %d rules and\n%s\n%s\nis planned, want\n%s", len(g.rules), c.rules, got, want)
			}
			g.rules = nil
		}
	}
}

// TestPlanConverges spoils tables at random, does what is planned, and finds that then
// nothing more is planned, that foreign rules are as before, and that the jump is right.
func TestPlanConverges(t *testing.T) {
	lines := []string{
		"-A FORWARD -j DOCKER-USER", "-A FORWARD -j DROP", "-A FORWARD -j FLANNELKIT-FWD", "-A FORWARD -j FLANNELKIT-FWD-x",
		"-A FORWARD -i x -j FLANNELKIT-FWD", "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
		"-A FORWARD -s 10.244.0.0/16 -j ACCEPT", "-A FORWARD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
		"-A FLANNELKIT-FWD -s 10.244.0.0/16 -j ACCEPT", "-A FLANNELKIT-FWD -j DROP", "-A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT",
		"-A FORWARD -j KUBE-FORWARD", "-A INPUT -j FLANNEL-FWD", "-A FORWARD -j mine-2",
	}
	rapid.Check(t, func(t *rapid.T) {
		picked := rapid.SliceOfN(rapid.SampledFrom(lines), 0, 12).Draw(t, "rules")
		tab := parse(t, "filter", ":FLANNELKIT-FWD - [0:0]\n:FLANNEL-FWD - [0:0]\n"+strings.Join(picked, "\n"))
		g := forwardGoal()
		g.leftover = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
		if rapid.Bool().Draw(t, "remove") {
			g.rules = nil
		}
		before := foreign(tab)
		e := tab.plan(g)
		tab.do(t, e)
		if again := tab.plan(g); !again.isEmpty() {
			t.Fatalf("after\n%s\nthere is still\n%s", e.restore(), again.restore())
		}
		if after := foreign(tab); after != before {
			t.Fatalf("foreign rules were\n%s\nand are\n%s", before, after)
		}
	})
}

// foreign returns the rules that nobody but others may remove.
func foreign(t table) string {
	var b strings.Builder
	for _, base := range []string{"FORWARD", "INPUT"} {
		if t[base] == nil {
			continue
		}
		for _, f := range t[base].rules {
			if base == "INPUT" || f.target != fwdPrefix && f.target != flannelFwd && f.comment != flannelForward {
				b.WriteString(base + " " + f.text + "\n")
			}
		}
	}
	return b.String()
}

// do does an edit to a table as iptables-restore would.
func (t table) do(tb interface{ Fatalf(string, ...any) }, e edit) {
	base := t.at(e.base)
	for _, gone := range e.remove {
		for i, f := range base.rules {
			if f.text == gone.text {
				base.rules = append(base.rules[:i:i], base.rules[i+1:]...)
				break
			}
		}
	}
	if e.fill {
		c := t.at(e.chain)
		c.rules = nil
		for _, r := range e.rules {
			c.rules = append(c.rules, found{rule: r, text: r.String()})
		}
	}
	if e.insert {
		if e.at > len(base.rules) {
			tb.Fatalf("place %d of %d", e.at, len(base.rules))
		}
		jump := found{rule: rule{target: e.chain}, text: "-j " + e.chain}
		base.rules = append(base.rules[:e.at:e.at], append([]found{jump}, base.rules[e.at:]...)...)
	}
	for _, name := range append(e.empty, e.drop...) {
		t[name].rules = nil
	}
	for _, name := range e.drop {
		for _, c := range t {
			for _, f := range c.rules {
				if f.target == name {
					tb.Fatalf("%s is removed while %q refers to it", name, f.text)
				}
			}
		}
		delete(t, name)
	}
	for _, c := range t {
		c.refs = 0
	}
	for _, c := range t {
		for _, f := range c.rules {
			if to := t[f.target]; to != nil {
				to.refs++
			}
		}
	}
}
