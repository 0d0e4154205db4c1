package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/cnitest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func TestMain(m *testing.M) {
	if code, ran := traffic.RunRole(traffic.StandardRoles()); ran {
		os.Exit(code)
	}
	enterMachine() // does not return if this is a program on one of a lab's machines
	if roleMain() {
		return
	}
	// Every check of a random configuration starts ten processes.
	flag.Parse()
	for name, value := range map[string]string{"rapid.checks": "25", "test.parallel": "8"} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			_ = f.Value.Set(value) // a number, which it takes
		}
	}
	netlab.Main(cleaner{m})
}

// programs builds what the tests run, once, when the first of them asks.
var programs = sync.OnceValues(cnitest.NewBuilder)

// built returns the builder of this process.
func built(t *testing.T) *cnitest.Builder {
	t.Helper()
	b, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ours is our plugin, under the name by which a runtime looks for it.
func ours(t *testing.T) string {
	t.Helper()
	return built(t).Program(t, "examples/cni", "flannel")
}

// A cleaner removes the programs after the tests, since netlab.Main exits, and looks for
// what a plugin has left on the real machine.
type cleaner struct{ m *testing.M }

func (c cleaner) Run() int {
	before := c.outside()
	code := c.m.Run()
	b, err := programs()
	if err == nil {
		err = b.Close()
	}
	if now := c.outside(); err == nil && !slices.Equal(now, before) {
		err = fmt.Errorf("the tests have changed this machine: of the plugins' files and devices there are %v, and before there were %v", now, before)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// outside lists what there is of the files and devices that plugins have on the machine
// that runs the tests: only a lab's are to have any.
func (c cleaner) outside() (all []string) {
	for _, pattern := range []string{"/var/lib/cni", "/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0", "/var/lib/cni/results/cbr0-*", "/run/flannel", "/sys/class/net/cni0"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // a pattern is wrong
		}
		all = append(all, found...)
	}
	return all
}
