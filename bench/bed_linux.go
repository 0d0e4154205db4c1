package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// measureAll does everything that is planned and adds it to r.
func measureAll(ctx context.Context, o options, r *result.Run) error {
	if _, err := candidate.New(o.Candidates); err != nil { // before the machine is touched
		return err
	}
	steps := plan(o)
	p := newProgress(os.Stderr, steps)
	defer p.close()
	for len(steps) > 0 {
		n := 1
		for n < len(steps) && steps[n].bed == steps[0].bed {
			n++
		}
		if err := measureBed(ctx, o, steps[:n], p, r); err != nil {
			return fmt.Errorf("%v: %w", steps[0].bed, err)
		}
		steps = steps[n:]
		if len(steps) > 0 && o.jsonFile != "" { // hours may follow, and what is measured is measured
			if err := r.Save(o.jsonFile); err != nil {
				return err
			}
		}
	}
	if len(r.Failures) > 0 {
		return fmt.Errorf("%d measurements failed, the first: %s", len(r.Failures), r.Failures[0])
	}
	return nil
}

// bench measures on one bed.
type bench struct {
	options
	hosts      *netlab.TwoHosts
	a, b       traffic.Place
	candidates map[string]candidate.Candidate // those that are up
	failed     map[string]int                 // measurements of a candidate that failed, one after the other
	guesses    map[guess]float64              // packets per second that the last search ended at, if it counts
	found      float64                        // those of the search just made; 0: it was none
}

// guess says what a search was about.
type guess struct {
	candidate string
	test      result.Test
}

// measureBed builds two hosts on a link as the steps want it, sets all candidates up, takes the steps, and removes
// everything. All candidates are up all the time: setting one up for each measurement would measure cold caches, and
// one that is idle costs nothing (the idle test checks that of those with processes).
func measureBed(ctx context.Context, o options, steps []step, p *progress, r *result.Run) (err error) {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{MTU: steps[0].bed.MTU})
	if err != nil {
		return err
	}
	for _, h := range []*netlab.Host{hosts.HostA, hosts.HostB} {
		// What one connection learnt about the path must not be the start of the next (tcp(7)).
		if err := h.Sysctl("net/ipv4/tcp_no_metrics_save", "1"); err != nil {
			return err
		}
	}
	ends := []netlab.End{{NS: hosts.HostA.NS, Link: hosts.HostA.Underlay}, {NS: hosts.HostB.NS, Link: hosts.HostB.Underlay}}
	if err := lab.SetLinkMode(linkMode(steps[0].bed.Mode), ends...); err != nil {
		return err
	}
	b := bench{
		options: o, hosts: hosts, a: traffic.In(hosts.HostA.NS), b: traffic.In(hosts.HostB.NS),
		candidates: map[string]candidate.Candidate{}, failed: map[string]int{}, guesses: map[guess]float64{},
	}
	defer func() {
		for _, c := range b.candidates {
			err = errors.Join(err, c.Down())
		}
	}()
	if err := b.upAll(ctx, steps[0].bed, r); err != nil {
		return err
	}
	for _, s := range steps {
		if err := b.take(ctx, s, p, r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failure := fmt.Sprintf("%v %s, %s, run %d: %v", s.bed, s.test.Title(), s.candidate, s.run, err)
			r.Failures = append(r.Failures, failure)
			b.failed[s.candidate]++
			p.end(s, 0, "failed: "+err.Error())
			continue
		}
		b.failed[s.candidate] = 0
	}
	return nil
}

// givenUp is after how many failures in a row a candidate is not measured any more on a bed.
const givenUp = 3

// upAll sets all candidates up that this machine can run, and notes the others.
func (b *bench) upAll(ctx context.Context, bed result.Bed, r *result.Run) error {
	candidates, err := candidate.New(b.options.Candidates)
	if err != nil {
		return err
	}
	for i, c := range candidates {
		err := b.up(ctx, c, candidate.Bed{Hosts: b.hosts, Index: i})
		if err == nil {
			b.candidates[c.Name()] = c
			note(r, fmt.Sprintf("%s: MTU %d on a link of %d", c.Name(), c.MTU(), bed.MTU))
			continue
		}
		if down := c.Down(); down != nil || !errors.Is(err, candidate.ErrUnavailable) || ctx.Err() != nil {
			return fmt.Errorf("set up %s: %w", c.Name(), errors.Join(err, down))
		}
		if r.Skipped == nil {
			r.Skipped = map[string]string{}
		}
		if r.Skipped[c.Name()] == "" {
			fmt.Fprintf(os.Stderr, "without %s: %v\n", c.Name(), err)
			r.Skipped[c.Name()] = err.Error()
		}
	}
	if len(b.candidates) == 0 {
		return errors.New("none of the candidates can run here")
	}
	return nil
}

// note adds a line to the policy, once.
func note(r *result.Run, line string) {
	if !slices.Contains(r.Policy, line) {
		r.Policy = append(r.Policy, line)
	}
}

// up sets a candidate up and waits until packets get through.
func (b *bench) up(ctx context.Context, c candidate.Candidate, bed candidate.Bed) error {
	if err := c.Up(ctx, bed); err != nil {
		return err
	}
	from, to := c.Addrs()
	_, err := traffic.Ping(ctx, b.a, traffic.PingConfig{Addr: to, Source: from, Count: 5, Interval: 10 * time.Millisecond})
	return err
}

// take takes one step, again where the machine was disturbed, and adds all samples to r. A step that is not for its
// candidate does nothing.
func (b *bench) take(ctx context.Context, s step, p *progress, r *result.Run) error {
	p.begin(s)
	c, up := b.candidates[s.candidate]
	if !up || !suits(s.test, c) || b.failed[s.candidate] >= givenUp {
		p.skip(s)
		return nil
	}
	for try := 0; ; try++ {
		sample, err := b.measure(ctx, s, c)
		if err != nil {
			return err
		}
		sample.Discarded = b.disturbed(sample)
		r.Samples = append(r.Samples, sample)
		if b.found > 0 && sample.Discarded == "" {
			b.guesses[guess{s.candidate, s.test}] = b.found
		}
		if sample.Discarded == "" || try >= b.Retries || ctx.Err() != nil {
			p.end(s, sample.Took, outcome(sample))
			return ctx.Err()
		}
		p.again(s, sample.Took, sample.Discarded)
	}
}

// suits tells whether a test means anything for a candidate.
func suits(t result.Test, c candidate.Candidate) bool {
	if tunnelOnly(t) {
		return len(c.PIDs()) > 0
	}
	if result.PeerTests()[t] > 0 {
		_, ok := c.(candidate.Crowd)
		return ok
	}
	return true
}

func outcome(s result.Sample) string {
	text := fmt.Sprintf("%.4g %s", s.Value, s.Test.Unit())
	if s.Discarded != "" {
		text += ", discarded: " + s.Discarded
	}
	return text
}

// disturbed says why a sample does not count: what the machine did meanwhile was not the benchmark's.
func (b *bench) disturbed(s result.Sample) string {
	switch {
	case s.Test == result.Memory: // read in a moment, and nobody can disturb it
	case s.Steal > b.MaxSteal:
		return fmt.Sprintf("the hypervisor took %.0f %% of the processors' time", s.Steal*100)
	case s.Others > b.MaxOthers:
		return fmt.Sprintf("other programs used %.2f processors", s.Others)
	}
	return ""
}

func linkMode(name string) netlab.LinkMode {
	switch name {
	case "M2":
		return netlab.M2
	case "M3":
		return netlab.M3
	}
	return netlab.M1
}
