package cost

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/traffic"
	"golang.org/x/sys/unix"
)

// callsRole makes a known number of system calls: half on a thread that was there, half on a new one.
func callsRole(ctx context.Context, link *traffic.Link) error {
	var n int
	if err := link.Config(ctx, &n); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := link.Send("ready", nil); err != nil {
		return err
	}
	if err := link.Next(ctx, "go", nil); err != nil {
		return err
	}
	old, err := threadsOf([]int{os.Getpid()})
	if err != nil {
		return err
	}
	for range n / 2 {
		unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
	}
	done, found := make(chan struct{}), false
	for !found {
		ran := make(chan bool)
		go func() {
			runtime.LockOSThread()
			isNew := !slices.Contains(old, unix.Gettid())
			for range n / 2 {
				if isNew {
					unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
				}
			}
			ran <- isNew
			<-done // holds the thread, so that the next is another
		}()
		found = <-ran
	}
	close(done)
	return link.Send("done", nil)
}

// TestSyscalls counts those of a process that makes a known number.
func TestSyscalls(t *testing.T) {
	const n = 100_000
	p, err := traffic.Start(nil, "calls", n)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Next(t.Context(), "ready", nil); err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{PIDs: []int{p.PID()}, Syscalls: true})
	err = p.Send("go", nil)
	if err == nil {
		err = p.Next(t.Context(), "done", nil)
	}
	c := stop(t, w)
	if err != nil {
		t.Fatal(err)
	}
	needPerf(t, c)
	if c.Syscalls < n || c.Syscalls > n+n/10 { // the runtime's own make the rest
		t.Errorf("%d system calls, want a little more than %d", c.Syscalls, n)
	}
}

// needPerf skips the test where system calls can't be counted, or fails it where they must.
func needPerf(t *testing.T, c Cost) {
	t.Helper()
	if c.SyscallsUnknown == "" {
		return
	}
	if os.Getenv("FLANNELKIT_NEED_PERF") != "" {
		t.Fatal(c.SyscallsUnknown)
	}
	t.Skip(c.SyscallsUnknown)
}

// TestSyscallsUnknown: what can't be counted is never an error, and never 0 without a reason.
func TestSyscallsUnknown(t *testing.T) {
	gone := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]Config{
		"not asked":    {PIDs: []int{os.Getpid()}},
		"no process":   {Syscalls: true},
		"gone process": {Syscalls: true, PIDs: []int{gone.Process.Pid}},
	} {
		c := stop(t, start(t, config))
		if c.Syscalls != 0 || c.SyscallsUnknown == "" {
			t.Errorf("%s: %d system calls, %q", name, c.Syscalls, c.SyscallsUnknown)
		}
	}
}

// TestDetachedTracefs finds the tracepoint where tracefs is not mounted, as where it is.
func TestDetachedTracefs(t *testing.T) {
	want, err := tracepoint()
	if err != nil {
		t.Skip(err)
	}
	text, err := readDetached()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseID(text); err != nil || got != want {
		t.Errorf("number %d, want %d: %v", got, want, err)
	}
}
