package ring

import (
	"runtime"
	"testing"
)

// The collector neither counts nor scans packet memory.
func TestMemoryIsOutsideTheHeap(t *testing.T) {
	const slots, size = 256, 65535
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r := newRing(t, Config{Slots: slots, SlotSize: size})
	for i := range uint32(slots) {
		b := r.Slot(i)
		b[0], b[size-1] = 1, 1
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > slots*size/100 {
		t.Errorf("a ring of %d bytes takes %d bytes of the heap", slots*size, got)
	}
	if sys := after.Sys - before.Sys; sys > slots*size/2 && after.Sys > before.Sys {
		t.Errorf("the runtime's own memory grew by %d bytes", sys)
	}
}
