// Package peerset makes what a backend can serve of the leases of a network: it
// leaves out the hosts of other backends, and what is wrong in a lease, so that one
// bad lease costs only itself, and says so once, not with every Sync.
package peerset

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
)

// A Chooser remembers what it has said of the peers. It is for one goroutine at a
// time.
type Chooser struct {
	// Backend names the backend in messages and errors, such as "vxlan".
	Backend string
	// Types are what the leases of its hosts may have as BackendType, in any case.
	Types []string
	// Network has the ranges that subnets must be in.
	Network lease.Network
	// Tunnel: packets to a peer are put into others, to its public address, which
	// therefore can't be in its own subnet.
	Tunnel bool
	// Log gets what is said; never nil.
	Log *slog.Logger

	notes map[string]bool // what has been said
}

// Self is what is this host's own.
type Self struct {
	// Key has its subnets.
	Key lease.Key
	// Addrs are its addresses, which can't be a peer's.
	Addrs []netip.Addr
	// Underlay is what its external interface needs to work: the addresses, the
	// networks on the link, the routers. A route of ours into that would cut the
	// host off.
	Underlay []netip.Prefix
}

// A Peer is a host that can be served.
type Peer struct {
	// Lease is the whole of what is known of it.
	Lease lease.Lease
	// Subnet and Subnet6 are those of its subnets that it shall have, without
	// host bits; the zero Prefix where there is none.
	Subnet, Subnet6 netip.Prefix
	// At and At6 are the addresses that lead to them; the zero Addr where there
	// is no subnet.
	At, At6 netip.Addr
}

// String names the peer in messages.
func (p Peer) String() string { return Name(p.Lease) }

// Name names a peer in messages: its subnets and where it is.
func Name(l lease.Lease) string {
	at := l.Attrs.PublicIP
	if !at.IsValid() {
		at = l.Attrs.PublicIPv6
	}
	return fmt.Sprintf("%v at %v", l.Key, at)
}

// An End is where packets for a subnet of a lease go, or why they can't go there.
type End func(l lease.Lease, subnet netip.Prefix) (at netip.Addr, why string)

// A Note is something to say of a peer.
type Note struct {
	// Text is a sentence without its stop.
	Text string
	// Bad: some of the peer can't be served.
	Bad bool
}

// A claim is a peer's to a subnet.
type claim struct {
	peer   int // in the leases
	subnet netip.Prefix
	at     netip.Addr
}

// Choose returns the peers that can be served, in the order of the leases, and what is
// to be said of the others. A subnet that two hosts claim is the later lease's.
func (c *Chooser) Choose(self Self, leases []lease.Lease, end End) (peers []Peer, notes []Note) {
	var claims []claim
	owner := make(map[netip.Prefix]claim, len(leases))
	for i, l := range leases {
		if !c.mine(l.Attrs.BackendType) {
			notes = append(notes, Note{fmt.Sprintf("peer %s has the backend %s: not carried by this one", Name(l), quoted(l.Attrs.BackendType)), false})
			continue
		}
		mine, bad := c.claims(self, i, l, end)
		notes = append(notes, bad...)
		for _, now := range mine {
			if before, taken := owner[now.subnet]; !taken || newer(l, now.at, leases[before.peer], before.at) {
				owner[now.subnet] = now
			}
		}
		claims = append(claims, mine...)
	}
	for _, lost := range claims {
		if won := owner[lost.subnet]; won.at != lost.at { // else one host says it twice
			notes = append(notes, badNote(leases[lost.peer], "%v left out: it belongs to %v by a newer lease", lost.subnet, won.at))
		}
	}
	all := make([]claim, 0, len(owner))
	for _, c := range owner {
		all = append(all, c)
	}
	return granted(leases, owner), append(notes, overlaps(all)...)
}

func badNote(l lease.Lease, format string, args ...any) Note {
	return Note{fmt.Sprintf("peer %s: %s", Name(l), fmt.Sprintf(format, args...)), true}
}

// claims returns what a lease can be given, if nobody else claims it, and what is wrong
// with the rest.
func (c *Chooser) claims(self Self, i int, l lease.Lease, end End) (mine []claim, notes []Note) {
	if !l.Subnet.IsValid() && !l.Subnet6.IsValid() {
		return nil, []Note{badNote(l, "left out: the lease has no subnet")}
	}
	said := ""
	for _, s := range [...]netip.Prefix{l.Subnet, l.Subnet6} {
		if !s.IsValid() {
			continue
		}
		if why := c.Unusable(s, self.Key); why != "" {
			notes = append(notes, badNote(l, "%v left out: %s", s, why))
			continue
		}
		if why := self.cutOff(s); why != "" {
			notes = append(notes, badNote(l, "%v left out: %s", s, why))
			continue
		}
		at, why := end(l, s)
		if why == "" && c.Tunnel && s.Contains(at) {
			why = fmt.Sprintf("its public address %v is inside its subnet, and packets for that go to it through the tunnel (give the network another range)", at)
		}
		if why == "" {
			mine = append(mine, claim{i, s.Masked(), at})
			continue
		}
		if why != said { // else it is so for both
			notes = append(notes, badNote(l, "left out: %s", why))
		}
		said = why
	}
	return mine, notes
}

