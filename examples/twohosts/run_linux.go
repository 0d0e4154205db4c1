package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// demo is one run.
type demo struct {
	options
	lab    *netlab.Lab
	hosts  *netlab.TwoHosts
	procs  []*hostProc // A, then B
	plain  way
	tunnel way
	log    io.Writer // of the engines
	report *report
	noted  []counters // of each host when noteDrops last looked
}

// run builds the network, measures and removes everything.
func run(ctx context.Context, o options, stderr *os.File) (*report, error) {
	start := time.Now()
	if err := netlab.Enter(); err != nil { // without root, what follows runs in a child
		return nil, err
	}
	needs := []netlab.Need{netlab.NeedTUN}
	if o.IPv6 {
		needs = append(needs, netlab.NeedIPv6)
	}
	if err := netlab.Check(needs...); err != nil {
		return nil, err
	}
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// An interrupt, or an engine that died, ends all children at once, so that
	// nobody waits for anybody.
	stop := context.AfterFunc(ctx, func() { _ = lab.Close() })

	d := &demo{options: o, lab: lab, log: &syncWriter{w: stderr}, report: &report{}}
	err = d.measure(ctx, cancel, stderr)
	stop()
	if err == nil {
		err = d.closeHosts()
	}
	if closeErr := closeWithin(lab, cleanUpLimit); err == nil && closeErr != nil {
		err = fmt.Errorf("clean up: %w", closeErr)
	}
	if err != nil {
		return nil, err
	}
	d.report.Seconds = time.Since(start).Seconds()
	d.report.finish()
	return d.report, nil
}

// measure does one step after the other.
func (d *demo) measure(ctx context.Context, cancel context.CancelCauseFunc, stderr *os.File) error {
	steps := d.plan(cancel)
	var total time.Duration
	for _, s := range steps {
		total += s.estimate
	}
	width := terminalWidth(stderr)
	if d.Verbose {
		width = 0 // log lines and a line that changes do not go together
	}
	p := newProgress(stderr, width, total)
	defer p.close()
	for _, s := range steps {
		p.begin(s)
		if err := d.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// step does one step within its time and finds the real reason when it fails.
func (d *demo) step(ctx context.Context, s step) error {
	stepCtx, cancel := withLimit(ctx, s.limit)
	defer cancel()
	err := s.run(stepCtx)
	if err == nil {
		return context.Cause(ctx)
	}
	// What kills an engine breaks connections first: give the news time to come.
	const patience = 200 * time.Millisecond
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(patience):
	}
	if errors.Is(context.Cause(stepCtx), errLimit) {
		return fmt.Errorf("%s: not done after %v: nothing gets through, or the machine is far too busy", s.title, s.limit.Round(time.Second))
	}
	return fmt.Errorf("%s: %w", s.title, err)
}

// errLimit is the cause of a context that withLimit ended.
var errLimit = errors.New("time limit")

// withLimit is context.WithTimeout by the time that this process was there: one
// that was stopped (Ctrl-Z), or a machine that slept, finds the rest of it left.
func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		const beat = 100 * time.Millisecond
		tick := time.NewTicker(beat) // beats that nobody hears are dropped
		defer tick.Stop()
		for left := limit; left > 0; left -= beat {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel(errLimit)
	}()
	return ctx, func() { cancel(nil) }
}

// closeHosts ends both hosts' processes, which takes as long as the slower one.
func (d *demo) closeHosts() error {
	errs := make([]error, len(d.procs))
	var wg sync.WaitGroup
	for i, p := range d.procs {
		wg.Go(func() { errs[i] = p.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// closeWithin closes the lab, but does not wait longer than limit.
func closeWithin(lab *netlab.Lab, limit time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- lab.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("not done after %v (it goes with this process)", limit)
	}
}

// terminalWidth returns the columns of the terminal that f is, and 0 if it is
// none or can't take a line back.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || os.Getenv("TERM") == "dumb" {
		return 0
	}
	if size.Col == 0 {
		return 80 // a terminal that does not say
	}
	return int(size.Col)
}

// syncWriter lets two processes' logs share one writer.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}
