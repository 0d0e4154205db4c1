package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress says on standard error what is going on: one line that changes on a
// terminal, otherwise a line when a new kind of work begins.
type progress struct {
	out   io.Writer
	width int // columns of the terminal; 0: it is none
	total time.Duration

	mu       sync.Mutex
	title    string
	done     time.Duration // estimates of the steps that are over
	estimate time.Duration // of the present one
	since    time.Time
	topic    string // last one announced, without a terminal

	quit chan struct{}
	over sync.WaitGroup
}

// step is one thing that the demo does after the other.
type step struct {
	topic    string        // several steps have the same
	title    string        // what is done, for the progress line and for errors
	estimate time.Duration // how long it takes
	limit    time.Duration // after which it has failed
	run      func(context.Context) error
}

// redraw is how often the line on a terminal changes.
const redraw = 100 * time.Millisecond

// barWidth is the length of the bar in characters.
const barWidth = 20

// newProgress starts showing progress of work that will take total.
func newProgress(out io.Writer, width int, total time.Duration) *progress {
	p := &progress{out: out, width: width, total: total, quit: make(chan struct{})}
	if width == 0 {
		fmt.Fprintf(out, "twohosts: two hosts, two containers, one tunnel; about %v\n", total.Round(time.Second))
		return p
	}
	p.over.Go(func() {
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.draw()
			case <-p.quit:
				return
			}
		}
	})
	return p
}

// begin announces the next step. Steps with one topic share a line where there
// is no terminal.
func (p *progress) begin(s step) {
	p.mu.Lock()
	p.done += p.estimate
	p.title, p.estimate, p.since = s.title, s.estimate, time.Now()
	announce := p.width == 0 && s.topic != p.topic
	p.topic = s.topic
	p.mu.Unlock()
	if announce {
		fmt.Fprintln(p.out, "twohosts: "+s.topic)
	}
	p.draw()
}

// draw renews the line on a terminal.
func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width == 0 || p.title == "" {
		return
	}
	fmt.Fprint(p.out, "\r\x1b[K"+p.line(time.Since(p.since)))
}

// line is the text of the line when the present step has taken so long.
func (p *progress) line(elapsed time.Duration) string {
	at := p.done + min(elapsed, p.estimate) // a step that takes longer than thought stands still
	full := 0
	if p.total > 0 {
		full = min(int(barWidth*at/p.total), barWidth)
	}
	left := max(p.total-at, 0).Round(time.Second)
	text := []rune(fmt.Sprintf(" [%s%s] %3v  %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), left, p.title))
	return string(text[:min(len(text), p.width-1)]) // a line that wraps can't be taken back
}

// close removes the line.
func (p *progress) close() {
	close(p.quit)
	p.over.Wait()
	p.clear()
}

// clear makes room for a line of somebody else; the next redraw brings the line back.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width > 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
