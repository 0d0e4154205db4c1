package diagnose

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// TestHealthy: nothing is wrong on a host that works, whatever the backend.
func TestHealthy(t *testing.T) {
	for _, c := range []struct{ name, families, part, device string }{
		{"udp", "4", `{"Type":"udp"}`, "flannel0"},
		{"udp both", "46", `{"Type":"udp"}`, "flannel0"},
		{"udp IPv6", "6", `{"Type":"udp"}`, "flannel0"},
		{"vxlan", "4", `{"Type":"vxlan","VNI":7}`, "flannel.7"},
		{"vxlan both", "46", `{"Type":"vxlan"}`, "flannel.1"},
		{"vxlan IPv6", "6", `{"Type":"vxlan"}`, "flannel-v6.1"},
		{"vxlan direct", "4", `{"Type":"vxlan","DirectRouting":true}`, "flannel.1"},
		{"host-gw", "4", `{"Type":"host-gw"}`, ""},
		{"host-gw both", "46", `{"Type":"host-gw"}`, ""},
		{"ipip", "4", `{"Type":"ipip"}`, "flannel.ipip"},
		{"wireguard", "4", `{"Type":"wireguard"}`, "flannel-wg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t, 3, c.families, c.part)
			h := cl.hosts[0]
			h.port("docker0", "veth1", h.mtu)
			r := h.look(h.report())
			wantProblems(t, r.Problems)
			if r.Host.Device != c.device || (c.device != "") != (r.Host.DeviceMTU >= h.mtu) {
				t.Errorf("device %q of MTU %d, want %q of %d", r.Host.Device, r.Host.DeviceMTU, c.device, h.mtu)
			}
			if len(r.Bridges) != 1 || r.Bridges[0].Name != "docker0" || r.Bridges[0].Ports != 1 || len(r.Bridges[0].Addrs) == 0 {
				t.Errorf("bridges: %+v", r.Bridges)
			}
			if s := r.SubnetFile; s.Subnet != h.own.Subnet || s.Subnet6 != h.own.Subnet6 || s.MTU != h.mtu || s.Error != "" {
				t.Errorf("subnet file: %+v", s)
			}
			h.ping(r)
			wantProblems(t, r.Problems)
			for _, p := range r.Peers {
				if p.Ping == nil || p.Ping.RTT == 0 || !p.Ping.Full || p.Ping.Error != "" {
					t.Errorf("peer %v: ping %+v", p.Subnet, p.Ping)
				}
			}
		})
	}
}

