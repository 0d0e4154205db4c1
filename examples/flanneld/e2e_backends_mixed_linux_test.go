package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestMixedNetwork: an operator changes the backend while the hosts run. Those that have
// been restarted and those that have not ignore each other, and say so once; those of a
// kind reach each other. A host that is changed, and changed back, has nothing of the
// other backend that takes packets.
func TestMixedNetwork(t *testing.T) {
	t.Parallel()
	netlab.Require(t, netlab.NeedVXLAN)
	c := newCluster(t, 4, etcdtest.Config{NoV2: true})
	k := c.keysOf(3)
	config := func(backend string) { k.set(configKey, networkOf(`{"Type":"`+backend+`"}`)) }
	config("udp")
	old := c.members(c.hosts[:2])
	config("vxlan")
	young := c.members(c.hosts[2:])
	reach(old[0].pod, old[1].pod)
	reach(young[0].pod, young[1].pod)
	for _, pair := range [][2][]*member{{old, young}, {young, old}} {
		for _, m := range pair[0] {
			m.hasMetric("flanneld_peers", 3)
			m.readyz(200, "node: ok")
			for _, p := range pair[1] {
				m.ignores(p)
			}
		}
	}
	if pingOnce(t.Context(), old[0].pod.NS, old[0].pod.addr4, young[0].pod.addr4) == nil {
		t.Error("an answer from a host with another backend")
	}
	a, b := young[0], young[1]
	for _, backend := range []string{"udp", "vxlan"} {
		config(backend)
		for _, m := range young {
			m.ends()
		}
		a.again()
		b.again()
		for i, m := range young {
			o := young[1-i]
			want := leaseOf(m.addr)
			if backend == "vxlan" {
				want = vxlanLease(m.addr, m.mac("flannel.1"))
			}
			if got := m.lease(k); got != want {
				t.Errorf("%s changed to %s has the lease %s, want %s", m.Name(), backend, got, want)
			}
			eventually(t, m.Name()+" changed to "+backend+" has nothing else that takes packets", func() bool {
				routes := m.mentions(o.file.Subnet.Masked().String())
				if backend == "vxlan" {
					return len(routes) == 1 && strings.Contains(routes[0], "dev flannel.1") && len(m.mentions("10.5.0.0/16")) == 0
				}
				return len(routes) == 0 && len(m.mentions("10.5.0.0/16")) == 1
			})
		}
		reach(a.pod, b.pod)
		if backend == "udp" {
			reach(a.pod, old[0].pod)
		}
	}
	for _, m := range young {
		m.ends()
		if code, _, log := m.run("cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d: %s", code, log)
		}
		m.checkKernel("after cleanup")
	}
}

