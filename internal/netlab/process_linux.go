package netlab

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a program that runs in a namespace of a lab.
type Process struct {
	cmd  *exec.Cmd
	wait func() error
}

// Start starts cmd inside the namespace. The caller prepares cmd as for
// cmd.Start and waits with the returned Process, not with cmd. The lab kills
// the process group at Close; if this program dies first, the kernel kills the
// process. Start sets SysProcAttr.Setpgid and Pdeathsig, and WaitDelay to five
// seconds if it is zero, so that a grandchild that keeps a pipe open cannot
// block Wait.
func (n *NS) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 5 * time.Second
	}
	p := &Process{cmd: cmd, wait: sync.OnceValue(cmd.Wait)}
	op := "start " + cmd.Path

	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock() // until the lab knows the process: Close must find it
	if l.closed {
		return nil, n.errorf(op, ErrClosed)
	}
	if l.forker == nil {
		l.forker = newForker()
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if err := l.forker.start(n.fd, cmd); err != nil {
		return nil, n.errorf(op, err)
	}
	l.processes = append(l.processes, p)
	return p, nil
}

// Run starts cmd inside the namespace, as Start does, and waits for its end.
// The error is that of cmd.Wait, an *exec.ExitError for a status other than 0.
func (n *NS) Run(cmd *exec.Cmd) error {
	p, err := n.Start(cmd)
	if err != nil {
		return err
	}
	return p.Wait()
}

// Wait waits for the end of the process and returns what cmd.Wait returned. It
// may be called any number of times, from any goroutine.
func (p *Process) Wait() error { return p.wait() }

// Pid returns the process id, which is also that of its process group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process alone. After its end it returns
// os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// kill ends the process and its group, and reports whether it still ran.
func (p *Process) kill() bool {
	// While nobody has waited for the leader, its number cannot name another
	// group.
	if p.cmd.Process.Signal(syscall.Signal(0)) != nil {
		return false
	}
	return unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) == nil
}

// A forker starts processes from one thread that lives as long as the lab. The
// death signal of a child is tied to the thread that forked it, so a thread
// that the runtime may retire would take its children with it.
type forker struct {
	jobs chan func()
	done chan struct{}
}

func newForker() *forker {
	f := &forker{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for job := range f.jobs {
			job()
		}
	}()
	return f
}

// start forks inside the namespace and stays there: whoever forks next enters
// another one first, and nothing else runs on this thread.
func (f *forker) start(netns int, cmd *exec.Cmd) error {
	result := make(chan error, 1)
	f.jobs <- func() {
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- cmd.Start()
	}
	return <-result
}

// close ends the thread. It returns before the kernel has destroyed it.
func (f *forker) close() {
	close(f.jobs)
	<-f.done
}
