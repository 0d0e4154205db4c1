package udp

import (
	"errors"

	"golang.org/x/sys/unix"
)

// withoutCaps runs fn on a thread that has lost some effective capabilities.
func withoutCaps(caps uint32, fn func() error) error {
	if caps == 0 {
		return fn()
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		return err
	}
	has := had
	has[0].Effective &^= caps
	if err := unix.Capset(&head, &has[0]); err != nil {
		return err
	}
	err := fn()
	return errors.Join(err, unix.Capset(&head, &had[0]))
}

// withFiles runs fn while the process may open files-1 more descriptors. Those that
// are free below the highest one in use are filled first.
func withFiles(files uint64, fn func() error) error {
	if files == 0 {
		return fn()
	}
	var had unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		return err
	}
	next, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(next)
	var fill []int
	defer func() {
		for _, fd := range fill {
			unix.Close(fd)
		}
	}()
	limit := uint64(0)
	for len(fill) < 64 { // until the numbers are consecutive
		fd, err := unix.Dup(next)
		if err != nil {
			return err
		}
		fill = append(fill, fd)
		limit = max(limit, uint64(fd)+1)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit + files - 1, Max: had.Max}); err != nil {
		return err
	}
	return errors.Join(fn(), unix.Setrlimit(unix.RLIMIT_NOFILE, &had))
}
