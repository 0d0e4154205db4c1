package membw

import (
	"fmt"
	"math"
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	for _, s := range []Set{Cache, Memory} {
		start := time.Now()
		read, copied := Limit(Read, s), Limit(Copy, s)
		t.Logf("%d KiB: reads %.1f GB/s, copies %.1f GB/s, found in %v", s.Bytes()>>10, read/1e9, copied/1e9, time.Since(start))
		for _, rate := range []float64{read, copied} {
			if !(rate > 0) || math.IsInf(rate, 1) {
				t.Errorf("%d bytes: a limit of %v bytes per second", s.Bytes(), rate)
			}
		}
		// What is counted twice, or not read at all, is off by far more than
		// a busy machine is.
		if read < copied/4 {
			t.Errorf("%d bytes: reading (%v) is far slower than copying (%v), which reads too", s.Bytes(), read, copied)
		}
		if Limit(Read, s) != read || Limit(Copy, s) != copied {
			t.Errorf("%d bytes: measured twice", s.Bytes())
		}
	}
}

func TestReport(t *testing.T) {
	got := map[string]float64{}
	report(func(v float64, unit string) { got[unit] = v }, 6e9, 2*time.Second, Copy, 4e9)
	want := map[string]float64{"GB/s": 3, "limit-GB/s": 4, "%-of-copy-limit": 75}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("metrics %v, want %v", got, want)
	}
	clear(got)
	if report(func(v float64, unit string) { got[unit] = v }, 6e9, 0, Read, 4e9); len(got) > 0 {
		t.Errorf("metrics of no time: %v", got)
	}
}

func TestSum(t *testing.T) {
	b := make([]byte, 192)
	for i := range 24 {
		b[i*8], b[i*8+7] = byte(i+1), byte(i+1) // either end is the low one
	}
	if got, want := sum(b), uint64(300%256)<<56+300; got != want {
		t.Errorf("sum is %#x, want %#x", got, want)
	}
}

// TestSetIsRead: the walk visits every chunk of a half, in turn.
func TestSetIsRead(t *testing.T) {
	seen := map[int]bool{}
	const half = 4 * timed
	if best(half, func(at int) { seen[at] = true }) <= 0 {
		t.Error("no rate")
	}
	if len(seen) != half/chunk || !seen[0] || !seen[half-chunk] {
		t.Errorf("%d of %d chunks visited", len(seen), half/chunk)
	}
}

// BenchmarkLimit shows the limits themselves: 100 %, give or take the noise.
func BenchmarkLimit(b *testing.B) {
	for _, s := range []Set{Cache, Memory} {
		set := make([]byte, s.Bytes())
		for i := range set {
			set[i] = 1
		}
		half, at := len(set)/2, 0
		b.Run(fmt.Sprintf("kind=copy/set=%dKiB", len(set)>>10), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(chunk)
			for b.Loop() {
				copy(set[half+at:][:chunk], set[at:][:chunk])
				at = (at + chunk) % half
			}
			Report(b, chunk, Copy, s)
		})
	}
}
