package diagnose

import (
	"fmt"
	"testing"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/internal/dockertest"
)

// TestDocker looks at a host with a real Docker engine: one that was started without
// flanneld's options, and then with them.
func TestDocker(t *testing.T) {
	t.Parallel()
	dockertest.Require(t)
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	// Docker makes DROP the policy of FORWARD when it is the one to switch forwarding on.
	check(t, h.DelLink("docker0"), h.Sysctl("net/ipv4/ip_forward", "0"))
	kept := func() *report.Report { // its rules are looked after
		r := h.report()
		r.Rules = &report.Rules{Forward: true}
		return r
	}
	e := dockertest.Start(t, h.NS)
	e.Ready()
	busy := dockertest.Config{Cmd: []string{"sleep", "1000"}}
	c := e.Run(busy)
	wantProblems(t, h.look(kept()).Problems, "error bridge docker0: docker0 has 172.17.0.1/16, not an address of this host's subnet 10.5.1.0/24")
	c.Remove()
	e.Stop()
	e.Again(fmt.Sprintf("--bip=%v/24", h.own.Subnet.Addr().Next()), fmt.Sprintf("--mtu=%d", h.mtu))
	e.Ready()
	e.Run(busy)
	r := h.look(kept())
	wantProblems(t, r.Problems)
	if len(r.Bridges) != 1 || r.Bridges[0].Ports != 1 || r.Bridges[0].Addrs[0].String() != "10.5.1.1/24" {
		t.Errorf("bridges: %+v", r.Bridges)
	}
	wantProblems(t, h.look(h.report()).Problems, "(policy of FORWARD): no rule accepts those of 10.5.0.0/16")
}
