package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// measureAll does everything that is planned and adds it to r.
func measureAll(ctx context.Context, o options, r *result.Run) error {
	steps := plan(o)
	p := newProgress(os.Stderr, steps)
	defer p.close()
	for len(steps) > 0 {
		n := 1
		for n < len(steps) && steps[n].mode == steps[0].mode {
			n++
		}
		if err := measureMode(ctx, o, steps[:n], p, r); err != nil {
			return fmt.Errorf("mode %s: %w", steps[0].mode, err)
		}
		steps = steps[n:]
	}
	return nil
}

// measureMode builds two hosts on a link in the mode of the steps, sets all candidates up, takes the steps, and removes
// everything. All candidates are up all the time: setting one up for each measurement would measure cold caches, and
// one that is idle costs nothing (the idle test checks that of those with processes).
func measureMode(ctx context.Context, o options, steps []step, p *progress, r *result.Run) (err error) {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{MTU: o.MTU})
	if err != nil {
		return err
	}
	ends := []netlab.End{{NS: hosts.HostA.NS, Link: hosts.HostA.Underlay}, {NS: hosts.HostB.NS, Link: hosts.HostB.Underlay}}
	if err := lab.SetLinkMode(linkMode(steps[0].mode), ends...); err != nil {
		return err
	}
	candidates, err := candidate.New(o.Candidates, o.Settings)
	if err != nil {
		return err
	}
	b := bench{options: o, a: traffic.In(hosts.HostA.NS), b: traffic.In(hosts.HostB.NS), hosts: hosts, guesses: map[guess]float64{}}
	byName := map[string]candidate.Candidate{}
	for _, c := range candidates {
		defer func() { err = errors.Join(err, c.Down()) }()
		if err := b.up(ctx, c, candidate.Bed{Lab: lab, Hosts: hosts}); err != nil {
			return fmt.Errorf("set up %s: %w", c.Name(), err)
		}
		byName[c.Name()] = c
	}
	for _, s := range steps {
		p.begin(s)
		sample, err := b.measure(ctx, s, byName[s.candidate])
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.test.Title(), s.candidate, err)
		}
		r.Samples = append(r.Samples, sample)
		p.end(s, sample.Took, fmt.Sprintf("%.4g %s", sample.Value, s.test.Unit()))
	}
	return nil
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

func linkMode(name string) netlab.LinkMode {
	switch name {
	case "M2":
		return netlab.M2
	case "M3":
		return netlab.M3
	}
	return netlab.M1
}