// ignores checks that a daemon has nothing for a host in the kernel, and has said so in
// one line.
func (m *member) ignores(p *member) {
	m.c.t.Helper()
	if got := append(m.uses(p.addr.String()), m.mentions(p.file.Subnet.Masked().Addr().String())...); len(got) > 0 {
		m.c.t.Errorf("%s: for a host with another backend the kernel has %v", m.Name(), got)
	}
	var lines []string
	for line := range strings.Lines(m.proc.log.String()) {
		if strings.Contains(line, p.file.Key().String()) {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "backend") || !strings.Contains(lines[0], "level=INFO") {
		m.c.t.Errorf("%s: of %v, which has another backend, the log has\n%s", m.Name(), p.addr, strings.Join(lines, ""))
	}
}

// TestUnknownBackend: what this program or this kernel has not ends the daemon with 1 and
// one line that says what to do.
func TestUnknownBackend(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	h := c.hosts[0]
	for _, r := range []struct {
		backend string
		want    []string
	}{
		{"ipsec", []string{"ipsec", "alloc", "aws-vpc", "extension", "gce", "host-gw", "ipip", "udp", "vxlan", "wireguard"}},
		{"ipip", []string{"ipip", "modprobe ipip", "CONFIG_NET_IPIP"}},
	} {
		if r.backend == "ipip" && hasIPIP(h) {
			t.Log("this kernel has ipip: it is not refused")
			continue
		}
		c.etcd.Put(configKey, networkOf(`{"Type":"`+r.backend+`"}`))
		code, _, log := h.run(c.endpoints())
		if n := strings.Count(log, "level=ERROR"); code != 1 || n != 1 {
			t.Errorf("%s: exit %d, %d lines of level ERROR, want 1 and 1:\n%s", r.backend, code, n, log)
		}
		last := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
		for _, word := range r.want {
			if !strings.Contains(last, word) {
				t.Errorf("%s: the last line has nothing of %q: %s", r.backend, word, last)
			}
		}
		if got := h.kernel(); len(got) > 0 {
			t.Errorf("%s: left in the kernel: %v", r.backend, got)
		}
	}
}

// hasIPIP reports whether the kernel has that kind of device.
func hasIPIP(h *labHost) bool {
	tunnel := &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "try0"}, Local: h.addr.AsSlice()}
	if h.Netlink().LinkAdd(tunnel) != nil {
		return false
	}
	h.c.must(h.DelLink("try0"))
	return true
}

// TestManyPeers: a thousand hosts' leases are in etcd before this one starts. It is ready
// soon, with all of them, and ends as fast as any.
func TestManyPeers(t *testing.T) {
	t.Parallel()
	netlab.Require(t, netlab.NeedVXLAN)
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, `{"Network":"10.5.0.0/16","SubnetLen":28,"SubnetMax":"10.5.50.0","Backend":{"Type":"vxlan"}}`)
	const n = 1000
	put := func(i int, addr netip.Addr) clientv3.Op {
		return clientv3.OpPut(fmt.Sprintf("%s10.5.%d.%d-28", subnetsKey, 100+i/16, i%16*16), vxlanLease(addr, fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255)))
	}
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}) }
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := 0; i < n; i += 100 {
		var ops []clientv3.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, put(j, at(j+1)))
		}
		_, err := c.etcd.V3().Txn(ctx).Then(ops...).Commit()
		c.must(err)
	}
	h := c.hosts[0]
	began := time.Now()
	p := h.start(c.endpoints(), healthPort, healthIP)
	f := p.ready()
	t.Logf("ready with %d peers after %v, of which it used %v of a processor", n, time.Since(began), p.cpu())
	if took := time.Since(began); took > 20*time.Second { // two seconds, and what a busy machine adds
		t.Errorf("ready after %v", took)
	}
	if got := h.kernel(); len(got) != 3*n+2 {
		t.Errorf("%d entries in the kernel when ready, want %d", len(got), 3*n+2)
	}
	used := p.cpu()
	_, err := c.etcd.V3().Do(ctx, put(7, at(2000)))
	c.must(err)
	eventually(t, "one peer has another address", func() bool {
		time.Sleep(50 * time.Millisecond)
		return slices.Contains(h.kernel(), fmt.Sprintf("fdb 02:00:00:00:00:07 dst %v dev flannel.1", at(2000)))
	})
	t.Logf("one changed peer costs %v of a processor", p.cpu()-used)
	for _, args := range [][]string{{c.endpoints(), "-cleanup-on-exit"}, nil} {
		code, took := p.stop()
		t.Logf("ended %v after SIGTERM", took)
		if code != 0 || took > 10*time.Second {
			t.Errorf("exit %d, %v after SIGTERM", code, took)
		}
		if args == nil {
			break
		}
		began = time.Now()
		p = h.start(args...)
		if again := p.ready(); again != f {
			t.Errorf("the subnet file is %+v, was %+v", again, f)
		}
		t.Logf("with all in place ready after %v, of which it used %v of a processor", time.Since(began), p.cpu())
	}
	h.checkKernel("after the end with -cleanup-on-exit")
}
