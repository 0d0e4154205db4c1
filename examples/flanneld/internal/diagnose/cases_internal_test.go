package diagnose

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

func prefixes(all ...string) (list []netip.Prefix) {
	for _, s := range all {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// made is a made up host that works: 10.5.1.0/24 of 10.5.0.0/16, vxlan, one peer.
func made() (facts, host) {
	r := &report.Report{
		Daemon:  &report.Daemon{},
		Network: &report.Network{IPv4: netip.MustParsePrefix("10.5.0.0/16"), Backend: "vxlan"},
		Lease:   &report.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24"), MTU: 1450},
		Host:    &report.Host{Interface: "eth0", MTU: 1500, Addr4: netip.MustParseAddr("192.0.2.1")},
		Peers:   []report.Peer{{Subnet: netip.MustParsePrefix("10.5.2.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2"), Backend: "vxlan"}},
	}
	h := host{
		known: true,
		links: []link{
			{index: 1, name: "lo", kind: "device", up: true, running: true, mtu: 65536, addrs: prefixes("127.0.0.1/8")},
			{index: 2, name: "eth0", kind: "device", up: true, running: true, mtu: 1500, addrs: prefixes("192.0.2.1/24")},
			{index: 3, name: "flannel.1", kind: "vxlan", up: true, running: true, mtu: 1450, addrs: prefixes("10.5.1.0/32")},
			{index: 4, name: "docker0", kind: "bridge", up: true, running: true, mtu: 1450, addrs: prefixes("10.5.1.1/24"), ports: 1, portMTU: 1450},
		},
		routes: []route{
			{dst: netip.MustParsePrefix("0.0.0.0/0"), dev: "eth0", gw: netip.MustParseAddr("192.0.2.254")},
			{dst: netip.MustParsePrefix("192.0.2.0/24"), dev: "eth0", kernel: true},
			{dst: netip.MustParsePrefix("10.5.1.0/24"), dev: "docker0", kernel: true},
			{dst: netip.MustParsePrefix("10.5.2.0/24"), dev: "flannel.1", gw: netip.MustParseAddr("10.5.2.0")},
		},
		sysctl: map[string]string{"net.ipv4.ip_forward": "1"},
		files:  files{subnetErr: errUnnamed},
	}
	return gather(r, h), h
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// wantProblems compares problems with what their severity, subject and text begin with
// or have in them.
func wantProblems(t *testing.T, got []report.Problem, want ...string) {
	t.Helper()
	have := make([]string, 0, len(got))
	for i, p := range got {
		if strings.ContainsAny(p.Text+p.Remedy+p.Subject, "\n") || p.Text == "" || p.Remedy == "" {
			t.Errorf("a problem is not text and remedy of one line each: %+v", p)
		}
		line := fmt.Sprintf("%s %s: %s", p.Severity, p.Subject, p.Text)
		if i < len(want) && strings.Contains(line, want[i]) {
			line = want[i]
		}
		have = append(have, line)
	}
	if diff := cmp.Diff(slices.Clip(want), have); diff != "" && len(want)+len(have) > 0 {
		t.Errorf("problems (- wanted, + found):\n%s", diff)
	}
}
