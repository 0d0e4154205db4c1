package offload_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// bulk is a super-packet as a bulk transfer makes it: 64 KiB less the headers.
func bulk(base packet, mss int) ([]byte, offload.Virtio) {
	base.payload = noise[:65535-base.headerLen()]
	b := base.bytes()
	v := offload.Virtio{Flags: 1, GSOType: 5, GSOSize: uint16(mss), CsumStart: uint16(base.ipLen()), CsumOffset: 6}
	if base.proto == protoTCP {
		v.GSOType, v.CsumOffset = map[bool]byte{false: 1, true: 4}[base.v6()], 16
	}
	partial(b, base.ipLen(), base.proto)
	return b, v
}

// splitter returns a function that cuts the same super-packet each time.
func splitter(tb testing.TB, base packet, mss int) (bytesEach int, cut func()) {
	p, v := bulk(base, mss)
	headers := bytes.Clone(p[:base.headerLen()])
	dst := make([]byte, len(headers))
	var s offload.Splitter
	return len(p), func() {
		copy(p, headers) // Start has changed them
		if err := s.Start(p, v); err != nil {
			tb.Fatal(err)
		}
		n := 0
		for s.Next(dst) != nil {
			n++
		}
		if n != s.Segments() || n < 2 {
			tb.Fatalf("%d segments", n)
		}
	}
}

// joiner returns a function that joins the same packets each time, as an engine
// does with one batch.
func joiner(tb testing.TB, specs []*packet, trusted bool, runs int) (bytesEach int, join func()) {
	b := newBatch(specs...)
	j := offload.NewJoiner(offload.JoinConfig{Packets: len(specs)})
	var virtio [offload.VirtioLen]byte
	total := 0
	for _, p := range b.in {
		total += len(p)
	}
	heads := make([][]byte, len(b.in)) // Finish changes those of first packets
	for i, p := range b.before {
		heads[i] = p[:specs[i].headerLen()]
	}
	return total, func() {
		for i, p := range b.in {
			copy(p, heads[i])
			if !j.Add(p, trusted) {
				tb.Fatal("full")
			}
		}
		if j.Len() != runs {
			tb.Fatalf("%d runs, want %d", j.Len(), runs)
		}
		packets := 0
		for i := range j.Len() {
			r := j.Run(i)
			r.Finish(true).Encode(virtio[:])
			packets++
			for c := j.Second(r); c >= 0; packets++ {
				_, c = j.Rest(r, c)
			}
		}
		if packets != len(specs) {
			tb.Fatalf("%d packets", packets)
		}
		j.Reset()
	}
}

// interleaved returns 64 packets of 8 flows in turn. Single ones have PSH, or no
// checksum, so that none can be joined.
func interleaved(single bool) []*packet {
	var out []*packet
	var flows [][]*packet
	for i := range 8 {
		p := basePackets()[[]int{4, 1, 5, 3}[i&3]] // with DF, as is usual
		p.sport = uint16(5000 + i)
		p.noSum = single && p.proto == protoUDP
		if single {
			p.flags |= psh
		}
		flows = append(flows, train(p, 8, 1400, 1400))
	}
	for i := range 64 {
		out = append(out, flows[i%8][i/8])
	}
	return out
}

func TestSplitAllocs(t *testing.T) {
	for _, base := range basePackets() {
		_, cut := splitter(t, base, 1420)
		if n := testing.AllocsPerRun(100, cut); n != 0 {
			t.Errorf("%v allocations for a super-packet of IPv%d, protocol %d, want 0", n, base.network(0)[0]>>4, base.proto)
		}
	}
}

func TestJoinAllocs(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		for _, base := range basePackets() {
			_, join := joiner(t, train(base, 40, 1400, 700), trusted, 1)
			if n := testing.AllocsPerRun(100, join); n != 0 {
				t.Errorf("%v allocations for a train of IPv%d, protocol %d, trusted %v, want 0", n, base.network(0)[0]>>4, base.proto, trusted)
			}
		}
		for _, single := range []bool{false, true} {
			_, join := joiner(t, interleaved(single), trusted, map[bool]int{false: 8, true: 64}[single])
			if n := testing.AllocsPerRun(100, join); n != 0 {
				t.Errorf("%v allocations for eight flows, single %v, trusted %v, want 0", n, single, trusted)
			}
		}
	}
	before := basePackets()[0].bytes()
	p := bytes.Clone(before)
	if n := testing.AllocsPerRun(100, func() {
		copy(p, before)
		if offload.Check(p) != offload.FaultNone || !offload.FinishChecksum(p, 20, 16) {
			t.Error("no good packet")
		}
		offload.DecTTL(p)
	}); n != 0 {
		t.Errorf("%v allocations for Check, DecTTL and FinishChecksum, want 0", n)
	}
}

func BenchmarkSplit(b *testing.B) {
	for i, name := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		b.Run(name, func(b *testing.B) {
			n, cut := splitter(b, basePackets()[i], 1420)
			b.SetBytes(int64(n))
			for b.Loop() {
				cut()
			}
		})
	}
}

func BenchmarkJoin(b *testing.B) {
	full := func(i int) []*packet {
		p := basePackets()[i]
		return train(p, 44, 1472-p.headerLen(), 700)
	}
	for _, r := range []struct {
		name  string
		specs []*packet
		runs  int
	}{
		{"train/tcp4", full(4), 1},
		{"train/tcp6", full(1), 1},
		{"train/udp4", full(5), 1},
		{"train/udp6", full(3), 1},
		{"train/tcp4-without-df", full(0), 1},
		{"interleaved", interleaved(false), 8},
		{"singles", interleaved(true), 64},
	} {
		for _, trusted := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/%s", r.name, map[bool]string{true: "trusted", false: "verified"}[trusted]), func(b *testing.B) {
				n, join := joiner(b, r.specs, trusted, r.runs)
				b.SetBytes(int64(n))
				for b.Loop() {
					join()
				}
			})
		}
	}
}

// BenchmarkCheck's bytes are those of the packets, of which only headers are read.
func BenchmarkCheck(b *testing.B) {
	options := basePackets()[0]
	options.options = make([]byte, 8)
	for _, r := range []struct {
		name string
		p    packet
	}{{"ipv4", basePackets()[0]}, {"ipv6", basePackets()[1]}, {"options", options}} {
		b.Run(r.name, func(b *testing.B) {
			r.p.payload = noise[:1400]
			p := r.p.bytes()
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if offload.Check(p) != offload.FaultNone {
					b.Fatal("fault")
				}
			}
		})
	}
}
