package flannelkit_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// newCorporate makes the host 10.1.2.11/24 with a router, and a bridge for containers
// with the subnet that this host had before: 10.1.9.0/24.
func newCorporate(t *testing.T) *lone {
	t.Helper()
	eth0 := newLone(t)
	check(t, netlink.AddrAdd(eth0.link, eth0.addr("10.1.2.11/24")),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.link.Attrs().Index, Gw: netip.MustParseAddr("10.1.2.254").AsSlice()}),
		netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	docker0, err := netlink.LinkByName("docker0")
	check(t, err, netlink.AddrAdd(docker0, eth0.addr("10.1.9.1/24")), netlink.LinkSetUp(docker0))
	return eth0
}

// joinOnce joins a network of that configuration, in which there is a lease already, of
// another host unless its public address follows, and leaves it again.
func joinOnce(t *testing.T, network, there, before string) (lease.Lease, *testlog.Messages, error) {
	t.Helper()
	store, b, log := newScripted(`{"Backend": {"Type": "fake"}, `+network+`}`), newFake(), &testlog.Messages{}
	if key, public, own := strings.Cut(there, " "); own {
		addPeer(t, store, key, public)
	} else if there != "" {
		addPeer(t, store, there, "192.0.2.99")
	}
	cfg := flannelkit.Config{Backends: b.backends(), Log: log.Logger()}
	if before != "" {
		cfg.Previous.Subnet = netip.MustParsePrefix(before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n, err := flannelkit.Join(ctx, store, cfg)
	var l lease.Lease
	if err == nil {
		l = n.Lease()
		check(t, n.Close())
	}
	b.sound(t, 1)
	return l, log, err
}

// TestJoinAvoidsUnderlay is flannel issue 611: the subnet of a host must not be its own
// network's.
func TestJoinAvoidsUnderlay(t *testing.T) {
	if !alone(t) {
		return
	}
	noLeaks(t)
	eth0 := newCorporate(t)
	const two = `"Network": "10.1.0.0/16", "SubnetLen": 24, "SubnetMin": "10.1.2.0", "SubnetMax": "10.1.3.0"`
	for range 10 { // a random choice would be right now and then
		if l, _, err := joinOnce(t, two, "", ""); err != nil || l.String() != "10.1.3.0-24" {
			t.Fatalf("got %v, %v", l, err)
		}
	}
	_, _, err := joinOnce(t, two, "10.1.3.0-24", "")
	if !errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), "10.1.2.0/24, 10.1.2.11/32, 10.1.2.254/32 (set SubnetMin and SubnetMax") {
		t.Errorf("only its own network is left: %v", err)
	}
	l, log, err := joinOnce(t, two, "", "10.1.2.0/24")
	if err != nil || l.String() != "10.1.3.0-24" || log.Count("WARN", "previous subnet", "10.1.2.0/24") != 1 {
		t.Errorf("its network was its subnet before: %v, %v, %v", l, err, log.With("WARN"))
	}
	if l, log, err := joinOnce(t, `"Network": "10.1.0.0/16"`, "", "10.1.9.0/24"); err != nil || l.String() != "10.1.9.0-24" || log.Count("WARN") > 0 {
		t.Errorf("its subnet of before is on docker0: %v, %v, %v", l, err, log.With("WARN"))
	}
	if l, log, err := joinOnce(t, two, "10.1.2.0-24", ""); err != nil || l.String() != "10.1.3.0-24" || log.Count("WARN") > 0 {
		t.Errorf("its network is another host's: %v, %v", l, err)
	}

	// The same in a flat network, whose prefix has all subnets in it: addresses only.
	check(t, netlink.AddrDel(eth0.link, eth0.addr("10.1.2.11/24")), netlink.AddrAdd(eth0.link, eth0.addr("10.1.2.11/8")),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.link.Attrs().Index, Gw: netip.MustParseAddr("10.1.4.254").AsSlice()}))
	l, log, err = joinOnce(t, two, "", "10.1.2.0/24")
	if err != nil || l.String() != "10.1.3.0-24" || log.Count("INFO", "a part of what the host's own network uses", "used=10.0.0.0/8") != 1 {
		t.Errorf("in a flat network: %v, %v, %v", l, err, log.With("INFO"))
	}
	if _, _, err := joinOnce(t, strings.ReplaceAll(two, "10.1.3.0", "10.1.4.0"), "10.1.3.0-24", ""); !errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), "uses, 10.1.2.11/32, 10.1.4.254/32 (") {
		t.Errorf("its own and its router's address: %v", err)
	}
}

// TestJoinKeepsOwnLease: a lease that this host has is kept, although its own network
// overlaps it.
func TestJoinKeepsOwnLease(t *testing.T) {
	if !alone(t) {
		return
	}
	newCorporate(t)
	l, log, err := joinOnce(t, `"Network": "10.0.0.0/8", "SubnetLen": 24`, "10.1.2.0-24 10.1.2.11", "")
	if err != nil || l.String() != "10.1.2.0-24" || log.Count("WARN", "lease overlaps", "10.1.2.0/24", "SubnetMin and SubnetMax") != 1 {
		t.Errorf("got %v, %v, %v", l, err, log.With("WARN"))
	}
}
