package machine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/machine"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// A place is machines on one Ethernet, 192.0.2.0/24.
type place struct {
	t        *testing.T
	machines []*machine.Machine
}

func newPlace(t *testing.T, configs ...machine.Config) *place {
	t.Helper()
	machine.Require(t)
	lab := netlab.ForTest(t)
	p := &place{t: t}
	wire, err := lab.Namespace("wire")
	must(t, err)
	var ports []string
	for i, cfg := range configs {
		ns, err := lab.Namespace(fmt.Sprintf("host%d", i+1))
		must(t, err)
		port := fmt.Sprintf("port%d", i+1)
		must(t, lab.Veth(ns, "eth0", wire, port, 1500))
		must(t, ns.AddAddr("eth0", netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 24)))
		ports = append(ports, port)
		cfg.NS = ns
		p.machines = append(p.machines, machine.Start(t, cfg))
	}
	must(t, wire.Bridge("br0", ports...))
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a script that has to succeed, and returns what it wrote to stdout.
func run(t *testing.T, m *machine.Machine, script string) string {
	t.Helper()
	out, _, err := m.Run(t.Context(), script)
	must(t, err)
	return strings.TrimSpace(string(out))
}

// Two machines are two hosts: each has its own processes, files, name and kernel
// settings of the network, and they reach each other.
func TestTwoMachines(t *testing.T) {
	t.Parallel()
	before := traces(t)
	t.Run("lab", func(t *testing.T) {
		p := newPlace(t, machine.Config{}, machine.Config{})
		for i, m := range p.machines {
			name := fmt.Sprintf("host%d", i+1)
			if got := run(t, m, "hostname; cat /etc/hostname /proc/1/comm; systemctl is-system-running; test ! -e /etc/docker; ls -A /var/lib/docker | wc -l"); got != name+"\n"+name+"\nsystemd\nrunning\n0" {
				t.Errorf("%s says\n%s", name, got)
			}
			must(t, m.WriteFile("/etc/flannelkit-test/file", []byte(name), 0o640))
			run(t, m, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo x >/run/flannelkit-test; echo x >/usr/bin/flannelkit-test")
			if got := run(t, m, "stat -c %a /etc/flannelkit-test/file"); got != "640" {
				t.Errorf("mode %s", got)
			}
			if out, stderr, err := m.Run(t.Context(), "echo said; echo 7 >/proc/sys/kernel/panic"); err == nil || string(out) != "said\n" || !bytes.Contains(stderr, []byte("kernel/panic")) {
				t.Errorf("the kernel's own settings: %q, %q, %v", out, stderr, err)
			}
		}
		for _, m := range p.machines {
			got, err := m.ReadFile("/etc/flannelkit-test/file")
			if err != nil || string(got) != m.Name() {
				t.Errorf("the file of %s is %q, %v", m.Name(), got, err)
			}
			if got, err := os.ReadFile(filepath.Join(m.Root(), "etc/flannelkit-test/file")); err != nil || string(got) != m.Name() {
				t.Errorf("from outside: %q, %v", got, err)
			}
		}
		if got := run(t, p.machines[1], "systemd-run -q --wait --pipe hostname"); got != "host2" {
			t.Errorf("a transient unit says %s", got)
		}
		if ids := run(t, p.machines[0], "cat /etc/machine-id"); ids == run(t, p.machines[1], "cat /etc/machine-id") {
			t.Errorf("both machines are %s", ids)
		}
		run(t, p.machines[0], "exec 3<>/dev/udp/192.0.2.2/9; echo x >&3; for i in {1..100}; do grep -q '192.0.2.2 .* 0x2 ' /proc/net/arp && exit; sleep 0.05; done; cat /proc/net/arp; exit 1")
	})
	for _, name := range []string{"/etc/flannelkit-test", "/run/flannelkit-test", "/usr/bin/flannelkit-test"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is on this system", name)
		}
	}
	if after := traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// traces is what machines could leave: mounts of this system. Processes and control
// groups are looked for by Close, which cannot remove a group with processes.
func traces(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var keep []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); !strings.HasPrefix(f[4], "/run/netns") {
			keep = append(keep, f[4])
		}
	}
	return strings.Join(keep, "\n")
}

const notifyUnit = `[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/local/bin/notifier
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
`

const notifier = `#!/bin/bash
echo "hello from $$"
systemd-notify --ready --status=working
exec sleep infinity
`

// A unit is installed, started, restarted, killed and shut down, with control groups
// of either version.
func TestUnits(t *testing.T) {
	t.Parallel()
	for _, unified := range []bool{false, true} {
		t.Run(fmt.Sprintf("unified=%t", unified), func(t *testing.T) {
			t.Parallel()
			m := newPlace(t, machine.Config{Unified: unified}).machines[0]
			must(t, m.WriteFile("/etc/systemd/system/notifier.service", []byte(notifyUnit), 0o644))
			must(t, m.WriteFile("/usr/local/bin/notifier", []byte(notifier), 0o755))
			run(t, m, "systemctl daemon-reload; systemctl enable --now notifier")
			show := "systemctl show --value -p ActiveState,StatusText notifier | tr '\\n' ' '; systemctl show --value -p MainPID notifier"
			first := run(t, m, show)
			if !strings.HasPrefix(first, "active working ") && !strings.HasPrefix(first, "working active ") {
				t.Errorf("the unit is %q", first)
			}
			run(t, m, "systemctl restart notifier")
			second := run(t, m, show)
			if first == second {
				t.Errorf("a restart has left %q", second)
			}
			run(t, m, `kill -9 $(systemctl show --value -p MainPID notifier)
until [ "$(systemctl show --value -p NRestarts notifier)" = 1 ] && systemctl -q is-active notifier; do sleep 0.05; done`)
			if log := m.Journal("notifier"); strings.Count(log, "hello from") != 3 || !strings.Contains(log, "Started ") {
				t.Errorf("the journal has\n%s", log)
			}
			if got := run(t, m, "grep -c system.slice/notifier.service /proc/$(systemctl show --value -p MainPID notifier)/cgroup"); got == "0" {
				t.Error("the unit is in no control group")
			}
			must(t, m.PowerOff(t.Context()))
			if _, _, err := m.Run(t.Context(), "true"); err == nil {
				t.Error("a machine that is off runs scripts")
			}
		})
	}
}

// What a script does wrong is said, and nothing of a script survives its time.
func TestRun(t *testing.T) {
	t.Parallel()
	m := newPlace(t, machine.Config{}).machines[0]
	var exit *exec.ExitError
	_, stderr, err := m.Run(t.Context(), "echo no >&2; exit 7")
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || string(stderr) != "no\n" || !strings.Contains(err.Error(), "host1: run: ") {
		t.Errorf("%q, %v", stderr, err)
	}
	for _, script := range []string{"false; true", "echo $unset", "false | true"} {
		if _, _, err := m.Run(t.Context(), script); err == nil {
			t.Errorf("%s succeeded", script)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := m.Run(ctx, "sleep 54321"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if out := run(t, m, "(exec sleep 65432) & echo on"); out != "on" {
		t.Errorf("with something in the background: %q", out)
	}
	if out := run(t, m, "for p in /proc/[0-9]*; do { tr '\\0' ' ' <$p/cmdline; echo; } 2>/dev/null || :; done | sed -n 's/^sleep *\\([0-9]*\\) *$/sleep \\1/p'"); out != "sleep 65432" {
		t.Errorf("it runs %q", out)
	}
	must(t, m.Close())
	must(t, m.Close())
}
