package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) {
	if code, child := runRole(); child {
		os.Exit(code)
	}
	netlab.Main(m)
}

// short is what makes every measurement as short as it goes: what counts is that each gives a number.
var short = []string{
	"-runs", "1", "-modes", "M2", "-duration", "200ms", "-warmup", "50ms", "-trial", "20ms", "-tolerance", "0.5", "-retries", "0",
	"-max-steal", "1", "-max-others", "99", "-pings", "20", "-rate", "0.1", "-packet-rate", "2000", "-generator", "own",
}

// TestMeasure runs every test once over the yardsticks and the engine, and one over everything else that there is.
func TestMeasure(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN, netlab.NeedVXLAN)
	all := testNames()
	all = slices.DeleteFunc(all, func(name string) bool { return name == string(result.Peers10000) }) // setting so many up takes long
	for name, args := range map[string][]string{
		"tests":      {"-candidates", "native,vxlan,udp", "-tests", strings.Join(all, ",")},
		"candidates": {"-suite", "standard", "-mtus", "9000", "-tests", "tcp1,idle,memory"},
		"ablation":   {"-suite", "ablation", "-tests", "tcp1"},
		"engines":    {"-suite", "engines", "-tests", "tcp4"},
	} {
		t.Run(name, func(t *testing.T) {
			o := parse(t, append(slices.Clone(short), args...)...)
			r := result.Run{Modes: o.Modes, MTUs: o.MTUs, Candidates: o.Candidates}
			if err := measureAll(t.Context(), o, &r); err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, s := range r.Samples {
				seen[s.Candidate+" "+string(s.Test)] = true
				if s.Value <= 0 && s.Test != result.Idle {
					t.Errorf("%s %s: %v %s", s.Test, s.Candidate, s.Value, s.Test.Unit())
				}
				if len(s.Detail) == 0 {
					t.Errorf("%s %s has no raw result", s.Test, s.Candidate)
				}
				for _, d := range result.Tests() {
					if of, key := d.Of(); of == s.Test && key != "" && s.More[key] <= 0 && !(key == "syscalls") {
						t.Errorf("%s %s: no %s", s.Test, s.Candidate, d)
					}
				}
			}
			for _, test := range o.Tests {
				for _, c := range []string{result.Native, result.VXLAN, result.UDP} {
					if !seen[c+" "+test] && !tunnelOnly(result.Test(test)) && slices.Contains(o.Candidates, c) {
						t.Errorf("%s of %s was not measured", test, c)
					}
				}
			}
			for name, why := range r.Skipped {
				t.Logf("without %s: %s", name, why)
			}
			t.Log("\n" + r.Text())
		})
	}
}

// A measurement on a disturbed machine is thrown away, tried again, and kept in the raw results with the reason.
func TestMeasureDisturbed(t *testing.T) {
	netlab.Require(t)
	o := parse(t, append(slices.Clone(short), "-candidates", "native", "-tests", "rtt", "-retries", "2")...)
	o.MaxSteal = -1 // no machine is good enough
	r := result.Run{Modes: o.Modes, MTUs: o.MTUs, Candidates: o.Candidates}
	if err := measureAll(t.Context(), o, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Samples) != 3 {
		t.Fatalf("%d samples, want one and two repetitions", len(r.Samples))
	}
	for _, s := range r.Samples {
		if !strings.Contains(s.Discarded, "hypervisor") || s.Value <= 0 {
			t.Errorf("sample %+v", s)
		}
	}
	if s := r.Summary(result.Bed{Mode: "M2", MTU: 1500}, result.RTT, "native"); s.N != 0 {
		t.Errorf("discarded samples count: %+v", s)
	}
	if text := r.Text(); !strings.Contains(text, "discarded") {
		t.Errorf("the report does not say so:\n%s", text)
	}
}

func TestMeasureFails(t *testing.T) {
	netlab.Require(t)
	for _, args := range [][]string{
		{"-candidates", "native", "-modes", "M1", "-tests", "tcp1", "-generator", "own", "-congestion", "no-such"},
		{"-candidates", "native,no-such", "-modes", "M1", "-tests", "tcp1"},
		{"-candidates", "flannel:/no/such/flanneld", "-modes", "M1", "-tests", "tcp1"}, // nothing is left to measure
	} {
		var r result.Run
		if err := measureAll(t.Context(), parse(t, args...), &r); err == nil {
			t.Errorf("%v: no error", args)
		} else {
			t.Log(err)
		}
	}
}

// A candidate that breaks costs its own measurements, not the run.
func TestMeasureGoesOn(t *testing.T) {
	netlab.Require(t)
	o := parse(t, append(slices.Clone(short), "-candidates", "native,native-mtu", "-tests", "tcp1,rtt", "-congestion", "no-such", "-runs", "4")...)
	r := result.Run{Modes: o.Modes, MTUs: o.MTUs, Candidates: o.Candidates}
	err := measureAll(t.Context(), o, &r)
	if err == nil || len(r.Failures) == 0 || !strings.Contains(err.Error(), r.Failures[0]) {
		t.Fatalf("error %v, failures %q", err, r.Failures)
	}
	pings := 0
	for _, s := range r.Samples {
		if s.Test == result.RTT {
			pings++
		}
	}
	if pings != 8 {
		t.Errorf("%d round trip measurements, want all 8: the failures were of TCP, and never three in a row", pings)
	}
}
