package offload_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// batch is packets on their way through a Joiner.
type batch struct {
	specs   []*packet // nil where there are only bytes
	in      [][]byte  // what is given to the Joiner
	before  [][]byte  // copies of in
	trusted []bool
}

func newBatch(specs ...*packet) *batch {
	b := &batch{}
	for _, p := range specs {
		b.add(p.bytes(), false)
	}
	b.specs = specs
	return b
}

func (b *batch) add(p []byte, trusted bool) {
	b.in = append(b.in, p)
	b.before = append(b.before, bytes.Clone(p))
	b.trusted = append(b.trusted, trusted)
}

// trust has the packets trusted that random choice picks, wrong ones excepted.
func (b *batch) trust(c chooser) {
	always := c.IntN(4)
	for i, p := range b.specs {
		b.trusted[i] = !p.badSum && (always == 0 || always > 1 && c.IntN(2) == 0)
	}
}

// groups returns which packets, by number, make up each run of j. It knows them
// by where their bytes are.
func (b *batch) groups(j *offload.Joiner) ([][]int, error) {
	where := make(map[*byte]int, len(b.in))
	for i, p := range b.in {
		where[&p[0]] = i
	}
	var out [][]int
	for i := range j.Len() {
		r := j.Run(i)
		p, next := r.First(), j.Second(r)
		var group []int
		for {
			n, ok := where[&p[0]]
			if !ok || len(p) != len(b.in[n]) {
				return nil, fmt.Errorf("run %d: packet %d of it is none that was added", i, len(group))
			}
			delete(where, &p[0])
			group = append(group, n)
			if next < 0 {
				break
			}
			p, next = j.Whole(next)
		}
		if r.Packets() != len(group) {
			return nil, fmt.Errorf("run %d: %d packets, but Packets says %d", i, len(group), r.Packets())
		}
		out = append(out, group)
	}
	if len(where) > 0 {
		return nil, fmt.Errorf("%d of %d packets are in no run", len(where), len(b.in))
	}
	return out, nil
}

// super returns run r, after Finish, as the one packet that is written.
func super(j *offload.Joiner, r *offload.Run) []byte {
	b := bytes.Clone(r.First())
	for c := j.Second(r); c >= 0; {
		var pay []byte
		pay, c = j.Rest(r, c)
		b = append(b, pay...)
	}
	return b
}

// join gives the batch to j, which is empty, and returns the runs as lists of
// packet numbers. On the way it checks that every run, finished as random choice
// says and expanded by the slow oracle, gives the packets it was made of.
func (b *batch) join(j *offload.Joiner, c chooser) ([][]int, error) {
	for i, p := range b.in {
		if offload.Check(p) != offload.FaultNone {
			return nil, fmt.Errorf("packet %d has fault %d: %s", i, offload.Check(p), describe(p))
		}
		if !j.Add(p, b.trusted[i]) {
			return nil, fmt.Errorf("packet %d of %d was refused", i, len(b.in))
		}
	}
	groups, err := b.groups(j)
	if err != nil {
		return nil, err
	}
	if err := b.unchanged("before Finish", groups...); err != nil {
		return nil, err
	}
	for i, g := range groups {
		r := j.Run(i)
		first, partial := b.before[g[0]], c.IntN(2) == 0
		v := r.Finish(partial)
		whole := super(j, r)
		marked := partial && b.trusted[g[0]] // and, see below, worth it
		if b.specs != nil {
			marked = marked && b.specs[g[0]].known() && b.specs[g[0]].joinable(j.Config())
		}
		if len(g) > 1 != (v.GSOType != 0) || len(g) == 1 && v.Flags != 0 && !marked || b.specs != nil && marked && v.Flags == 0 {
			return nil, fmt.Errorf("Finish(%v) of %d packets, trusted %v, returned %+v", partial, len(g), b.trusted[g[0]], v)
		}
		if r.Bytes() != len(whole) || len(whole) > 65535 && len(g) > 1 || len(g) > 1 && r.HeaderLen() != int(v.HdrLen) {
			return nil, fmt.Errorf("run of %d bytes: Bytes %d, HeaderLen %d, %+v", len(whole), r.Bytes(), r.HeaderLen(), v)
		}
		if tcp := first[9] == protoTCP && first[0]>>4 == 4 || first[6] == protoTCP && first[0]>>4 == 6; len(g) > 1 && r.TCP() != tcp {
			return nil, fmt.Errorf("TCP is %v of a run that starts with %s", r.TCP(), describe(first))
		}
		out, err := slowExpand(whole, v)
		if err != nil {
			return nil, fmt.Errorf("run %d of packets %v: %w", i, g, err)
		}
		var want [][]byte
		for _, n := range g {
			want = append(want, b.before[n])
		}
		if d := diff(out, want); d != "" {
			return nil, fmt.Errorf("run %d of packets %v, virtio %+v: %s", i, g, v, d)
		}
		if oneIn(c, 3) {
			r.Undo()
			r.Undo() // the second one has nothing to do
			if err := b.unchanged("after Undo", g); err != nil {
				return nil, err
			}
			if again := r.Finish(partial); again != v || !bytes.Equal(super(j, r), whole) {
				return nil, fmt.Errorf("run %d: Finish after Undo is %+v, was %+v", i, again, v)
			}
		}
	}
	for i := range groups {
		j.Run(i).Undo()
	}
	return groups, b.unchanged("after Undo of all", groups...)
}