// TestBroken breaks one thing at a time on a host that works.
func TestBroken(t *testing.T) {
	const udp, vxlan, hostgw = `{"Type":"udp"}`, `{"Type":"vxlan"}`, `{"Type":"host-gw"}`
	for _, c := range []struct {
		name, part string
		breakIt    func(h *labHost, r *report.Report) error
		want       []string
	}{
		{"forwarding off", hostgw, func(h *labHost, _ *report.Report) error { return h.Sysctl("net/ipv4/ip_forward", "0") },
			[]string{"error forwarding: net.ipv4.ip_forward is 0"}},
		{"forwarding off without a bridge", hostgw, func(h *labHost, _ *report.Report) error {
			return errors.Join(h.DelLink("docker0"), h.Sysctl("net/ipv4/ip_forward", "0"))
		}, []string{"warning forwarding: net.ipv4.ip_forward is 0"}},
		{"forwarding off for the overlay", vxlan, func(h *labHost, _ *report.Report) error {
			return os.WriteFile("/proc/sys/net/ipv4/conf/flannel.1/forwarding", []byte("0"), 0)
		}, []string{"error forwarding: net.ipv4.conf.flannel/1.forwarding is 0"}},
		{"another subnet's route", udp, func(h *labHost, _ *report.Report) error {
			return h.AddRoute(netip.MustParsePrefix("10.5.2.0/24"), netip.MustParseAddr("192.0.2.77"), "eth0", 0)
		}, []string{"error route 10.5.2.0/24: 10.5.2.0/24 is part of the overlay network 10.5.0.0/16, but is routed to 192.0.2.77 by eth0"}},
		{"rp_filter", udp, func(h *labHost, _ *report.Report) error {
			return errors.Join(h.Sysctl("net/ipv4/conf/flannel0/rp_filter", "1"), h.Sysctl("net/ipv4/conf/all/rp_filter", "0"),
				h.AddRoute(netip.MustParsePrefix("10.5.2.0/24"), netip.MustParseAddr("192.0.2.77"), "eth0", 0))
		}, []string{"error route 10.5.2.0/24", "warning rp_filter flannel0: rp_filter of flannel0 is strict, and the way to 10.5.2.0/24"}},
		{"a VPN's route", udp, func(h *labHost, _ *report.Report) error {
			return errors.Join(h.Bridge("tun9"), h.AddRoute(netip.MustParsePrefix("10.5.128.0/17"), netip.Addr{}, "tun9", 0))
		}, []string{"warning route 10.5.128.0/17: 10.5.128.0/17 is part of the overlay network 10.5.0.0/16, but is routed to tun9"}},
		{"own subnet by a gateway", hostgw, func(h *labHost, _ *report.Report) error {
			return h.AddRoute(netip.MustParsePrefix("10.5.1.0/25"), netip.MustParseAddr("192.0.2.77"), "eth0", 0)
		}, []string{"error route 10.5.1.0/25: 10.5.1.0/25 is in this host's own subnet"}},
		{"LAN in the overlay's range", udp, func(h *labHost, _ *report.Report) error {
			return h.AddAddr("eth0", netip.MustParsePrefix("10.5.200.7/24"))
		}, []string{"error interface eth0: eth0 has the address 10.5.200.7/24, and the overlay network is 10.5.0.0/16"}},
		{"LAN around the overlay's range", hostgw, func(h *labHost, _ *report.Report) error {
			return h.AddAddr("eth0", netip.MustParsePrefix("10.9.200.7/8"))
		}, []string{"warning interface eth0: eth0 has the address 10.9.200.7/8"}},
		{"external interface down", hostgw, func(h *labHost, r *report.Report) error {
			r.Peers = nil // their routes are gone, too
			return h.Down("eth0")
		}, []string{"error interface eth0: the external interface eth0 is down"}},
		{"external interface without carrier", hostgw, func(h *labHost, r *report.Report) error { return h.c.sw.Down("p1") },
			[]string{"error interface eth0: the external interface eth0 has no carrier"}},
		{"external interface gone", udp, func(h *labHost, _ *report.Report) error { return h.DelLink("eth0") },
			[]string{"error interface eth0: the external interface eth0 is gone"}},
		{"external address gone", vxlan, func(h *labHost, r *report.Report) error {
			r.Host.Addr4 = netip.MustParseAddr("192.0.2.99")
			return nil
		}, []string{"error interface eth0: eth0 no longer has the address 192.0.2.99"}},
		{"external MTU smaller", hostgw, func(h *labHost, _ *report.Report) error { return h.SetMTU("eth0", 1400) },
			[]string{"warning interface eth0: eth0 has MTU 1400, but containers have 1500, and the backend host-gw needs 0 bytes more"}},
		{"device's MTU too large", udp, func(h *labHost, _ *report.Report) error { return h.SetMTU("flannel0", 1500) },
			[]string{"warning device flannel0: flannel0 has MTU 1500, and the backend udp needs 28 bytes more, but eth0 has 1500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 2, "4", c.part).hosts[0]
			h.stopKeeping()
			r := h.report()
			check(t, h.Do(func() error { return c.breakIt(h, r) }))
			wantProblems(t, h.look(r).Problems, c.want...)
		})
	}
}

