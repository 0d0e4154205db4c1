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
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// staleMAC is the Ethernet address of a peer that is gone.
const staleMAC = "7a:ac:15:15:2b:61"

// foreign puts on a host what is not flannel's, and returns how to list it.
func foreign(h *labHost) (list func() []string) {
	c, nl := h.c, h.Netlink()
	c.t.Helper()
	eth0, err := nl.LinkByName("eth0")
	c.must(err)
	index := eth0.Attrs().Index
	hw, err := net.ParseMAC(staleMAC)
	c.must(err)
	via := net.IPv4(192, 0, 2, 77)
	route := func(s string) *net.IPNet {
		_, n, err := net.ParseCIDR(s)
		c.must(err)
		return n
	}
	c.must(nl.RouteAdd(&netlink.Route{Dst: route("10.99.0.0/24"), Gw: via, LinkIndex: index}))                 // outside of the network
	c.must(nl.RouteAdd(&netlink.Route{Dst: route("10.5.200.0/25"), Gw: via, LinkIndex: index}))                // no subnet's length
	c.must(nl.RouteAdd(&netlink.Route{Dst: route("10.5.201.0/24"), Gw: via, LinkIndex: index, Priority: 500})) // an operator's metric
	c.must(nl.RouteAdd(&netlink.Route{Dst: route("10.5.210.0/24"), Type: unix.RTN_BLACKHOLE}))
	c.must(nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 150), HardwareAddr: hw}))
	c.must(nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "overlay7"}, VxlanId: 7, VtepDevIndex: index, SrcAddr: h.addr.AsSlice(), Port: 8472}))
	other, err := nl.LinkByName("overlay7")
	c.must(err)
	c.must(h.AddAddr("overlay7", netip.MustParsePrefix("10.99.7.1/24")))
	c.must(h.Up("overlay7"))
	c.must(nl.NeighAppend(&netlink.Neigh{LinkIndex: other.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: via, HardwareAddr: hw}))
	return func() (all []string) {
		c.t.Helper()
		for _, r := range h.routes() {
			dst := r.Dst.String()
			if strings.HasPrefix(dst, "10.99.") || strings.HasPrefix(dst, "10.5.2") {
				all = append(all, routeLine(r, ""))
			}
		}
		for _, l := range []netlink.Link{eth0, other} {
			for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
				neighs, err := nl.NeighList(l.Attrs().Index, family)
				c.must(err)
				for _, n := range neighs {
					if n.State&netlink.NUD_PERMANENT != 0 && n.HardwareAddr.String() == staleMAC {
						all = append(all, fmt.Sprintf("%s: %v %v", l.Attrs().Name, n.IP, n.HardwareAddr))
					}
				}
			}
		}
		slices.Sort(all)
		return all
	}
}

// dirty leaves on a host what a dead predecessor with the backend has left for a peer
// that has gone since, and returns the device's number, if there is one.
func dirty(h *labHost, name string, port int) (index int) {
	c, nl := h.c, h.Netlink()
	c.t.Helper()
	gone := netip.MustParsePrefix("10.5.150.0/24")
	dst := &net.IPNet{IP: gone.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}
	eth0, err := nl.LinkByName("eth0")
	c.must(err)
	if name == "host-gw" {
		c.must(nl.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(192, 0, 2, 150), LinkIndex: eth0.Attrs().Index}))
		return 0
	}
	hw, err := net.ParseMAC("82:4b:b6:2f:54:4e")
	c.must(err)
	c.must(nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", HardwareAddr: hw, MTU: 1400},
		VxlanId: 1, VtepDevIndex: eth0.Attrs().Index, SrcAddr: h.addr.AsSlice(), Port: port}))
	c.must(h.AddAddr("flannel.1", netip.MustParsePrefix("10.5.77.0/16"))) // as flannel before 0.9
	c.must(h.Up("flannel.1"))
	old := &oldVXLAN{labHost: h}
	old.link, err = nl.LinkByName("flannel.1")
	c.must(err)
	old.meet(gone, staleMAC, netip.MustParseAddr("192.0.2.150"))
	return old.link.Attrs().Index
}

// TestLeftovers: what a predecessor has left of peers that are gone is removed at the
// start, what is of use is used, and what is not flannel's is left alone.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		name, backend string
		port          int
	}{{"vxlan", "vxlan", 8472}, {"vxlan with another port", "vxlan", 4789}, {"host-gw", "host-gw", 0}} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			netlab.Require(t, netlab.NeedVXLAN)
			c := newCluster(t, 2, etcdtest.Config{NoV2: true})
			k := c.keysOf(3)
			k.set(configKey, `{"Network":"10.5.0.0/16","Backend":{"Type":"`+r.backend+`"}}`)
			for i, h := range c.hosts { // so that none gets a subnet that this test uses
				k.setFor(fmt.Sprintf("%s10.5.%d.0-24", subnetsKey, 11+i), leaseOf(h.addr), 24*time.Hour)
			}
			h := c.hosts[0]
			list := foreign(h)
			before, index := list(), dirty(h, r.backend, r.port)
			all := c.members(c.hosts)
			m, p := all[0], all[1]
			want := []string{"route 10.5.200.0/25 via 192.0.2.77 dev eth0", "route 10.5.201.0/24 via 192.0.2.77 dev eth0", "route 10.5.210.0/24 type 6", "route 10.99.0.0/24 via 192.0.2.77 dev eth0"}
			if r.backend == "host-gw" {
				want = append(want, fmt.Sprintf("route %v via %v dev eth0", p.file.Subnet.Masked(), p.addr))
			} else {
				want = append(want, vxlanLines("flannel.1", 1450, m.file.Subnet, others(m, all, false))...)
				link, err := h.Netlink().LinkByName("flannel.1")
				c.must(err)
				if same := link.Attrs().Index == index; same != (r.port == 8472) {
					t.Errorf("the device is the same one: %t", same)
				}
				if kept := link.Attrs().HardwareAddr.String() == "82:4b:b6:2f:54:4e"; !kept {
					t.Errorf("the Ethernet address that peers know is another one: %v", link.Attrs().HardwareAddr)
				}
				if got := m.lease(k); got != vxlanLease(m.addr, "82:4b:b6:2f:54:4e") {
					t.Errorf("the lease is %s", got)
				}
			}
			m.checkKernel("after a start with leftovers", want...)
			if after := list(); !slices.Equal(after, before) {
				t.Errorf("what is not flannel's is\n%q, was\n%q", after, before)
			}
			reach(m.pod, p.pod)
			m.readyz(200, "node: ok")
			m.ends()
			if code, _, log := m.run("cleanup"); code != 0 {
				t.Errorf("cleanup: exit %d: %s", code, log)
			}
			m.checkKernel("after cleanup", want[:4]...)
			if after := list(); !slices.Equal(after, before) {
				t.Errorf("after cleanup what is not flannel's is\n%q, was\n%q", after, before)
			}
		})
	}
}

// vxlanLease is a vxlan host's lease, as flannel writes it.
func vxlanLease(addr netip.Addr, mac string) string {
	return `{"PublicIP":"` + addr.String() + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac + `"}}`
}
