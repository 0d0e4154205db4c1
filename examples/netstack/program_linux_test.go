package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/syncbuf"
)

// programVariable makes this test binary the program.
const programVariable = "NETSTACK_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "Uid:") || strings.HasPrefix(line, "CapEff:") {
				fmt.Fprint(os.Stderr, line)
			}
		}
		main()
		os.Exit(0)
	}
	netlab.Main(m)
}

const nobody = 65534

// program copies this binary to where every user can execute it, and returns the command
// of an unprivileged one, if there is a choice.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "netstack")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "netstack")
	if err := os.WriteFile(file, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file, args...)
	cmd.Env, cmd.Dir = []string{programVariable + "=1"}, "/"
	if mapped(t, nobody) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// mapped reports whether there is such a user here: in a user namespace made by an
// ordinary user there is only one.
func mapped(t *testing.T, uid uint32) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, size uint32
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err == nil && uid >= inside && uid-inside < size {
			return true
		}
	}
	return false
}

// TestWithoutPrivilege runs the demonstration as nobody, in a network namespace that has
// the loopback device and no route.
func TestWithoutPrivilege(t *testing.T) {
	ns, err := netlab.ForTest(t).Namespace("bare")
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t)
	if cmd.SysProcAttr == nil {
		t.Skip("the tests run in a user namespace with one user, who is root there (run them as root)")
	}
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := ns.Run(cmd); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), diag.String())
	}
	if s := diag.String(); !strings.Contains(s, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d", nobody)) || !regexp.MustCompile(`CapEff:\t0+\n`).MatchString(s) {
		t.Errorf("it ran with privilege, or said more than it should:\n%s", s)
	}
	checkShown(t, out.String())
	links, err := ns.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "tuntap" {
			t.Errorf("there is the device %s", l.Attrs().Name)
		}
	}
}

// TestServe is the program with an etcd: it serves until it is told to stop, and another
// member, in this process, fetches from it.
func TestServe(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Config{})
	etcd.Put("/coreos.com/network/config", `{"Network": "10.244.0.0/16"}`)
	cmd := program(t, "-etcd", etcd.Endpoint(), "-iface", "127.0.0.4")
	var out, diag syncbuf.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	serving := regexp.MustCompile(`serving http://(10\.244\.\d+\.1)/\n`)
	var addr netip.Addr
	for late := time.Now().Add(patience); !addr.IsValid(); time.Sleep(5 * time.Millisecond) {
		if m := serving.FindStringSubmatch(out.String()); m != nil {
			addr = netip.MustParseAddr(m[1])
		}
		if time.Now().After(late) {
			t.Fatalf("it does not serve:\n%s%s", out.String(), diag.String())
		}
	}
	fetch(t, etcd.Endpoint(), addr)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v\n%s", err, diag.String())
		}
	case <-time.After(patience):
		t.Error("it does not stop")
	}
}
