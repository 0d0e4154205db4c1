package main

import (
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

// A step is one measurement.
type step struct {
	mode      string
	run       int // from 1
	test      result.Test
	candidate string
	estimate  time.Duration
}

// plan puts all measurements in order. The link mode changes least often: only what is measured in the same mode is ever
// compared. Within it each run does every test, and each test every candidate right after the other, so that a machine
// that gets slower or faster does so for all of them. The first candidate of one run is the last of the next: whoever
// comes first finds colder caches, and who comes last a fuller machine.
func plan(o options) []step {
	var steps []step
	for _, mode := range o.Modes {
		for run := 1; run <= o.Runs; run++ {
			for _, test := range o.tests(mode, run) {
				for _, candidate := range rotate(o.Candidates, run-1) {
					if tunnelOnly(test) && (candidate == result.Native || candidate == result.VXLAN) {
						continue
					}
					steps = append(steps, step{mode, run, test, candidate, o.estimate(test)})
				}
			}
		}
	}
	return steps
}

// tests are those of one run. What hardly varies is measured once: idle time and memory.
func (o options) tests(mode string, run int) []result.Test {
	var tests []result.Test
	for _, t := range result.Tests() {
		switch {
		case !slices.Contains(o.Tests, string(t)):
		case tunnelOnly(t) && run != o.Runs:
		case o.Quick && mode != o.Modes[0] && t != result.TCP1:
		case o.Quick && t == result.TCP4:
		default:
			tests = append(tests, t)
		}
	}
	return tests
}

// tunnelOnly tells whether a test is about the tunnel's own processes.
func tunnelOnly(t result.Test) bool { return t == result.Idle || t == result.Memory }

func rotate(names []string, by int) []string {
	by %= len(names)
	return slices.Concat(names[by:], names[:by])
}

// lookAround is how long a CPU measurement first looks what else the machine is busy with.
const lookAround = 250 * time.Millisecond

// pingInterval is the time between two ICMP requests.
const pingInterval = 2 * time.Millisecond

// idleTime is the length of the idle measurement.
const idleTime = time.Second

// estimate is how long a measurement takes; the progress line corrects it as it learns.
func (o options) estimate(t result.Test) time.Duration {
	const processes = 150 * time.Millisecond // to start and end them
	switch t {
	case result.CPU:
		return processes + lookAround + o.Warmup + o.Duration + 250*time.Millisecond
	case result.TCP1, result.TCP4:
		return processes + o.Warmup + o.Duration + 250*time.Millisecond
	case result.UDP64, result.UDP1400:
		return processes + 9*(o.Trial+60*time.Millisecond)
	case result.RTT:
		return processes + time.Duration(o.Pings)*pingInterval
	case result.Idle:
		return idleTime
	}
	return time.Millisecond
}
