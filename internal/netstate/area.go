package netstate

import "net/netip"

// network returns the range of the area that contains p, and whether there is one.
func (a Area) network(p netip.Prefix) (Range, bool) {
	for _, r := range a.Networks {
		if p.Bits() >= r.Prefix.Bits() && r.Prefix.Contains(p.Addr()) {
			return r, true
		}
	}
	return Range{}, false
}

// contains reports whether p is in the area.
func (a Area) contains(p netip.Prefix) bool {
	_, ok := a.network(p)
	return ok
}

// own reports whether p is in one of this host's subnets.
func (a Area) own(p netip.Prefix) bool {
	for _, o := range a.Own {
		if p.Bits() >= o.Bits() && o.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// subnet reports whether p has the form of a peer's subnet.
func (a Area) subnet(p netip.Prefix) bool {
	r, ok := a.network(p)
	return ok && p.Bits() == r.SubnetLen && !a.own(p) &&
		(!r.Min.IsValid() || r.Min.Compare(p.Addr()) <= 0) && (!r.Max.IsValid() || p.Addr().Compare(r.Max) <= 0)
}

// touches reports whether p has to do with the area.
func (a Area) touches(p netip.Prefix) bool {
	for _, r := range a.Networks {
		if r.Prefix.Overlaps(p) {
			return true
		}
	}
	return false
}
