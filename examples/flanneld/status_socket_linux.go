package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockDirectory keeps other daemons from looking for a dead one's socket in a directory
// and replacing it at the same time, which would be ours by then. It is held for
// some microseconds; who can't have it within a second does not wait for a broken one.
func lockDirectory(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // which unlocks it
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			_ = f.Close() // it was only read
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// ownerOnly gives a socket that is not bound yet the mode that its file gets: so it never
// has another one. The kernel takes it from the socket's own inode (unix_bind in
// net/unix/af_unix.c).
func ownerOnly(c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
		return e
	}
	return err
}
