package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/mdrun"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// A symptom makes, on two hosts, what a section of the page is about.
type symptom struct {
	flags []string // of both daemons
	quiet bool     // no daemon is started
	noCfg bool     // etcd has no configuration yet
	pod   bool     // there is a container1 on host1
	make  func(t *trial)
	// cure does what a block that is not run as it stands is about; nil: there is none.
	cure func(t *trial)
}

// symptoms are the page's sections by their headings.
func symptoms() map[string]symptom {
	return map[string]symptom{
		"Nothing comes back": {make: func(r *trial) {
			r.on(1, "iptables -A INPUT -p udp --dport 8472 -j DROP")
		}},
		"Small packets pass, large ones do not": {make: func(r *trial) {
			r.c.must(r.c.wire.SetMTU("port1", 1400)) // a switch that carries less than its hosts think
			r.c.must(r.c.wire.SetMTU("port2", 1400))
		}},
		"Hosts reach containers, containers do not reach containers": {flags: []string{"-iptables-forward-rules=false"}, make: func(r *trial) {
			r.on(1, "iptables -P FORWARD DROP")
		}},
		"Published containers are not reached from other hosts (Docker 28)": {make: func(r *trial) {
			h := r.c.hosts[0]
			f, err := subnetenv.Read(h.file)
			r.c.must(err)
			h.bridge(f)
			at := f.Subnet.Addr().Next().Next() // the first container's, as Docker 28 has it
			r.on(0, fmt.Sprintf("iptables -t raw -A PREROUTING -d %v ! -i docker0 -j DROP", at))
		}},
		"Docker has its own addresses": {make: func(r *trial) {
			h := r.c.hosts[0]
			r.c.must(r.c.lab.Veth(h.NS, "veth1", r.c.namespace("container"), "eth0", 1500))
			r.c.must(h.Bridge("docker0", "veth1"))
			r.c.must(h.AddAddr("docker0", netip.MustParsePrefix("172.17.0.1/16")))
		}},
		"flanneld waits for etcd": {noCfg: true, make: func(r *trial) { r.c.etcd.Stop() }},
		"flanneld does not run":   {quiet: true, make: func(*trial) {}},
		"etcd has gone":           {make: func(r *trial) { r.c.etcd.Stop() }},
		"Nothing leaves the overlay": {pod: true, make: func(*trial) {}, cure: func(r *trial) {
			r.procs[0].stop()
			r.procs[0] = r.c.hosts[0].start(r.c.endpoints(), "-ip-masq")
			r.procs[0].ready()
		}},
		"The kernel does not forward": {make: func(r *trial) {
			h := r.c.hosts[1]
			f, err := subnetenv.Read(h.file)
			r.c.must(err)
			h.bridge(f)
			r.c.must(h.Sysctl("net/ipv4/ip_forward", "0"))
		}},
	}
}

// TestTroubleshooting makes each trouble of docs/troubleshooting.md, and runs the
// commands of its section: what they print must be what the page shows.
func TestTroubleshooting(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN, netlab.NeedVXLAN)
	needTools(t, "IPTABLES", "iptables")
	needTools(t, "PAGES", "ip", "sysctl", "ping", "bash")
	const page = "docs/troubleshooting.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := mdrun.Parse(page, text)
	if err != nil {
		t.Fatal(err)
	}
	all := symptoms()
	for _, b := range blocks {
		if _, ok := all[b.Heading]; b.Run() && !ok {
			t.Errorf("%s: the section %q has no trouble in this test", b.Where(), b.Heading)
		}
	}
	for heading, tr := range all {
		t.Run(strings.ReplaceAll(heading, " ", "-"), func(t *testing.T) {
			t.Parallel()
			section := mdrun.Section(blocks, heading)
			if !slices.ContainsFunc(section, mdrun.Block.Run) {
				t.Fatalf("%s has no section %q with commands", page, heading)
			}
			r := newTrial(t, tr)
			tr.make(r)
			r.follow(section, tr.cure)
		})
	}
}

// A trial is two hosts with a trouble.
type trial struct {
	t     *testing.T
	c     *cluster
	bin   string // a directory for each host, with its flanneld in it
	procs []*flanneldProc
	pod   *pod // container1
}

func newTrial(t *testing.T, tr symptom) *trial {
	t.Helper()
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	r := &trial{t: t, c: c, bin: t.TempDir()}
	for _, h := range c.hosts {
		r.program(h)
	}
	if !tr.noCfg {
		c.keysOf(3).set(configKey, networkOf(`{"Type":"vxlan"}`))
	}
	if tr.quiet {
		return r
	}
	flags := append([]string{c.endpoints()}, tr.flags...)
	for _, h := range c.hosts {
		r.procs = append(r.procs, h.start(flags...))
	}
	if tr.noCfg {
		return r
	}
	for i, p := range r.procs {
		if f := p.ready(); i == 0 && tr.pod {
			r.pod = c.hosts[0].pod(f)
		}
	}
	for _, h := range c.hosts { // until both have heard of each other
		h.says(exitOK, "\npeers      1\n")
	}
	return r
}

// program puts a flanneld for the host where its scripts find it.
func (r *trial) program(h *labHost) {
	dir := filepath.Join(r.bin, h.Name())
	r.c.must(os.Mkdir(dir, 0o755))
	h.script(filepath.Join(dir, "flanneld"))
}

// on runs a script on a host, by its number from 0.
func (r *trial) on(i int, script string) {
	r.t.Helper()
	if out, err := r.shell(r.t.Context(), r.c.hosts[i].Name(), script); err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func (r *trial) shell(_ context.Context, host, script string) (string, error) {
	if host == "container1" && r.pod != nil {
		var out lockedBuffer
		cmd := exec.Command("bash", "-c", script)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := r.pod.Run(cmd)
		return out.String(), err
	}
	i := slices.IndexFunc(r.c.hosts, func(h *labHost) bool { return h.Name() == host })
	if i < 0 {
		return "", fmt.Errorf("there is no %s", host)
	}
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(r.bin, host)+":"+os.Getenv("PATH"))
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := r.c.hosts[i].Run(cmd)
	return out.String(), err
}

// follow runs a section. The daemon takes its moment to see a trouble, and its end, so
// what only asks is asked again.
func (r *trial) follow(section []mdrun.Block, cure func(*trial)) {
	r.t.Helper()
	for _, b := range section {
		if !b.Run() && cure != nil {
			cure(r)
		}
		run := func() error {
			return mdrun.Run(r.t.Context(), []mdrun.Block{b}, []string{"host1", "host2"}, r.shell, nil)
		}
		err := run()
		for late := time.Now().Add(patience); err != nil && repeatable(b.Script) && time.Now().Before(late); err = run() {
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// repeatable reports whether a script changes nothing, or may be run again.
func repeatable(script string) bool {
	for line := range strings.Lines(script) {
		if !strings.HasPrefix(line, "flanneld status") && !strings.HasPrefix(line, "sysctl -w ") {
			return false
		}
	}
	return true
}
