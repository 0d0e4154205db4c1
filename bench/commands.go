package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/chart"
	"github.com/flannelkit/flannelkit/bench/result"
)

// write writes the files that were asked for; an empty name asks for none.
func write(r *result.Run, jsonFile, markdownFile, charts string) error {
	var errs []error
	if jsonFile != "" {
		errs = append(errs, r.Save(jsonFile))
	}
	if markdownFile != "" {
		errs = append(errs, os.WriteFile(markdownFile, []byte(r.Markdown()), 0o644))
	}
	if charts != "" {
		_, err := chart.Write(charts, r)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// flags makes a flag set for a command.
func flags(name, usage string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("bench "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: go run . %s\n\n", usage)
		f.PrintDefaults()
	}
	return f
}

// compare says what changed between two result files.
func compare(args []string, stdout, stderr io.Writer) error {
	f := flags("compare", "compare [flags] OLD NEW", stderr)
	all := f.Bool("all", false, "show also what did not change")
	md := f.Bool("md", false, "write Markdown")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return fmt.Errorf("compare takes two result files, OLD and NEW, not %d", f.NArg())
	}
	before, err := result.Load(f.Arg(0))
	if err != nil {
		return err
	}
	after, err := result.Load(f.Arg(1))
	if err != nil {
		return err
	}
	c := result.Compare(before, after)
	c.All = *all
	text := c.Text()
	if *md {
		text = c.Markdown()
	}
	_, err = io.WriteString(stdout, text)
	return err
}

// show makes tables and charts of a result file.
func show(args []string, stdout, stderr io.Writer) error {
	f := flags("show", "show [flags] FILE", stderr)
	md := f.String("md", "", "write the tables as Markdown to this file, and no text")
	charts := f.String("charts", "", "write charts (SVG) to this folder")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return fmt.Errorf("show takes one result file, not %d", f.NArg())
	}
	r, err := result.Load(f.Arg(0))
	if err != nil {
		return err
	}
	if err := write(r, "", *md, *charts); err != nil || *md != "" {
		return err
	}
	width := result.DefaultWidth
	if file, ok := stdout.(*os.File); ok {
		width = terminalWidth(file)
	}
	_, err = io.WriteString(stdout, r.TextWidth(width))
	return err
}

// listAll prints what can be asked for.
func listAll(args []string, stdout io.Writer) error {
	if len(args) > 0 {
		return fmt.Errorf("list takes no arguments, not %q", args)
	}
	fmt.Fprint(stdout, "suites (-suite):\n")
	for _, s := range suites() {
		fmt.Fprintf(stdout, "  %-24s %s\n", s.name, s.about)
	}
	fmt.Fprint(stdout, "\ncandidates (-candidates), with options as in udp:engines=2+gso=off:\n", candidate.Help(), "\ntests (-tests):\n")
	for _, t := range result.Measured() {
		_, err := fmt.Fprintf(stdout, "  %-24s %s, %s\n", t, t.Title(), t.Unit())
		if err != nil {
			return err
		}
	}
	return nil
}
