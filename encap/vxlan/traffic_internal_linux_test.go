package vxlan

import (
	"slices"
	"testing"
)

// TestTraffic: three hosts talk, in each family and both.
func TestTraffic(t *testing.T) {
	for _, families := range []string{"4", "6", "46"} {
		t.Run(families, func(t *testing.T) {
			c := newCluster(t, 3, families, `{"Type":"vxlan"}`)
			c.up()
			for _, from := range c.hosts {
				for _, to := range c.hosts {
					if from != to {
						c.reach(from, to)
					}
				}
			}
			for _, h := range c.hosts {
				if n := h.log.Count("ERROR") + h.log.Count("WARN"); n != 0 {
					t.Errorf("%s logs %q", h.Name(), slices.Concat(h.log.With("ERROR"), h.log.With("WARN")))
				}
			}
		})
	}
}
