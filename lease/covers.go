package lease

import "net/netip"

// covers counts prefixes, to tell cheaply that nothing among them overlaps a key. All
// subnets of a network usually have one length per family, so the answer is one lookup
// per prefix, where a scan of all leases for each of them would be quadratic.
type covers struct {
	count   map[netip.Prefix]int
	lengths map[int]int // of prefixes by length, those of IPv6 as negative numbers
}

func newCovers() covers {
	return covers{count: make(map[netip.Prefix]int), lengths: make(map[int]int)}
}

// add counts the prefixes of a key n times more, or less if n is negative.
func (c covers) add(k Key, n int) {
	for _, p := range k.Prefixes() {
		if c.count[p] += n; c.count[p] == 0 {
			delete(c.count, p)
		}
		if c.lengths[length(p)] += n; c.lengths[length(p)] == 0 {
			delete(c.lengths, length(p))
		}
	}
}

// may reports whether some counted prefix may overlap a key; false is certain.
func (c covers) may(k Key) bool {
	for _, p := range k.Prefixes() {
		for l := range c.lengths {
			bits, is4 := l, l > 0
			if !is4 {
				bits = -l
			}
			if is4 != p.Addr().Is4() {
				continue
			}
			if bits > p.Bits() {
				return true // some part of p: to be looked for
			}
			if q, err := p.Addr().Prefix(bits); err == nil && c.count[q] > 0 {
				return true
			}
		}
	}
	return false
}

// length returns the length of a prefix, negative for IPv6. There is no /0.
func length(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits()
	}
	return -p.Bits()
}
