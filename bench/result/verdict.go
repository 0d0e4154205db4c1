package result

import (
	"fmt"
	"math"
)

// A Kind of goal: what the project promises, or what it wants to reach.
type Kind string

// The kinds of goals.
const (
	Floor Kind = "floor" // may not be missed
	Aim   Kind = "aim"   // is to be reached one day
)

// A Verdict says whether a candidate meets a goal that the project has set itself. Goals are for the links with
// Ethernet's usual MTU.
type Verdict struct {
	Kind      Kind   `json:"kind"`      // whether it may be missed
	Candidate string `json:"candidate"` // who is judged, by the specification that the run was given
	Bed       Bed    `json:"bed"`       // where it was measured
	Test      Test   `json:"test"`      // what was measured
	Goal      string `json:"goal"`      // in words: ">= 0.60 of vxlan"
	Met       bool   `json:"met"`       // the median reaches the goal, however far the runs spread
	// Measured is the median in words: "1.31 of vxlan (130 of 99.0^ kpps)", or "42.1 us". After a value, ^ says that the
	// sender's processor was full in some run, so that the path's own limit may be higher.
	Measured string  `json:"measured"`
	Ratio    float64 `json:"ratio"` // measured over required, 1 or more is met; for limits required over measured
}

// Word is the verdict in a word: "met" or "MISSED" for a floor, "reached" or "not yet" for an aim.
func (v Verdict) Word() string {
	switch {
	case v.Kind == Aim && v.Met:
		return "reached"
	case v.Kind == Aim:
		return "not yet"
	case v.Met:
		return "met"
	}
	return "MISSED"
}

// String is the verdict in a line.
func (v Verdict) String() string {
	return fmt.Sprintf("%s %s: %s %s %s %s: %s", v.Kind, v.Word(), v.Candidate, v.Bed, v.Test.Title(), v.Goal, v.Measured)
}

// Floors and aims. Ratios are to kernel VXLAN in the same run, on two cores.
const (
	udpFloor      = 1.0
	udpAim        = 1.2
	rttLimitUS    = 60.0 // microseconds, or
	rttLimitRatio = 5.0  // times VXLAN's, whichever is more
	rttAimUS      = 30.0
	memoryLimit   = 48.0 // MiB
	idleLimit     = 10.0 // ms of processor time per second: one step of the kernel's counter
)

// tcpGoals are those of one TCP stream in a link mode; 0 is none.
func tcpGoals(mode string) (floor, aim float64) {
	switch mode {
	case "M1":
		return 0.60, 0.70
	case "M2":
		return 0.80, 1.00
	case "M3":
		return 0.60, 0.80
	}
	return 0, 0
}

// Verdicts judges one candidate in all link modes, floors and aims of a test after each other. What was not measured has
// no verdict.
func (r *Run) Verdicts(candidate string) []Verdict {
	var out []Verdict
	for _, bed := range r.Beds() {
		if bed.MTU != standardMTU {
			continue
		}
		floor, aim := tcpGoals(bed.Mode)
		out = r.atLeast(out, Floor, cell{bed, TCP1, candidate}, floor)
		out = r.atLeast(out, Aim, cell{bed, TCP1, candidate}, aim)
		for _, test := range []Test{UDP64, UDP1400} {
			out = r.atLeast(out, Floor, cell{bed, test, candidate}, udpFloor)
			out = r.atLeast(out, Aim, cell{bed, test, candidate}, udpAim)
		}
		if vxlan := r.Summary(bed, RTT, VXLAN); vxlan.N > 0 {
			out = r.atMost(out, Floor, cell{bed, RTT, candidate}, math.Max(rttLimitUS, rttLimitRatio*vxlan.Median))
		}
		out = r.atMost(out, Aim, cell{bed, RTT, candidate}, rttAimUS)
		out = r.atMost(out, Floor, cell{bed, Idle, candidate}, idleLimit)
		out = r.atMost(out, Floor, cell{bed, Memory, candidate}, memoryLimit)
	}
	return out
}

func (r *Run) atLeast(to []Verdict, kind Kind, c cell, least float64) []Verdict {
	ratio := r.Ratio(c.bed, c.test, c.candidate, VXLAN)
	if ratio.N == 0 || least <= 0 {
		return to
	}
	return append(to, Verdict{
		Kind: kind, Candidate: c.candidate, Bed: c.bed, Test: c.test,
		Goal:     fmt.Sprintf(">= %.2f of %s", least, VXLAN),
		Met:      ratio.Of >= least,
		Measured: fmt.Sprintf("%.2f of %s (%s of %s %s)", ratio.Of, VXLAN, r.median(c), r.median(cell{c.bed, c.test, VXLAN}), c.test.Unit()),
		Ratio:    ratio.Of / least,
	})
}

// median writes what a cell has, with a mark where the sender was the limit.
func (r *Run) median(c cell) string {
	text := Number(r.Summary(c.bed, c.test, c.candidate).Median)
	if r.SenderFull(c.bed, c.test, c.candidate) {
		text += "^"
	}
	return text
}

func (r *Run) atMost(to []Verdict, kind Kind, c cell, limit float64) []Verdict {
	s := r.Summary(c.bed, c.test, c.candidate)
	if s.N == 0 {
		return to
	}
	v := Verdict{
		Kind: kind, Candidate: c.candidate, Bed: c.bed, Test: c.test,
		Goal:     fmt.Sprintf("<= %s %s", Number(limit), c.test.Unit()),
		Met:      s.Median <= limit,
		Measured: Number(s.Median) + " " + c.test.Unit(),
		Ratio:    math.MaxFloat64,
	}
	if s.Median > 0 {
		v.Ratio = limit / s.Median
	}
	return append(to, v)
}

// allVerdicts judges the plain engine, which is what the project has set goals for.
func (r *Run) allVerdicts() []Verdict { return r.Verdicts(UDP) }
