package lease

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// mostSubnets bounds the subnets of a range that are considered. An IPv6 range has
// more than can be counted in 64 bits, and more than anybody has hosts.
const mostSubnets = 1 << 62

// span is the subnets of a range with numbers lo to hi, both included.
type span struct{ lo, hi uint64 }

// pick returns a free subnet of the range at random, all free ones being equally
// likely, and whether there is one. Free is what overlaps none of taken, whatever
// their lengths. n returns a random number below its argument.
//
// flannel chooses among the first hundred free ones. Where many hosts join at once,
// they then race for these hundred; over the whole range they rarely meet. The
// cost depends on the number of leases, not on the size of the range.
func (r Range) pick(taken []netip.Prefix, n func(uint64) uint64) (netip.Prefix, bool) {
	total := r.count()
	used := r.spans(taken, total)
	left := free(used, total)
	if left == 0 {
		return netip.Prefix{}, false
	}
	k := n(left)
	for _, s := range used {
		if k < s.lo {
			break
		}
		k += s.hi - s.lo + 1
	}
	return r.subnet(k), true
}

// free returns how many of total subnets are in none of the spans, which do not overlap.
func free(used []span, total uint64) uint64 {
	for _, s := range used {
		total -= s.hi - s.lo + 1
	}
	return total
}

// spans returns what taken covers as numbers of subnets, in order and without overlap.
func (r Range) spans(taken []netip.Prefix, total uint64) []span {
	var all []span
	for _, p := range taken {
		if s, ok := r.span(p, total); ok {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	merged := all[:0]
	for _, s := range all {
		if last := len(merged) - 1; last >= 0 && s.lo <= merged[last].hi {
			merged[last].hi = max(merged[last].hi, s.hi)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// span returns the subnets that overlap p.
func (r Range) span(p netip.Prefix, total uint64) (span, bool) {
	if !p.IsValid() || p.Addr().BitLen() != r.Min.BitLen() {
		return span{}, false
	}
	first, last := p.Masked().Addr(), lastAddr(p)
	if end := lastAddr(netip.PrefixFrom(r.Max, r.SubnetLen)); last.Less(r.Min) || end.Less(first) {
		return span{}, false
	}
	var s span
	if r.Min.Less(first) {
		s.lo = r.index(first)
	}
	s.hi = r.index(last)
	if s.lo >= total {
		return span{}, false
	}
	s.hi = min(s.hi, total-1)
	return s, true
}

// count returns the number of subnets, at most mostSubnets.
func (r Range) count() uint64 { return min(r.index(r.Max)+1, mostSubnets) }

// index returns the number of the subnet that holds a, which is not below Min; at
// most mostSubnets.
func (r Range) index(a netip.Addr) uint64 {
	ahi, alo := words(a)
	mhi, mlo := words(r.Min)
	lo, borrow := bits.Sub64(alo, mlo, 0)
	hi, _ := bits.Sub64(ahi, mhi, borrow)
	shift := a.BitLen() - r.SubnetLen
	if shift >= 64 {
		return min(hi>>(shift-64), mostSubnets)
	}
	if hi>>shift != 0 {
		return mostSubnets
	}
	return min(hi<<(64-shift)|lo>>shift, mostSubnets)
}

// subnet returns the subnet of a number.
func (r Range) subnet(i uint64) netip.Prefix {
	shift := r.Min.BitLen() - r.SubnetLen
	var hi, lo uint64
	if shift >= 64 {
		hi = i << (shift - 64)
	} else {
		hi, lo = i>>(64-shift), i<<shift
	}
	mhi, mlo := words(r.Min)
	lo, carry := bits.Add64(lo, mlo, 0)
	hi, _ = bits.Add64(hi, mhi, carry)
	return netip.PrefixFrom(address(hi, lo, r.Min.Is4()), r.SubnetLen)
}

// words returns an address as a number of two words.
func words(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// address is the reverse of words.
func address(hi, lo uint64, is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(lo))))
	}
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)))
}

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	hi, lo := words(p.Masked().Addr())
	host := p.Addr().BitLen() - p.Bits()
	if host >= 64 {
		lo = ^uint64(0)
		hi |= 1<<(host-64) - 1
	} else {
		lo |= 1<<host - 1
	}
	return address(hi, lo, p.Addr().Is4())
}
