package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/env"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func main() {
	roles := traffic.StandardRoles()
	maps.Copy(roles, candidate.Roles())
	if code, ran := traffic.RunRole(roles); ran {
		os.Exit(code)
	}
	if err := run(); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
	}
}

func run() error {
	o, err := parseOptions(os.Args[1:], os.Stderr)
	if err != nil {
		return err
	}
	environment := env.Read(os.Args[1:]) // before Enter: a user namespace hides some of it
	if err := netlab.Enter(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &result.Run{
		Environment: environment, Options: o.asMap(), Quick: o.Quick,
		Modes: o.Modes, Candidates: o.Candidates,
	}
	start := time.Now()
	err = measureAll(ctx, o, r)
	r.Took = time.Since(start)
	if ctx.Err() != nil {
		err = errors.New("interrupted; everything that was set up is removed")
	}
	// What was measured before a failure is worth keeping too.
	return errors.Join(err, write(o, r, err == nil))
}

// asMap is the options as the raw results keep them.
func (o options) asMap() map[string]any {
	m := map[string]any{}
	if b, err := json.Marshal(o); err == nil {
		_ = json.Unmarshal(b, &m) // what Marshal wrote
	}
	return m
}

// write prints the report and writes the files.
func write(o options, r *result.Run, complete bool) error {
	if len(r.Samples) == 0 {
		return nil
	}
	if !complete {
		r.Environment.Warnings = append(r.Environment.Warnings, "the run is incomplete")
	}
	fmt.Print(r.Text())
	if o.jsonFile != "" {
		b, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return fmt.Errorf("write %s: %w", o.jsonFile, err)
		}
		if err := os.WriteFile(o.jsonFile, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.markdownFile != "" {
		return os.WriteFile(o.markdownFile, []byte(r.Markdown()), 0o644)
	}
	return nil
}
