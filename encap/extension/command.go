package extension

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// shell runs the commands.
const shell = "/bin/sh"

// mostData is how many bytes of PreStartupCommand's output are a host's data. etcd
// takes 1.5 MiB in a request, and every host reads every lease.
const mostData = 64 << 10

// vars are the variables of a command's environment.
type vars struct {
	network, network6 string
	subnet, subnet6   string
	public, public6   string
}

// at returns v with a host's addresses.
func (v vars) at(public, public6 netip.Addr) vars {
	v.public, v.public6 = text(public), text(public6)
	return v
}

// text is s.String, but "" where there is nothing.
func text(s interface {
	IsValid() bool
	String() string
}) string {
	if !s.IsValid() {
		return ""
	}
	return s.String()
}

// env returns base with the variables. They are there when they are empty, too: what
// this process happens to have under such a name is none of a peer.
func (v vars) env(base []string) []string {
	mine := []string{
		"NETWORK=" + v.network, "IPV6NETWORK=" + v.network6,
		"SUBNET=" + v.subnet, "IPV6SUBNET=" + v.subnet6,
		"PUBLIC_IP=" + v.public, "PUBLIC_IPV6=" + v.public6,
	}
	return append(slices.Clip(base), mine...) // of two with one name the last counts
}

// A call is one run of a command.
type call struct {
	key     string // in the configuration
	text    string // the command itself
	vars    vars
	stdin   string // without the newline that ends it
	peer    string // for messages, "" if it is for this host
	retry   bool   // what it prints has been said
	capture bool   // standard output is returned, not logged
}

// String names the call in messages. The text is not for them: it may hold secrets.
func (c call) String() string {
	if c.peer == "" {
		return c.key
	}
	return c.key + " for " + c.peer
}

// runner runs commands. It may be used by several goroutines.
type runner struct {
	env     []string // nil is the process's
	timeout time.Duration
	linger  time.Duration // how long the output is read after the end
	log     *slog.Logger
}

// run runs a command to its end, its time limit or ctx's end, whichever is first; in
// the latter cases its process group is killed, and the error wraps
// context.DeadlineExceeded or ctx's.
func (r *runner) run(ctx context.Context, c call) (out []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, shell, "-c", c.text)
	cmd.Env = r.env
	cmd.Env = c.vars.env(cmd.Environ())
	// flannel ends it with a newline, too; without one the shell's read returns
	// false, and a "read KEY && ..." would do nothing.
	cmd.Stdin = strings.NewReader(c.stdin + "\n")
	stdout, stderr := r.outputs(c)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// A process in the background may hold the output open for ever, or, in a
	// session of its own, survive the group.
	cmd.WaitDelay = r.linger
	if err := ownGroup(cmd); err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	began := time.Now()
	err = cmd.Run()
	stdout.end()
	stderr.end()
	if errors.Is(err, exec.ErrWaitDelay) {
		r.log.Warn("the command has ended, but something that it started keeps its output open, which is read no more (redirect that one's output)",
			"command", c.key, "peer", c.peer)
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w%s", c, r.explain(ctx, limited, err), stderr.tail())
	}
	if c.capture && stdout.kept.Len() > mostData {
		return nil, fmt.Errorf("%v: it printed more than %d bytes (print what peers need, no more)", c, mostData)
	}
	r.log.Debug("the command has run", "command", c.key, "peer", c.peer, "took", time.Since(began))
	return stdout.kept.Bytes(), nil
}

// explain says why a command failed.
func (r *runner) explain(ctx, limited context.Context, err error) error {
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("killed: %w", context.Cause(ctx))
	case limited.Err() != nil:
		return fmt.Errorf("killed after %v: %w (find out what it waits for, or raise the time limit)", r.timeout, context.DeadlineExceeded)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (commands need a shell: install one)", err)
	case errors.As(err, &exit) && exit.ExitCode() == 127: // POSIX, sh, 2.8.2
		return fmt.Errorf("%w: a program was not found (install it on this host, or give its path)", err)
	}
	return err
}

// ended reports whether a command ran, and ended by itself with a failure.
func ended(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit)
}
