package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestPeersChange: a peer joins, a host loses one thing after another that it has in the
// kernel, a peer gets another address, a peer leaves. All the while pods send each other
// datagrams; no packet is lost that has nothing to do with it.
func TestPeersChange(t *testing.T) {
	eachBackend(t, func(t *testing.T, name string) {
		c := newCluster(t, 4, etcdtest.Config{NoV2: true})
		c.etcdApart()
		k := c.keysOf(3)
		k.set(configKey, networkOf(`{"Type":"`+name+`"}`))
		// A peer beyond SubnetMax is one, too: reserved by hand, or from before an operator
		// has narrowed the network.
		const beyond = "10.5.150.0-24"
		if name == "host-gw" {
			k.set(subnetsKey+beyond, `{"PublicIP":"192.0.2.150","BackendType":"host-gw"}`)
		} else {
			k.set(subnetsKey+beyond, vxlanLease(netip.MustParseAddr("192.0.2.150"), staleMAC))
		}
		all := c.members(c.hosts[:3])
		a, b := all[0], all[1]
		if got := a.mentions("10.5.150.0"); len(got) == 0 && name != "wireguard" {
			t.Errorf("nothing leads to a peer beyond SubnetMax: %v", a.kernel())
		}
		streams := between(a.pod, b.pod, a.pod, all[2].pod)
		ab, ac := streams[:2], streams[2:]

		d := c.members(c.hosts[3:])[0]
		reach(a.pod, d.pod)
		noneLost("a peer joins", streams)

		a.loses(b, ab)
		before, lease := b.kernel(), b.lease(k)
		b.lost("eth0 is replaced by another interface", before, ab, b.replaceEth0)
		if got := b.lease(k); got != lease {
			t.Errorf("with another interface the lease is %s, was %s", got, lease)
		}
		noneSkip(ac)

		began := time.Now()
		b.moves(netip.MustParseAddr("192.0.2.22"))
		for _, s := range ab {
			s.flows()
		}
		t.Logf("a peer has another address: packets flow after %v", time.Since(began))
		if name != "wireguard" {
			eventually(t, "nothing leads to the peer's former address", func() bool { return len(a.uses("192.0.2.2")) == 0 })
			if len(a.uses("192.0.2.22")) == 0 {
				t.Errorf("nothing leads to the peer's address: %v", a.kernel())
			}
		}
		b.readyz(200, "node: ok")
		noneLost("another peer gets another address", ac)
		for _, s := range ab {
			s.flows()
			s.skip()
		}

		d.ends()
		k.remove(subnetsKey + d.file.Key().String())
		k.remove(subnetsKey + beyond)
		began = time.Now()
		a.hasMetric("flanneld_peers", 2)
		eventually(t, "nothing leads to a peer that has left", func() bool {
			return len(a.uses(d.addr.String())) == 0 && len(a.mentions(d.file.Subnet.Masked().Addr().String())) == 0
		})
		t.Logf("a peer has left: it is forgotten after %v", time.Since(began))
		noneLost("a peer leaves", streams)
		for _, m := range all {
			m.ends()
		}
	}, "vxlan", "host-gw", "wireguard")
}

// noneSkip forgets losses: what befell one host's device befell all its peers.
func noneSkip(all []*stream) {
	for _, s := range all {
		s.t.Helper()
		s.flows()
		s.skip()
	}
}

// uses are those lines of the kernel's that lead to an address.
func (h *labHost) uses(addr string) (all []string) {
	h.c.t.Helper()
	for _, line := range h.kernel() {
		if slices.Contains(strings.Fields(line), addr) {
			all = append(all, line)
		}
	}
	return all
}

// loses takes away from a host, one after the other, what it has in the kernel for a
// peer, and checks that all is as it was, and packets flow.
func (m *member) loses(p *member, streams []*stream) {
	m.c.t.Helper()
	nl, before := m.Netlink(), m.kernel()
	for _, line := range before {
		w := strings.Fields(line)
		dev := w[1]
		if i := slices.Index(w, "dev"); i >= 0 {
			dev = w[i+1]
		}
		link, _ := nl.LinkByName(dev)
		if !strings.Contains(line, p.addr.String()) && !strings.Contains(line, p.file.Subnet.Masked().Addr().String()) &&
			w[0] != "link" && w[0] != "addr" && !strings.HasPrefix(line, "route 10.5.0.0/16") {
			continue // another peer's
		}
		m.lost(line, before, streams, func() error {
			switch w[0] {
			case "link":
				return nl.LinkDel(link)
			case "addr":
				addr, err := netlink.ParseAddr(w[1])
				m.c.must(err)
				return nl.AddrDel(link, addr)
			case "neigh":
				return nl.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(w[1])})
			case "fdb":
				hw, err := net.ParseMAC(w[1])
				m.c.must(err)
				return nl.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, HardwareAddr: hw, IP: net.ParseIP(w[3])})
			}
			for _, r := range m.routes() {
				if link != nil && routeLine(r, dev) == line || link == nil && routeLine(r, "") == line {
					return nl.RouteDel(&r)
				}
			}
			return fmt.Errorf("no such route")
		})
	}
	m.lost("eth0 goes down and comes back", before, streams, func() error {
		m.c.must(m.Down("eth0"))
		m.c.must(m.Up("eth0")) // its address stays, its default route does not
		return m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0)
	})
	m.readyz(200, "node: ok")
}

// lost is one of these.
func (m *member) lost(what string, before []string, streams []*stream, remove func() error) {
	m.c.t.Helper()
	m.c.must(remove())
	began := time.Now()
	eventually(m.c.t, what+": is back", func() bool { return slices.Equal(m.kernel(), before) })
	back := time.Since(began)
	if back > 10*time.Second { // two seconds, and what a busy machine adds; by itself a daemon looks every thirty
		m.c.t.Errorf("removed: %s: back after %v", what, back)
	}
	for _, s := range streams {
		s.flows()
	}
	m.c.t.Logf("removed: %s: back after %v, packets flow after %v", what, back.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	for _, s := range streams {
		s.skip()
	}
}

// replaceEth0 takes the host's interface away and puts another one in, which is
// configured as the old one was.
func (m *member) replaceEth0() error {
	nl := m.c.wire.Netlink()
	m.c.must(m.DelLink("eth0"))
	m.c.must(m.c.lab.Veth(m.NS, "eth0", m.c.wire, "again", 1500))
	port, err := nl.LinkByName("again")
	m.c.must(err)
	bridge, err := nl.LinkByName("br0")
	m.c.must(err)
	m.c.must(nl.LinkSetMaster(port, bridge))
	m.c.must(m.AddAddr("eth0", netip.PrefixFrom(m.addr, 24)))
	return m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0)
}
