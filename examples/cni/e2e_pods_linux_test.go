package main

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/cnitest"
)

// TestPublishedPort is kube-flannel's whole configuration, with portmap behind the
// plugin: a port of one machine leads the other one to a pod.
func TestPublishedPort(t *testing.T) {
	t.Parallel()
	cnitest.Need(t, "iptables", "iptables")
	ref := installed(t)
	lab := newLab(t)
	m := newMachine(t, lab, "machine", ref.dir)
	client, err := lab.Namespace("client")
	m.must(err)
	m.must(lab.Veth(m.NS, "eth0", client, "eth0", 1500))
	m.must(m.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")))
	m.must(client.AddAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")))
	m.write(subnetFile, goodFile)
	m.network("cbr0", `{"cniVersion":"1.0.0","name":"cbr0","plugins":[`+conf("", "", "")+`,{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	p := &pod{NS: m.pod("p"), m: m, name: "p"}
	tool := func(verb string) outcome {
		return m.run("", []string{`CAP_ARGS={"portMappings":[{"hostPort":12345,"containerPort":80,"protocol":"tcp"}]}`},
			filepath.Join(built(t).Tools(t), "cnitool"), verb, "cbr0", podPath("p"))
	}
	o := tool("add")
	if o.code != 0 {
		t.Fatalf("add: %s%s", o.stdout, o.stderr)
	}
	p.read(o.stdout)
	var l net.Listener
	m.must(p.Do(func() (err error) { l, err = net.Listen("tcp", ":80"); return err }))
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, conn.RemoteAddr().(*net.TCPAddr).IP.String()) // who reads sees what is missing
			conn.Close()
		}
	}()
	dial := func() (got string, err error) {
		var conn net.Conn
		err = client.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", "192.0.2.1:12345", patience)
			return err
		})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(conn)
		return string(b), err
	}
	if got, err := dial(); err != nil || got != "192.0.2.2" {
		t.Errorf("the published port: %v; the pod sees %q, want the client", err, got)
	}
	if o := tool("del"); o.code != 0 {
		t.Errorf("del: %s%s", o.stdout, o.stderr)
	}
	if got, err := dial(); err == nil {
		t.Errorf("the port is still open after DEL: %q", got)
	}
}

// TestPodWithTwoInterfaces: a pod with two interfaces, in two networks of one machine. What one
// leaves or takes is not the other's.
func TestPodWithTwoInterfaces(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.write(subnetFile, goodFile)
	m.write("/run/flannel/second.env", "FLANNEL_NETWORK=10.6.0.0/16\nFLANNEL_SUBNET=10.6.9.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n")
	m.network("cbr0", conflist(ref.version, "cbr0", ""))
	m.network("second", `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"flannel","subnetFile":"/run/flannel/second.env","delegate":{"bridge":"cni1"}}]}`)
	before := m.see()
	p := &pod{NS: m.pod("p"), m: m, name: "p"}
	addr := func(link string) string {
		l, err := p.Netlink().LinkByName(link)
		if err != nil {
			return "none"
		}
		addrs, err := p.Netlink().AddrList(l, 2)
		if err != nil || len(addrs) != 1 {
			t.Fatalf("%s: %v, %v", link, addrs, err)
		}
		return netip.MustParsePrefix(addrs[0].IPNet.String()).Masked().String()
	}
	for _, step := range []struct{ verb, network, link, eth0, net1 string }{
		{"add", "cbr0", "eth0", "10.5.7.0/24", "none"},
		{"add", "second", "net1", "10.5.7.0/24", "10.6.9.0/24"},
		{"del", "second", "net1", "10.5.7.0/24", "none"},
		{"del", "second", "net1", "10.5.7.0/24", "none"},
		{"add", "second", "net1", "10.5.7.0/24", "10.6.9.0/24"},
		{"del", "cbr0", "eth0", "none", "10.6.9.0/24"},
		{"del", "cbr0", "eth0", "none", "10.6.9.0/24"},
		{"add", "cbr0", "eth0", "10.5.7.0/24", "10.6.9.0/24"},
		{"del", "second", "net1", "10.5.7.0/24", "none"},
		{"del", "cbr0", "eth0", "none", "none"},
		{"del", "second", "net1", "none", "none"},
		// Two of one network.
		{"add", "cbr0", "eth0", "10.5.7.0/24", "none"},
		{"add", "cbr0", "net1", "10.5.7.0/24", "10.5.7.0/24"},
		{"del", "cbr0", "eth0", "none", "10.5.7.0/24"},
		{"del", "cbr0", "net1", "none", "none"},
	} {
		if o := m.cnitool(step.verb, step.network, "p", "-i", step.link); o.code != 0 {
			t.Fatalf("%v: %s%s", step, o.stdout, o.stderr)
		}
		if eth0, net1 := addr("eth0"), addr("net1"); eth0 != step.eth0 || net1 != step.net1 {
			t.Fatalf("%v: eth0 is in %s, net1 in %s", step, eth0, net1)
		}
	}
	m.unchanged(before, append(bridgeDevices(), "device cni1")...)
}

// TestPodOfTheOriginal: a machine on which the original plugin was replaced while its
// pods ran, and back.
func TestPodOfTheOriginal(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.network("cbr0", conflist("0.4.0", "cbr0", ""))
	before := m.see()
	m.write(subnetFile, goodFile)
	our := slices.Clone(m.path)
	original := append([]string{filepath.Dir(built(t).Original(t))}, our...)

	m.path = original
	old := m.add("cbr0", "old")
	other := m.add("cbr0", "other")
	m.path = our
	fresh := m.add("cbr0", "fresh")
	fresh.ping(0, old)
	if o := m.cnitool("check", "cbr0", "old"); o.code != 0 {
		t.Errorf("CHECK of the original's pod: %s", o.stderr)
	}
	m.succeed("del", "cbr0", "old")
	m.path = original
	m.succeed("del", "cbr0", "fresh")
	m.succeed("del", "cbr0", "other")
	for _, p := range []*pod{old, other, fresh} {
		if _, err := p.Netlink().LinkByName("eth0"); err == nil {
			t.Errorf("%s still has eth0", p.name)
		}
	}
	m.must(os.Remove(m.file(subnetFile)))
	m.unchanged(before, bridgeDevices()...)
}

// TestGCOfTheOriginals: what the original has leaked goes with our GC, and its delegate
// hears the same DEL as it would have heard.
func TestGCOfTheOriginals(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	want := a.play(scene{conf: base(""), file: goodFile}, "original ADD", "original DEL")[1].Calls
	a.play(scene{conf: base(""), file: goodFile}, "original ADD")
	conf := strings.Replace(base(`,"cni.dev/valid-attachments":[]`), "0.4.0", "1.1.0", 1)
	s := a.command(a.ours, "GC", conf)
	if !s.OK || len(s.Saved) > 0 {
		t.Errorf("GC: %+v", s)
	}
	found := slices.ContainsFunc(s.Calls, func(c call) bool {
		return len(want) == 1 && c.Stdin == want[0].Stdin && slices.Contains(c.Env, "CNI_COMMAND=DEL") && slices.Contains(c.Env, "CNI_CONTAINERID="+containerUnderTest) && slices.Contains(c.Env, "CNI_IFNAME=eth0")
	})
	if !found {
		t.Errorf("the delegate hears %+v, want %+v", s.Calls, want)
	}
}

// TestVersionAsked: what a runtime asks before all else.
func TestVersionAsked(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newLab(t), "machine")
	o, _ := m.plugin("VERSION", `{"cniVersion":"1.1.0"}`)
	var v struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || o.code != 0 {
		t.Fatalf("VERSION: %v, %+v", err, o)
	}
	want := []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	if !slices.Equal(v.SupportedVersions, want) || v.CNIVersion != "1.1.0" {
		t.Errorf("VERSION: %+v, want %v", v, want)
	}
}

// TestStatusLooksAtDelegates: no pod can be added without the plugins that make its
// interface and choose its address.
func TestStatusLooksAtDelegates(t *testing.T) {
	t.Parallel()
	ref := pinned(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	m.write(subnetFile, goodFile)
	if o, e := m.plugin("STATUS", conf("1.1.0", "cbr0", "")); o.code != 0 {
		t.Errorf("STATUS of a machine that is ready: %d %s", e.Code, e.Msg)
	}
	for name, more := range map[string]string{
		"bridgge":     `,"delegate":{"type":"bridgge"}`,
		"host-locall": `,"ipam":{"type":"host-locall"}`,
	} {
		o, e := m.plugin("STATUS", conf("1.1.0", "cbr0", more))
		if o.code == 0 {
			t.Errorf("STATUS without %s succeeds", name)
		}
		readable(t, e, name)
	}
}
