package diagnose

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// A judged is a made up host that works, but for one thing.
type judged struct {
	name   string
	change func(r *report.Report, h *host)
	want   []string
}

func TestJudge(t *testing.T) {
	for _, c := range slices.Concat(routeCases(), otherCases()) {
		t.Run(c.name, func(t *testing.T) {
			f, h := made()
			c.change(f.r, &h)
			judge(f.r, gather(f.r, h), h)
			wantProblems(t, f.r.Problems, c.want...)
		})
	}
}

func routeCases() []judged {
	addr := netip.MustParseAddr
	add := func(h *host, r route) { h.routes = append(h.routes, r) }
	via := func(dst, gw, dev string) route {
		return route{dst: netip.MustParsePrefix(dst), gw: addr(gw), dev: dev}
	}
	to := func(dst, dev string) route { return route{dst: netip.MustParsePrefix(dst), dev: dev} }
	return []judged{
		{"direct route", func(_ *report.Report, h *host) { h.routes[3] = via("10.5.2.0/24", "192.0.2.2", "eth0") }, nil},
		{"route by a stranger", func(_ *report.Report, h *host) { h.routes[3] = via("10.5.2.0/24", "192.0.2.3", "eth0") }, []string{"error route 10.5.2.0/24"}},
		{"peer of another backend", func(r *report.Report, h *host) { r.Peers[0].Backend = "host-gw"; h.routes = h.routes[:3] }, nil},
		{"peer without route", func(_ *report.Report, h *host) { h.routes = h.routes[:3] }, []string{"error route: there is no route to 1 subnet of 1 peers (10.5.2.0/24)"}},
		{"peer without route, and known", func(r *report.Report, h *host) { h.routes, r.Unserved = h.routes[:3], []string{"why"} }, nil},
		{"wider route", func(_ *report.Report, h *host) { add(h, to("10.0.0.0/8", "tun1")) }, nil},
		{"the same by a VPN", func(_ *report.Report, h *host) { add(h, to("10.5.0.0/16", "tun1")) },
			[]string{"error route 10.5.0.0/16: 10.5.0.0/16 is part of the overlay network 10.5.0.0/16, but is routed to tun1"}},
		{"the same, but outranked", func(r *report.Report, h *host) {
			r.Network.Backend, r.Host.Device, r.Peers[0].Backend = "udp", "flannel.1", ""
			h.routes[3] = to("10.5.0.0/16", "flannel.1")
			other := to("10.5.0.0/16", "tun1")
			other.metric = 100
			add(h, other)
		}, nil},
		{"a guard", func(_ *report.Report, h *host) {
			add(h, route{dst: netip.MustParsePrefix("10.5.0.0/16"), dead: true, metric: 9})
		}, nil},
		{"somebody's blocks", func(_ *report.Report, h *host) { add(h, route{dst: netip.MustParsePrefix("10.5.64.0/26"), dead: true}) },
			[]string{"warning route 10.5.64.0/26: 10.5.64.0/26 is part of the overlay network 10.5.0.0/16, but is routed nowhere"}},
		{"containers' own routes", func(_ *report.Report, h *host) { add(h, to("10.5.1.7/32", "veth7")) }, nil},
		{"another backend's leftovers", func(r *report.Report, h *host) {
			r.Network.Backend, r.Peers[0].Backend, r.Lease.MTU = "host-gw", "host-gw", 1500
		},
			[]string{"error route 10.5.2.0/24: 10.5.2.0/24 is part of the overlay network 10.5.0.0/16, but is routed to 10.5.2.0 by flannel.1"}},
		{"an operator's routes", func(r *report.Report, h *host) {
			r.Network.Backend = "alloc"
			h.routes[3] = via("10.5.2.0/24", "192.0.2.9", "eth0")
		}, nil},
		{"no daemon, some gateway", func(r *report.Report, h *host) {
			*r = report.Report{}
			h.files.subnetErr, h.files.subnet = nil, subnetenv.File{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: netip.MustParsePrefix("10.5.1.0/24"), MTU: 1450}
			h.routes[3] = via("10.5.2.0/24", "192.0.2.2", "eth0")
		}, nil},
	}
}

