// Package candidate knows the ways to carry packets between two hosts that the benchmark compares: one file each.
package candidate

import (
	"fmt"
	"slices"
	"strings"
)

// Settings adjust candidates. The zero value is each one's default.
type Settings struct {
	// Engines is how many engines each host runs, for candidates that have such a thing; 0 means 1.
	Engines int
	// NoGSO switches segmentation offload on the sending socket off.
	NoGSO bool
	// TrustOuter lets an engine take the outer checksum for the inner one.
	TrustOuter bool
	// SourcePorts is how many further source ports an engine spreads flows over.
	SourcePorts int
}

// Names returns the names of all candidates, yardsticks first.
func Names() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// kind is a candidate before it is made.
type kind struct {
	name string
	make func(Settings) Candidate
}

// New makes the named candidates, each once, in the given order.
func New(names []string, settings Settings) ([]Candidate, error) {
	var out []Candidate
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("candidate %q is given twice", name)
		}
		k := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
		if k < 0 {
			return nil, fmt.Errorf("no candidate %q (there are: %s)", name, strings.Join(Names(), ", "))
		}
		out = append(out, kinds()[k].make(settings))
	}
	return out, nil
}
