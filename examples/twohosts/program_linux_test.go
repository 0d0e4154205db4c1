package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// These tests build the program and run it as a user would.

// patience is for what should take no time at all, on a machine that is busy.
const patience = time.Minute

// surroundings is the environment variable that makes this test binary prepare
// the surroundings it names and then become the program.
const surroundings = "TWOHOSTS_TEST_SURROUNDINGS"

func TestMain(m *testing.M) {
	if name, ok := os.LookupEnv(surroundings); ok {
		os.Unsetenv(surroundings)
		fmt.Fprintln(os.Stderr, become(name, os.Args[1:]))
		os.Exit(125)
	}
	netlab.Main(tidy{m})
}

// tidy removes the built program after the tests.
type tidy struct{ m *testing.M }

func (r tidy) Run() int {
	code := r.m.Run()
	if b := buildOnce(); b.dir != "" {
		os.RemoveAll(b.dir)
	}
	return code
}

type built struct {
	dir, file string
	err       error
}

var buildOnce = sync.OnceValue(func() (b built) {
	if b.dir, b.err = os.MkdirTemp("", "twohosts"); b.err != nil {
		return b
	}
	b.file = filepath.Join(b.dir, "twohosts")
	if b.err = os.Chmod(b.dir, 0o755); b.err != nil { // other users run it too
		return b
	}
	if out, err := exec.Command("go", "build", "-o", b.file, ".").CombinedOutput(); err != nil {
		b.err = fmt.Errorf("%w\n%s", err, out)
	}
	return b
})

// become prepares the surroundings and executes the program.
func become(name string, args []string) error {
	var err error
	switch name {
	case "no device":
		err = hideDevice()
	case "nobody":
		err = errors.Join(hideDevice(), makeDevice(0o666), beNobody()) // as udev makes it
	case "nobody without device":
		err = errors.Join(hideDevice(), makeDevice(0o600), beNobody())
	case "no namespaces":
		err = os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0)
	default:
		err = fmt.Errorf("no surroundings %q", name)
	}
	if err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// hideDevice puts an empty directory in place of /dev/net, for this process.
func hideDevice() error {
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755"))
}

// makeDevice puts the device file there.
func makeDevice(mode uint32) error {
	return errors.Join(
		unix.Mknod("/dev/net/tun", unix.S_IFCHR|mode, int(unix.Mkdev(10, 200))),
		os.Chmod("/dev/net/tun", os.FileMode(mode))) // whatever the umask
}

func beNobody() error {
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534))
}

