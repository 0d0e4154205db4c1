package lease_test

import (
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

func FuzzParseNetwork(f *testing.F) {
	for _, g := range guides() {
		f.Add([]byte(g.in))
	}
	for _, in := range []string{
		`{"Network":"10.5.0.0/24","SubnetLen":25}`,
		`{"Network":"255.255.255.0/24","SubnetLen":30,"SubnetMin":"255.255.255.251"}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff::/16","IPv6SubnetMin":"ffff:ffff::1","IPv6SubnetLen":20}`,
		`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"X"}}`,
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := lease.ParseNetwork(data)
		if err != nil {
			if n.IPv4.Enabled() || n.IPv6.Enabled() || n.BackendType != "" || err.Error() == "" {
				t.Fatalf("a network in spite of %v", err)
			}
			return
		}
		if !n.IPv4.Enabled() && !n.IPv6.Enabled() || n.BackendType == "" {
			t.Fatalf("nothing to lease, or no backend: %s", n)
		}
		checkRange(t, n.IPv4, 32)
		checkRange(t, n.IPv6, 128)

		first, last := lease.Key{}, lease.Key{}
		if r := n.IPv4; r.Enabled() {
			first.Subnet, last.Subnet = netip.PrefixFrom(r.Min, r.SubnetLen), netip.PrefixFrom(r.Max, r.SubnetLen)
		}
		if r := n.IPv6; r.Enabled() {
			first.Subnet6, last.Subnet6 = netip.PrefixFrom(r.Min, r.SubnetLen), netip.PrefixFrom(r.Max, r.SubnetLen)
		}
		for _, k := range []lease.Key{first, last} {
			if err := n.Accepts(k); err != nil {
				t.Fatalf("%s does not accept its own %s: %v", n, k, err)
			}
			if back, err := lease.ParseKey(k.String()); err != nil || back != k {
				t.Fatalf("key %s of %s can't be read back: %v", k, n, err)
			}
		}
	})
}

// checkRange holds a range against what whoever leases from it relies on.
func checkRange(t *testing.T, r lease.Range, bits int) {
	if !r.Enabled() {
		if r != (lease.Range{}) {
			t.Fatalf("not enabled, and not zero: %+v", r)
		}
		return
	}
	first, last := netip.PrefixFrom(r.Min, r.SubnetLen), netip.PrefixFrom(r.Max, r.SubnetLen)
	switch {
	case r.Prefix.Addr().BitLen() != bits || r.Min.BitLen() != bits || r.Max.BitLen() != bits:
		t.Fatalf("wrong family: %s", r)
	case r.Prefix != r.Prefix.Masked():
		t.Fatalf("host bits: %s", r)
	case r.SubnetLen < r.Prefix.Bits() || r.SubnetLen > bits-2:
		t.Fatalf("length: %s", r)
	case first != first.Masked() || last != last.Masked():
		t.Fatalf("not on a boundary: %s", r)
	case !r.Prefix.Contains(r.Min) || !r.Prefix.Contains(r.Max) || r.Max.Less(r.Min):
		t.Fatalf("outside, or the wrong way round: %s", r)
	}
}
