package wireguard

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// flannel's names of the devices.
const (
	deviceName   = "flannel-wg"
	deviceNameV6 = "flannel-wg-v6" // Mode separate's, for IPv6
)

// keys are the same for all devices and peers.
type keys struct {
	private secret
	public  wgtypes.Key
	psk     secret // zero: none
}

// A spec is all that a device shall be.
type spec struct {
	name      string
	mtu       int
	port      int
	keepalive time.Duration
	addrs     []netip.Prefix // its own
	networks  []netip.Prefix // routed to it
	// peers are in the order of their leases. nil means that they are not known
	// yet: those of a predecessor stay.
	peers []peer
}

// A peer is a host as a device knows it.
type peer struct {
	name     string // in messages
	key      wgtypes.Key
	endpoint netip.AddrPort
	allowed  []netip.Prefix
}

// specs are the devices of a situation.
func (c config) specs(n lease.Network, s kernelbackend.Situation) []spec {
	mtu, err := c.mtu(s.Host, n)
	if err != nil {
		mtu = 0 // Start has refused it; leave what there is
	}
	v4 := spec{name: deviceName, mtu: mtu, port: c.Port, keepalive: c.Keepalive}
	v6 := spec{name: deviceNameV6, mtu: mtu, port: c.PortV6, keepalive: c.Keepalive}
	if n.IPv4.Enabled() {
		v4.add(n.IPv4.Prefix, s.Own.Subnet)
	}
	if c.Mode != separate {
		if n.IPv6.Enabled() {
			v4.add(n.IPv6.Prefix, s.Own.Subnet6)
		}
		v4.meet(c.Mode, s.Peers, true, true)
		return []spec{v4}
	}
	var all []spec
	if n.IPv4.Enabled() {
		v4.meet(c.Mode, s.Peers, true, false)
		all = append(all, v4)
	}
	if n.IPv6.Enabled() {
		v6.add(n.IPv6.Prefix, s.Own.Subnet6)
		v6.meet(c.Mode, s.Peers, false, true)
		all = append(all, v6)
	}
	return all
}

// add has a device carry a family.
func (s *spec) add(network, own netip.Prefix) {
	s.networks = append(s.networks, network.Masked())
	if own.IsValid() {
		s.addrs = append(s.addrs, kernelbackend.FirstAddr(own))
	}
}

// meet makes peers of those with subnets of the families that the device carries.
func (s *spec) meet(m mode, peers []peerset.Peer, v4, v6 bool) {
	if peers == nil {
		return
	}
	s.peers = make([]peer, 0, len(peers))
	for _, p := range peers {
		to := peer{name: p.String()}
		at, of := p.At, p.Subnet
		if v4 && p.Subnet.IsValid() {
			to.allowed = append(to.allowed, p.Subnet)
		}
		if v6 && p.Subnet6.IsValid() {
			to.allowed = append(to.allowed, p.Subnet6)
			at, of = p.At6, p.Subnet6
		}
		if len(to.allowed) == 0 {
			continue
		}
		key, why := publicKey(p.Lease, inner6(m, p.Lease, of))
		if why != "" {
			continue // End has refused it
		}
		to.key, to.endpoint = key, netip.AddrPortFrom(at, port(m, p.Lease, !v4, s.port))
		s.peers = append(s.peers, to)
	}
}

// state is what netstate is to keep of a device, which it makes and tunes by link.
func (s spec) state(link netstate.Link) netstate.State {
	st := netstate.State{Links: []netstate.Link{link}}
	for _, a := range s.addrs {
		st.Addrs = append(st.Addrs, netstate.Addr{Link: s.name, Prefix: a})
	}
	for _, n := range s.networks {
		st.Routes = append(st.Routes, netstate.Route{Dst: n, Link: s.name})
	}
	return st
}
