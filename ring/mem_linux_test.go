package ring

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// mapping returns the line of /proc/self/maps that holds p, and its bytes.
func mapping(t *testing.T, p *byte) (line string, size uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	at := uint64(uintptr(unsafe.Pointer(p)))
	for line := range strings.Lines(string(b)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from <= at && at < to {
			return line, to - from
		}
	}
	return "", 0
}

// A large region is aligned for huge pages, and Close gives all of it back, the
// part that alignment skipped too.
func TestRegionIsAlignedAndReturned(t *testing.T) {
	const slots, size = 64, 65535
	r, err := New(Config{Slots: slots, SlotSize: size})
	if err != nil {
		t.Fatal(err)
	}
	p := unsafe.SliceData(r.mem)
	if off := uintptr(unsafe.Pointer(p)) % hugePage; off != 0 {
		t.Errorf("the region begins %d bytes behind a huge page", off)
	}
	if line, n := mapping(t, p); n < slots*size || !strings.Contains(line, "rw-p") {
		t.Errorf("the region is mapped as %q", line)
	}
	whole := func() (total uint64) {
		b, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Skip(err)
		}
		if _, err := fmt.Sscan(string(b), &total); err != nil {
			t.Fatal(err)
		}
		return total * uint64(os.Getpagesize())
	}
	before := whole()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if after := whole(); before-after < slots*size+hugePage || after > before {
		t.Errorf("Close returned %d of at least %d bytes", int64(before-after), slots*size+hugePage)
	}
}
