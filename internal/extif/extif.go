// Package extif finds the interface through which a host reaches its peers, and the
// addresses that it has there: what flannel's flags --iface, --iface-regex,
// --iface-can-reach and --public-ip choose.
//
// [Choose] decides once, [Watch] follows what the host's operator, DHCP or the router
// do to it later.
//
// # Which interface
//
// The first that a rule of [Config] leads to, and which has an address of every family
// that is wanted: Names in order, then Regexps in order, then CanReach. Without any of
// them it is the one that has the public address, else that of the default route with
// the lowest metric in the main table.
//
// # Which address
//
// The one that a rule names or matches. Else the public address, if the interface has
// it, so that packets come from where the peers expect them. Else the route's own
// source address, which is what a DHCP client writes there. Else the first in this
// order: no link-local ones while there is another, none for one host alone that does
// not expire (that is how virtual addresses look, which move from host to host), no
// temporary ones (RFC 8981), IPv6 addresses that do not expire before others. IPv4
// addresses are then in the kernel's order, IPv6 addresses in that of their values,
// since the kernel puts the latest first. An IPv4 address that expires is as good as
// any: with DHCP it is the host's own. Addresses that are deprecated, or whose
// uniqueness is not yet known, are not used.
//
// An interface without addresses uses those of the loopback interface, if it has any
// but its own: hosts that announce their address by BGP have it there.
package extif

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// Config says how to find the interface. Its zero value means: the default route's.
type Config struct {
	// Names are names of interfaces, addresses that they have, or templates for
	// either (--iface). The first that can be used is taken.
	//
	// A template is go-sockaddr's, such as {{ GetPrivateIP }}, or
	// {{ GetAllInterfaces | include "network" "10.0.0.0/8" | attr "name" }}.
	Names []string
	// Regexps are regular expressions (--iface-regex), looked at after Names. Each
	// is matched with the addresses of all interfaces first, then with their
	// names, anywhere in them.
	Regexps []string
	// CanReach is an address (--iface-can-reach): the interface through which
	// the kernel would send a packet to it. Looked at after Regexps.
	CanReach string
	// PublicIP is the IPv4 address, or a template for it, that peers use for
	// this host (--public-ip); empty for the interface's own. It need not be an
	// address of the host.
	PublicIP string
	// PublicIPv6 is the same for IPv6 (--public-ipv6).
	PublicIPv6 string
}

// Choose finds the interface, and on it an address of each family that is wanted. The
// Host has nothing of a family that is not. It looks at the network namespace of the
// calling thread. It waits for an IPv6 address that the kernel is about to allow (RFC
// 4862, 5.4), which takes a second or two, and for nothing else.
//
// An error says what was tried, which interfaces and addresses there are, and what to
// do. It may pass: an address that is expected from DHCP, or a link that is not there
// yet. Watch tells when to try again.
func Choose(ctx context.Context, cfg Config, want4, want6 bool) (backend.Host, error) {
	sys, err := openSystem()
	if err != nil {
		return backend.Host{}, err
	}
	defer sys.close()
	const period, most = 100 * time.Millisecond, 5 * time.Second
	for end := time.Now().Add(most); ; {
		host, err := chooseFrom(ctx, sys, cfg, want4, want6)
		if !errors.Is(err, errTentative) || time.Now().After(end) {
			return host, err
		}
		select {
		case <-ctx.Done():
			return backend.Host{}, fmt.Errorf("%w (%w)", ctx.Err(), err)
		case <-time.After(period):
		}
	}
}

// errTentative is wrapped by errors that will soon pass.
var errTentative = errors.New("tentative")

// A system is where interfaces and routes come from.
type system interface {
	// links returns all interfaces with their addresses, by index.
	links() ([]link, error)
	// defaults returns the default routes of a family that are as good as each
	// other and better than the rest; none is no error.
	defaults(ctx context.Context, six bool) ([]hop, error)
	// reach returns the way to an address.
	reach(ctx context.Context, to netip.Addr) (hop, error)
	close()
}

// A hop is where a route leads.
type hop struct {
	index int        // of the interface
	src   netip.Addr // the source address that the route asks for, or the zero Addr
}

// A chooser is one call of Choose.
type chooser struct {
	cfg          Config
	want4, want6 bool
	sys          system
	links        []link
	public4      netip.Addr
	public6      netip.Addr
	regexps      []*regexp.Regexp
	canReach     netip.Addr
}

// A choice is an interface on the way to become a Host. Addresses that a rule has
// named are set.
type choice struct {
	link         *link
	addr4, addr6 netip.Addr
	src4, src6   netip.Addr // what the route says, if it was found by a route
}