// unchanged checks that the packets of the groups are as they came.
func (b *batch) unchanged(when string, groups ...[]int) error {
	for _, g := range groups {
		for _, i := range g {
			if !bytes.Equal(b.in[i], b.before[i]) {
				return fmt.Errorf("%s packet %d of run %v:\n is %s\nwas %s", when, i, g, describe(b.in[i]), describe(b.before[i]))
			}
		}
	}
	return nil
}

// overtaken checks that no packet is in front of an earlier one of its flow, or
// of one whose flow nobody can know.
func (b *batch) overtaken(groups [][]int) error {
	var seen []int
	for _, g := range groups {
		for _, n := range g {
			for _, m := range seen {
				x, y := flowOf(b.before[n]), flowOf(b.before[m])
				if n < m && (x == "" || y == "" || x == y) {
					return fmt.Errorf("packet %d was overtaken by packet %d: %v", n, m, groups)
				}
			}
			seen = append(seen, n)
		}
	}
	return nil
}

// flowOf is the addresses, ports and protocol of b, "" if its ports cannot be seen.
func flowOf(b []byte) string {
	at, proto := 20, b[9]
	if b[0]>>4 == 6 {
		at, proto = 40, b[6]
	} else if b[0] != 0x45 || get16(b[6:])&0x3fff != 0 {
		return ""
	}
	if proto == protoTCP && len(b) >= at+20 || proto == protoUDP && len(b) >= at+8 {
		return string(append(bytes.Clone(b[map[int]int{20: 12, 40: 8}[at]:at+4]), proto))
	}
	return ""
}

// The model: which packets belong together, from the rules as written in
// section "What may be joined" of Joiner's documentation.

type key struct {
	src, dst     string
	sport, dport uint16
	proto        byte
}

func (p *packet) key() key { return key{p.src, p.dst, p.sport, p.dport, p.proto} }

// known says whether the ports of p can be seen.
func (p *packet) known() bool {
	whole := !p.mf && p.fragment == 0 && len(p.options) == 0
	if p.v6() {
		whole = len(p.ext) == 0
	}
	return whole && (p.proto == protoTCP || p.proto == protoUDP)
}

func (p *packet) joinable(cfg offload.JoinConfig) bool {
	if len(p.payload) == 0 {
		return false
	}
	if p.proto == protoTCP {
		return !cfg.NoTCP && p.flags&^(psh|fin|ece) == ack && p.reserved == 0
	}
	tunnel := slices.Contains([]uint16{4789, 8472, 6081, 8285, 51820}, p.dport)
	return !cfg.NoUDP && !p.noSum && p.udpLen == 0 && !(cfg.KeepTunnelPorts && tunnel)
}

