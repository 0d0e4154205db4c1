// Package docnum keeps the numbers in documents honest: every measured number comes out of a committed result file, and a
// test says so.
//
// The rule, in Markdown:
//
//   - A measured number stands between two comments that name its source, `<!--n results/F.json M1 tcp1 udp/vxlan-->0.66<!--/n-->`:
//     file (below bench), link (M1, or M1/9000 with another MTU), test, and a candidate or two to divide. `min`, `max`, `runs`,
//     `*100` and `.2` may follow: the lowest or highest of the runs, how many runs count, times 100, two decimals.
//   - The file may not be of a quick run, nor of a commit that ends in -dirty, and the number has to rest on five runs, of which two
//     at most were discarded; idle and memory, which are measured once, on one. In a made table a cell
//     with less says how many runs count, and no number.
//   - What only a log kept by hand knows names the log and the beginning of one row: `<!--n results/steps.md#SIMD checksum-->19.5<!--/n-->`.
//   - `<!--table results/F.json M1,M2 tcp1,rtt native,udp,udp/vxlan-->` and `<!--/table-->`, each on a line of its own, hold a table that is made.
//   - A number with a unit of performance, or a bare one in a table about it, that stands elsewhere is an error, except in code,
//     and except where `<!--const why-->` follows it right away: a setting, not a measurement.
//   - Rewrite brings marked numbers and tables up to date. In Go files, which hide no comments, no such number may stand.
package docnum

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Problem is a place in a document that breaks the rule.
type Problem struct {
	File string // as it was given
	Line int    // from 1
	Text string // the number or mark, and what is wrong with it
}

// String is the problem as compilers write theirs.
func (p Problem) String() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text) }

// Files returns the documents of the repository at root that the rule is for, as slash-separated names relative to it: all
// Markdown but the result files, which are the sources, and the changelog, which tells what was; and the root's doc.go.
func Files(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		base := d.Name()
		switch {
		case d.IsDir() && rel != "." && (strings.HasPrefix(base, ".") || base == "testdata" || rel == "bench/results"):
			return fs.SkipDir
		case rel == "doc.go", strings.HasSuffix(base, ".md") && base != "CHANGELOG.md":
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("docnum: files: %w", err)
	}
	return files, nil
}

// Check looks at documents, named relative to the root of the repository, and returns what is wrong, in the order of the
// files and their lines. A document that can't be read is a problem too.
func Check(root string, files []string) []Problem {
	var all []Problem
	src := newSources(root)
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			all = append(all, Problem{name, 1, err.Error()})
			continue
		}
		_, problems := src.examine(name, string(text))
		all = append(all, problems...)
	}
	return all
}

// Rewrite brings the marked numbers and tables of a document up to date, in place, and reports whether that changed
// anything. The problems are those that are left: a source that has no such number, numbers without a mark.
// The error is the file system's.
func Rewrite(root, file string) (changed bool, left []Problem, err error) {
	name := filepath.Join(root, filepath.FromSlash(file))
	text, err := os.ReadFile(name)
	if err != nil {
		return false, nil, fmt.Errorf("docnum: rewrite: %w", err)
	}
	src := newSources(root)
	out, _ := src.examine(file, string(text))
	if out != string(text) {
		info, err := os.Stat(name)
		if err != nil {
			return false, nil, fmt.Errorf("docnum: rewrite: %w", err)
		}
		if err := os.WriteFile(name, []byte(out), info.Mode().Perm()); err != nil {
			return false, nil, fmt.Errorf("docnum: rewrite: %w", err)
		}
	}
	_, left = src.examine(file, out)
	return out != string(text), left, nil
}

// examine checks one document and returns it as it should be, together with what is wrong with it as it is.
func (s *sources) examine(name, text string) (want string, problems []Problem) {
	at := func(offset int, format string, args ...any) {
		problems = append(problems, Problem{name, 1 + strings.Count(text[:offset], "\n"), fmt.Sprintf(format, args...)})
	}
	if strings.HasSuffix(name, ".go") {
		for _, hit := range measured(comments(text)) {
			at(hit.at, "%q is a measured number, and Go files can't say where it comes from: refer to a document", hit.text)
		}
		return text, problems
	}
	plain := maskCode(text)
	marks := findMarks(plain, at)
	var b strings.Builder
	last := 0
	for _, m := range marks {
		shown := text[m.start:m.end]
		value, err := s.value(m, shown)
		switch {
		case err != nil:
			at(m.open, "%s: %v", m.what(), err)
			value = shown
		case value != shown && m.table:
			at(m.open, "%s: the table differs from its source", m.what())
		case value != shown:
			at(m.open, "%s: says %s, the source %s", m.what(), shown, value)
		}
		b.WriteString(text[last:m.start] + value)
		last = m.end
	}
	b.WriteString(text[last:])
	for _, hit := range measured(maskMarks(plain, marks)) {
		at(hit.at, "%q has no source: mark it <!--n results/FILE LINK TEST CANDIDATE-->number<!--/n-->, or <!--const why--> after it", hit.text)
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
	return b.String(), problems
}
