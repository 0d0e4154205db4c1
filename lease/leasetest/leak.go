package leasetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakLabel marks the goroutines that a run of the suite starts, itself or through
// others, as the runtime hands a goroutine's labels down to those that it starts. So
// runs and other tests may go on beside each other.
const leakLabel = "leasetest"

// labelled has f run with the test's label.
func labelled(t *testing.T, f func()) {
	pprof.Do(t.Context(), pprof.Labels(leakLabel, t.Name()), func(context.Context) { f() })
}

// goroutines returns the stacks with the test's label, those that are the same only
// once.
func goroutines(t *testing.T) []string {
	t.Helper()
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("%q:%q", leakLabel, t.Name())
	return slices.DeleteFunc(strings.Split(profile.String(), "\n\n"), func(stack string) bool { return !strings.Contains(stack, mark) })
}

// checkLeaks fails if goroutines of the test's run are left. Those that are about to
// end get their time.
func checkLeaks(t *testing.T, h Harness) {
	t.Helper()
	ignore := append(slices.Clip(h.Ignore), "os/exec.", "os/signal.", "testing.tRunner", "testing.(*T).Run") // processes and tests
	const pause = 50 * time.Millisecond
	for late := time.Now().Add(cmp.Or(h.Patience, patience) / 4); ; time.Sleep(pause) {
		left := slices.DeleteFunc(goroutines(t), func(stack string) bool {
			return slices.ContainsFunc(ignore, func(part string) bool { return strings.Contains(stack, part) })
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(late) {
			t.Errorf("goroutines are left:\n\n%s", strings.Join(left, "\n\n"))
			return
		}
	}
}