func otherCases() []judged {
	drop6 := filter{name: "ip6tables", v6: true, base: []string{"FORWARD"}, chains: map[string]*chain{"FORWARD": {drop: true}}}
	return []judged{
		{"nothing", func(*report.Report, *host) {}, nil},
		{"not looked at", func(_ *report.Report, h *host) { *h = host{files: h.files} }, nil},
		{"nothing known", func(r *report.Report, h *host) { *r = report.Report{} }, nil},
		{"no device at all", func(r *report.Report, h *host) {
			r.Network.Backend, r.Peers = "udp", nil
			h.links = slices.Delete(h.links, 2, 3)
			h.routes = h.routes[:3]
		}, []string{"error device: there is no device of the backend udp"}},
		{"too long a name", func(r *report.Report, h *host) {
			r.Network.Config = json.RawMessage(`{"type":"vxlan","vni":16777215}`)
			h.links[2].name, h.routes[3].dev = "flannel.xffffff", "flannel.xffffff"
		}, nil},
		{"IPv6 is not forwarded", func(r *report.Report, h *host) {
			r.Lease.Subnet6 = netip.MustParsePrefix("fd00:5:1::/64")
			r.Network.IPv6 = netip.MustParsePrefix("fd00:5::/48")
			h.links = append(h.links, link{name: "flannel-v6.1", kind: "vxlan", up: true, mtu: 1430, addrs: prefixes("fd00:5:1::/128")})
			h.sysctl["net.ipv6.conf.all.forwarding"] = "0"
			h.links[2].mtu, h.links[3].portMTU, r.Lease.MTU = 1450, 1430, 1430
			h.filters = []filter{drop6}
		}, []string{
			"error forwarding: net.ipv6.conf.all.forwarding is 0", "error filter ip6tables: ip6tables drops containers' packets to or from other hosts (policy of FORWARD)",
		}},
		{"another family's filter", func(_ *report.Report, h *host) { h.filters = []filter{drop6} }, nil},
		{"two addresses on a bridge", func(_ *report.Report, h *host) { h.links[3].addrs = prefixes("10.5.1.1/24", "10.5.9.1/24") },
			[]string{"warning bridge docker0: docker0 has 10.5.9.1/24 besides"}},
		{"a bridge of an operator's", func(_ *report.Report, h *host) {
			h.links = append(h.links, link{name: "br0", kind: "bridge", up: true, mtu: 1500, addrs: prefixes("192.168.1.1/24"), ports: 3, portMTU: 1500})
		}, nil},
		{"two runtimes run", func(_ *report.Report, h *host) {
			h.links = append(h.links, link{name: "cni0", kind: "bridge", up: true, mtu: 1450, addrs: prefixes("10.5.1.129/25"), ports: 2, portMTU: 1450})
		}, []string{"error bridge cni0: the bridges docker0, cni0 all"}},
		{"no subnet file", func(_ *report.Report, h *host) { h.files.subnetPath, h.files.subnetErr = "subnet.env", fs.ErrNotExist },
			[]string{"error subnet-file: subnet.env is not there: somebody has removed it"}},
		{"no subnet file, and known", func(r *report.Report, h *host) {
			h.files.subnetErr, r.Problems = fs.ErrNotExist, []report.Problem{{Severity: report.Error, Subject: "subnet-file", Text: "why", Remedy: "what"}}
		}, []string{"error subnet-file: why"}},
		{"no subnet file, since the daemon waits", func(r *report.Report, h *host) {
			*r = report.Report{Daemon: r.Daemon}
			h.files.subnetPath, h.files.subnetErr = "subnet.env", fs.ErrNotExist
		}, nil},
		{"no subnet file, no daemon", func(r *report.Report, h *host) {
			*r = report.Report{}
			h.files.subnetPath, h.files.subnetErr = "subnet.env", fs.ErrNotExist
		}, []string{"error subnet-file: subnet.env is not there: no flanneld has had a subnet"}},
		{"a secret subnet file", func(_ *report.Report, h *host) { h.files.subnetErr = fs.ErrPermission }, nil},
		{"another MTU", func(_ *report.Report, h *host) {
			h.files = files{subnetPath: "subnet.env", subnet: subnetenv.File{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: netip.MustParsePrefix("10.5.1.0/24"), MTU: 1500}}
		}, []string{"error subnet-file: subnet.env has MTU 1500 instead of 1450"}},
	}
}

