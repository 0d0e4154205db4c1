package traffic

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the times in /proc/stat and /proc/PID/stat: USER_HZ, which is 100 on every Linux.
const clockTick = 10 * time.Millisecond

// CPUTimes is what all processors together have done since boot, from the first line of /proc/stat (proc_stat(5)).
// Its steps are 10 ms.
type CPUTimes struct {
	User, Nice, System, Idle, IOWait, IRQ, SoftIRQ, Steal time.Duration
	ContextSwitches                                       uint64
	Processors                                            int // online
}

// ProcTimes is what one process has done so far, all its threads together.
type ProcTimes struct {
	User, System    time.Duration // from /proc/PID/stat; in steps of 10 ms
	ContextSwitches uint64        // voluntary and not, of the threads that still live
	Resident        int64         // bytes of memory in use (VmRSS) now
	PeakResident    int64         // the most it ever was (VmHWM)
}

// Usage is the difference between two readings.
type Usage struct {
	Wall time.Duration `json:"wall_ns"`
	// Busy is the whole machine's: all processors' time, less the idle, the waiting and the stolen. The kernel knows
	// when a processor was idle to the nanosecond; what it was busy with it only samples, mostly at 100 to 1000 Hz,
	// and work at regular intervals falls through such a sieve.
	Busy time.Duration `json:"busy_ns"`
	// BusySampled is the same from those samples: user, nice, system, interrupts and soft interrupts.
	BusySampled time.Duration `json:"busy_sampled_ns"`
	Steal       time.Duration `json:"steal_ns"`
	// ContextSwitches is the whole machine's.
	ContextSwitches uint64 `json:"context_switches"`
	// Procs are the processes given to StartMeter, in that order.
	Procs []ProcUsage `json:"procs,omitempty"`
}

// ProcUsage is one process's share of a Usage.
type ProcUsage struct {
	PID             int           `json:"pid"`
	CPU             time.Duration `json:"cpu_ns"` // user and system
	ContextSwitches uint64        `json:"context_switches"`
	Resident        int64         `json:"resident"` // bytes, at the end
	PeakResident    int64         `json:"peak_resident"`
}

// Cores is the busy time as a number of processors: 2 is all of a machine with two.
func (u Usage) Cores() float64 {
	if u.Wall <= 0 {
		return 0
	}
	return u.Busy.Seconds() / u.Wall.Seconds()
}

// A Meter measures from StartMeter to Stop. The time that work in soft interrupts takes is no process's: compare
// machines, not processes, when a kernel tunnel is among the candidates.
type Meter struct {
	pids  []int
	start time.Time
	cpu   CPUTimes
	procs []ProcTimes
}

// StartMeter reads the counters of the machine and of the given processes.
func StartMeter(pids ...int) (*Meter, error) {
	m := &Meter{pids: pids}
	for _, pid := range pids {
		p, err := ReadProc(pid)
		if err != nil {
			return nil, err
		}
		m.procs = append(m.procs, p)
	}
	var err error
	m.start = time.Now()
	m.cpu, err = ReadCPU()
	return m, err
}

// Stop reads them again and returns the difference. A process that is gone by then is an error.
func (m *Meter) Stop() (Usage, error) {
	u := Usage{Wall: time.Since(m.start)}
	cpu, err := ReadCPU()
	if err != nil {
		return Usage{}, err
	}
	u.BusySampled = cpu.Busy() - m.cpu.Busy()
	u.Steal = cpu.Steal - m.cpu.Steal
	u.Busy = max(0, time.Duration(cpu.Processors)*u.Wall-(cpu.Idle-m.cpu.Idle)-(cpu.IOWait-m.cpu.IOWait)-u.Steal)
	u.ContextSwitches = cpu.ContextSwitches - m.cpu.ContextSwitches
	for i, pid := range m.pids {
		p, err := ReadProc(pid)
		if err != nil {
			return Usage{}, err
		}
		u.Procs = append(u.Procs, ProcUsage{
			PID: pid, CPU: p.User + p.System - m.procs[i].User - m.procs[i].System,
			ContextSwitches: p.ContextSwitches - min(p.ContextSwitches, m.procs[i].ContextSwitches),
			Resident:        p.Resident, PeakResident: p.PeakResident,
		})
	}
	return u, nil
}

// Busy is the time in which a processor of this machine worked, as the kernel sampled it. Stolen time is not in it.
func (t CPUTimes) Busy() time.Duration { return t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ }

// ReadCPU reads /proc/stat. Where there is none it returns an error that wraps fs.ErrNotExist.
func ReadCPU() (CPUTimes, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPUTimes{}, fmt.Errorf("traffic: processor time: %w", err)
	}
	return parseCPU(string(b))
}

func parseCPU(text string) (CPUTimes, error) {
	var t CPUTimes
	found := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 9 && fields[0] == "cpu":
			for i, to := range []*time.Duration{&t.User, &t.Nice, &t.System, &t.Idle, &t.IOWait, &t.IRQ, &t.SoftIRQ, &t.Steal} {
				n, err := strconv.ParseInt(fields[i+1], 10, 64)
				if err != nil {
					return t, fmt.Errorf("traffic: /proc/stat: %w", err)
				}
				*to = time.Duration(n) * clockTick
			}
			found = true
		case len(fields) > 0 && strings.HasPrefix(fields[0], "cpu"):
			t.Processors++
		case len(fields) == 2 && fields[0] == "ctxt":
			t.ContextSwitches, _ = strconv.ParseUint(fields[1], 10, 64) // 0 if unreadable: it is only shown
		}
	}
	if !found {
		return t, errors.New("traffic: /proc/stat: no cpu line")
	}
	return t, nil
}

// ReadProc reads the counters of a process. Where there is no such process, or no /proc, it returns an error that wraps
// fs.ErrNotExist.
func ReadProc(pid int) (ProcTimes, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return ProcTimes{}, fmt.Errorf("traffic: processor time of process %d: %w", pid, err)
	}
	p, err := parseProcStat(b)
	if err != nil {
		return p, fmt.Errorf("traffic: processor time of process %d: %w", pid, err)
	}
	threads, err := filepath.Glob(filepath.Join(dir, "task", "*", "status"))
	if err != nil {
		return p, fmt.Errorf("traffic: threads of process %d: %w", pid, err)
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has just ended
		}
		if err != nil {
			return p, fmt.Errorf("traffic: threads of process %d: %w", pid, err)
		}
		p.addStatus(string(b))
	}
	return p, nil
}

// parseProcStat reads utime and stime, the 14th and 15th field. The second, the name, may hold spaces and brackets.
func parseProcStat(b []byte) (ProcTimes, error) {
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return ProcTimes{}, errors.New("short stat line")
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return ProcTimes{}, err
	}
	return ProcTimes{User: time.Duration(user) * clockTick, System: time.Duration(system) * clockTick}, nil
}

// addStatus adds one thread's status file: its own context switches, and the memory that all threads share.
func (p *ProcTimes) addStatus(text string) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			p.ContextSwitches += uint64(n)
		case "VmRSS":
			p.Resident = n << 10
		case "VmHWM":
			p.PeakResident = n << 10
		}
	}
}