// TestBrokenDevice does the same to the overlay's device.
func TestBrokenDevice(t *testing.T) {
	const vxlan = `{"Type":"vxlan"}`
	for _, c := range []struct {
		name    string
		breakIt func(h *labHost, r *report.Report) error
		want    []string
	}{
		{"gone", func(h *labHost, r *report.Report) error { r.Peers = nil; return h.DelLink("flannel.1") },
			[]string{"error device flannel.1: the overlay's device flannel.1 is gone"}},
		{"down", func(h *labHost, r *report.Report) error { return h.Down("flannel.1") },
			[]string{"error device flannel.1: the overlay's device flannel.1 is down", "error route: there is no route to 1 subnet of 1 peers (10.5.2.0/24)"}},
		{"MTU too small", func(h *labHost, r *report.Report) error { return h.SetMTU("flannel.1", 1300) },
			[]string{"warning device flannel.1: flannel.1 has MTU 1300, but containers have 1450"}},
		{"way out too small", func(h *labHost, r *report.Report) error { return h.SetMTU("eth0", 1400) },
			[]string{"warning device flannel.1: flannel.1 has MTU 1450, and the backend vxlan needs 50 bytes more, but eth0 has 1400"}},
		{"without address", func(h *labHost, r *report.Report) error {
			l, err := h.Netlink().LinkByName("flannel.1")
			check(h.c.t, err)
			a, err := netlink.ParseAddr("10.5.1.0/32")
			return errors.Join(err, h.Netlink().AddrDel(l, a))
		}, []string{"warning device flannel.1: flannel.1 does not have the address 10.5.1.0", "error route: there is no route to 1 subnet"}},
		{"daemon down", func(h *labHost, r *report.Report) error {
			*r = report.Report{SubnetFile: r.SubnetFile}
			return h.DelLink("flannel.1")
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 2, "4", vxlan).hosts[0]
			h.stopKeeping()
			r := h.report()
			check(t, h.Do(func() error { return c.breakIt(h, r) }))
			wantProblems(t, h.look(r).Problems, c.want...)
		})
	}
}

// TestBridges does the same to bridges, with and without a daemon.
func TestBridges(t *testing.T) {
	readdress := func(h *labHost, bridge, addr string) error {
		return errors.Join(h.DelLink(bridge), h.Bridge(bridge), h.AddAddr(bridge, netip.MustParsePrefix(addr)))
	}
	for _, c := range []struct {
		name    string
		breakIt func(h *labHost) error
		want    []string
	}{
		{"Docker's own addresses", func(h *labHost) error { return readdress(h, "docker0", "172.17.0.1/16") },
			[]string{"warning bridge docker0: docker0 has 172.17.0.1/16, not an address of this host's subnet 10.5.1.0/24"}},
		{"Docker's own addresses, containers run", func(h *labHost) error {
			defer h.port("docker0", "veth1", 1500)
			return readdress(h, "docker0", "172.17.0.1/16")
		}, []string{"error bridge docker0: docker0 has 172.17.0.1/16, not an address of this host's subnet 10.5.1.0/24"}},
		{"idle Docker beside pods", func(h *labHost) error {
			return errors.Join(readdress(h, "docker0", "172.17.0.1/16"), h.Bridge("cni0"), h.AddAddr("cni0", netip.MustParsePrefix("10.5.1.1/24")))
		}, nil},
		{"a network of Docker's besides", func(h *labHost) error {
			defer h.port("br-0123456789ab", "veth1", 1500)
			return errors.Join(h.Bridge("br-0123456789ab"), h.AddAddr("br-0123456789ab", netip.MustParsePrefix("172.18.0.1/16")))
		}, nil},
		{"former subnet", func(h *labHost) error { return readdress(h, "docker0", "10.5.9.1/24") },
			[]string{"warning bridge docker0: docker0 has 10.5.9.1/24, but this host's subnet is 10.5.1.0/24"}},
		{"former subnet of pods", func(h *labHost) error {
			check(h.c.t, h.DelLink("docker0"), h.Bridge("cni0"), h.AddAddr("cni0", netip.MustParsePrefix("10.5.9.1/24")))
			h.port("cni0", "veth1", 1450)
			return nil
		}, []string{"error bridge cni0: cni0 has 10.5.9.1/24, but this host's subnet is 10.5.1.0/24"}},
		{"two with the subnet", func(h *labHost) error {
			return errors.Join(h.Bridge("cni0"), h.AddAddr("cni0", netip.MustParsePrefix("10.5.1.1/24")))
		}, []string{"warning bridge cni0: the bridges docker0, cni0 all have addresses of this host's subnet 10.5.1.0/24"}},
		{"the whole network on the bridge", func(h *labHost) error { return readdress(h, "docker0", "10.5.1.1/16") },
			[]string{"error bridge docker0: docker0 has 10.5.1.1/16, which is more than this host's subnet 10.5.1.0/24"}},
		{"MTU too large", func(h *labHost) error { h.port("docker0", "veth1", 1500); return nil },
			[]string{"warning bridge docker0: an interface in docker0 has MTU 1500, but packets to other hosts may have 1450"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
			check(t, c.breakIt(h))
			wantProblems(t, h.look(h.report()).Problems, c.want...)
			down := &report.Report{SubnetFile: &report.SubnetFile{Path: h.path()}}
			wantProblems(t, h.look(down).Problems, c.want...)
		})
	}
}

