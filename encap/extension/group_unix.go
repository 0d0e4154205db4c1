//go:build unix

package extension

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// ownGroup has a command start in a process group of its own, and all of that be
// killed when its context ends. It can't be ignored; what has left the group, as
// setsid(1) does, is not reached.
func ownGroup(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	return nil
}
