package main

import (
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
)

// A suite is a question, and the flags that answer it. A flag on the command line is stronger.
type suite struct {
	name, about string
	candidates  []string
	tests       []string
	change      func(o *options, unset func(flag string) bool)
}

// yardsticks are what ratios are made with.
var yardsticks = []string{result.Native, result.VXLAN}

func suites() []suite {
	floors := names(result.TCP1, result.UDP64, result.UDP1400, result.RTT, result.CPU, result.Idle, result.Memory)
	return []suite{
		{"standard", "everything of everyone in all modes: hours", candidate.Names(), everything(), nil},
		{"quick", "a first look in under a minute; outside the first mode only one TCP stream", with(result.UDP), floors, quick},
		{"floors", "the engine and the floors and aims that the project has set", with(result.UDP), floors, nil},
		{"ablation", "what each optimisation of the engine is worth, in M2", with(append([]string{result.UDP}, ablations...)...),
			names(result.TCP1, result.UDP64, result.UDP1400, result.CPU, result.CPUPacket), onlyMode("M2")},
		{"engines", "scaling with engines: several streams and flows, one to four engines, in M1", with(
			result.UDP, "udp:engines=2", "udp:engines=2+ports=4", "udp:engines=4+ports=8"),
			names(result.TCP1, result.TCP4, result.TCP16, result.UDP64, result.CPU, result.Memory), onlyMode("M1")},
		{"peers", "from one peer to ten thousand, in M1", with(result.UDP),
			names(result.Peers1, result.Peers10, result.Peers100, result.Peers1000, result.Peers10000), onlyMode("M1")},
	}
}

// ablations switch off one optimisation each.
var ablations = []string{
	"udp:gso=off", "udp:gro=off", "udp:trains=off", "udp:join=off", "udp:batch=1", "udp:briefsleep=off", "udp:offloads=off",
	"udp:checksums=trust", "udp:path=portable",
}

func with(names ...string) []string { return append(append([]string{}, yardsticks...), names...) }

// everything is all tests but those with many peers, which have a suite of their own.
func everything() []string {
	var out []string
	for _, t := range result.Measured() {
		if result.PeerTests()[t] == 0 {
			out = append(out, string(t))
		}
	}
	return out
}

// quick makes a run of single, short measurements.
func quick(o *options, unset func(string) bool) {
	for name, apply := range map[string]func(){
		"runs":      func() { o.Runs = 1 },
		"duration":  func() { o.Duration = time.Second },
		"warmup":    func() { o.Warmup = 300 * time.Millisecond },
		"trial":     func() { o.Trial = 200 * time.Millisecond },
		"tolerance": func() { o.Tolerance = 0.05 },
		"pings":     func() { o.Pings = 200 },
		// A single look has nothing to put in the place of what it would discard; the report says how disturbed it was.
		"max-steal":  func() { o.MaxSteal = 1 },
		"max-others": func() { o.MaxOthers = 10_000 },
		"retries":    func() { o.Retries = 0 },
		"generator":  func() { o.Generator = "own" }, // iperf3's own start and end take longer than the measurement
	} {
		if unset(name) {
			apply()
		}
	}
}

func onlyMode(mode string) func(*options, func(string) bool) {
	return func(o *options, unset func(string) bool) {
		if unset("modes") {
			o.Modes = []string{mode}
		}
	}
}

// apply fills in what the suite says and the flags do not.
func (o *options) apply(set map[string]bool) error {
	if err := oneOf("suite", o.Suite, suiteNames()...); err != nil {
		return err
	}
	for _, s := range suites() {
		if s.name != o.Suite {
			continue
		}
		if !set["candidates"] {
			o.Candidates = s.candidates
		}
		if !set["tests"] {
			o.Tests = s.tests
		}
		if s.change != nil {
			s.change(o, func(flag string) bool { return !set[flag] })
		}
	}
	return nil
}

func suiteNames() []string {
	var names []string
	for _, s := range suites() {
		names = append(names, s.name)
	}
	return names
}