// closes says whether p, if joined to packets of n payload bytes, is the last.
func (p *packet) closes(n int) bool {
	return len(p.payload) < n || p.proto == protoTCP && p.flags&(psh|fin) != 0
}

type modelRun struct {
	packets []*packet
	numbers []int
	bytes   int
}

func (r *modelRun) takes(p *packet, trusted []bool, n int) bool {
	a, last := r.packets[0], r.packets[len(r.packets)-1]
	if len(p.payload) > len(a.payload) || r.bytes+len(p.payload) > 65535 || p.tos != a.tos || p.ttl != a.ttl ||
		a.badSum && !trusted[r.numbers[0]] || p.badSum && !trusted[n] {
		return false
	}
	if p.v6() {
		if p.label != a.label {
			return false
		}
	} else if p.df != a.df || p.evil != a.evil || !p.df && p.id != last.id+1 {
		return false
	}
	if p.proto == protoUDP {
		return len(r.packets) < 128
	}
	return p.seq == last.seq+uint32(len(last.payload)) && p.ack == a.ack && p.window == a.window && p.urgent == a.urgent &&
		(p.flags^a.flags)&^(psh|fin) == 0 && bytes.Equal(p.tcpOptions, a.tcpOptions)
}

// expect returns the runs that the model makes of the batch.
func (b *batch) expect(cfg offload.JoinConfig) [][]int {
	var runs, open []*modelRun // open: most recently used first
	for n, p := range b.specs {
		fresh := &modelRun{packets: []*packet{p}, numbers: []int{n}, bytes: p.headerLen() + len(p.payload)}
		if !p.known() {
			open = nil
			runs = append(runs, fresh)
			continue
		}
		at := slices.IndexFunc(open, func(r *modelRun) bool { return r.packets[0].key() == p.key() })
		var r *modelRun
		if at >= 0 {
			r = open[at]
			open = slices.Delete(slices.Clone(open), at, at+1)
		}
		joinable := p.joinable(cfg)
		if r != nil && joinable && r.takes(p, b.trusted, n) {
			r.packets, r.numbers = append(r.packets, p), append(r.numbers, n)
			r.bytes += len(p.payload)
		} else {
			r = fresh
			runs = append(runs, r)
		}
		if joinable && !p.closes(len(r.packets[0].payload)) {
			open = append([]*modelRun{r}, open...)
			open = open[:min(len(open), 8)]
		}
	}
	var out [][]int
	for _, r := range runs {
		out = append(out, r.numbers)
	}
	return out
}

