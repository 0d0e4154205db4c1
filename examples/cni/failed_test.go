package main

import (
	"strings"
	"testing"
)

// TestFailsOnce: a delegate whose DEL fails the first time has left nothing either.
func TestFailsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("fail.ADD", `{"code":123,"msg":"no"}`)
	r.write("once.DEL", `{"code":999,"msg":"Chain does not exist"}`)
	r.refused(123, "ADD", "c1/eth0", r.conf(""))
	r.calls("ADD c1/eth0", "DEL c1/eth0", "DEL c1/eth0")
	r.files()
}

// TestRefusedConfiguration: a delegate that refuses its configuration at ADD refuses it
// at DEL as well. It is not to keep the container from being deleted.
func TestRefusedConfiguration(t *testing.T) {
	t.Parallel()
	for _, more := range []string{`"delegate":{"mtu":"1400"}`, `"delegate":{"vlan":"x"}`, `"ipam":{"rangeStart":"x"}`, `"ipam":{"routes":[{"dst":"::/0"}]}`} {
		t.Run(more, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			_, bad, _ := strings.Cut(more, "{")
			r.write("refused", strings.TrimRight(bad, "}]")) // the innermost key
			r.refused(999, "ADD", "c1/eth0", r.conf(","+more), "cannot unmarshal")
			h := r.calls("ADD c1/eth0", "DEL c1/eth0", "DEL c1/eth0", "DEL c1/eth0")
			if last := h[3].Stdin; last != `{"cniVersion":"1.1.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"type":"host-local"},"name":"cbr0","type":"bridge"}` {
				t.Errorf("the last DEL got %s", last)
			}
			r.files()
		})
	}

	// Of a delegate that nobody knows, nothing can be left out. DEL takes the
	// configuration that an operator has corrected.
	r := newRig(t)
	r.link("bin/mydelegate")
	r.write("refused", `"mtu":"1400"`)
	bad, good := r.conf(`,"delegate":{"type":"mydelegate","mtu":"1400"}`), r.conf(`,"delegate":{"type":"mydelegate"}`)
	r.refused(999, "ADD", "c1/eth0", bad, "cannot unmarshal")
	r.files("c1")
	r.refused(999, "DEL", "c1/eth0", bad, "cannot unmarshal")
	r.files("c1")
	r.heard()
	r.ok("DEL", "c1/eth0", good)
	if h := r.calls("DEL c1/eth0", "DEL c1/eth0", "DEL c1/eth0"); !strings.Contains(h[2].Stdin, `"mtu":1472`) {
		t.Errorf("the last DEL got %s", h[2].Stdin)
	}
	r.files()

	// An ADD that had succeeded is deleted with its own configuration, or not at all.
	r.ok("ADD", "c1/eth0", good)
	r.write("fail.DEL", `{"code":123,"msg":"not now"}`)
	r.heard()
	r.refused(123, "DEL", "c1/eth0", r.conf(`,"delegate":{"type":"mydelegate","mtu":1300}`), "not now")
	r.calls("DEL c1/eth0")
	r.files("c1")
}
