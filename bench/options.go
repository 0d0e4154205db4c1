package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
)

// options are the flags.
type options struct {
	Runs       int           `json:"runs"`
	Duration   time.Duration `json:"duration_ns"`
	Warmup     time.Duration `json:"warmup_ns"`
	Trial      time.Duration `json:"trial_ns"`
	Tolerance  float64       `json:"tolerance"`
	Pings      int           `json:"pings"`
	Rate       float64       `json:"rate"` // Gbit/s of the CPU test
	Modes      []string      `json:"modes"`
	Candidates []string      `json:"candidates"`
	Tests      []string      `json:"tests"`
	Generator  string        `json:"generator"`
	Congestion string        `json:"congestion"`
	MTU        int           `json:"mtu"`
	Quick      bool          `json:"quick"`

	candidate.Settings

	jsonFile, markdownFile string
}

// parseOptions reads the command line. flag.ErrHelp means that help was asked for and given.
func parseOptions(args []string, out io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, "Compares ways to carry packets between two hosts, side by side on this machine. See README.md.\n\nusage: go run . [flags]\n\n")
		f.PrintDefaults()
	}
	f.BoolVar(&o.Quick, "quick", false, "a first look in under a minute: one short run, native, vxlan and udp alone, and only TCP outside mode M1")
	f.IntVar(&o.Runs, "runs", 5, "how often each thing is measured")
	f.DurationVar(&o.Duration, "duration", 4*time.Second, "length of one TCP or CPU measurement, after the warm-up")
	f.DurationVar(&o.Warmup, "warmup", time.Second, "TCP traffic before that; whole seconds with iperf3")
	f.DurationVar(&o.Trial, "trial", time.Second, "length of one trial in the search for the highest UDP rate")
	f.Float64Var(&o.Tolerance, "tolerance", 0.02, "how close that search gets, as a share of the rate")
	f.IntVar(&o.Pings, "pings", 500, "ICMP requests in one round trip measurement, one every 2 ms")
	f.Float64Var(&o.Rate, "rate", 2, "Gbit/s of TCP in the CPU measurement")
	modes := f.String("modes", "M1,M2,M3", "link modes: M1 veth as it is, M2 like a wire with checksum offload and GRO, M3 like the plainest wire")
	candidates := f.String("candidates", strings.Join(candidate.Names(), ","), "what to compare; ratios need native and vxlan")
	tests := f.String("tests", joinTests(measured()), "what to measure")
	f.StringVar(&o.Generator, "generator", "auto", "TCP traffic by iperf3, own, or auto: iperf3 where it is installed")
	f.StringVar(&o.Congestion, "congestion", "", "TCP congestion control, such as cubic; empty: the system's")
	f.IntVar(&o.MTU, "mtu", 1500, "MTU of the link in bytes; tunnels have that less their headers")
	f.IntVar(&o.Engines, "engines", 1, "udp: engines, and so queues and sockets, per host")
	gso := f.String("gso", "auto", "udp: segmentation offload on the socket: auto or off")
	checksums := f.String("checksums", "verify", "udp: inner checksums: verify, or trust the outer one")
	f.IntVar(&o.SourcePorts, "source-ports", 0, "udp: how many further source ports flows are spread over")
	f.StringVar(&o.jsonFile, "json", "", "write everything measured to this file")
	f.StringVar(&o.markdownFile, "md", "", "write the tables as Markdown to this file")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.Modes, o.Candidates, o.Tests = list(*modes), list(*candidates), list(*tests)
	o.NoGSO, o.TrustOuter = *gso == "off", *checksums == "trust"
	set := map[string]bool{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if o.Quick {
		o.shorten(set)
	}
	return o, errors.Join(
		oneOf("gso", *gso, "auto", "off"), oneOf("checksums", *checksums, "verify", "trust"),
		oneOf("generator", o.Generator, "auto", "iperf3", "own"), o.check(f.Args()))
}

// shorten makes the run quick, save for what was asked for.
func (o *options) shorten(set map[string]bool) {
	quick := func(name string, apply func()) {
		if !set[name] {
			apply()
		}
	}
	quick("runs", func() { o.Runs = 1 })
	quick("candidates", func() { o.Candidates = []string{result.Native, result.VXLAN, result.UDP} })
	quick("duration", func() { o.Duration = time.Second })
	quick("warmup", func() { o.Warmup = 300 * time.Millisecond })
	quick("trial", func() { o.Trial = 200 * time.Millisecond })
	quick("tolerance", func() { o.Tolerance = 0.05 })
	quick("pings", func() { o.Pings = 200 })
	quick("generator", func() { o.Generator = "own" }) // iperf3's own start and end take longer than the measurement
}

func (o *options) check(rest []string) error {
	var errs []error
	complain := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	complain(len(rest) > 0, "unexpected argument %q", rest)
	complain(o.Runs < 1, "-runs %d (at least 1)", o.Runs)
	complain(o.Duration <= 0 || o.Trial <= 0 || o.Warmup < 0, "-duration, -trial and -warmup must be positive")
	complain(o.Tolerance <= 0 || o.Tolerance > 0.5, "-tolerance %g (more than 0, at most 0.5)", o.Tolerance)
	complain(o.Pings < 1, "-pings %d (at least 1)", o.Pings)
	complain(o.Rate <= 0, "-rate %g (more than 0)", o.Rate)
	complain(o.Engines < 1 || o.Engines > 256, "-engines %d (1 to 256)", o.Engines)
	complain(o.MTU < 1280 || o.MTU > 65535, "-mtu %d (1280 to 65535)", o.MTU)
	complain(len(o.Modes) == 0 || len(o.Candidates) == 0 || len(o.Tests) == 0, "-modes, -candidates and -tests must not be empty")
	for _, m := range o.Modes {
		errs = append(errs, oneOf("modes", m, "M1", "M2", "M3"))
	}
	for _, t := range o.Tests {
		errs = append(errs, oneOf("tests", t, list(joinTests(measured()))...))
	}
	return errors.Join(errs...)
}

// measured are the tests that can be asked for.
func measured() []result.Test { return result.Tests() }

func joinTests(tests []result.Test) string {
	var names []string
	for _, t := range tests {
		names = append(names, string(t))
	}
	return strings.Join(names, ",")
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("-%s: no %q (it takes: %s)", flag, value, strings.Join(allowed, ", "))
}

// list splits a comma-separated list.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