// TestJoinProperty: runs are those of the model, nothing is lost, doubled or
// overtaken, and what the slow oracle makes of them are the packets as they came.
func TestJoinProperty(t *testing.T) {
	j := offload.NewJoiner(offload.JoinConfig{Packets: 200})
	longest, packets, runs := 0, 0, 0
	round := func(c chooser, n int) error {
		cfg := offload.JoinConfig{NoTCP: oneIn(c, 8), NoUDP: oneIn(c, 8), KeepTunnelPorts: oneIn(c, 2)}
		b := newBatch(someTraffic(c, 1+c.IntN(n), 1+c.IntN(12))...)
		b.trust(c)
		j.SetConfig(cfg)
		j.Reset()
		got, err := b.join(j, c)
		if err != nil {
			return err
		}
		if want := b.expect(cfg); !slices.EqualFunc(got, want, slices.Equal) {
			return fmt.Errorf("runs %v, want %v", got, want)
		}
		for _, g := range got {
			longest = max(longest, len(g))
		}
		packets, runs = packets+len(b.in), runs+len(got)
		return b.overtaken(got)
	}
	rounds := 1500
	if testing.Short() {
		rounds = 300
	}
	for seed := range rounds {
		n := 24
		if seed%50 == 0 {
			n = 200
		}
		if err := round(newRand(uint64(seed)), n); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	// Traffic in which nothing can be joined would prove nothing.
	if longest < 10 || runs*4 > packets*3 {
		t.Errorf("%d packets made %d runs, the longest of %d packets: this traffic proves little", packets, runs, longest)
	}
	rapid.Check(t, func(rt *rapid.T) {
		if err := round(rapidChooser{rt}, 12); err != nil {
			rt.Fatal(err)
		}
	})
}

// TestJoinSplit: a Splitter undoes what a Joiner did.
func TestJoinSplit(t *testing.T) {
	j := offload.NewJoiner(offload.JoinConfig{Packets: 64})
	var s offload.Splitter
	for seed := range 150 {
		c := newRand(uint64(seed))
		b := newBatch(someTraffic(c, 24, 1+c.IntN(3))...)
		b.trust(c)
		j.Reset()
		for i, p := range b.in {
			j.Add(p, b.trusted[i])
		}
		groups, err := b.groups(j)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for i, g := range groups {
			v := j.Run(i).Finish(true)
			p := super(j, j.Run(i))
			out := [][]byte{p}
			if v.GSOType != 0 {
				if out, err = split(&s, p, v); err != nil {
					t.Fatalf("seed %d: run %d: %v", seed, i, err)
				}
			} else if v.Flags != 0 && !offload.FinishChecksum(p, int(v.CsumStart), int(v.CsumOffset)) {
				t.Fatalf("seed %d: run %d: FinishChecksum refuses %+v", seed, i, v)
			}
			var want [][]byte
			for _, n := range g {
				want = append(want, b.before[n])
			}
			if d := diff(out, want); d != "" {
				t.Fatalf("seed %d: run %d: %s", seed, i, d)
			}
		}
	}
}

// TestJoinTrust: a trusted packet with a wrong checksum is joined, and given the
// right one: that it is not summed is what trust means.
func TestJoinTrust(t *testing.T) {
	for _, p := range basePackets() {
		q := follower(&p)
		q.badSum = true
		b := newBatch(&p, &q)
		b.trusted = []bool{false, true}
		j := offload.NewJoiner(offload.JoinConfig{Packets: 2})
		for i := range b.in {
			j.Add(b.in[i], b.trusted[i])
		}
		if j.Len() != 1 {
			t.Fatalf("%d runs, want 1", j.Len())
		}
		v := j.Run(0).Finish(false)
		out, err := slowExpand(super(j, j.Run(0)), v)
		if err != nil {
			t.Fatal(err)
		}
		q.badSum = false
		if d := diff(out, [][]byte{p.bytes(), q.bytes()}); d != "" {
			t.Error(d)
		}
	}
}

// TestUndoOtherZero: Undo restores a header checksum written as 0xffff, which
// is another way to write 0, as every other one.
func TestUndoOtherZero(t *testing.T) {
	for _, partial := range []bool{false, true} {
		for _, p := range basePackets() {
			if p.v6() {
				continue
			}
			p.id, p.payload = 0, noise[:100]
			p.id = uint16(get16(p.bytes()[10:])) // which makes the sum of the header all ones
			b := newBatch()
			for _, p := range train(p, 2, 100, 100)[:1+map[bool]int{false: 1}[partial]] {
				raw := p.bytes()
				if p.id != uint16(get16(raw[4:])) || len(b.in) == 0 && get16(raw[10:]) != 0 {
					t.Fatalf("the checksum is not zero: %s", describe(raw))
				}
				if len(b.in) == 0 {
					raw[10], raw[11] = 0xff, 0xff
				}
				b.add(raw, true)
			}
			j := offload.NewJoiner(offload.JoinConfig{Packets: 2})
			for i := range b.in {
				j.Add(b.in[i], true)
			}
			if v := j.Run(0).Finish(partial); j.Len() != 1 || v.Flags == 0 {
				t.Fatalf("%d runs, virtio %+v", j.Len(), v)
			}
			j.Run(0).Undo()
			if err := b.unchanged("after Undo", []int{0}); err != nil {
				t.Error(err)
			}
		}
	}
}
