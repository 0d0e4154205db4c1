package diagnose

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// TestDockerBesideCNI: on a host whose containers are CNI's, Docker's own addresses are
// nobody's trouble, unless somebody wants them to be flannel's.
func TestDockerBesideCNI(t *testing.T) {
	const flannel = `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"flannel"},{"type":"portmap"}]}`
	const other = `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`
	const warning, bad = "warning bridge docker0: docker0 has 172.17.0.1/16", "error bridge docker0: docker0 has 172.17.0.1/16"
	for _, c := range []struct {
		name          string
		bridge        string // of CNI, with an address of the subnet
		conf, file    string // in net.d
		options, busy bool   // docker_opts.env is there, a container of Docker's runs
		json          string // daemon.json
		want          string
	}{
		{"plain Docker", "", "", "", false, true, "", bad},
		{"plain Docker, idle", "", "", "", false, false, "", warning},
		{"another CNI network", "", other, "n.conflist", false, true, "", bad},
		{"no pod yet", "", flannel, "10-flannel.conflist", false, true, "", ""},
		{"no pod yet, plain configuration", "", `{"type":"flannel"}`, "n.conf", false, true, "", ""},
		{"a backup of a configuration", "", flannel, "n.conflist.bak", false, true, "", bad},
		{"no pod yet, options are there", "", flannel, "n.conflist", true, true, "", warning},
		{"no pod yet, bip is the subnet's", "", flannel, "n.conflist", false, true, `{"bip":"10.5.1.1/24"}`, warning},
		{"no pod yet, another bip", "", flannel, "n.conflist", false, true, `{"bip":"172.17.0.1/16","mtu":1400}`, ""},
		{"no pod yet, idle", "", flannel, "n.conflist", true, false, "", ""},
		{"pods", "cni0", "", "", false, true, "", ""},
		{"pods, options are there", "cni0", "", "", true, true, `{"bip":"172.17.0.1/16"}`, ""},
		{"containers of nerdctl", "cni-flannel0", "", "", true, true, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 1, "4", `{"Type":"host-gw"}`).hosts[0]
			check(t, h.DelLink("docker0"), h.Bridge("docker0"), h.AddAddr("docker0", netip.MustParsePrefix("172.17.0.1/16")))
			if c.bridge != "" {
				check(t, h.Bridge(c.bridge), h.AddAddr(c.bridge, netip.MustParsePrefix("10.5.1.1/24")))
			}
			if c.busy {
				h.port("docker0", "veth1", 1500)
			}
			if c.file != "" {
				check(t, os.Mkdir(h.cni(), 0o755), os.WriteFile(filepath.Join(h.cni(), c.file), []byte(c.conf), 0o644))
			}
			if !c.options {
				check(t, os.Remove(filepath.Join(h.dir, "docker_opts.env")))
			}
			check(t, os.WriteFile(h.conf, []byte(c.json), 0o644))
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			wantProblems(t, h.look(h.report()).Problems, want...)
		})
	}
}

// TestForeignBridges: a bridge with another subnet's address is a container runtime's,
// whatever its name, unless it is a way out of this host.
func TestForeignBridges(t *testing.T) {
	for _, c := range []struct {
		name, bridge, addr string
		lan                bool
		want, remedy       string
	}{
		{"CNI", "cni-flannel0", "10.5.9.1/24", false, "error bridge cni-flannel0: cni-flannel0 has 10.5.9.1/24, but this host's subnet is 10.5.1.0/24", "ip link delete cni-flannel0"},
		{"podman", "podman0", "10.5.9.1/24", false, "error bridge podman0: podman0 has 10.5.9.1/24", "ip link delete podman0"},
		{"any", "mynet", "10.5.9.1/24", false, "error bridge mynet: mynet has 10.5.9.1/24", "ip link delete mynet"},
		{"network of Docker's", "br-0123456789ab", "10.5.9.1/24", false, "error bridge br-0123456789ab: br-0123456789ab has 10.5.9.1/24", "docker network rm"},
		{"LAN", "lan0", "10.5.9.1/24", true, "error interface lan0: lan0 has the address 10.5.9.1/24, and the overlay network is 10.5.0.0/16", "another range"},
		{"virtual machines", "virbr0", "192.168.122.1/24", false, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 1, "4", `{"Type":"host-gw"}`).hosts[0]
			check(t, h.Bridge(c.bridge), h.AddAddr(c.bridge, netip.MustParsePrefix(c.addr)))
			h.port(c.bridge, "veth1", 1500)
			if c.lan {
				check(t, h.AddRoute(netip.MustParsePrefix("203.0.113.0/24"), netip.MustParseAddr("10.5.9.77"), c.bridge, 0))
			}
			r := h.look(h.report())
			if c.want == "" {
				wantProblems(t, r.Problems)
				if len(r.Bridges) != 1 || r.Bridges[0].Name != "docker0" {
					t.Errorf("%s is listed: %+v", c.bridge, r.Bridges)
				}
				return
			}
			wantProblems(t, r.Problems, c.want)
			if len(r.Problems) == 1 && !strings.Contains(r.Problems[0].Remedy, c.remedy) {
				t.Errorf("remedy %q, want %s", r.Problems[0].Remedy, c.remedy)
			}
		})
	}
}

