package hostgw

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

// dualStack is a network with both families.
func dualStack(part string) lease.Network {
	return lease.Network{
		IPv4:        lease.Range{Prefix: prefix("10.5.0.0/16"), SubnetLen: 24},
		IPv6:        lease.Range{Prefix: prefix("fd00:5::/48"), SubnetLen: 64},
		BackendType: "host-gw", Backend: json.RawMessage(part),
	}
}

func TestPrepare(t *testing.T) {
	good := backend.Host{Link: "eth0", MTU: 1500, Addr4: ip("192.0.2.1"), Addr6: ip("2001:db8::1"), Public4: ip("192.0.2.1"), Public6: ip("2001:db8::1")}
	v4 := dualStack(`{"Type":"host-gw"}`)
	v4.IPv6 = lease.Range{}
	for name, test := range map[string]struct {
		network lease.Network
		change  func(*backend.Host)
		want    []string // parts of the error; none if there is none
	}{
		"good":                    {dualStack(`{"Type":"host-gw","Port":"what flannel ignores"}`), func(*backend.Host) {}, nil},
		"no configuration":        {dualStack(""), func(*backend.Host) {}, nil},
		"NAT of IPv4":             {dualStack(""), func(h *backend.Host) { h.Public4 = ip("203.0.113.7") }, []string{"203.0.113.7", "192.0.2.1", "translation", "vxlan"}},
		"NAT of IPv6":             {dualStack(""), func(h *backend.Host) { h.Public6 = ip("2001:db8:7::7") }, []string{"2001:db8:7::7", "2001:db8::1", "translation"}},
		"NAT of what is not used": {v4, func(h *backend.Host) { h.Public6 = ip("2001:db8:7::7") }, nil},
		"no IPv6":                 {dualStack(""), func(h *backend.Host) { h.Addr6, h.Public6 = netip.Addr{}, netip.Addr{} }, []string{"eth0 has no IPv6 address", "interface"}},
		"no IPv6 where unused":    {v4, func(h *backend.Host) { h.Addr6, h.Public6 = netip.Addr{}, netip.Addr{} }, nil},
		"no IPv4":                 {v4, func(h *backend.Host) { h.Addr4, h.Public4 = netip.Addr{}, netip.Addr{} }, []string{"eth0 has no IPv4 address"}},
		"no MTU":                  {v4, func(h *backend.Host) { h.MTU = 0 }, []string{"MTU of eth0 is 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := New()(backend.Params{Network: test.network})
			if err != nil {
				t.Fatal(err)
			}
			host := good
			test.change(&host)
			attrs, err := b.Prepare(t.Context(), host)
			if len(test.want) == 0 {
				attrs.PublicIP = host.Public4
				value, jsonErr := json.Marshal(attrs)
				if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}`; err != nil || jsonErr != nil || string(value) != want {
					t.Errorf("Prepare = %s, %v, %v; want %s", value, err, jsonErr, want)
				}
				return
			}
			own := lease.Lease{}
			if test.network.IPv4.Enabled() {
				own.Subnet = prefix("10.5.1.0/24")
			}
			if test.network.IPv6.Enabled() {
				own.Subnet6 = prefix("fd00:5:0:1::/64")
			}
			_, startErr := b.Start(t.Context(), host, own)
			for _, err := range []error{err, startErr} {
				if err == nil || !strings.HasPrefix(err.Error(), "host-gw: ") {
					t.Fatalf("the error is %v", err)
				}
				for _, part := range test.want {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q is not in %q", part, err)
					}
				}
			}
			if err := b.Close(false); err != nil {
				t.Error(err)
			}
		})
	}
}

// fakeKernel answers from a table; what is not in it is unreachable.
type fakeKernel map[string]netstate.Hop

func (k fakeKernel) Hop(to netip.Addr) (netstate.Hop, error) {
	if h, ok := k[to.String()]; ok {
		return h, nil
	}
	return netstate.Hop{}, errors.New("test: unreachable")
}

// peer is a host n with both families, at the addresses.
func peer(n int, at, at6 string) lease.Lease {
	l := lease.Lease{Attrs: lease.Attrs{BackendType: "host-gw"}}
	l.Subnet = prefix(fmt.Sprintf("10.5.%d.0/24", n))
	if at != "" {
		l.Attrs.PublicIP = ip(at)
	}
	if at6 != "" {
		l.Subnet6 = prefix(fmt.Sprintf("fd00:5:0:%d::/64", n))
		l.Attrs.PublicIPv6 = ip(at6)
	}
	return l
}

func TestPlan(t *testing.T) {
	kernel := fakeKernel{
		"192.0.2.2": {Link: "eth0"}, "2001:db8::2": {Link: "eth0"},
		"198.51.100.3": {Link: "eth0", Gw: ip("192.0.2.254")}, "2001:db8::3": {Link: "eth0"},
		"192.0.2.4": {Link: "eth1"},
		"192.0.2.5": {Link: "lo", Local: true},
		"192.0.2.6": {Link: "eth0"}, "2001:db8:6::6": {Link: "eth1", Gw: ip("fe80::1")},
	}
	leases := []lease.Lease{
		peer(2, "192.0.2.2", "2001:db8::2"),
		peer(3, "198.51.100.3", "2001:db8::3"),
		peer(4, "192.0.2.4", ""),
		peer(5, "192.0.2.5", ""),
		peer(6, "192.0.2.6", "2001:db8:6::6"),
		peer(7, "192.0.2.7", ""),
		peer(8, "192.0.2.1", ""), // our own address
		peer(9, "", ""),
	}
	s := kernelbackend.Situation{
		Host: backend.Host{Link: "eth0", MTU: 1500},
		Self: peerset.Self{Key: lease.Key{Subnet: prefix("10.5.1.0/24")}, Addrs: []netip.Addr{ip("192.0.2.1")}},
	}
	chooser := peerset.Chooser{Backend: name, Types: []string{name}, Network: dualStack("")}
	var notes []peerset.Note
	s.Peers, notes = chooser.Choose(s.Self, leases, func(l lease.Lease, p netip.Prefix) (netip.Addr, string) { return end(s, l, p) })
	state, err := plan(s, kernel)
	var routes []string
	for _, r := range state.Routes {
		routes = append(routes, r.String())
	}
	want := []string{
		"route to 10.5.2.0/24 via 192.0.2.2 through eth0",
		"route to fd00:5:0:2::/64 via 2001:db8::2 through eth0",
		"route to fd00:5:0:3::/64 via 2001:db8::3 through eth0",
		"route to 10.5.4.0/24 via 192.0.2.4 through eth0", // the kernel decides
		"route to 10.5.6.0/24 via 192.0.2.6 through eth0",
		"route to 10.5.7.0/24 via 192.0.2.7 through eth0", // the kernel decides
	}
	if d := cmp.Diff(want, routes); d != "" {
		t.Error("the routes differ:", d)
	}
	text := fmt.Sprint(err)
	for _, part := range []string{
		"198.51.100.3 is reached through the router 192.0.2.254 on eth0", "vxlan",
		"192.0.2.5 is an address of this host",
		"2001:db8:6::6 is reached through the router fe80::1 on eth1",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in the error %q", part, text)
		}
	}
	if strings.Count(text, "\n") != 2 || len(notes) != 2 {
		t.Errorf("the error is %q, the notes %v", text, notes)
	}
	for _, r := range state.Routes {
		if doubt := strings.Contains(r.Peer, "through eth1"); doubt != (r.Gw == ip("192.0.2.4")) {
			t.Errorf("%v is for %q", r, r.Peer)
		}
	}
}
