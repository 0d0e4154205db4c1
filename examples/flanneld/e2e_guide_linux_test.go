package main

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/dockertest"
	"github.com/flannelkit/flannelkit/internal/machine"
	"github.com/flannelkit/flannelkit/internal/mdrun"
)

// guideFile is what TestGuide does, word for word.
const guideFile = "docs/guide.md"

// guideAddress is the one of the container web in the guide, which has another in every
// run: a reader puts in what the block before has shown, and so does the test.
const guideAddress = "WEB=10.5.2.2\n"

// TestGuide runs every command of the guide on two hosts with systemd, etcd and Docker
// as Debian has them, and compares what they print.
func TestGuide(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	dockertest.Require(t)
	requireGuidePrograms(t)
	text, err := os.ReadFile(guideFile)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := mdrun.Parse(guideFile, text)
	if err != nil {
		t.Fatal(err)
	}
	_, machines := newSystemdHosts(t, 2, packDist(t))
	hosts := map[string]*systemdHost{}
	for _, s := range machines {
		hosts[s.Name()] = s
		s.run("systemctl start docker") // as its package does
		s.image()
	}
	web, used := "", false
	shell := func(ctx context.Context, host, script string) (string, error) {
		if strings.Contains(script, guideAddress) {
			script, used = strings.Replace(script, guideAddress, "WEB="+web+"\n", 1), true
		}
		stdout, stderr, err := hosts[host].Run(ctx, "exec 2>&1\n"+script) // in order
		return string(stdout) + string(stderr), err
	}
	seen := func(b mdrun.Block, host, output string) {
		t.Logf("%s on %s", b.Where(), host)
		if lines := strings.Fields(output); strings.Contains(b.Script, "IPAddress}}' web") && len(lines) > 0 {
			web = lines[len(lines)-1]
			for _, s := range machines {
				if all := s.traces(); len(all) != 4 {
					t.Errorf("%s: the network is in use, and of it there is only %q", s.Name(), all)
				}
			}
		}
	}
	// All is undone before the guide deletes all keys, the leases of the forgetful too.
	end := slices.IndexFunc(blocks, func(b mdrun.Block) bool { return b.Run() && strings.Contains(b.Script, "etcdctl del ") })
	if end < 0 {
		t.Fatal("the guide does not remove the network's configuration")
	}
	for i, part := range [][]mdrun.Block{blocks[:end], blocks[end:]} {
		if err := mdrun.Run(t.Context(), part, []string{"host1", "host2"}, shell, seen); err != nil {
			t.Fatal(err)
		}
		want := ""
		if i == 0 {
			want = "/coreos.com/network/config"
		}
		if got := machines[0].run("ETCDCTL_API=3 etcdctl get --prefix --keys-only /coreos.com/network | grep . || true"); got != want {
			t.Errorf("after %s etcd has the keys %q, want %q", part[len(part)-1].Where(), got, want)
		}
		for _, s := range machines {
			if all := s.traces(); len(all) > 0 {
				t.Errorf("%s: after %s there is still %q", s.Name(), part[len(part)-1].Where(), all)
			}
		}
	}
	if !used {
		t.Errorf("the guide has no %q: nothing has shown that two containers talk", guideAddress)
	}
}

// traces says what a host has of the network: the device, a rule, the program, and the
// file with the subnet.
func (s *systemdHost) traces() (all []string) {
	s.t.Helper()
	for _, script := range []string{
		"ip -o link show flannel.1 2>/dev/null || true",
		`for list in "nft list ruleset" iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
	command -v ${list%% *} >/dev/null || continue
	$list 2>/dev/null || true
done | sed -n /[Ff][Ll][Aa][Nn][Nn][Ee][Ll][Kk][Ii][Tt]/p`,
		"ls /usr/local/bin/flanneld 2>/dev/null || true",
		"ls /run/flannel/subnet.env 2>/dev/null || true",
	} {
		if line := s.run(script); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// requireGuidePrograms skips the test where the guide's host 1 has no etcd of its own,
// or the hosts no ip; with FLANNELKIT_NEED_ETCD in the environment it fails.
func requireGuidePrograms(t *testing.T) {
	t.Helper()
	for _, name := range []string{"/lib/systemd/system/etcd.service", "etcdctl", "ip"} {
		_, err := exec.LookPath(name)
		if strings.HasPrefix(name, "/") {
			_, err = os.Stat(name)
		}
		switch {
		case err != nil && os.Getenv("FLANNELKIT_NEED_ETCD") != "":
			t.Fatalf("%v, and FLANNELKIT_NEED_ETCD is set (install etcd-server, etcd-client and iproute2)", err)
		case err != nil:
			t.Skipf("%v (install etcd-server, etcd-client and iproute2)", err)
		}
	}
}
