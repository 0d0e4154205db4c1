package netlab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinkModes(t *testing.T) {
	l := newLab(t)
	a, b, addr4, _ := pair(t, l, 1500)
	original, err := a.Features("x")
	check(t, err)
	for _, mode := range []LinkMode{M2, M3, M1, M3, M2, M1} {
		check(t, l.SetLinkMode(mode, End{a, "x"}, End{b, "x"}))
		for _, n := range []*NS{a, b} {
			got, err := n.Features("x")
			check(t, err)
			for name, want := range map[string]bool{
				"tx-tcp-segmentation":          mode == M1,
				"tx-generic-segmentation":      mode == M1,
				"tx-udp-segmentation":          mode == M1,
				"tx-udp_tnl-csum-segmentation": mode == M1,
				"rx-gro":                       mode == M2,
				"rx-checksum":                  mode != M3,
				"tx-checksum-ip-generic":       mode != M3,
			} {
				if got[name] != want {
					t.Errorf("%v: %s: %s is %s", mode, n.Name(), name, onOff(got[name]))
				}
			}
			if mode == M1 && !cmp.Equal(original, got) {
				t.Errorf("%s: back in M1: %s", n.Name(), cmp.Diff(original, got))
			}
		}

		// What the kernel says is one thing, what crosses the wire another.
		before, err := a.LinkStats("x")
		check(t, err)
		exchange(t, a, b, addr4, 4<<20)
		after, err := a.LinkStats("x")
		check(t, err)
		packets := after.TxPackets - before.TxPackets
		if atLeast := uint64(4 << 20 / 1500); (mode == M1) != (packets < atLeast) {
			t.Errorf("%v: 4 MiB crossed in %d packets; of MTU size it would be %d", mode, packets, atLeast)
		}
	}
	if err := l.SetLinkMode(4, End{a, "x"}); err == nil {
		t.Error("mode 4 was accepted")
	}
}

func TestSetFeatures(t *testing.T) {
	l := newLab(t)
	a, _, _, _ := pair(t, l, 1500)
	for name, bad := range map[string]map[string]bool{
		"unknown":       {"nonsense": true},
		"empty":         {"": true},
		"fixed":         {"hw-tc-offload": true},
		"fixed group":   {"lro": true},
		"dependent":     {"tx": false, "tx-tcp-segmentation": true},
		"contradiction": {"tso": false, "tcp-segmentation-offload": true},
	} {
		if err := a.SetFeatures("x", bad); err == nil {
			t.Errorf("%s: %v was accepted", name, bad)
		} else {
			t.Log(err)
		}
	}
	if err := a.SetFeatures("none", map[string]bool{"gro": true}); err == nil {
		t.Error("a device that does not exist was accepted")
	}
}
