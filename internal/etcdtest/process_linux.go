package etcdtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// Namespace is where a server may run: a network namespace of a netlab.Lab.
type Namespace = netlab.NS

// launch starts cmd, in ns if that is not nil. The server dies with this process.
// ended gets the result of Wait when the process is over.
func launch(cmd *exec.Cmd, ns *Namespace) (ended <-chan error, err error) {
	result := make(chan error, 1)
	if ns != nil {
		p, err := ns.Start(cmd)
		if err != nil {
			return nil, err
		}
		go func() { result <- p.Wait() }()
		return result, nil
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal is tied to the thread that forks (prctl(2),
		// PR_SET_PDEATHSIG), so that one has to stay until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			result <- cmd.Wait()
		}
	}()
	return result, <-started
}

// inside runs fn where the server runs, since sockets belong to a namespace.
func inside(ns *Namespace, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// pause stops a process, or lets it go on, without its noticing.
func pause(p *os.Process, on bool) error {
	if !on {
		return p.Signal(unix.SIGCONT)
	}
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	// Each thread stops when it comes by; one that is busy may answer a last request.
	for late := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		running, err := runningThreads(p.Pid)
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(late) {
			return fmt.Errorf("%d threads of process %d run on", running, p.Pid)
		}
	}
}

// runningThreads counts the threads of a process that are not stopped (proc(5), field
// state of /proc/PID/task/TID/stat).
func runningThreads(pid int) (n int, err error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return 0, fmt.Errorf("no threads of process %d in /proc: %w", pid, os.ErrProcessDone)
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended meanwhile
		}
		// The name, in parentheses, may hold anything; the state follows it.
		if _, state, ok := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " "); ok && !strings.HasPrefix(state, "T") {
			n++
		}
	}
	return n, nil
}

// lock waits until no other process holds the lock of that name. The file stays,
// since whoever waits for it may have it open.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("flock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}
