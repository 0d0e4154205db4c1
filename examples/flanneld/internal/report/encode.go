package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// MaxDocument is the largest document that Read takes, in bytes: a network of the most
// hosts that there can be (65,536) has some 15 MB.
const MaxDocument = 64 << 20

// Add appends problems. It may be called by several goroutines only one after another,
// as everything that changes a Report.
func (r *Report) Add(all ...Problem) { r.Problems = append(r.Problems, all...) }

// Settle puts the problems in order, the worst first and otherwise as they were added,
// drops those that are there twice, and sets OK.
func (r *Report) Settle() {
	settled := make([]Problem, 0, len(r.Problems)) // not nil, which would be null in JSON
	seen := make(map[Problem]bool)
	for _, p := range r.Problems {
		if !seen[p] {
			seen[p] = true
			settled = append(settled, p)
		}
	}
	slices.SortStableFunc(settled, func(a, b Problem) int { return cmp.Compare(rank(a), rank(b)) })
	r.Problems = settled
	r.OK = len(settled) == 0 || settled[0].Severity == Warning
}

// rank is 0 for the worst. A severity that this version does not know is an error.
func rank(p Problem) int {
	if p.Severity == Warning {
		return 1
	}
	return 0
}

// WriteJSON writes the report as one indented JSON object and a line end.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Read reads what a daemon answered. Fields that it does not know are skipped, so that a
// daemon may be newer than the command. An error says that this is no daemon's answer,
// or that it was cut off.
func Read(from io.Reader) (*Report, error) {
	text, err := io.ReadAll(io.LimitReader(from, MaxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxDocument {
		return nil, fmt.Errorf("report: more than %d bytes", MaxDocument)
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if r.Daemon == nil {
		return nil, errors.New("report: JSON of something else")
	}
	return r, nil
}
