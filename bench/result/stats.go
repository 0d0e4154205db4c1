package result

import "slices"

// A Summary is the median of some values and how far they spread. With five values the median holds two outliers off;
// a mean would not, and a confidence interval of five would claim to know more than it does.
type Summary struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
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

// Summary sums up one test of one candidate in one mode.
func (r *Run) Summary(mode string, test Test, candidate string) Summary {
	values := r.Values(mode, test, candidate)
	list := make([]float64, 0, len(values))
	for _, v := range values {
		list = append(list, v)
	}
	return Summarize(list)
}

// A Ratio compares two candidates: the ratio of their medians, and the spread of the ratios of single runs, in which the
// two were measured right after each other, so that a change of the machine between runs hits both.
type Ratio struct {
	Of       float64 `json:"of"`
	Min, Max float64
	N        int `json:"n"` // runs with both
}

// Ratio divides a candidate's results by another's. N is 0 when there is nothing to compare.
func (r *Run) Ratio(mode string, test Test, candidate, base string) Ratio {
	ours, theirs := r.Values(mode, test, candidate), r.Values(mode, test, base)
	var single []float64
	for run, v := range ours {
		if b, ok := theirs[run]; ok && b > 0 {
			single = append(single, v/b)
		}
	}
	over := r.Summary(mode, test, base).Median
	if len(single) == 0 || over <= 0 {
		return Ratio{}
	}
	s := Summarize(single)
	return Ratio{Of: r.Summary(mode, test, candidate).Median / over, Min: s.Min, Max: s.Max, N: s.N}
}
