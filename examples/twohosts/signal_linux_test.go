package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// These tests end the program, or parts of it, while it works.

// A running is a program at work, watched from outside.
type running struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	ended  chan struct{} // standard error is closed

	mu     sync.Mutex
	stderr strings.Builder
}

// start returns when the program has said what it does.
func start(t *testing.T, cmd *exec.Cmd, says string) *running {
	t.Helper()
	r := &running{cmd: cmd, ended: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &r.stdout, write
	err = cmd.Start()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	go func() {
		defer close(r.ended)
		defer read.Close()
		lines := bufio.NewScanner(read)
		for lines.Scan() {
			r.mu.Lock()
			fmt.Fprintln(&r.stderr, lines.Text())
			r.mu.Unlock()
			if lines.Text() == "twohosts: "+says {
				close(said)
			}
		}
	}()
	select {
	case <-said:
	case <-r.ended:
		_ = cmd.Wait()
		t.Fatalf("it ended before it said %q: %s", says, r.text())
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("it never said %q: %s", says, r.text())
	}
	return r
}

func (r *running) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stderr.String()
}

// wait waits for the end, and returns the exit status and the last line on
// standard error.
func (r *running) wait() (code int, last string) {
	_ = r.cmd.Wait() // its status is what is asked for
	<-r.ended
	lines := strings.Split(strings.TrimSpace(r.text()), "\n")
	return r.cmd.ProcessState.ExitCode(), lines[len(lines)-1]
}

// A process is told from a later one of the same number by its start.
type process struct {
	pid, parent int
	start       string
	space       string // network namespace; empty if it may not be read
	role        string
}

// processes lists all that live. The dead that nobody has waited for are not
// among them.
func processes(t *testing.T) map[int]process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]process{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // just ended
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third field on
		p := process{start: f[19]}
		p.pid, _ = strconv.Atoi(filepath.Base(dir))
		p.parent, _ = strconv.Atoi(f[1])
		if f[0] == "Z" || f[0] == "X" {
			continue
		}
		p.space, _ = os.Readlink(dir + "/ns/net")
		environ, _ := os.ReadFile(dir + "/environ")
		for v := range strings.SplitSeq(string(environ), "\x00") {
			if role, ok := strings.CutPrefix(v, traffic.RoleEnv+"="); ok {
				p.role = role
			}
		}
		all[p.pid] = p
	}
	return all
}

// children lists the processes below pid, at any depth.
func children(t *testing.T, pid int) []process {
	t.Helper()
	all := processes(t)
	var family []process
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		for _, p := range all {
			if p.parent == todo[0] {
				family = append(family, p)
				todo = append(todo, p.pid)
			}
		}
	}
	return family
}

// gone waits until none of them, nor any other process in their network
// namespaces, lives. The kernel removes a namespace with its devices when
// nobody is in it and nobody holds it; holders would be among these, too.
func gone(t *testing.T, family []process) {
	t.Helper()
	own := processes(t)[os.Getpid()].space
	var left []process
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left = nil
		all := processes(t)
		for _, p := range family {
			if now, ok := all[p.pid]; ok && now.start == p.start {
				left = append(left, now)
				continue
			}
			for _, other := range all {
				if p.space != "" && p.space != own && other.space == p.space {
					left = append(left, other)
				}
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind: %+v", left)
}

// engine waits until the program has an engine process.
func engine(t *testing.T, pid int) process {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, p := range children(t, pid) {
			if p.role == roleEngine {
				return p
			}
		}
	}
	t.Fatal("there is no engine process")
	return process{}
}

func TestInterrupt(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	for _, c := range []struct {
		says string
		sig  syscall.Signal
	}{
		{"setting up", syscall.SIGINT}, {"measuring ping", syscall.SIGINT}, {"checking every byte", syscall.SIGTERM},
		{"measuring TCP", syscall.SIGINT},
	} {
		t.Run(strings.ReplaceAll(c.says, " ", "-"), func(t *testing.T) {
			interrupt(t, command(t, "-duration", "100ms"), c.says, c.sig)
		})
	}
}

// TestInterruptOrdinaryUser goes through the parent that waits for the
// program's second self in a user namespace.
func TestInterruptOrdinaryUser(t *testing.T) {
	requireRoot(t)
	netlab.Require(t, netlab.NeedTUN)
	interrupt(t, in(command(t), "nobody", syscall.CLONE_NEWNS), "measuring TCP", syscall.SIGINT)
}

func interrupt(t *testing.T, cmd *exec.Cmd, says string, sig syscall.Signal) {
	t.Helper()
	r := start(t, cmd, says)
	family := children(t, cmd.Process.Pid)
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	code, last := r.wait()
	if code != 130 || !strings.Contains(last, "interrupted") || r.stdout.Len() > 0 {
		t.Errorf("exit status %d, output %q, %q", code, &r.stdout, r.text())
	}
	for line := range strings.Lines(r.text()) {
		if strings.Contains(line, ": traffic: ") || strings.Contains(line, ": netlab: ") {
			t.Errorf("it blames something for the interrupt: %s", line)
		}
	}
	if len(family) == 0 && says == "measuring TCP" {
		t.Error("it had no children")
	}
	gone(t, family)
}

// TestKill gives the program no chance to clean up.
func TestKill(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	r := start(t, command(t), "measuring TCP")
	engine(t, r.cmd.Process.Pid)
	family := children(t, r.cmd.Process.Pid)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.wait()
	gone(t, family)
}

func TestEngineDies(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN)
	r := start(t, command(t), "measuring TCP")
	family := children(t, r.cmd.Process.Pid)
	if err := syscall.Kill(engine(t, r.cmd.Process.Pid).pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	code, last := r.wait()
	if code != 1 || !strings.Contains(last, "the engine of host") || !strings.Contains(last, "killed") || r.stdout.Len() > 0 {
		t.Errorf("exit status %d, output %q, last line %q", code, &r.stdout, last)
	}
	gone(t, family)
}
