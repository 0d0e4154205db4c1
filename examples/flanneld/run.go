package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
)

// run is main with everything it touches as a parameter, and an exit status. A
// command of commandTable comes before the flags; without one it is the daemon.
func run(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	r := newRedactor(stderr)
	name := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	c, err := findCommand(name)
	if err == nil {
		var code int
		if code, err = c.run(ctx, invocation{args, env, stdout, r}); err == nil {
			return code
		}
	}
	if logged := (*loggedError)(nil); !errors.As(err, &logged) {
		fmt.Fprintln(r, "flanneld: "+oneLine(err))
	}
	return exitFailed
}

// A loggedError is one that the log has told.
type loggedError struct{ error }

func (e *loggedError) Unwrap() error { return e.error }

// fatal logs why it can't go on.
func fatal(log *slog.Logger, err error) error {
	if err == nil {
		return nil
	}
	log.Error("flanneld can't go on", "err", oneLine(err))
	return &loggedError{err}
}

// prepare reads options and makes the logger that they ask for. A nil logger and no
// error mean that help or version were asked for and given.
func prepare(o *options, err error, stdout io.Writer, r *redactor) (*slog.Logger, error) {
	switch {
	case err != nil:
		return nil, err
	case o.help:
		usage(stdout)
		return nil, nil
	case o.version:
		_, err = fmt.Fprintln(r, version())
		return nil, err
	}
	r.hide(o.username, o.secrets()...)
	return newLogger(r, o), nil
}

func runDaemon(ctx context.Context, args, env []string, stdout io.Writer, r *redactor) error {
	o, err := parseOptions(args, env)
	log, err := prepare(o, err, stdout, r)
	if log == nil {
		return err
	}
	return fatal(log, newDaemon(o, log, r.clean).run(ctx))
}

func runCleanup(ctx context.Context, args, env []string, stdout io.Writer, r *redactor) error {
	release := false
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		is := a == "-release" || a == "--release"
		release = release || is
		return is
	})
	o, err := parseOptions(args, env)
	log, err := prepare(o, err, stdout, r)
	if log == nil {
		return err
	}
	if pid := runningDaemon(o.subnetFile); pid != 0 {
		return fatal(log, fmt.Errorf("cleanup: a flanneld (process %d) runs with the subnet file %s: nothing was removed (systemctl stop flanneld, then try again)", pid, o.subnetFile))
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	rules := cleanRules(ctx, log)
	err = cleanHost(o, log, func(was subnetenv.File) error {
		if err := rules(was); err != nil || !release {
			return err
		}
		return giveBack(ctx, o, log, was.Key())
	})
	if err == nil {
		err = cleanSocket(o, log)
	}
	if err != nil {
		return fatal(log, err)
	}
	log.Info("clean")
	return nil
}

// version says what is running: the module's version, or the commit it was built from.
func version() string {
	v, rev := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		v = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				rev = " " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	return "flanneld (flannelkit) " + v + rev + " " + runtime.Version()
}
