package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// nftNode is in a network with EnableNFTables.
type nftNode struct{ *fakeNode }

func (n nftNode) Network() lease.Network {
	nw := n.fakeNode.Network()
	nw.NFTables = true
	return nw
}

func TestRulesAskedFor(t *testing.T) {
	n := newFakeNode()
	base := masq.Config{
		Network4: netip.MustParsePrefix("10.5.0.0/16"), Subnet4: netip.MustParsePrefix("10.5.34.0/24"),
		Forward: true, Resync: 5 * time.Second,
	}
	for _, c := range []struct {
		args   []string
		node   node
		change func(*masq.Config)
	}{
		{nil, n, func(*masq.Config) {}},
		{[]string{"-ip-masq"}, n, func(c *masq.Config) { c.Masquerade = true }},
		{[]string{"-ip-masq", "-ip-masq-fully-random-disable"}, n, func(c *masq.Config) { c.Masquerade, c.NoRandom = true, true }},
		{[]string{"-iptables-forward-rules=false"}, n, func(c *masq.Config) { c.Forward = false }},
		{[]string{"-iptables-resync=60"}, n, func(c *masq.Config) { c.Resync = time.Minute }},
		{nil, nftNode{n}, func(c *masq.Config) { c.Tool = masq.NFTables }},
		{[]string{"-etcd-prefix=coreos.com/network/"}, n, func(*masq.Config) {}},
		{[]string{"-etcd-prefix=/second/network"}, n, func(c *masq.Config) { c.Name = rulesName("/second/network") }},
	} {
		want := base
		c.change(&want)
		got := masqConfig(parse(t, nil, c.args...), c.node, nil)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.args, diff)
		}
		if _, err := masq.New(got); err != nil {
			t.Errorf("%v: %v", c.args, err)
		}
	}
	if a, b := rulesName("/second/network"), rulesName("/third/network"); a == b || a == "" {
		t.Errorf("two networks have the rules %q and %q", a, b)
	}
}
