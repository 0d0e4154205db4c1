package orphan

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Name returns a name that nothing else has: the prefix, the number of this process and
// something random.
func Name(prefix string) string {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails, see its documentation
	return fmt.Sprintf("%s%d-%x", prefix, os.Getpid(), b)
}

// Sweep calls remove with the path of whatever in a directory has a name of Name's with
// the prefix, and was made by a process that is no more. It does what it can: errors are
// left to the next sweep. Processes of other pid namespaces (pid_namespaces(7)) look dead.
func Sweep(dir, prefix string, remove func(path string) error) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		pid, _, named := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); ours && named && err == nil && n > 0 && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			_ = remove(filepath.Join(dir, e.Name()))
		}
	}
}

// RemoveGroup removes a control group and those inside. Without processes there is
// nothing else in them to remove (cgroups(7)); with one the error is EBUSY. That there
// is no such group is no error.
func RemoveGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, RemoveGroup(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
