package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/mdrun"
)

// TestMigrationGuide does what docs/migration.md says, command by command: two hosts change,
// one goes back as it is, one by way of cleanup.
func TestMigrationGuide(t *testing.T) {
	t.Parallel()
	needTools(t, "NFT", "nft")
	needTools(t, "ETCDCTL", "etcdctl")
	_, k, all := veterans(t, "0.28-vxlan", false)
	g := readGuide(t, all, "Before you begin", "Change a host", "Go back")
	j := newJourney(t, k, all)
	g.walk("Before you begin", 1)
	for i := range all {
		g.walk("Change a host", i+1)
		j.check(fmt.Sprintf("host %d has changed", i+1), true)
	}
	g.walk("Go back", 2)
	j.check("host 2 has gone back", true)
	g.walk("Go back", 1)
	for i, f := range j.pods {
		f.flows()
		f.skip()
		j.out[i].flows()
		j.out[i].skip()
		j.out[i].forget() // without rules packets leave with the pod's own address
	}
	j.check("host 1 has gone back", true)
	for i, v := range all {
		for _, line := range v.ruleLines() {
			if strings.Contains(strings.ToLower(line), "flannelkit") {
				t.Errorf("host %d has gone back, and there is still %s", i+1, line)
			}
		}
		if got, err := os.ReadFile(v.labHost.file); err != nil || string(got) != v.left.env {
			t.Errorf("host %d: the subnet file is %q, %v", i+1, got, err)
		}
		j.sameLease(v, v.value)
	}
}

// TestMigrationGuideAPI moves a cluster from API 2 of etcd to API 3 as the guide says.
func TestMigrationGuideAPI(t *testing.T) {
	t.Parallel()
	const section = "From etcd's API 2 to API 3"
	needTools(t, "ETCDCTL", "etcdctl")
	c, k, all := veterans(t, "0.11-vxlan", false)
	const reserved = subnetsKey + "10.5.200.0-24"
	k.set(reserved, vxlanLease(netip.MustParseAddr("192.0.2.200"), staleMAC))
	g := readGuide(t, all, "Change a host", section)
	j := newJourney(t, k, all)
	k3 := c.keysOf(3)
	g.walkBlock(section, 0, 1)
	if k.ttl(reserved) != 0 || k3.ttl(reserved) != 0 {
		t.Errorf("a reservation lives %v and %v", k.ttl(reserved), k3.ttl(reserved))
	}
	for i, v := range all {
		if ttl := k.ttl(v.key); ttl < 23*time.Hour+30*time.Minute {
			t.Errorf("host %d: in API 2 the lease lives %v", i+1, ttl)
		}
		g.walk("Change a host", i+1)
		g.walkBlock(section, 1, i+1)
		j.check(fmt.Sprintf("host %d is on API 3", i+1), true)
		if lines := v.mentions("10.5.96.0"); len(lines) == 0 {
			t.Errorf("host %d: nothing leads to the third host, whose lease was copied: %v", i+1, v.kernel())
		}
	}
	g.walkBlock(section, 2, 1)
	if _, there := k.value(all[0].key); there {
		t.Error("API 2 has still a lease")
	}
	j.k = k3
	for _, v := range all {
		value, _ := k3.value(v.key)
		if got, want := readAsFlannel(t, value), readAsFlannel(t, v.value); got != want {
			t.Errorf("%s: in API 3 the lease is %+v, want %+v", v.Name(), got, want)
		}
		if ttl := k3.ttl(v.key); ttl < 23*time.Hour || ttl > 24*time.Hour {
			t.Errorf("%s: in API 3 the lease lives %v", v.Name(), ttl)
		}
		v.says(0, "ready", "10.5.96.0/24")
	}
	reachAll(all[0].member, all[1].member)
	j.check("without API 2", true)
}

// TestMigrateWithoutCopy: in an API of etcd that has the configuration alone, a host
// keeps the subnet that flannel's subnet file names.
func TestMigrateWithoutCopy(t *testing.T) {
	t.Parallel()
	c, k, all := veterans(t, "0.11-host-gw", false)
	config, _ := k.value(configKey)
	k3 := c.keysOf(3)
	k3.set(configKey, config)
	for _, v := range all {
		v.proc = v.start(v.args...)
		if f := v.proc.ready(); f.Key() != v.file.Key() {
			t.Errorf("%s: the subnet is %v, was %v", v.Name(), f.Subnet, v.file.Subnet)
		}
		value, _ := k3.value(v.key)
		if got, want := readAsFlannel(t, value), readAsFlannel(t, v.value); got != want {
			t.Errorf("%s: in API 3 the lease is %+v, want %+v", v.Name(), got, want)
		}
	}
	reachAll(all[0].member, all[1].member)
}

// A guide is the blocks of docs/migration.md, which run on hosts whose systemctl is ours.
type guide struct {
	t      *testing.T
	hosts  [2]*veteran
	blocks map[string][]mdrun.Block // by section, those to be run
	ran    map[string]bool          // by their place
	calls  [2]*callee               // each host's systemctl
}

// readGuide reads the page. The test is to run all blocks of the sections.
func readGuide(t *testing.T, hosts [2]*veteran, sections ...string) *guide {
	t.Helper()
	const page = "docs/migration.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all, err := mdrun.Parse(page, text)
	if err != nil {
		t.Fatal(err)
	}
	g := &guide{t: t, hosts: hosts, blocks: map[string][]mdrun.Block{}, ran: map[string]bool{}}
	for _, b := range all {
		if b.Run() {
			g.blocks[b.Heading] = append(g.blocks[b.Heading], b)
		}
	}
	for i, v := range hosts {
		g.calls[i] = v.systemctl()
	}
	t.Cleanup(func() {
		for _, section := range sections {
			for _, b := range g.blocks[section] {
				if !g.ran[b.Where()] && !t.Failed() {
					t.Errorf("%s: never run: %s", b.Where(), b.Script)
				}
			}
		}
	})
	return g
}

