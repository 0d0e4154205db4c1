package result

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// noisy makes a run of five: values around level, with a spread of that many percent, the same in each call with the same
// seed. The whole machine is faster by the factor machine.
func noisy(seed uint64, runs int, machine, spread float64, levels map[string]float64) *Run {
	random := rand.New(rand.NewPCG(seed, 1))
	r := &Run{Modes: []string{"M1"}, MTUs: []int{1500}, Candidates: []string{Native, VXLAN, UDP, "wireguard"}}
	for run := 1; run <= runs; run++ {
		for _, test := range []Test{TCP1, RTT} {
			for _, c := range r.Candidates {
				level, ok := levels[c]
				if !ok {
					continue
				}
				v := level * machine
				if test.LowerIsBetter() {
					v = 1000 / v
				}
				v *= 1 + spread/100*(2*random.Float64()-1)
				r.Samples = append(r.Samples, Sample{Mode: "M1", MTU: 1500, Test: test, Candidate: c, Run: run, Value: v})
			}
		}
	}
	return r
}

var levels = map[string]float64{Native: 20, VXLAN: 16, UDP: 10}

// words lists the verdicts, "udp tcp1 better" and so on.
func words(c Comparison, w Outcome) []string {
	var out []string
	for _, change := range c.Changes {
		if change.Outcome() == w {
			out = append(out, change.Candidate+" "+string(change.Test))
		}
	}
	slices.Sort(out)
	return out
}

func TestCompareSame(t *testing.T) {
	r := noisy(1, 5, 1, 5, levels)
	c := Compare(r, r)
	if c.Count(NoDifference) != 6 || len(c.Changes) != 6 || len(c.Different) != 0 {
		t.Errorf("a result compared with itself: %+v", c)
	}
	if text := c.Text(); !strings.Contains(text, "same machine") || !strings.Contains(text, "6 comparisons without a change not shown") || strings.Contains(text, "│") {
		t.Errorf("text of no change:\n%s", text)
	}
}

