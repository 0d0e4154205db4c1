package candidate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A kind is a way to carry packets before its spec is known. Each is one entry of kinds(), see there.
type kind struct {
	name  string // before the colon
	about string // for the help
	// options are what may stand behind the colon as option=value, joined by plus signs.
	options []option
	// argument, if not empty, says what must stand behind the colon instead of options, for the help: "/path/to/flanneld".
	// It begins with a slash. A kind with one is not in the default list.
	argument string
	// make makes the candidate. Its Name must be s.text.
	make func(s spec) (Candidate, error)
}

// An option takes one of the words, or a whole number from min to max if there are no words.
type option struct {
	name     string
	about    string
	words    []string
	min, max int
}

// A spec names a candidate: a kind and its options, all of them legal ones.
type spec struct {
	text     string            // the whole, and the candidate's name
	chosen   map[string]string // option to value; without those that were not given
	argument string            // for a kind that takes one
	nth      int               // how many candidates of the kind come before it in the run
}

// is reports whether the option was given with that value.
func (s spec) is(option, value string) bool { return s.chosen[option] == value }

// number returns a numeric option, or otherwise if it was not given.
func (s spec) number(option string, otherwise int) int {
	n, err := strconv.Atoi(s.chosen[option])
	if err != nil {
		return otherwise
	}
	return n
}

// values describes what the option takes.
func (o option) values() string {
	if o.words == nil {
		return fmt.Sprintf("%d..%d", o.min, o.max)
	}
	return strings.Join(o.words, "|")
}

// takes reports whether the value is legal.
func (o option) takes(value string) bool {
	if o.words != nil {
		return slices.Contains(o.words, value)
	}
	// One way to write each number: two specs of one meaning would be two candidates.
	n, err := strconv.Atoi(value)
	return err == nil && n >= o.min && n <= o.max && strconv.Itoa(n) == value
}

// parse takes a spec apart and finds its kind. The errors list what there is instead.
func parse(text string) (kind, spec, error) {
	s := spec{text: text, chosen: map[string]string{}}
	name, rest, more := strings.Cut(text, ":")
	all := kinds()
	i := slices.IndexFunc(all, func(k kind) bool { return k.name == name })
	if i < 0 {
		var names []string
		for _, k := range all {
			names = append(names, k.name)
		}
		return kind{}, s, fmt.Errorf("candidate: no %q (there are: %s)", name, strings.Join(names, ", "))
	}
	k := all[i]
	if k.argument != "" {
		if !strings.HasPrefix(rest, "/") {
			return k, s, fmt.Errorf("candidate: %q lacks its argument (%s:%s, an absolute path)", text, k.name, k.argument)
		}
		s.argument = rest
		return k, s, nil
	}
	if !more {
		return k, s, nil
	}
	for one := range strings.SplitSeq(rest, "+") {
		if err := k.choose(&s, one); err != nil {
			return k, s, err
		}
	}
	return k, s, nil
}

// choose takes one option=value into the spec.
func (k kind) choose(s *spec, one string) error {
	name, value, ok := strings.Cut(one, "=")
	i := slices.IndexFunc(k.options, func(o option) bool { return o.name == name })
	switch {
	case len(k.options) == 0:
		return fmt.Errorf("candidate: %q: %s takes no options", s.text, k.name)
	case !ok || i < 0:
		var all []string
		for _, o := range k.options {
			all = append(all, o.name+"="+o.values())
		}
		return fmt.Errorf("candidate: %q: no option %q (%s takes: %s)", s.text, one, k.name, strings.Join(all, ", "))
	case !k.options[i].takes(value):
		return fmt.Errorf("candidate: %q: %s can't be %q (it takes: %s)", s.text, name, value, k.options[i].values())
	case s.chosen[name] != "":
		return fmt.Errorf("candidate: %q: %s is given twice", s.text, name)
	}
	s.chosen[name] = value
	return nil
}
