package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/lease"
)

// A note is something to say of a peer: once, not with every Sync.
type note struct {
	text string
	bad  bool // some of it can't be served: an error
}

// choose makes the engines' peers of leases. Whatever is wrong with one of them, the
// others are served; notes say what was left out. mixed is true if some peer can
// only be reached over IPv6, and others over IPv4.
func (o *overlay) choose(leases []lease.Lease, p plan) (peers []encap.Peer, mixed bool, notes []note) {
	ends := make([]netip.AddrPort, len(leases))
	owner := make(map[netip.Prefix]int, len(leases))
	bad := func(i int, format string, args ...any) {
		notes = append(notes, note{fmt.Sprintf("peer %s: %s", name(leases[i]), fmt.Sprintf(format, args...)), true})
	}
	for i, l := range leases {
		if t := l.Attrs.BackendType; t != "" && !strings.EqualFold(t, "udp") {
			notes = append(notes, note{fmt.Sprintf("peer %s has the backend %q: not carried by this one", name(l), t), false})
			continue
		}
		end, why := o.endpoint(l.Attrs, p)
		if why != "" {
			bad(i, "left out: %s", why)
			continue
		}
		ends[i] = end
		if !l.Subnet.IsValid() && !l.Subnet6.IsValid() {
			bad(i, "left out: the lease has no subnet")
		}
		for _, s := range [...]netip.Prefix{l.Subnet, l.Subnet6} {
			if !s.IsValid() {
				continue
			}
			if why := o.unusable(s, p); why != "" {
				bad(i, "%v left out: %s", s, why)
				continue
			}
			s = s.Masked()
			j, taken := owner[s]
			if !taken {
				owner[s] = i
				continue
			}
			loser := i
			if newer(l, end, leases[j], ends[j]) {
				loser, owner[s] = j, i
			}
			if end != ends[j] { // else one host says it twice
				bad(loser, "%v left out: it belongs to %v by a newer lease", s, ends[owner[s]].Addr())
			}
		}
	}
	peers = make([]encap.Peer, 0, len(leases))
	v6 := false
	for i, l := range leases {
		var subnets []netip.Prefix
		for _, s := range [...]netip.Prefix{l.Subnet, l.Subnet6} {
			s = s.Masked()
			if at, ok := owner[s]; ok && at == i {
				subnets = append(subnets, s)
				delete(owner, s)
			}
		}
		if len(subnets) > 0 {
			peers = append(peers, encap.Peer{Endpoint: ends[i], Subnets: subnets})
			v6 = v6 || ends[i].Addr().Is6()
		}
	}
	return peers, p.have4 && v6, append(notes, overlaps(peers)...)
}

// name is how messages call a peer.
func name(l lease.Lease) string {
	at := l.Attrs.PublicIP
	if !at.IsValid() {
		at = l.Attrs.PublicIPv6
	}
	return fmt.Sprintf("%v at %v", l.Key, at)
}

// newer decides who has a subnet that two hosts claim: the later lease. The order
// of the set must not matter, so that two leases without revisions (of a store that
// has none) are told apart by address.
func newer(a lease.Lease, endA netip.AddrPort, b lease.Lease, endB netip.AddrPort) bool {
	if a.Revision != b.Revision {
		return a.Revision > b.Revision
	}
	return endA.Compare(endB) > 0
}

// endpoint is where a peer's datagrams go, or why they can't go there. Both sides
// choose alike, because each takes only datagrams from the address that it sends to.
func (o *overlay) endpoint(a lease.Attrs, p plan) (end netip.AddrPort, why string) {
	v4, v6 := a.PublicIP.Unmap(), a.PublicIPv6.Unmap()
	var at netip.Addr
	switch {
	case p.have4 && v4.Is4() && !v4.IsUnspecified():
		at = v4
	case p.have6 && v6.Is6() && !v6.IsUnspecified():
		at = v6
	default:
		return end, fmt.Sprintf("it has no public address of a family that this host has (IPv4 %v, IPv6 %v, here: %s)", a.PublicIP, a.PublicIPv6, p.families())
	}
	switch {
	case at.IsMulticast(), at == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return end, fmt.Sprintf("its public address %v is no single host's", at)
	case at.Zone() != "", at.Is6() && at.IsLinkLocalUnicast():
		return end, fmt.Sprintf("its public address %v is link-local (use a global one)", at)
	case slices.Contains(p.self, at):
		return end, fmt.Sprintf("its public address %v is this host's own (an old lease of this host, or two hosts with one public address)", at)
	}
	return netip.AddrPortFrom(at, o.port), ""
}

// families names what peers can be reached over.
func (p plan) families() string {
	switch {
	case p.have4 && p.have6:
		return "IPv4 and IPv6"
	case p.have4:
		return "IPv4"
	}
	return "IPv6"
}

// unusable says why a peer can't have a subnet, or "". Only what is in the network
// is routed here at all, and taken from peers: nobody may claim other addresses.
func (o *overlay) unusable(s netip.Prefix, p plan) string {
	if s.Addr().Is4In6() {
		return "it is IPv4 mapped to IPv6"
	}
	r := o.network.IPv4
	if s.Addr().Is6() {
		r = o.network.IPv6
	}
	if !inside(s, r) {
		if !r.Enabled() {
			return "the network has no range of that family"
		}
		return fmt.Sprintf("it is not in the network %v", r.Prefix)
	}
	for _, own := range p.local {
		if s.Bits() >= own.Bits() && own.Overlaps(s) {
			return fmt.Sprintf("it is this host's own subnet %v, or a part of it", own)
		}
	}
	return ""
}

// overlaps finds subnets that contain other peers' subnets. They work, by the
// longest prefix, but two hosts believe that some addresses are theirs.
func overlaps(peers []encap.Peer) (notes []note) {
	type claim struct {
		prefix netip.Prefix
		by     netip.AddrPort
	}
	all := make([]claim, 0, len(peers))
	for _, p := range peers {
		for _, s := range p.Subnets {
			all = append(all, claim{s, p.Endpoint})
		}
	}
	// A prefix comes right before those inside it: a stack of open ones is enough.
	slices.SortFunc(all, func(a, b claim) int { return a.prefix.Compare(b.prefix) })
	var open []claim
	for _, c := range all {
		for len(open) > 0 && !open[len(open)-1].prefix.Overlaps(c.prefix) {
			open = open[:len(open)-1]
		}
		if n := len(open); n > 0 && open[n-1].by != c.by {
			notes = append(notes, note{fmt.Sprintf("%v of %v is inside %v of %v: its packets go to the former",
				c.prefix, c.by.Addr(), open[n-1].prefix, open[n-1].by.Addr()), false})
		}
		open = append(open, c)
	}
	return notes
}

// say logs notes that were not there last time, and returns the bad ones as errors.
func (o *overlay) say(notes []note) error {
	now := make(map[string]bool, len(notes))
	var errs []error
	for _, n := range notes {
		if !o.notes[n.text] && !now[n.text] {
			if n.bad {
				o.log.Warn(n.text)
			} else {
				o.log.Info(n.text)
			}
		}
		now[n.text] = true
		if n.bad {
			errs = append(errs, fmt.Errorf("udp: sync: %s", n.text))
		}
	}
	o.notes = now
	return errors.Join(errs...)
}
