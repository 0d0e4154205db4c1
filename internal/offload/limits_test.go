package offload_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// train returns n packets that continue each other, the last of which carries
// last bytes and the others size.
func train(p packet, n, size, last int) []*packet {
	var out []*packet
	for i := range n {
		q := p
		q.payload = noise[:size]
		if i == n-1 {
			q.payload = noise[:last]
		}
		out = append(out, &q)
		p = follower(&q)
	}
	return out
}

// lengths returns how many packets each run has.
func lengths(groups [][]int) string {
	n := []int{}
	for _, g := range groups {
		n = append(n, len(g))
	}
	return fmt.Sprint(n)
}

// TestRulesLimits is about runs that would become too long.
func TestRulesLimits(t *testing.T) {
	for _, p := range basePackets() {
		room := 65535 - p.headerLen()
		n := room/1000 + 1
		rows := []struct {
			name    string
			packets []*packet
			want    string
		}{
			{"65535 bytes", train(p, n, 1000, room%1000), fmt.Sprint([]int{n})},
			{"65536 bytes", train(p, n, 1000, room%1000+1), fmt.Sprint([]int{n - 1, 1})},
			{"twice", train(p, 2*n-2, 1000, 1000), fmt.Sprint([]int{n - 1, n - 1})},
			{"two of half the room", train(p, 2, room/2+1, room/2+1), "[1 1]"},
			{"one that fills a packet", train(p, 2, room, 1), "[1 1]"},
		}
		if p.proto == protoUDP {
			rows = append(rows, []struct {
				name    string
				packets []*packet
				want    string
			}{
				{"128 datagrams", train(p, 128, 20, 20), "[128]"},
				{"129 datagrams", train(p, 129, 20, 20), "[128 1]"},
				{"300 datagrams", train(p, 300, 20, 1), "[128 128 44]"},
			}...)
		} else {
			rows = append(rows, struct {
				name    string
				packets []*packet
				want    string
			}{"300 TCP segments", train(p, 300, 20, 20), "[300]"})
		}
		for _, r := range rows {
			b := newBatch(r.packets...)
			cfg := offload.JoinConfig{Packets: len(r.packets)}
			got, err := b.join(offload.NewJoiner(cfg), newRand(4))
			if err != nil {
				t.Errorf("IPv%d, protocol %d: %s: %v", b.in[0][0]>>4, p.proto, r.name, err)
			} else if model := lengths(b.expect(cfg)); lengths(got) != r.want || model != r.want {
				t.Errorf("IPv%d, protocol %d: %s: runs of %s packets, want %s (the model has %s)", b.in[0][0]>>4, p.proto, r.name, lengths(got), r.want, model)
			}
		}
	}
}

// TestRulesOpen is about more flows than can be open: eight.
func TestRulesOpen(t *testing.T) {
	for _, r := range []struct{ name, flows, want string }{
		{"eight flows", "abcdefghabcdefgh", "aa bb cc dd ee ff gg hh"},
		{"the ninth closes the first", "abcdefghia", "a b c d e f g h i a"},
		{"the ninth closes only the first", "abcdefghib", "a bb c d e f g h i"},
		{"use keeps open", "abcdefghaiab", "aaa b c d e f g h i b"},
		{"nine in turn", "abcdefghiabcdefghi", "a b c d e f g h i a b c d e f g h i"},
		{"back and forth", "abababab", "aaaa bbbb"},
	} {
		var specs []*packet
		flows := map[rune]packet{}
		for _, name := range r.flows {
			p, ok := flows[name]
			if !ok {
				p = basePackets()[int(name)&3]
				p.sport = uint16(name)
			}
			specs = append(specs, &p)
			flows[name] = follower(&p)
		}
		b := newBatch(specs...)
		cfg := offload.JoinConfig{Packets: len(specs)}
		got, err := b.join(offload.NewJoiner(cfg), newRand(5))
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		named := func(groups [][]int) string {
			var s []string
			for _, g := range groups {
				s = append(s, "")
				for _, n := range g {
					s[len(s)-1] += r.flows[n : n+1]
				}
			}
			return strings.Join(s, " ")
		}
		if named(got) != r.want || named(b.expect(cfg)) != r.want {
			t.Errorf("%s: %s gave %q, want %q (the model has %q)", r.name, r.flows, named(got), r.want, named(b.expect(cfg)))
		}
	}
}

// TestFull: a full Joiner refuses a packet even if it could be joined, keeps
// nothing of it, and after Reset is as new.
func TestFull(t *testing.T) {
	specs := train(basePackets()[0], 4, 100, 100)
	for size := range 4 {
		room := max(size, 1) // Packets is at least 1
		j := offload.NewJoiner(offload.JoinConfig{Packets: size})
		for range 3 {
			b := newBatch(specs...)
			for i, p := range b.in {
				if full := i >= room; j.Full() != full || j.Add(p, true) == full {
					t.Errorf("Packets %d: packet %d: Full is %v, want %v", size, i, j.Full(), full)
				}
			}
			if j.Len() != 1 || j.Run(0).Packets() != room {
				t.Errorf("Packets %d: %d runs, the first of %d packets", size, j.Len(), j.Run(0).Packets())
			}
			j.Reset()
			if j.Len() != 0 || j.Full() {
				t.Errorf("Packets %d: after Reset %d runs, Full is %v", size, j.Len(), j.Full())
			}
		}
	}
}
