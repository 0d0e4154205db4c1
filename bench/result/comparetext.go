package result

import (
	"fmt"
	"strings"
)

// Text renders the comparison for a terminal: what is different besides the measurements, a summary, and the changes; with
// All, what did not change follows.
func (c Comparison) Text() string {
	var b strings.Builder
	for _, line := range c.head() {
		b.WriteString(line + "\n")
	}
	if g := c.grid(); len(g.rows) > 0 {
		b.WriteString("\n" + g.text(1<<20)) // one row is one comparison: splitting it would hide what belongs together
	}
	b.WriteString("\n" + strings.Join(c.legend(), "\n") + "\n")
	return b.String()
}

// Markdown renders the same for a document, without headings.
func (c Comparison) Markdown() string {
	var b strings.Builder
	for _, line := range c.head() {
		b.WriteString("- " + strings.TrimPrefix(line, "different: ") + "\n")
	}
	b.WriteString("\n")
	if g := c.grid(); len(g.rows) > 0 {
		b.WriteString(g.markdown(1 << 20))
	}
	b.WriteString(strings.Join(c.legend(), "\n") + "\n")
	return b.String()
}

// head is what comes before the table.
func (c Comparison) head() []string {
	lines := []string{"old: " + origin(c.old), "new: " + origin(c.new)}
	if len(c.Different) == 0 {
		lines = append(lines, "same machine, kernel, Go, options and candidates")
	}
	for _, d := range c.Different {
		lines = append(lines, "different: "+d)
	}
	return append(lines, c.summary()...)
}

func origin(r *Run) string {
	if r == nil {
		return "unknown"
	}
	e := r.Environment
	out := fmt.Sprintf("%s, commit %s", e.Date.Format("2006-01-02 15:04 MST"), orNone(e.Commit))
	if e.Command != "" {
		out += ", " + e.Command
	}
	return out
}

func (c Comparison) summary() []string {
	if len(c.Changes) == 0 {
		return []string{"nothing to compare: no test of any candidate is in both, on the same bed"}
	}
	lines := []string{fmt.Sprintf("%s: %d worse, %d better, %d no difference, %d too few runs",
		plural(len(c.Changes), "comparison"), c.Count(Worse), c.Count(Better), c.Count(NoDifference), c.Count(TooFewRuns))}
	if least, others := c.alone(); c.Count(TooFewRuns) < len(c.Changes) {
		lines = append(lines,
			fmt.Sprintf("corrected for many comparisons (Benjamini-Hochberg): at most %.0f %% of those called better or worse are chance, on average", 100*Alpha),
			fmt.Sprintf("a change below %.0f %% is no difference, whatever p says", 100*LeastEffect))
		if others > 0 {
			lines = append(lines, fmt.Sprintf("so many comparisons of so few runs: p is %.3f at best, and a change shows only if %d others have as low a p (more runs, or fewer tests, help)", least, others))
		}
	}
	lines = append(lines, "all runs of a file share one set-up of each candidate: what differs between two set-ups of the same thing can look like a change (compare two files of the same commit to see how much)")
	native := 0
	for _, change := range c.Changes {
		if change.Candidate == Native && rank(change) < 2 {
			native++
		}
	}
	if native > 0 {
		lines = append(lines, fmt.Sprintf("native itself changed in %s: the machine, or what else ran on it, was not the same", plural(native, "comparison")))
	}
	if c.Count(TooFewRuns) > 0 {
		lines = append(lines, "too few runs: no difference could show; the least are 4+4, 3+5 or 2+8 valid runs, old+new in either order")
	}
	return lines
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c Comparison) legend() []string {
	lines := []string{
		"The verdict is that of the ratios to the yardstick, which was measured right beside in each run, so that another",
		"machine, or another day, does not count as a change. Without a yardstick (-) it is that of the values themselves.",
		"Values and ratios are medians of the single runs', old -> new. p: exact Mann-Whitney U test, not corrected;",
		"n: runs that count, old+new. Where there is no difference, the percentage is noise. (<) lower is better.",
	}
	if hidden := c.Count(NoDifference) + c.Count(TooFewRuns); hidden > 0 && !c.All {
		lines = append(lines, fmt.Sprintf("%s without a change not shown (-all shows them).", plural(hidden, "comparison")))
	}
	return lines
}

// grid has a row for each change: the values, then the ratios.
func (c Comparison) grid() grid {
	g := grid{title: "What changed"}
	if c.All {
		g.title = "All comparisons, what changed first"
	}
	g.lead = []string{"verdict", "bed", "test", "candidate", "values", "change", "p", "yardstick", "ratios", "change", "p", "n"}
	for _, change := range c.Changes {
		if rank(change) == 2 && !c.All {
			continue
		}
		title := change.Test.Title()
		if change.Test.LowerIsBetter() {
			title += " (<)"
		}
		row := []string{string(change.Outcome()), change.Bed.String(), title, wrapName(change.Candidate)}
		unit := change.Test.Unit()
		row = append(row, deltaCells(change.Absolute, Number, unit)...)
		if change.Base == "" {
			row = append(row, "-", "", "", "")
		} else {
			row = append(append(row, change.Base), deltaCells(change.Relative, times, "")...)
		}
		d := change.counts()
		g.rows = append(g.rows, append(row, fmt.Sprintf("%d+%d", d.Old.N, d.New.N)))
		g.groups = append(g.groups, string(change.Outcome()))
	}
	return g
}

func deltaCells(d Delta, format func(float64) string, unit string) []string {
	percent := "?"
	if p, ok := d.Percent(); ok {
		percent = fmt.Sprintf("%+.1f %%", p)
	} else if d.Old.Median == d.New.Median {
		percent = "0 %"
	}
	return []string{
		strings.TrimSpace(format(d.Old.Median) + " -> " + format(d.New.Median) + " " + unit), percent, fmt.Sprintf("%.3f", d.P),
	}
}
