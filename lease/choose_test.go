package lease

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// oracleFree enumerates the subnets of a range, one after the other by their
// addresses, and returns those that overlap nothing that is taken.
func oracleFree(r Range, taken []netip.Prefix) []netip.Prefix {
	var free []netip.Prefix
	for a := r.Min; ; {
		p := netip.PrefixFrom(a, r.SubnetLen)
		clash := false
		for _, t := range taken {
			clash = clash || t.IsValid() && (t.Contains(p.Addr()) || p.Contains(t.Addr()))
		}
		if !clash {
			free = append(free, p)
		}
		if a == r.Max {
			return free
		}
		a = oracleNext(p)
	}
}

// oracleNext returns the first address after a prefix, bit by bit.
func oracleNext(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits() - 1; bit >= 0; bit-- {
		mask := byte(0x80 >> (bit % 8))
		if b[bit/8]&mask == 0 {
			b[bit/8] |= mask
			break
		}
		b[bit/8] &^= mask
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// flip returns addr with its bits after the first `keep` at random.
func flip(t *rapid.T, addr netip.Addr, keep int, label string) netip.Addr {
	b := addr.AsSlice()
	noise := rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, label)
	for bit := keep; bit < len(b)*8; bit++ {
		mask := byte(0x80 >> (bit % 8))
		b[bit/8] = b[bit/8]&^mask | noise[bit/8]&mask
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// drawRange returns a range of up to 256 subnets, aligned as ParseNetwork leaves it.
func drawRange(t *rapid.T) Range {
	base, most := netip.MustParseAddr("10.0.0.0"), 30
	if rapid.Bool().Draw(t, "v6") {
		base, most = netip.MustParseAddr("fd00:5::"), 126
	}
	length := rapid.IntRange(9, most).Draw(t, "SubnetLen")
	bits := max(length-rapid.IntRange(0, 8).Draw(t, "room"), 1)
	prefix := netip.PrefixFrom(flip(t, base, 8, "network"), bits).Masked()
	limits := []netip.Addr{
		netip.PrefixFrom(flip(t, prefix.Addr(), bits, "one"), length).Masked().Addr(),
		netip.PrefixFrom(flip(t, prefix.Addr(), bits, "two"), length).Masked().Addr(),
	}
	if limits[1].Less(limits[0]) {
		limits[0], limits[1] = limits[1], limits[0]
	}
	return Range{Prefix: prefix, SubnetLen: length, Min: limits[0], Max: limits[1]}
}

// drawTaken returns prefixes of any length in and around a range, some of the other
// family, some invalid, some with host bits.
func drawTaken(t *rapid.T, r Range) []netip.Prefix {
	n := rapid.IntRange(0, 40).Draw(t, "taken")
	var all []netip.Prefix
	for i := range n {
		a := flip(t, r.Prefix.Addr(), max(0, r.Prefix.Bits()-2), fmt.Sprint("taken ", i))
		bits := r.SubnetLen + rapid.IntRange(-3, 3).Draw(t, "longer")
		bits = min(max(bits, 0), a.BitLen())
		p := netip.PrefixFrom(a, bits)
		switch rapid.IntRange(0, 19).Draw(t, "kind") {
		case 0:
			p = netip.Prefix{}
		case 1:
			p = netip.MustParsePrefix("2001:db8::/32")
		case 2:
			p = netip.MustParsePrefix("198.51.100.0/24")
		case 3: // as it is, with host bits
		default:
			p = p.Masked()
		}
		all = append(all, p)
	}
	return all
}

func TestPickAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRange(t)
		taken := drawTaken(t, r)
		free := oracleFree(r, taken)
		if total := r.count(); total != uint64(len(oracleFree(r, nil))) {
			t.Fatalf("%v: count %d, want %d", r, total, len(oracleFree(r, nil)))
		}
		asked := -1
		got, ok := r.pick(taken, func(n uint64) uint64 {
			if n != uint64(len(free)) {
				t.Fatalf("%v without %v: asks for a number below %d, want %d", r, taken, n, len(free))
			}
			asked = rapid.IntRange(0, len(free)-1).Draw(t, "k")
			return uint64(asked)
		})
		if ok != (len(free) > 0) {
			t.Fatalf("%v without %v: found %t, %d are free", r, taken, ok, len(free))
		}
		if ok && got != free[asked] {
			t.Fatalf("%v without %v: number %d is %v, want %v", r, taken, asked, got, free[asked])
		}
	})
}

