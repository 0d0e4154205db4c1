package result

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// differences says what is not the same in two results, other than what was measured.
func differences(old, new *Run) []string {
	var out []string
	differ := func(what, before, after string) {
		if before != after {
			out = append(out, fmt.Sprintf("%s: %s -> %s", what, orNone(before), orNone(after)))
		}
	}
	a, b := old.Environment, new.Environment
	differ("processor", a.CPU, b.CPU)
	differ("cores", fmt.Sprint(a.Cores), fmt.Sprint(b.Cores))
	differ("virtual machine", fmt.Sprint(a.Virtual), fmt.Sprint(b.Virtual))
	differ("memory", a.Memory, b.Memory)
	differ("kernel", a.Kernel, b.Kernel)
	differ("Go", a.Go, b.Go)
	for _, key := range keys(a.Sysctl, b.Sysctl) {
		differ(key, a.Sysctl[key], b.Sysctl[key])
	}
	for _, key := range keys(a.Tools, b.Tools) {
		differ(key, a.Tools[key], b.Tools[key])
	}
	differ("quick", fmt.Sprint(old.Quick), fmt.Sprint(new.Quick))
	for _, key := range keys(old.Options, new.Options) {
		switch key {
		case "candidates", "modes", "mtus", "tests", "quick": // what was measured says more
			continue
		}
		differ("option "+key, optionText(old.Options, key), optionText(new.Options, key))
	}
	only := func(which string, ours, theirs []string) {
		if more := without(ours, theirs); len(more) > 0 {
			out = append(out, fmt.Sprintf("only in the %s one: %s", which, strings.Join(more, "; ")))
		}
	}
	only("old", old.measured(), new.measured())
	only("new", new.measured(), old.measured())
	return append(out, policyChanges(old, new)...)
}

// policyChanges are lines about equal treatment that only one of the results has. Older files have none at all.
func policyChanges(old, new *Run) []string {
	var out []string
	if len(old.Policy) == 0 || len(new.Policy) == 0 {
		return nil
	}
	for _, line := range without(old.Policy, new.Policy) {
		out = append(out, "no longer: "+line)
	}
	for _, line := range without(new.Policy, old.Policy) {
		out = append(out, "new: "+line)
	}
	return out
}

// measured names the candidates, beds and tests that have samples.
func (r *Run) measured() []string {
	candidates, tests := map[string]bool{}, map[Test]bool{}
	for i := range r.Samples {
		candidates[r.Samples[i].Candidate] = true
		tests[r.Samples[i].Test] = true
	}
	var out []string
	for _, c := range r.Candidates {
		if candidates[c] {
			out = append(out, c)
		}
	}
	for _, b := range r.Beds() {
		out = append(out, b.String())
	}
	for _, t := range Measured() {
		if tests[t] {
			out = append(out, t.Title())
		}
	}
	return out
}

// optionText writes an option for comparing: numbers of a run in memory and of one that was loaded look the same.
func optionText(options map[string]any, key string) string {
	v, ok := options[key]
	if !ok {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func keys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

func without(list, other []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(other, s) {
			out = append(out, s)
		}
	}
	return out
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}
