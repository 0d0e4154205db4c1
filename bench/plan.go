package main

import (
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

// A step is one measurement.
type step struct {
	bed       result.Bed
	run       int // from 1
	test      result.Test
	candidate string
	estimate  time.Duration
}

// plan puts all measurements in order. The bed changes least often: only what is measured on the same bed is ever
// compared. Within it each run does every test, and each test every candidate right after the other, so that a machine
// that gets slower or faster does so for all of them. The first candidate of one run is the last of the next: whoever
// comes first finds colder caches, and who comes last a fuller machine.
func plan(o options) []step {
	var steps []step
	for i, bed := range o.beds() {
		for run := 1; run <= o.Runs; run++ {
			for _, test := range o.tests(i == 0, run) {
				for _, candidate := range rotate(o.Candidates, run-1) {
					steps = append(steps, step{bed, run, test, candidate, o.estimate(test)})
				}
			}
		}
	}
	return steps
}

// beds are all combinations of link mode and MTU.
func (o options) beds() []result.Bed {
	var beds []result.Bed
	for _, mtu := range o.MTUs {
		for _, mode := range o.Modes {
			beds = append(beds, result.Bed{Mode: mode, MTU: mtu})
		}
	}
	return beds
}

// tests are those of one run. Memory, which is the most that there ever was, is read once, after everything else.
func (o options) tests(firstBed bool, run int) []result.Test {
	var tests []result.Test
	for _, t := range result.Measured() {
		switch {
		case !slices.Contains(o.Tests, string(t)):
		case t == result.Memory && run != o.Runs:
		case o.Suite == "quick" && !firstBed && t != result.TCP1:
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

// pingInterval is the time between two ICMP requests.
const pingInterval = 2 * time.Millisecond

// idleTime is the length of the idle measurement.
const idleTime = time.Second

// estimate is how long a measurement takes; the progress line corrects it as it learns.
func (o options) estimate(t result.Test) time.Duration {
	const processes = 150 * time.Millisecond // to start and end them
	search := processes + 9*(o.Trial+60*time.Millisecond)
	if n := result.PeerTests()[t]; n > 0 {
		return search + time.Duration(n)*100*time.Microsecond
	}
	switch t {
	case result.UDP64, result.UDP512, result.UDP1400, result.UDPMix:
		return search
	case result.RTT:
		return processes + time.Duration(o.Pings)*pingInterval
	case result.Idle:
		return idleTime
	case result.Memory:
		return time.Millisecond
	}
	return processes + o.Warmup + o.Duration + 250*time.Millisecond
}
