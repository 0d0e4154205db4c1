// Package durable makes changes of directories last.
package durable

import (
	"errors"
	"os"
	"runtime"
	"syscall"
)

// Dir has the names in a directory on the disk before it returns: after a rename or a
// link, the new file is there even if the machine fails, fsync(2). Some file systems, and
// Windows, know no such thing, which is no error.
func Dir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
