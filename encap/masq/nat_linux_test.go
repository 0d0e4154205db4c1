package masq

import (
	"net/netip"
	"strings"
	"testing"
)

// TestSourceAddresses looks at the source address at the far end, for each direction
// that packets can take through host A.
func TestSourceAddresses(t *testing.T) {
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			cfg := w.config(f.tool)
			cfg.Exclude = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:1::10/128")}
			r := w.apply(t, cfg)
			t.Run("masquerade", func(t *testing.T) { w.directions(t, true) })
			cfg.Masquerade = false
			off := w.apply(t, cfg)
			t.Run("off", func(t *testing.T) { w.directions(t, false) })
			must(t, w.HostA.Do(func() error { return r.Apply(t.Context()) }))
			t.Run("on again", func(t *testing.T) { w.multicasts(t) })
			must(t, off.Close(false))
			must(t, w.HostA.Do(func() error { return r.Close(true) }))
			t.Run("removed", func(t *testing.T) { w.directions(t, false) })
		})
	}
}

// directions makes a call for each direction. on says whether host A masquerades.
func (w *world) directions(t *testing.T, on bool) {
	a, b := w.HostA, w.HostB
	for _, v6 := range []bool{false, true} {
		pick := func(four, six string) netip.Addr {
			if v6 {
				return netip.MustParseAddr(six)
			}
			return netip.MustParseAddr(four)
		}
		podA, podB := a.PodAddr4, b.PodAddr4
		if v6 {
			podA, podB = a.PodAddr6, b.PodAddr6
		}
		host := pick("192.0.2.1", "2001:db8::1")
		overlay := pick("10.244.1.0", "fd00:244:1::")
		router := pick("203.0.113.1", "2001:db8:1::1")
		outside, excluded := pick("203.0.113.9", "2001:db8:1::9"), pick("203.0.113.10", "2001:db8:1::10")
		for _, c := range []struct {
			name    string
			call    call
			on, off netip.Addr
		}{
			{"own pod to remote pod", call{from: w.PodA, to: w.PodB, dst: podB}, podA, podA},
			{"remote pod to own pod", call{from: w.PodB, to: w.PodA, dst: podA}, podB, podB},
			{"own pod to the world", call{from: w.PodA, to: w.outside, dst: outside}, router, podA},
			{"own pod to its host", call{from: w.PodA, to: a.NS, dst: host}, podA, podA},
			{"own pod to an excluded network", call{from: w.PodA, to: w.outside, dst: excluded}, podA, podA},
			{"host to remote pod", call{from: a.NS, to: w.PodB, dst: podB, bind: host}, overlay, host},
			{"host to own pod", call{from: a.NS, to: w.PodA, dst: podA, bind: host}, host, host},
			{"the world to own pod", call{from: w.outside, to: w.PodA, dst: podA, bind: outside}, outside, outside},
			{"the world to remote pod", call{from: w.outside, to: w.PodB, dst: podB, bind: outside}, overlay, outside},
			{"marked by kube-proxy", call{from: a.NS, to: w.PodB, dst: podB, bind: host, mark: 0x4001}, host, host},
			{"marked otherwise", call{from: a.NS, to: w.PodB, dst: podB, bind: host, mark: 0x8001}, overlay, host},
		} {
			want := c.off
			if on {
				want = c.on
			}
			if c.call.bind == outside && c.call.dst == podB && !on {
				continue // host B has no way back
			}
			for _, network := range []string{"tcp", "udp"} {
				c.call.network = network
				if got, err := c.call.seen(t); err != nil || got != want {
					t.Errorf("%s, %s, IPv6 %v: the far end saw %v, %v; want %v", c.name, network, v6, got, err, want)
				}
			}
		}
	}
}

// multicasts sends to groups from an address of the network: the source has to stay.
func (w *world) multicasts(t *testing.T) {
	for _, c := range []struct{ group, src string }{{"239.1.2.3", "10.244.1.1"}, {"ff3e::1234", "fd00:244:1::1"}} {
		got, err := w.multicast(t, netip.MustParseAddr(c.group), netip.MustParseAddr(c.src))
		if err != nil || got.String() != c.src {
			t.Errorf("a packet to %s from %s was received from %v, %v", c.group, c.src, got, err)
		}
	}
}

func TestRandomPorts(t *testing.T) {
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			for _, off := range []bool{false, true, false} {
				cfg := w.config(f.tool)
				cfg.NoRandom = off
				w.apply(t, cfg)
				for i := range 2 {
					n := 0
					for _, r := range w.natRules(t, f, i) {
						if r.target == toMasquerade && r.random == off {
							t.Errorf("family %d, NoRandom %v: rule %v", i, off, r)
						}
						if r.target == toMasquerade {
							n++
						}
					}
					if n != 2 {
						t.Errorf("family %d has %d masquerade rules, want 2", i, n)
					}
				}
				// Whatever is in the rules, the kernel must do it.
				c := call{network: "udp", from: w.PodA, to: w.outside, dst: netip.MustParseAddr("203.0.113.9")}
				if got, err := c.seen(t); err != nil || got.String() != "203.0.113.1" {
					t.Errorf("NoRandom %v: seen as %v, %v", off, got, err)
				}
			}
		})
	}
}

// natRules returns the masquerade rules of IPv4 (0) or IPv6 (1), as found in host A.
func (w *world) natRules(t *testing.T, f flavour, i int) []found {
	t.Helper()
	if f.tool == IPTables {
		tab, err := parseSave(w.run(t, command(i == 1)+"-"+f.m.String()+"-save", "-t", "nat"), "nat")
		must(t, err)
		if tab[natPrefix] == nil {
			return nil
		}
		return tab[natPrefix].rules
	}
	var rules []found
	must(t, w.HostA.Do(func() error {
		c, err := dialKernel()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		rules, err = kernel{c: c}.rules(familyOf(i), tablePrefix, natChainName)
		return err
	}))
	return rules
}

// TestRulesInTheirOrder compares the rules with those of flannel's manual, written out.
func TestRulesInTheirOrder(t *testing.T) {
	w := newWorld(t)
	want := []string{
		"-m mark --mark 0x4000/0x4000 -j RETURN",
		"-s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN",
		"-s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN",
		"! -s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN",
		"-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
		"! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully",
	}
	six := strings.NewReplacer("10.244.1.0/24", "fd00:244:1::/64", "10.244.0.0/16", "fd00:244::/32", "224.0.0.0/4", "ff00::/8")
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			f.occupy(t, w)
			r := w.apply(t, w.config(f.tool))
			for i := range 2 {
				got := w.natRules(t, f, i)
				if len(got) != len(want) {
					t.Fatalf("family %d has %d rules, want %d: %v", i, len(got), len(want), got)
				}
				for j, line := range want {
					if i == 1 {
						line = six.Replace(line)
					}
					if got[j].odd || got[j].String() != line {
						t.Errorf("family %d, rule %d is %+v, want %s", i, j, got[j], line)
					}
				}
			}
			must(t, w.HostA.Do(func() error { return r.Close(true) }))
		})
	}
}