func chooseFrom(ctx context.Context, sys system, cfg Config, want4, want6 bool) (backend.Host, error) {
	c := &chooser{cfg: cfg, want4: want4, want6: want6, sys: sys}
	host, err := c.choose(ctx)
	if err != nil {
		return backend.Host{}, fmt.Errorf("extif: choose the external interface: %w", err)
	}
	return host, nil
}

func (c *chooser) choose(ctx context.Context) (backend.Host, error) {
	if err := ctx.Err(); err != nil {
		return backend.Host{}, err
	}
	if !c.want4 && !c.want6 {
		return backend.Host{}, errors.New("neither IPv4 nor IPv6 is wanted (enable one of them)")
	}
	var err error
	if c.links, err = c.sys.links(); err != nil {
		return backend.Host{}, err
	}
	if err := c.read(ctx); err != nil {
		return backend.Host{}, err
	}

	var tried []error
	for name, rule := range c.rules(ctx) {
		choices, why := rule()
		for _, p := range choices {
			host, err := c.finish(p)
			if err == nil {
				return host, nil
			}
			if why == nil { // the first one is the one that was meant
				why = err
			}
		}
		if ctx.Err() != nil {
			return backend.Host{}, ctx.Err()
		}
		tried = append(tried, fmt.Errorf("%s: %w", name, why))
	}
	return backend.Host{}, fmt.Errorf("%w; this host has %s", joinLine(tried), describe(c.links))
}

// rules yields the rules to try in order, each with its name. A rule returns what it
// leads to, the best first, or an error.
func (c *chooser) rules(ctx context.Context) iter.Seq2[string, func() ([]choice, error)] {
	return func(yield func(string, func() ([]choice, error)) bool) {
		for _, name := range c.cfg.Names {
			if !yield("--iface "+name, func() ([]choice, error) { return c.byName(ctx, name) }) {
				return
			}
		}
		for _, re := range c.regexps {
			if !yield("--iface-regex "+re.String(), func() ([]choice, error) { return c.byRegexp(re) }) {
				return
			}
		}
		switch {
		case c.canReach.IsValid():
			yield("--iface-can-reach "+c.canReach.String(), func() ([]choice, error) { return c.byReach(ctx) })
		case len(c.cfg.Names) > 0 || len(c.regexps) > 0:
		case c.external(c.public4) || c.external(c.public6):
			yield("public address", c.byPublic)
		default:
			yield("default route", func() ([]choice, error) { return c.byDefault(ctx) })
		}
	}
}

// read checks what can be wrong in the configuration itself.
func (c *chooser) read(ctx context.Context) error {
	var errs []error
	for _, s := range c.cfg.Regexps {
		re, err := regexp.Compile(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--iface-regex %s: %w", s, err))
			continue
		}
		c.regexps = append(c.regexps, re)
	}
	if s := c.cfg.CanReach; s != "" {
		a, err := netip.ParseAddr(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--iface-can-reach %s is not an address (a name is not looked up)", s))
		}
		c.canReach = a.Unmap()
	}
	public := func(flag, s string, is func(netip.Addr) bool, family string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		text, err := c.expand(ctx, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
			return netip.Addr{}
		}
		a, err := netip.ParseAddr(text)
		if a = a.Unmap(); err != nil || !is(a) || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			errs = append(errs, fmt.Errorf("%s %s is not an %s address of one host", flag, text, family))
			return netip.Addr{}
		}
		return a
	}
	if c.want4 {
		c.public4 = public("--public-ip", c.cfg.PublicIP, netip.Addr.Is4, "IPv4")
	}
	if c.want6 {
		c.public6 = public("--public-ipv6", c.cfg.PublicIPv6, netip.Addr.Is6, "IPv6")
	}
	if len(errs) > 0 {
		return joinLine(errs)
	}
	return nil
}

// byName takes an interface's name, one of its addresses, or a template for either.
func (c *chooser) byName(ctx context.Context, name string) ([]choice, error) {
	name, err := c.expand(ctx, name)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(name); err == nil {
		if l := c.owner(a); l != nil {
			return []choice{choice{link: l}.with(a.Unmap().WithZone(""))}, nil
		}
		return nil, fmt.Errorf("no interface has the address %s", a)
	}
	for i := range c.links {
		if l := &c.links[i]; l.Name == name || slices.Contains(l.alt, name) {
			return []choice{{link: l}}, nil
		}
	}
	return nil, fmt.Errorf("there is no interface %s", name)
}

