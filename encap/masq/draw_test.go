package masq

import (
	"net/netip"

	"pgregory.net/rapid"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// drawRule draws a rule as this package makes them.
func drawRule(t *rapid.T, v6 bool) rule {
	r := rule{
		mark: rapid.Bool().Draw(t, "mark"), src: drawMatch(t, v6), dst: drawMatch(t, v6),
		target: rapid.SampledFrom([]string{toReturn, toAccept, toMasquerade, fwdPrefix}).Draw(t, "target"),
	}
	r.random = r.target == toMasquerade && rapid.Bool().Draw(t, "random")
	return r
}

func drawMatch(t *rapid.T, v6 bool) match {
	if rapid.Bool().Draw(t, "any") {
		return match{}
	}
	length := 4
	if v6 {
		length = 16
	}
	addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), length, length).Draw(t, "address"))
	bits := rapid.IntRange(1, length*8).Draw(t, "bits")
	return match{prefix: netip.PrefixFrom(addr, bits).Masked(), not: rapid.Bool().Draw(t, "not")}
}
