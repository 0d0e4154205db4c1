// Package ipip is flannel's ipip backend: packets for a peer's subnet go to the peer
// inside an IPv4 packet (RFC 2003), 20 bytes longer. The kernel does it, in the device
// flannel.ipip; what is in it is what flannel has, so that one takes over from the
// other:
//
//	flannel.ipip: ipip local 192.0.2.1 remote any, MTU 1480, 10.5.3.0/32
//	10.5.34.0/24 via 192.0.2.34 dev flannel.ipip onlink
//
// The device tunl0 that comes with the kernel's module is left alone.
//
// # Only known peers
//
// IP in IP has neither a key nor a port, and the device takes packets from anyone who
// reaches this host (flannel issue 961). So there is a packet filter besides, in the
// nftables table "ip flannelkit-ipip": of the packets of IP protocol 4 to this host's
// address, and not for another tunnel device, it drops those that do not come from a
// peer's public address, that have an inner source outside that peer's subnets, or an
// inner destination outside this host's subnet. It is changed in one transaction with
// the peers, looked after with everything else, and in force before the first packet
// is taken. Whoever can send with a peer's address as source can still pretend to be
// that peer: use the backend wireguard where that can happen.
//
// A peer that sends from another address than its PublicIP is not heard; the log tells
// how many packets were dropped. Where that is how the network is built, set
// Options.NoFilter.
package ipip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
)

const (
	// name is flannel's.
	name = "ipip"
	// device is flannel's, too.
	device = "flannel.ipip"
	// overhead is the outer header's length in bytes: RFC 791, without options.
	overhead = 20
	// protocol is IP in IP: RFC 2003 section 3.1.
	protocol = 4
	// minMTU is the least that every IPv4 link carries: RFC 791 section 3.2.
	minMTU = 68
)

// Options adjusts the backend. The zero value is right for almost everyone.
type Options struct {
	// NoFilter takes packets from anyone, as flannel does, and removes the filter
	// that a predecessor has left.
	NoFilter bool
}

// New returns a backend.New for networks of type ipip. The key DirectRouting of the
// backend's part of the configuration says whether packets to peers that are on the
// link of the external interface go there without an outer header; other keys are
// ignored, as flannel does. The MTU for containers is that of the external interface
// less 20, with DirectRouting too, since a peer may move behind a router.
//
// The network has to be IPv4 only: the error says so otherwise. Start returns an error
// that names the kernel module where the kernel has no ipip devices, and wraps
// errors.ErrUnsupported where there is no Linux. A kernel without nftables is no
// error, but a warning in the log: then packets are taken from anyone.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		direct, err := parse(p.Network.Backend)
		switch {
		case err != nil:
			return nil, err
		case p.Network.IPv6.Enabled():
			return nil, errors.New("ipip: new: the network has an IPv6 range, and ipip carries IPv4 only (set EnableIPv6 to false, or use the backend vxlan, wireguard or host-gw)")
		case !p.Network.IPv4.Enabled():
			return nil, errors.New("ipip: new: the network has no IPv4 range (set Network)")
		}
		if p.Log == nil {
			p.Log = slog.New(slog.DiscardHandler)
		}
		b := &overlay{direct: direct, log: p.Log, guard: &guard{off: opts.NoFilter, log: p.Log}}
		b.Backend = kernelbackend.New(kernelbackend.Config{
			Name: name, Params: p, Tunnel: true, Prepare: b.prepare, MTU: mtu, End: end, Plan: b.plan,
			Closed: func(keep bool) error { return b.guard.close(keep) },
		})
		return b, nil
	}
}

// parse reads the backend's part of the network's configuration. Keys are compared
// without regard to case, as flannel does.
func parse(part json.RawMessage) (direct bool, err error) {
	if len(part) == 0 {
		return false, nil
	}
	var keys struct{ DirectRouting bool }
	if err := json.Unmarshal(part, &keys); err != nil {
		return false, fmt.Errorf("ipip: new: Backend of the network's configuration: %w (want an object like {\"Type\":\"ipip\",\"DirectRouting\":true})", err)
	}
	return keys.DirectRouting, nil
}

// overlay implements backend.Backend and backend.Prober.
type overlay struct {
	*kernelbackend.Backend
	direct  bool
	log     *slog.Logger
	guard   *guard
	started bool
}

// Start implements backend.Backend.
func (b *overlay) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	mtu, err = b.Backend.Start(ctx, host, own)
	if err != nil && !b.started { // nothing new is left behind
		return mtu, errors.Join(err, b.guard.undo())
	}
	b.started = b.started || err == nil
	return mtu, err
}

