package vxlan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
)

// maxName is the longest name of a device, IFNAMSIZ less the final 0.
const maxName = 15

// deviceName is flannel's name of a family's device, or ours where that is too long.
func deviceName(f family, vni int) string {
	name, short := fmt.Sprintf("flannel.%d", vni), fmt.Sprintf("flannel.x%x", vni)
	if f == v6 {
		name, short = fmt.Sprintf("flannel-v6.%d", vni), fmt.Sprintf("flannel6.%x", vni)
	}
	if len(name) > maxName {
		return short
	}
	return name
}

// isVXLAN reports whether a lease is of a host with this backend.
func isVXLAN(l lease.Lease) bool { return strings.EqualFold(l.Attrs.BackendType, "vxlan") }

func subnetOf(k lease.Key, f family) netip.Prefix {
	if f == v4 {
		return k.Subnet
	}
	return k.Subnet6
}

// placeOf is one family of a peer.
func placeOf(p peerset.Peer, f family) (subnet netip.Prefix, at netip.Addr) {
	if f == v4 {
		return p.Subnet, p.At
	}
	return p.Subnet6, p.At6
}

// plan is Config.Plan: a device for each family of the own lease, and for each peer
// three entries, or a route alone where it is on a link. A peer's lease has been read
// by end before.
func (o *overlay) plan(s kernelbackend.Situation, k netstate.Kernel) (netstate.State, error) {
	var st netstate.State
	var used [2]map[netip.Addr]bool // what can't be a next hop any more
	for _, f := range []family{v4, v6} {
		subnet := subnetOf(s.Own.Key, f)
		if !subnet.IsValid() {
			continue
		}
		d := o.device(f, s, k)
		addr := kernelbackend.FirstAddr(subnet)
		st.Links = append(st.Links, netstate.Link{
			Name: d.name, MTU: d.mtu, MAC: o.macs[f],
			New:     func() (netlink.Link, error) { return d.make() },
			Unfit:   d.unfit,
			Sysctls: sysctls(f),
			Tune:    o.tuner(f),
			Module:  "vxlan", Option: "CONFIG_VXLAN",
		})
		st.Addrs = append(st.Addrs, netstate.Addr{Link: d.name, Prefix: addr})
		used[f] = map[netip.Addr]bool{addr.Addr(): true}
	}
	for _, f := range []family{v4, v6} {
		if used[f] == nil {
			continue
		}
		// The longer prefix has the first choice of a next hop, whatever the order
		// of the leases.
		peers := slices.Clone(s.Peers)
		slices.SortStableFunc(peers, func(a, b peerset.Peer) int {
			subnetB, _ := placeOf(b, f)
			subnetA, _ := placeOf(a, f)
			return subnetB.Bits() - subnetA.Bits()
		})
		for _, p := range peers {
			o.planPeer(&st, k, p, f, used[f])
		}
	}
	return st, nil
}

// planPeer adds what one family of a peer needs.
func (o *overlay) planPeer(st *netstate.State, k netstate.Kernel, p peerset.Peer, f family, used map[netip.Addr]bool) {
	subnet, at := placeOf(p, f)
	if !subnet.IsValid() {
		return
	}
	who := p.String()
	if o.cfg.direct {
		if link := directLink(st, k, at); link != "" {
			st.Routes = append(st.Routes, netstate.Route{Dst: subnet, Gw: at, Link: link, Peer: who})
			return
		}
	}
	data := p.Lease.Attrs.BackendData
	if f == v6 {
		data = p.Lease.Attrs.BackendV6Data
	}
	mac, err := parseData(data, o.cfg.vni)
	if err != nil {
		return // end would not have it
	}
	dev, hop := deviceName(f, o.cfg.vni), nextHop(subnet, used)
	st.Neighs = append(st.Neighs, netstate.Neigh{Link: dev, IP: hop, MAC: mac, Peer: who})
	st.FDB = append(st.FDB, netstate.FDB{Link: dev, MAC: mac, Dst: at, Peer: who})
	st.Routes = append(st.Routes, netstate.Route{Dst: subnet, Gw: hop, Link: dev, OnLink: true, Peer: who})
}

// nextHop is the address that a peer's device goes by: the first of its subnet, as
// flannel has it. Where a subnet begins with another peer's, or with this host's, that
// is taken, and the wider one has the next: only this host's neighbour table knows it.
func nextHop(subnet netip.Prefix, used map[netip.Addr]bool) netip.Addr {
	hop := subnet.Addr()
	for used[hop] {
		hop = hop.Next()
	}
	used[hop] = true
	return hop
}

// directLink returns the link of this host that a peer is on, "" if none, and has it
// watched: with its routes, the answer changes.
func directLink(st *netstate.State, k netstate.Kernel, at netip.Addr) string {
	hop, err := k.Hop(at)
	if err != nil || hop.Link == "" || hop.Local {
		return ""
	}
	for _, l := range st.Links {
		if l.Name == hop.Link {
			return "" // it would be a packet inside itself
		}
	}
	if !slices.Contains(st.Watch, hop.Link) {
		st.Watch = append(st.Watch, hop.Link)
	}
	if hop.Gw.IsValid() {
		return ""
	}
	return hop.Link
}

// sysctls are variables of a device. Nobody on it advertises routers. On the one for
// IPv4 there is no IPv6, and so no link-local address that it would announce.
func sysctls(f family) [][2]string {
	if f == v4 {
		return [][2]string{{"ipv6/conf/*/accept_ra", "0"}, {"ipv6/conf/*/addr_gen_mode", "1"}}
	}
	// Some hosts' default for new devices is that they have no IPv6.
	return [][2]string{{"ipv6/conf/*/accept_ra", "0"}, {"ipv6/conf/*/disable_ipv6", "0"}}
}
