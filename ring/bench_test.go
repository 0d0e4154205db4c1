package ring

import (
	"fmt"
	"testing"
)

// BenchmarkHandOver fills that many slots, hands them over in one go, looks at
// each and gives them back, on one thread as an engine does. Packets stay where
// they are, so no bandwidth limits it; ns/packet is what one of them costs.
func BenchmarkHandOver(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("slots=%d", n), func(b *testing.B) {
			r := newRing(b, Config{Slots: 64, SlotSize: 2048})
			seen := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range uint32(n) {
					r.Slot(r.Head() + i)[0] = 1
				}
				if !r.Produce(n) {
					b.Fatal("full")
				}
				for i := range r.Pending() {
					seen += int(r.Slot(r.Tail() + uint32(i))[0])
				}
				if !r.Consume(n) {
					b.Fatal("empty")
				}
			}
			if seen != n*b.N {
				b.Errorf("%d packets came of %d", seen, n*b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*b.N), "ns/packet")
		})
	}
}
