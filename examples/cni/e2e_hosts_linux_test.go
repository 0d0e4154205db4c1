package main

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
)

// The codes of the CNI specification that we are to use.
const (
	tryAgainLater      = 11
	pluginNotAvailable = 50
)

const (
	v4Network   = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	dualNetwork = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"udp"}}`
	v6Network   = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"udp"}}`
)

// bridgeDevices come with the first pod and stay: bridge removes no bridge.
func bridgeDevices() []string { return []string{"device cni0"} }

// readable checks an error as an operator sees it: one line, with all of the words.
func readable(t *testing.T, e cniError, words ...string) {
	t.Helper()
	if strings.ContainsAny(e.Msg+e.Details, "\n\r") {
		t.Errorf("the error is more than a line: %q, %q", e.Msg, e.Details)
	}
	for _, w := range words {
		if !strings.Contains(e.Msg+" "+e.Details, w) {
			t.Errorf("the error does not say %q: %q, %q", w, e.Msg, e.Details)
		}
	}
}

// TestTwoHosts is the life of pods on two machines with flanneld, from before it runs to
// after it has gone.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	for _, of := range []func(*testing.T) reference{installed, pinned} {
		ref := of(t)
		t.Run(ref.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, ref, v4Network)
			for _, m := range c.machines {
				m.network("cbr0", conflist(ref.version, "cbr0", ""))
			}
			early := tooEarly(t, c.machines[0], ref)
			files := c.both()
			if ref.version == "1.1.0" {
				c.machines[0].succeed("status", "cbr0", "any")
			}
			// The runtime tries again.
			a := &pod{NS: early, m: c.machines[0], name: "early"}
			a.read(c.machines[0].succeed("add", "cbr0", "early"))
			b := c.machines[1].add("cbr0", "b")
			a.check(files[0])
			b.check(files[1])
			reach(a, b)

			// Two pods of one machine: the bridge, no tunnel.
			a2 := c.machines[0].add("cbr0", "a2")
			reach(a, a2)
			checkNotices(t, a)
			deleteAll(t, a, a2, files[0])
			reach(c.machines[0].add("cbr0", "a3"), b)
		})
	}
}

// tooEarly tries to add a pod before there is a subnet, and returns its namespace.
func tooEarly(t *testing.T, m *machine, ref reference) *netlab.NS {
	t.Helper()
	early := m.pod("early")
	before := m.see()
	if ref.version == "1.1.0" {
		if o := m.cnitool("status", "cbr0", "any"); o.code == 0 {
			t.Errorf("STATUS succeeds before flanneld has a subnet: %s", o.stdout)
		}
		if o, e := m.plugin("STATUS", conf(ref.version, "cbr0", "")); o.code == 0 || e.Code != pluginNotAvailable {
			t.Errorf("STATUS before flanneld has a subnet: code %d, want %d: %q", e.Code, pluginNotAvailable, e.Msg)
		}
	}
	o, e := m.plugin("ADD", conf(ref.version, "cbr0", ""), attachment("early")...)
	if o.code == 0 || e.Code != tryAgainLater {
		t.Errorf("ADD before flanneld has a subnet: code %d, want %d: %q", e.Code, tryAgainLater, e.Msg)
	}
	readable(t, e, subnetFile, "flanneld")
	if o := m.cnitool("add", "cbr0", "early"); o.code == 0 || !strings.Contains(o.stderr+o.stdout, subnetFile) {
		t.Errorf("cnitool add: exit code %d, and no word of %s: %q", o.code, subnetFile, o.stderr)
	}
	m.unchanged(before)
	return early
}

// checkNotices: CHECK is content with a pod, and not when it has lost its address.
func checkNotices(t *testing.T, p *pod) {
	t.Helper()
	p.m.succeed("check", "cbr0", p.name)
	link, err := p.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := p.Netlink().AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 {
		t.Fatalf("eth0 has %v, %v", addrs, err)
	}
	routes, err := p.Netlink().RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Netlink().AddrDel(link, &addrs[0]); err != nil {
		t.Fatal(err)
	}
	if o := p.m.cnitool("check", "cbr0", p.name); o.code == 0 {
		t.Errorf("CHECK succeeds without the pod's address: %s", o.stdout)
	}
	// Back it goes, with the routes that the kernel has taken away too.
	if err := p.Netlink().AddrAdd(link, &netlink.Addr{IPNet: addrs[0].IPNet}); err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue
		}
		if err := p.Netlink().RouteAdd(&r); err != nil {
			t.Fatal(err)
		}
	}
	p.m.succeed("check", "cbr0", p.name)
}

