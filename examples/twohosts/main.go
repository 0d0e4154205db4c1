// Command twohosts shows flannelkit at work on one machine: two hosts on one
// link, a container behind each, and an engine on each host that carries what
// the containers say to each other.
//
//	go run ./examples/twohosts
//
// It builds everything in network namespaces (a new user namespace when it is
// not root), measures container to container through the tunnel and beside it,
// prints a table and removes everything. Nothing else has to be installed.
//
// To read it: topology_linux.go builds the network, engine_linux.go is what
// runs on each host and the part to copy, measure_linux.go makes the traffic,
// report.go says what was found and table.go prints it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

// Exit statuses besides 0.
const (
	exitFailed      = 1
	exitInterrupted = 130 // as the shell has it for Ctrl-C
)

// cleanUpLimit is how long cleaning up may take before the program ends
// without. Nothing stays behind even then: children and namespaces end with it.
const cleanUpLimit = 5 * time.Second

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

func main() {
	// The sender, the receiver and each host's engine are this program too, started again as a child.
	if code, ran := traffic.RunRole(roles()); ran {
		os.Exit(code)
	}
	os.Exit(program(os.Args[1:], os.Stdout, os.Stderr))
}

// program is main with an exit status.
func program(args []string, stdout, stderr *os.File) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	endOnSignal(cancel)

	o, err := parseOptions(args)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout)
		return 0
	}
	var r *report
	if err == nil {
		r, err = run(ctx, o, stderr)
	}
	if err == nil {
		err = write(stdout, o, r)
	}
	switch {
	case errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(stderr, "twohosts: interrupted; everything it had set up is removed")
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(stderr, "twohosts: "+oneLine(err))
		return exitFailed
	}
	return 0
}

// endOnSignal makes the first signal end the context, and a second one the
// program.
func endOnSignal(cancel context.CancelCauseFunc) {
	signals := make(chan os.Signal, 2)
	if !signal.Ignored(syscall.SIGHUP) { // nohup stays nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM) // also where a script's & has them ignored
	go func() {
		<-signals
		cancel(errInterrupted)
		select {
		case <-signals:
		case <-time.After(cleanUpLimit):
		}
		os.Exit(exitInterrupted)
	}()
}

// write prints the report the way it was asked for.
func write(out io.Writer, o options, r *report) error {
	text := r.text()
	if o.JSON {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		text = string(b) + "\n"
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// oneLine is an error as one line: joined errors have one each.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}
