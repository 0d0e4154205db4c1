package netstate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// addrs makes the addresses of our links what they shall be.
func (w *work) addrs() {
	for _, l := range w.state.Links {
		link := w.links[l.Name]
		if link == nil {
			continue
		}
		if w.addrsOf(link) {
			// The kernel removes the others of a subnet with the first one
			// (promote_secondaries in ip-sysctl.rst).
			w.addrsOf(link)
		}
	}
}

// addrsOf is addrs for one link, and reports whether it has removed something.
func (w *work) addrsOf(link netlink.Link) (dropped bool) {
	name := link.Attrs().Name
	list, err := rtnl.Again(func() ([]netlink.Addr, error) { return w.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: list the addresses of %s: %w", w.k.cfg.Backend, name, err))
		return false
	}
	have := make(map[netip.Prefix]netlink.Addr, len(list))
	for _, a := range list {
		have[rtnl.Prefix(a.IPNet)] = a
	}
	for _, want := range distinct(w, w.state.Addrs, func(a Addr) any { return a }, func(Addr) string { return "" }) {
		if want.Link != name {
			continue
		}
		if _, ok := have[want.Prefix]; ok {
			delete(have, want.Prefix)
			w.there[want] = true
			continue
		}
		w.put(want, "", func() error { return w.addAddr(link, want.Prefix) })
	}
	for p, a := range have {
		if w.state.Prune && w.state.Area.contains(netip.PrefixFrom(p.Addr(), p.Addr().BitLen())) {
			w.drop(Addr{name, p}, Addr{name, p}.String(), func() error { return w.nl.AddrDel(link, &a) })
			dropped = true
		}
	}
	return dropped
}

// addAddr gives a link an address. Nobody on a tunnel answers duplicate address
// detection, which would only delay the use of an IPv6 one.
func (w *work) addAddr(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: rtnl.IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	err := w.nl.AddrAdd(link, a)
	switch err {
	case unix.EEXIST:
		return nil
	case unix.EACCES, unix.EOPNOTSUPP, unix.EINVAL:
		if p.Addr().Is6() {
			return fmt.Errorf("%w (IPv6 is off: set net.ipv6.conf.all.disable_ipv6 to 0, or take the IPv6 range out of the network)", err)
		}
	}
	return err
}

// dumpNeighs calls each for the permanent neighbour or forwarding entries of a link.
// While others change the tables a dump can lack some, and does not say so; so what
// seems to be missing though it was in place is looked for again.
func (w *work) dumpNeighs(index, family int, each func(netlink.Neigh), missing func() bool) error {
	for range dumps {
		list, err := rtnl.Again(func() ([]netlink.Neigh, error) {
			return w.nl.NeighListExecute(netlink.Ndmsg{Family: uint8(family), Index: uint32(index)})
		})
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.State&unix.NUD_PERMANENT != 0 && n.LinkIndex == index {
				each(n)
			}
		}
		if !missing() {
			return nil
		}
	}
	return nil
}

// neighs makes the permanent neighbours of our links what they shall be.
func (w *work) neighs() {
	for _, l := range w.state.Links {
		link := w.links[l.Name]
		if link == nil {
			continue
		}
		index := link.Attrs().Index
		var want []Neigh
		has4, has6 := false, false
		for _, n := range distinct(w, w.state.Neighs, func(n Neigh) any { return Neigh{Link: n.Link, IP: n.IP} }, func(n Neigh) string { return n.Peer }) {
			if n.Link == l.Name {
				want = append(want, n)
				has4, has6 = has4 || n.IP.Is4(), has6 || n.IP.Is6()
			}
		}
		for _, r := range w.state.Area.Networks { // to be pruned
			has4, has6 = has4 || r.Prefix.Addr().Is4(), has6 || r.Prefix.Addr().Is6()
		}
		have := map[netip.Addr]netlink.Neigh{}
		failed := false
		for _, family := range families(has4, has6) {
			err := w.dumpNeighs(index, family, func(n netlink.Neigh) { have[rtnl.Addr(n.IP)] = n }, func() bool {
				return slices.ContainsFunc(want, func(n Neigh) bool {
					_, ok := have[n.IP]
					return !ok && w.k.placed[n]
				})
			})
			if err != nil {
				w.errs = append(w.errs, fmt.Errorf("%s: list the neighbours of %s: %w", w.k.cfg.Backend, l.Name, err))
				failed = true
			}
		}
		if failed {
			continue
		}
		for _, n := range want {
			h, ok := have[n.IP]
			delete(have, n.IP)
			if ok && h.HardwareAddr.String() == n.MAC.String() {
				w.there[n] = true
				continue
			}
			w.put(n, n.Peer, func() error {
				return w.nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST,
					Family: family(n.IP), IP: n.IP.AsSlice(), HardwareAddr: n.MAC[:]})
			})
		}
		for ip, n := range have {
			if w.state.Prune && w.state.Area.contains(netip.PrefixFrom(ip, ip.BitLen())) {
				w.drop(Neigh{Link: l.Name, IP: ip}, Neigh{Link: l.Name, IP: ip}.String(), func() error { return w.nl.NeighDel(&n) })
			}
		}
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// fdb makes the permanent forwarding entries of our VXLAN devices what they shall be.
// Entries of groups and the default one, 00:00:00:00:00:00, are somebody else's.
func (w *work) fdb() {
	for _, l := range w.state.Links {
		link := w.links[l.Name]
		if link == nil || link.Type() != "vxlan" {
			continue
		}
		index := link.Attrs().Index
		have := map[MAC]netlink.Neigh{}
		err := w.dumpNeighs(index, unix.AF_BRIDGE, func(n netlink.Neigh) {
			if len(n.HardwareAddr) == 6 && n.HardwareAddr[0]&1 == 0 && MAC(n.HardwareAddr) != (MAC{}) {
				have[MAC(n.HardwareAddr)] = n
			}
		}, func() bool {
			return slices.ContainsFunc(w.state.FDB, func(f FDB) bool {
				_, ok := have[f.MAC]
				return !ok && f.Link == l.Name && w.k.placed[f]
			})
		})
		if err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s: list the forwarding entries of %s: %w", w.k.cfg.Backend, l.Name, err))
			continue
		}
		for _, f := range distinct(w, w.state.FDB, func(f FDB) any { return FDB{Link: f.Link, MAC: f.MAC} }, func(f FDB) string { return f.Peer }) {
			if f.Link != l.Name {
				continue
			}
			h, ok := have[f.MAC]
			delete(have, f.MAC)
			if ok && rtnl.Addr(h.IP) == f.Dst {
				w.there[f] = true
				continue
			}
			w.put(f, f.Peer, func() error { return w.nl.NeighSet(entry(index, f.MAC, f.Dst)) })
		}
		for mac, n := range have {
			if w.state.Prune {
				w.drop(FDB{Link: l.Name, MAC: mac}, FDB{Link: l.Name, MAC: mac}.String(), func() error { return w.nl.NeighDel(entry(index, mac, rtnl.Addr(n.IP))) })
			}
		}
	}
}

// entry is a forwarding entry as netlink takes it (bridge(8), "fdb ... self").
func entry(index int, mac MAC, dst netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: dst.AsSlice(), HardwareAddr: mac[:]}
}
