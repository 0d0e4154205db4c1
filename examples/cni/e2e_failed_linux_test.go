package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/cnitest"
)

// TestFailedADDs: whatever a real delegate refuses, and whenever, nothing is left of it.
func TestFailedADDs(t *testing.T) {
	t.Parallel()
	cnitest.Need(t, "iptables", "iptables")
	for _, of := range []func(*testing.T) reference{installed, pinned} {
		ref := of(t)
		t.Run(ref.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, newLab(t), "machine", ref.dir)
			m.write(subnetFile, goodFile)
			before := m.see()
			for i, more := range []string{
				`,"delegate":{"mtu":"1400"}`,
				`,"ipam":{"rangeStart":"x"}`,
				`,"delegate":{"ipMasq":true},"ipam":{"rangeStart":"x"}`,
				`,"delegate":{"ipMasq":true},"runtimeConfig":{"mac":"x"}`,
				`,"delegate":{"ipMasq":true,"forceAddress":true,"mtu":70000}`,
				`,"delegate":{"ipMasq":true},"ipam":{"routes":[{"dst":"192.0.2.0/24","gw":"198.51.100.1"}]}`, // after the address
			} {
				name := "p" + string(rune('0'+i))
				p := m.pod(name)
				o, e := m.plugin("ADD", conf(ref.version, "cbr0", more), attachment(name)...)
				if o.code == 0 {
					t.Errorf("%s is added", more)
				}
				m.unchanged(before, bridgeDevices()...)
				if _, err := p.Netlink().LinkByName("eth0"); err == nil {
					t.Errorf("%s: eth0 is left; ADD: %s; standard error: %s", more, e.Msg, o.stderr)
				}
				if o, e := m.plugin("DEL", conf(ref.version, "cbr0", more), attachment(name)...); o.code != 0 {
					t.Errorf("%s: DEL: %s", more, e.Msg)
				}
				m.hide(name)
			}
		})
	}
}

// TestKilledPlugin: a runtime kills an ADD while host-local is at work, and sends DEL.
func TestKilledPlugin(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", filepath.Join(t.TempDir(), "slow"), ref.dir)
	slow := m.path[1]
	script := "#!/bin/sh\ntouch " + slow + "/started\nwhile [ ! -e " + slow + "/go ]; do sleep 0.05; done\nexec " + ref.dir + "/host-local\n"
	m.must(errors.Join(os.Mkdir(slow, 0o755), os.WriteFile(filepath.Join(slow, "host-local"), []byte(script), 0o755)))
	m.write(subnetFile, goodFile)
	p := m.pod("p")
	before := m.see()
	command := func(name string) (wait func() error, kill func(), stderr *bufio.Reader) {
		cmd := m.command(append([]string{"CNI_COMMAND=" + name}, attachment("p")...), ours(t))
		r, w := io.Pipe()
		cmd.Stdin, cmd.Stderr = strings.NewReader(conf(ref.version, "cbr0", "")), w
		process, err := m.Start(cmd)
		m.must(err)
		go func() {
			_ = process.Wait()
			w.Close()
		}()
		return process.Wait, func() { m.must(process.Signal(syscall.SIGKILL)) }, bufio.NewReader(r)
	}
	wait, kill, _ := command("ADD")
	for range 3000 {
		if _, err := os.Stat(filepath.Join(slow, "started")); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	kill()
	if wait() == nil {
		t.Fatal("ADD has ended before it was killed")
	}
	if slices.Equal(m.see(), before) {
		t.Error("ADD had not begun")
	}
	wait, _, stderr := command("DEL")
	if line, err := stderr.ReadString('\n'); err != nil || !strings.Contains(line, "waits for an ADD") {
		t.Errorf("DEL says %q, %v", line, err)
	}
	m.must(os.WriteFile(filepath.Join(slow, "go"), nil, 0o644))
	_, _ = io.Copy(io.Discard, stderr)
	m.must(wait())
	m.unchanged(before, bridgeDevices()...)
	if _, err := p.Netlink().LinkByName("eth0"); err == nil {
		t.Error("eth0 is left")
	}
}

// TestStatusOfOldPlugins: plugins that do not know the configuration's version of CNI
// refuse every ADD.
func TestStatusOfOldPlugins(t *testing.T) {
	t.Parallel()
	ref := installed(t)
	m := newMachine(t, newLab(t), "machine", ref.dir)
	if o := m.run(`{"cniVersion":"1.0.0"}`, []string{"CNI_COMMAND=VERSION"}, filepath.Join(ref.dir, "bridge")); strings.Contains(o.stdout, `"1.1.0"`) {
		t.Skip("the installed bridge knows CNI 1.1.0")
	}
	m.write(subnetFile, goodFile)
	m.pod("p")
	before := m.see()
	for command, code := range map[string]uint{"STATUS": 50, "ADD": 1} {
		o, e := m.plugin(command, conf("1.1.0", "cbr0", ""), attachment("p")...)
		if o.code == 0 || e.Code != code {
			t.Errorf("%s: exit code %d, error %d %q, want error %d", command, o.code, e.Code, e.Msg, code)
		}
		readable(t, e, "1.1.0", "bridge")
	}
	m.unchanged(before)
}
