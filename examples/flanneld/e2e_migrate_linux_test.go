package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMigrate changes hosts from what flannel has left to this daemon, one after the
// other, and back. Subnets, leases and subnet files stay; packets that the kernel carries
// are not lost, connections survive, and no source address ever changes.
//
// TestLeftovers has what is there of peers that have gone, TestKernelCarriesOn restarts
// of this daemon, TestMixedNetwork hosts that run something else and stay.
func TestMigrate(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		name   string
		legacy bool
	}{
		{"0.11-udp", false}, {"0.11-vxlan", true}, {"0.11-host-gw", false},
		{"0.28-udp", true}, {"0.28-vxlan", false}, {"0.28-vxlan", true}, {"0.28-vxlan-nftables", false}, {"0.28-host-gw", false},
	} {
		name := r.name
		if r.legacy {
			name += ",iptables-legacy"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, k, all := veterans(t, r.name, r.legacy)
			j := newJourney(t, k, all)
			for _, v := range all {
				j.forth(v)
				reachAll(all[0].member, all[1].member)
			}
			j.backClean(all[0], all[1])
			j.backAsItIs(all[1])
		})
	}
}

// A journey is the traffic of two veterans while they change.
type journey struct {
	t        *testing.T
	k        keys
	hosts    [2]*veteran
	pods     [2]*flow // from pod to pod
	out      [2]*flow // from each pod to somebody outside
	talk     *conversation
	lossless bool // the kernel carries the packets
}

func newJourney(t *testing.T, k keys, hosts [2]*veteran) *journey {
	j := &journey{t: t, k: k, hosts: hosts, lossless: hosts[0].proxy == nil}
	for i, v := range hosts {
		o := hosts[1-i]
		j.pods[i] = startFlow(v.pod, o.pod.NS, o.pod.addr4)
		j.out[i] = startFlow(v.pod, v.c.wire, gateway)
	}
	j.talk = converse(hosts[0].pod, hosts[1].pod)
	j.check("before", true)
	return j
}

// check checks the traffic since the last time.
func (j *journey) check(when string, lossless bool) {
	j.t.Helper()
	for i, f := range j.pods {
		f.flows()
		look := f.lost
		if !lossless {
			look = f.gap
		}
		n, of, names := look()
		if n > 0 && lossless {
			j.t.Errorf("%s: %s: %d of %d datagrams lost: %s", when, f.name, n, of, names)
		}
		j.t.Logf("%s: %s: %d of %d datagrams lost, %v each: %s", when, f.name, n, of, streamInterval, names)
		f.only(when, j.hosts[i].pod.addr4)
		j.out[i].flows()
		if n, of, names := j.out[i].lost(); n > 0 {
			j.t.Errorf("%s: %s: %d of %d datagrams lost: %s", when, j.out[i].name, n, of, names)
		}
		j.out[i].only(when, j.hosts[i].addr)
	}
	j.talk.goesOn(when)
}

// forth changes a host from flannel to this daemon.
func (j *journey) forth(v *veteran) {
	j.t.Helper()
	if v.proxy != nil {
		v.proxy.stop()
	}
	v.checkKernel("after the end of flannel", seen(v.left.kernel)...)
	v.proc = v.start(v.args...)
	v.proc.ready()
	v.readyz(200, "node: ok")
	j.check(v.Name()+" changes", j.lossless)
	v.checkKernel("with this daemon", seen(v.left.running)...)
	j.sameLease(v, v.value)
	if got, err := os.ReadFile(v.labHost.file); err != nil || string(got) != v.left.env {
		j.t.Errorf("%s: the subnet file is %q, %v; was %q", v.Name(), got, err, v.left.env)
	}
	v.checkRules("with this daemon", v.ourRules()...)
}

