package docnum

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/flannelkit/flannelkit/bench/result"
)

// sources reads result files, each once.
type sources struct {
	root string
	runs map[string]*result.Run
}

func newSources(root string) *sources { return &sources{root, map[string]*result.Run{}} }

// path is where a source is: below bench/results, which is committed.
func (s *sources) path(name string) (string, error) {
	if path.Clean(name) != name || !strings.HasPrefix(name, "results/") {
		return "", fmt.Errorf("source %q is not one of bench/results (write results/FILE)", name)
	}
	return filepath.Join(s.root, "bench", filepath.FromSlash(name)), nil
}

func (s *sources) run(name string) (*result.Run, error) {
	if r, ok := s.runs[name]; ok {
		return r, nil
	}
	file, err := s.path(name)
	if err != nil {
		return nil, err
	}
	r, err := result.Load(file)
	if err != nil {
		return nil, err
	}
	if r.Quick {
		return nil, fmt.Errorf("%s is a quick run: a first look, no source of numbers", name)
	}
	if strings.HasSuffix(r.Environment.Commit, "-dirty") {
		return nil, fmt.Errorf("%s was measured with changes that are in no commit (%s): nobody can measure it again", name, r.Environment.Commit)
	}
	s.runs[name] = r
	return r, nil
}

// value is what should stand in a mark, written as what stands there now is.
func (s *sources) value(m mark, shown string) (string, error) {
	if m.table {
		return s.table(strings.Fields(m.args))
	}
	if file, row, ok := strings.Cut(m.args, "#"); ok && strings.HasSuffix(file, ".md") {
		return shown, s.inLog(file, strings.TrimSpace(row), shown)
	}
	args := strings.Fields(m.args)
	if len(args) < 4 {
		return "", errors.New("wants file, link, test and candidate (results/F.json M1 tcp1 udp/vxlan)")
	}
	r, err := s.run(args[0])
	if err != nil {
		return "", err
	}
	bed, err := parseBed(r, args[1])
	if err != nil {
		return "", err
	}
	sum, err := lookUp(r, bed, args[2], args[3])
	if err != nil {
		return "", err
	}
	if err := enough(r, sum, bed, args[2], args[3]); err != nil {
		return "", err
	}
	value := sum.Median
	_, fraction, _ := strings.Cut(strings.TrimSpace(shown), ".")
	decimals := len(fraction)
	for _, option := range args[4:] {
		switch {
		case option == "min":
			value = sum.Min
		case option == "max":
			value = sum.Max
		case option == "runs":
			value = float64(sum.N)
		}
	}
	for _, option := range args[4:] {
		factor, err := strconv.ParseFloat(strings.TrimPrefix(option, "*"), 64)
		switch {
		case option == "min" || option == "max" || option == "runs":
		case strings.HasPrefix(option, "*") && err == nil:
			value *= factor
		case regexp.MustCompile(`^\.\d$`).MatchString(option):
			decimals = int(option[1] - '0')
		default:
			return "", fmt.Errorf("unknown option %q (there are min, max, runs, *100, .2)", option)
		}
	}
	text := strconv.FormatFloat(value, 'f', decimals, 64)
	if strings.Contains(shown, ",") {
		text = result.Thousands(text)
	}
	return text, nil
}

// parseBed reads M1, or M1/9000 where the MTU is not Ethernet's.
func parseBed(r *result.Run, text string) (result.Bed, error) {
	mode, mtu, other := strings.Cut(text, "/")
	bed := result.Bed{Mode: mode, MTU: 1500}
	if other {
		n, err := strconv.Atoi(mtu)
		if err != nil {
			return bed, fmt.Errorf("link %q: want M1, or M1/9000", text)
		}
		bed.MTU = n
	}
	if beds := r.Beds(); !slices.Contains(beds, bed) {
		return bed, fmt.Errorf("no link %s in the file, which has %v", text, beds)
	}
	return bed, nil
}

// lookUp finds what a test gave for a candidate, or for one divided by another.
func lookUp(r *result.Run, bed result.Bed, test, expr string) (result.Summary, error) {
	t := result.Test(test)
	if !slices.Contains(result.Tests(), t) {
		return result.Summary{}, fmt.Errorf("unknown test %q", test)
	}
	var sum result.Summary
	if over, under, ok := division(r, expr); ok {
		ratio := r.Ratio(bed, t, over, under)
		sum = result.Summary{N: ratio.N, Median: ratio.Of, Min: ratio.Min, Max: ratio.Max}
	} else {
		sum = r.Summary(bed, t, expr)
	}
	if sum.N == 0 {
		return sum, fmt.Errorf("the file has no %s of %s on %v; its candidates are %s", test, expr, bed, strings.Join(r.Candidates, ", "))
	}
	return sum, nil
}

