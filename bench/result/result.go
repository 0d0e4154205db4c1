// Package result holds what the benchmark has measured and turns it into medians, ratios, verdicts, tables and JSON. It
// measures nothing itself.
package result

import (
	"encoding/json"
	"time"

	"github.com/flannelkit/flannelkit/bench/env"
)

// Names of the candidates that others are compared with.
const (
	Native = "native"
	VXLAN  = "vxlan"
	UDP    = "udp" // this project's engine, which the floors are for
)

// A Test is one thing that is measured.
type Test string

// The tests.
const (
	TCP1    Test = "tcp1"    // Gbit/s of one TCP stream
	TCP4    Test = "tcp4"    // Gbit/s of four TCP streams together
	UDP64   Test = "udp64"   // highest loss-free rate of 64-byte UDP payloads, 1000 packets/s
	UDP1400 Test = "udp1400" // the same with 1400 bytes
	RTT     Test = "rtt"     // median ICMP round trip, microseconds
	CPU     Test = "cpu"     // processors the whole machine uses per Gbit/s of TCP at a fixed rate
	Idle    Test = "idle"    // processor time of the tunnel's processes without traffic, ms per second
	Memory  Test = "memory"  // most memory that one process of the tunnel had at any time, MiB

	// Tunnel is derived: CPU less the CPU of the native path in the same run.
	Tunnel Test = "tunnel"
)

// Tests returns all measured tests in the order of the report.
func Tests() []Test { return []Test{TCP1, TCP4, UDP64, UDP1400, RTT, CPU, Idle, Memory} }

// Title is what the report calls the test.
func (t Test) Title() string {
	switch t {
	case TCP1:
		return "TCP, 1 stream"
	case TCP4:
		return "TCP, 4 streams"
	case UDP64:
		return "UDP 64 B, no loss"
	case UDP1400:
		return "UDP 1400 B, no loss"
	case RTT:
		return "ping RTT"
	case CPU:
		return "CPU, whole machine"
	case Tunnel:
		return "CPU, tunnel only"
	case Idle:
		return "CPU, idle tunnel"
	case Memory:
		return "memory, one host"
	}
	return string(t)
}

// Unit is the unit of a sample's value.
func (t Test) Unit() string {
	switch t {
	case TCP1, TCP4:
		return "Gbit/s"
	case UDP64, UDP1400:
		return "kpps"
	case RTT:
		return "us"
	case CPU, Tunnel:
		return "cores/Gbit/s"
	case Idle:
		return "ms/s"
	case Memory:
		return "MiB"
	}
	return ""
}

// LowerIsBetter tells how to read the test.
func (t Test) LowerIsBetter() bool {
	switch t {
	case RTT, CPU, Tunnel, Idle, Memory:
		return true
	}
	return false
}

// A Sample is one measurement.
type Sample struct {
	Mode      string        `json:"mode"` // M1, M2 or M3
	Test      Test          `json:"test"`
	Candidate string        `json:"candidate"`
	Run       int           `json:"run"` // from 1; the candidates of one run were measured right after each other
	Start     time.Time     `json:"start"`
	Took      time.Duration `json:"took_ns"`
	Value     float64       `json:"value"` // in the test's unit
	// SenderFull says that nothing was lost up to what the sender could send, in a search for the highest rate: its
	// processor was full. The kernel does most of the work of a path in the time of the process that sends.
	SenderFull bool `json:"sender_full,omitempty"`
	// Note says what was not as it should be, such as a rate that could not be held.
	Note string `json:"note,omitempty"`
	// Steal is the share of the machine's time that the hypervisor gave to others meanwhile.
	Steal float64 `json:"steal"`
	// Detail is all that the generator said.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// A Run is everything one call of the benchmark has measured.
type Run struct {
	Environment env.Environment `json:"environment"`
	Options     map[string]any  `json:"options"`
	Quick       bool            `json:"quick"`
	Modes       []string        `json:"modes"`
	Candidates  []string        `json:"candidates"`
	Took        time.Duration   `json:"took_ns"`
	Samples     []Sample        `json:"samples"`
}

// Values returns the values of one test of one candidate in one mode, by run number.
func (r *Run) Values(mode string, test Test, candidate string) map[int]float64 {
	if test == Tunnel {
		return r.tunnel(mode, candidate)
	}
	values := map[int]float64{}
	for _, s := range r.Samples {
		if s.Mode == mode && s.Test == test && s.Candidate == candidate {
			values[s.Run] = s.Value
		}
	}
	return values
}

// tunnel subtracts, run by run, what the same traffic costs without a tunnel. There is no such thing for native itself.
func (r *Run) tunnel(mode, candidate string) map[int]float64 {
	values := map[int]float64{}
	if candidate == Native {
		return values
	}
	native := r.Values(mode, CPU, Native)
	for run, v := range r.Values(mode, CPU, candidate) {
		if base, ok := native[run]; ok {
			values[run] = v - base
		}
	}
	return values
}

// marks returns the notes of a cell, and whether the sender was full in any of its runs.
func (r *Run) marks(mode string, test Test, candidate string) (notes []string, full bool) {
	if test == Tunnel {
		test = CPU
	}
	for _, s := range r.Samples {
		if s.Mode != mode || s.Test != test || s.Candidate != candidate {
			continue
		}
		if s.Note != "" {
			notes = append(notes, s.Note)
		}
		full = full || s.SenderFull
	}
	return notes, full
}
