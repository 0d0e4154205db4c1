package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guard has a program end with this process, and hold its lock. The parent of which the
// kernel speaks (PR_SET_PDEATHSIG, prctl(2)) is the thread: whoever starts the program
// has to keep it.
func guard(cmd *exec.Cmd, lock *os.File) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if lock != nil {
		cmd.ExtraFiles = []*os.File{lock}
	}
}

// hold locks a file that nobody else knows yet (flock(2)). The lock belongs to what was
// opened: a program that inherits the file has it as well, and so have its children.
// Without a file, and without an error, the file system knows no locks.
func hold(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := lockWithin(f, unix.LOCK_EX, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// drop ends a lock, also for whatever has inherited it and is running still.
func drop(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // there was none
	f.Close()
}

// await waits until nobody holds a file any more. A file that is not there is not held.
func await(path string, patience time.Duration) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return lockWithin(f, unix.LOCK_SH, patience)
}

// exclusive keeps other processes from changing a directory that ask for the same.
func exclusive(dir string, patience time.Duration) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := lockWithin(f, unix.LOCK_EX, patience); err != nil {
		f.Close()
		return nil, err
	}
	return func() { drop(f) }, nil
}

// lockWithin tries to lock a file until its time is up, when the error is errBusy. On a
// file system without locks it succeeds.
func lockWithin(f *os.File, how int, patience time.Duration) error {
	const pause = 10 * time.Millisecond
	end := time.Now().Add(patience)
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil, errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL):
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		case !time.Now().Before(end):
			return errBusy
		}
		time.Sleep(pause)
	}
}

// checkOwner refuses a directory into which somebody else may write.
func checkOwner(dir string, info fs.FileInfo) error {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	remedy := fmt.Sprintf("a file in it names the program that DEL runs: look what is in it, then \"chown %d:%d %s; chmod 0700 %[3]s\"", os.Geteuid(), os.Getegid(), dir)
	mode := info.Mode().Perm()
	switch {
	case s.Uid != 0 && int(s.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d (%s)", s.Uid, remedy)
	case mode&0o002 != 0, mode&0o020 != 0 && s.Gid != 0 && int(s.Gid) != os.Getegid():
		return fmt.Errorf("others may write to it, its mode is %04o (%s)", mode, remedy)
	}
	return nil
}