// command prepares a run of the program.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	b := buildOnce()
	if b.err != nil {
		t.Fatal("build: ", b.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, b.file, args...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// in makes the program run in other surroundings.
func in(cmd *exec.Cmd, name string, flags uintptr) *exec.Cmd {
	cmd.Args = append([]string{os.Args[0]}, cmd.Args...)
	cmd.Path = "/proc/self/exe"
	cmd.Env = append(os.Environ(), surroundings+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&syscall.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return cmd
}

// machineRoot reports whether this is the machine's root, who can become anybody.
func machineRoot() bool {
	users, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Contains(string(users), "4294967295") && os.Geteuid() == 0
}

// requireRoot skips unless this is the machine's root.
func requireRoot(t *testing.T) {
	t.Helper()
	if !machineRoot() {
		t.Skip("only the machine's root can become another user (run as root too)")
	}
}

// output runs cmd to its end.
func output(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// runJSON runs the program with -json and checks what holds for any run.
func runJSON(t *testing.T, cmd *exec.Cmd) report {
	t.Helper()
	code, stdout, stderr := output(t, cmd)
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	var r report
	if err := d.Decode(&r); err != nil {
		t.Fatalf("output is no report: %v\n%s", err, stdout)
	}
	if d.More() {
		t.Errorf("there is more than one object on standard output:\n%s", stdout)
	}
	check := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s is wrong in\n%s", what, stdout)
		}
	}
	for _, p := range []path{r.Plain, r.Tunnel} {
		check("ping", p.Ping.Sent == pings && p.Ping.Received == pings && p.Ping.MinUS > 0 && p.Ping.MinUS <= p.Ping.MedianUS &&
			p.Ping.MedianUS <= p.Ping.P99US && p.Ping.P99US <= p.Ping.MaxUS)
		for _, s := range []tcpSpeed{p.TCPAToB, p.TCPBToA} {
			check("tcp", s.GbitPerSecond > 0 && s.SegmentBytes > 500 && s.BusyCores > 0)
		}
		check("udp", p.UDPAToB.PayloadBytes == udpPayload && p.UDPAToB.PacketsPerSecond > 0 && p.UDPAToB.Received > 0 &&
			p.UDPAToB.Received <= p.UDPAToB.Sent && p.UDPAToB.Loss >= 0 && p.UDPAToB.Loss < 1)
	}
	check("share", r.Share.TCPAToB > 0 && r.Share.TCPBToA > 0 && r.Share.UDPAToB > 0)
	check("verified", r.Verified.TCPAToBBytes > 0 && r.Verified.TCPBToABytes > 0 && r.Verified.UDPDatagrams > 0)
	check("system", r.System.Kernel != "" && r.System.Cores > 0 && r.Seconds > 0)
	check("hosts", len(r.Hosts) == 2)
	for _, h := range r.Hosts {
		for _, w := range []work{h.TCPAToB, h.TCPBToA, h.UDPAToB} {
			check("work of host "+h.Name, w.Packets > 0 && w.SystemCalls > 0 && w.PacketsPerSystemCall > 0)
		}
		check("super-packets of host "+h.Name, h.TCPAToB.SuperPackets > 0 && h.TCPBToA.SuperPackets > 0)
		check("memory of host "+h.Name, h.ResidentBytes > 1<<20)
		check("addresses of host "+h.Name, h.Subnet.Contains(h.Pod) && !h.Subnet.Contains(h.PodPlain))
		for _, d := range h.Drops {
			// The kernel has nothing to say by multicast here.
			check("drop of "+d.Reason, d.Reason != "not-unicast" && d.Meaning != "" && d.Packets > 0)
		}
	}
	return r
}

func TestRunJSON(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	r := runJSON(t, command(t, "-duration", "300ms", "-json"))
	n := r.Network
	if n.MTU != 1500 || n.TunnelMTU != 1472 || n.Port != 8285 || n.IPv6 || n.Wire || n.EnginesPerHost != 1 || n.SecondsPerSpeed != 0.3 {
		t.Errorf("network %+v", n)
	}
	// 40 bytes of headers and 12 of TCP timestamps.
	if p, q := r.Plain.TCPAToB.SegmentBytes, r.Tunnel.TCPAToB.SegmentBytes; p != 1448 || q != 1420 {
		t.Errorf("segments of %d and %d bytes, want 1448 and 1420", p, q)
	}
	if !r.Hosts[0].Pod.Is4() || r.Hosts[0].Name != "A" || r.Hosts[1].Name != "B" {
		t.Errorf("hosts %+v", r.Hosts)
	}
}

func TestRunIPv6Engines(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN, netlab.NeedIPv6)
	r := runJSON(t, command(t, "-6", "-engines", "2", "-duration", "100ms", "-json"))
	if n := r.Network; n.TunnelMTU != 1452 || !n.IPv6 || n.EnginesPerHost != 2 {
		t.Errorf("network %+v", n)
	}
	if h := r.Hosts[1]; !h.Pod.Is6() || !h.Underlay.Is6() || !h.PodPlain.Is6() {
		t.Errorf("host %+v", h)
	}
	if got := r.Tunnel.TCPAToB.SegmentBytes; got != 1380 {
		t.Errorf("segments of %d bytes through the tunnel, want 1380", got)
	}
}

// TestRunText runs it as an ordinary user, which netlab.Main has made this test
// already unless it is root's.
func TestRunText(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	cmd := command(t, "-mtu", "9000", "-wire", "-v", "-duration", "100ms")
	if machineRoot() {
		cmd = in(cmd, "nobody", syscall.CLONE_NEWNS)
	}
	code, stdout, stderr := output(t, cmd)
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	for _, want := range []string{"MTU 9000", "8972 inside", "10.244.1.2", "UDP 8285", "TCP A -> B", "Gbit/s", "host A", "-wire"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	for _, want := range []string{"twohosts: measuring TCP\n", "host=A", "host=B", "mtu=8972"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is missing on standard error:\n%s", want, stderr)
		}
	}
	if strings.Contains(stderr, "\r") {
		t.Errorf("terminal codes without a terminal: %q", stderr)
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{{"-mtu", "100"}, {"-6", "-mtu", "1280"}, {"-engines", "-1"}, {"-duration", "5"}, {"-bogus"}, {"stray"}} {
		code, stdout, stderr := output(t, command(t, args...))
		if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "twohosts: ") {
			t.Errorf("%q: exit status %d, output %q, %q", args, code, stdout, stderr)
		}
	}
	code, stdout, stderr := output(t, command(t, "-h"))
	if code != 0 || !strings.Contains(stdout, "Examples:") || stderr != "" {
		t.Errorf("-h: exit status %d, output %q, %q", code, stdout, stderr)
	}
}

// fails runs the program where it can't work, and wants one line that says why.
func fails(t *testing.T, cmd *exec.Cmd, why ...string) {
	t.Helper()
	code, stdout, stderr := output(t, cmd)
	if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, output %q, %q; want 1 and one line of reason", code, stdout, stderr)
	}
	for _, w := range why {
		if !strings.Contains(stderr, w) {
			t.Errorf("it says %q, nothing of %q", stderr, w)
		}
	}
}

func TestNoDevice(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	fails(t, in(command(t), "no device", syscall.CLONE_NEWNS), "/dev/net/tun", "mknod")
}

func TestNoNamespaces(t *testing.T) {
	netlab.Require(t)
	fails(t, in(command(t), "no namespaces", syscall.CLONE_NEWUSER), "sysctl -w user.max_net_namespaces")
}

// TestDeviceForRootOnly runs it as an ordinary user where the device file is
// not as udev makes it.
func TestDeviceForRootOnly(t *testing.T) {
	requireRoot(t)
	netlab.Require(t, netlab.NeedTUN)
	fails(t, in(command(t), "nobody without device", syscall.CLONE_NEWNS), "permission denied", "chmod 0666 /dev/net/tun")
}
