package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/env"
	"github.com/flannelkit/flannelkit/bench/load"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"golang.org/x/sys/unix"
)

// roles are the child processes: ends of the traffic, and tunnels.
func roles() traffic.Roles {
	roles := traffic.StandardRoles()
	maps.Copy(roles, candidate.Roles())
	maps.Copy(roles, load.Roles())
	return roles
}

// runRole plays the role of a child process, if this is one.
func runRole() (code int, child bool) { return traffic.RunRole(roles()) }

func measureCommand(args []string) error {
	o, err := parseOptions(args, os.Stderr)
	if err != nil {
		return err
	}
	environment := env.Read(args) // before Enter: a user namespace hides some of it
	if err := netlab.Enter(); err != nil {
		return err
	}
	if err := o.tryFiles(); err != nil {
		return err
	}
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	r := &result.Run{
		Environment: environment, Options: o.asMap(), Quick: o.Suite == "quick",
		Modes: o.Modes, MTUs: o.MTUs, Candidates: o.Candidates, Policy: o.policy(),
	}
	start := time.Now()
	err = measureAll(ctx, o, r)
	r.Took = time.Since(start)
	if ctx.Err() != nil {
		err = interrupted(err)
	}
	// What was measured before a failure is worth keeping too.
	if err != nil {
		r.Environment.Warnings = append(r.Environment.Warnings, "the run is incomplete: "+err.Error())
	}
	for _, f := range r.Failures[:min(len(r.Failures), 10)] {
		r.Environment.Warnings = append(r.Environment.Warnings, "failed: "+f)
	}
	if len(r.Samples) == 0 {
		return err
	}
	fmt.Print(r.TextWidth(terminalWidth(os.Stdout)))
	return errors.Join(err, write(r, o.jsonFile, o.markdownFile, o.charts))
}

// interrupted is what to say about a run that a signal ended: what is left, if anything is.
func interrupted(err error) error {
	if err == nil || onlyCanceled(err) {
		return errors.New("interrupted; everything that was set up is removed")
	}
	return fmt.Errorf("interrupted: %w", err)
}

// onlyCanceled tells whether an error, however wrapped and joined, is nothing but a cancelled context.
func onlyCanceled(err error) bool {
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !onlyCanceled(err) })
	case interface{ Unwrap() error }:
		return onlyCanceled(e.Unwrap())
	}
	return err == context.Canceled
}

// tryFiles makes sure, before hours are spent, that the results can be written.
func (o options) tryFiles() error {
	for _, name := range []string{o.jsonFile, o.markdownFile} {
		if name == "" {
			continue
		}
		_, missing := os.Lstat(name)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if missing != nil { // an empty file would be none of ours to leave, should the run end before it has a result
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	if o.charts != "" {
		return os.MkdirAll(o.charts, 0o755)
	}
	return nil
}

// asMap is the options as the raw results keep them.
func (o options) asMap() map[string]any {
	m := map[string]any{}
	if b, err := json.Marshal(o); err == nil {
		_ = json.Unmarshal(b, &m) // what Marshal wrote
	}
	return m
}

// policy says what is the same for all candidates.
func (o options) policy() []string {
	congestion := o.Congestion
	if congestion == "" {
		b, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control") // unreadable: it stays "the system's"
		congestion = strings.TrimSpace("the system's " + string(b))
	}
	return []string{
		fmt.Sprintf("the same for all: the link, the generators, TCP buffers (the kernel tunes them), UDP buffers of %d MiB, congestion control %s",
			traffic.DefaultUDPBuffer>>20, congestion),
		"not the same: device queues and tunnels' sockets are each candidate's own: udp has a queue of 1000 packets, wireguard-go, its plain input and output, and flannel the kernel's 500",
		"not the same: each candidate has the MTU that it leaves of the link's, as it would have in use; native-mtu has udp's",
	}
}

// terminalWidth is how many characters fit a line of f.
func terminalWidth(f *os.File) int {
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col >= 40 {
		return int(size.Col)
	}
	return result.DefaultWidth
}
