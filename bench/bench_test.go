package main

import (
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

func parse(t *testing.T, args ...string) options {
	t.Helper()
	o, err := parseOptions(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestPlan(t *testing.T) {
	o := parse(t, "-runs", "4", "-modes", "M1,M3", "-mtus", "1500,9000", "-candidates", "native,vxlan,udp")
	type key struct {
		bed       result.Bed
		test      result.Test
		candidate string
	}
	first := map[string]int{}         // how often a candidate comes first
	count := map[key]int{}            // how often each thing is measured
	var before step                   // the one planned before
	finished := map[result.Bed]bool{} // beds that are over
	for i, s := range plan(o) {
		if s.bed != before.bed {
			finished[before.bed] = true
			if finished[s.bed] {
				t.Fatalf("step %d goes back to %v", i, s.bed)
			}
		}
		if s.test == result.TCP1 && (before.test != s.test || before.run != s.run) {
			first[s.candidate]++
		}
		count[key{s.bed, s.test, s.candidate}]++
		if s.estimate <= 0 {
			t.Errorf("step %+v takes no time", s)
		}
		before = s
	}
	if n := len(o.beds()); n != 4 {
		t.Errorf("%d beds of two modes and two MTUs", n)
	}
	for _, bed := range o.beds() {
		for _, test := range result.Measured() {
			for _, c := range o.Candidates {
				want := o.Runs
				if test == result.Memory {
					want = 1
				}
				if result.PeerTests()[test] > 0 {
					want = 0 // a suite of their own
				}
				if got := count[key{bed, test, c}]; got != want {
					t.Errorf("%v %s %s is planned %d times, want %d", bed, test, c, got, want)
				}
			}
		}
	}
	for _, c := range o.Candidates {
		if n := first[c]; n < 4 {
			t.Errorf("%s comes first %d times of 16: the order does not rotate", c, n)
		}
	}
}

func TestQuickIsQuick(t *testing.T) {
	for _, args := range [][]string{{"-quick"}, {"-suite", "quick"}} {
		var all time.Duration
		modes := map[string]bool{}
		for _, s := range plan(parse(t, args...)) {
			all += s.estimate
			modes[s.bed.Mode] = true
		}
		if all > 55*time.Second {
			t.Errorf("%v takes %v by its own estimate, want less than a minute", args, all)
		}
		if len(modes) != 3 {
			t.Errorf("%v leaves out modes: %v", args, modes)
		}
	}
	o := parse(t, "-quick", "-runs", "3", "-generator", "auto", "-tests", "rtt")
	if o.Runs != 3 || o.Generator != "auto" || o.Duration != time.Second || !slices.Equal(o.Tests, []string{"rtt"}) {
		t.Errorf("-quick overrides what was asked for: %+v", o)
	}
}

// Every suite can be planned, and has the yardsticks that ratios need.
func TestSuites(t *testing.T) {
	for _, s := range suites() {
		o := parse(t, "-suite", s.name)
		if len(plan(o)) == 0 {
			t.Errorf("%s measures nothing", s.name)
		}
		for _, y := range yardsticks {
			if !slices.Contains(o.Candidates, y) {
				t.Errorf("%s is without %s", s.name, y)
			}
		}
		if o := parse(t, "-suite", s.name, "-modes", "M3", "-candidates", "native", "-tests", "tcp1"); len(o.Modes) != 1 || o.Modes[0] != "M3" ||
			len(o.Candidates) != 1 || len(o.Tests) != 1 {
			t.Errorf("%s is stronger than the flags: %+v", s.name, o)
		}
	}
}

func TestParseOptions(t *testing.T) {
	o := parse(t, "-modes", "M2, M1", "-mtus", "9000", "-candidates", "udp,udp:gso=off", "-json", "x.json")
	if strings.Join(o.Modes, " ") != "M2 M1" || o.MTUs[0] != 9000 || len(o.Candidates) != 2 || o.jsonFile != "x.json" {
		t.Errorf("options %+v", o)
	}
	if _, err := parseOptions([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v, want flag.ErrHelp", err)
	}
	for _, bad := range []string{
		"-runs=0", "-modes=M4", "-modes=", "-modes=M1,M1", "-tests=tcp9", "-tests=tcp1,tcp1", "-tests=tunnel", "-generator=netperf",
		"-mtus=100", "-mtus=x", "-mtus=", "-duration=0s", "-rate=0", "-rate=NaN", "-packet-rate=1", "-tolerance=0", "-tolerance=NaN", "-pings=0",
		"-max-steal=0", "-max-others=-1", "-retries=-1", "-suite=none", "stray", "-no-such-flag",
	} {
		if _, err := parseOptions([]string{bad}, io.Discard); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestDisturbed(t *testing.T) {
	b := bench{options: parse(t)}
	for _, tt := range []struct {
		steal, others float64
		want          string
	}{
		{0, 0, ""},
		{b.MaxSteal, b.MaxOthers, ""},
		{0.25, 0, "the hypervisor took 25 %"},
		{0, 0.5, "other programs used 0.50 processors"},
	} {
		got := b.disturbed(result.Sample{Steal: tt.steal, Others: tt.others})
		if (got == "") != (tt.want == "") || !strings.HasPrefix(got, tt.want) {
			t.Errorf("steal %v, others %v: %q, want %q", tt.steal, tt.others, got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	m1 := result.Bed{Mode: "M1", MTU: 1500}
	steps := []step{
		{bed: m1, run: 1, test: result.TCP1, candidate: "native", estimate: 10 * time.Second},
		{bed: m1, run: 1, test: result.TCP1, candidate: "udp", estimate: 20 * time.Second},
		{bed: m1, run: 1, test: result.Idle, candidate: "native", estimate: 5 * time.Second},
	}
	p := &progress{out: &out, steps: steps}
	if got := p.left(); got != 35*time.Second {
		t.Errorf("left at the start = %v, want 35 s", got)
	}
	p.begin(steps[0])
	p.again(steps[0], 2*time.Second, "the hypervisor took 14 %")
	p.end(steps[0], 3*time.Second, "20 Gbit/s") // both together twice as fast as thought
	p.skip(steps[2])
	if got := p.left(); got != 2500*time.Millisecond && got != 3*time.Second {
		t.Errorf("left after the first and one skipped = %v, want half of 5 s", got)
	}
	want := "[1/3] M1 TCP, 1 stream, native, run 1: discarded (the hypervisor took 14 %), again\n" +
		"[1/3] M1 TCP, 1 stream, native, run 1: 20 Gbit/s; about 13s left\n"
	if got := out.String(); got != want {
		t.Errorf("progress says %q, want %q", got, want)
	}
}

// The commands that need no measurement, with files of an earlier version of the benchmark.
func TestCommands(t *testing.T) {
	files, err := filepath.Glob("results/*.json*")
	if err != nil || len(files) == 0 {
		t.Fatal("no result files", err)
	}
	dir := t.TempDir()
	for _, file := range files {
		var out strings.Builder
		if err := show([]string{"-charts", dir, file}, &out, io.Discard); err != nil {
			t.Errorf("show %s: %v", file, err)
		}
		if !strings.Contains(out.String(), "Medians of") || !strings.Contains(out.String(), "│ test") {
			t.Errorf("show %s prints %.300q", file, out.String())
		}
	}
	if charts, _ := filepath.Glob(filepath.Join(dir, "*.svg")); len(charts) == 0 {
		t.Error("no charts")
	}
	var out strings.Builder
	if err := compare([]string{files[0], files[0]}, &out, io.Discard); err != nil || out.Len() == 0 {
		t.Errorf("compare: %v, %q", err, out.String())
	}
	md := filepath.Join(dir, "x.md")
	if err := show([]string{"-md", md, files[0]}, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(md); err != nil || !strings.Contains(string(b), "| test |") {
		t.Errorf("Markdown: %v, %.200s", err, b)
	}
	out.Reset()
	if err := listAll(nil, &out); err != nil || !strings.Contains(out.String(), "tcp64") || !strings.Contains(out.String(), "engines=") {
		t.Errorf("list: %v, %s", err, out.String())
	}
	for _, bad := range [][]string{{"compare"}, {"compare", "x"}, {"compare", "no-such.json", "no-such.json"}, {"show"}, {"show", "no-such.json"}, {"show", "go.mod"}, {"list", "x"}, {"docs", "no-such.md"}, {"docs", "-root", "results"}} {
		if err := command(bad); err == nil {
			t.Errorf("%v: no error", bad)
		} else {
			t.Log(err)
		}
	}
}