// backClean changes a host back by way of cleanup, and makes the host anew as flannel
// does: with another Ethernet address, in the kernel and in its lease.
func (j *journey) backClean(v, peer *veteran) {
	j.t.Helper()
	v.ends()
	j.sameLease(v, v.value)
	if code, _, log := v.run("cleanup"); code != 0 {
		j.t.Errorf("%s: cleanup: exit %d: %s", v.Name(), code, log)
	}
	v.checkKernel("after cleanup")
	v.checkRules("after cleanup", v.unmarked()...)
	if _, err := os.Stat(v.labHost.file); !errors.Is(err, os.ErrNotExist) {
		j.t.Errorf("%s: after cleanup the subnet file is there: %v", v.Name(), err)
	}
	j.sameLease(v, v.value)

	if was := regexp.MustCompile(`[0-9a-f:]{17}`).FindString(v.value); was != "" {
		const now = "ce:cf:d6:e6:e2:29"
		for _, h := range j.hosts {
			for i := range h.left.running {
				h.left.running[i] = strings.ReplaceAll(h.left.running[i], was, now)
			}
		}
		v.value = strings.ReplaceAll(v.value, was, now)
	}
	j.k.setFor(v.key, v.value, 24*time.Hour)
	v.c.must(os.WriteFile(v.labHost.file, []byte(v.left.env), 0o644))
	v.returns()
	for _, f := range slices.Concat(j.pods[:], j.out[:]) {
		f.flows()
		f.skip()
		f.forget() // without rules packets left with the pod's own address
	}
	j.talk.goesOn(v.Name() + " has changed back")
	peer.readyz(200, "node: ok")
	j.check(v.Name()+" has changed back", true)
}

// backAsItIs changes a host back without cleanup. What is left of ours does no harm, and
// goes by the commands that the documentation has for that.
func (j *journey) backAsItIs(v *veteran) {
	j.t.Helper()
	v.ends()
	v.checkKernel("after the end of this daemon", seen(v.left.kernel)...)
	v.checkRules("after the end of this daemon", v.ourRules()...)
	j.sameLease(v, v.value)
	v.returns()
	j.check(v.Name()+" changes back as it is", j.lossless)
	v.removeOurRules()
	j.check(v.Name()+" without our rules", true)
	for _, line := range v.ruleLines() {
		if strings.Contains(strings.ToLower(line), "flannelkit") {
			j.t.Errorf("%s: there is still %s", v.Name(), line)
		}
	}
}

// sameLease checks that a host's lease is what it was, and that flannel can read it.
func (j *journey) sameLease(v *veteran, was string) {
	j.t.Helper()
	got, ok := j.k.value(v.key)
	if ttl := j.k.ttl(v.key); !ok || ttl < time.Hour || ttl > 24*time.Hour {
		j.t.Errorf("%s: the lease %s lives for %v", v.Name(), v.key, ttl)
	}
	if have, want := readAsFlannel(j.t, got), readAsFlannel(j.t, was); have != want {
		j.t.Errorf("%s: flannel reads the lease as %+v, want %+v", v.Name(), have, want)
	}
	if j.k.api == 3 && got != was {
		j.t.Errorf("%s: the lease is %s, was %s", v.Name(), got, was)
	}
}

// An oldLease is what flannel makes of a lease's value; 0.11 ignores what 0.28 has more.
type oldLease struct {
	PublicIP    netip.Addr
	BackendType string
	VtepMAC     string
}

// readAsFlannel reads a value as flannel does: by encoding/json, an address of IPv6 that
// is null or not there, and backend data that stay what they are until their backend
// reads them.
func readAsFlannel(t *testing.T, value string) oldLease {
	t.Helper()
	var l struct {
		PublicIP                   netip.Addr
		PublicIPv6                 *netip.Addr
		BackendType                string
		BackendData, BackendV6Data json.RawMessage
	}
	if err := json.Unmarshal([]byte(value), &l); err != nil {
		t.Fatalf("flannel can't read %s: %v", value, err)
	}
	got := oldLease{PublicIP: l.PublicIP, BackendType: l.BackendType}
	if l.BackendType == "vxlan" {
		var d struct {
			VNI     uint16
			VtepMAC string
		}
		if err := json.Unmarshal(l.BackendData, &d); err != nil {
			t.Fatalf("flannel's vxlan can't read %s: %v", value, err)
		}
		hw, err := net.ParseMAC(d.VtepMAC)
		if err != nil {
			t.Fatalf("flannel's vxlan can't read %s: %v", value, err)
		}
		got.VtepMAC = hw.String()
	}
	return got
}

// A conversation is a TCP connection between two pods, over which one repeats what the
// other says.
type conversation struct {
	t    *testing.T
	conn net.Conn
}

