package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The kinds of flag values. Each is a flag.Value over a field of options.

type stringValue struct{ p *string }

func (v stringValue) Set(s string) error { *v.p = s; return nil }
func (v stringValue) String() string {
	if v.p == nil { // package flag makes a zero value to compare with
		return ""
	}
	return *v.p
}

// listValue collects what a repeatable flag is given. The environment gives it one
// value, whatever it contains, as flannel does. An empty value is none, so that a unit
// may say --iface=${IFACE}.
type listValue struct{ p *[]string }

func (v listValue) Set(s string) error {
	if s != "" {
		*v.p = append(*v.p, s)
	}
	return nil
}
func (v listValue) String() string {
	if v.p == nil {
		return ""
	}
	return strings.Join(*v.p, ",")
}

type boolValue struct{ p *bool }

func (v boolValue) IsBoolFlag() bool { return true }
func (v boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("neither true nor false")
	}
	*v.p = b
	return nil
}
func (v boolValue) String() string {
	return strconv.FormatBool(v.p != nil && *v.p)
}

// intValue is a whole number in a range, both ends included.
type intValue struct {
	p        *int
	min, max int
	unit     string // with a leading space, or empty
}

func (v intValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("want %d to %d%s", v.min, v.max, v.unit)
	}
	*v.p = n
	return nil
}
func (v intValue) String() string {
	if v.p == nil {
		return "0"
	}
	return strconv.Itoa(*v.p)
}

// refusedValue stands for a flag of flannel's whose function does not exist here.
// To turn it off is what happens anyway; all else is reported once the whole
// command line is read, so that a better message than package flag's comes out.
type refusedValue struct {
	o       *options
	name    string // as the user gave it
	about   string
	boolean bool
}

func (v refusedValue) IsBoolFlag() bool { return v.boolean }
func (v refusedValue) String() string   { return "" }
func (v refusedValue) Set(s string) error {
	if on, err := strconv.ParseBool(s); s == "" || v.boolean && err == nil && !on {
		return nil
	}
	v.o.refused = append(v.o.refused, refusal{v.name, v.about})
	return nil
}
