package netstate

import (
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

// TestAreaOf: what can be a host's subnet, and so a route of ours, in a wide network that
// has other things in it, too.
func TestAreaOf(t *testing.T) {
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0",
		"EnableIPv6":true,"IPv6Network":"fd00::/48"}`))
	if err != nil {
		t.Fatal(err)
	}
	a := AreaOf(n, lease.Key{Subnet: netip.MustParsePrefix("10.20.0.0/20"), Subnet6: netip.MustParsePrefix("fd00:0:0:7::/64")})
	for p, want := range map[string]bool{
		"10.10.0.0/20": true, "10.99.0.0/20": true, "10.42.16.0/20": true,
		"10.9.240.0/20": false, "10.99.16.0/20": false, // before the first, behind the last
		"10.42.0.0/16": false, "10.42.16.0/24": false, // other lengths
		"10.20.0.0/20": false, "192.0.2.0/20": false, // our own; elsewhere
		"fd00:0:0:1::/64": true, "fd00:0:0:7::/64": false, "fd00:0:1::/64": false,
	} {
		if got := a.subnet(netip.MustParsePrefix(p)); got != want {
			t.Errorf("%s: %v, want %v", p, got, want)
		}
	}
}
