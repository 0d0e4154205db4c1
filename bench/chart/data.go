package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/bench/result"
)

// data is a run, seen as charts need it.
type data struct {
	run        *result.Run
	candidates []string // of the charts that compare candidates: without the engines' variants
	variants   []variant
	looks      map[string]look
}

// A variant is the udp backend with a number of engines, and with more than one source port or not.
type variant struct {
	candidate string
	engines   int
	ports     bool
	named     bool // the specification names the number of engines
}

func newData(r *result.Run) *data {
	d := &data{run: r}
	for _, c := range r.Candidates {
		v, ok := parseVariant(c)
		if ok {
			d.variants = append(d.variants, v)
		}
		if !ok || !v.named {
			d.candidates = append(d.candidates, c)
		}
	}
	slices.SortStableFunc(d.variants, func(a, b variant) int { return a.engines - b.engines })
	d.looks = looks(d.candidates)
	return d
}

// parseVariant reads "udp", "udp:engines=4", "udp:ports=8+engines=4"; with any other option it is no variant of the kind.
func parseVariant(candidate string) (variant, bool) {
	v := variant{candidate: candidate, engines: 1}
	name, spec, more := strings.Cut(candidate, ":")
	if name != result.UDP {
		return v, false
	}
	if !more {
		return v, true
	}
	for option := range strings.SplitSeq(spec, "+") {
		key, text, _ := strings.Cut(option, "=")
		n, err := strconv.Atoi(text)
		switch {
		case err != nil || n < 0:
			return v, false
		case key == "engines" && n > 0:
			v.engines, v.named = n, true
		case key == "ports":
			v.ports = n > 0
		default:
			return v, false
		}
	}
	return v, true
}

// label is what a legend calls a candidate: of a program only its name, not where it was.
func (d *data) label(candidate string) string {
	name, program, ok := strings.Cut(candidate, ":")
	if !ok || !strings.HasPrefix(program, "/") {
		return candidate
	}
	base := path.Base(program)
	if strings.HasPrefix(base, name) {
		return base // it says as much, and legends are narrow
	}
	return name + " " + base
}

// bed is the link of the charts that show one: M2 at Ethernet's MTU if any of the tests was measured there, else the first
// link that has one of them for any of the candidates.
func (d *data) bed(candidates []string, tests ...result.Test) (result.Bed, bool) {
	var first *result.Bed
	for _, bed := range d.run.Beds() {
		for _, c := range candidates {
			for _, t := range tests {
				if d.run.Summary(bed, t, c).N == 0 {
					continue
				}
				if bed == (result.Bed{Mode: "M2", MTU: 1500}) {
					return bed, true
				}
				if first == nil {
					first = &bed
				}
			}
		}
	}
	if first == nil {
		return result.Bed{}, false
	}
	return *first, true
}

// sub is the line under a title: where, and how many runs count behind the points. No date and no machine: those are in the
// result file.
func (d *data) sub(where string, beds []result.Bed, candidates []string, tests ...result.Test) string {
	least, most := math.MaxInt, 0
	for _, bed := range beds {
		for _, c := range candidates {
			for _, t := range tests {
				if n := d.run.Summary(bed, t, c).N; n > 0 {
					least, most = min(least, n), max(most, n)
				}
			}
		}
	}
	runs := fmt.Sprint(most)
	if least < most {
		runs = fmt.Sprintf("%d..%d", least, most)
	}
	how := fmt.Sprintf("median of %s runs, whiskers from lowest to highest", runs)
	if most <= 1 {
		how = "one run: a first look, not a result"
	}
	if where == "" {
		return strings.ToUpper(how[:1]) + how[1:]
	}
	return where + ", " + how
}

// link says where a chart of one link was measured.
func link(b result.Bed) string {
	modes := map[string]string{"M1": "packets cross whole", "M2": "like a wire with GRO", "M3": "the plainest wire"}
	if what := modes[b.Mode]; what != "" {
		return fmt.Sprintf("Link %v (%s)", b, what)
	}
	return fmt.Sprintf("Link %v", b)
}

// A quantile is a point of a distribution: so much of all (0..1) took no longer than so many microseconds.
type quantile struct{ q, us float64 }

// quantiles is the distribution of request and response: point by point the median of the runs. Where the generator
// kept no distribution it is made of the three values that every sample has.
func (d *data) quantiles(bed result.Bed, candidate string) []quantile {
	points := map[float64][]float64{}
	for _, s := range d.run.Samples {
		if s.Bed() != bed || s.Test != result.RR1 || s.Candidate != candidate || !s.Valid() {
			continue
		}
		for _, q := range sampleQuantiles(s) {
			points[q.q] = append(points[q.q], q.us)
		}
	}
	var out []quantile
	for _, q := range slices.Sorted(maps.Keys(points)) {
		if us := result.Summarize(points[q]).Median; us > 0 {
			out = append(out, quantile{q, us})
		}
	}
	return out
}

func sampleQuantiles(s result.Sample) []quantile {
	var detail struct {
		Result struct {
			Latency struct {
				Percentiles []struct {
					Q float64       `json:"q"`
					D time.Duration `json:"d_ns"`
				} `json:"percentiles"`
			} `json:"latency"`
		} `json:"result"`
	}
	var out []quantile
	if json.Unmarshal(s.Detail, &detail) == nil {
		for _, p := range detail.Result.Latency.Percentiles {
			if p.Q >= 0 && p.Q < 1 && p.D > 0 {
				out = append(out, quantile{p.Q, float64(p.D) / float64(time.Microsecond)})
			}
		}
	}
	if len(out) > 1 {
		return out
	}
	out = []quantile{{0.5, s.Value}}
	for key, q := range map[string]float64{"p90": 0.9, "p99": 0.99, "p99.9": 0.999} {
		if v, ok := s.More[key]; ok {
			out = append(out, quantile{q, v})
		}
	}
	return out
}

// nines places a quantile on an axis where 90 %, 99 %, 99.9 % are equally far from each other.
func nines(q float64) float64 { return -math.Log10(1 - q) }
