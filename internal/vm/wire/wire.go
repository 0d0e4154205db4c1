// Package wire is what package vm and the first program of its guest say to each
// other: a Plan, in a file of the guest's initramfs, and Frames, one JSON object a
// line, over the first serial port.
package wire

import "time"

const (
	// PlanFile is where the guest finds its Plan.
	PlanFile = "/vm/plan.json"
	// Port is the serial port that carries frames and nothing else; the kernel's
	// messages have the second one.
	Port = "/dev/ttyS0"
	// Console is the kernel's name of the second port, for its command line.
	Console = "ttyS1"
)

// A Plan is all that a guest does between boot and power-off.
type Plan struct {
	Jobs []Job // run one after the other
}

// A Job is one program, usually a test binary.
type Job struct {
	Argv    []string
	Dir     string // the working directory
	Env     []string
	Modules []Module // loaded before the program starts, in this order
	// Limit is how long the program may run by the guest's clock. Then it gets
	// SIGQUIT, which has a Go program print its goroutines, and Grace later SIGKILL.
	Limit, Grace time.Duration
}

// A Module is a file of the initramfs.
type Module struct {
	Name, Path string
}

// A Kind says what a Frame reports.
type Kind string

// The frames come in this order: up, then for each job start, out as often as the
// program prints, end; then down. Fatal may come at any place, and is the last one.
const (
	Up     Kind = "up"     // the kernel and the first program run; Data is the kernel's release
	Start  Kind = "start"  // a job begins
	Output Kind = "output" // Data is what its program printed
	End    Kind = "end"    // the job is over
	Down   Kind = "down"   // all jobs are over, the machine powers off
	Fatal  Kind = "fatal"  // Why the first program cannot go on
)

// A Frame is one report of the guest.
type Frame struct {
	Kind Kind
	Job  int    // index in the Plan
	Data []byte `json:",omitempty"`

	// Of End:
	Exit   int    `json:",omitempty"` // the exit status, if no signal ended the program
	Signal int    `json:",omitempty"` // the signal that ended it
	Late   bool   `json:",omitempty"` // it exceeded Job.Limit
	Memory string `json:",omitempty"` // the kernel's message, if the program was killed for lack of memory
	Why    string `json:",omitempty"` // the program could not be started; or the reason of Fatal
}
