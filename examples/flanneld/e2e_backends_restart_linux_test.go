package main

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
)

// TestKernelCarriesOn: ended or killed and started again, a daemon of a backend whose
// packets the kernel carries loses none, and its lease says what it said. After cleanup,
// too. With -cleanup-on-exit nothing is left.
func TestKernelCarriesOn(t *testing.T) {
	eachBackend(t, func(t *testing.T, name string) {
		c := newCluster(t, 2, etcdtest.Config{NoV2: true})
		k := c.keysOf(3)
		k.set(configKey, networkOf(`{"Type":"`+name+`"}`))
		all := c.members(c.hosts)
		m, p := all[0], all[1]
		streams := between(m.pod, p.pod)
		lease, before := m.lease(k), m.kernel()
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
			c.must(m.proc.Signal(sig))
			m.proc.wait()
			if got := m.kernel(); !slices.Equal(got, before) {
				t.Errorf("after %v the kernel has\n%q, before\n%q", sig, got, before)
			}
			began := time.Now()
			m.again()
			t.Logf("after %v ready again after %v", sig, time.Since(began))
			m.checkKernel("after "+sig.String()+" and a start", before...)
			if got := m.lease(k); got != lease {
				t.Errorf("after %v the lease is %s, was %s", sig, got, lease)
			}
			noneLost(sig.String(), streams)
		}
		m.ends()
		if code, _, log := m.run("cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d: %s", code, log)
		}
		m.checkKernel("after cleanup")
		m.args = append(m.args, "-cleanup-on-exit")
		m.proc = m.start(m.args...)
		m.proc.ready()
		if got := m.lease(k); got != lease {
			t.Errorf("after cleanup the lease is %s, was %s", got, lease)
		}
		m.checkKernel("after cleanup and a start", before...)
		for _, s := range streams {
			s.flows()
		}
		m.ends()
		m.checkKernel("after the end with -cleanup-on-exit")
		for _, s := range streams {
			s.stop()
		}
		k.setFor(subnetsKey+p.file.Key().String(), `{"PublicIP":"192.0.2.77"}`, time.Hour)
		if code := p.proc.wait(); code != 1 {
			t.Errorf("exit %d after another host has the subnet, want 1", code)
		}
		p.checkKernel("after another host has the subnet")
	}, "vxlan", "host-gw")
}

// TestVXLANWithoutEtcd: nothing that happens to etcd withdraws a peer.
func TestVXLANWithoutEtcd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	k := c.keysOf(3)
	k.set(configKey, networkOf(`{"Type":"vxlan"}`))
	all := c.members(c.hosts)
	streams := between(all[0].pod, all[1].pod)
	var before [2][]string
	var leases [2]string
	for i, m := range all {
		before[i], leases[i] = m.kernel(), m.lease(k)
	}
	for _, r := range []struct {
		what string
		do   func()
	}{
		{"restarted", c.etcd.Restart},
		{"stopped for a while", func() { c.etcd.Kill(); time.Sleep(time.Second); k.Run() }},
		{"compacted", func() { k.set("/junk", "1"); k.compact() }},
		{"a lease is deleted", func() { k.remove(subnetsKey + all[0].file.Key().String()) }},
		{"wiped", func() { c.etcd.Wipe(); k.set(configKey, networkOf(`{"Type":"vxlan"}`)) }},
	} {
		r.do()
		for i, m := range all {
			eventually(t, r.what+": "+m.Name()+" has its lease", func() bool { return m.lease(k) == leases[i] })
			if got := m.kernel(); !slices.Equal(got, before[i]) {
				t.Errorf("%s: %s has\n%q in the kernel, had\n%q", r.what, m.Name(), got, before[i])
			}
		}
	}
	noneLost("all of this", streams)
	for _, m := range all {
		m.readyz(200, "node: ok")
		m.ends()
	}
}
