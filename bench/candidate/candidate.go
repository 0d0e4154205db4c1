// Package candidate knows the ways to carry packets between two hosts that the benchmark compares: one file each.
//
// A candidate is named by a spec, which is also its name in the results:
//
//	name                              udp
//	name:option=value+option=value    udp:gso=off+engines=2
//	name:/path                        flannel:/opt/flanneld
//
// Several variants of one kind can run side by side.
package candidate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrUnavailable is wrapped by what Up returns when a candidate can't run on this machine: no kernel module, no binary,
// no root. The run goes on without it, and says why.
var ErrUnavailable = errors.New("not available here")

// Names returns the default list: a spec without options of every kind that needs no argument, yardsticks first.
func Names() []string {
	var names []string
	for _, k := range kinds() {
		if k.argument == "" {
			names = append(names, k.name)
		}
	}
	return names
}

// Help describes all kinds with their options, a line for each.
func Help() string {
	var b strings.Builder
	for _, k := range kinds() {
		name := k.name
		if k.argument != "" {
			name += ":" + k.argument
		}
		fmt.Fprintf(&b, "  %-24s %s\n", name, k.about)
		for _, o := range k.options {
			fmt.Fprintf(&b, "    %-22s %s\n", o.name+"="+o.values(), o.about)
		}
	}
	return b.String()
}

// New makes the candidates of the given specs, each once, in that order. It looks at the specs only: whether a candidate can
// run here is for Up to find out.
func New(specs []string) ([]Candidate, error) {
	var out []Candidate
	before := map[string]int{}
	for i, text := range specs {
		if slices.Contains(specs[:i], text) {
			return nil, fmt.Errorf("candidate: %q is given twice (variants must differ in their options)", text)
		}
		k, s, err := parse(text)
		if err != nil {
			return nil, err
		}
		s.nth = before[k.name]
		before[k.name]++
		c, err := k.make(s)
		if err != nil {
			return nil, fmt.Errorf("candidate: %s: %w", text, err)
		}
		out = append(out, c)
	}
	return out, nil
}
