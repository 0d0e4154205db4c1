package cost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A callCounter counts the system calls of some processes: one event for each thread that was there at the start. What a
// thread starts afterwards, threads and processes, is counted by the same event.
type callCounter struct {
	events map[int]int // descriptors by thread number
}

// countCalls begins to count. Its error says why it can't, in words for the report.
func countCalls(pids []int) (*callCounter, error) {
	if len(pids) == 0 {
		return nil, errors.New("no process to count system calls of")
	}
	id, err := tracepoint()
	if err != nil {
		return nil, fmt.Errorf("system calls can't be counted: %w", err)
	}
	// A thread that starts between the list of threads and the opening of its parent's event is in neither; one that
	// starts later is in its parent's. Nobody can tell them apart, so all begins again until no thread is new.
	for range 20 {
		c := &callCounter{events: map[int]int{}}
		if err := c.open(pids, id); err != nil {
			c.close()
			return nil, fmt.Errorf("system calls can't be counted: %w", err)
		}
		threads, err := threadsOf(pids)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("system calls can't be counted: %w", err)
		}
		if c.has(threads) {
			return c, nil
		}
		c.close()
	}
	return nil, errors.New("system calls can't be counted: threads came faster than they could be watched")
}

// open opens an event for each thread there is.
func (c *callCounter) open(pids []int, id uint64) error {
	threads, err := threadsOf(pids)
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if _, twice := c.events[thread]; twice {
			continue
		}
		attr := unix.PerfEventAttr{
			Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Size: unix.PERF_ATTR_SIZE_VER0, Bits: unix.PerfBitInherit,
		}
		fd, err := unix.PerfEventOpen(&attr, thread, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		switch {
		case errors.Is(err, unix.ESRCH):
			continue // the thread has just ended
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return fmt.Errorf("perf_event_open: %w (needs root of the machine; see kernel.perf_event_paranoid)", err)
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOENT):
			return fmt.Errorf("perf_event_open: %w (this kernel has no perf events or no tracepoints)", err)
		case err != nil:
			return fmt.Errorf("perf_event_open: %w", err)
		}
		c.events[thread] = fd
	}
	return nil
}

// has says whether every thread has an event.
func (c *callCounter) has(threads []int) bool {
	for _, t := range threads {
		if _, ok := c.events[t]; !ok {
			return false
		}
	}
	return true
}

// stop returns the count and closes the events.
func (c *callCounter) stop() (sum uint64, err error) {
	defer c.close()
	for thread, fd := range c.events {
		var value [8]byte // the kernel fills all of it or fails
		if _, err := unix.Read(fd, value[:]); err != nil {
			return 0, fmt.Errorf("system calls of thread %d: read: %w", thread, err)
		}
		sum += binary.NativeEndian.Uint64(value[:])
	}
	return sum, nil
}

func (c *callCounter) close() {
	for _, fd := range c.events {
		unix.Close(fd)
	}
	c.events = nil
}

// threadsOf lists the threads of all processes. A process that is gone is an error.
func threadsOf(pids []int) ([]int, error) {
	var threads []int
	for _, pid := range pids {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		if err != nil {
			return nil, fmt.Errorf("threads of process %d: %w", pid, err)
		}
		for _, e := range entries {
			if t, err := strconv.Atoi(e.Name()); err == nil {
				threads = append(threads, t)
			}
		}
	}
	return threads, nil
}

// sysEnter is the file, within tracefs, with the number of the tracepoint that each system call passes.
const sysEnter = "events/raw_syscalls/sys_enter/id"

// tracepoint returns the number. Where tracefs is not mounted it is, for a moment and at no place that anyone could see.
func tracepoint() (uint64, error) {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		text, err := os.ReadFile(filepath.Join(dir, sysEnter))
		switch {
		case err == nil:
			return parseID(string(text))
		case !errors.Is(err, fs.ErrNotExist):
			return 0, fmt.Errorf("%w (needs root of the machine)", err)
		}
	}
	text, err := readDetached()
	if err != nil {
		return 0, fmt.Errorf("%w (needs root of the machine, and tracefs in the kernel)", err)
	}
	return parseID(text)
}

func parseID(text string) (uint64, error) {
	id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("tracefs: %s: %w", sysEnter, err)
	}
	return id, nil
}

// readDetached reads the file from a tracefs that is mounted nowhere: it ends with its descriptor (fsmount(2), Linux 5.2).
func readDetached() (string, error) {
	super, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("tracefs: fsopen: %w", err)
	}
	defer unix.Close(super)
	if err := unix.FsconfigCreate(super); err != nil {
		return "", fmt.Errorf("tracefs: fsconfig: %w", err)
	}
	mount, err := unix.Fsmount(super, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return "", fmt.Errorf("tracefs: fsmount: %w", err)
	}
	defer unix.Close(mount)
	buffer := make([]byte, 64)
	n, err := readAt(mount, sysEnter, buffer)
	if err != nil {
		return "", fmt.Errorf("tracefs: %s: %w", sysEnter, err)
	}
	return string(buffer[:n]), nil
}
