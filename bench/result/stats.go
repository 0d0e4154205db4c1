package result

import "slices"

// A Summary is the median of some values and how far they spread. With five values the median holds two outliers off;
// a mean would not, and a confidence interval of five would claim to know more than it does.
type Summary struct {
	N      int     `json:"n"`      // how many values
	Median float64 `json:"median"` // of an even number of values the mean of the two in the middle
	Min    float64 `json:"min"`    // the lowest value
	Max    float64 `json:"max"`    // the highest value
}

// Summarize sums up values. It does not change them. Of no values everything is 0.
func Summarize(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	median := sorted[n/2]
	if n%2 == 0 {
		median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return Summary{N: n, Median: median, Min: sorted[0], Max: sorted[n-1]}
}

func summarizeMap(values map[int]float64) Summary { return Summarize(list(values)) }

// list returns the values in the order of the runs.
func list(values map[int]float64) []float64 {
	runs := make([]int, 0, len(values))
	for run := range values {
		runs = append(runs, run)
	}
	slices.Sort(runs)
	out := make([]float64, 0, len(runs))
	for _, run := range runs {
		out = append(out, values[run])
	}
	return out
}

// A Ratio compares two candidates: the ratio of their medians, and the spread of the ratios of single runs, in which the
// two were measured right after each other, so that a change of the machine between runs hits both.
type Ratio struct {
	Of  float64 `json:"of"`  // of the medians
	Min float64 `json:"min"` // lowest of the single runs
	Max float64 `json:"max"` // highest of them
	N   int     `json:"n"`   // runs with both
}
