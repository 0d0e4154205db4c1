package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
)

// vxlanLines is what a host has in the kernel for its peers in one family.
func vxlanLines(device string, mtu int, own netip.Prefix, peers map[netip.Prefix][2]string) []string {
	bits := own.Addr().BitLen()
	all := []string{
		fmt.Sprintf("link %s mtu %d", device, mtu),
		fmt.Sprintf("addr %v dev %s", netip.PrefixFrom(own.Addr(), bits), device),
	}
	for subnet, p := range peers {
		all = append(all, fmt.Sprintf("neigh %v lladdr %s dev %s", subnet.Addr(), p[0], device),
			fmt.Sprintf("fdb %s dst %s dev %s", p[0], p[1], device),
			fmt.Sprintf("route %v via %v dev %s onlink", subnet, subnet.Addr(), device))
	}
	return all
}

// TestVXLAN: three hosts. Leases and subnet files byte for byte as original flannel
// writes them, what is in the kernel, packets.
func TestVXLAN(t *testing.T) {
	t.Parallel()
	const both = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}`
	for _, r := range []struct {
		name, config string
		api          int
		v4, v6       bool
		lease, file  string
	}{
		{"IPv4 API2", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, 2, true, false,
			`{"PublicIP":"ADDR4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC4"}}`,
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
		{"both API3", both, 3, true, true,
			`{"PublicIP":"ADDR4","PublicIPv6":"ADDR6","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC4"},"BackendV6Data":{"VNI":1,"VtepMAC":"MAC6"}}`,
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=SUBNET6\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"},
		{"IPv6 API3", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}`, 3, false, true,
			`{"PublicIP":"0.0.0.0","PublicIPv6":"ADDR6","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"MAC6"}}`,
			"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=SUBNET6\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			netlab.Require(t, netlab.NeedVXLAN)
			c := newCluster(t, 3, etcdtest.Config{NoV2: r.api == 3})
			c.addIPv6()
			k := c.keysOf(r.api)
			k.set(configKey, r.config)
			all := c.members(c.hosts)
			for _, m := range all {
				want, lines := r.lease, []string(nil)
				if r.v4 {
					lines = append(lines, vxlanLines("flannel.1", 1450, m.file.Subnet, others(m, all, false))...)
					want = strings.ReplaceAll(want, "MAC4", m.mac("flannel.1"))
				}
				if r.v6 {
					lines = append(lines, vxlanLines("flannel-v6.1", 1430, m.file.Subnet6, others(m, all, true))...)
					want = strings.ReplaceAll(want, "MAC6", m.mac("flannel-v6.1"))
				}
				want = strings.NewReplacer("ADDR4", m.addr.String(), "ADDR6", m.addr6.String()).Replace(want)
				if got := m.lease(k); got != want {
					t.Errorf("%s: the lease is\n%s, want\n%s", m.Name(), got, want)
				}
				checkFile(t, m.labHost, r.file, m.file)
				m.checkKernel("with three hosts", lines...)
			}
			reachAll(all...)
			for _, m := range all {
				m.readyz(200, "node: ok")
				m.hasMetric("flanneld_peers", 2)
			}
		})
	}
}

// others are the peers of a member: by subnet the Ethernet address and the public one.
func others(m *member, all []*member, v6 bool) map[netip.Prefix][2]string {
	peers := map[netip.Prefix][2]string{}
	for _, p := range all {
		switch {
		case p == m:
		case v6:
			peers[p.file.Subnet6.Masked()] = [2]string{p.mac("flannel-v6.1"), p.addr6.String()}
		default:
			peers[p.file.Subnet.Masked()] = [2]string{p.mac("flannel.1"), p.addr.String()}
		}
	}
	return peers
}

// An oldVXLAN does on a host what flannel's vxlan backend of 2015 did for one peer, but
// without asking a program for addresses.
type oldVXLAN struct {
	*labHost
	link netlink.Link
}