// granted makes peers of the claims that hold.
func granted(leases []lease.Lease, owner map[netip.Prefix]claim) []Peer {
	peers := make([]Peer, 0, len(leases))
	for i, l := range leases {
		p := Peer{Lease: l}
		if c, ok := owner[l.Subnet.Masked()]; ok && c.peer == i {
			p.Subnet, p.At = c.subnet, c.at
			delete(owner, c.subnet) // a lease may say it twice
		}
		if c, ok := owner[l.Subnet6.Masked()]; ok && c.peer == i {
			p.Subnet6, p.At6 = c.subnet, c.at
			delete(owner, c.subnet)
		}
		if p.Subnet.IsValid() || p.Subnet6.IsValid() {
			peers = append(peers, p)
		}
	}
	return peers
}

// mine reports whether a lease's backend is this one.
func (c *Chooser) mine(t string) bool {
	return slices.ContainsFunc(c.Types, func(mine string) bool { return strings.EqualFold(t, mine) })
}

// quoted names a backend type. The empty one is udp's, alloc's and the clouds'.
func quoted(t string) string {
	if t == "" {
		return `"" (udp, alloc or a cloud's)`
	}
	return fmt.Sprintf("%.64q", t)
}

// newer decides who has a subnet that two hosts claim: the later lease. The order
// of the set must not matter, so that two leases without revisions (of a store that
// has none) are told apart by address.
func newer(a lease.Lease, atA netip.Addr, b lease.Lease, atB netip.Addr) bool {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), atA.Compare(atB), strings.Compare(a.Key.String(), b.Key.String())) > 0
}

// Unusable says why a peer can't have a subnet, or "". Only what is in the network
// is routed here at all, and taken from peers: nobody may claim other addresses.
func (c *Chooser) Unusable(s netip.Prefix, own lease.Key) string {
	if s.Addr().Is4In6() {
		return "it is IPv4 mapped to IPv6"
	}
	r := c.Network.IPv4
	if s.Addr().Is6() {
		r = c.Network.IPv6
	}
	switch {
	case !r.Enabled():
		return "the network has no range of that family"
	case s.Bits() < r.Prefix.Bits() || !r.Prefix.Overlaps(s):
		return fmt.Sprintf("it is not in the network %v", r.Prefix)
	}
	for _, o := range own.Prefixes() {
		if s.Bits() >= o.Bits() && o.Overlaps(s) {
			return fmt.Sprintf("it is this host's own subnet %v, or a part of it", o)
		}
	}
	return ""
}

// cutOff says why a peer with that subnet would cut this host off, or "".
func (s Self) cutOff(subnet netip.Prefix) string {
	for _, a := range s.Addrs {
		if subnet.Contains(a) {
			return fmt.Sprintf("it contains this host's address %v (keep SubnetMin and SubnetMax of the network clear of the hosts' own)", a)
		}
	}
	for _, u := range s.Underlay {
		if subnet.Overlaps(u) {
			return fmt.Sprintf("it overlaps %v, which this host's external interface needs (keep SubnetMin and SubnetMax of the network clear of that)", u)
		}
	}
	return ""
}

// Unreachable says why no packet can be sent to a peer's public address, or "".
func (s Self) Unreachable(at netip.Addr) string {
	at = at.Unmap()
	switch {
	case !at.IsValid() || at.IsUnspecified():
		return "it has no public address"
	case at.IsMulticast(), at == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("its public address %v is no single host's", at)
	case at.Zone() != "", at.Is6() && at.IsLinkLocalUnicast():
		return fmt.Sprintf("its public address %v is link-local (use a global one)", at)
	case at.IsLoopback() && !slices.ContainsFunc(s.Addrs, netip.Addr.IsLoopback):
		return fmt.Sprintf("its public address %v is of its loopback interface (have it announce another one)", at)
	case slices.Contains(s.Addrs, at):
		return fmt.Sprintf("its public address %v is this host's own (an old lease of this host, or two hosts with one public address)", at)
	}
	return ""
}

// overlaps finds subnets that contain other peers' subnets. They work, by the
// longest prefix, but two hosts believe that some addresses are theirs.
func overlaps(all []claim) (notes []Note) {
	// A prefix comes right before those inside it: a stack of open ones is enough.
	slices.SortFunc(all, func(a, b claim) int { return a.subnet.Compare(b.subnet) })
	var open []claim
	for _, c := range all {
		for len(open) > 0 && !open[len(open)-1].subnet.Overlaps(c.subnet) {
			open = open[:len(open)-1]
		}
		if n := len(open); n > 0 && open[n-1].at != c.at {
			notes = append(notes, Note{fmt.Sprintf("%v of %v is inside %v of %v: its packets go to the former",
				c.subnet, c.at, open[n-1].subnet, open[n-1].at), false})
		}
		open = append(open, c)
	}
	return notes
}

const (
	// mostErrors is how many bad notes are spelt out in an error.
	mostErrors = 8
	// mostLines is how many notes are logged at once.
	mostLines = 50
)

// Say logs the notes that were not there last time, and returns the bad ones as errors.
func (c *Chooser) Say(notes []Note) error {
	now := make(map[string]bool, len(notes))
	var errs []error
	said := 0
	for _, n := range notes {
		if !c.notes[n.Text] && !now[n.Text] {
			switch said++; {
			case said > mostLines:
			case n.Bad:
				c.Log.Warn(n.Text)
			default:
				c.Log.Info(n.Text)
			}
		}
		now[n.Text] = true
		if n.Bad {
			errs = append(errs, fmt.Errorf("%s: sync: %s", c.Backend, n.Text))
		}
	}
	if said > mostLines {
		c.Log.Warn(fmt.Sprintf("and %d more peers of which there is something to say", said-mostLines))
	}
	if more := len(errs) - mostErrors; more > 0 {
		errs = append(errs[:mostErrors], fmt.Errorf("%s: sync: and %d more", c.Backend, more))
	}
	c.notes = now
	return errors.Join(errs...)
}