// TestFormerSubnetIsAPeers: an idle bridge that takes a peer's packets is no warning.
func TestFormerSubnetIsAPeers(t *testing.T) {
	f, h := made()
	h.links = append(h.links, link{name: "cni0", kind: "bridge", up: true, addrs: prefixes("10.5.2.1/24")})
	judge(f.r, gather(f.r, h), h)
	wantProblems(t, f.r.Problems, "error bridge cni0: cni0 has 10.5.2.1/24")
}

// TestOptionFiles: backups and half-written files of Docker's options are nobody's.
func TestOptionFiles(t *testing.T) {
	t.Parallel()
	h := newCluster(t, 1, "4", `{"Type":"host-gw"}`).hosts[0]
	const old = `DOCKER_OPTS="--bip=10.5.9.1/24"`
	for _, name := range []string{"docker_opts.env.bak", ".docker_opts.env.123", "docker_opts.env~", "my_docker_opts.env"} {
		check(t, os.WriteFile(filepath.Join(h.dir, name), []byte(old), 0o644))
	}
	wantProblems(t, h.look(h.report()).Problems)
	check(t, os.WriteFile(filepath.Join(h.dir, "flannel_docker_opts.env"), []byte(old), 0o644))
	wantProblems(t, h.look(h.report()).Problems, "error docker-options: "+h.dir+"/flannel_docker_opts.env has --bip=10.5.9.1/24")
}

// policy adds a rule of policy routing, and a route to its table.
func (h *labHost) policy(pref, table int, src string, r *netlink.Route) {
	h.c.t.Helper()
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Family = pref, table, netlink.FAMILY_V4
	if src != "" {
		rule.Src = rtnl.IPNet(netip.MustParsePrefix(src))
	}
	l, err := h.Netlink().LinkByName("eth0")
	check(h.c.t, err)
	r.Table = table
	if r.Type == 0 {
		r.LinkIndex, r.Gw = l.Attrs().Index, netip.MustParseAddr("192.0.2.254").AsSlice()
	}
	check(h.c.t, h.Netlink().RuleAdd(rule), h.Netlink().RouteAdd(r))
}

