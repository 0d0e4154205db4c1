package result

import (
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// A grid is a table before it is known how wide it may be: columns that are always there, and any number of others.
type grid struct {
	title   string
	about   string     // more words for the title, which are not repeated
	lead    []string   // headers of the columns that each part has
	rows    [][]string // their cells
	groups  []string   // by row; where it changes there is a line between
	columns []column
}

// A column is one candidate's.
type column struct {
	name  string
	cells []string // by row
	every bool     // is the first in each part: the others are compared with it
}

// compact leaves out rows and columns without any content.
func (g grid) compact() grid {
	out := grid{title: g.title, about: g.about, lead: g.lead}
	for _, c := range g.columns {
		if strings.Join(c.cells, "") != "" {
			out.columns = append(out.columns, column{name: c.name, every: c.every})
		}
	}
	for i := range g.rows {
		filled := false
		for _, c := range g.columns {
			filled = filled || c.cells[i] != ""
		}
		if !filled {
			continue
		}
		out.rows = append(out.rows, g.rows[i])
		if g.groups != nil {
			out.groups = append(out.groups, g.groups[i])
		}
		k := 0
		for _, c := range g.columns {
			if strings.Join(c.cells, "") != "" {
				out.columns[k].cells = append(out.columns[k].cells, c.cells[i])
				k++
			}
		}
	}
	return out
}

const (
	border  = 3  // a column's share of the lines and spaces between columns
	fewRows = 10 // that need no lines between them
)

// split makes several grids of one that would be wider than width: each with the leading columns, those of every part, and
// as many others as fit, at least one.
func (g grid) split(width int, header func(string) string) []grid {
	fixed := 1
	for i, h := range g.lead {
		w := cellWidth(h)
		for _, row := range g.rows {
			w = max(w, cellWidth(row[i]))
		}
		fixed += w + border
	}
	var every []column
	for _, c := range g.columns {
		if c.every {
			every = append(every, c)
			fixed += c.width(header) + border
		}
	}
	part, used := slices.Clone(every), fixed
	var parts []grid
	for _, c := range g.columns {
		if c.every {
			continue
		}
		w := c.width(header) + border
		if used+w > width && len(part) > len(every) {
			parts = append(parts, g.with(part))
			part, used = slices.Clone(every), fixed
		}
		part, used = append(part, c), used+w
	}
	return append(parts, g.with(part))
}

func (g grid) with(columns []column) grid {
	g.columns = columns
	return g
}

func (c column) width(header func(string) string) int {
	w := cellWidth(header(c.name))
	for _, s := range c.cells {
		w = max(w, cellWidth(s))
	}
	return w
}

// cellWidth is that of the longest line.
func cellWidth(s string) int {
	w := 0
	for line := range strings.SplitSeq(s, "\n") {
		w = max(w, text.StringWidthWithoutEscSequences(line))
	}
	return w
}

func (g grid) writer(header func(string) string) table.Writer {
	w := table.NewWriter()
	var top table.Row
	for _, h := range g.lead {
		top = append(top, h)
	}
	for _, c := range g.columns {
		top = append(top, header(c.name))
	}
	w.AppendHeader(top)
	for i, lead := range g.rows {
		if len(g.rows) > fewRows && g.groups != nil && i > 0 && g.groups[i] != g.groups[i-1] {
			w.AppendSeparator()
		}
		var row table.Row
		for _, s := range lead {
			row = append(row, s)
		}
		for _, c := range g.columns {
			row = append(row, c.cells[i])
		}
		w.AppendRow(row)
	}
	return w
}

// text renders the grid for a terminal that is width columns wide.
func (g grid) text(width int) string {
	var b strings.Builder
	for i, part := range g.split(width, wrapName) {
		b.WriteString(part.partTitle(i) + "\n")
		w := part.writer(wrapName)
		w.SetStyle(table.StyleLight)
		w.Style().Format.Header = text.FormatDefault
		b.WriteString(w.Render() + "\n")
	}
	return b.String()
}

// markdown renders the grid for a document. A table wider than width would have to be scrolled.
func (g grid) markdown(width int) string {
	var b strings.Builder
	whole := func(s string) string { return s }
	for i, part := range g.split(width, whole) {
		b.WriteString("**" + part.partTitle(i) + "**\n\n" + part.writer(whole).RenderMarkdown() + "\n\n")
	}
	return b.String()
}

func (g grid) partTitle(i int) string {
	switch {
	case i > 0:
		return g.title + " (continued)"
	case g.about != "":
		return g.title + " (" + g.about + ")"
	}
	return g.title
}

// nameWidth is what a candidate's name may take before it goes on in the next line.
const nameWidth = 18

// wrapName breaks a long specification where one of its parts ends.
func wrapName(name string) string {
	if len(name) <= nameWidth {
		return name
	}
	var b strings.Builder
	line := 0
	for start := 0; start < len(name); {
		end := len(name)
		if i := strings.IndexAny(name[start+1:], ":+/"); i >= 0 {
			end = start + 1 + i
			if name[end] != '+' {
				end++ // a plus begins the next part, the others end one
			}
		}
		if line > 0 && line+end-start > nameWidth {
			b.WriteByte('\n')
			line = 0
		}
		b.WriteString(name[start:end])
		line += end - start
		start = end
	}
	return b.String()
}
