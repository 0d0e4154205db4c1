package offload_test

import (
	"fmt"
	"testing"

	"github.com/flannelkit/flannelkit/internal/membw"
	"github.com/flannelkit/flannelkit/internal/offload"
)

// Every benchmark here has names of key=value, for benchstat -col and -row; one
// operation is one super-packet or one batch, and ns/packet is what a packet of
// it costs, as it is on the wire. MB/s are the bytes of all packets, though
// payload is never moved: it is read at most once, to be summed, and where it
// is, the limit of reading stands beside.

// innerMTU is what an MTU of 1500 bytes leaves of a packet in the tunnel.
const innerMTU = 1472

// perPacket reports what one of the n packets of an operation costs.
func perPacket(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/packet")
}

// keys names one of basePackets.
func keys(p packet) string {
	return fmt.Sprintf("proto=%s/ip=%d", map[byte]string{protoTCP: "tcp", protoUDP: "udp"}[p.proto], map[bool]int{false: 4, true: 6}[p.v6()])
}

// BenchmarkSplit cuts super-packets whose payload is in the cache, as it is
// after the read from the device. Every byte is summed.
func BenchmarkSplit(b *testing.B) {
	for _, p := range basePackets()[:4] {
		for _, segments := range []int{1, 2, 10, 44, 45} {
			b.Run(fmt.Sprintf("%s/segments=%d", keys(p), segments), func(b *testing.B) {
				n, cut := splitter(b, p, innerMTU-p.headerLen(), segments)
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					cut()
				}
				perPacket(b, segments)
				membw.Report(b, n, membw.Read, membw.Cache)
			})
		}
	}
}

// acks returns 64 acknowledgements without data, of 8 flows in turn: the other
// direction of a bulk transfer. None can be joined.
func acks() []*packet {
	var out []*packet
	for i := range 64 {
		p := basePackets()[4]
		p.sport += uint16(i % 8)
		p.ack += uint32(i / 8 * 2800)
		p.id += uint16(i / 8)
		p.payload = nil
		out = append(out, &p)
	}
	return out
}

// BenchmarkJoin joins what one receive brings. More than 8 flows in turn are too
// many for the Joiner and stay single. Verified, it sums every packet that is
// joined; trusted, it reads headers only and no bandwidth limits it. The
// joining of single packets, and of acknowledgements, reads headers only either way.
func BenchmarkJoin(b *testing.B) {
	full := func(i int) []*packet {
		p := basePackets()[i]
		return train(p, 44, innerMTU-p.headerLen(), 700)
	}
	for _, r := range []struct {
		name  string
		specs []*packet
		runs  int
	}{
		{"case=train/proto=tcp/ip=4", full(4), 1},
		{"case=train/proto=tcp/ip=6", full(1), 1},
		{"case=train/proto=udp/ip=4", full(5), 1},
		{"case=train/proto=udp/ip=6", full(3), 1},
		{"case=train-without-df/proto=tcp/ip=4", full(0), 1},
		{"case=flows/flows=4", interleaved(4, false), 4},
		{"case=flows/flows=8", interleaved(8, false), 8},
		{"case=flows/flows=16", interleaved(16, false), 64},
		{"case=singles/flows=8", interleaved(8, true), 64},
		{"case=acks/flows=8", acks(), 64},
	} {
		for _, sums := range []string{"trusted", "verified"} {
			b.Run(r.name+"/sums="+sums, func(b *testing.B) {
				n, join := joiner(b, r.specs, sums == "trusted", r.runs)
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					join()
				}
				perPacket(b, len(r.specs))
				if sums == "verified" && r.runs < len(r.specs) {
					membw.Report(b, n, membw.Read, membw.Cache)
				}
			})
		}
	}
}

// BenchmarkCheck reads headers only, whatever the packet's size.
func BenchmarkCheck(b *testing.B) {
	options := basePackets()[0]
	options.options = make([]byte, 8)
	for _, r := range []struct {
		name string
		p    packet
	}{{"ip=4/options=0", basePackets()[0]}, {"ip=6/options=0", basePackets()[1]}, {"ip=4/options=8", options}} {
		b.Run(r.name, func(b *testing.B) {
			r.p.payload = noise[:1400]
			p := r.p.bytes()
			b.ReportAllocs()
			for b.Loop() {
				if offload.Check(p) != offload.FaultNone {
					b.Fatal("fault")
				}
			}
			perPacket(b, 1)
		})
	}
}