// TestPolicyRouting asks the kernel, whose rules the main table knows nothing of.
func TestPolicyRouting(t *testing.T) {
	wide := rtnl.IPNet(netip.MustParsePrefix("10.0.0.0/8"))
	for _, c := range []struct {
		name    string
		part    string
		breakIt func(h *labHost)
		want    []string
	}{
		{"a rule", `{"Type":"vxlan"}`, func(h *labHost) { h.policy(100, 77, "", &netlink.Route{Dst: wide}) },
			[]string{"error rule 100: packets to 10.5.2.0/24, 10.5.3.0/24 are routed to 192.0.2.254 by eth0, not by the overlay as the main table says: rule 100 (lookup 77) comes before it"}},
		{"a rule for containers", `{"Type":"udp"}`, func(h *labHost) { h.policy(100, 77, "10.5.1.0/24", &netlink.Route{Dst: wide}) },
			[]string{"error rule 100: containers' packets to 10.5.2.0/24, 10.5.3.0/24 are routed to 192.0.2.254 by eth0"}},
		{"beside host-gw", `{"Type":"host-gw"}`, func(h *labHost) { h.policy(100, 77, "", &netlink.Route{Dst: wide}) }, []string{"error rule 100: packets to 10.5.2.0/24"}},
		{"a hole", `{"Type":"vxlan"}`, func(h *labHost) { h.policy(100, 77, "", &netlink.Route{Dst: wide, Type: 6}) }, []string{"error rule: packets to 10.5.2.0/24, 10.5.3.0/24 are refused by the kernel"}},
		{"another network's rule", `{"Type":"vxlan"}`, func(h *labHost) {
			h.policy(100, 77, "", &netlink.Route{Dst: rtnl.IPNet(netip.MustParsePrefix("203.0.113.0/24"))})
		}, nil},
		{"a rule that comes later", `{"Type":"vxlan"}`, func(h *labHost) { h.policy(40000, 77, "", &netlink.Route{Dst: wide}) }, nil},
		{"the overlay's own table", `{"Type":"host-gw"}`, func(h *labHost) {
			h.policy(100, 77, "", &netlink.Route{Dst: wide})
			l, err := h.Netlink().LinkByName("eth0")
			check(h.c.t, err)
			for _, o := range h.others() {
				check(h.c.t, h.Netlink().RouteAdd(&netlink.Route{Table: 77, LinkIndex: l.Attrs().Index, Dst: rtnl.IPNet(o.Subnet), Gw: o.Attrs.PublicIP.AsSlice()}))
			}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 3, "4", c.part).hosts[0]
			h.port("docker0", "veth1", 1400)
			c.breakIt(h)
			wantProblems(t, h.look(h.report()).Problems, c.want...)
		})
	}
}

// TestManyWays: of very many peers some are asked for, and all of as many as there may be.
func TestManyWays(t *testing.T) {
	t.Parallel()
	h := newCluster(t, 1, "4", `{"Type":"udp"}`).hosts[0]
	h.policy(100, 77, "", &netlink.Route{Dst: rtnl.IPNet(netip.MustParsePrefix("10.0.0.0/8"))})
	r := h.report()
	for i := range 2 * mostWays {
		r.Peers = append(r.Peers, report.Peer{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(2 + i>>4), byte(i << 4)}), 28)})
	}
	check(t, h.Do(func() error {
		s := snapshot(context.Background())
		f := gather(r, s)
		if got := f.routed(s); len(got) != mostWays || got[1] != r.Peers[2].Subnet {
			return fmt.Errorf("%d peers, the second %v", len(got), got[1])
		}
		began := time.Now()
		policies, ways := readWays(context.Background(), f, s)
		t.Logf("%d ways in %v", len(ways), time.Since(began))
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if _, none := readWays(ended, f, s); len(none) > 0 || len(ways) == 0 || len(policies) != 1 {
			return fmt.Errorf("%d ways, %d after the end, policies %+v", len(ways), len(none), policies)
		}
		return nil
	}))
}

// TestDeviceCounters: what the kernel counts is told where the daemon can't count.
func TestDeviceCounters(t *testing.T) {
	for _, c := range []struct{ part, families, devices string }{
		{`{"Type":"vxlan"}`, "46", "flannel.1 flannel-v6.1"}, {`{"Type":"ipip"}`, "4", "flannel.ipip"}, {`{"Type":"wireguard"}`, "4", "flannel-wg"},
		{`{"Type":"host-gw"}`, "4", ""},
	} {
		t.Run(c.part, func(t *testing.T) {
			t.Parallel()
			h := newCluster(t, 2, c.families, c.part).hosts[0]
			r := h.look(h.report())
			h.ping(r)
			before, r := r, h.look(h.report())
			var names []string
			for i, d := range r.Host.Counters {
				names = append(names, d.Device)
				if was := before.Host.Counters[i]; d.TX.Packets <= was.TX.Packets || d.RX.Bytes <= was.RX.Bytes {
					t.Errorf("%+v after pings, %+v before", d, was)
				}
			}
			if got := strings.Join(names, " "); got != c.devices {
				t.Errorf("counters of %q, want %q", got, c.devices)
			}
			r.Traffic = new(report.Traffic)
			if r.Host.Counters = nil; len(h.look(r).Host.Counters) > 0 {
				t.Error("two counts of the same")
			}
		})
	}
}
