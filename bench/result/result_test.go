package result

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/bench/env"
)

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Summary
	}{
		{nil, Summary{}},
		{[]float64{3}, Summary{1, 3, 3, 3}},
		{[]float64{4, 2}, Summary{2, 3, 2, 4}},
		{[]float64{5, 1, 3}, Summary{3, 3, 1, 5}},
		{[]float64{100, 2, 1, 3, 2.5}, Summary{5, 2.5, 1, 100}},
		{[]float64{-1, -3, -2, -4}, Summary{4, -2.5, -4, -1}},
	} {
		before := append([]float64(nil), test.values...)
		if got := Summarize(test.values); got != test.want {
			t.Errorf("Summarize(%v) = %+v, want %+v", test.values, got, test.want)
		}
		for i := range before {
			if before[i] != test.values[i] {
				t.Fatalf("Summarize changed its argument to %v", test.values)
			}
		}
	}
}

// sample makes a run of three modes and three candidates: values are by candidate, one for each run.
func sample(values map[Test]map[string][]float64) *Run {
	r := &Run{Modes: []string{"M1"}, Candidates: []string{Native, VXLAN, "udp"}, Took: 90 * time.Second}
	for test, byCandidate := range values {
		for candidate, list := range byCandidate {
			for i, v := range list {
				r.Samples = append(r.Samples, Sample{Mode: "M1", Test: test, Candidate: candidate, Run: i + 1, Value: v})
			}
		}
	}
	return r
}

func TestRatio(t *testing.T) {
	r := sample(map[Test]map[string][]float64{
		TCP1: {VXLAN: {10, 20, 30}, "udp": {9, 10, 27}},
		RTT:  {VXLAN: {0, 0, 0}, "udp": {1, 1, 1}},
		CPU:  {Native: {0.25, 0.5}, VXLAN: {0.5, 0.625, 9}, "udp": {0.75, 1.25}},
	})
	if got, want := r.Ratio("M1", TCP1, "udp", VXLAN), (Ratio{Of: 0.5, Min: 0.5, Max: 0.9, N: 3}); got != want {
		t.Errorf("Ratio = %+v, want %+v", got, want)
	}
	for _, none := range []Ratio{r.Ratio("M2", TCP1, "udp", VXLAN), r.Ratio("M1", TCP1, "udp", Native), r.Ratio("M1", RTT, "udp", VXLAN)} {
		if none.N != 0 {
			t.Errorf("a ratio of nothing, or to zero: %+v", none)
		}
	}
	// The third run of VXLAN has no native one beside it.
	if got, want := r.Summary("M1", Tunnel, VXLAN), (Summary{2, 0.1875, 0.125, 0.25}); got != want {
		t.Errorf("tunnel CPU of vxlan = %+v, want %+v", got, want)
	}
	if got := r.Summary("M1", Tunnel, Native); got.N != 0 {
		t.Errorf("tunnel CPU of native = %+v, want none", got)
	}
	if got, want := r.Ratio("M1", Tunnel, "udp", VXLAN).N, 2; got != want {
		t.Errorf("runs in the tunnel CPU's ratio = %d, want %d", got, want)
	}
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		name  string
		mode  string
		test  Test
		vxlan float64
		ours  float64
		met   bool
	}{
		{"M1 at the floor", "M1", TCP1, 10, 6, true},
		{"M1 below", "M1", TCP1, 10, 5.99, false},
		{"M2 at the floor", "M2", TCP1, 10, 8, true},
		{"M2 below", "M2", TCP1, 10, 7.9, false},
		{"M3 at the floor", "M3", TCP1, 10, 6, true},
		{"M3 below", "M3", TCP1, 10, 5.9, false},
		{"UDP 64 equal", "M1", UDP64, 119, 119, true},
		{"UDP 64 below", "M1", UDP64, 119, 118, false},
		{"UDP 1400 below", "M3", UDP1400, 119, 118, false},
		{"RTT below 60 us", "M1", RTT, 10, 60, true},
		{"RTT above 60 us", "M1", RTT, 10, 61, false},
		{"RTT of a slow machine", "M1", RTT, 20, 100, true},
		{"RTT above five times", "M1", RTT, 20, 101, false},
		{"memory", "M1", Memory, 0, 48, true},
		{"too much memory", "M1", Memory, 0, 49, false},
		{"idle", "M1", Idle, 0, 0, true},
		{"busy when idle", "M1", Idle, 0, 20, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &Run{Modes: []string{"M1", "M2", "M3"}, Candidates: []string{VXLAN, "udp"}}
			r.Samples = []Sample{{Mode: test.mode, Test: test.test, Candidate: "udp", Run: 1, Value: test.ours}}
			if test.vxlan > 0 {
				r.Samples = append(r.Samples, Sample{Mode: test.mode, Test: test.test, Candidate: VXLAN, Run: 1, Value: test.vxlan})
			}
			got := r.Verdicts("udp")
			if len(got) != 1 || got[0].Met != test.met {
				t.Fatalf("Verdicts = %+v, want one, met %v", got, test.met)
			}
			if at := got[0].Ratio >= 1; at != test.met {
				t.Errorf("Ratio = %v contradicts met %v", got[0].Ratio, test.met)
			}
		})
	}
	r := &Run{Modes: []string{"M1"}, Samples: []Sample{{Mode: "M1", Test: TCP1, Candidate: "udp", Run: 1, Value: 1}, {Mode: "M1", Test: TCP4, Candidate: "udp", Run: 1, Value: 1}}}
	if got := r.Verdicts("udp"); len(got) != 0 {
		t.Errorf("Verdicts without VXLAN = %+v, want none", got)
	}
}

