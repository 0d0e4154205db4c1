package dockertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// placeMark is a file in a directory that this package has made, and so removes.
const placeMark = "made-by-flannelkit-dockertest"

// takePlaces makes sure that directories are there, to mount something on in a room, and
// returns what gives them back. The last who does so, of all processes, removes those
// that were missing: a directory that is removed takes the mounts of all rooms along.
func takePlaces(dirs []string) (giveBack func() error, err error) {
	var taken []*os.File
	giveBack = func() error {
		var errs []error
		for _, f := range taken {
			errs = append(errs, givePlace(f))
		}
		taken = nil
		return errors.Join(errs...)
	}
	for _, dir := range dirs {
		f, err := takePlace(dir)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("a directory for a mount: %w", err), giveBack())
		}
		taken = append(taken, f)
	}
	return giveBack, nil
}

// takePlace opens a directory with a lock that it shares (flock(2)), which whoever
// removes it must have alone. The lock ends with the process, whatever ends that.
func takePlace(dir string) (*os.File, error) {
	for {
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			// Somebody who is just removing it may have taken it away again.
			if err := os.WriteFile(filepath.Join(dir, placeMark), nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		case !errors.Is(err, fs.ErrExist):
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := lockPlace(f, unix.LOCK_SH); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if isPlace(f) {
			return f, nil
		}
		_ = f.Close() // it was removed before it was locked
	}
}

// givePlace ends the lock, and removes the directory if nobody else has one.
func givePlace(f *os.File) error {
	defer f.Close()
	if err := lockPlace(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // somebody is in it
	}
	mark := filepath.Join(f.Name(), placeMark)
	if _, err := os.Lstat(mark); err != nil || !isPlace(f) {
		return nil // not ours
	}
	if entries, err := os.ReadDir(f.Name()); err != nil || len(entries) != 1 {
		return err // the machine's own engine uses it now
	}
	return errors.Join(os.Remove(mark), os.Remove(f.Name()))
}

func lockPlace(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isPlace reports whether the directory is still what its name says.
func isPlace(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(f.Name())
	return err == nil && os.SameFile(a, b)
}
