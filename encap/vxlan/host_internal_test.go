package vxlan

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/lease"
)

// TestPrepare: what the lease says, by family; and who can't be a member, and why.
func TestPrepare(t *testing.T) {
	both := backend.Host{Link: "eth0", MTU: 1500,
		Addr4: netip.MustParseAddr("192.0.2.1"), Public4: netip.MustParseAddr("192.0.2.1"),
		Addr6: netip.MustParseAddr("2001:db8::1"), Public6: netip.MustParseAddr("2001:db8::1")}
	with := func(change func(*backend.Host)) backend.Host { h := both; change(&h); return h }
	const (
		data4  = `{"VNI":1,"VtepMAC":"02:00:00:00:00:04"}`
		data6  = `{"VNI":1,"VtepMAC":"02:00:00:00:00:06"}`
		net4   = `"Network":"10.244.0.0/16"`
		only6  = `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"`
		net46  = net4 + `,"EnableIPv6":true,"IPv6Network":"fd00::/48"`
		mtu400 = `,"Backend":{"Type":"vxlan","MTU":400}`
	)
	for name, tt := range map[string]struct {
		net        string
		host       backend.Host
		v4, v6     string
		mtu        int
		want, more string // of the error
	}{
		"IPv4":                 {net: net4, host: both, v4: data4, mtu: 1450},
		"IPv6":                 {net: only6, host: both, v6: data6, mtu: 1430},
		"both":                 {net: net46, host: both, v4: data4, v6: data6, mtu: 1430},
		"no IPv6":              {net: net46, host: with(func(h *backend.Host) { h.Addr6 = netip.Addr{} }), want: "eth0 has no IPv6 address", more: "choose another interface"},
		"no IPv4":              {net: net4, host: with(func(h *backend.Host) { h.Addr4 = netip.Addr{} }), want: "eth0 has no IPv4 address", more: "IPv4 range"},
		"not public":           {net: net4, host: with(func(h *backend.Host) { h.Public4 = netip.Addr{} }), want: "no public IPv4 address", more: "set one"},
		"unused IPv4":          {net: only6, host: with(func(h *backend.Host) { h.Addr4, h.Public4 = netip.Addr{}, netip.Addr{} }), v6: data6, mtu: 1430},
		"jumbo":                {net: net4, host: with(func(h *backend.Host) { h.MTU = 9001 }), v4: data4, mtu: 8951},
		"configured":           {net: net4 + mtu400, host: both, v4: data4, mtu: 350},
		"for more":             {net: net4 + `,"Backend":{"Type":"vxlan","MTU":9000}`, host: both, v4: data4, mtu: 1450},
		"too small":            {net: net46, host: with(func(h *backend.Host) { h.MTU = 1349 }), want: "the MTU of eth0 is 1349", more: "leaves 1279"},
		"just enough":          {net: net46, host: with(func(h *backend.Host) { h.MTU = 1350 }), v4: data4, v6: data6, mtu: 1280},
		"configured too small": {net: net46 + mtu400, host: both, want: "Backend.MTU of the network's configuration is 400", more: "at least 1280"},
		"no MTU":               {net: net4, host: with(func(h *backend.Host) { h.MTU = 0 }), want: "the MTU of eth0 is 0", more: "at least 68"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := lease.ParseNetwork([]byte("{" + tt.net + "}"))
			if err != nil {
				t.Fatal(err)
			}
			b, err := New(Options{})(backend.Params{Network: n})
			if err != nil {
				t.Fatal(err)
			}
			o := b.(*overlay)
			o.macs = [2]netstate.MAC{{2, 0, 0, 0, 0, 4}, {2, 0, 0, 0, 0, 6}}
			attrs, err := b.Prepare(context.Background(), tt.host)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.more) {
					t.Fatalf("Prepare: %v; want %q, %q", err, tt.want, tt.more)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(attrs.BackendData) != tt.v4 || string(attrs.BackendV6Data) != tt.v6 || attrs.BackendType != "vxlan" {
				t.Errorf("Prepare = %s, %s, %s", attrs.BackendType, attrs.BackendData, attrs.BackendV6Data)
			}
			own := lease.Lease{Attrs: attrs}
			if tt.v4 != "" {
				own.Subnet = netip.MustParsePrefix("10.244.1.0/24")
			}
			if tt.v6 != "" {
				own.Subnet6 = netip.MustParsePrefix("fd00:0:0:1::/64")
			}
			if mtu, err := o.mtu(tt.host, own); err != nil || mtu != tt.mtu {
				t.Errorf("MTU %d, %v; want %d", mtu, err, tt.mtu)
			}
		})
	}
}

// TestDerivedMAC: the same for the same, another for everything else, and always one
// that a device can have.
func TestDerivedMAC(t *testing.T) {
	at := netip.MustParseAddr("192.0.2.1")
	first := derivedMAC("m", at, 1, v4)
	if again := derivedMAC("m", at, 1, v4); again != first {
		t.Errorf("%v, then %v", first, again)
	}
	seen := map[netstate.MAC]bool{first: true}
	for _, other := range []netstate.MAC{
		derivedMAC("n", at, 1, v4), derivedMAC("m", at.Next(), 1, v4), derivedMAC("m", at, 2, v4), derivedMAC("m", at, 1, v6), derivedMAC("", netip.Addr{}, 1, v4),
	} {
		if seen[other] {
			t.Errorf("%v twice", other)
		}
		seen[other] = true
	}
	for vni := range 1000 {
		if mac := derivedMAC("m", at, vni, v4); mac[0]&3 != 2 {
			t.Fatalf("%v is not a locally administered address of one host", mac)
		}
	}
}
