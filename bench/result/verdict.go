package result

import (
	"fmt"
	"math"
)

// A Verdict says whether a floor that the project has set itself is met by a candidate.
type Verdict struct {
	Candidate string  `json:"candidate"`
	Floor     string  `json:"floor"` // in words
	Met       bool    `json:"met"`
	Measured  string  `json:"measured"` // in words
	Ratio     float64 `json:"ratio"`    // measured over required, 1 or more is met; for limits required over measured
}

// Floors. All are ratios to kernel VXLAN in the same run, on two cores.
const (
	udpFloor      = 1.0
	rttLimitUS    = 60.0 // microseconds, or
	rttLimitRatio = 5.0  // times VXLAN's, whichever is more
	memoryLimit   = 48.0 // MiB
	idleLimit     = 10.0 // ms of processor time per second: one step of the kernel's counter
)

// tcpFloor is the floor of one TCP stream in a link mode; 0 is none.
func tcpFloor(mode string) float64 {
	switch mode {
	case "M1", "M3":
		return 0.60
	case "M2":
		return 0.80
	}
	return 0
}

// Verdicts judges one candidate in all modes. What was not measured has no verdict.
func (r *Run) Verdicts(candidate string) []Verdict {
	var out []Verdict
	for _, mode := range r.Modes {
		if floor := tcpFloor(mode); floor > 0 {
			out = r.atLeast(out, mode, TCP1, candidate, floor)
		}
		out = r.atLeast(out, mode, UDP64, candidate, udpFloor)
		out = r.atLeast(out, mode, UDP1400, candidate, udpFloor)
		if rtt, vxlan := r.Summary(mode, RTT, candidate), r.Summary(mode, RTT, VXLAN); rtt.N > 0 && vxlan.N > 0 {
			out = r.atMost(out, mode, RTT, candidate, math.Max(rttLimitUS, rttLimitRatio*vxlan.Median))
		}
		out = r.atMost(out, mode, Idle, candidate, idleLimit)
		out = r.atMost(out, mode, Memory, candidate, memoryLimit)
	}
	return out
}

func (r *Run) atLeast(to []Verdict, mode string, test Test, candidate string, floor float64) []Verdict {
	ratio := r.Ratio(mode, test, candidate, VXLAN)
	if ratio.N == 0 {
		return to
	}
	ours, vxlan := r.Summary(mode, test, candidate), r.Summary(mode, test, VXLAN)
	return append(to, Verdict{
		Candidate: candidate,
		Floor:     fmt.Sprintf("%s %s >= %.2f of VXLAN", mode, test.Title(), floor),
		Met:       ratio.Of >= floor,
		Measured:  fmt.Sprintf("%.2f (%s of %s %s)", ratio.Of, number(ours.Median), number(vxlan.Median), test.Unit()),
		Ratio:     ratio.Of / floor,
	})
}

func (r *Run) atMost(to []Verdict, mode string, test Test, candidate string, limit float64) []Verdict {
	s := r.Summary(mode, test, candidate)
	if s.N == 0 {
		return to
	}
	v := Verdict{
		Candidate: candidate,
		Floor:     fmt.Sprintf("%s %s <= %s %s", mode, test.Title(), number(limit), test.Unit()),
		Met:       s.Median <= limit,
		Measured:  number(s.Median) + " " + test.Unit(),
		Ratio:     math.MaxFloat64,
	}
	if s.Median > 0 {
		v.Ratio = limit / s.Median
	}
	return append(to, v)
}

// number writes a value with three digits that matter.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 99.95 || a == 0:
		return fmt.Sprintf("%.0f", v)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
