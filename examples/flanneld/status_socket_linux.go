package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockSocket keeps other daemons from looking for a dead one's socket and replacing it
// at the same time, which would be ours by then. It is held for some microseconds; who
// can't have it within a second does not wait for a broken one.
//
// The lock is a file beside the socket, of mode 0600: whoever may read a file, or a
// directory, may lock it (flock(2)), and everybody may read the directory. The file is
// there only while the lock is held, or its holder was killed.
func lockSocket(socket string) (unlock func(), err error) {
	name := socket + ".lock"
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		f, err := tryLock(name)
		if err == nil {
			return func() {
				_ = os.Remove(name) // first, so that it is ours
				_ = f.Close()       // which unlocks it
			}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// tryLock locks a file, which it makes. The error is EWOULDBLOCK if another has it.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	var locked, there fs.FileInfo
	if err == nil {
		locked, err = f.Stat()
	}
	if err == nil {
		there, err = os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(locked, there) {
			err = unix.EWOULDBLOCK // its holder has removed it: the next one is a new file
		}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
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
