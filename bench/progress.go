package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progress says on standard error what is being measured and how long all of it will still take: one line that changes on
// a terminal, a line for each measurement elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	steps    []step
	done     int
	planned  time.Duration // of the steps done, as estimated
	took     time.Duration // the same, in truth, repetitions included
}

func newProgress(f *os.File, steps []step) *progress {
	info, err := f.Stat()
	return &progress{out: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, steps: steps}
}

// left is the time that the remaining steps take, in the light of those done.
func (p *progress) left() time.Duration {
	var left time.Duration
	for _, s := range p.steps[p.done:] {
		left += s.estimate
	}
	if p.planned > 0 {
		left = time.Duration(float64(left) * float64(p.took) / float64(p.planned))
	}
	return left.Round(time.Second)
}

func (p *progress) what(s step, n int) string {
	return fmt.Sprintf("[%d/%d] %v %s, %s, run %d", n, len(p.steps), s.bed, s.test.Title(), s.candidate, s.run)
}

// begin announces the next step.
func (p *progress) begin(s step) {
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s; about %v left", p.what(s, p.done+1), p.left())
	}
}

// again says that the step is measured once more, because the machine was disturbed.
func (p *progress) again(s step, took time.Duration, why string) {
	p.took += took
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s, again: %s", p.what(s, p.done+1), why)
	} else {
		fmt.Fprintf(p.out, "%s: discarded (%s), again\n", p.what(s, p.done+1), why)
	}
}

// end records the step's outcome.
func (p *progress) end(s step, took time.Duration, outcome string) {
	p.done++
	p.planned += s.estimate
	p.took += took
	if !p.terminal {
		fmt.Fprintf(p.out, "%s: %s; about %v left\n", p.what(s, p.done), outcome, p.left())
	}
}

// skip passes over a step that is not for its candidate.
func (p *progress) skip(step) { p.done++ }

// close removes the changing line.
func (p *progress) close() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
