// Package vm runs Go tests in a small virtual machine, as root of a kernel that has
// modules the machine's own may lack: ipip, wireguard, fou and the like.
//
//	func TestKernelDevices(t *testing.T) {
//		vm.Require(t).RunTest(t, "github.com/flannelkit/flannelkit/encap/ipip", "^TestKernel", "ipip")
//	}
//
// The package's test binary is built statically and goes into an initramfs, together
// with its testdata, the modules and all that they depend on, and an init of our own
// (package guest) that mounts the usual file systems, brings lo up, loads the modules,
// runs the binary and powers off. qemu boots a kernel with it. The tests of the guest
// become subtests of the host's.
//
// # What it needs
//
// Linux on x86-64, the go command, qemu-system-x86_64 in PATH, and a kernel with
// modules: in the folder that FLANNELKIT_VM_KERNEL names (boot/vmlinuz-V and
// lib/modules/V, as in a distribution's package), else in flannelkit/vm below the user's
// cache folder, else the machine's own. setup.sh in this folder gets both on Debian.
// Require skips the test where something is missing, and fails it if
// FLANNELKIT_NEED_VM=1 is set; with FLANNELKIT_NEED_VM=0 it always skips.
// FLANNELKIT_VM_ACCEL chooses qemu's accelerator; the default is "tcg,thread=multi",
// which works everywhere, "kvm" is faster where it works.
//
// # What a guest test finds
//
// It is root, its working directory has the package's testdata, FLANNELKIT_IN_VM=1 and
// CI=true are in its environment. /proc, /sys, /dev, /tmp and /run are as usual; there
// are no programs but those in Guest.Files, no disk, and no network but lo. veth, tun,
// dummy, bridge and vxlan are loaded, so that package netlab works; no module is ever
// loaded on demand. Emulated, Go code runs ten to twenty times slower.
package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// How a guest or the machine can fail. errNotRun is the state before.
var (
	ErrFailed     = errors.New("tests failed in the guest")
	ErrNothingRan = errors.New("no test passed in the guest, so nothing was tested")
	ErrMemory     = errors.New("out of memory in the guest")
	ErrPanic      = errors.New("kernel panic in the guest")
	ErrHang       = errors.New("the guest hangs")
	errNotRun     = errors.New("the guest was not run")
)

// A Guest is one test binary to run in a machine.
type Guest struct {
	Package string            // import path, of this module
	Run     string            // -test.run; "" is every test
	Modules []string          // kernel modules, loaded with all that they need before the tests run
	Files   map[string]string // further files and folders, by path in the guest; programs must be static
	Env     map[string]string // added to the environment
	Args    []string          // further arguments, such as "-test.short"
	Timeout time.Duration     // -test.timeout; 0 means 5 minutes

	grace time.Duration // how much longer the binary gets; 0 means the constant
}

func (g Guest) timeout() time.Duration {
	if g.Timeout > 0 {
		return g.Timeout
	}
	return 5 * time.Minute
}

// limit is when init ends a binary that its -test.timeout did not end.
func (g Guest) limit() time.Duration { return g.timeout() + cmp.Or(g.grace, grace) }