// walk does on a host what a section has for it.
func (g *guide) walk(section string, host int) {
	g.t.Helper()
	done := 0
	for i, b := range g.blocks[section] {
		if b.Every || b.Host == fmt.Sprintf("host%d", host) {
			g.walkBlock(section, i, host)
			done++
		}
	}
	if done == 0 {
		g.t.Fatalf("section %q has nothing for host %d", section, host)
	}
}

// walkBlock does what a block says, and compares what it prints. Paths are those of the
// lab; three dots on the page stand for anything.
func (g *guide) walkBlock(section string, i, host int) {
	g.t.Helper()
	if i >= len(g.blocks[section]) {
		g.t.Fatalf("section %q has no block %d", section, i)
	}
	b, v, call := g.blocks[section][i], g.hosts[host-1], g.calls[host-1]
	g.ran[b.Where()] = true
	script := strings.NewReplacer("/run/flannel/", call.dir+"/", "/root/", call.dir+"/", "/opt/flannelkit/", call.dir+"/",
		"/etc/systemd/system/", call.dir+"/", "http://192.0.2.254:2379", v.c.etcd.Endpoint()).Replace(mdrun.Prelude + b.Script)
	cmd := exec.Command("bash")
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = []string{"PATH=" + call.dir + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "XTABLES_LOCKFILE=" + v.beside("xtables.lock")}
	var out, errs lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	ended := make(chan error, 1)
	go func() { ended <- v.Run(cmd) }()
	limit := time.After(2 * patience)
	for running := true; running; {
		select {
		case args := <-call.asked:
			call.answer(v.obey(call.dir, args))
		case err := <-ended:
			if running = false; err != nil {
				g.t.Fatalf("%s, host %d: %v\n%s\nprints\n%s%s", b.Where(), host, err, script, out.String(), errs.String())
			}
		case <-limit:
			g.t.Fatalf("%s, host %d: it does not end:\n%s\nprints\n%s%s", b.Where(), host, script, out.String(), errs.String())
		}
	}
	if b.Want == nil {
		return
	}
	if err := mdrun.Compare(b.Want, out.String()); err != nil {
		g.t.Errorf("%s, host %d: %v", b.Where(), host, err)
	}
}

// A callee is a host's systemctl, which asks the test, and its program.
type callee struct {
	dir   string
	asked chan []string
	pipe  *os.File // to the script that waits
}

// systemctl installs both.
func (v *veteran) systemctl() *callee {
	v.c.t.Helper()
	must := v.c.must
	c := &callee{dir: filepath.Dir(v.labHost.file), asked: make(chan []string)}
	var pipes [2]*os.File
	for i, name := range []string{"systemctl.asked", "systemctl.answer"} {
		path := filepath.Join(c.dir, name)
		must(syscall.Mkfifo(path, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0) // for both, so that neither end waits for the other
		must(err)
		pipes[i] = f
	}
	text := "#!/bin/sh\necho \"$*\" >" + pipes[0].Name() + "; read -r code <" + pipes[1].Name() + "; exit $code\n"
	must(os.WriteFile(filepath.Join(c.dir, "systemctl"), []byte(text), 0o755))
	v.labHost.script(filepath.Join(c.dir, "flanneld"))
	c.pipe = pipes[1]
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for in := bufio.NewScanner(pipes[0]); in.Scan(); {
			select {
			case c.asked <- strings.Fields(in.Text()):
			case <-v.c.t.Context().Done():
			}
		}
	}()
	v.c.t.Cleanup(func() { pipes[0].Close(); pipes[1].Close(); <-ended })
	return c
}

// answer has the script end with a status.
func (c *callee) answer(code int) { fmt.Fprintln(c.pipe, code) }

// obey is systemd: flannel's unit starts this daemon as the drop-in says, else flannel.
func (v *veteran) obey(dir string, args []string) (code int) {
	v.c.t.Helper()
	switch verb := strings.Join(args, " "); verb {
	case "daemon-reload":
		return 0
	case "stop flanneld", "restart flanneld", "start flanneld":
		if v.proc != nil && args[0] != "start" {
			v.ends()
			v.proc = nil
		}
		if args[0] == "stop" {
			return 0
		}
	default:
		v.c.t.Errorf("systemctl %s: the page has a command that this test does not know", verb)
		return 1
	}
	text, err := os.ReadFile(filepath.Join(dir, "flanneld.service.d", "flannelkit.conf"))
	if errors.Is(err, os.ErrNotExist) {
		v.c.must(os.WriteFile(v.labHost.file, []byte(v.left.env), 0o644))
		v.returns()
		return 0
	}
	v.c.must(err)
	var flags []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "ExecStart="+dir+"/flanneld "); ok {
			flags = append(strings.Fields(rest), flags...)
		}
		if rest, ok := strings.CutPrefix(line, "Environment=FLANNELD_"); ok {
			name, value, _ := strings.Cut(strings.TrimSpace(rest), "=")
			flags = append(flags, "-"+strings.ToLower(strings.ReplaceAll(name, "_", "-"))+"="+value)
		}
	}
	v.proc = v.start(flags...)
	v.proc.ready()
	return 0
}