func TestReport(t *testing.T) {
	r := sample(map[Test]map[string][]float64{
		TCP1:  {Native: {20, 21, 20.4}, VXLAN: {17, 17.2, 18}, "udp": {9.5, 9, 10}},
		UDP64: {Native: {190}, VXLAN: {119}, "udp": {120}},
		CPU:   {Native: {0.1}, VXLAN: {0.15}, "udp": {0.2}},
		RTT:   {Native: {10}, VXLAN: {12}, "udp": {115}},
	})
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Test == UDP64 && s.Candidate == Native {
			s.SenderFull = true
		}
		if s.Test == CPU && s.Candidate == "udp" {
			s.Note = "1.5 instead of 2 Gbit/s"
		}
		s.Steal = 0.031
	}
	r.Environment = env.Environment{Command: "go run . -runs 3", Commit: "abc", Kernel: "Linux 6", Warnings: []string{"a busy machine"}}
	for name, text := range map[string]string{"text": r.Text(), "markdown": r.Markdown()} {
		for _, want := range []string{
			"Medians of 3 runs (lowest..highest), 1m30s in all",
			"20.4 (20.0..21.0)", "17.2 (17.0..18.0)", "9.50 (9.00..10.0)", "0.55 (0.52..0.56)",
			"190^", "0.200 *", "M1 TCP, 1 stream, 1", "CPU, tunnel only",
			"1.5 instead of 2 Gbit/s", "up to 3 %", "a busy machine",
			"udp / vxlan", "udp / native", "MISSED", "met",
		} {
			if want == "M1 TCP, 1 stream, 1" { // no row may show a test that was not measured
				if strings.Contains(text, "1400") {
					t.Errorf("%s has a row for a test without results:\n%s", name, text)
				}
				continue
			}
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q:\n%s", name, want, text)
			}
		}
	}
	if !strings.Contains(r.Markdown(), "| M1 | TCP, 1 stream | Gbit/s |") || !strings.Contains(r.Markdown(), "go run . -runs 3") {
		t.Errorf("the Markdown has no table or no command:\n%s", r.Markdown())
	}
	r.Samples = r.Samples[:1]
	if got := r.Text(); !strings.Contains(got, "a first look, not a result") {
		t.Errorf("a single run is not marked as such:\n%s", got)
	}
}

func TestRunSurvivesJSON(t *testing.T) {
	r := sample(map[Test]map[string][]float64{TCP1: {"udp": {1, 2}}})
	r.Samples[0].Detail = json.RawMessage(`{"bytes":1}`)
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Run
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if got, want := back.Summary("M1", TCP1, "udp"), r.Summary("M1", TCP1, "udp"); got != want {
		t.Errorf("after JSON %+v, want %+v", got, want)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 1.234: "1.23", 9.999: "10.0", 12.34: "12.3", 99.96: "100", 1234: "1234", -0.5: "-0.500", math.Pi: "3.14"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}
