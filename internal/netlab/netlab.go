// Package netlab builds small networks inside one process: network
// namespaces, veth links, VXLAN devices, link features and impairments.
// It runs no other program (no ip, tc or ethtool) and leaves nothing behind.
//
// It serves three kinds of callers:
//
//   - Tests. TestMain calls [Main], a test that needs namespaces calls
//     [Require], builds its network in a [Lab] and closes the lab at the end.
//     Run by an ordinary user, the test binary re-executes itself in a user
//     namespace, so that `go test` needs no sudo.
//   - Programs such as examples/twohosts. They call [Enter] first thing in
//     main and then do the same.
//   - The benchmarks, which add link modes ([Lab.SetLinkMode]) and processes
//     started inside a namespace ([NS.Start]).
//
// # Words
//
// A namespace ([NS]) is anonymous: a file descriptor holds it, it has no name
// under /run/netns and it ends with the lab. An end is one side of a veth
// pair. A thread that has to be in a namespace for one system call enters it
// and returns ([NS.Do]); sockets stay in the namespace that they were opened
// in, whichever thread uses them later.
//
// # Limits
//
// Linux only; elsewhere [Enter], [New] and [Check] return an error that wraps
// errors.ErrUnsupported and the rest does not exist. It needs CAP_SYS_ADMIN and
// CAP_NET_ADMIN, of the machine or of a user namespace. IPv6 is used where the
// kernel has it.
package netlab

import (
	"errors"
	"fmt"
	"os"
)

// ErrClosed is returned by the methods of a Lab and of its namespaces after
// Close.
var ErrClosed = errors.New("lab is closed")

// A Need is something that a test wants beyond namespaces and veth pairs.
type Need int

const (
	// NeedTUN wants /dev/net/tun to be there and to be openable.
	NeedTUN Need = iota + 1
	// NeedVXLAN wants a kernel that can create VXLAN devices.
	NeedVXLAN
	// NeedIPv6 wants IPv6 in the kernel, not disabled at boot.
	NeedIPv6
)

// String returns the need as it appears in errors.
func (n Need) String() string {
	switch n {
	case NeedTUN:
		return "TUN device"
	case NeedVXLAN:
		return "VXLAN device"
	case NeedIPv6:
		return "IPv6"
	}
	return fmt.Sprintf("need %d", int(n))
}

// TB is the part of testing.TB that Require uses. It is declared here so that
// programs which import this package do not link package testing.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Require skips the test, with the reason and its remedy, unless namespaces
// and the given needs work here. With a non-empty CI in the environment it
// fails the test instead, so that a misconfigured runner cannot turn the
// suite into a row of skips.
func Require(t TB, needs ...Need) {
	t.Helper()
	err := Check(needs...)
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%v (skipped outside CI)", err)
	default:
		t.Skipf("%v", err)
	}
}

// Main is the body of TestMain:
//
//	func TestMain(m *testing.M) { netlab.Main(m) }
//
// It calls Enter and then exits the process with the result of m.Run. When
// Enter fails the tests run all the same, and those that call Require skip.
// No defer of TestMain runs, and when the program re-executes itself nothing
// before the call to Main may have had an effect outside the process.
func Main(m interface{ Run() int }) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err, "- tests that need namespaces skip")
	}
	os.Exit(m.Run())
}