// startOldVXLAN makes the device, with an address of the whole network, as flannel did
// before 0.9.
func startOldVXLAN(h *labHost, f subnetenv.File, mac string) *oldVXLAN {
	h.c.t.Helper()
	eth0, err := h.Netlink().LinkByName("eth0")
	h.c.must(err)
	hw, err := net.ParseMAC(mac)
	h.c.must(err)
	o := &oldVXLAN{labHost: h, link: &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", HardwareAddr: hw, MTU: f.MTU},
		VxlanId:   1, VtepDevIndex: eth0.Attrs().Index, SrcAddr: h.addr.AsSlice(), Port: 8472,
	}}
	h.c.must(h.Netlink().LinkAdd(o.link))
	h.c.must(h.AddAddr("flannel.1", netip.PrefixFrom(f.Subnet.Addr(), f.Network.Bits())))
	h.c.must(h.Up("flannel.1"))
	return o
}

// meet makes what the peer takes.
func (o *oldVXLAN) meet(subnet netip.Prefix, mac string, at netip.Addr) {
	o.c.t.Helper()
	hw, err := net.ParseMAC(mac)
	o.c.must(err)
	nl, index := o.Netlink(), o.link.Attrs().Index
	o.c.must(nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: subnet.Masked().Addr().AsSlice(), HardwareAddr: hw}))
	o.c.must(nl.NeighAppend(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Family: 7, Flags: netlink.NTF_SELF, IP: at.AsSlice(), HardwareAddr: hw}))
	o.c.must(nl.RouteReplace(&netlink.Route{LinkIndex: index, Gw: subnet.Masked().Addr().AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		Dst: &net.IPNet{IP: subnet.Masked().Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)}}))
}

// TestVXLANOriginalPeer: the other host runs a flannel of old, whose lease has no VNI.
// Then it restarts, and has another Ethernet address.
func TestVXLANOriginalPeer(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		netlab.Require(t, netlab.NeedVXLAN)
		c := newCluster(t, 2, etcdtest.Config{NoV2: api == 3})
		k, theirs := c.keysOf(api), c.hosts[1]
		k.set(configKey, networkOf(`{"Type":"vxlan"}`))
		f := subnetenv.File{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: netip.MustParsePrefix("10.5.201.0/24"), MTU: 1450}
		lease := func(mac string) {
			k.set(subnetsKey+"10.5.201.0-24", `{"PublicIP":"192.0.2.2","BackendType":"vxlan","BackendData":{"VtepMAC":"`+mac+`"}}`)
		}
		lease("82:4b:b6:2f:54:4e")
		m := c.members(c.hosts[:1])[0]
		far := theirs.pod(f)
		for _, mac := range []string{"82:4b:b6:2f:54:4e", "7a:ac:15:15:2b:61"} {
			o := startOldVXLAN(theirs, f, mac)
			o.meet(m.file.Subnet, m.mac("flannel.1"), m.addr)
			lease(mac)
			m.checkKernel("beside an original flannel", vxlanLines("flannel.1", 1450, m.file.Subnet, map[netip.Prefix][2]string{f.Subnet: {mac, "192.0.2.2"}})...)
			reach(m.pod, far)
			c.must(theirs.DelLink("flannel.1"))
		}
		m.readyz(200, "node: ok")
	})
}

