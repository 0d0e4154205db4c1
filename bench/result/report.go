package result

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Text renders the run for a terminal of [DefaultWidth] columns.
func (r *Run) Text() string { return r.TextWidth(DefaultWidth) }

// TextWidth renders the run for a terminal that is width columns wide. Tables that would be wider are split, and the
// yardstick is repeated in each part; a single candidate's column is never cut. 0 or less is [DefaultWidth].
func (r *Run) TextWidth(width int) string {
	if width <= 0 {
		width = DefaultWidth
	}
	var b strings.Builder
	b.WriteString(r.title() + "\n")
	for _, line := range r.skipped() {
		b.WriteString(line + "\n")
	}
	for _, g := range r.grids() {
		b.WriteString("\n" + g.text(width))
	}
	b.WriteString("\n" + strings.Join(legend(), "\n") + "\n")
	for _, g := range append([]grid{r.goals()}, r.drops()...) {
		if len(g.columns) > 0 {
			b.WriteString("\n" + g.text(width))
		}
	}
	if notes := append(r.notes(), r.Environment.Warnings...); len(notes) > 0 {
		b.WriteString("\n")
		for _, line := range notes {
			b.WriteString("note: " + line + "\n")
		}
	}
	return b.String()
}

// Markdown renders the run for a document: the environment and what was the same for all first. It has no headings, so
// that it can stand under any.
func (r *Run) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "`%s`\n\n", r.Environment.Command)
	for _, line := range slices.Concat(r.Environment.Lines(), r.Policy, r.skipped()) {
		b.WriteString("- " + line + "\n")
	}
	fmt.Fprintf(&b, "\n%s.\n%s\n\n", r.title(), strings.Join(legend(), "\n"))
	for _, g := range r.grids() {
		b.WriteString(g.markdown(markdownWidth))
	}
	for _, g := range append([]grid{r.goals()}, r.drops()...) {
		if len(g.columns) > 0 {
			b.WriteString(g.markdown(markdownWidth))
		}
	}
	if notes := append(r.notes(), r.Environment.Warnings...); len(notes) > 0 {
		b.WriteString("Notes:\n\n")
		for _, line := range notes {
			b.WriteString("- " + line + "\n")
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// skipped lists the candidates that could not run, and why, in one line each: the first of what may be a program's output.
func (r *Run) skipped() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r.Skipped)) {
		out = append(out, fmt.Sprintf("not run: %s: %s", name, firstLine(r.Skipped[name])))
	}
	return out
}

// firstLine is the first line of a text that has anything in it, with single spaces.
func firstLine(text string) string {
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 {
			return strings.Join(words, " ")
		}
	}
	return ""
}

// drops are the tables of where packets were lost, segments sent again or queues too long: a row for each counter, a column
// for each candidate. Some counters have others in them, so there is no total. The searches for the highest rate lose on purpose, and have a table of their own.
func (r *Run) drops() []grid {
	var out []grid
	for _, kind := range []struct {
		title  string
		search bool
	}{
		{"Losses, repetitions and other signs of trouble, summed over all beds and tests but the searches for the highest rate (places overlap)", false},
		{"The same of the searches for the highest rate, which lose on purpose (places overlap)", true},
	} {
		g := grid{title: kind.title, lead: []string{"where"}}
		sums := map[string]map[string]uint64{} // by place and candidate
		total := map[string]uint64{}
		for i := range r.Samples {
			s := &r.Samples[i]
			if !s.Valid() || s.Test.search() != kind.search {
				continue
			}
			for where, n := range s.Drops {
				if sums[where] == nil {
					sums[where] = map[string]uint64{}
				}
				sums[where][s.Candidate] += n
				total[where] += n
			}
		}
		places := slices.SortedFunc(maps.Keys(total), func(a, b string) int {
			if total[a] != total[b] {
				return cmp.Compare(total[b], total[a])
			}
			return strings.Compare(a, b)
		})
		for _, where := range places {
			g.rows = append(g.rows, []string{where})
		}
		for _, c := range r.Candidates {
			col := column{name: c}
			for _, where := range places {
				text := ""
				if n := sums[where][c]; n > 0 {
					text = fmt.Sprint(n)
				}
				col.cells = append(col.cells, text)
			}
			g.columns = append(g.columns, col)
		}
		out = append(out, g.compact())
	}
	return out
}
