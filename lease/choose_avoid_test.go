package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawAvoid returns what an underlay may use: prefixes of every length, in, around and
// out of a range, some of the other family, invalid, with host bits, or an IPv4
// prefix as IPv6 writes it.
func drawAvoid(t *rapid.T, r Range) []netip.Prefix {
	var all []netip.Prefix
	for i := range rapid.IntRange(0, 4).Draw(t, "avoid") {
		a := flip(t, r.Prefix.Addr(), max(0, r.Prefix.Bits()-1), fmt.Sprint("avoid ", i))
		lengths := rapid.OneOf(rapid.IntRange(0, a.BitLen()), rapid.IntRange(r.Prefix.Bits(), min(r.SubnetLen+2, a.BitLen())), rapid.Just(a.BitLen()))
		p := netip.PrefixFrom(a, lengths.Draw(t, "bits"))
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			p = netip.Prefix{}
		case 1:
			p = netip.MustParsePrefix([]string{"2001:db8::/32", "198.51.100.0/24"}[a.BitLen()/128])
		case 2:
			p = p.Masked()
		case 3:
			if a.Is4() {
				p = netip.PrefixFrom(netip.AddrFrom16(a.As16()), p.Bits()+96)
			}
		}
		all = append(all, p)
	}
	return all
}

// plain is what drawAvoid means, for the oracle.
func plain(avoid []netip.Prefix) (all []netip.Prefix) {
	for _, p := range avoid {
		if p.Addr().Is4In6() {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		all = append(all, p)
	}
	return all
}

// TestChooseAvoidsAgainstOracle: of the subnets that overlap neither leases nor what is
// to be avoided, choose takes Previous, else each with the same probability.
func TestChooseAvoidsAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRange(t)
		taken, avoid := drawTaken(t, r), drawAvoid(t, r)
		given := slices.Clone(avoid)
		free := oracleFree(r, slices.Concat(taken, plain(avoid)))
		six := r.Min.Is6()
		key := func(p netip.Prefix) Key {
			if six {
				return Key{Subnet6: p}
			}
			return Key{Subnet: p}
		}
		var previous netip.Prefix
		if rapid.Bool().Draw(t, "has previous") {
			all := oracleFree(r, nil)
			previous = all[rapid.IntRange(0, len(all)-1).Draw(t, "previous")]
		}
		asked := -1
		reg := NewRegistry(nil, RegistryConfig{Previous: key(previous), Avoid: func() []netip.Prefix { return avoid }, Rand: func(n uint64) uint64 {
			if n != uint64(len(free)) {
				t.Fatalf("%v without %v and %v: asks for a number below %d, want %d", r, taken, avoid, n, len(free))
			}
			asked = rapid.IntRange(0, len(free)-1).Draw(t, "k")
			return uint64(asked)
		}})
		network := Network{IPv4: r}
		if six {
			network = Network{IPv6: r}
		}
		var leases []Key
		for _, p := range taken {
			leases = append(leases, Key{Subnet: p, Subnet6: p}) // one is of the other family, which changes nothing
		}
		got, err := reg.choose(network, leases)
		switch {
		case slices.Contains(free, previous):
			if err != nil || got != key(previous) {
				t.Fatalf("previous %v is free: got %v, %v", previous, got, err)
			}
		case len(free) > 0:
			if err != nil || asked < 0 || got != key(free[asked]) {
				t.Fatalf("%v without %v and %v: number %d is %v, %v; want %v", r, taken, avoid, asked, got, err, free)
			}
		default:
			because := len(oracleFree(r, taken)) > 0
			if !errors.Is(err, ErrNoSubnet) || strings.Contains(err.Error(), "own network uses") != because {
				t.Fatalf("%v without %v and %v: %v, %v; none is free, because of avoid: %t", r, taken, avoid, got, err, because)
			}
		}
		if !slices.Equal(avoid, given) {
			t.Fatalf("what Avoid returned was changed: %v, was %v", avoid, given)
		}
	})
}

// TestChooseAvoidsHuge: ranges of which nobody can enumerate the subnets.
func TestChooseAvoidsHuge(t *testing.T) {
	for _, tc := range []struct{ network, avoid string }{
		{"10.0.0.0/8", "10.1.2.11/32"},
		{"10.0.0.0/8", "10.0.0.0/9"},
		{"fd00::/8", "fd00::/9"},
		{"fd00::/8", "fd12:3456:789a:1::1/128"},
	} {
		p, avoid := netip.MustParsePrefix(tc.network), netip.MustParsePrefix(tc.avoid)
		r := Range{Prefix: p, SubnetLen: p.Addr().BitLen() - 2, Min: p.Addr(), Max: netip.PrefixFrom(lastAddr(p), p.Addr().BitLen()-2).Masked().Addr()}
		rapid.Check(t, func(t *rapid.T) {
			k := rapid.Uint64().Draw(t, "k")
			reg := NewRegistry(nil, RegistryConfig{Avoid: func() []netip.Prefix { return []netip.Prefix{avoid} }, Rand: func(n uint64) uint64 { return k % n }})
			got, err := reg.choose(Network{IPv4: r}, nil) // no matter of which family
			if r.Min.Is6() && avoid.Bits() == 9 && errors.Is(err, ErrNoSubnet) {
				return // the half that is left is not among the subnets considered
			}
			if err != nil || got.Subnet.Overlaps(avoid) || r.accepts(got.Subnet) != nil {
				t.Fatalf("%v without %v: %v, %v", r, avoid, got, err)
			}
		})
	}
}
