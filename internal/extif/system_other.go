//go:build !linux

package extif

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// A portable system knows what package net tells, and finds routes by connecting UDP
// sockets, which sends nothing.
type portable struct{}

func openSystem() (system, error) { return portable{}, nil }

func (portable) close() {}

func (portable) links() ([]link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var links []link
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", i.Name, err)
		}
		l := link{Interface: i}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			bits, _ := n.Mask.Size()
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				l.addrs = append(l.addrs, address{ip: ip.Unmap(), bits: bits})
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// defaults asks for the way to an address for documentation (RFC 5737, RFC 3849), to
// which only a default route leads.
func (p portable) defaults(ctx context.Context, six bool) ([]hop, error) {
	to := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	if six {
		to = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
	}
	h, err := p.reach(ctx, to)
	if err != nil {
		return nil, ctx.Err()
	}
	return []hop{h}, nil
}

func (p portable) reach(ctx context.Context, to netip.Addr) (hop, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return hop{}, fmt.Errorf("find the route: %w (add one, or name the interface with --iface)", err)
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return hop{}, fmt.Errorf("find the route: no local address")
	}
	links, err := p.links()
	if err != nil {
		return hop{}, err
	}
	src := local.AddrPort().Addr().Unmap().WithZone("")
	for i := range links {
		if _, ok := links[i].find(src); ok {
			return hop{index: links[i].Index, src: src}, nil
		}
	}
	return hop{}, fmt.Errorf("find the route: no interface has its source address %s", src)
}