// TestPickReachesAll: each free subnet has its number.
func TestPickReachesAll(t *testing.T) {
	r := Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 20, Min: netip.MustParseAddr("10.10.0.0"), Max: netip.MustParseAddr("10.13.240.0")}
	taken := []netip.Prefix{netip.MustParsePrefix("10.10.0.0/20"), netip.MustParsePrefix("10.11.0.0/16"),
		netip.MustParsePrefix("10.12.7.0/24"), netip.MustParsePrefix("10.13.240.0/20")}
	free := oracleFree(r, taken)
	for i, want := range free {
		got, ok := r.pick(taken, func(uint64) uint64 { return uint64(i) })
		if !ok || got != want {
			t.Errorf("number %d is %v, %t; want %v", i, got, ok, want)
		}
	}
}

func TestPickEdges(t *testing.T) {
	p := netip.MustParsePrefix
	a := netip.MustParseAddr
	last := func(n uint64) uint64 { return n - 1 }
	first := func(uint64) uint64 { return 0 }
	for _, tc := range []struct {
		name  string
		r     Range
		taken []netip.Prefix
		n     func(uint64) uint64
		want  string // "": none
	}{
		{"single", Range{p("10.5.0.0/24"), 24, a("10.5.0.0"), a("10.5.0.0")}, nil, last, "10.5.0.0/24"},
		{"single, taken", Range{p("10.5.0.0/24"), 24, a("10.5.0.0"), a("10.5.0.0")}, []netip.Prefix{p("10.5.0.128/25")}, last, ""},
		{"single, the whole world taken", Range{p("10.5.0.0/24"), 24, a("10.5.0.0"), a("10.5.0.0")}, []netip.Prefix{p("0.0.0.0/0")}, last, ""},
		{"v6 world taken", Range{p("fd00::/8"), 64, a("fd00::"), a("fdff:ffff:ffff:ffff::")}, []netip.Prefix{p("::/0")}, last, ""},
		{"v4 end", Range{p("255.255.255.0/24"), 30, a("255.255.255.248"), a("255.255.255.252")}, []netip.Prefix{p("255.255.255.248/30")}, last, "255.255.255.252/30"},
		{"v4 whole", Range{p("128.0.0.0/1"), 30, a("128.0.0.0"), a("255.255.255.252")}, nil, last, "255.255.255.252/30"},
		{"v6 end", Range{p("ffff::/16"), 126, a("ffff::"), a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc")}, []netip.Prefix{p("ffff::/126")}, first, "ffff::4/126"},
		{"v6 across words", Range{p("fd00::/60"), 66, a("fd00:0:0:0:c000::"), a("fd00:0:0:2:4000::")}, []netip.Prefix{p("fd00:0:0:1::/64")}, func(uint64) uint64 { return 1 }, "fd00:0:0:2::/66"},
		{"v6 in the high word", Range{p("fd00::/8"), 48, a("fd00:0:1::"), a("fdff:ffff:ffff::")}, nil, last, "fdff:ffff:ffff::/48"},
		{"v4 lease in a v6 range", Range{p("fd00::/62"), 64, a("fd00::"), a("fd00::")}, []netip.Prefix{p("0.0.0.0/0")}, last, "fd00::/64"},
		{"below and above", Range{p("10.5.0.0/16"), 24, a("10.5.5.0"), a("10.5.6.0")}, []netip.Prefix{p("10.5.4.0/24"), p("10.5.7.0/24"), p("10.5.0.0/22"), p("10.5.8.0/21")}, last, "10.5.6.0/24"},
		{"straddles Min", Range{p("10.5.0.0/16"), 24, a("10.5.5.0"), a("10.5.8.0")}, []netip.Prefix{p("10.5.4.0/23")}, first, "10.5.6.0/24"},
		{"straddles Max", Range{p("10.5.0.0/16"), 24, a("10.5.5.0"), a("10.5.8.0")}, []netip.Prefix{p("10.5.8.0/21")}, last, "10.5.7.0/24"},
	} {
		got, ok := tc.r.pick(tc.taken, tc.n)
		if ok != (tc.want != "") || ok && got.String() != tc.want {
			t.Errorf("%s: %v, %t; want %q", tc.name, got, ok, tc.want)
		}
	}
}

// TestPickHuge: ranges of which nobody can enumerate the subnets.
func TestPickHuge(t *testing.T) {
	r := Range{Prefix: netip.MustParsePrefix("fd00::/8"), SubnetLen: 126,
		Min: netip.MustParseAddr("fd00::4"), Max: netip.MustParseAddr("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc")}
	rapid.Check(t, func(t *rapid.T) {
		var taken []netip.Prefix
		for i := range rapid.IntRange(0, 20).Draw(t, "taken") {
			taken = append(taken, netip.PrefixFrom(flip(t, r.Prefix.Addr(), 8, fmt.Sprint(i)), rapid.IntRange(8, 128).Draw(t, "bits")).Masked())
		}
		k := rapid.Uint64().Draw(t, "k")
		p, ok := r.pick(taken, func(n uint64) uint64 { return k % n })
		if !ok {
			return // taken may be all of the range, or of that part of it that is considered
		}
		if err := r.accepts(p); err != nil {
			t.Fatalf("%v is not of the range: %v", p, err)
		}
		for _, u := range taken {
			if u.Overlaps(p) {
				t.Fatalf("%v overlaps %v", p, u)
			}
		}
	})
}

// TestPickUniform: chi-square over the free subnets.
func TestPickUniform(t *testing.T) {
	r := Range{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24, Min: netip.MustParseAddr("10.5.1.0"), Max: netip.MustParseAddr("10.5.255.0")}
	taken := []netip.Prefix{netip.MustParsePrefix("10.5.16.0/20"), netip.MustParsePrefix("10.5.200.0/25"), netip.MustParsePrefix("10.5.1.0/24")}
	free := oracleFree(r, taken)
	src := rand.New(rand.NewPCG(1, 2))
	const each = 100
	hits := make(map[netip.Prefix]int)
	for range each * len(free) {
		p, _ := r.pick(taken, src.Uint64N)
		hits[p]++
	}
	sum := 0.0
	for _, p := range free {
		d := float64(hits[p] - each)
		sum += d * d / each
	}
	df := float64(len(free) - 1)
	if limit := df + 5*math.Sqrt(2*df); sum > limit || len(hits) != len(free) {
		t.Errorf("chi-square %.0f of %.0f degrees of freedom (at most %.0f), %d subnets of %d", sum, df, limit, len(hits), len(free))
	}
}

// TestPickCost: the number of calls and bytes must not depend on the size of the range.
func TestPickCost(t *testing.T) {
	small := Range{Prefix: netip.MustParsePrefix("10.5.0.0/20"), SubnetLen: 24, Min: netip.MustParseAddr("10.5.0.0"), Max: netip.MustParseAddr("10.5.15.0")}
	big := Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 30, Min: netip.MustParseAddr("10.0.0.0"), Max: netip.MustParseAddr("10.255.255.252")}
	taken := []netip.Prefix{netip.MustParsePrefix("10.5.3.0/24"), netip.MustParsePrefix("10.5.7.0/24")}
	cost := func(r Range) float64 {
		return testing.AllocsPerRun(100, func() { r.pick(taken, func(n uint64) uint64 { return n / 2 }) })
	}
	if a, b := cost(small), cost(big); a != b {
		t.Errorf("16 subnets cost %v allocations, 4 million cost %v", a, b)
	}
}