// TestFilesOnHost: what is wrong with files, which is read for real.
func TestFilesOnHost(t *testing.T) {
	t.Parallel()
	h := newCluster(t, 1, "4", `{"Type":"host-gw"}`).hosts[0]
	options := filepath.Join(h.dir, "docker_opts.env")
	other := h.file()
	other.Subnet = netip.MustParsePrefix("10.5.9.0/24")
	write := func(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }
	for _, c := range []struct {
		name    string
		breakIt func() error
		want    []string
	}{
		{"nothing", func() error { return nil }, nil},
		{"no subnet file", func() error { return os.Remove(h.path()) }, []string{"error subnet-file: " + h.path() + " is not there"}},
		{"half a subnet file", func() error { return write(h.path(), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUB") },
			[]string{"error subnet-file: " + h.path() + " can't be used"}},
		{"another's subnet file", func() error { return subnetenv.Write(h.path(), other) },
			[]string{"error subnet-file: " + h.path() + " has subnet 10.5.9.0/24 instead of 10.5.1.0/24"}},
		{"old options", func() error { return write(options, `DOCKER_OPTS=" --bip=10.5.9.1/24 --ip-masq=true --mtu=1472"`) },
			[]string{"error docker-options: " + options + " has --bip=10.5.9.1/24", "warning docker-options: " + options + " has --mtu=1472, but the MTU of containers is 1500"}},
		{"told twice", func() error { return write(h.conf, `{"bip":"10.5.1.1/24","mtu":1500,"debug":true}`) },
			[]string{`error daemon.json: ` + h.conf + ` has "bip"`, `error daemon.json: ` + h.conf + ` has "mtu"`}},
		{"no options, other bip", func() error { return errors.Join(os.Remove(options), write(h.conf, `{"bip":"10.5.9.1/24"}`)) },
			[]string{`warning daemon.json: ` + h.conf + ` has "bip" 10.5.9.1/24`}},
		{"no options, own bip", func() error { return errors.Join(os.Remove(options), write(h.conf, `{"bip":"10.5.1.1/24"}`)) }, nil},
		{"no JSON", func() error { return write(h.conf, `{"bip":`) }, []string{"warning daemon.json: " + h.conf + " is not JSON"}},
	} {
		h.write(h.file())
		check(t, write(h.conf, ""), c.breakIt())
		t.Run(c.name, func(t *testing.T) { wantProblems(t, h.look(h.report()).Problems, c.want...) })
	}
}