func converse(from, to *pod) *conversation {
	t := from.h.c.t
	t.Helper()
	must := from.h.c.must
	var l net.Listener
	must(to.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(to.addr4.String(), "0")); return err }))
	t.Cleanup(func() { l.Close() })
	c := &conversation{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(from.Do(func() (err error) {
		c.conn, err = new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		return err
	}))
	other, err := l.Accept()
	must(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(other, other)
	}()
	t.Cleanup(func() { c.conn.Close(); other.Close(); <-ended }) // both: by now packets may not flow
	return c
}

// goesOn says something and waits for the answer.
func (c *conversation) goesOn(when string) {
	c.t.Helper()
	said, heard := make([]byte, 32<<10), make([]byte, 32<<10)
	_, _ = rand.Read(said) // it never fails
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	_, err := c.conn.Write(said)
	if err == nil {
		_, err = io.ReadFull(c.conn, heard)
	}
	if err != nil || !bytes.Equal(said, heard) {
		c.t.Fatalf("%s: the connection does not go on: %v", when, err)
	}
}

// checkRules holds a host's rules against what they are to be, in any order of chains and
// tables.
func (v *veteran) checkRules(when string, want ...string) {
	v.c.t.Helper()
	got := v.ruleLines()
	for _, all := range [][]string{got, want} {
		slices.SortStableFunc(all, func(a, b string) int {
			return slices.Compare(strings.Fields(a)[:2], strings.Fields(b)[:2]) // command and chain
		})
	}
	if !slices.Equal(got, want) {
		v.c.t.Errorf("%s: %s the rules are\n%s\nwant\n%s", v.Name(), when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// unmarked are the rules of flannel before 0.20 that this daemon leaves, since they might be
// anybody's: they bear no mark, and only accept.
func (v *veteran) unmarked() (all []string) {
	for line := range strings.Lines(v.left.rules) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "-A FORWARD") && !strings.Contains(line, "flanneld forward") {
			all = append(all, line)
		}
	}
	return all
}

// ourRules are the rules of this daemon, beside those.
func (v *veteran) ourRules() []string {
	const network = "10.5.0.0/16"
	own := v.file.Subnet.Masked().String()
	forward := slices.Concat([]string{"-A FORWARD -j FLANNELKIT-FWD"}, v.unmarked(),
		[]string{"-A FLANNELKIT-FWD -s " + network + " -j ACCEPT", "-A FLANNELKIT-FWD -d " + network + " -j ACCEPT"})
	nat := []string{
		"-A POSTROUTING -j FLANNELKIT-NAT",
		"-A FLANNELKIT-NAT -m mark --mark 0x4000/0x4000 -j RETURN",
		"-A FLANNELKIT-NAT -s " + own + " -d " + network + " -j RETURN",
		"-A FLANNELKIT-NAT -s " + network + " -d " + own + " -j RETURN",
		"-A FLANNELKIT-NAT ! -s " + network + " -d " + own + " -j RETURN",
		"-A FLANNELKIT-NAT -s " + network + " ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
		"-A FLANNELKIT-NAT ! -s " + network + " -d " + network + " -j MASQUERADE --random-fully",
	}
	switch {
	case v.legacy && len(v.unmarked()) > 0: // somebody uses that variant
		return append(forward, nat...)
	case v.legacy: // nobody does any more: nothing there can drop
		return []string{"table ip flannelkit"}
	case v.left.nft: // nobody has; flannel makes a table for IPv6 in any case, and if it is empty cleanup removes it
		return []string{"table ip flannelkit", "table ip6 flannel-ipv6"}
	}
	return append(forward, "table ip flannelkit")
}

// removeOurRules does what the documentation says after a way back without cleanup.
func (v *veteran) removeOurRules() {
	v.c.t.Helper()
	lines := v.ruleLines()
	for chain, in := range map[string][2]string{"FLANNELKIT-FWD": {"filter", "FORWARD"}, "FLANNELKIT-NAT": {"nat", "POSTROUTING"}} {
		if slices.Contains(lines, "-A "+in[1]+" -j "+chain) {
			for _, args := range [][]string{{"-D", in[1], "-j", chain}, {"-F", chain}, {"-X", chain}} {
				v.runTool("", append([]string{iptables(v.legacy, ""), "-t", in[0]}, args...)...)
			}
		}
	}
	if slices.Contains(lines, "table ip flannelkit") {
		v.runTool("", "nft", "delete", "table", "ip", "flannelkit")
	}
}
