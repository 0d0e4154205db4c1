package masq

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// good returns a configuration that New takes.
func good() Config {
	return Config{
		Network4: netip.MustParsePrefix("10.244.0.0/16"), Subnet4: netip.MustParsePrefix("10.244.1.1/24"),
		Network6: netip.MustParsePrefix("fd00:244::/32"), Subnet6: netip.MustParsePrefix("fd00:244:1::1/64"),
		Masquerade: true, Forward: true,
	}
}

func TestBadConfig(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		says  string
		spoil func(*Config)
	}{
		{"neither Network4 nor Network6", func(c *Config) { *c = Config{} }},
		{"bad Subnet4 10.9.1.0/24: not inside of Network4 10.244.0.0/16", func(c *Config) { c.Subnet4 = p("10.9.1.0/24") }},
		{"Subnet4 10.244.0.0/15: not inside", func(c *Config) { c.Subnet4 = p("10.244.0.0/15") }},
		{"Subnet6 fd01::/64: not inside", func(c *Config) { c.Subnet6 = p("fd01::/64") }},
		{"Network4 fd00::/32: not IPv4", func(c *Config) { c.Network4 = p("fd00::/32") }},
		{"Subnet4 fd00:244:1::/64: not IPv4", func(c *Config) { c.Subnet4 = p("fd00:244:1::/64") }},
		{"Network6 10.0.0.0/8: not IPv6", func(c *Config) { c.Network6 = p("10.0.0.0/8") }},
		{"Network6 ::ffff:10.0.0.0/104: not IPv6", func(c *Config) { c.Network6 = p("::ffff:10.0.0.0/104") }},
		{"Subnet4, this host's part of it, is not set", func(c *Config) { c.Subnet4 = netip.Prefix{} }},
		{"Subnet4 10.244.1.1/24: Network4 is not set", func(c *Config) { c.Network4 = netip.Prefix{} }},
		{"every address", func(c *Config) { c.Network4 = p("0.0.0.0/0") }},
		{"bad Exclude: 0.0.0.0/0", func(c *Config) { c.Exclude = []netip.Prefix{p("0.0.0.0/0")} }},
		{"bad Exclude: invalid", func(c *Config) { c.Exclude = []netip.Prefix{{}} }},
		{"bad Yield: \"*\"", func(c *Config) { c.Yield = []string{"*"} }},
		{"bad Resync -1s", func(c *Config) { c.Resync = -time.Second }},
		{"without a unit", func(c *Config) { c.Resync = 5 }},
		{"Tool(7)", func(c *Config) { c.Tool = 7 }},
	} {
		cfg := good()
		c.spoil(&cfg)
		if r, err := New(cfg); err == nil || r != nil || !strings.HasPrefix(err.Error(), "masq: new: ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("error %v, want one that says %q", err, c.says)
		}
	}
	for _, c := range []func(*Config){
		func(*Config) {},
		func(c *Config) { c.Network4, c.Subnet4 = netip.Prefix{}, netip.Prefix{} },
		func(c *Config) { c.Network6, c.Subnet6 = netip.Prefix{}, netip.Prefix{} },
		func(c *Config) { c.Subnet4 = c.Network4 },
		func(c *Config) { c.Masquerade, c.Forward = false, false },
		func(c *Config) { c.Network4 = p("10.244.3.9/16") }, // stray bits, as flannel takes them
	} {
		cfg := good()
		c(&cfg)
		if _, err := New(cfg); err != nil {
			t.Error(err)
		}
	}
}

// TestRules compares the rules of both families with flannel's, and where excluded
// networks are among them.
func TestRules(t *testing.T) {
	cfg := good()
	cfg.Exclude = []netip.Prefix{netip.MustParsePrefix("172.16.3.4/12"), netip.MustParsePrefix("fd77::/16"), netip.MustParsePrefix("172.16.0.0/12")}
	task, err := newTask(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{`
-m mark --mark 0x4000/0x4000 -j RETURN
-s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN
-s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN
! -s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN
-d 172.16.0.0/12 -j RETURN
-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully
-s 10.244.0.0/16 -j ACCEPT
-d 10.244.0.0/16 -j ACCEPT
`, `
-m mark --mark 0x4000/0x4000 -j RETURN
-s fd00:244:1::/64 -d fd00:244::/32 -j RETURN
-s fd00:244::/32 -d fd00:244:1::/64 -j RETURN
! -s fd00:244::/32 -d fd00:244:1::/64 -j RETURN
-d fd77::/16 -j RETURN
-s fd00:244::/32 ! -d ff00::/8 -j MASQUERADE --random-fully
! -s fd00:244::/32 -d fd00:244::/32 -j MASQUERADE --random-fully
-s fd00:244::/32 -j ACCEPT
-d fd00:244::/32 -j ACCEPT
`} {
		var got strings.Builder
		got.WriteString("\n")
		for _, r := range slices.Concat(task.fam[i].nat, task.fam[i].fwd) {
			got.WriteString(r.String() + "\n")
		}
		if got.String() != want {
			t.Errorf("rules:%swant:%s", got.String(), want)
		}
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range []string{"", "blue", "red", "0123456789abc", "0123456789abcd", "a/b", "a b", "ä", "-", strings.Repeat("x", 300), "NAT", "FWD"} {
		var k task
		k.setName(name)
		for _, n := range []string{k.natChain, k.fwdChain, k.table} {
			if len(n) > 28 {
				t.Errorf("%q: %q has %d letters, iptables takes 28", name, n, len(n))
			}
			if strings.ContainsAny(n, " /\"'!") || strings.ContainsFunc(n, func(c rune) bool { return c > 126 }) {
				t.Errorf("%q: %q", name, n)
			}
			if other, ok := seen[n]; ok {
				t.Errorf("%q and %q share %q", name, other, n)
			}
			seen[n] = name
		}
		if !isOurs(k.natChain, natPrefix) || !isOurs(k.fwdChain, fwdPrefix) {
			t.Errorf("%q: %q and %q are not found again", name, k.natChain, k.fwdChain)
		}
	}
}

func TestTools(t *testing.T) {
	for tool, want := range map[Tool]string{Auto: "auto", NFTables: "nftables", IPTables: "iptables", 9: "Tool(9)"} {
		if tool.String() != want {
			t.Errorf("%d is %q, want %q", tool, tool, want)
		}
	}
}

func TestOtherSystems(t *testing.T) {
	if runtime.GOOS == "linux" {
		t.Skip("on Linux it works")
	}
	r, err := New(good())
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Apply": r.Apply(t.Context()), "Check": r.Check(t.Context()), "Run": r.Run(t.Context()), "Remove": Remove(t.Context(), nil),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Close(false); err != nil {
		t.Error(err)
	}
}

// TestPace has a fight slow down to a repair a second, and a few repairs at once not
// wait at all.
func TestPace(t *testing.T) {
	p := pace{credit: 10 * time.Second}
	now := time.Now()
	began := now
	repairs := 0
	for ; now.Sub(began) < time.Minute; repairs++ {
		now = now.Add(p.next(now, 0, true))
		if repairs == 8 && now.Sub(began) > 10*minPause {
			t.Errorf("the first repairs took %v", now.Sub(began))
		}
	}
	if repairs < 60 || repairs > 80 {
		t.Errorf("%d repairs in a minute", repairs)
	}
	now = now.Add(time.Hour)
	if d := p.next(now, 0, true); d != minPause {
		t.Errorf("an hour later the pause is %v", d)
	}
	if d := p.next(now, time.Second, false); d != 5*time.Second {
		t.Errorf("a look that takes a second is repeated after %v", d)
	}
}
