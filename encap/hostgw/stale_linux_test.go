package hostgw

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/lease"
)

// TestStaleBehindFailure: a peer has moved to where no route can lead; the one to where it
// was does not stay.
func TestStaleBehindFailure(t *testing.T) {
	l := newLab(t)
	elsewhere := l.namespace("else")
	must(t, elsewhere.Bridge("br0"))
	a := l.host(1, l.sw, none, none)
	l.plug(elsewhere, a.NS, "eth2")
	must(t, a.AddAddr("eth2", prefix("203.0.113.1/24")))
	a.route(&netlink.Route{}, "10.5.7.0/24", "192.0.2.7", "eth0") // where the peer was
	a.start()
	other := lease.Lease{Key: lease.Key{Subnet: prefix("10.5.7.0/24")}, Attrs: lease.Attrs{BackendType: "host-gw", PublicIP: ip("203.0.113.7")}}
	if err := a.b.Sync(t.Context(), []lease.Lease{other}); err == nil {
		t.Error("a peer on another interface, and no error")
	}
	a.wants()
}

// TestOddLengths: subnets of other lengths than the network's, of reservations or a former
// configuration, are followed as well.
func TestOddLengths(t *testing.T) {
	l := newLab(t)
	a := l.host(1, l.sw, none, none)
	a.start()
	at := func(subnet, public string) lease.Lease {
		return lease.Lease{Key: lease.Key{Subnet: prefix(subnet)}, Attrs: lease.Attrs{BackendType: "host-gw", PublicIP: ip(public)}}
	}
	must(t, a.b.Sync(t.Context(), []lease.Lease{at("10.5.2.0/25", "192.0.2.2"), at("10.5.16.0/20", "192.0.2.3")}))
	a.wants([]string{"10.5.16.0/20 via 192.0.2.3 eth0", "10.5.2.0/25 via 192.0.2.2 eth0"})
	must(t, a.b.Sync(t.Context(), []lease.Lease{at("10.5.2.0/25", "192.0.2.22"), at("10.5.16.0/20", "192.0.2.33")}))
	a.wants([]string{"10.5.16.0/20 via 192.0.2.33 eth0", "10.5.2.0/25 via 192.0.2.22 eth0"})
	must(t, a.b.Sync(t.Context(), nil))
	a.wants()
}