func TestCompareShift(t *testing.T) {
	old := noisy(1, 5, 1, 2, levels)
	for _, test := range []struct {
		name          string
		new           *Run
		worse, better string
	}{
		{"20 % more", noisy(2, 5, 1, 2, map[string]float64{Native: 20, VXLAN: 16, UDP: 12}), "[]", "[udp rtt udp tcp1]"},
		{"20 % less", noisy(2, 5, 1, 2, map[string]float64{Native: 20, VXLAN: 16, UDP: 8}), "[udp rtt udp tcp1]", "[]"},
		// The machine is faster: native has no yardstick, so its own values say so; the others' ratios have not changed.
		{"another machine", noisy(2, 5, 1.3, 2, levels), "[]", "[native rtt native tcp1]"},
		{"faster machine, slower tunnel", noisy(2, 5, 1.3, 2, map[string]float64{Native: 20, VXLAN: 16, UDP: 9}), "[udp rtt udp tcp1]", "[native rtt native tcp1]"},
		{"without yardsticks in the new one", noisy(2, 5, 1.3, 2, map[string]float64{UDP: 10}), "[]", "[udp rtt udp tcp1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Compare(old, test.new)
			if got := fmt.Sprint(words(c, Worse)); got != test.worse {
				t.Errorf("worse: %s, want %s", got, test.worse)
			}
			if got := fmt.Sprint(words(c, Better)); got != test.better {
				t.Errorf("better: %s, want %s", got, test.better)
			}
			if !slices.IsSortedFunc(c.Changes, func(a, b Change) int { return rank(a) - rank(b) }) {
				t.Error("what changed does not come first")
			}
			if _, err := json.Marshal(c); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCompareNoise: where nothing has changed, no more than alpha of the results call anything a change.
func TestCompareNoise(t *testing.T) {
	changed, all := 0, 0
	for seed := range uint64(100) {
		c := Compare(noisy(2*seed, 5, 1, 20, levels), noisy(2*seed+1, 5, 1, 20, levels))
		if c.Count(Better)+c.Count(Worse) > 0 {
			changed++
		}
		all += len(c.Changes)
	}
	t.Logf("%d of %d", changed, all)
	// The seeds are fixed, so this does not depend on luck. Comparisons of one run share a yardstick: hence the margin.
	if all != 600 || changed > 5+4 {
		t.Errorf("%d of 100 results of noise, with %d comparisons, have changes", changed, all)
	}
}

func TestCompareFewRuns(t *testing.T) {
	for runs, want := range map[int]Outcome{1: TooFewRuns, 3: TooFewRuns, 4: NoDifference, 5: Better} {
		c := Compare(noisy(1, runs, 1, 1, levels), noisy(2, runs, 1, 1, map[string]float64{Native: 20, VXLAN: 16, UDP: 100}))
		if got := fmt.Sprint(words(c, want)); !strings.Contains(got, "udp tcp1") {
			t.Errorf("%d runs, ten times as much: %s has %s", runs, want, got)
		}
		if few := c.Count(TooFewRuns); want == TooFewRuns && (few != 6 || !strings.Contains(c.Text(), "too few runs: no difference")) {
			t.Errorf("%d runs: %d too few:\n%s", runs, few, c.Text())
		}
	}
}

// TestHighestP checks the correction against the example of Benjamini and Hochberg's paper, of which it rejects four.
func TestHighestP(t *testing.T) {
	ps := []float64{0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1}
	slices.Reverse(ps)
	if got := highestP(ps); got != 0.0095 {
		t.Errorf("highestP = %v, want 0.0095", got)
	}
	if got := highestP([]float64{0.03, 0.04}); got != 0.04 {
		t.Errorf("highestP of two below alpha = %v, want the higher", got)
	}
	if highestP(nil) >= 0 || highestP([]float64{0.051}) >= 0 {
		t.Error("a limit where nothing is a discovery")
	}
}

// TestLeastEffect: a change that is sure and small is none.
func TestLeastEffect(t *testing.T) {
	old := noisy(1, 9, 1, 0.1, levels)
	for udp, want := range map[float64]string{10.28: "[]", 10.5: "[udp tcp1]"} {
		c := Compare(old, noisy(2, 9, 1, 0.1, map[string]float64{Native: 20, VXLAN: 16, UDP: udp}))
		got := slices.DeleteFunc(words(c, Better), func(s string) bool { return s != "udp tcp1" })
		if fmt.Sprint(got) != want {
			t.Errorf("udp 10 -> %v: better %v, want %v", udp, got, want)
		}
		if text := c.Text(); !strings.Contains(text, "below 3 %") || !strings.Contains(text, "Benjamini-Hochberg") || !strings.Contains(text, "one set-up") {
			t.Errorf("the text does not explain:\n%s", text)
		}
	}
}

// TestLeastP checks the formula against the least P of equal sets that is printed in tables of the test.
func TestLeastP(t *testing.T) {
	for n, want := range []float64{1: 1, 2: 1. / 3, 3: 0.1, 4: 1. / 35, 5: 1. / 126} {
		if got := leastP(n, n); n > 0 && math.Abs(got-want) > 1e-12 {
			t.Errorf("leastP(%d, %d) = %v, want %v", n, n, got, want)
		}
	}
	if got := leastP(2, 8); math.Abs(got-2./45) > 1e-12 || leastP(8, 2) != got {
		t.Errorf("leastP(2, 8) = %v, (8, 2) = %v", got, leastP(8, 2))
	}
}

func TestCompareDisjoint(t *testing.T) {
	a, b := noisy(1, 5, 1, 1, map[string]float64{UDP: 1}), noisy(2, 5, 1, 1, map[string]float64{"wireguard": 1})
	c := Compare(a, b)
	if len(c.Changes) != 0 || !slices.Equal(c.Different, []string{"only in the old one: udp", "only in the new one: wireguard"}) {
		t.Errorf("disjoint: %+v", c)
	}
	if text := c.Text() + c.Markdown(); !strings.Contains(text, "nothing to compare") {
		t.Errorf("disjoint:\n%s", text)
	}
	b = noisy(2, 5, 1, 1, map[string]float64{UDP: 1})
	for i := range b.Samples {
		b.Samples[i].MTU = 9000
	}
	if c := Compare(a, b); len(c.Changes) != 0 {
		t.Errorf("different MTUs are compared: %+v", c.Changes)
	}
	if text := (Comparison{}).Text(); !strings.Contains(text, "nothing to compare") {
		t.Errorf("the zero comparison: %q", text)
	}
}

func TestCompareDegenerate(t *testing.T) {
	same := func(v float64) *Run {
		r := noisy(1, 5, 1, 0, levels)
		for i := range r.Samples {
			r.Samples[i].Value = v
		}
		return r
	}
	for _, pair := range [][2]float64{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {-1, 2}} {
		c := Compare(same(pair[0]), same(pair[1]))
		c.All = true
		if text := c.Text(); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%v:\n%s", pair, text)
		}
		if _, err := json.Marshal(c); err != nil {
			t.Errorf("%v: %v", pair, err)
		}
	}
}

func TestDifferences(t *testing.T) {
	a, b := golden(), golden()
	if got := differences(a, b); len(got) != 0 {
		t.Errorf("the same: %q", got)
	}
	b.Environment.CPU, b.Environment.Cores, b.Environment.Kernel, b.Environment.Go = "Xeon", 8, "", "go1.27"
	b.Environment.Sysctl = map[string]string{"net.core.rmem_max": "1"}
	b.Options = map[string]any{"runs": 5, "duration_ns": json.Number("10000000000")}
	b.Policy[1] = "MTU: 1400 for all"
	want := []string{
		"processor: AMD EPYC -> Xeon", "cores: 2 -> 8", "kernel: Linux 6.18 -> (none)", "Go: go1.26.8 linux/amd64 -> go1.27",
		"net.core.rmem_max: (none) -> 1", "option runs: 3 -> 5", "no longer: MTU: vxlan 1450, udp 1472", "new: MTU: 1400 for all",
	}
	if got := differences(a, b); !slices.Equal(got, want) {
		t.Errorf("differences:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What was saved and loaded again is no different from what is in memory.
	path := filepath.Join(t.TempDir(), "r.json")
	if err := a.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := differences(a, back); len(got) != 0 {
		t.Errorf("after saving: %q", got)
	}
}

func TestCompareGolden(t *testing.T) {
	old := noisy(1, 5, 1, 2, levels)
	new := noisy(2, 5, 1.3, 2, map[string]float64{Native: 20, VXLAN: 16, UDP: 12})
	old.Environment, new.Environment = golden().Environment, golden().Environment
	new.Environment.Kernel = "Linux 6.19"
	c := Compare(old, new)
	compareGolden(t, "compare.txt", c.Text())
	c.All = true
	compareGolden(t, "compare-all.txt", c.Text())
	compareGolden(t, "compare-all.md", c.Markdown())
}
