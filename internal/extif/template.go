package extif

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	gotemplate "text/template"

	sockaddr "github.com/hashicorp/go-sockaddr"
	"github.com/hashicorp/go-sockaddr/template"
)

// expand returns what a template says, and other texts as they are, without the space
// around them.
func (c *chooser) expand(ctx context.Context, text string) (string, error) {
	text = strings.TrimSpace(text)
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	all, err := c.ifAddrs()
	if err != nil {
		return "", fmt.Errorf("template: %w", err)
	}
	tmpl, err := gotemplate.New("template").Option("missingkey=error").
		Funcs(template.SourceFuncs).Funcs(template.SortFuncs).Funcs(template.FilterFuncs).Funcs(template.HelperFuncs).
		Funcs(c.sources(ctx, all)).Parse(text)
	if err != nil {
		return "", fmt.Errorf("%w (for the functions there are see github.com/hashicorp/go-sockaddr/template)", err)
	}
	var out strings.Builder
	if err := tmpl.Execute(&out, all); err != nil {
		return "", err
	}
	switch words := strings.Fields(out.String()); len(words) {
	case 0:
		return "", fmt.Errorf("the template gives nothing on this host")
	case 1:
		return words[0], nil
	default:
		return "", fmt.Errorf("the template gives %d values, %s (add a limit 1)", len(words), strings.Join(words, " "))
	}
}

// sources returns those of go-sockaddr's functions that look for the default route.
// Its own run the program ip for that, which a small container image does not have,
// and which does not know about this package's rules.
func (c *chooser) sources(ctx context.Context, all sockaddr.IfAddrs) gotemplate.FuncMap {
	onDefault := func() (map[string]bool, error) {
		names := make(map[string]bool)
		for _, six := range []bool{false, true} {
			hops, err := c.sys.defaults(ctx, six)
			if err != nil {
				return nil, err
			}
			for _, h := range hops {
				if l := c.link(h.index); l != nil {
					names[l.Name] = true
					return names, nil
				}
			}
		}
		return names, nil
	}
	defaults := func() (sockaddr.IfAddrs, error) {
		names, err := onDefault()
		if err == nil && len(names) == 0 {
			err = fmt.Errorf("there is no default route")
		}
		return slices.DeleteFunc(slices.Clone(all), func(a sockaddr.IfAddr) bool { return !names[a.Name] }), err
	}
	// Up and forwardable addresses, those of the default route's interface first,
	// in one half of RFC 6890's world.
	half := func(private bool) (sockaddr.IfAddrs, error) {
		names, err := onDefault()
		if err != nil {
			return nil, err
		}
		list := slices.Clone(all)
		for _, flag := range []string{"forwardable", "up"} {
			if list, _, err = sockaddr.IfByFlag(flag, list); err != nil {
				return nil, err
			}
		}
		sockaddr.OrderedIfAddrBy(func(a, b *sockaddr.IfAddr) int {
			switch {
			case names[a.Name] == names[b.Name]:
				return 0
			case names[a.Name]:
				return -1
			}
			return 1
		}, sockaddr.AscIfType, sockaddr.AscIfNetworkSize).Sort(list)
		in, out, err := sockaddr.IfByRFC("6890", list)
		if private {
			return in, err
		}
		return out, err
	}
	ip := func(private bool) (string, error) {
		list, err := half(private)
		if err != nil || len(list) == 0 {
			return "", err
		}
		return (*sockaddr.ToIPAddr(list[0].SockAddr)).NetIP().String(), nil
	}
	return gotemplate.FuncMap{
		"GetAllInterfaces":     func() (sockaddr.IfAddrs, error) { return slices.Clone(all), nil },
		"GetDefaultInterfaces": defaults,
		"GetPrivateInterfaces": func() (sockaddr.IfAddrs, error) { return half(true) },
		"GetPublicInterfaces":  func() (sockaddr.IfAddrs, error) { return half(false) },
		"GetPrivateIP":         func() (string, error) { return ip(true) },
		"GetPublicIP":          func() (string, error) { return ip(false) },
	}
}

// ifAddrs returns the interfaces' addresses as go-sockaddr wants them, without those
// that can't be used, the best of each interface first.
func (c *chooser) ifAddrs() (sockaddr.IfAddrs, error) {
	var all sockaddr.IfAddrs
	for i := range c.links {
		l := &c.links[i]
		for _, a := range l.sorted() {
			if a.unusable != "" {
				continue
			}
			ip, err := sockaddr.NewIPAddr((&net.IPNet{IP: a.ip.AsSlice(), Mask: net.CIDRMask(a.bits, a.ip.BitLen())}).String())
			if err != nil {
				return nil, err
			}
			all = append(all, sockaddr.IfAddr{SockAddr: ip, Interface: l.Interface})
		}
	}
	return all, nil
}
