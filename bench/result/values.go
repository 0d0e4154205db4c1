package result

import "slices"

// A cell is what one candidate did in one test on one bed.
type cell struct {
	bed       Bed
	test      Test
	candidate string
}

// Beds returns the beds that something was measured on, link modes in the order of the run, the MTUs of a mode together.
func (r *Run) Beds() []Bed {
	seen := map[Bed]bool{}
	var inOrder []Bed // for what the lists of the run lack
	for _, s := range r.Samples {
		if b := s.Bed(); !seen[b] {
			seen[b] = true
			inOrder = append(inOrder, b)
		}
	}
	var beds []Bed
	for _, mode := range r.Modes {
		for _, mtu := range r.MTUs {
			if b := (Bed{mode, mtu}).whole(); seen[b] && !slices.Contains(beds, b) {
				beds = append(beds, b)
			}
		}
	}
	for _, b := range inOrder {
		if !slices.Contains(beds, b) {
			beds = append(beds, b)
		}
	}
	return beds
}

// Values returns the values of one test of one candidate on one bed, by run number. Samples that were discarded don't
// count: a run that has no other is missing. Derived tests are taken out of the samples they are derived from.
func (r *Run) Values(bed Bed, test Test, candidate string) map[int]float64 {
	if test == Tunnel || test == TunnelPacket {
		return r.tunnel(bed, test, candidate)
	}
	parent, key := test.Of()
	values := map[int]float64{}
	for _, s := range r.of(bed, parent, candidate) {
		if !s.Valid() {
			continue
		}
		if key == "" {
			values[s.Run] = s.Value
		} else if v, ok := s.More[key]; ok {
			values[s.Run] = v
		}
	}
	return values
}

// of returns the samples of a cell, the discarded ones too.
func (r *Run) of(bed Bed, test Test, candidate string) []*Sample {
	bed = bed.whole()
	var out []*Sample
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Test == test && s.Candidate == candidate && s.Mode == bed.Mode && s.Bed() == bed {
			out = append(out, s)
		}
	}
	return out
}

// tunnel subtracts, run by run, what the same traffic costs without a tunnel. There is no such thing for native itself.
func (r *Run) tunnel(bed Bed, test Test, candidate string) map[int]float64 {
	values := map[int]float64{}
	if candidate == Native {
		return values
	}
	parent, _ := test.Of()
	native := r.Values(bed, parent, Native)
	for run, v := range r.Values(bed, parent, candidate) {
		if base, ok := native[run]; ok {
			values[run] = v - base
		}
	}
	return values
}

// Summary sums up one test of one candidate on one bed. N is 0 where there is nothing that counts.
func (r *Run) Summary(bed Bed, test Test, candidate string) Summary {
	return summarizeMap(r.Values(bed, test, candidate))
}

// Ratio divides a candidate's results by another's on the same bed. N is 0 when there is nothing to compare, or when
// what to divide by is not above zero.
func (r *Run) Ratio(bed Bed, test Test, candidate, base string) Ratio {
	single := summarizeMap(r.singleRatios(bed, test, candidate, base))
	over := r.Summary(bed, test, base).Median
	if single.N == 0 || over <= 0 {
		return Ratio{}
	}
	return Ratio{Of: r.Summary(bed, test, candidate).Median / over, Min: single.Min, Max: single.Max, N: single.N}
}

// singleRatios are the ratios of the runs that both have.
func (r *Run) singleRatios(bed Bed, test Test, candidate, base string) map[int]float64 {
	ours, theirs := r.Values(bed, test, candidate), r.Values(bed, test, base)
	ratios := map[int]float64{}
	for run, v := range ours {
		if b, ok := theirs[run]; ok && b > 0 {
			ratios[run] = v / b
		}
	}
	return ratios
}

// expected is how many runs a test has on a bed: as many as any candidate has or tried to have. Idle time and memory are
// measured once, the others in each run.
func (r *Run) expected(bed Bed, test Test) int {
	parent, _ := test.Of()
	runs := map[int]bool{}
	bed = bed.whole()
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Test == parent && s.Bed() == bed {
			runs[s.Run] = true
		}
	}
	return len(runs)
}

// SenderFull tells whether the sender's processor was full in any run that counts, of a search for the highest rate without
// loss: the value is then what the machine can send, and the path may carry more. It is false for other tests.
func (r *Run) SenderFull(bed Bed, test Test, candidate string) bool {
	return r.mark(cell{bed, test, candidate}).full
}

// A mark says what a reader of a cell has to know besides its numbers.
type mark struct {
	full  bool // the sender's processor was full in some run
	notes bool // there is a line about it among the notes
	few   bool // fewer runs count than the test has
}

func (r *Run) mark(c cell) mark {
	parent, _ := c.test.Of()
	m := mark{few: len(r.Values(c.bed, c.test, c.candidate)) < r.expected(c.bed, c.test)}
	for _, s := range r.of(c.bed, parent, c.candidate) {
		if s.Valid() {
			m.full = m.full || s.SenderFull
			m.notes = m.notes || s.Note != ""
		}
	}
	return m
}