// prepare is backend.Backend's Prepare.
func (b *overlay) prepare(_ context.Context, host backend.Host) (lease.Attrs, error) {
	if err := usable(host); err != nil {
		return lease.Attrs{}, err
	}
	if host.Public4.IsValid() && host.Public4 != host.Addr4 {
		b.log.Warn("peers reach this host at another address than it sends from; that works only with a translation of all of IP, protocol 4 included, one to one and both ways",
			"public", host.Public4, "address", host.Addr4, "remedy", "leave the public address out, or use the backend vxlan, wireguard or udp")
	}
	return lease.Attrs{BackendType: name}, nil
}

// mtu is what is left of the interface's.
func mtu(host backend.Host, _ lease.Lease) (int, error) {
	return host.MTU - overhead, usable(host)
}

// usable says why a host can't be a member.
func usable(host backend.Host) error {
	switch {
	case host.MTU-overhead < minMTU:
		return fmt.Errorf("ipip: the MTU of %s is %d, and less %d bytes for the outer header that is no MTU of IPv4 (choose another interface)", host.Link, host.MTU, overhead)
	case !host.Addr4.IsValid():
		return fmt.Errorf("ipip: %s has no IPv4 address (ipip works over IPv4 only: choose another interface)", host.Link)
	}
	return nil
}

// end is where packets for a peer's subnet go.
func end(s kernelbackend.Situation, l lease.Lease, _ netip.Prefix) (at netip.Addr, why string) {
	at = l.Attrs.PublicIP.Unmap()
	return at, s.Self.Unreachable(at)
}

// plan wants the device, and a route for each peer.
func (b *overlay) plan(s kernelbackend.Situation, k netstate.Kernel) (netstate.State, error) {
	want := newFilter(s)
	known := s.Peers != nil
	state := netstate.State{
		Links: []netstate.Link{{
			Name: device,
			MTU:  s.Host.MTU - overhead,
			New: func() (netlink.Link, error) {
				// The filter comes first. What can't be is said by Tune.
				b.guard.fresh = true
				_, _ = b.guard.tune(want, known)
				return newDevice(s.Host.Addr4), nil
			},
			Unfit:  func(have netlink.Link) string { return unfit(have, s.Host.Addr4) },
			Tune:   func(netlink.Link) ([]string, error) { return b.guard.tune(want, known) },
			Module: "ipip", Option: "CONFIG_NET_IPIP",
		}},
		Addrs:  []netstate.Addr{{Link: device, Prefix: kernelbackend.FirstAddr(s.Own.Subnet)}},
		Routes: make([]netstate.Route, 0, len(s.Peers)),
	}
	for _, p := range s.Peers {
		r := netstate.Route{Dst: p.Subnet, Gw: p.At, Link: device, OnLink: true, Peer: p.String()}
		if b.direct && onLink(s.Host.Link, p.At, k) {
			r.Link = s.Host.Link // on link all the same, as flannel has it
		}
		state.Routes = append(state.Routes, r)
	}
	return state, nil
}

// onLink reports whether the kernel sends packets for a peer through the external
// interface without a router. In doubt the tunnel works.
func onLink(link string, at netip.Addr, k netstate.Kernel) bool {
	hop, err := k.Hop(at)
	return err == nil && !hop.Local && !hop.Gw.IsValid() && hop.Link == link
}

// newDevice is the device as flannel makes it: the outer header has the inner TTL, and
// "don't fragment" where the inner one has it. Without a local address it would be
// the same as tunl0, which can exist only once.
func newDevice(local netip.Addr) *netlink.Iptun {
	return &netlink.Iptun{Local: local.AsSlice(), Proto: protocol}
}

// unfit says what of an existing device is not as it must be. TTL, TOS and path MTU
// discovery are whoever made it.
func unfit(have netlink.Link, local netip.Addr) string {
	d, ok := have.(*netlink.Iptun)
	if !ok {
		return fmt.Sprintf("it is a device of type %s", have.Type())
	}
	at, remote := addrOf(d.Local), addrOf(d.Remote)
	switch {
	case d.FlowBased:
		return "it has no addresses of its own (external)"
	case at != local:
		return fmt.Sprintf("its local address is %v, and must be %v", at, local)
	case remote.IsValid() && !remote.IsUnspecified():
		return fmt.Sprintf("it leads to %v only", remote)
	case d.Proto != 0 && d.Proto != protocol: // 0 is any
		return fmt.Sprintf("it carries the IP protocol %d", d.Proto)
	case d.EncapType != 0:
		return "it has an encapsulation of its own (fou or gue)"
	}
	return ""
}

// addrOf is the zero Addr where there is none.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
