package offload

import (
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
)

// guarded returns pages of memory with an unmapped page right before and right behind them.
func guarded(t *testing.T, pages int) []byte {
	t.Helper()
	page := os.Getpagesize()
	all, err := syscall.Mmap(-1, 0, (pages+2)*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatalf("mmap: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(all); err != nil {
			t.Errorf("munmap: %v", err)
		}
	})
	for _, guard := range [][]byte{all[:page], all[(pages+1)*page:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatalf("mprotect: %v", err)
		}
	}
	return all[page : (pages+1)*page]
}

// TestSumStaysInside sums slices that begin at the first and end at the last byte of mapped memory.
func TestSumStaysInside(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var doing string
	var length int
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("%s of %d bytes reads outside of them: %v", doing, length, r)
		}
	}()
	mem := guarded(t, 16)
	for i := range mem {
		mem[i] = byte(i * 7)
	}
	out, all := make([]uint64, 64), summers()
	for n := 0; n <= len(mem); n++ {
		if n == 2100 {
			n = len(mem) - 300
		}
		length = n
		front, back := mem[:n:n], mem[len(mem)-n:]
		for _, s := range all {
			if n < s.min {
				continue
			}
			doing = s.name
			if got, want := folded(s.sum(front, 0)), slowSum(front); got != want {
				t.Fatalf("%s of the first %d bytes folds to %#x, want %#x", s.name, n, got, want)
			}
			if got, want := folded(s.sum(back, 0)), slowSum(back); got != want {
				t.Fatalf("%s of the last %d bytes folds to %#x, want %#x", s.name, n, got, want)
			}
		}
		doing = "SumSegments"
		for _, seg := range []int{128, 131, 1448, max(n/3, 1), max(n, 1)} {
			SumSegments(front, seg, out)
			SumSegments(back, seg, out)
		}
	}
}

// TestDetectAVX2 asks the kernel, which lists a feature only if it keeps the registers.
func TestDetectAVX2(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skipf("cannot tell what the CPU has: %v (mount /proc)", err)
	}
	want := runtime.GOARCH == "amd64" && regexp.MustCompile(`(?m)^flags\s*:.*\bavx2\b`).Match(info)
	if haveVector != want {
		t.Errorf("haveVector is %v, want %v as in /proc/cpuinfo", haveVector, want)
	}
	t.Logf("haveVector is %v", haveVector)
}
