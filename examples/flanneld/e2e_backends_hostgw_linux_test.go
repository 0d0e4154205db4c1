package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
)

// TestHostGW: three hosts on one Ethernet, and nothing but a route for each peer.
func TestHostGW(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		name, config, file, lease string
		v6                        bool
	}{
		{"IPv4", networkOf(`{"Type":"host-gw"}`),
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n",
			`{"PublicIP":"ADDR4","PublicIPv6":null,"BackendType":"host-gw"}`, false},
		{"both", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}`,
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=SUBNET6\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n",
			`{"PublicIP":"ADDR4","PublicIPv6":"ADDR6","BackendType":"host-gw"}`, true},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, etcdtest.Config{NoV2: true})
			c.addIPv6()
			k := c.keysOf(3)
			k.set(configKey, r.config)
			all := c.members(c.hosts)
			for _, m := range all {
				var lines []string
				for _, p := range all {
					if p == m {
						continue
					}
					lines = append(lines, fmt.Sprintf("route %v via %v dev eth0", p.file.Subnet.Masked(), p.addr))
					if r.v6 {
						lines = append(lines, fmt.Sprintf("route %v via %v dev eth0", p.file.Subnet6.Masked(), p.addr6))
					}
				}
				m.checkKernel("with three hosts", lines...)
				checkFile(t, m.labHost, r.file, m.file)
				want := strings.NewReplacer("ADDR4", m.addr.String(), "ADDR6", m.addr6.String()).Replace(r.lease)
				if got := m.lease(k); got != want {
					t.Errorf("%s: the lease is\n%s, want\n%s", m.Name(), got, want)
				}
			}
			reachAll(all...)
			for _, m := range all {
				m.readyz(200, "node: ok")
			}
		})
	}
}

// TestHostGWBehindRouter: one host is behind a router. The others are ready all the same,
// say so, and reach each other.
func TestHostGWBehindRouter(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, etcdtest.Config{NoV2: true})
	c.farHost(c.hosts[2])
	c.etcd.Put(configKey, networkOf(`{"Type":"host-gw"}`))
	all := c.members(c.hosts)
	near, far := all[:2], all[2]
	reach(near[0].pod, near[1].pod)
	for i, m := range near {
		o := near[1-i]
		m.checkKernel("with a peer behind a router", fmt.Sprintf("route %v via %v dev eth0", o.file.Subnet.Masked(), o.addr))
		m.refuses(far, "router 192.0.2.254")
	}
	for _, m := range near {
		far.refuses(m, "router 198.51.100.254")
	}
	far.checkKernel("behind a router")
	if pingOnce(t.Context(), far.pod.NS, far.pod.addr4, near[0].pod.addr4) == nil {
		t.Error("a host behind a router is reached all the same")
	}
	for _, m := range all {
		m.ends()
	}
}

// refuses checks that a daemon says why it can't serve a peer, and what to do, and not
// again and again.
func (m *member) refuses(p *member, why string) {
	m.c.t.Helper()
	eventually(m.c.t, m.Name()+" says why it refuses "+p.Name(), m.proc.log.has(p.file.Key().String()+" at "+p.addr.String()))
	code, body, err := m.get(healthURL + "/readyz")
	m.c.t.Logf("%s: /readyz: %d %.200q %v", m.Name(), code, body, err)
	n := 0
	for line := range strings.Lines(m.proc.log.String()) {
		if !strings.Contains(line, p.file.Key().String()) {
			continue
		}
		n++
		if !strings.Contains(line, why) || !strings.Contains(line, "vxlan") {
			m.c.t.Errorf("%s: the log does not say why and what to do: %s", m.Name(), line)
		}
	}
	if n > 6 { // by three parts of the daemon, which may see one peer first and then two
		m.c.t.Errorf("%s: %d lines of log about %v", m.Name(), n, p.addr)
	}
}

// TestHostGWBehindNAT: peers know the host by an address that it does not have. It ends
// before it takes a lease.
func TestHostGWBehindNAT(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, networkOf(`{"Type":"host-gw"}`))
	h, before := c.hosts[0], c.etcd.Revision()
	code, _, log := h.run(c.endpoints(), "-public-ip=203.0.113.7")
	if n := strings.Count(log, "level=ERROR"); code != 1 || n != 1 {
		t.Errorf("exit %d, %d lines of level ERROR, want 1 and 1:\n%s", code, n, log)
	}
	for _, word := range []string{"host-gw", "203.0.113.7", "192.0.2.1", "address translation", "vxlan"} {
		if !strings.Contains(log, word) {
			t.Errorf("the log has nothing of %q:\n%s", word, log)
		}
	}
	if now := c.etcd.Revision(); now != before || len(c.etcd.Leases()) > 0 {
		t.Errorf("it has written to etcd: revision %d, then %d; leases %v", before, now, c.etcd.Leases())
	}
	if got := h.kernel(); !slices.Equal(got, nil) {
		t.Errorf("left in the kernel: %v", got)
	}
}
