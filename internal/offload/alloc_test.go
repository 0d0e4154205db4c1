package offload_test

import (
	"bytes"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// bulk is a super-packet of full segments as a bulk transfer makes it.
func bulk(base packet, mss, segments int) ([]byte, offload.Virtio) {
	base.payload = noise[:segments*mss]
	b := base.bytes()
	v := offload.Virtio{Flags: 1, GSOType: 5, GSOSize: uint16(mss), CsumStart: uint16(base.ipLen()), CsumOffset: 6}
	if base.proto == protoTCP {
		v.GSOType, v.CsumOffset = map[bool]byte{false: 1, true: 4}[base.v6()], 16
	}
	partial(b, base.ipLen(), base.proto)
	return b, v
}

// splitter returns a function that cuts the same super-packet each time.
func splitter(tb testing.TB, base packet, mss, segments int) (bytesEach int, cut func()) {
	p, v := bulk(base, mss, segments)
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
		if n != segments {
			tb.Fatalf("%d segments, want %d", n, segments)
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

// interleaved returns 64 packets of that many flows (a power of two) in turn.
// Single ones have PSH, or no checksum, so that none can be joined.
func interleaved(n int, single bool) []*packet {
	var out []*packet
	var flows [][]*packet
	for i := range n {
		p := basePackets()[[]int{4, 1, 5, 3}[i&3]] // with DF, as is usual
		p.sport = uint16(5000 + i)
		p.noSum = single && p.proto == protoUDP
		if single {
			p.flags |= psh
		}
		flows = append(flows, train(p, 64/n, 1400, 1400))
	}
	for i := range 64 {
		out = append(out, flows[i%n][i/n])
	}
	return out
}

func TestSplitAllocs(t *testing.T) {
	for _, base := range basePackets() {
		_, cut := splitter(t, base, 1420, 44)
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
			_, join := joiner(t, interleaved(8, single), trusted, map[bool]int{false: 8, true: 64}[single])
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
