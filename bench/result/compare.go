package result

import (
	"cmp"
	"math"
	"slices"

	"golang.org/x/perf/benchmath"
)

// An Outcome says what became of a test between two results.
type Outcome string

// What can become of a test.
const (
	Better       Outcome = "better"
	Worse        Outcome = "worse"
	NoDifference Outcome = "no difference" // none that stands out of the noise, or one below [LeastEffect]
	TooFewRuns   Outcome = "too few runs"  // no difference, however large, could stand out
)

// Alpha is the false discovery rate of a comparison: of all that it calls better or worse, no larger share than this is noise,
// on average. Where nothing has changed at all, it is the probability that anything is called a change.
const Alpha = 0.05

// LeastEffect is the share of the old median by which the new one has to differ. A smaller change is no difference, however
// sure it is that it is there: the order in which a program's code lies in memory can be worth as much.
const LeastEffect = 0.03

// A Delta compares two sets of values. P is that of the exact Mann-Whitney U test: how likely chance alone puts the values
// of the two sets at least so far apart. The test assumes nothing about how the values are distributed.
type Delta struct {
	Old Summary `json:"old"` // of the older result's runs that count, in the test's unit or, of ratios, without one
	New Summary `json:"new"` // the same of the newer result
	// P is not corrected for the number of comparisons: it may be below Alpha and the outcome NoDifference all the same.
	P float64 `json:"p"`
	// Outcome takes into account how many comparisons there are, and LeastEffect; see [Compare].
	Outcome Outcome `json:"outcome"`
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
	Bed       Bed    `json:"bed"`       // where: the same in both results
	Test      Test   `json:"test"`      // what; [Test.LowerIsBetter] says how to read it
	Candidate string `json:"candidate"` // who, as both results call it
	Absolute  Delta  `json:"absolute"`  // of the values themselves
	// Base is the yardstick that both results have for this test: the candidate that Relative's values are divided by, run
	// by run. It is "" when there is none.
	Base     string `json:"base,omitempty"`
	Relative Delta  `json:"relative"` // of the ratios; all zero without Base
}

// Outcome is the one that counts: that of the ratios where there is a yardstick, because the machine itself may be another
// one, or may have had a better day; that of the values themselves otherwise.
func (c Change) Outcome() Outcome { return c.counts().Outcome }

func (c Change) counts() Delta {
	if c.Base != "" {
		return c.Relative
	}
	return c.Absolute
}

// possible tells whether the change could stand out at all, as far as the number of runs goes.
func (c Change) possible() bool { return c.counts().Outcome != TooFewRuns }

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
//
// A change is called better or worse if two things hold: its P survives the procedure of Benjamini and Hochberg (1995) at
// [Alpha] over the deltas that count of all changes, without those of too few runs; and it is at least [LeastEffect]. So the
// more is compared, the lower P has to be, unless much has changed. For a change that is expected in one test, compare
// results of that test only, or take more runs.
//
// What the test takes for noise is what differs between the runs of one file, and those share one set-up of the candidates:
// the same processes, devices and keys of hashes. What differs between two set-ups of the same thing is not in that noise
// and can be called a change. A comparison of two files of the same commit, measured one after the other, shows how much
// that is.
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
				change.Absolute = delta(before, after)
				for _, base := range yardsticks(test, candidate) {
					before, after := list(old.singleRatios(bed, test, candidate, base)), list(new.singleRatios(bed, test, candidate, base))
					if len(before) > 0 && len(after) > 0 {
						change.Base, change.Relative = base, delta(before, after)
						break
					}
				}
				c.Changes = append(c.Changes, change)
			}
		}
	}
	c.judge()
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

// judge calls the changes that survive the correction and are large enough better or worse.
func (c Comparison) judge() {
	var ps []float64
	for _, change := range c.Changes {
		if change.possible() {
			ps = append(ps, change.counts().P)
		}
	}
	limit := highestP(ps)
	for i := range c.Changes {
		test := c.Changes[i].Test
		c.Changes[i].Absolute.judge(test, limit)
		c.Changes[i].Relative.judge(test, limit)
	}
}

// highestP is Benjamini's and Hochberg's: the highest p that is still a discovery, where the k-th of m in order may be k/m
// of Alpha; below zero where there is none.
func highestP(ps []float64) float64 {
	limit := -1.0
	for i, p := range slices.Sorted(slices.Values(ps)) {
		if p <= Alpha*float64(i+1)/float64(len(ps)) {
			limit = p
		}
	}
	return limit
}

// judge decides on a delta that is not of too few runs.
func (d *Delta) judge(test Test, limit float64) {
	change := d.New.Median - d.Old.Median
	switch {
	case d.Outcome != NoDifference || d.P > limit || change == 0 || math.Abs(change) < LeastEffect*math.Abs(d.Old.Median):
	case (change < 0) == test.LowerIsBetter():
		d.Outcome = Better
	default:
		d.Outcome = Worse
	}
}

// delta compares two sets of values, none of them empty; what it means is judged when all are known.
func delta(before, after []float64) Delta {
	d := Delta{Old: Summarize(before), New: Summarize(after), Outcome: NoDifference}
	t := benchmath.DefaultThresholds
	t.CompareAlpha = Alpha
	d.P = benchmath.AssumeNothing.Compare(benchmath.NewSample(before, &t), benchmath.NewSample(after, &t)).P
	if leastP(len(before), len(after)) >= Alpha {
		d.Outcome = TooFewRuns
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
	switch c.Outcome() {
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

// Count returns how many changes have the outcome.
func (c Comparison) Count(o Outcome) int {
	n := 0
	for _, change := range c.Changes {
		if change.Outcome() == o {
			n++
		}
	}
	return n
}

// alone is the least P that any of the comparisons could have, and how many others would have to be as low for it to be
// called a change.
func (c Comparison) alone() (least float64, others int) {
	m := 0
	least = 1
	for _, change := range c.Changes {
		if d := change.counts(); change.possible() {
			m++
			least = min(least, leastP(d.Old.N, d.New.N))
		}
	}
	return least, max(0, int(math.Ceil(least*float64(m)/Alpha-1e-9))-1)
}
