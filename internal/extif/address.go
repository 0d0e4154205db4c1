package extif

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// A link is an interface with its addresses.
type link struct {
	net.Interface
	alt   []string // other names of it
	addrs []address
}

// An address is one that an interface has.
type address struct {
	ip        netip.Addr // without zone
	bits      int        // length of its prefix
	unusable  string     // why not, if it can't be used
	permanent bool       // does not expire
	temporary bool       // IPv6: RFC 8981; IPv4: secondary
}

func (l *link) loopback() bool { return l.Flags&net.FlagLoopback != 0 }

// lastness is 0 for an interface that may well be the external one, more for others.
func (l *link) lastness() int {
	switch {
	case l.loopback():
		return 2
	case l.Flags&net.FlagUp == 0:
		return 1
	}
	return 0
}

// link returns the interface with that number, nil if there is none.
func (c *chooser) link(index int) *link {
	i := slices.IndexFunc(c.links, func(l link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &c.links[i]
}

// owner returns the interface that has an address, nil if none has. A zone, as in
// fe80::1%eth0, is the interface's name.
func (c *chooser) owner(a netip.Addr) *link {
	zone := a.Zone()
	a = a.Unmap().WithZone("")
	for i := range c.links {
		l := &c.links[i]
		if _, ok := l.find(a); ok && (zone == "" || zone == l.Name) {
			return l
		}
	}
	return nil
}

// find returns an address of the interface. The loopback interface has all of the
// 127.0.0.0/8 that its one address is in, to the kernel as well (the local table), so
// that several members of a network can be on one machine.
func (l *link) find(a netip.Addr) (address, bool) {
	i := slices.IndexFunc(l.addrs, func(have address) bool { return have.ip == a })
	if i >= 0 {
		return l.addrs[i], true
	}
	if l.loopback() && a.Is4() && a.IsLoopback() {
		for _, have := range l.addrs {
			if p, err := have.ip.Prefix(have.bits); err == nil && have.unusable == "" && p.Contains(a) {
				return address{ip: a, bits: have.bits, permanent: true}, true
			}
		}
	}
	return address{}, false
}

// with sets the address of a family if the choice has none of it yet. An address that
// peers can't use only serves to find its interface.
func (p choice) with(a netip.Addr) choice {
	if useless(a) {
		return p
	}
	if a.Is4() && !p.addr4.IsValid() {
		p.addr4 = a
	}
	if a.Is6() && !p.addr6.IsValid() {
		p.addr6 = a
	}
	return p
}

// source sets the source address that a route asks for.
func (p choice) source(a netip.Addr) choice {
	if a.Is4() {
		p.src4 = a
	}
	if a.Is6() {
		p.src6 = a
	}
	return p
}

// finish makes a Host of a choice, or says what the interface lacks.
func (c *chooser) finish(p choice) (backend.Host, error) {
	h := backend.Host{Link: p.link.Name, LinkIndex: p.link.Index, MTU: p.link.MTU}
	if h.MTU <= 0 {
		return h, fmt.Errorf("%s has no MTU (set one)", p.link.Name)
	}
	var err error
	if c.want4 {
		if h.Addr4, err = c.addr(p.link, "IPv4", netip.Addr.Is4, p.addr4, c.public4, p.src4); err != nil {
			return h, err
		}
		if h.Public4 = h.Addr4; c.public4.IsValid() {
			h.Public4 = c.public4
		}
	}
	if c.want6 {
		if h.Addr6, err = c.addr(p.link, "IPv6", netip.Addr.Is6, p.addr6, c.public6, p.src6); err != nil {
			return h, err
		}
		if h.Public6 = h.Addr6; c.public6.IsValid() {
			h.Public6 = c.public6
		}
	}
	return h, nil
}

// addr finds the address of a family. A zero Addr as one of the proposals is none.
func (c *chooser) addr(l *link, family string, is func(netip.Addr) bool, named, public, src netip.Addr) (netip.Addr, error) {
	if named.IsValid() {
		a, _ := l.find(named)
		if why := a.unusable; why != "" && why != deprecated {
			if why == tentative {
				return netip.Addr{}, fmt.Errorf("%s on %s is %w", named, l.Name, errTentative)
			}
			return netip.Addr{}, fmt.Errorf("%s on %s is %s", named, l.Name, why)
		}
		return named, nil
	}
	if a, ok := l.find(public); ok && a.unusable == "" {
		return public, nil
	}
	// Announced by a routing protocol, it is on the loopback interface.
	if o := c.owner(public); is(public) && o != nil && o.loopback() && !public.IsLoopback() {
		return public, nil
	}
	if o := c.owner(src); o != nil {
		if a, _ := o.find(src); a.unusable == "" && !useless(src) {
			return src, nil
		}
	}
	for _, a := range l.sorted() {
		if is(a.ip) && a.unusable == "" && !useless(a.ip) {
			return a.ip, nil
		}
	}
	for i := range c.links {
		lo := &c.links[i]
		for _, a := range lo.sorted() {
			if lo.loopback() && lo != l && is(a.ip) && a.unusable == "" && !a.ip.IsLoopback() && !useless(a.ip) {
				return a.ip, nil
			}
		}
	}
	for _, a := range l.addrs {
		if is(a.ip) && a.unusable == tentative && !useless(a.ip) {
			return netip.Addr{}, fmt.Errorf("the %s address of %s, %s, is %w", family, l.Name, a.ip, errTentative)
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no usable %s address (give it one, or name another interface with --iface)", l.Name, family)
}

// useless reports whether peers can't use an address: an IPv6 link-local one needs the
// name of an interface with it, and that is another one on each host. Those of IPv4
// do not.
func useless(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// Why an address is not chosen: a deprecated one may still be named, a tentative one
// will pass.
const (
	deprecated = "deprecated"
	tentative  = "tentative"
)

// sorted returns the addresses, the best of each family first. The package comment
// has the order.
func (l *link) sorted() []address {
	all := slices.Clone(l.addrs)
	slices.SortStableFunc(all, func(a, b address) int {
		first := func(a, b bool) int { // what is true comes last
			switch {
			case a == b:
				return 0
			case b:
				return -1
			}
			return 1
		}
		virtual := func(a address) bool { return a.permanent && a.bits == a.ip.BitLen() }
		order := cmp.Or(
			first(a.ip.Is6(), b.ip.Is6()),
			first(a.unusable != "", b.unusable != ""),
			first(a.ip.IsLinkLocalUnicast(), b.ip.IsLinkLocalUnicast()),
			first(virtual(a), virtual(b)),
			first(a.temporary, b.temporary),
		)
		if order == 0 && a.ip.Is6() {
			order = cmp.Or(first(!a.permanent, !b.permanent), a.ip.Compare(b.ip))
		}
		return order
	})
	return all
}

// describe lists interfaces and their addresses in one line, for an error.
func describe(links []link) string {
	const most = 16 // a host with many containers has hundreds
	var parts []string
	more := 0
	for _, l := range links {
		if len(l.addrs) == 0 && l.lastness() == 0 || len(parts) == most {
			more++
			continue
		}
		s := l.Name
		if l.Flags&net.FlagUp == 0 {
			s += " (down)"
		}
		for _, a := range l.addrs {
			s += fmt.Sprintf(" %s/%d", a.ip, a.bits)
			if a.unusable != "" {
				s += " (" + a.unusable + ")"
			}
		}
		parts = append(parts, s)
	}
	if more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	if len(parts) == 0 {
		return "no interface"
	}
	return strings.Join(parts, ", ")
}

// familyNames names what is wanted.
func familyNames(want4, want6 bool) string {
	switch {
	case want4 && want6:
		return "IPv4 or IPv6"
	case want4:
		return "IPv4"
	}
	return "IPv6"
}
