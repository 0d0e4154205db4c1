package dockertest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// host is a namespace that is closed, and checked for strangers, at the end of the test.
func host(t *testing.T) *netlab.NS {
	t.Helper()
	ns, err := netlab.ForTest(t).Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestLife has an engine and containers through all that may happen to them, and lets
// Close look for what is left.
func TestLife(t *testing.T) {
	t.Parallel()
	Require(t)
	e := Start(t, host(t), "--bip=10.5.7.1/24", "--mtu=1400", "--live-restore")
	e.Ready()
	data := t.TempDir()
	if err := os.WriteFile(data+"/in", []byte("from the test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stays := e.Run(Config{Cmd: []string{"sh", "-c", "cat /data/in > /data/out; sleep 1000"}, Data: data})
	back := e.Run(Config{Cmd: []string{"sleep", "1000"}, Restart: true, Publish: []int{12345}})
	if got := stays.Exec("cat", "/data/out", "/sys/class/net/eth0/mtu"); got != "from the test\n1400" {
		t.Errorf("the container says %q", got)
	}
	r := back.Try("sh", "-c", "echo out; echo err >&2; exit 3")
	if want := (Result{Stdout: "out\n", Stderr: "err\n", Code: 3}); r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	first := []State{stays.State(), back.State()}
	if !first[0].Running || first[0].Addr.String() != "10.5.7.2" || first[1].Addr.String() != "10.5.7.3" {
		t.Errorf("states are %+v", first)
	}
	for _, end := range []func(){e.Stop, e.Kill} {
		end()
		e.Again()
		e.Ready()
		if now := []State{stays.State(), back.State()}; now[0] != first[0] || now[1] != first[1] {
			t.Errorf("with --live-restore there are %+v after a restart, before it %+v", now, first)
		}
	}
	e.Stop()
	e.Again("--bip=10.5.7.1/24")
	e.Ready()
	if s := stays.State(); s.Running {
		t.Errorf("a container without Restart: %+v", s)
	}
	if s := back.State(); !s.Running || s.StartedAt.Equal(first[1].StartedAt) {
		t.Errorf("a container with Restart: %+v", s)
	}
	stays.Remove()
	dir, cgroup := e.dir, e.cgroup
	e.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroup); len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
}

// TestLeaks has Close's look at what is left see it.
func TestLeaks(t *testing.T) {
	t.Parallel()
	Require(t)
	e := Start(t, host(t), "--live-restore", "--bridge=none", "--iptables=false")
	e.Ready()
	if _, err := e.run(Config{Cmd: []string{"sleep", "1234"}}, "none"); err != nil {
		t.Fatal(err)
	}
	e.Stop() // and the container lives on, with its shim and mounts
	e.linger = 100 * time.Millisecond
	err := e.cleanUp()
	if err == nil {
		t.Fatal("an engine that ended without its container has left nothing?")
	}
	for _, want := range []string{"sleep 1234", "containerd-shim", "mount " + e.dir, "control group"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s: %v", want, err)
		}
	}
	// The end of the room ended them all the same, and the lab would find them.
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroup); len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
	e.room = nil
}

// TestWrongOptions has an engine that cannot start be the test's failure, not a skip.
func TestWrongOptions(t *testing.T) {
	t.Parallel()
	Require(t)
	ns := host(t)
	var m machine
	defer func() {
		if err := m.cleanUp(); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(m.dir)
	}()
	if err := m.open(ns); err != nil {
		t.Fatal(err)
	}
	if err := m.start([]string{"--bip=10.5.7.300/24"}); err != nil {
		t.Fatal(err)
	}
	if err := m.ready(); err == nil || !strings.Contains(err.Error(), "10.5.7.300") {
		t.Errorf("ready: %v", err)
	}
}
