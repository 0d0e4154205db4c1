package offload

import (
	"fmt"
	"testing"

	"github.com/flannelkit/flannelkit/internal/membw"
)

var checksumSink uint64 // keeps the compiler from dropping a benchmark's work

// BenchmarkSum sums one packet, by the loop that Sum chooses on this machine
// (code=chosen) and by every one that it may choose elsewhere: of generic Go
// for 64-bit and for 32-bit hosts, and of vector instructions. The packet is the
// same each time, and so, up to the first-level cache's size, faster to read
// than the limit beside it.
func BenchmarkSum(b *testing.B) {
	names := map[string]string{"Sum": "chosen", "sumLong": "generic64", "sum32": "generic32", "sumVector": "vector"}
	buf := make([]byte, 1<<16)
	for _, s := range summers() {
		for _, n := range []int{20, 64, 96, 128, 160, 256, 512, 1024, 1420, 1472, 9000, 65000} {
			b.Run(fmt.Sprintf("code=%s/data=cache/size=%d", names[s.name], n), func(b *testing.B) {
				data := buf[10 : 10+n] // where a packet is behind a virtio header: even, and crossing cache lines
				acc := uint64(0)
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					acc = s.sum(data, acc)
				}
				checksumSink = acc
				membw.Report(b, n, membw.Read, membw.Cache)
			})
		}
	}
}

// BenchmarkSumMemory sums packets that no cache holds: each is another part of
// a region larger than all caches.
func BenchmarkSumMemory(b *testing.B) {
	buf := make([]byte, membw.Memory.Bytes())
	for i := 0; i < len(buf); i += 4096 {
		buf[i] = 1 // memory of its own, not the system's page of zeros
	}
	for _, n := range []int{64, 1420, 9000, 62480} {
		b.Run(fmt.Sprintf("code=chosen/data=memory/size=%d", n), func(b *testing.B) {
			acc, at := uint64(0), 0
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				acc = Sum(buf[at:at+n], acc)
				if at += n; at+n > len(buf) {
					at = 0
				}
			}
			checksumSink = acc
			membw.Report(b, n, membw.Read, membw.Memory)
		})
	}
}

// BenchmarkSumSegments is the payload of a super-packet, in one call
// (calls=one), with a call of Sum for each segment (calls=each), and by the
// generic loop.
func BenchmarkSumSegments(b *testing.B) {
	buf, out := make([]byte, 1<<16), make([]uint64, 128)
	each := func(sum func([]byte, uint64) uint64) func([]byte, int) {
		return func(data []byte, seg int) {
			for i := range len(data) / seg {
				out[i] = sum(data[i*seg:][:seg], 0)
			}
		}
	}
	for _, way := range []struct {
		name string
		do   func(data []byte, seg int)
	}{
		{"code=chosen/calls=one", func(data []byte, seg int) { SumSegments(data, seg, out) }},
		{"code=chosen/calls=each", each(Sum)},
		{"code=generic64/calls=each", each(sumLong)},
	} {
		for _, r := range []struct{ segments, size int }{{44, 1420}, {44, 1400}, {119, 536}, {7, 8908}} {
			n := r.segments * r.size
			data := buf[62 : 62+n]
			b.Run(fmt.Sprintf("%s/segments=%d/size=%d", way.name, r.segments, r.size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					way.do(data, r.size)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(r.segments), "ns/packet")
				membw.Report(b, n, membw.Read, membw.Cache)
			})
		}
	}
}