// byRegexp matches addresses, then names. With both families wanted, an interface on
// which both match comes before one on which one does. Interfaces that are down, and
// loopback, come after others.
func (c *chooser) byRegexp(re *regexp.Regexp) ([]choice, error) {
	ordered := make([]*link, 0, len(c.links))
	for i := range c.links {
		ordered = append(ordered, &c.links[i])
	}
	slices.SortStableFunc(ordered, func(a, b *link) int { return a.lastness() - b.lastness() })

	var all, some, named []choice
	for _, l := range ordered {
		p := choice{link: l}
		for _, a := range l.sorted() {
			if a.unusable == "" && re.MatchString(a.ip.String()) {
				p = p.with(a.ip)
			}
		}
		no4, no6 := c.want4 && !p.addr4.IsValid(), c.want6 && !p.addr6.IsValid()
		switch {
		case !no4 && !no6:
			all = append(all, p)
		case c.want4 && !no4, c.want6 && !no6:
			some = append(some, p)
		case re.MatchString(l.Name):
			named = append(named, choice{link: l})
		}
	}
	choices := slices.Concat(all, some, named)
	if len(choices) == 0 {
		return nil, errors.New("no interface has such an address or name")
	}
	return choices, nil
}

// byReach asks the kernel. An address of this host, such as one that moves from one
// server to another and is here now, means the interface which has it.
func (c *chooser) byReach(ctx context.Context) ([]choice, error) {
	if l := c.owner(c.canReach); l != nil {
		return []choice{{link: l}}, nil
	}
	h, err := c.sys.reach(ctx, c.canReach)
	if err != nil {
		return nil, err
	}
	l := c.link(h.index)
	if l == nil {
		return nil, errors.New("no interface leads there")
	}
	return []choice{choice{link: l}.source(h.src)}, nil
}

// byPublic takes the interface that has the public address.
func (c *chooser) byPublic() ([]choice, error) {
	var l4, l6 *link
	if c.external(c.public4) {
		l4 = c.owner(c.public4)
	}
	if c.external(c.public6) {
		l6 = c.owner(c.public6)
	}
	if l4 != nil && l6 != nil && l4 != l6 {
		return nil, fmt.Errorf("%s is on %s, %s on %s (say which interface to use with --iface)", c.public4, l4.Name, c.public6, l6.Name)
	}
	if l4 == nil {
		l4 = l6
	}
	return []choice{{link: l4}}, nil
}

// external reports whether an address is on an interface that can be the external one
// because of it. On the loopback interface is what a routing protocol announces, and
// packets to peers leave by another one.
func (c *chooser) external(a netip.Addr) bool {
	l := c.owner(a)
	return l != nil && (!l.loopback() || a.IsLoopback())
}

// byDefault takes the interface of the default route. Where both families are wanted
// and both have default routes, those have to agree.
func (c *chooser) byDefault(ctx context.Context) ([]choice, error) {
	var hops4, hops6 []hop
	var err4, err6 error
	if c.want4 {
		hops4, err4 = c.sys.defaults(ctx, false)
	}
	if c.want6 {
		hops6, err6 = c.sys.defaults(ctx, true)
	}
	if err := errors.Join(err4, err6); err != nil {
		return nil, err
	}
	gone := func(h hop) bool { return c.link(h.index) == nil }
	hops4, hops6 = slices.DeleteFunc(hops4, gone), slices.DeleteFunc(hops6, gone)

	var choices []choice
	for _, h4 := range hops4 {
		for _, h6 := range hops6 {
			if h4.index == h6.index {
				choices = append(choices, choice{link: c.link(h4.index)}.source(h4.src).source(h6.src))
			}
		}
	}
	switch {
	case len(hops4) == 0 && len(hops6) == 0:
		return nil, fmt.Errorf("there is none for %s in the main table (add one, or name the interface with --iface, or an address that it leads to with --iface-can-reach)",
			familyNames(c.want4, c.want6))
	case len(hops4) == 0 || len(hops6) == 0:
		for _, h := range slices.Concat(hops4, hops6) {
			choices = append(choices, choice{link: c.link(h.index)}.source(h.src))
		}
	case len(choices) == 0:
		return nil, fmt.Errorf("that of IPv4 leads to %s, that of IPv6 to %s (say which interface to use with --iface)",
			c.link(hops4[0].index).Name, c.link(hops6[0].index).Name)
	}
	return choices, nil
}

// joinLine joins errors in one line.
func joinLine(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	texts := make([]string, len(errs))
	args := make([]any, len(errs))
	for i, err := range errs {
		texts[i], args[i] = "%w", err
	}
	return fmt.Errorf(strings.Join(texts, "; "), args...)
}
