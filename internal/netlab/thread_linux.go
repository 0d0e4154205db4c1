package netlab

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNetns names the network namespace of the calling thread. /proc/self
// would name that of the main thread.
const ownNetns = "/proc/thread-self/ns/net"

// onThread runs fn on a thread of its own and waits for it. enter is called
// on that thread first and brings it into the wanted namespace, or fails and
// leaves it where it is; afterwards the thread goes back to where it came from. When that fails the goroutine ends
// while still locked, and the runtime destroys the thread with it.
//
// fn gets a goroutine of its own, so that a thread which cannot be brought
// back is nobody else's. If fn ends by runtime.Goexit (t.FailNow) the calling
// goroutine ends likewise.
func onThread(enter, fn func() error) error {
	var err error
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, openErr := openNetns(ownNetns)
		if openErr != nil {
			runtime.UnlockOSThread()
			err, returned = openErr, true
			return
		}
		defer unix.Close(home)
		if err = enter(); err != nil {
			runtime.UnlockOSThread() // it has not moved
			returned = true
			return
		}
		defer func() {
			if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
				err = errors.Join(err, fmt.Errorf("setns back: %w (this thread is given up)", back))
				return
			}
			runtime.UnlockOSThread()
		}()
		err = fn()
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// inNewNetns runs fn on a thread inside a network namespace that was created
// for it.
func inNewNetns(fn func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		return nil
	}, fn)
}

// openNetns opens a namespace file for setns.
func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// inode returns what tells one namespace from another.
func inode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat: %w", err)
	}
	return st.Ino, nil
}