// deleteAll removes two pods of one machine, the second when flannel's file has gone.
// What is left then are the bridge and flannel's own.
func deleteAll(t *testing.T, a, b *pod, f subnetenv.File) {
	t.Helper()
	m := a.m
	saved := m.file("/var/lib/cni/flannel/" + containerID(a.name))
	if info, err := os.Stat(saved); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("what DEL needs: %v, %v; want it with mode 0600", info, err)
	}
	for range 2 { // a DEL may come again
		m.succeed("del", "cbr0", a.name)
		if _, err := a.Netlink().LinkByName("eth0"); err == nil {
			t.Error("DEL has left eth0")
		}
	}
	if o, _ := m.plugin("DEL", conf("1.0.0", "cbr0", ""), attachment("nobody")...); o.code != 0 {
		t.Errorf("DEL of a pod that never was: exit code %d: %s", o.code, o.stdout)
	}
	text, err := os.ReadFile(m.file(subnetFile))
	m.must(err)
	m.must(os.Remove(m.file(subnetFile)))
	for range 2 {
		m.succeed("del", "cbr0", b.name)
	}
	m.write(subnetFile, string(text))
	var left []string
	for _, s := range m.see() {
		if strings.HasPrefix(s, "device veth") || strings.HasPrefix(s, "lib/") {
			left = append(left, s)
		}
	}
	if len(left) > 0 {
		t.Errorf("%s: left after all pods (of %s) were deleted: %v", m.Name(), f.Subnet, left)
	}
	if _, err := m.Netlink().LinkByName("cni0"); err != nil {
		t.Errorf("the bridge: %v", err)
	}
}

// TestFamilies: networks of both families, and of IPv6 alone.
func TestFamilies(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{"dual stack": dualNetwork, "IPv6 alone": v6Network} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ref := installed(t)
			c := newCluster(t, ref, config)
			files := c.both()
			var pods [2]*pod
			for i, m := range c.machines {
				m.network("cbr0", conflist(ref.version, "cbr0", ""))
				pods[i] = m.add("cbr0", "p")
				pods[i].check(files[i])
			}
			reach(pods[0], pods[1])
			for _, p := range pods {
				p.m.succeed("check", "cbr0", "p")
				p.m.succeed("del", "cbr0", "p")
				for _, s := range p.m.see() {
					if strings.HasPrefix(s, "lib/") || strings.HasPrefix(s, "device veth") {
						t.Errorf("%s: left: %s", p.m.Name(), s)
					}
				}
			}
		})
	}
}

// TestManyPods: a machine that starts, and ends, all its pods at once.
func TestManyPods(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.network("cbr0", conflist(ref.version, "cbr0", ""))
	before := m.see()
	m.write(subnetFile, goodFile)
	const pods = 20
	name := func(i int) string { return "p" + string(rune('a'+i)) }
	var all []*pod
	for i := range pods {
		all = append(all, &pod{NS: m.pod(name(i)), m: m, name: name(i)})
	}
	var out [pods]outcome
	atOnce := func(verb string) {
		var wg sync.WaitGroup
		for i := range pods {
			wg.Go(func() { out[i] = m.cnitool(verb, "cbr0", name(i)) })
		}
		wg.Wait()
		for i, o := range out {
			if o.code != 0 {
				t.Errorf("%s %s: %s%s", verb, name(i), o.stdout, o.stderr)
			}
		}
	}
	atOnce("add")
	if t.Failed() {
		return
	}
	seen := make(map[string]string)
	for i, p := range all {
		p.read(out[i].stdout)
		for _, a := range p.addrs {
			if other := seen[a.String()]; other != "" {
				t.Errorf("%s and %s both have %s", other, p.name, a)
			}
			seen[a.String()] = p.name
		}
	}
	if len(seen) != pods {
		t.Errorf("%d pods have %d addresses", pods, len(seen))
	}
	all[0].ping(0, all[pods-1])
	atOnce("del")
	m.must(os.Remove(m.file(subnetFile)))
	m.unchanged(before, bridgeDevices()...)
}
