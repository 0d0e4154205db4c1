package vm

import (
	"os/exec"
	"runtime"
	"syscall"
)

// launch starts a program that dies with this process, whichever way that ends: a test
// binary that runs into -timeout runs no cleanup. ended gets the result of Wait.
func launch(cmd *exec.Cmd) (ended <-chan error, err error) {
	// A group of its own, so that Ctrl-C is the test's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error, 1)
	started := make(chan error)
	go func() {
		// The death signal is tied to the thread that forks (PR_SET_PDEATHSIG, prctl(2)),
		// so that one has to stay until the child is gone.
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
