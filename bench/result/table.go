package result

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// DefaultWidth is how many columns [Run.Text] takes.
const DefaultWidth = 140

// markdownWidth is that of a table in a document: eight candidates or so.
const markdownWidth = 220

func (r *Run) title() string {
	runs := 0
	for i := range r.Samples {
		runs = max(runs, r.Samples[i].Run)
	}
	if runs <= 1 {
		return fmt.Sprintf("One run of each, %v in all: a first look, not a result", r.Took.Round(time.Second))
	}
	return fmt.Sprintf("Medians of %d runs (lowest..highest), %v in all", runs, r.Took.Round(time.Second))
}

// legend explains the cells. Its lines are joined in a document.
func legend() []string {
	return []string{
		"Ratios are of the medians; in brackets the lowest and highest of the single runs. (<) lower is better,",
		"n=3 only so many runs count, * see the notes, ^ the sender's processor was full: nothing was lost up to what it could send, so that",
		"the value is what the machine gives, not the path's limit.",
	}
}

func (r *Run) has(candidate string) bool { return slices.Contains(r.Candidates, candidate) }

// base is what the others are divided by: kernel VXLAN, which the goals are about, or else the path without a tunnel. It is
// "" when there is nothing to compare.
func (r *Run) base() string {
	for _, base := range []string{VXLAN, Native} {
		if r.has(base) && len(r.Candidates) > 1 {
			return base
		}
	}
	return ""
}

// grids are the tables of all beds: for each the values, and the ratios where there is a yardstick.
func (r *Run) grids() []grid {
	var out []grid
	for _, bed := range r.Beds() {
		out = append(out, r.values(bed))
		if base := r.base(); base != "" {
			if g := r.ratios(bed, base); len(g.columns) > 0 {
				out = append(out, g)
			}
		}
	}
	return out
}

// values is the table of one bed: a row for each test, a column for each candidate.
func (r *Run) values(bed Bed) grid {
	g := grid{title: bed.String(), about: bed.About(), lead: []string{"test", "unit"}}
	for _, t := range Tests() {
		unit := t.Unit()
		if t.LowerIsBetter() {
			unit = strings.TrimSpace(unit + " (<)")
		}
		g.rows, g.groups = append(g.rows, []string{t.Title(), unit}), append(g.groups, family(t))
	}
	for _, c := range r.Candidates {
		col := column{name: c, every: c == r.base()}
		for _, t := range Tests() {
			col.cells = append(col.cells, r.cellText(cell{bed, t, c}))
		}
		g.columns = append(g.columns, col)
	}
	return g.compact()
}

// ratios is the table of one bed with all values divided by the base's.
func (r *Run) ratios(bed Bed, base string) grid {
	g := grid{title: fmt.Sprintf("%s: ratio to %s", bed, base), lead: []string{"test", ""}}
	for _, t := range Tests() {
		better := ""
		if t.LowerIsBetter() {
			better = "(<)"
		}
		g.rows, g.groups = append(g.rows, []string{t.Title(), better}), append(g.groups, family(t))
	}
	for _, c := range r.Candidates {
		if c == base {
			continue
		}
		col := column{name: c}
		for _, t := range Tests() {
			col.cells = append(col.cells, ratioText(r.Ratio(bed, t, c, base)))
		}
		g.columns = append(g.columns, col)
	}
	return g.compact()
}

// family tells which tests belong together.
func family(t Test) string {
	parent, _ := t.Of()
	switch parent {
	case Both:
		return "tcp"
	case RTT, RTTLoad, RR1, RR16, Connects:
		return "latency"
	case CPU, CPUPacket:
		return "cpu"
	case Idle, Memory:
		return "process"
	}
	return strings.TrimRight(strings.TrimSuffix(string(parent), "mix"), "0123456789")
}

func (r *Run) cellText(c cell) string {
	s := r.Summary(c.bed, c.test, c.candidate)
	m := r.mark(c)
	if s.N == 0 {
		if m.few && len(r.of(c.bed, c.test, c.candidate)) > 0 {
			return "n=0" // it was tried: the notes say what happened
		}
		return ""
	}
	out := Number(s.Median)
	if m.full {
		out += "^"
	}
	if s.N > 1 {
		out += fmt.Sprintf(" (%s..%s)", Number(s.Min), Number(s.Max))
	}
	if m.few {
		out += fmt.Sprintf(" n=%d", s.N)
	}
	if m.notes {
		out += " *"
	}
	return out
}

func ratioText(r Ratio) string {
	switch r.N {
	case 0:
		return ""
	case 1:
		return times(r.Of)
	}
	return fmt.Sprintf("%s (%s..%s)", times(r.Of), times(r.Min), times(r.Max))
}

// times writes a ratio: with two decimals, which is more than the spread deserves, where that is enough and not too much.
func times(v float64) string {
	if v >= 9.995 || v < 0.0995 {
		return Number(v)
	}
	return fmt.Sprintf("%.2f", v)
}

// goals is the table of verdicts: a row for each test on each bed, with its floor and its aim side by side. It has no
// columns when there is nothing to judge.
func (r *Run) goals() grid {
	g := grid{title: "The project's goals for " + UDP, lead: []string{"bed", "test", "measured"}}
	var floor, aim column
	floor.name, aim.name = "floor", "aim"
	all := r.allVerdicts()
	for i, v := range all {
		if i == 0 || all[i-1].Bed != v.Bed || all[i-1].Test != v.Test {
			g.rows = append(g.rows, []string{v.Bed.String(), v.Test.Title(), v.Measured})
			g.groups = append(g.groups, v.Bed.String())
			floor.cells, aim.cells = append(floor.cells, ""), append(aim.cells, "")
		}
		last := len(g.rows) - 1
		text := fmt.Sprintf("%s: %s", strings.TrimSuffix(v.Goal, " of "+VXLAN), v.Word())
		if v.Kind == Floor {
			floor.cells[last] = text
		} else {
			aim.cells[last] = text
		}
	}
	g.columns = []column{floor, aim}
	return g.compact()
}
