package encap

import (
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/membw"
)

// BenchmarkPump is what the engine itself costs, without the kernel: the system
// calls are played by functions that copy a packet in and forget what comes
// out. One operation is a round over all packets of a case. Outbound each byte
// is copied once, by the player, and with a partial checksum summed once;
// inbound too. The limit beside it is that of the copy.
func BenchmarkPump(b *testing.B) {
	small := slices.Repeat([]tunRead{one(udp4(pattern(64, 1)))}, 64)
	ps := flow(tcp4(nil), 44, 1400)
	for _, c := range []struct {
		name  string
		reads []tunRead
		in    []arrival
	}{
		{"dir=out/load=super", []tunRead{big(tcp4(pattern(44*1400, 1)), 1400)}, nil},
		{"dir=out/load=small", small, nil},
		{"dir=in/load=train", nil, []arrival{train(ps...)}},
		{"dir=in/load=small", nil, each(slices.Repeat([][]byte{udp4(pattern(64, 1)).back().packet()}, 64))},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, Config{})
			y := newPlayer(r)
			y.reads, y.arrivals = c.reads, c.in
			n := 0
			for _, p := range c.reads {
				n += len(p.p)
			}
			for _, a := range c.in {
				n += len(a.data)
			}
			before := r.p.core.stats
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				r.round(y)
			}
			st := r.p.core.stats
			packets := st.TX.Packets + st.RX.Packets - before.TX.Packets - before.RX.Packets
			if st.Drops.Total() > 0 || packets == 0 || packets%uint64(b.N) != 0 {
				b.Errorf("%d packets in %d rounds, drops %v", packets, b.N, st.Drops)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
			membw.Report(b, n, membw.Copy, membw.Cache)
		})
	}
}