// environ returns the environment of the test.
func (g Guest) environ() []string {
	env := map[string]string{
		"FLANNELKIT_IN_VM": "1",
		"CI":               "true", // the machine is made for the test: what it lacks is a failure, not a reason to skip
		"PATH":             "/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":             "/root",
		"USER":             "root",
	}
	maps.Copy(env, g.Env)
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// A Result is how a guest ended.
type Result struct {
	Guest  Guest
	Tests  []Test // in the order of their start, subtests too
	Output string // all that the test binary printed
	Kernel string // the kernel's messages meanwhile: errors and worse
	Time   time.Duration
	Err    error // nil if at least one test passed, none failed, and the binary ended well

	loose string // the part of Output that belongs to no test
}

// judge looks for a reason to call a test binary that ended well a failure.
func (r *Result) judge() error {
	count := make(map[Status]int)
	for _, t := range r.Tests {
		if t.leaf { // of a test with subtests, only those say whether anything was tested
			count[t.Status]++
		}
	}
	switch {
	case count[Failed]+count[Unfinished] > 0:
		return fmt.Errorf("%w: %d failed, %d did not end, and yet its exit status is 0", ErrFailed, count[Failed], count[Unfinished])
	case len(r.Tests) == 0:
		return fmt.Errorf("%w: no test is called %q", ErrNothingRan, r.Guest.Run)
	case count[Passed] == 0:
		return fmt.Errorf("%w: all %d were skipped", ErrNothingRan, count[Skipped])
	}
	return nil
}

// A Machine is a way to boot virtual machines. It holds nothing open.
type Machine struct {
	Memory int // MiB for the tests, besides what the files take; 0 means 512
	CPUs   int // 0 means 2

	qemu   string // the program
	accel  string
	append string // added to the kernel's command line
	kernel kernel
}

// Find returns a Machine if this machine can have one, and otherwise an error that
// says what is missing and how to get it; it wraps errors.ErrUnsupported where there
// is no support yet.
func Find() (*Machine, error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("vm: find: linux/amd64 only, this is %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)
	}
	const remedy = "internal/vm/setup.sh gets it on Debian"
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("vm: find: %w (%s)", err, remedy)
	}
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fmt.Errorf("vm: find: %w (the guest's programs are built when they are needed)", err)
	}
	m := &Machine{qemu: qemu, accel: "tcg,thread=multi"}
	if accel := os.Getenv("FLANNELKIT_VM_ACCEL"); accel != "" {
		m.accel = accel
	}
	roots := []string{os.Getenv("FLANNELKIT_VM_KERNEL")}
	if roots[0] == "" {
		roots = []string{"/"}
		if cache, err := os.UserCacheDir(); err == nil {
			roots = []string{filepath.Join(cache, "flannelkit", "vm"), "/"}
		}
	}
	var errs []error
	for _, root := range roots {
		if m.kernel, err = findKernel(root); err == nil {
			return m, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("vm: find: %w (%s)", errors.Join(errs...), remedy)
}

// Require returns a machine. Without qemu or a kernel it skips the test and says what
// to do, or fails it if FLANNELKIT_NEED_VM=1 is set. It does nothing slow.
func Require(t testing.TB) *Machine {
	t.Helper()
	need := os.Getenv("FLANNELKIT_NEED_VM")
	if need == "0" {
		t.Skip("FLANNELKIT_NEED_VM=0 is set: no tests in a virtual machine")
	}
	m, err := Find()
	if err != nil && need == "1" {
		t.Fatalf("%v (FLANNELKIT_NEED_VM=1 is set)", err)
	}
	if err != nil {
		t.Skip(err)
	}
	return m
}

// RunTest runs tests of a package of this module in a machine of their own, with the
// given kernel modules. See RunTests.
func (m *Machine) RunTest(t *testing.T, importPath, run string, modules ...string) {
	t.Helper()
	m.RunTests(t, []Guest{{Package: importPath, Run: run, Modules: modules}})
}

// RunTests runs several guests in one boot, which costs some five seconds. Each is a
// subtest of t, and its tests are subtests of that, with what they printed, and failed
// or skipped as they were. A guest also fails when no test of it passed, when it takes
// too long or too much memory, and when the machine dies under it.
func (m *Machine) RunTests(t *testing.T, guests []Guest) {
	t.Helper()
	ctx := t.Context()
	if at, ok := t.Deadline(); ok {
		// Report where it hangs, before go test ends us without.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, at.Add(-5*time.Second), fmt.Errorf("%w: go test's -timeout is near", ErrHang))
		defer cancel()
	}
	results, err := m.Run(ctx, guests...)
	if results == nil {
		t.Fatal(err)
	}
	reported := err == nil
	for _, r := range results {
		reported = reported || r.Err != nil
		name := path.Base(r.Guest.Package)
		t.Run(name, func(t *testing.T) { r.report(t) })
	}
	if !reported {
		t.Error(err)
	}
}

// report makes the guest's tests subtests of t.
func (r *Result) report(t *testing.T) {
	t.Helper()
	for _, test := range r.Tests {
		if strings.Contains(test.Name, "/") {
			continue
		}
		t.Run(test.Name, func(t *testing.T) {
			for _, sub := range r.Tests {
				if sub.Name == test.Name || strings.HasPrefix(sub.Name, test.Name+"/") {
					fmt.Fprint(t.Output(), sub.Output)
				}
			}
			switch test.Status {
			case Failed:
				t.Fail()
			case Unfinished:
				t.Error("it did not end")
			case Skipped:
				t.SkipNow()
			}
		})
	}
	if r.Err == nil {
		t.Logf("%s took %.1f s in the guest", r.Guest.Package, r.Time.Seconds())
		return
	}
	t.Errorf("%s: %v", r.Guest.Package, r.Err)
	if loose := strings.TrimSpace(r.loose); loose != "" && loose != "FAIL" {
		t.Logf("outside of tests it printed:\n%s", loose)
	}
	if r.Kernel != "" {
		t.Logf("the kernel said:\n%s", r.Kernel)
	}
}
