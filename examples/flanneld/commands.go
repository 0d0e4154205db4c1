package main

import (
	"context"
	"fmt"
	"io"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// A command is what comes before the flags. The table of them is what run looks a
// command up in, and what the help, the completion scripts and the man page are made of.
type command struct {
	name string // empty for the daemon
	args string // what follows it, for the help
	help string // one or two short lines, for the help and the completion
	more string // further sentences, for the man page
	// common has it take the daemon's flags and their environment variables.
	common bool
	flags  []commandFlag // its own
	words  []string      // what its argument can be
	run    func(context.Context, invocation) (code int, err error)
}

// A commandFlag is a flag of one command alone.
type commandFlag struct {
	name, arg, help string
}

// An invocation is what a command gets: the arguments behind its name, and where to
// write. Everything written to stderr loses its secrets.
type invocation struct {
	args, env []string
	stdout    io.Writer
	stderr    *redactor
}

// commandTable is every command, the daemon first.
func commandTable() []command {
	return []command{
		{args: "[flags]", common: true, run: failing(runDaemon),
			help: "run until SIGTERM",
			more: "It waits for etcd and for the network's configuration as long as it takes. Sent SIGTERM, it ends within a second and leaves lease, rules and subnet file behind, so that connections survive a restart."},
		{name: "status", args: "[flags]", flags: statusFlags(), run: runStatus,
			help: "say how the daemon is, and what is wrong; -json for programs,\n-ping asks the peers",
			more: "It asks the running daemon, looks at the host's devices, routes, bridges and packet filter, and prints lease, peers, rules, counters, and what is wrong with the remedy. The exit status is 0 if nothing is, warnings apart, and otherwise 1."},
		{name: "cleanup", args: "[flags]", common: true, run: failing(runCleanup),
			help:  "remove device, rules, routes and subnet file of a daemon that has ended;\n-release also gives the subnet back",
			more:  "What is not there is no error, so it may be run again. It finds out from the subnet file what there is to remove, and removes that file last.",
			flags: []commandFlag{{name: "release", help: "delete this host's lease from etcd, too, so that another host may have the subnet at once"}}},
		{name: "mk-docker-opts", args: "[flags]",
			help: "make Docker's options of the subnet file (-h lists its flags)",
			more: "It takes the place of flannel's script of that name, with the same flags and exit statuses. Without -i and -c it writes both forms.",
			flags: []commandFlag{
				{"f", "FILE", "read flannel's variables from FILE instead of " + defaultSubnetFile},
				{"d", "FILE", "write Docker's options to FILE instead of /run/docker_opts.env"},
				{"i", "", "write a variable for each option, such as DOCKER_OPT_MTU"},
				{"c", "", "write one variable with all options"},
				{"m", "", "leave out --ip-masq, which an old Docker does not know"},
				{"k", "NAME", "call the one variable NAME instead of DOCKER_OPTS"},
			},
			run: func(_ context.Context, i invocation) (int, error) {
				return subnetenv.MkDockerOpts(i.args, i.env, i.stderr), nil
			}},
		{name: "completion", args: "SHELL", words: shells(), run: runCompletion,
			help: "print a completion script for bash, zsh or fish",
			more: "It completes commands, flags, the values that a flag can have, file names, and interfaces."},
		{name: "man", help: "print this program's man page", run: runMan,
			more: "Without installing it, flanneld man | man -l - shows it."},
		{name: "version", help: "print the version", more: "It goes to standard error, as flannel's does.",
			run: func(_ context.Context, i invocation) (int, error) {
				_, err := fmt.Fprintln(i.stderr, version())
				return exitOK, err
			}},
		{name: "help", help: "print this", run: runHelp, more: "That is every flag with its default and the flannel that had it first."},
	}
}

// findCommand returns the command of a name, the daemon for none.
func findCommand(name string) (command, error) {
	for _, c := range commandTable() {
		if c.name == name {
			return c, nil
		}
	}
	return command{}, fmt.Errorf("unknown command %q (flanneld help lists them)", name)
}

// failing makes a command of a function that has no exit status but success and failure.
func failing(f func(ctx context.Context, args, env []string, stdout io.Writer, r *redactor) error) func(context.Context, invocation) (int, error) {
	return func(ctx context.Context, i invocation) (int, error) {
		return exitOK, f(ctx, i.args, i.env, i.stdout, i.stderr)
	}
}

func runHelp(_ context.Context, i invocation) (int, error) {
	usage(i.stdout)
	return exitOK, nil
}
