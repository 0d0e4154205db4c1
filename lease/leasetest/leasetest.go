// Package leasetest holds every [lease.Store] against the one contract. A store's
// own test makes a [Harness] and calls [Run]:
//
//	func TestContract(t *testing.T) {
//		leasetest.Run(t, leasetest.Harness{New: func(t *testing.T) leasetest.Network {
//			prefix := newPrefix()
//			return leasetest.Network{
//				Open:      func(t *testing.T) lease.Store { return open(t, server, prefix) },
//				SetConfig: func(t *testing.T, value string) { put(t, server, prefix+"/config", value) },
//			}
//		}})
//	}
//
// What a harness leaves out is skipped, each time with the reason. Package
// leasetest also has [Faulty], a store that fails on demand, for testing those who
// use a store.
package leasetest

import (
	"cmp"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A Harness tells Run how to get at the store under test. One server may serve all
// networks: the subtests run one after the other.
type Harness struct {
	// New returns a network that has neither a configuration nor an entry. It is
	// called once for each subtest, with that subtest's t; what it starts it ends
	// by t.Cleanup.
	New func(t *testing.T) Network
	// Ignore are parts of stack traces. Run fails if goroutines are left at its
	// end that were not there when it began; the harness's own, such as those of
	// an HTTP client with idle connections, are told by these.
	Ignore []string
	// Patience is how long a watch may take to report what has happened, or to
	// end; a minute if 0. It only ends tests that would never end.
	Patience time.Duration
}

// A Network is what one subtest works on. Only Open and SetConfig are required:
// subtests that need more are skipped where the function is nil. All are called
// from the subtest's goroutine, with its t, and have done their work when they
// return.
type Network struct {
	// Open returns a new Store of this network, as another host would have. The
	// subtest closes it.
	Open func(t *testing.T) lease.Store
	// SetConfig sets the value of <prefix>/config, past the Store; "" removes it.
	SetConfig func(t *testing.T, value string)

	// Put sets a key, past any Store, without a time limit, whether it exists or
	// not. The name is relative to the network's prefix: "subnets/junk". The
	// error is one that wraps errors.ErrUnsupported where such a key can't be in
	// that kind of server; any other fails the test.
	Put func(t *testing.T, name, value string) error
	// Compact makes the server drop all of its history up to now, such as by a
	// compaction, or by as many other events as it remembers.
	Compact func(t *testing.T)
	// Restart ends the server and starts it again with its data, at the same
	// address, and returns when it answers.
	Restart func(t *testing.T)
	// Wipe ends the server, starts it again without its data, at the same
	// address, and returns when it answers. Every network of that server is gone.
	// It must be another cluster: etcd makes the number of its cluster from the
	// addresses and -initial-cluster-token, which therefore has to be a new one.
	Wipe func(t *testing.T)
	// Pause makes the server silent: connections stay, nothing is answered (as
	// SIGSTOP does). resume is called before the test ends, maybe twice.
	Pause func(t *testing.T) (resume func())
	// Requests returns how many requests the stores of this network have sent so
	// far. A watch's own are not counted.
	Requests func() int

	patience time.Duration // the harness's
}

// subtests are the suite, in the order in which they run: what hurts a server that
// others use comes last.
func subtests() []subtest {
	return []subtest{
		{"Config", testConfig},
		{"Create", testCreate},
		{"Contention", testContention},
		{"Update", testUpdate},
		{"Permanent", testPermanent},
		{"Delete", testDelete},
		{"Foreign", testForeign},
		{"Values", testValues},
		{"Junk", testJunk},
		{"Neighbours", testNeighbours},
		{"WatchFirst", testWatchFirst},
		{"WatchOrder", testWatchOrder},
		{"WatchReplay", testWatchReplay},
		{"WatchSlow", testWatchSlow},
		{"WatchNoHistory", testWatchNoHistory},
		{"WatchConcurrent", testWatchConcurrent},
		{"Concurrent", testConcurrent},
		{"Cancel", testCancel},
		{"CancelWatch", testCancelWatch},
		{"Close", testClose},
		{"Expiry", testExpiry},
		{"Large", testLarge},
		{"Compact", testCompact},
		{"Restart", testRestart},
		{"Pause", testPause},
		{"Wipe", testWipe},
	}
}

// A subtest is one part of the contract.
type subtest struct {
	name string
	run  func(t *testing.T, n Network)
}

// Run runs the suite, with a subtest for each part of the contract. It takes some
// twenty seconds with a real server, most of which is waiting for entries to
// expire, and half a minute more where the harness can pause the server (not with
// -short). Several runs, and other tests, may go on in parallel, each with a server of
// its own.
func Run(t *testing.T, h Harness) {
	labelled(t, func() {
		for _, s := range subtests() {
			t.Run(s.name, func(t *testing.T) {
				n := h.New(t)
				n.patience = cmp.Or(h.Patience, patience)
				s.run(t, n)
			})
		}
	})
	checkLeaks(t, h)
}
