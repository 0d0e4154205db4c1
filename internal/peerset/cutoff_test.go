package peerset_test

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// TestCutOff: no peer gets what this host needs to reach anybody, nor packets for its own
// public address through a tunnel to that.
func TestCutOff(t *testing.T) {
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","SubnetLen":24}`))
	if err != nil {
		t.Fatal(err)
	}
	self := peerset.Self{
		Key:      lease.Key{Subnet: netip.MustParsePrefix("10.77.1.0/24")},
		Addrs:    []netip.Addr{netip.MustParseAddr("10.1.2.5")},
		Underlay: []netip.Prefix{netip.MustParsePrefix("10.1.4.0/23"), netip.MustParsePrefix("10.9.9.254/32")},
	}
	for _, c := range []struct {
		subnet, public string
		tunnel         bool
		why            string // "" if it is served
	}{
		{"10.78.1.0/24", "10.1.2.6", true, ""},
		{"10.1.2.0/24", "10.1.2.6", false, "contains this host's address 10.1.2.5"},
		{"10.1.5.0/24", "192.0.2.6", false, "overlaps 10.1.4.0/23"},
		{"10.9.9.0/24", "192.0.2.6", false, "overlaps 10.9.9.254/32"},
		{"10.1.6.0/24", "192.0.2.6", false, ""},
		{"10.1.6.0/24", "10.1.6.1", true, "inside its subnet"},
		{"10.1.6.0/24", "10.1.6.1", false, ""},
	} {
		chooser := peerset.Chooser{Backend: "b", Types: []string{"b"}, Network: n, Tunnel: c.tunnel, Log: slog.New(slog.DiscardHandler)}
		l := lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix(c.subnet)},
			Attrs: lease.Attrs{BackendType: "b", PublicIP: netip.MustParseAddr(c.public)}}
		peers, notes := chooser.Choose(self, []lease.Lease{l}, func(l lease.Lease, _ netip.Prefix) (netip.Addr, string) { return l.Attrs.PublicIP, "" })
		if c.why == "" {
			if len(peers) != 1 || len(notes) != 0 {
				t.Errorf("%+v: %v", c, notes)
			}
			continue
		}
		if len(peers) != 0 || len(notes) != 1 || !notes[0].Bad || !strings.Contains(notes[0].Text, c.why) {
			t.Errorf("%+v: %v, %v", c, peers, notes)
		}
	}
}
