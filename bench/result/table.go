package result

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Text renders the run for a terminal.
func (r *Run) Text() string {
	w := r.table()
	w.SetStyle(table.StyleLight)
	w.Style().Format.Header = text.FormatDefault
	w.SetTitle(r.title())
	var b strings.Builder
	b.WriteString(w.Render())
	b.WriteString("\n" + r.legend() + "\n")
	for _, v := range r.allVerdicts() {
		fmt.Fprintf(&b, "%-6s  %s: %s: %s\n", met(v), v.Candidate, v.Floor, v.Measured)
	}
	for _, line := range append(r.notes(), r.Environment.Warnings...) {
		b.WriteString("note: " + line + "\n")
	}
	return b.String()
}

// Markdown renders the run, its environment first, for a document.
func (r *Run) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "`%s`\n\n", r.Environment.Command)
	for _, line := range r.Environment.Lines() {
		b.WriteString("- " + line + "\n")
	}
	fmt.Fprintf(&b, "\n%s\n\n%s\n\n%s\n", r.title(), r.table().RenderMarkdown(), r.legend())
	if verdicts := r.allVerdicts(); len(verdicts) > 0 {
		w := table.NewWriter()
		w.AppendHeader(table.Row{"", "candidate", "floor", "measured"})
		for _, v := range verdicts {
			w.AppendRow(table.Row{met(v), v.Candidate, v.Floor, v.Measured})
		}
		b.WriteString("\n" + w.RenderMarkdown() + "\n")
	}
	for _, line := range append(r.notes(), r.Environment.Warnings...) {
		b.WriteString("\nNote: " + line + "\n")
	}
	return b.String()
}

func (r *Run) title() string {
	runs := 0
	for _, s := range r.Samples {
		runs = max(runs, s.Run)
	}
	if runs <= 1 {
		return fmt.Sprintf("One run of each, %v in all: a first look, not a result", r.Took.Round(time.Second))
	}
	return fmt.Sprintf("Medians of %d runs (lowest..highest), %v in all", runs, r.Took.Round(time.Second))
}

func (r *Run) legend() string {
	return "Ratios are of the medians; in brackets the lowest and highest of the single runs. (<) lower is better,\n" +
		"^ no loss up to where the sender's processor was full, * see the notes."
}

// table has a row for each mode and test, a column for each candidate, and columns for the ratios of those that are no
// yardstick themselves: the engine's to both yardsticks, the others' to VXLAN.
func (r *Run) table() table.Writer {
	w := table.NewWriter()
	header := table.Row{"mode", "test", "unit"}
	for _, c := range r.Candidates {
		header = append(header, c)
	}
	type pair struct{ candidate, base string }
	var pairs []pair
	for _, c := range r.Candidates {
		for _, base := range []string{VXLAN, Native} {
			if c != Native && c != VXLAN && r.has(base) && (c == UDP || base == VXLAN) {
				pairs = append(pairs, pair{c, base})
			}
		}
	}
	if len(pairs) == 0 && r.has(VXLAN) && r.has(Native) {
		pairs = []pair{{VXLAN, Native}}
	}
	for _, p := range pairs {
		header = append(header, p.candidate+" / "+p.base)
	}
	w.AppendHeader(header)
	for _, mode := range r.Modes {
		w.AppendSeparator()
		for _, test := range append(Tests(), Tunnel) {
			row := table.Row{mode, test.Title(), test.Unit()}
			if test.LowerIsBetter() {
				row[2] = test.Unit() + " (<)"
			}
			filled := false
			for _, c := range r.Candidates {
				cell := r.cell(mode, test, c)
				filled = filled || cell != ""
				row = append(row, cell)
			}
			for _, p := range pairs {
				row = append(row, ratioCell(r.Ratio(mode, test, p.candidate, p.base)))
			}
			if filled {
				w.AppendRow(row)
			}
		}
	}
	return w
}

func (r *Run) has(candidate string) bool {
	for _, c := range r.Candidates {
		if c == candidate {
			return true
		}
	}
	return false
}

func (r *Run) cell(mode string, test Test, candidate string) string {
	s := r.Summary(mode, test, candidate)
	if s.N == 0 {
		return ""
	}
	notes, full := r.marks(mode, test, candidate)
	cell := number(s.Median)
	if full {
		cell += "^"
	}
	if s.N > 1 {
		cell += fmt.Sprintf(" (%s..%s)", number(s.Min), number(s.Max))
	}
	if len(notes) > 0 {
		cell += " *"
	}
	return cell
}

func ratioCell(r Ratio) string {
	switch r.N {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%.2f", r.Of)
	}
	return fmt.Sprintf("%.2f (%.2f..%.2f)", r.Of, r.Min, r.Max)
}

// allVerdicts judges the engine, which is what the project has set floors for.
func (r *Run) allVerdicts() []Verdict {
	if !r.has(UDP) {
		return nil
	}
	return r.Verdicts(UDP)
}

func met(v Verdict) string {
	if v.Met {
		return "met"
	}
	return "MISSED"
}

// notes lists what the asterisks mean, each once.
func (r *Run) notes() []string {
	var out []string
	seen := map[string]bool{}
	steal := 0.0
	for _, s := range r.Samples {
		steal = max(steal, s.Steal)
		if s.Note == "" {
			continue
		}
		line := fmt.Sprintf("%s %s, %s: %s", s.Mode, s.Test.Title(), s.Candidate, s.Note)
		if !seen[line] {
			seen[line] = true
			out = append(out, line)
		}
	}
	if steal >= 0.02 {
		out = append(out, fmt.Sprintf("the hypervisor took up to %.0f %% of the processors' time during a measurement", steal*100))
	}
	return out
}