// A number in a document has to rest on madeRuns runs, of which validRuns at least were not discarded.
const madeRuns, validRuns = 5, 3

// enough refuses numbers of too few runs. Idle time and memory are measured once.
func enough(r *result.Run, s result.Summary, bed result.Bed, test, expr string) error {
	t, _ := result.Test(test).Of()
	if t == result.Idle || t == result.Memory {
		return nil
	}
	made := 0
	for _, sample := range r.Samples {
		if sample.Bed() == bed && sample.Test == t {
			made = max(made, sample.Run)
		}
	}
	if made >= madeRuns && s.N >= validRuns {
		return nil
	}
	return fmt.Errorf("%s of %s rests on %d valid runs of %d, and %d of %d are the least", test, expr, s.N, made, validRuns, madeRuns)
}

// division splits a/b at the slash that has a candidate on either side: names of candidates may have slashes themselves.
func division(r *result.Run, expr string) (over, under string, ok bool) {
	for i := range expr {
		if expr[i] == '/' && slices.Contains(r.Candidates, expr[:i]) && slices.Contains(r.Candidates, expr[i+1:]) {
			return expr[:i], expr[i+1:], true
		}
	}
	return "", "", false
}

// inLog looks for a number in the row of a log whose first cell begins as given.
func (s *sources) inLog(name, row, shown string) error {
	file, err := s.path(name)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) > 2 && row != "" && strings.HasPrefix(strings.TrimSpace(cells[1]), row) {
			found = append(found, strings.Join(cells[2:], "|"))
		}
	}
	if len(found) != 1 {
		return fmt.Errorf("%d rows of %s begin with %q, want one", len(found), name, row)
	}
	want := strings.TrimSpace(shown)
	if !regexp.MustCompile(`^[-+]?\d[\d,]*(\.\d+)?$`).MatchString(want) {
		return fmt.Errorf("%q is no number", shown)
	}
	if !regexp.MustCompile(`(?:^|[^\d.,])` + regexp.QuoteMeta(want) + `(?:$|[^\d.,]|[.,](?:\D|$))`).MatchString(found[0]) {
		return fmt.Errorf("the row %q of %s has no %s", row, name, want)
	}
	return nil
}

// table makes the table of a mark: a row for each test on each link, a column for each candidate or ratio.
func (s *sources) table(args []string) (string, error) {
	if len(args) < 4 || len(args) == 5 && args[4] != "spread" || len(args) > 5 {
		return "", errors.New("wants file, links, tests, candidates (results/F.json M1,M2 tcp1,rtt native,udp,udp/vxlan), and spread or nothing")
	}
	r, err := s.run(args[0])
	if err != nil {
		return "", err
	}
	columns := strings.Split(args[3], ",")
	heads := slices.Clone(columns)
	for i, column := range columns {
		if over, under, ok := division(r, column); ok {
			heads[i] = over + " / " + under
		} else if !slices.Contains(r.Candidates, column) {
			return "", fmt.Errorf("no candidate %s in the file, which has %s", column, strings.Join(r.Candidates, ", "))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n\n| link | test | unit | %s |\n|---|---|---|%s\n", strings.Join(heads, " | "), strings.Repeat("---|", len(columns)))
	for _, link := range strings.Split(args[1], ",") {
		bed, err := parseBed(r, link)
		if err != nil {
			return "", err
		}
		for _, test := range strings.Split(args[2], ",") {
			t := result.Test(test)
			fmt.Fprintf(&b, "| %v | %s | %s |", bed, t.Title(), t.Unit())
			filled := false
			for _, column := range columns {
				sum, err := lookUp(r, bed, test, column)
				if err == nil {
					filled = true
					if enough(r, sum, bed, test, column) != nil {
						fmt.Fprintf(&b, " n=%d |", sum.N) // and no number
						continue
					}
					_, _, ratio := division(r, column)
					b.WriteString(" " + cell(sum, ratio, len(args) == 5))
					if sum.N < madeRuns && t != result.Idle && t != result.Memory {
						fmt.Fprintf(&b, " n=%d", sum.N)
					}
				}
				b.WriteString(" |")
			}
			b.WriteString("\n")
			if !filled {
				return "", fmt.Errorf("the file has no %s on %s of any of %s", test, link, args[3])
			}
		}
	}
	return b.String() + "\n", nil
}

// cell writes a value with three digits, a ratio with two decimals, and the spread if asked to.
func cell(s result.Summary, ratio, spread bool) string {
	format := result.Number
	if ratio {
		format = func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
	}
	if !spread || s.N < 2 {
		return format(s.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", format(s.Median), format(s.Min), format(s.Max))
}
