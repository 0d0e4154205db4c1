package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	modulePath = "github.com/flannelkit/flannelkit"
	guestTests = modulePath + "/internal/vm/testdata/guesttest"
)

// TestBackendsInVM runs the tests of the backends whose devices few kernels of
// containers and build machines have. Those tests skip on such a machine; here they
// must not. Emulated, all of them take two to three minutes, so that only the main
// ones run, unless FLANNELKIT_VM_ALL is set.
func TestBackendsInVM(t *testing.T) {
	m := Require(t)
	ipip := Guest{Package: modulePath + "/encap/ipip", Modules: []string{"ipip", "nf_tables"}, Timeout: 10 * time.Minute}
	wg := Guest{Package: modulePath + "/encap/wireguard", Modules: []string{"wireguard"}, Timeout: 10 * time.Minute}
	runs := func(g Guest, tests string) Guest {
		g.Run = tests
		return g
	}
	guests := []Guest{
		runs(ipip, "^TestKernel(Peers|DirectRouting|Spoofing|Repair|Predecessor|Restart)$"),
		runs(wg, "^TestKernel(Auto|ToUserspace)?$/^(PSK|Peers|Repairs|Forgers|Restart)$"),
		runs(wg, "^TestKernelMixed$/^PSK$"),
	}
	if os.Getenv("FLANNELKIT_VM_ALL") != "" {
		guests = []Guest{runs(ipip, "^TestKernel"), runs(wg, "^TestKernel")}
	}
	m.RunTests(t, guests)
}

// TestMachine runs guests that end in every way there is, all in one boot.
func TestMachine(t *testing.T) {
	m := Require(t)
	m.Memory = 256 // so that TestMemory soon has it all
	source, err := filepath.Abs("cpio.go")
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		run   string
		guest Guest
		want  error
		says  string // in Err or Output
	}{
		{run: "^Test(Environment|Namespaces|TunnelsWithoutModule)$", guest: Guest{
			Files: map[string]string{"/opt/extra/cpio.go": source}, Env: map[string]string{"GUEST_EXTRA": "yes"}}},
		{run: "^TestTunnels$", guest: Guest{Modules: []string{"ipip", "wireguard"}}},
		{run: "^TestLeavesProcess$"},
		{run: "^TestAlone$"},
		{run: "^TestSkips$", want: ErrNothingRan, says: "all 1 were skipped"},
		{run: "^TestNoSuch$", want: ErrNothingRan, says: `no test is called "^TestNoSuch$"`},
		{run: "^TestFails$", want: ErrFailed, says: "exit status 1"},
		{run: "^TestPanics$", want: ErrFailed, says: "panic: on purpose"},
		{run: "^TestExits$", want: ErrFailed},
		{run: "^TestHangs$", guest: Guest{Timeout: time.Second}, want: ErrFailed, says: "panic: test timed out after 1s"},
		{run: "^TestStops$", guest: Guest{Timeout: 3 * time.Second, grace: 2 * time.Second}, want: ErrHang},
		{run: "^TestMemory$", want: ErrMemory, says: "Killed process"},
		{run: "^TestAlone$"}, // and the machine still works
	}
	var guests []Guest
	for _, c := range cases {
		c.guest.Package, c.guest.Run = guestTests, c.run
		guests = append(guests, c.guest)
	}
	results, err := m.Run(t.Context(), guests...)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		c := cases[i]
		if !errors.Is(r.Err, c.want) || c.want == nil && r.Err != nil {
			t.Errorf("%s: %v, want %v\n%s%s", c.run, r.Err, c.want, r.Output, r.Kernel)
		}
		if text := errorText(r.Err) + r.Output; !strings.Contains(text, c.says) {
			t.Errorf("%s does not say %q, but: %s", c.run, c.says, text)
		}
	}
	wantStatus(t, results[0], "TestEnvironment", Passed)
	wantStatus(t, results[0], "TestEnvironment/Parallel/b", Passed)
	wantStatus(t, results[4], "TestSkips", Skipped)
	wantStatus(t, results[6], "TestFails", Failed)
	wantStatus(t, results[6], "TestFails/Well", Passed)
	wantStatus(t, results[6], "TestFails/Badly", Failed)
	wantStatus(t, results[10], "TestStops", Unfinished)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error() + "\n"
}

