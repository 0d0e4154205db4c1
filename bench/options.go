package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

// options are the flags of a run.
type options struct {
	Suite      string        `json:"suite"`
	Runs       int           `json:"runs"`
	Duration   time.Duration `json:"duration_ns"`
	Warmup     time.Duration `json:"warmup_ns"`
	Trial      time.Duration `json:"trial_ns"`
	Tolerance  float64       `json:"tolerance"`
	Pings      int           `json:"pings"`
	Rate       float64       `json:"rate"`        // Gbit/s of the CPU test
	PacketRate float64       `json:"packet_rate"` // packets/s of the CPU per packet test
	Modes      []string      `json:"modes"`
	MTUs       []int         `json:"mtus"`
	Candidates []string      `json:"candidates"`
	Tests      []string      `json:"tests"`
	Generator  string        `json:"generator"`
	Congestion string        `json:"congestion"`
	MaxSteal   float64       `json:"max_steal"`
	MaxOthers  float64       `json:"max_others"`
	Retries    int           `json:"retries"`

	jsonFile, markdownFile, charts string
}

const runUsage = `Compares ways to carry packets between two hosts, side by side on this machine. See README.md.

usage: go run . [flags]              measure
       go run . compare OLD NEW     what changed between two result files
       go run . show FILE           tables and charts of a result file
       go run . list                candidates, tests and suites
       go run . docs                are the numbers in the documents those of the result files?

flags of a measurement:
`

// parseOptions reads the command line. flag.ErrHelp means that help was asked for and given.
func parseOptions(args []string, out io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, runUsage)
		f.PrintDefaults()
	}
	quick := f.Bool("quick", false, "the same as -suite quick: a first look in under a minute")
	f.StringVar(&o.Suite, "suite", "standard", "what to measure, unless other flags say so: "+strings.Join(suiteNames(), ", "))
	f.IntVar(&o.Runs, "runs", 5, "how often each thing is measured")
	f.DurationVar(&o.Duration, "duration", 4*time.Second, "length of one measurement, after the warm-up")
	f.DurationVar(&o.Warmup, "warmup", time.Second, "traffic before that; whole seconds with iperf3")
	f.DurationVar(&o.Trial, "trial", time.Second, "length of one trial in the search for the highest UDP rate")
	f.Float64Var(&o.Tolerance, "tolerance", 0.02, "how close that search gets, as a share of the rate")
	f.IntVar(&o.Pings, "pings", 500, "ICMP requests in one round trip measurement, one every 2 ms")
	f.Float64Var(&o.Rate, "rate", 2, "Gbit/s of TCP in the CPU measurement")
	f.Float64Var(&o.PacketRate, "packet-rate", 20_000, "packets per second in the measurement of the CPU time per packet")
	modes := f.String("modes", "M1,M2,M3", "link modes: M1 veth as it is, M2 like a wire with checksum offload and GRO, M3 like the plainest wire")
	mtus := f.String("mtus", "1500", "MTUs of the link in bytes, such as 1500,9000; tunnels have that less their headers")
	candidates := f.String("candidates", "", "what to compare (see list); ratios need native and vxlan; empty: the suite's")
	tests := f.String("tests", "", "what to measure (see list); empty: the suite's")
	f.StringVar(&o.Generator, "generator", "auto", "traffic of the tests tcp1 to tcp64 by iperf3, own, or auto: iperf3 where it is installed")
	f.StringVar(&o.Congestion, "congestion", "", "TCP congestion control, such as cubic; empty: the system's")
	f.Float64Var(&o.MaxSteal, "max-steal", 0.10, "a measurement is discarded when the hypervisor took more than this share of the processors' time")
	f.Float64Var(&o.MaxOthers, "max-others", 0.15, "and when other programs used more than so many processors")
	f.IntVar(&o.Retries, "retries", 2, "how often a discarded measurement is tried again")
	f.StringVar(&o.jsonFile, "json", "", "write everything measured to this file (compressed if it ends in .gz)")
	f.StringVar(&o.markdownFile, "md", "", "write the tables as Markdown to this file")
	f.StringVar(&o.charts, "charts", "", "write charts (SVG) to this folder")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	set := map[string]bool{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if *quick {
		o.Suite = "quick"
	}
	o.Modes, o.Candidates, o.Tests = list(*modes), list(*candidates), list(*tests)
	var mtuErr error
	o.MTUs, mtuErr = numbers(*mtus)
	suiteErr := o.apply(set)
	return o, errors.Join(mtuErr, suiteErr, oneOf("generator", o.Generator, "auto", "iperf3", "own"), o.check(f.Args()))
}

func (o *options) check(rest []string) error {
	var errs []error
	complain := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	complain(len(rest) > 0, "unexpected argument %q (flags come first; commands are compare, show, list and docs)", rest)
	complain(o.Runs < 1, "-runs %d (at least 1)", o.Runs)
	complain(o.Duration <= 0 || o.Trial <= 0 || o.Warmup < 0, "-duration, -trial and -warmup must be positive")
	complain(!(o.Tolerance > 0 && o.Tolerance <= 0.5), "-tolerance %g (more than 0, at most 0.5)", o.Tolerance)
	complain(o.Pings < 1, "-pings %d (at least 1)", o.Pings)
	complain(!(o.Rate > 0), "-rate %g (more than 0)", o.Rate)
	complain(!(o.PacketRate >= 100), "-packet-rate %g (at least 100)", o.PacketRate)
	complain(!(o.MaxSteal > 0) || !(o.MaxOthers > 0), "-max-steal %g, -max-others %g (more than 0)", o.MaxSteal, o.MaxOthers)
	complain(o.Retries < 0, "-retries %d (0 or more)", o.Retries)
	for _, mtu := range o.MTUs {
		complain(mtu < 1280 || mtu > 65535, "-mtus %d (1280 to 65535)", mtu)
	}
	complain(len(o.Modes) == 0 || len(o.MTUs) == 0 || len(o.Candidates) == 0 || len(o.Tests) == 0,
		"-modes, -mtus, -candidates and -tests must not be empty")
	complain(twice(o.Modes) || twice(o.MTUs) || twice(o.Tests), "-modes, -mtus and -tests take each value once")
	for _, m := range o.Modes {
		errs = append(errs, oneOf("modes", m, "M1", "M2", "M3"))
	}
	for _, t := range o.Tests {
		errs = append(errs, oneOf("tests", t, testNames()...))
	}
	return errors.Join(errs...)
}

// testNames are the tests that can be asked for.
func testNames() []string { return names(result.Measured()...) }

func names(tests ...result.Test) []string {
	var names []string
	for _, t := range tests {
		names = append(names, string(t))
	}
	return names
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("-%s: no %q (it takes: %s)", flag, value, strings.Join(allowed, ", "))
}

func twice[T comparable](values []T) bool {
	for i, v := range values {
		if slices.Contains(values[:i], v) {
			return true
		}
	}
	return false
}

// list splits a comma-separated list.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func numbers(s string) ([]int, error) {
	var out []int
	for _, field := range list(s) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("-mtus: %q is no number of bytes", field)
		}
		out = append(out, n)
	}
	return out, nil
}