// TestVXLANDirectRouting: hosts 1 and 2 are on one Ethernet and send each other plain
// packets; host 3 is behind a router, and gets them inside VXLAN.
func TestVXLANDirectRouting(t *testing.T) {
	t.Parallel()
	netlab.Require(t, netlab.NeedVXLAN)
	c := newCluster(t, 3, etcdtest.Config{NoV2: true})
	c.farHost(c.hosts[2])
	c.etcd.Put(configKey, networkOf(`{"Type":"vxlan","DirectRouting":true}`))
	all := c.members(c.hosts)
	subnets := map[string]netip.Prefix{}
	for _, m := range all {
		subnets[m.Name()] = m.file.Subnet.Masked()
	}
	wire := c.tap(func(packet []byte) string {
		to, port := destination(packet)
		for name, s := range subnets {
			if s.Contains(to) {
				return "plain to " + name
			}
		}
		for _, m := range all {
			if m.addr == to && port == 8472 {
				return "VXLAN to " + m.Name()
			}
		}
		return ""
	})
	near, far := all[:2], all[2]
	for i, m := range near {
		o := near[1-i]
		m.checkKernel("with DirectRouting", append(vxlanLines("flannel.1", 1450, m.file.Subnet,
			map[netip.Prefix][2]string{far.file.Subnet.Masked(): {far.mac("flannel.1"), far.addr.String()}}),
			fmt.Sprintf("route %v via %v dev eth0", o.file.Subnet.Masked(), o.addr))...)
	}
	far.checkKernel("behind a router", vxlanLines("flannel.1", 1450, far.file.Subnet, others(far, all, false))...)
	reach(near[0].pod, near[1].pod)
	if p1, p2, x1, x2 := wire.count("plain to host1"), wire.count("plain to host2"), wire.count("VXLAN to host1"), wire.count("VXLAN to host2"); p1 < 6 || p2 < 6 || x1+x2 > 0 {
		t.Errorf("between the hosts on one Ethernet there were %d and %d plain packets, %d and %d inside VXLAN", p1, p2, x1, x2)
	}
	reachAll(all...)
	if p, x := wire.count("plain to host3"), wire.count("VXLAN to host3"); p > 0 || x < 6 {
		t.Errorf("to the host behind a router there were %d plain packets, %d inside VXLAN", p, x)
	}
	for _, m := range all {
		m.readyz(200, "node: ok")
	}
}

// TestVXLANBadPeers: leases that can't be served cost nobody else anything, and are
// named once.
func TestVXLANBadPeers(t *testing.T) {
	t.Parallel()
	netlab.Require(t, netlab.NeedVXLAN)
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, networkOf(`{"Type":"vxlan"}`))
	bad := map[string]string{
		"10.5.101.0-24": `{"PublicIP":"192.0.2.101","BackendType":"vxlan"}`,
		"10.5.102.0-24": `{"PublicIP":"192.0.2.102","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"junk"}}`,
		"10.5.103.0-24": `{"PublicIP":"192.0.2.103","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"7a:ac:15:15:2b:03"}}`,
		"10.5.104.0-24": `{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:04"}}`,
		"10.5.105.0-24": `{"PublicIP":"192.0.2.105","BackendType":"vxlan","BackendData":"junk"}`,
		"10.6.106.0-24": `{"PublicIP":"192.0.2.106","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:06"}}`,
		"10.5.107.0-24": `{"PublicIP":"192.0.2.107","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}}`,
	}
	for key, value := range bad {
		c.etcd.Put(subnetsKey+key, value)
	}
	// A bridge has a peer's subnet: nothing but that peer is concerned.
	h := c.hosts[0]
	c.must(h.Bridge("vms0"))
	c.must(h.AddAddr("vms0", netip.MustParsePrefix("10.5.108.1/24")))
	c.etcd.Put(subnetsKey+"10.5.108.0-24", vxlanLease(netip.MustParseAddr("192.0.2.108"), "7a:ac:15:15:2b:08"))
	all := c.members(c.hosts)
	reach(all[0].pod, all[1].pod)
	for _, m := range all {
		for key := range bad {
			n := 0
			for line := range strings.Lines(m.proc.log.String()) {
				if strings.Contains(line, key) {
					n++
				}
			}
			if n == 0 || n > 2 {
				t.Errorf("%s: %d lines of log about %s", m.Name(), n, key)
			}
			if got := m.mentions(strings.TrimSuffix(key, "-24")); len(got) > 0 {
				t.Errorf("%s: in the kernel: %v", m.Name(), got)
			}
		}
	}
	eventually(t, "the peer whose subnet a bridge has is named", all[0].proc.log.has("vms0"))
	all[1].readyz(200, "node: ok")
	code, body, err := all[0].get(healthURL + "/readyz")
	t.Logf("where a bridge has a peer's subnet /readyz is %d %q, %v", code, body, err)
}
