package docnum

import (
	"regexp"
	"strings"
)

// A mark is a pair of comments and what stands between them, as offsets into the document.
type mark struct {
	open, start, end, close int // of the first comment, of the content, its end, the end of the second comment
	table                   bool
	args                    string
}

func (m mark) what() string {
	if m.table {
		return "<!--table " + m.args + "-->"
	}
	return "<!--n " + m.args + "-->"
}

// findMarks finds the marks of a document without its code.
func findMarks(text string, at func(int, string, ...any)) []mark {
	var marks []mark
	opened := false
	for _, hit := range regexp.MustCompile(`<!--(/?)(n|table)\b\s*((?s:.*?))\s*-->`).FindAllStringSubmatchIndex(text, -1) {
		closing, table := hit[3] > hit[2], text[hit[4]:hit[5]] == "table"
		switch {
		case closing && (!opened || marks[len(marks)-1].table != table):
			at(hit[0], "%s closes nothing", text[hit[0]:hit[1]])
		case closing:
			m := &marks[len(marks)-1]
			m.end, m.close, opened = hit[0], hit[1], false
		case opened:
			at(hit[0], "%s stands inside another mark, or that has no end", text[hit[0]:hit[1]])
		default:
			marks = append(marks, mark{open: hit[0], start: hit[1], table: table, args: text[hit[6]:hit[7]]})
			opened = true
			begin := beginsLine(text, hit[0])
			if !table && begin {
				at(hit[0], "a mark that begins a line has Markdown take the line for HTML: put a word in front of it")
			}
			if table && !begin {
				at(hit[0], "a table's mark stands on a line of its own")
			}
		}
	}
	if opened {
		at(marks[len(marks)-1].open, "%s has no end", marks[len(marks)-1].what())
		marks = marks[:len(marks)-1]
	}
	return marks
}

// beginsLine tells whether only blanks, bullets and quote marks are before an offset on its line.
func beginsLine(text string, at int) bool {
	line := text[strings.LastIndexByte(text[:at], '\n')+1 : at]
	return regexp.MustCompile(`^\s*(?:(?:[-*+>]|\d+[.)])\s*)*$`).MatchString(line)
}

// blank replaces a part by spaces, so that offsets and lines stay.
func blank(b []byte, start, end int) {
	for i := start; i < end; i++ {
		if b[i] != '\n' {
			b[i] = ' '
		}
	}
}

// maskCode blanks fenced code, inline code and link targets out.
func maskCode(text string) string {
	b := []byte(text)
	fence, from, offset := "", 0, 0
	for line := range strings.Lines(text) {
		trimmed := strings.TrimLeft(line, " \t>")
		if f := regexp.MustCompile("^(`{3,}|~{3,})").FindString(trimmed); f != "" {
			rest := strings.TrimSpace(trimmed[len(f):])
			switch {
			case fence == "":
				fence, from = f, offset
			case strings.HasPrefix(f, fence) && rest == "":
				blank(b, from, offset+len(line))
				fence = ""
			}
		}
		offset += len(line)
	}
	if fence != "" {
		blank(b, from, len(b))
	}
	runs := regexp.MustCompile("`+").FindAllIndex(b, -1)
	for i := 0; i < len(runs); i++ {
		for j := i + 1; j < len(runs); j++ {
			if strings.Contains(string(b[runs[i][1]:runs[j][0]]), "\n\n") {
				break // code does not reach into the next paragraph
			}
			if runs[i][1]-runs[i][0] == runs[j][1]-runs[j][0] {
				blank(b, runs[i][0], runs[j][1])
				i = j
				break
			}
		}
	}
	for _, hit := range regexp.MustCompile(`\]\([^)\n]*\)`).FindAllIndex(b, -1) {
		blank(b, hit[0]+1, hit[1])
	}
	return string(b)
}

// sourced stands for a number that has a mark.
const sourced = '\x01'

// maskMarks replaces marks by a character that stands for a number with a source, and other comments, but for const, by blanks.
func maskMarks(text string, marks []mark) string {
	b := []byte(text)
	for _, m := range marks {
		blank(b, m.open, m.close)
		if !m.table {
			for i := m.open; i < m.close; i++ {
				b[i] = sourced
			}
		}
	}
	isConst := constMark()
	for _, hit := range regexp.MustCompile(`<!--(?s:.*?)-->`).FindAllIndex(b, -1) {
		if !isConst.Match(b[hit[0]:hit[1]]) {
			blank(b, hit[0], hit[1])
		}
	}
	return string(b)
}

// comments leaves only the comments of a Go file.
func comments(text string) string {
	b := []byte(text)
	offset := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "//") {
			blank(b, offset, offset+len(line))
		} else {
			i := offset + strings.Index(line, "//")
			blank(b, i, i+2)
		}
		offset += len(line)
	}
	return string(b)
}
