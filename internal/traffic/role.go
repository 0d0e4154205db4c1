package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// RoleEnv is the environment variable by which a parent tells a child of its own program which role to play.
const RoleEnv = "FLANNELKIT_ROLE"

// exitGrace is how long a role may go on after its parent has closed the link. Workers look up from their system calls
// at least every pollInterval, so a healthy one needs far less.
const exitGrace = 3 * time.Second

// A Role is the main function of a child process. Its context ends when the parent closes the link or dies. What it
// returns is told to the parent, whose next [Proc.Next] fails with it.
type Role func(ctx context.Context, link *Link) error

// Roles maps the names that [Start] takes to what the child does.
type Roles map[string]Role

// StandardRoles returns a new map with the roles that this package's own tests need ([TCP], [OpenUDP], [Ping]). A
// program adds its own to it before it calls [RunRole].
func StandardRoles() Roles {
	return Roles{
		roleTCPReceive: tcpReceiveRole,
		roleTCPSend:    tcpSendRole,
		roleUDPReceive: udpReceiveRole,
		roleUDPSend:    udpSendRole,
		rolePing:       pingRole,
	}
}

// RunRole must be the first call in the main function of a program that uses this package, and in TestMain of its
// tests. In a child started by [Start] it plays the role and reports ran: main must then call os.Exit(code) at once. In
// any other process it returns false and has done nothing.
//
// A child ignores interrupts: Ctrl-C reaches the whole process group, and it is the parent that cleans up.
func RunRole(roles Roles) (code int, ran bool) {
	name, ok := os.LookupEnv(RoleEnv)
	if !ok {
		return 0, false
	}
	signal.Ignore(os.Interrupt)
	os.Unsetenv(RoleEnv) // a program that the role starts is not a role itself

	role, ok := roles[name]
	if !ok {
		// Going on as the main program would start children for ever.
		known := strings.Join(slices.Sorted(maps.Keys(roles)), ", ")
		fmt.Fprintf(os.Stderr, "traffic: no role %q in this program (it has: %s)\n", name, known)
		return 2, true
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	link := newLink(os.Stdin, os.Stdout, cancel)
	done := make(chan error, 1)
	go func() { done <- role(ctx, link) }()

	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(exitGrace): // stuck in a system call: the exit ends it
			err = fmt.Errorf("traffic: role %s: did not stop within %v", name, exitGrace)
		}
	}
	if err == nil || ctx.Err() != nil && (errors.Is(err, io.EOF) || errors.Is(err, context.Canceled)) {
		return 0, true // done, or told to stop
	}
	_ = link.Send(kindError, err.Error()) // when the parent is gone nobody is left to tell
	return 1, true
}
