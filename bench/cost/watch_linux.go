package cost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// Config says what to watch. The zero value watches the machine only: others' processor time and context switches.
type Config struct {
	// A and B are the two hosts, whose counters of lost packets are read. Either may be nil: it is left out.
	A, B *netlab.NS
	// PIDs are the tunnel's processes. They, and what descends from them, belong to the benchmark, as everything does that
	// descends from this process; and their system calls are counted if Syscalls is set.
	PIDs []int
	// Syscalls counts the system calls of PIDs by the tracepoint raw_syscalls:sys_enter (perf_event_open(2)). While it
	// lasts, every system call of every process of the machine takes longer: by 0.1 us, and by 0.25 us where it is counted
	// (measured on a virtual machine with Linux 6.18). Do it in a step whose speed is not the result. Where it can't be
	// done (it needs root of the machine) the Cost says why.
	Syscalls bool
}

// A Watch is a reading of all counters that waits for the second. It holds descriptors only if Config.Syscalls is set. Its
// method is for one goroutine.
type Watch struct {
	config  Config
	before  snapshot
	calls   *callCounter // nil: not counted
	unknown string       // why not
	stopped bool
}

// A snapshot is one reading of everything but the system calls.
type snapshot struct {
	a, b, machine counters
	processes     census
	cpu           traffic.CPUTimes
	at            time.Time // of the census
}

// Start reads the counters. The caller must call Stop, in any case: it frees what counts system calls. An error means that a
// counter could not be read that every Linux has, or that a namespace's lab is closed.
func Start(config Config) (*Watch, error) {
	w := &Watch{config: config, unknown: "not asked for"}
	var err error
	if w.before, err = w.read(w.drops, w.census); err != nil {
		return nil, fmt.Errorf("cost: start: %w", err)
	}
	if config.Syscalls {
		w.unknown = ""
		if w.calls, err = countCalls(config.PIDs); err != nil {
			w.unknown = err.Error()
		}
	}
	return w, nil
}

// Stop reads the counters again, returns what they rose by, and frees the Watch; a second call is an error. Devices and
// processes that came or went in between are none: see Cost for what is known of them.
func (w *Watch) Stop() (Cost, error) {
	if w.stopped {
		return Cost{}, errors.New("cost: stop: the watch was stopped before (start another)")
	}
	w.stopped = true
	c := Cost{SyscallsUnknown: w.unknown, Drops: map[string]uint64{}}
	if w.calls != nil {
		var err error
		if c.Syscalls, err = w.calls.stop(); err != nil {
			c.SyscallsUnknown = err.Error()
		}
	}
	after, err := w.read(w.census, w.drops) // the other way round: the short step stays in the middle
	if err != nil {
		return Cost{}, fmt.Errorf("cost: stop: %w", err)
	}
	c.Wall = after.at.Sub(w.before.at)
	c.Switches = sub(after.cpu.ContextSwitches, w.before.cpu.ContextSwitches)
	increase(c.Drops, "a", w.before.a, after.a)
	increase(c.Drops, "b", w.before.b, after.b)
	increase(c.Drops, "machine", w.before.machine, after.machine)

	roots := map[int]bool{os.Getpid(): true}
	for _, pid := range w.config.PIDs {
		roots[pid] = true
	}
	if c.Wall > 0 {
		used := time.Duration(outside(w.before.processes, after.processes, roots)) * tick
		// A process that began in between may have ended a parent's account that is older than the step: no more than all
		// processors can have been used.
		c.Others = min(used.Seconds()/c.Wall.Seconds(), float64(runtime.NumCPU()))
	}
	return c, nil
}

// read takes a snapshot, in the given order.
func (w *Watch) read(steps ...func(*snapshot) error) (s snapshot, err error) {
	for _, step := range steps {
		if err := step(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// drops reads the counters of lost packets.
func (w *Watch) drops(s *snapshot) (err error) {
	if s.a, err = readHost(w.config.A); err != nil {
		return err
	}
	if s.b, err = readHost(w.config.B); err != nil {
		return err
	}
	s.machine = newCounters()
	return eachFile("/proc/net", map[string]func(string){"softnet_stat": s.machine.addSoftnet})
}

// census reads who used the processors.
func (w *Watch) census(s *snapshot) (err error) {
	s.at = time.Now()
	if s.cpu, err = traffic.ReadCPU(); err != nil {
		return err
	}
	s.processes, err = readCensus(w.before.processes)
	return err
}

// readHost reads a namespace's counters. No namespace has none.
func readHost(ns *netlab.NS) (counters, error) {
	c := newCounters()
	if ns == nil {
		return c, nil
	}
	err := ns.Do(func() error {
		if err := c.addLinks(); err != nil {
			return err
		}
		if err := c.addQdiscs(); err != nil {
			return err
		}
		// The thread is in the namespace, the process is not: /proc/net would be that of the process.
		return eachFile("/proc/thread-self/net", map[string]func(string){
			"snmp": c.addTable, "netstat": c.addTable, "snmp6": c.addSNMP6, "stat/nf_conntrack": c.addConntrack,
		})
	})
	if err != nil {
		return c, fmt.Errorf("host %s: %w", ns.Name(), err)
	}
	return c, nil
}

// eachFile hands each file's text to its function. One that does not exist is left out: the kernel was built without, or
// the module is not loaded.
func eachFile(dir string, files map[string]func(string)) error {
	for name, add := range files {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		add(string(text))
	}
	return nil
}
