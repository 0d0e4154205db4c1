package encap

import (
	"bytes"
	"fmt"
	"testing"
)

// Comparing lists of packets.

// differ says where two lists of packets first differ, or nothing.
func differ(got, want [][]byte) error {
	for i := range min(len(got), len(want)) {
		if g, w := got[i], want[i]; !bytes.Equal(g, w) {
			at := 0
			for at < min(len(g), len(w)) && g[at] == w[at] {
				at++
			}
			return fmt.Errorf("packet %d of %d (want %d) differs from byte %d of %d (want %d) on:\n%x, want\n%x",
				i, len(got), len(want), at, len(g), len(w), head(g[at:]), head(w[at:]))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d packets, want %d", len(got), len(want))
	}
	return nil
}

func head(p []byte) []byte { return p[:min(len(p), 64)] }

// lost returns which of want are missing from got, which must else be the
// same, in the same order and without anything twice.
func lost(got, want [][]byte) (missing []int, err error) {
	k := 0
	for i, w := range want {
		if k < len(got) && bytes.Equal(got[k], w) {
			k++
		} else {
			missing = append(missing, i)
		}
	}
	if k < len(got) {
		return missing, fmt.Errorf("packet %d of %d is out of order, altered or there twice:\n%x", k, len(got), head(got[k]))
	}
	return missing, nil
}

func total(ps [][]byte) (n uint64) {
	for _, p := range ps {
		n += uint64(len(p))
	}
	return n
}

// byFlow sorts packets by flow and keeps their order within one.
func byFlow(ps [][]byte) map[string][][]byte {
	m := map[string][][]byte{}
	for _, p := range ps {
		at, end, proto := 12, 24, p[9] // addresses and ports
		if p[0]>>4 == 6 {
			at, end, proto = 8, 44, p[6]
		}
		k := string(p[at:end]) + string(proto)
		m[k] = append(m[k], p)
	}
	return m
}

func differByFlow(got, want [][]byte) error {
	g, w := byFlow(got), byFlow(want)
	for k := range w {
		if err := differ(g[k], w[k]); err != nil {
			return fmt.Errorf("flow %x: %w", k, err)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d packets, want %d", len(got), len(want))
	}
	return nil
}

func TestLost(t *testing.T) {
	if miss, err := lost([][]byte{{1}, {3}}, [][]byte{{1}, {2}, {3}}); err != nil || len(miss) != 1 || miss[0] != 1 {
		t.Errorf("lost: %v, %v", miss, err)
	}
	for _, got := range [][][]byte{{{1}, {1}}, {{3}, {1}}, {{4}}} {
		if _, err := lost(got, [][]byte{{1}, {2}, {3}}); err == nil {
			t.Errorf("lost finds nothing wrong with %v", got)
		}
	}
}
