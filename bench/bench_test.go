package main

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

func options3(t *testing.T, args ...string) options {
	t.Helper()
	o, err := parseOptions(append([]string{"-candidates", "native,vxlan,udp"}, args...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestPlan(t *testing.T) {
	o := options3(t, "-runs", "4", "-modes", "M1,M3")
	first := map[string]int{}     // how often a candidate comes first
	count := map[string]int{}     // by mode, test and candidate
	var before step               // the one planned before
	finished := map[string]bool{} // modes that are over
	for i, s := range plan(o) {
		if s.mode != before.mode {
			finished[before.mode] = true
			if finished[s.mode] {
				t.Fatalf("step %d goes back to mode %s", i, s.mode)
			}
		}
		if s.test == result.TCP1 && (before.test != s.test || before.run != s.run) {
			first[s.candidate]++
		}
		count[s.mode+" "+string(s.test)+" "+s.candidate]++
		if s.estimate <= 0 {
			t.Errorf("step %+v takes no time", s)
		}
		before = s
	}
	for _, mode := range o.Modes {
		for _, test := range result.Tests() {
			for _, c := range o.Candidates {
				want := o.Runs
				if tunnelOnly(test) {
					want = 1
					if c != "udp" {
						want = 0
					}
				}
				if got := count[mode+" "+string(test)+" "+c]; got != want {
					t.Errorf("%s %s %s is planned %d times, want %d", mode, test, c, got, want)
				}
			}
		}
	}
	for _, c := range o.Candidates {
		if n := first[c]; n < 2 {
			t.Errorf("%s comes first %d times of 8: the order does not rotate", c, n)
		}
	}
}

func TestQuickIsQuick(t *testing.T) {
	o := options3(t, "-quick")
	var all time.Duration
	modes := map[string]bool{}
	for _, s := range plan(o) {
		all += s.estimate
		modes[s.mode] = true
	}
	if all > 55*time.Second {
		t.Errorf("-quick takes %v by its own estimate, want less than a minute", all)
	}
	if len(modes) != 3 {
		t.Errorf("-quick leaves out modes: %v", modes)
	}
	if o := options3(t, "-quick", "-runs", "3", "-generator", "auto"); o.Runs != 3 || o.Generator != "auto" || o.Duration != time.Second {
		t.Errorf("-quick overrides what was asked for: %+v", o)
	}
}

func TestParseOptions(t *testing.T) {
	o := options3(t, "-modes", "M2, M1", "-gso", "off", "-checksums", "trust", "-engines", "2", "-json", "x.json")
	if strings.Join(o.Modes, " ") != "M2 M1" || !o.NoGSO || !o.TrustOuter || o.Engines != 2 || o.jsonFile != "x.json" {
		t.Errorf("options %+v", o)
	}
	if _, err := parseOptions([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v, want flag.ErrHelp", err)
	}
	for _, bad := range []string{
		"-runs=0", "-modes=M4", "-modes=", "-tests=tcp9", "-generator=netperf", "-gso=on", "-checksums=maybe", "-engines=0",
		"-mtu=100", "-duration=0s", "-rate=0", "-tolerance=0", "-pings=0", "stray", "-no-such-flag",
	} {
		if _, err := parseOptions([]string{bad}, io.Discard); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	steps := []step{
		{mode: "M1", run: 1, test: result.TCP1, candidate: "native", estimate: 10 * time.Second},
		{mode: "M1", run: 1, test: result.TCP1, candidate: "udp", estimate: 20 * time.Second},
	}
	p := &progress{out: &out, steps: steps}
	if got := p.left(); got != 30*time.Second {
		t.Errorf("left at the start = %v, want 30 s", got)
	}
	p.begin(steps[0])
	p.end(steps[0], 5*time.Second, "20 Gbit/s") // twice as fast as thought
	if got := p.left(); got != 10*time.Second {
		t.Errorf("left after the first = %v, want 10 s", got)
	}
	if got, want := out.String(), "[1/2] M1 TCP, 1 stream, native, run 1: 20 Gbit/s; about 10s left\n"; got != want {
		t.Errorf("progress says %q, want %q", got, want)
	}
}
