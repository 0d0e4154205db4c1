// Package env records where a benchmark ran: numbers without that are nobody's.
package env

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Environment is the machine, its settings and the program.
type Environment struct {
	Date     time.Time         `json:"date"`
	Command  string            `json:"command"`
	Commit   string            `json:"commit"` // with "-dirty" when there were changes; "unknown" outside a checkout
	Go       string            `json:"go"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Virtual  bool              `json:"virtual"` // the processor says that it runs under a hypervisor
	Memory   string            `json:"memory"`
	Tools    map[string]string `json:"tools"`
	Sysctl   map[string]string `json:"sysctl"`
	Load     float64           `json:"load"` // average over the minute before
	Warnings []string          `json:"warnings,omitempty"`
}

// busyLoad is the load average from which on a machine is not idle enough to measure on.
const busyLoad = 0.5

// Read looks at this machine. What cannot be found out is empty: no benchmark fails for it.
func Read(args []string) Environment {
	e := Environment{
		Date: time.Now().UTC().Truncate(time.Second), Command: commandLine(args), Commit: commit(),
		Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(),
		Kernel: strings.TrimSpace(read("/proc/sys/kernel/ostype") + " " + read("/proc/sys/kernel/osrelease")),
		Tools:  map[string]string{}, Sysctl: map[string]string{},
	}
	e.CPU, e.Virtual = parseCPUInfo(read("/proc/cpuinfo"))
	e.Memory = parseMemory(read("/proc/meminfo"))
	e.Load, _ = strconv.ParseFloat(first(read("/proc/loadavg")), 64)
	for _, key := range []string{
		"net/core/rmem_max", "net/core/wmem_max", "net/core/default_qdisc", "net/core/netdev_max_backlog",
		"net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/ipv4/tcp_congestion_control",
	} {
		if v := strings.Join(strings.Fields(read("/proc/sys/"+key)), " "); v != "" {
			e.Sysctl[strings.ReplaceAll(key, "/", ".")] = v
		}
	}
	if out, err := exec.Command("iperf3", "--version").Output(); err == nil {
		e.Tools["iperf3"] = strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
	}
	if e.Load > busyLoad {
		e.Warnings = append(e.Warnings, fmt.Sprintf("the machine was not idle at the start (load %.2f): expect a wide spread", e.Load))
	}
	return e
}

// Lines describes the environment in short lines.
func (e Environment) Lines() []string {
	machine := fmt.Sprintf("%d cores, %s, %s", e.Cores, e.CPU, e.Memory)
	if e.Virtual {
		machine += ", virtual"
	}
	lines := []string{
		e.Date.Format("2006-01-02 15:04 MST") + ", commit " + e.Commit,
		e.Kernel + ", " + e.Go,
		machine,
	}
	for _, v := range e.Tools {
		lines = append(lines, v)
	}
	return lines
}

// commandLine is the call as one would type it: the program's own path is go run's and says nothing.
func commandLine(args []string) string {
	return strings.TrimSpace("go run . " + strings.Join(args, " "))
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	id := strings.TrimSpace(string(out))
	if out, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(out) > 0 {
		id += "-dirty"
	}
	return id
}

// parseCPUInfo finds the model, and the flag that a hypervisor shows.
func parseCPUInfo(text string) (model string, virtual bool) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "Model", "CPU part":
			if model == "" {
				model = strings.TrimSpace(value)
			}
		case "flags":
			virtual = virtual || slices.Contains(strings.Fields(value), "hypervisor")
		}
	}
	if model == "" {
		model = runtime.GOARCH
	}
	return model, virtual
}

func parseMemory(text string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, err := strconv.ParseInt(first(value), 10, 64)
			if err == nil {
				return fmt.Sprintf("%.1f GiB", float64(kb)/(1<<20))
			}
		}
	}
	return ""
}

func first(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return f[0]
	}
	return ""
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
