package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Lab owns namespaces and everything in them: links, impairers, processes.
// Its methods may be called from any goroutine.
type Lab struct {
	mu        sync.Mutex
	closed    bool
	spaces    []*NS
	processes []*Process
	impairers []*Impairer
	forker    *forker

	closing  sync.Once
	closeErr error
}

// New returns an empty lab. It creates nothing yet; the caller closes it.
func New() (*Lab, error) {
	return &Lab{}, nil
}

// ForTest returns a lab that is closed when the test ends. It skips the test, or fails
// it, as Require does, unless namespaces and the given needs work here.
func ForTest(t interface {
	TB
	Cleanup(fn func())
	Errorf(format string, args ...any)
}, needs ...Need) *Lab {
	t.Helper()
	Require(t, needs...)
	lab, err := New()
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return lab
}

// Close stops the impairers, kills the processes started by NS.Start that
// still run, and removes the namespaces with all that is in them. Close the
// sockets and TUN devices that you opened inside first: each of them keeps its
// namespace alive, so the error lists those still open after a second, and any
// other process that was found in a namespace (and killed). Further calls
// return the same error and do nothing.
func (l *Lab) Close() error {
	l.closing.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	l.closed = true
	spaces, processes, impairers, forker := l.spaces, l.processes, l.impairers, l.forker
	l.spaces, l.processes, l.impairers, l.forker = nil, nil, nil, nil
	l.mu.Unlock()

	var errs []error
	for _, i := range impairers {
		errs = append(errs, i.Close())
	}
	killed := make(map[int]bool)
	for _, p := range processes {
		if p.kill() {
			killed[p.Pid()] = true
		}
	}
	names := make(map[uint64]string, len(spaces))
	for _, n := range spaces {
		names[n.ino] = n.name
	}
	errs = append(errs, killStrangers(names, killed))
	for _, p := range processes {
		p.Wait() // its status is its caller's business
	}
	if forker != nil {
		forker.close()
	}
	// Our own descriptors stay until the others have been looked for: without them
	// another lab's new namespace may get the number of one of these.
	ours := make(map[int]bool, len(spaces))
	for _, n := range spaces {
		ours[n.closeHandle()] = true
	}
	errs = append(errs, waitUnused(names, ours))
	for _, n := range spaces {
		n.close()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("netlab: close lab: %w", err)
	}
	return nil
}

// adopt makes the lab the owner of a namespace.
func (l *Lab) adopt(n *NS) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.spaces = append(l.spaces, n)
	return nil
}

// killStrangers ends the processes in the given namespaces that do not belong
// to one of the killed groups, whose members may still be on their way out:
// what a process of the lab has started and left behind.
func killStrangers(names map[uint64]string, killed map[int]bool) error {
	if len(names) == 0 {
		return nil
	}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if group, err := unix.Getpgid(pid); err != nil || killed[group] {
			continue
		}
		name, ok := names[linkInode(path)]
		if !ok {
			continue
		}
		// A pidfd cannot come to mean another process, so look again with it open.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if _, ok := names[linkInode(path)]; ok {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			err = fmt.Errorf("killed process %d (%s), left in namespace %s", pid, strings.TrimSpace(string(comm)), name)
			if killErr := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
				err = fmt.Errorf("process %d is left in namespace %s: kill: %w", pid, name, killErr)
			}
			errs = append(errs, err)
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

// waitUnused waits up to a second until no descriptor but ours keeps
// one of the namespaces alive. A socket that was just closed may still be on
// its way out in another goroutine.
func waitUnused(names map[uint64]string, ours map[int]bool) error {
	const patience = time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := openDescriptors(names, ours)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// openDescriptors lists the descriptors of this process that keep one of the
// namespaces alive.
func openDescriptors(names map[uint64]string, ours map[int]bool) error {
	if len(names) == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || ours[fd] {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil {
			continue
		}
		var ino uint64
		switch {
		case strings.HasPrefix(target, "socket:"):
			ino = ownerNetns(fd, unix.SIOCGSKNS)
		case target == "/dev/net/tun":
			ino = ownerNetns(fd, unix.TUNGETDEVNETNS)
		default:
			ino = parseInode(target)
		}
		if name, ok := names[ino]; ok {
			errs = append(errs, fmt.Errorf("descriptor %d (%s) is still open in namespace %s", fd, target, name))
		}
	}
	return errors.Join(errs...)
}

// ownerNetns asks a socket or TUN device for its network namespace; 0 if it
// does not tell.
func ownerNetns(fd int, request uint) uint64 {
	ns, err := unix.IoctlRetInt(fd, request)
	if err != nil {
		return 0
	}
	defer unix.Close(ns)
	ino, err := inode(ns)
	if err != nil {
		return 0
	}
	return ino
}

// linkInode returns the inode number that a namespace link shows; 0 if it may
// not be read or the process is gone.
func linkInode(path string) uint64 {
	target, err := os.Readlink(path)
	if err != nil {
		return 0
	}
	return parseInode(target)
}

// parseInode reads "net:[4026531840]"; anything else is 0.
func parseInode(target string) uint64 {
	digits, ok := strings.CutPrefix(target, "net:[")
	if !ok {
		return 0
	}
	ino, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
	if err != nil {
		return 0
	}
	return ino
}
