package leasetest

import (
	"cmp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// goroutines returns the stack of every goroutine, by its number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		number, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		all[number] = stack
	}
	return all
}

// checkLeaks fails if goroutines are left that were not there before. Those that are
// about to end get their time.
func checkLeaks(t *testing.T, before map[string]string, h Harness) {
	t.Helper()
	ignore := append(slices.Clip(h.Ignore), "os/exec.", "os/signal.", "testing.tRunner", "testing.(*T).Run") // processes and tests
	const pause = 50 * time.Millisecond
	var left []string
	for late := time.Now().Add(cmp.Or(h.Patience, patience) / 4); ; time.Sleep(pause) {
		left = nil
		for number, stack := range goroutines() {
			known := func(part string) bool { return strings.Contains(stack, part) }
			if _, old := before[number]; !old && !slices.ContainsFunc(ignore, known) {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(late) {
			t.Errorf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
			return
		}
	}
}
