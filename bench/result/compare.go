package result

import (
	"cmp"
	"math"
	"slices"

	"golang.org/x/perf/benchmath"
)

// A Word says what became of a test between two results.
type Word string

// What can become of a test.
const (
	Better       Word = "better"
	Worse        Word = "worse"
	NoDifference Word = "no difference" // none that stands out of the noise
	TooFewRuns   Word = "too few runs"  // no difference, however large, could stand out
)

// Alpha is the probability of calling noise a change that one comparison may have.
const Alpha = 0.05

// A Delta compares two sets of values. P is that of the exact Mann-Whitney U test: how likely chance alone puts the values
// of the two sets at least so far apart. The test assumes nothing about how the values are distributed.
type Delta struct {
	Old  Summary `json:"old"`
	New  Summary `json:"new"`
	P    float64 `json:"p"`
	Word Word    `json:"word"`
}

// Percent is the change of the median; ok is false where the old one is not above zero.
func (d Delta) Percent() (percent float64, ok bool) {
	if d.Old.Median <= 0 {
		return 0, false
	}
	return 100 * (d.New.Median/d.Old.Median - 1), true
}

// A Change is what became of one test of one candidate on one bed.
type Change struct {
	Bed       Bed    `json:"bed"`
	Test      Test   `json:"test"`
	Candidate string `json:"candidate"`
	Absolute  Delta  `json:"absolute"` // of the values themselves
	// Base is the yardstick that both results have for this test: the candidate that Relative's values are divided by, run
	// by run. It is "" when there is none.
	Base     string `json:"base,omitempty"`
	Relative Delta  `json:"relative"` // of the ratios; all zero without Base
}

// Word is the verdict that counts: that of the ratios where there is a yardstick, because the machine itself may be another
// one, or may have had a better day; that of the values themselves otherwise.
func (c Change) Word() Word { return c.counts().Word }

func (c Change) counts() Delta {
	if c.Base != "" {
		return c.Relative
	}
	return c.Absolute
}

// A Comparison is two results side by side.
type Comparison struct {
	// Different says what is not the same in the two, other than what was measured: machine, kernel, options, candidates.
	Different []string `json:"different"`
	// Changes has all tests that are in both results: first what got worse, then what got better, the largest change first,
	// then the others in the order of the report.
	Changes []Change `json:"changes"`
	// All makes Text and Markdown show what did not change, too.
	All bool `json:"-"`

	old, new *Run
}

// Compare says what changed from one result to another, beyond the noise. Only what is on the same bed, of the same test and
// of the same candidate is compared, and only samples that were not discarded.
func Compare(old, new *Run) Comparison {
	c := Comparison{Different: differences(old, new), old: old, new: new}
	beds := new.Beds()
	for _, bed := range old.Beds() {
		if !slices.Contains(beds, bed) {
			continue
		}
		for _, test := range Tests() {
			for _, candidate := range old.Candidates {
				change := Change{Bed: bed, Test: test, Candidate: candidate}
				before, after := list(old.Values(bed, test, candidate)), list(new.Values(bed, test, candidate))
				if len(before) == 0 || len(after) == 0 {
					continue
				}
				change.Absolute = delta(test, before, after)
				for _, base := range yardsticks(test, candidate) {
					before, after := list(old.singleRatios(bed, test, candidate, base)), list(new.singleRatios(bed, test, candidate, base))
					if len(before) > 0 && len(after) > 0 {
						change.Base, change.Relative = base, delta(test, before, after)
						break
					}
				}
				c.Changes = append(c.Changes, change)
			}
		}
	}
	slices.SortStableFunc(c.Changes, func(a, b Change) int {
		if d := cmp.Compare(rank(a), rank(b)); d != 0 {
			return d
		}
		return cmp.Compare(size(b), size(a))
	})
	return c
}

// yardsticks are what a candidate may be divided by, the best first. What already is a difference to native has none:
// dividing one small difference by another multiplies the noise.
func yardsticks(test Test, candidate string) []string {
	switch {
	case test == Tunnel || test == TunnelPacket || candidate == Native:
		return nil
	case candidate == VXLAN:
		return []string{Native}
	}
	return []string{VXLAN, Native}
}

// delta compares two sets of values, none of them empty.
func delta(test Test, before, after []float64) Delta {
	d := Delta{Old: Summarize(before), New: Summarize(after), Word: NoDifference}
	t := benchmath.DefaultThresholds
	t.CompareAlpha = Alpha
	d.P = benchmath.AssumeNothing.Compare(benchmath.NewSample(before, &t), benchmath.NewSample(after, &t)).P
	switch less := d.New.Median < d.Old.Median; {
	case leastP(len(before), len(after)) >= Alpha:
		d.Word = TooFewRuns
	case d.P >= Alpha || d.New.Median == d.Old.Median:
	case less == test.LowerIsBetter():
		d.Word = Better
	default:
		d.Word = Worse
	}
	return d
}

// leastP is the P of two sets that don't overlap at all: one order out of n1+n2 over n1, in either direction.
func leastP(n1, n2 int) float64 {
	orders := 1.0
	for i := 1; i <= n1; i++ {
		orders *= float64(n2+i) / float64(i)
	}
	return min(1, 2/orders)
}

// rank puts what changed first.
func rank(c Change) int {
	switch c.Word() {
	case Worse:
		return 0
	case Better:
		return 1
	}
	return 2
}

// size is how large a change is, on a scale on which twice and half are the same; 0 for what did not change.
func size(c Change) float64 {
	d := c.counts()
	if rank(c) == 2 || d.Old.Median <= 0 || d.New.Median <= 0 {
		return 0
	}
	return math.Abs(math.Log(d.New.Median / d.Old.Median))
}

// Count returns how many changes have the word.
func (c Comparison) Count(w Word) int {
	n := 0
	for _, change := range c.Changes {
		if change.Word() == w {
			n++
		}
	}
	return n
}

// FalseAlarms is how many changes chance alone would show, at most and on average, if nothing had changed at all.
func (c Comparison) FalseAlarms() float64 {
	return Alpha * float64(len(c.Changes)-c.Count(TooFewRuns))
}
