package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the program that the tests start: with helperMode in
// its environment it plays a part instead of running tests.
const helperMode = "NETLAB_TEST_HELPER"

func helper(mode string) int {
	fatal := func(err error) {
		if err != nil {
			fmt.Println("helper:", err)
			os.Exit(1)
		}
	}
	switch mode {
	case "netns": // says where it runs
		target, err := os.Readlink(ownNetns)
		fatal(err)
		fmt.Print(target)
	case "echo": // what it reads
		io.Copy(os.Stdout, os.Stdin)
	case "sleep": // until it is killed
		fmt.Println("ready")
		time.Sleep(time.Hour) // select {} would be a deadlock to the runtime
	case "orphan", "group": // the one leaves a process behind, the other keeps it
		cmd := helperCommand("sleep")
		cmd.Stdin = os.Stdin
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: mode == "orphan"}
		fatal(cmd.Start())
		if mode == "group" {
			fmt.Println("ready")
			cmd.Wait()
		}
	case "enter": // waits for a signal in a user namespace
		fatal(Enter())
		got := make(chan os.Signal, 8)
		signal.Notify(got, syscall.SIGTERM)
		fmt.Println("ready", os.Getpid())
		<-got
		return 7
	case "needtun":
		fatal(Enter())
		fmt.Println(Check(NeedTUN))
	case "refused": // in a user namespace where no further namespace may be made
		fatal(os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0))
		fatal(os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0))
		fmt.Println(Enter())
		tb := &fakeTB{}
		os.Unsetenv("CI")
		Require(tb)
		os.Setenv("CI", "true")
		Require(tb)
		fmt.Println(tb.log.String())
	default:
		fatal(fmt.Errorf("no mode %q", mode))
	}
	return 0
}

type fakeTB struct{ log bytes.Buffer }

func (f *fakeTB) Helper()                          {}
func (f *fakeTB) Skipf(format string, args ...any) { fmt.Fprintf(&f.log, "SKIP "+format+"\n", args...) }
func (f *fakeTB) Fatalf(format string, args ...any) {
	fmt.Fprintf(&f.log, "FATAL "+format+"\n", args...)
}

func helperCommand(mode string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperMode+"="+mode)
	return cmd
}

func TestStart(t *testing.T) {
	l := newLab(t)
	a, b := namespace(t, l, "a"), namespace(t, l, "b")
	for _, n := range []*NS{a, b, a} {
		var out bytes.Buffer
		cmd := helperCommand("netns")
		cmd.Stdout = &out
		check(t, n.Run(cmd))
		if parseInode(out.String()) != n.ino {
			t.Errorf("started in %s, ran in %s, want %d", n.Name(), out.String(), n.ino)
		}
	}
	if err := a.Run(exec.Command("/nonexistent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start of nothing: %v", err)
	}
}

// TestProcessOutlivesThreads ends the threads of this process, as the runtime
// does when a goroutine ends while locked. The one that has forked a process must
// not be among them. The main thread never ends, so threads are taken before the
// fork too, for it to happen on another one.
func TestProcessOutlivesThreads(t *testing.T) {
	l := newLab(t)
	n := namespace(t, l, "n")
	cmd := helperCommand("echo")
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)

	const threads = 30
	tids, end := make(chan int), make(chan struct{})
	var taken []int
	take := func() {
		for range threads {
			go func() {
				runtime.LockOSThread() // for good
				tids <- unix.Gettid()
				<-end
			}()
		}
		for range threads {
			taken = append(taken, <-tids)
		}
	}
	runtime.LockOSThread()
	take()
	p, err := n.Start(cmd)
	check(t, err)
	take()
	runtime.UnlockOSThread()
	close(end)
	for _, tid := range taken {
		for tid != os.Getpid() {
			if _, err := os.Stat(fmt.Sprint("/proc/self/task/", tid)); err != nil {
				break
			}
			runtime.Gosched()
		}
	}
	fmt.Fprintln(in, "alive")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "alive\n" {
		t.Fatalf("echo: %q, %v", line, err)
	}
	check(t, in.Close(), p.Wait())
}

func TestCloseKills(t *testing.T) {
	Require(t)
	l, err := New()
	check(t, err)
	n := namespace(t, l, "n")
	cmd := helperCommand("sleep")
	out, err := cmd.StdoutPipe()
	check(t, err)
	p, err := n.Start(cmd)
	check(t, err)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("read %q: %v", line, err)
	}
	check(t, l.Close())
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after Close: %v, want killed", err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

// TestCloseKillsGroup has a process with a child that is in its group.
func TestCloseKillsGroup(t *testing.T) {
	Require(t)
	l, err := New()
	check(t, err)
	n := namespace(t, l, "n")
	r, w, err := os.Pipe()
	check(t, err)
	defer w.Close()
	cmd := helperCommand("group")
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	check(t, err)
	_, err = n.Start(cmd)
	check(t, err, r.Close())
	_, err = bufio.NewReader(out).ReadString('\n')
	check(t, err, l.Close())
	checkNoReader(t, w)
}