func wantStatus(t *testing.T, r Result, name string, want Status) {
	t.Helper()
	i := slices.IndexFunc(r.Tests, func(test Test) bool { return test.Name == name })
	if i < 0 {
		t.Errorf("%s is not in the results: %v", name, r.Tests)
	} else if got := r.Tests[i].Status; got != want {
		t.Errorf("%s: %s, want %s", name, got, want)
	}
}

// TestKernelPanic has the machine die under a guest, and the next one not run.
func TestKernelPanic(t *testing.T) {
	m := Require(t)
	results, err := m.Run(t.Context(), Guest{Package: guestTests, Run: "^TestKernelPanic$"}, Guest{Package: guestTests, Run: "^TestAlone$"})
	if !errors.Is(err, ErrPanic) {
		t.Fatalf("error %v, want ErrPanic", err)
	}
	first, second := results[0], results[1]
	if !errors.Is(first.Err, ErrPanic) || errors.Is(first.Err, errNotRun) {
		t.Errorf("the guest that was running: %v, want ErrPanic", first.Err)
	}
	wantStatus(t, first, "TestKernelPanic", Unfinished)
	if !strings.Contains(first.Output, "the last thing heard of it") {
		t.Errorf("what it had printed is lost: %q", first.Output)
	}
	if !strings.Contains(first.Kernel, "sysrq triggered crash") {
		t.Errorf("the kernel's messages do not name the cause:\n%s", first.Kernel)
	}
	if !errors.Is(second.Err, errNotRun) || !errors.Is(second.Err, ErrPanic) {
		t.Errorf("the guest after it: %v, want errNotRun and ErrPanic", second.Err)
	}
}

// TestMachineThatHangs has one killed that cannot be ready in time.
func TestMachineThatHangs(t *testing.T) {
	m := Require(t)
	m.append = "rdinit=/nothing root=/dev/nothing rootwait" // the kernel waits for a disk, for ever
	cause := errors.New("waited long enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s := &session{guests: []Guest{{Package: "none"}}, results: []Result{{Err: errNotRun}}, job: -1}
	initrd := filepath.Join(t.TempDir(), "initrd")
	var empty strings.Builder
	if err := new(image).writeTo(&empty); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, []byte(empty.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(time.Second, func() { cancel(cause) })
	defer stop.Stop()
	err := m.boot(ctx, initrd, s) // returns only when qemu is gone
	s.finish(err)
	if !errors.Is(err, cause) || !errors.Is(s.results[0].Err, cause) || !strings.Contains(err.Error(), "while it booted") {
		t.Errorf("error %v, the guest's %v, want both to tell the cause, and when", err, s.results[0].Err)
	}
}

// TestWhatCannotBeBuilt gets an error before anything is booted.
func TestWhatCannotBeBuilt(t *testing.T) {
	m := Require(t)
	for _, c := range []struct {
		guest Guest
		says  string
	}{
		{Guest{Package: modulePath + "/no/such"}, "go list"},
		{Guest{Package: "fmt"}, "not a package of this module"},
		{Guest{Package: modulePath + "/internal/vm/wire"}, "no test files"},
		{Guest{Package: guestTests, Modules: []string{"no-such"}}, "has no module no_such"},
		{Guest{Package: guestTests, Files: map[string]string{"/x": "/no/such/file"}}, "no such file"},
		{Guest{Package: guestTests, Files: map[string]string{"x": "vm.go"}}, "not absolute"},
	} {
		results, err := m.Run(t.Context(), c.guest)
		if err == nil || results != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %d results, error %v, want none and %q", c.guest, len(results), err, c.says)
		}
	}
}

// TestModulesOfTheKernel asks the real one for what the backends need.
func TestModulesOfTheKernel(t *testing.T) {
	m := Require(t)
	set, err := openModules(m.kernel)
	if err != nil {
		t.Fatal(err)
	}
	list, err := set.resolve([]string{"wireguard", "ipip", "nf-tables", "udp_tunnel"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, mod := range list {
		if slices.Contains(names, mod.name) {
			t.Errorf("%s is there twice", mod.name)
		}
		names = append(names, mod.name)
	}
	for _, pair := range [][2]string{{"udp_tunnel", "wireguard"}, {"tunnel4", "ipip"}, {"nfnetlink", "nf_tables"}} {
		before, after := slices.Index(names, pair[0]), slices.Index(names, pair[1])
		if before > after || before < 0 && !set.builtin[pair[0]] || after < 0 && !set.builtin[pair[1]] {
			t.Errorf("%s has to come before %s: %v", pair[0], pair[1], names)
		}
	}
}
