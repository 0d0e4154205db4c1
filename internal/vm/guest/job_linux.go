package main

import (
	"bytes"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/vm/wire"
)

// run runs one program to its end, and ends everything that it left behind, so that
// the next one finds no processes of its predecessor. It fills in end.
func (p *port) run(i int, job wire.Job, end *wire.Frame) {
	r, w, err := os.Pipe()
	if err != nil {
		end.Why = err.Error()
		return
	}
	defer r.Close()
	kernel := openKernelLog()
	defer kernel.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		w.Close()
		end.Why = err.Error()
		return
	}
	proc, err := os.StartProcess(job.Argv[0], job.Argv, &os.ProcAttr{
		Dir: job.Dir, Env: job.Env, Files: []*os.File{null, w, w},
		Sys: &unix.SysProcAttr{Setsid: true},
	})
	w.Close()
	null.Close()
	if err != nil {
		end.Why = err.Error()
		return
	}

	copied := make(chan struct{})
	go func() {
		defer close(copied)
		p.forward(i, r)
	}()
	ended := make(chan struct{})
	late := make(chan bool, 1)
	go func() { late <- watch(proc.Pid, job, ended) }()

	status := reap(proc.Pid)
	close(ended)
	end.Late = <-late
	// Process 1 is never hit by this (kill(2)), and everything else is the job's.
	_ = unix.Kill(-1, unix.SIGKILL)
	reap(-1)
	<-copied

	if status.Signaled() {
		end.Signal = int(status.Signal())
		end.Memory = kernel.outOfMemory()
	} else {
		end.Exit = status.ExitStatus()
	}
}

// forward sends what the program prints until all that hold the pipe are gone.
func (p *port) forward(i int, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.send(wire.Frame{Kind: wire.Output, Job: i, Data: buf[:n]})
		}
		if err != nil {
			return
		}
	}
}

// watch ends a program that runs too long, first with SIGQUIT, and reports whether
// it had to. The process is still there or a zombie while ended is open, so the
// number cannot mean another one.
func watch(pid int, job wire.Job, ended <-chan struct{}) bool {
	for _, step := range []struct {
		wait time.Duration
		sig  unix.Signal
	}{{job.Limit, unix.SIGQUIT}, {job.Grace, unix.SIGKILL}} {
		timer := time.NewTimer(step.wait)
		select {
		case <-ended:
			timer.Stop()
			return step.sig == unix.SIGKILL
		case <-timer.C:
			_ = unix.Kill(pid, step.sig)
		}
	}
	<-ended
	return true
}

// reap waits for a process, and meanwhile for every orphan, which is what process 1
// is there for. With pid -1 it waits until there is no child left.
func reap(pid int) unix.WaitStatus {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD
			return status
		case got == pid:
			return status
		}
	}
}

// A kernelLog reads the kernel's messages from the moment it was opened.
type kernelLog struct{ fd int }

func openKernelLog() kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return kernelLog{-1}
	}
	_, _ = unix.Seek(fd, 0, io.SeekEnd)
	return kernelLog{fd}
}

// Close ends it.
func (k kernelLog) Close() {
	if k.fd >= 0 {
		unix.Close(k.fd)
	}
}

// outOfMemory returns the message of mm/oom_kill.c, if the kernel killed something.
func (k kernelLog) outOfMemory() string {
	buf := make([]byte, 8<<10)
	for k.fd >= 0 {
		n, err := unix.Read(k.fd, buf) // one record a read
		if err == unix.EPIPE {         // some were overwritten meanwhile
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		_, text, _ := bytes.Cut(buf[:n], []byte(";"))
		text, _, _ = bytes.Cut(text, []byte("\n"))
		if bytes.Contains(text, []byte("ut of memory: Killed process")) {
			return string(text)
		}
	}
	return ""
}
