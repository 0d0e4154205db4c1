package encap

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// BenchmarkLookup asks for the peer of one destination after the other, in a
// fleet of the size and with the subnets that flannel gives it:
//
//   - dest=flow: always the same one, so that everything is in the first-level
//     cache;
//   - dest=busy: 16 peers in random order: what one engine talks to within
//     microseconds;
//   - dest=random: all peers in random order, where the caches' size shows.
//
// Where two of the three would ask for the same, only the first is measured.
//
// It waits for memory rather than reading much of it: no bandwidth limits it.
func BenchmarkLookup(b *testing.B) {
	for _, ip := range []int{4, 6} {
		for _, n := range []int{1, 10, 100, 1000, 10000} {
			tb, subnets := benchFleet(b, ip, n)
			for _, d := range []struct {
				name string
				of   int
			}{{"flow", 1}, {"busy", min(16, n)}, {"random", n}} {
				if d.name != "flow" && n == 1 || d.name == "random" && n <= 16 {
					continue
				}
				b.Run(fmt.Sprintf("ip=%d/peers=%d/dest=%s", ip, n, d.name), func(b *testing.B) {
					dst := destinations(subnets[:d.of], 4096)
					b.ReportAllocs()
					if ip == 4 {
						lookups4(b, tb.cur.Load(), dst)
					} else {
						lookups6(b, tb.cur.Load(), dst)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns/packet")
				})
			}
		}
	}
}

func benchFleet(b *testing.B, ip, n int) (*Table, []netip.Prefix) {
	if ip == 4 {
		return fleet(b, "10.0.0.0/8", 24, n, true)
	}
	return fleet(b, "fc00::/40", 64, n, true)
}

// destinations returns n addresses, each in one of the subnets at random. With
// one subnet all are the same.
func destinations(subnets []netip.Prefix, n int) []netip.Addr {
	r := rand.New(rand.NewPCG(3, 4))
	out := make([]netip.Addr, n)
	for i := range out {
		a := subnets[r.IntN(len(subnets))].Addr().AsSlice()
		a[len(a)-1] = 7
		out[i], _ = netip.AddrFromSlice(a)
	}
	return out
}

func lookups4(b *testing.B, s *snapshot, dst []netip.Addr) {
	keys := make([]uint32, len(dst))
	for i, d := range dst {
		a := d.As4()
		keys[i] = binary.BigEndian.Uint32(a[:])
	}
	i := 0
	for b.Loop() {
		if s.lookup4(keys[i&4095]) == nil {
			b.Fatal("not found")
		}
		i++
	}
}

func lookups6(b *testing.B, s *snapshot, dst []netip.Addr) {
	keys := make([]addr128, len(dst))
	for i, d := range dst {
		keys[i] = to128(d)
	}
	i := 0
	for b.Loop() {
		k := &keys[i&4095]
		if s.lookup6(k.hi, k.lo) == nil {
			b.Fatal("not found")
		}
		i++
	}
}

// BenchmarkReplace puts a complete set of peers in place of another: the same
// one again (change=none, as a repeated event brings it), or one in which every
// endpoint is new. It is not on the way of a packet.
func BenchmarkReplace(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		for _, change := range []string{"none", "all"} {
			b.Run(fmt.Sprintf("peers=%d/change=%s", n, change), func(b *testing.B) {
				tb, subnets := benchFleet(b, 4, n)
				sets := [2][]Peer{tb.Peers(), tb.Peers()}
				if change == "all" {
					for i := range sets[1] {
						p := &sets[1][i]
						p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr(), p.Endpoint.Port()+1)
					}
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					i++
					if err := tb.Replace(nil, sets[i&1]); err != nil {
						b.Fatal(err)
					}
				}
				if p, ok := tb.Lookup(subnets[n-1].Addr()); !ok || p.Endpoint != sets[i&1][n-1].Endpoint {
					b.Errorf("the last subnet leads to %v", p.Endpoint)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/peer")
			})
		}
	}
}
