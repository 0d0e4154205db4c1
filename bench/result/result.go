// Package result holds what the benchmark has measured and turns it into medians, ratios, verdicts, tables and JSON. It
// measures nothing itself.
package result

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/bench/env"
)

// Names of the candidates that others are compared with.
const (
	Native = "native"
	VXLAN  = "vxlan"
	UDP    = "udp" // this project's engine, which the floors are for
)

// A Sample is one measurement.
type Sample struct {
	Mode      string `json:"mode"` // M1, M2 or M3
	MTU       int    `json:"mtu"`  // of the link, bytes
	Test      Test   `json:"test"`
	Candidate string `json:"candidate"`
	// Run is from 1; the candidates of one run were measured right after each other. A run number may come again: a sample
	// that was discarded and its repetition.
	Run   int           `json:"run"`
	Start time.Time     `json:"start"`
	Took  time.Duration `json:"took_ns"`
	Value float64       `json:"value"` // in the test's unit
	// More holds further values of the same measurement, by the key of the derived test: "p99", "rate", "syscalls".
	More map[string]float64 `json:"more,omitempty"`
	// SenderFull says that nothing was lost up to what the sender could send, in a search for the highest rate: its
	// processor was full. The kernel does most of the work of a path in the time of the process that sends.
	SenderFull bool `json:"sender_full,omitempty"`
	// Note says what was not as it should be, such as a rate that could not be held.
	Note string `json:"note,omitempty"`
	// Steal is the share of the machine's time that the hypervisor gave to others meanwhile.
	Steal float64 `json:"steal"`
	// Others is how many processors programs that are not the benchmark's used meanwhile.
	Others float64 `json:"others"`
	// Discarded says why the sample does not count: the machine was disturbed. Empty: it counts.
	Discarded string `json:"discarded,omitempty"`
	// Drops are packets that were lost, segments that were sent again and other signs of trouble, by counter: "a eth0
	// tx_dropped", "b softnet time_squeeze". One packet may be in several of them.
	Drops map[string]uint64 `json:"drops,omitempty"`
	// Detail is all that the generator said.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// A Run is everything one call of the benchmark has measured.
type Run struct {
	// Environment is the machine, its kernel, the commit and the command line, as they were at the start.
	Environment env.Environment `json:"environment"`
	// Options are the command's flags by name; durations are in nanoseconds and end in _ns. Numbers are of any type in a
	// run that was just measured, and float64 in one that was loaded.
	Options map[string]any `json:"options"`
	// Quick says that the run was too short to rest anything on: documents may not take numbers from it.
	Quick      bool     `json:"quick"`
	Modes      []string `json:"modes"`      // link modes, in the order of the report
	MTUs       []int    `json:"mtus"`       // of the link, bytes, in the order of the report
	Candidates []string `json:"candidates"` // as they were asked for, in the order of the report
	// Took is the wall time of everything: set-up, warming up, repetitions and samples that were discarded.
	Took time.Duration `json:"took_ns"`
	// Skipped are candidates that could not run here, and why.
	Skipped map[string]string `json:"skipped,omitempty"`
	// Failures are measurements that could not be made, and why. The run went on without them.
	Failures []string `json:"failures,omitempty"`
	// Policy says what is the same for all candidates and what is not: their MTUs, buffers, congestion control.
	Policy []string `json:"policy,omitempty"`
	// Samples are in the order in which they were measured, the discarded ones among them.
	Samples []Sample `json:"samples"`
}

// A Bed is the link between the two hosts. Only what was measured on the same bed is ever compared.
type Bed struct {
	Mode string `json:"mode"` // M1, M2 or M3
	MTU  int    `json:"mtu"`  // bytes; 0 is Ethernet's 1500
}

// standardMTU is Ethernet's, and needs no mention.
const standardMTU = 1500

// String is the mode, and the MTU where it is not Ethernet's usual one.
func (b Bed) String() string {
	if b = b.whole(); b.MTU == standardMTU {
		return b.Mode
	}
	return fmt.Sprintf("%s MTU %d", b.Mode, b.MTU)
}

// About says in a few words what the link is like, "" for an unknown mode.
func (b Bed) About() string {
	switch b.Mode {
	case "M1":
		return "veth as it is: packets of up to 64 KB pass whole"
	case "M2":
		return "like a wire between NICs with checksum offload: packets of MTU size, joined by the receiver"
	case "M3":
		return "like a wire between the plainest NICs: packets of MTU size, checksums in software"
	}
	return ""
}

// whole has the MTU filled in: 0 is Ethernet's.
func (b Bed) whole() Bed {
	if b.MTU == 0 {
		b.MTU = standardMTU
	}
	return b
}

// Bed is where the sample was measured.
func (s Sample) Bed() Bed { return Bed{s.Mode, s.MTU}.whole() }

// Valid tells whether the sample counts.
func (s Sample) Valid() bool { return s.Discarded == "" }
