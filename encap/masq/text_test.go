package masq

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		line string
		want found
	}{
		{"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully",
			found{rule: rule{src: match{prefix: mustPrefix("10.1.0.0/16")}, dst: match{mustPrefix("224.0.0.0/4"), true}, target: toMasquerade, random: true},
				comment: "flanneld masq"}},
		{"! -s fd00::/8 -d fd00::1/128 -j RETURN",
			found{rule: rule{src: match{mustPrefix("fd00::/8"), true}, dst: match{prefix: mustPrefix("fd00::1/128")}, target: toReturn}}},
		{"-m mark --mark 0x4000/0x4000 -j RETURN", found{rule: rule{mark: true, target: toReturn}}},
		{"-m mark ! --mark 0x4000/0x4000 -j RETURN", found{rule: rule{mark: true, target: toReturn}, odd: true}},
		{"-m mark --mark 0x4000 -j RETURN", found{rule: rule{mark: true, target: toReturn}, odd: true}},
		{"-m comment --comment \"a \\\"b\\\" -j X\" -j Y", found{rule: rule{target: "Y"}, comment: "a \"b\" -j X"}},
		{"-m comment --comment \"\" -j Y", found{rule: rule{target: "Y"}}},
		{"-p tcp -m tcp --dport 80 -j ACCEPT", found{rule: rule{target: toAccept}, odd: true}},
		{"-s 10.0.0.0/255.0.255.0 -j ACCEPT", found{rule: rule{target: toAccept}, odd: true}},
		{"-i eth0 -j ACCEPT", found{rule: rule{target: toAccept}, odd: true}},
		{"-g X", found{rule: rule{target: "X"}, odd: true}},
		{"-j MASQUERADE --to-ports 1-2", found{rule: rule{target: toMasquerade}, odd: true}},
		{"", found{}},
	} {
		got, err := parseRule(c.line)
		c.want.text = c.line
		if err != nil || got != c.want {
			t.Errorf("%s\n is %+v, %v\nwant %+v", c.line, got, err, c.want)
		}
	}
	if _, err := parseRule(`-m comment --comment "no end -j X`); err == nil {
		t.Error("an open quote is no error")
	}
}

func TestParseSave(t *testing.T) {
	tab, err := parseSave("# Generated\n*nat\n:POSTROUTING ACCEPT [12:34]\n:X - [0:0]\n-A POSTROUTING -j X\n-A X -j RETURN\nCOMMIT\n"+
		"*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j X\nCOMMIT\n# Completed\n", "nat")
	if err != nil || len(tab) != 2 || tab["POSTROUTING"].policy != "ACCEPT" || tab["X"].policy != "" || tab["X"].refs != 1 || len(tab["X"].rules) != 1 {
		t.Errorf("%v, %v", tab, err)
	}
	if tab, err := parseSave("", "nat"); tab != nil || err != nil {
		t.Errorf("nothing is %v, %v", tab, err)
	}
	for _, bad := range []string{"*nat\n", "*nat\n:X\nCOMMIT\n", "*nat\nwhat\nCOMMIT\n", "*nat\n-A X --comment \"\nCOMMIT\n"} {
		if tab, err := parseSave(bad, "nat"); err == nil {
			t.Errorf("%q is %v", bad, tab)
		}
	}
}

// TestRuleRoundTrip writes any rule as text and reads it back.
func TestRuleRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t, rapid.Bool().Draw(t, "IPv6"))
		got, err := parseRule(r.String())
		if err != nil || got.rule != r || got.odd {
			t.Fatalf("%v becomes %+v, %v", r, got, err)
		}
	})
}

func FuzzParseSave(f *testing.F) {
	f.Add("*nat\n:POSTROUTING ACCEPT [12:34]\n:X - [0:0]\n-A POSTROUTING ! -s 1.2.3.0/24 -m comment --comment \"a \\\" b\" -j X\nCOMMIT\n")
	f.Add("*nat\n-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE\n-A FLANNEL-POSTRTG -j X\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		tab, err := parseSave(text, "nat")
		if err != nil {
			return
		}
		g := goal{name: "nat", base: "POSTROUTING", chain: natPrefix, yield: policyChains(),
			rules: natRules(mustPrefix("10.244.0.0/16"), mustPrefix("10.244.1.0/24"), nil, true)}
		e := tab.plan(g)
		if strings.Count(e.restore(), "-I POSTROUTING") > 1 {
			t.Errorf("two jumps:\n%s", e.restore())
		}
		for _, name := range append(e.drop, e.empty...) {
			if !isOurs(name, natPrefix) {
				t.Errorf("%s is dropped, which is nobody's leftover", name)
			}
		}
	})
}