// TestCloseKillsOrphans has a child in a process group of its own survive its
// parent.
func TestCloseKillsOrphans(t *testing.T) {
	Require(t)
	l, err := New()
	check(t, err)
	n := namespace(t, l, "n")
	r, w, err := os.Pipe()
	check(t, err)
	defer w.Close()
	cmd := helperCommand("orphan")
	cmd.Stdin = r
	check(t, n.Run(cmd), r.Close())
	err = l.Close()
	if !regexp.MustCompile(`killed process \d+ .*left in namespace n`).MatchString(fmt.Sprint(err)) {
		t.Errorf("close: %v", err)
	}
	checkNoReader(t, w)
}

// checkNoReader waits for the end of the process that holds the read end of a
// pipe: then a write fails, and until then the full pipe blocks it.
func checkNoReader(t *testing.T, w *os.File) {
	t.Helper()
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	check(t, w.SetWriteDeadline(time.Now().Add(patience)))
	if _, err := io.CopyN(w, zeros{}, 1<<20); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to the pipe of a killed process: %v, want EPIPE", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// asNobody prepares the test binary to run as an ordinary user.
func asNobody(t *testing.T, mode string, args ...string) *exec.Cmd {
	t.Helper()
	if uidMap, err := os.ReadFile("/proc/self/uid_map"); err != nil || !bytes.Contains(uidMap, []byte("4294967295")) || os.Geteuid() != 0 {
		t.Skip("only the machine's root can become an ordinary user (run as root too)")
	}
	dir, err := os.MkdirTemp("", "netlab")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	binary := filepath.Join(dir, "netlab.test")
	check(t, os.WriteFile(binary, self, 0o755), os.Chmod(dir, 0o755))
	cmd := exec.Command(binary, args...)
	cmd.Dir = dir
	cmd.Env = []string{"TMPDIR=/tmp", helperMode + "=" + mode}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// TestOrdinaryUser runs tests of this package as user nobody.
func TestOrdinaryUser(t *testing.T) {
	tests := []string{"TestVeth", "TestVXLAN", "TestTwoHosts", "TestSysctl", "TestStart", "TestCloseKillsOrphans", "TestLinkModes", "TestImpairTwoHosts"}
	cmd := asNobody(t, "", "-test.v", "-test.run", "^("+strings.Join(tests, "|")+")$")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range tests {
		if !bytes.Contains(out, []byte("--- PASS: "+name+" ")) {
			t.Errorf("%s did not pass as an ordinary user:\n%s", name, out)
		}
	}
}

func TestEnterSignals(t *testing.T) {
	start := func() (*exec.Cmd, *bufio.Reader) {
		cmd := asNobody(t, "enter")
		out, err := cmd.StdoutPipe()
		check(t, err, cmd.Start())
		r := bufio.NewReader(out)
		line, err := r.ReadString('\n')
		check(t, err)
		if line == fmt.Sprintln("ready", cmd.Process.Pid) {
			t.Fatal("there is no child")
		}
		return cmd, r
	}

	cmd, r := start()
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	io.Copy(io.Discard, r)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("after SIGTERM: %v, want the child's status 7", cmd.ProcessState)
	}

	cmd, r = start()
	check(t, cmd.Process.Kill())
	// The child holds the other end of the pipe: EOF means that it died too.
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	cmd.Wait()
}

func TestNeedTUNRemedy(t *testing.T) {
	info, err := os.Stat("/dev/net/tun")
	if err != nil {
		t.Skip("no TUN device here: ", err)
	}
	out, err := asNobody(t, "needtun").CombinedOutput()
	check(t, err)
	want := "<nil>"
	if info.Mode().Perm()&0o006 != 0o006 {
		want = "chmod 0666 /dev/net/tun"
	}
	if !strings.Contains(string(out), want) {
		t.Errorf("as an ordinary user: %s, want %q", out, want)
	}
}

// TestRefused limits the namespaces of a user namespace to none.
func TestRefused(t *testing.T) {
	Require(t)
	cmd := helperCommand("refused")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	check(t, err)
	lines := strings.Split(string(out), "\n")
	if len(lines) < 3 {
		t.Fatalf("output: %s", out)
	}
	for i, start := range []string{"netlab: enter: ", "SKIP netlab: ", "FATAL netlab: "} {
		if !strings.HasPrefix(lines[i], start) || !strings.Contains(lines[i], "sysctl -w user.max_net_namespaces=1024") {
			t.Errorf("line %d: %q, want %q and the remedy", i, lines[i], start)
		}
	}
}