func TestLast(t *testing.T) {
	for in, want := range map[string]string{
		"10.5.1.0/24": "10.5.1.254", "10.5.0.0/16": "10.5.255.254", "10.5.1.0/22": "10.5.3.254", "10.5.1.4/30": "10.5.1.6",
		"10.5.1.4/31": "10.5.1.4", "10.5.1.4/32": "10.5.1.4", "fd00:5::/64": "fd00:5::ffff:ffff:ffff:fffe",
	} {
		if got := last(netip.MustParsePrefix(in)); got != netip.MustParseAddr(want) {
			t.Errorf("last(%s) = %v, want %s", in, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		text string
		want map[string]string
	}{
		{"DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n", map[string]string{"bip": "10.1.74.1/24", "mtu": "1472"}},
		{"DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\r\n", map[string]string{"bip": "10.1.74.1/24", "ip-masq": "true", "mtu": "1472"}},
		{"", map[string]string{}}, {"--", map[string]string{}}, {"X='--storage-driver=x' -g /x", map[string]string{"storage-driver": "x"}},
	} {
		if diff := cmp.Diff(c.want, options([]byte(c.text))); diff != "" {
			t.Errorf("%q (- wanted, + found):\n%s", c.text, diff)
		}
	}
}

func TestRuleWords(t *testing.T) {
	got := splitRule(`-A X -m comment --comment "a \"b\" c" --log-prefix "" -j Y`)
	if diff := cmp.Diff([]string{"-A", "X", "-m", "comment", "--comment", `a "b" c`, "--log-prefix", "", "-j", "Y"}, got); diff != "" {
		t.Error(diff)
	}
	for in, want := range map[string]string{"10.5.0.0/16": "10.5.0.0/16", "10.5.0.1": "10.5.0.1/32", "10.0.0.0/255.0.0.0": "10.0.0.0/8", "fd00::/8": "fd00::/8"} {
		if p, err := parsePrefix(in); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
	if _, err := parsePrefix("example.net"); err == nil {
		t.Error("a name is no prefix")
	}
}

// TestWalkEnds: chains that lead to each other, which no kernel has, end.
func TestWalkEnds(t *testing.T) {
	f := parseSave("*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n-A A -j B\n-A A -j B\n-A B -j A\n-A B -j A\nCOMMIT\n", "x", false)
	f.walk("FORWARD", packet{src: netip.MustParseAddr("10.5.1.2"), dst: netip.MustParseAddr("10.5.2.2")})
	if v := f.walk("none", packet{}); v.dropped {
		t.Error("a chain that is not there drops")
	}
}

// TestRouteDel: the command of a remedy removes that route and no other.
func TestRouteDel(t *testing.T) {
	dst, dst6 := netip.MustParsePrefix("10.5.64.0/26"), netip.MustParsePrefix("fd00:5::/64")
	gw, gw6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("fe80::1")
	for want, r := range map[string]route{
		"ip route del 10.5.64.0/26 dev tun1":                          {dst: dst, dev: "tun1"},
		"ip route del 10.5.64.0/26 via 192.0.2.9 dev eth0 metric 100": {dst: dst, gw: gw, dev: "eth0", metric: 100},
		"ip route del 10.5.64.0/26 via inet6 fe80::1 dev eth0":        {dst: dst, gw: gw6, dev: "eth0"},
		"ip route del blackhole 10.5.64.0/26 metric 2147483647":       {dst: dst, dead: true, kind: "blackhole", metric: 2147483647},
		"ip route del prohibit 10.5.64.0/26":                          {dst: dst, dead: true, kind: "prohibit"},
		"ip route del fd00:5::/64 via fe80::1 dev eth0 metric 1024":   {dst: dst6, dev: "eth0", gw: gw6, metric: 1024},
	} {
		f, h := made()
		f.networks = append(f.networks, netip.MustParsePrefix("fd00:5::/48"))
		p, bad := f.judgeRoute(h, r)
		if !bad || !strings.HasSuffix(p.Remedy, ": "+want) {
			t.Errorf("%+v: %v, %q, want %s", r, bad, p.Remedy, want)
		}
	}
}
