// Package guesttest is run in a virtual machine by the tests of package vm. Some of
// it fails on purpose.
package guesttest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) {
	if os.Getenv("FLANNELKIT_IN_VM") != "1" {
		os.Exit(0) // some of this brings the machine down
	}
	if os.Getenv("GUEST_SLEEPS") != "" {
		select {}
	}
	netlab.Main(m)
}

func TestEnvironment(t *testing.T) {
	if os.Getuid() != 0 {
		t.Errorf("uid %d, want 0", os.Getuid())
	}
	if got, err := os.ReadFile("testdata/hello.txt"); err != nil || len(got) == 0 {
		t.Errorf("testdata: %q, %v", got, err)
	}
	if got, err := os.ReadFile("/opt/extra/cpio.go"); err != nil || !strings.Contains(string(got), "package vm") {
		t.Errorf("an extra file: %d bytes, %v", len(got), err)
	}
	if got := os.Getenv("GUEST_EXTRA"); got != "yes" {
		t.Errorf("GUEST_EXTRA is %q", got)
	}
	for _, dir := range []string{os.TempDir(), "/run", "/dev/shm", "/root"} {
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Run("Parallel", func(t *testing.T) {
		for _, name := range []string{"a", "b"} {
			t.Run(name, func(t *testing.T) { t.Parallel(); t.Log("in", name) })
		}
	})
}

func TestNamespaces(t *testing.T) {
	lab := netlab.ForTest(t, netlab.NeedTUN, netlab.NeedVXLAN, netlab.NeedIPv6)
	a, err := lab.Namespace("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := lab.Namespace("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Veth(a, "eth0", b, "eth0", 1500); err != nil {
		t.Fatal(err)
	}
}

// addTunnels makes devices of both kinds in a namespace of its own.
func addTunnels(t *testing.T) (ipip, wireguard error) {
	ns, err := netlab.ForTest(t).Namespace("tunnel")
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		ipip = netlink.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "made.ipip"}, Local: []byte{192, 0, 2, 1}})
		wireguard = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "made.wg"}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ipip, wireguard
}

func TestTunnelsWithoutModule(t *testing.T) {
	ipip, wireguard := addTunnels(t)
	if !errors.Is(ipip, syscall.EOPNOTSUPP) || !errors.Is(wireguard, syscall.EOPNOTSUPP) {
		t.Errorf("without the modules an ipip device gets %v, wireguard %v, want EOPNOTSUPP", ipip, wireguard)
	}
}

func TestTunnels(t *testing.T) {
	if ipip, wireguard := addTunnels(t); ipip != nil || wireguard != nil {
		t.Errorf("an ipip device: %v; wireguard: %v", ipip, wireguard)
	}
}

// TestLeavesProcess leaves one behind that holds its output open.
func TestLeavesProcess(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GUEST_SLEEPS=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func TestAlone(t *testing.T) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		exe, err := os.Readlink(link) // kernel threads have none
		if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil && pid != 1 && pid != os.Getpid() {
			t.Errorf("process %d runs %s", pid, exe)
		}
	}
}

func TestSkips(t *testing.T) { t.Skip("for no reason") }

func TestFails(t *testing.T) {
	t.Run("Well", func(t *testing.T) { t.Log("this one is fine") })
	t.Run("Badly", func(t *testing.T) {
		os.Stdout.WriteString("--- PASS: TestFails/Badly (0.00s)\nno newline at the end") // a forged verdict
		t.Error("on purpose")
	})
}

func TestPanics(*testing.T) { panic("on purpose") }

func TestExits(*testing.T) { os.Exit(0) }

// TestHangs never ends by itself.
func TestHangs(*testing.T) { select {} }

// TestStops is stopped, so that its own -test.timeout cannot end it.
func TestStops(t *testing.T) {
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestMemory(t *testing.T) {
	var hold [][]byte
	for range 1 << 10 {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4 << 10 {
			b[i] = 1
		}
		hold = append(hold, b)
	}
	t.Errorf("8 GB fit in: %d", len(hold))
}

func TestKernelPanic(t *testing.T) {
	t.Log("this is the last thing heard of it")
	time.Sleep(time.Second)                                                     // nothing tells when the host has it
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil { // CONFIG_MAGIC_SYSRQ: crash
		t.Fatal(err)
	}
	select {}
}
