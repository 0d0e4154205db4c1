package ipip

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

func network(part string) lease.Network {
	return lease.Network{IPv4: lease.Range{Prefix: prefix("10.5.0.0/16"), SubnetLen: 24}, BackendType: "ipip", Backend: json.RawMessage(part)}
}

var someHost = backend.Host{Link: "eth0", MTU: 1500, Addr4: ip("192.0.2.1"), Public4: ip("192.0.2.1")}

func TestNew(t *testing.T) {
	both := network("")
	both.IPv6 = lease.Range{Prefix: prefix("fd00:5::/48"), SubnetLen: 64}
	six := both
	six.IPv4 = lease.Range{}
	for name, test := range map[string]struct {
		network lease.Network
		direct  bool
		want    string // part of the error
	}{
		"nothing":      {network(""), false, ""},
		"usual":        {network(`{"Type":"ipip"}`), false, ""},
		"direct":       {network(`{"Type":"ipip","DirectRouting":true}`), true, ""},
		"another case": {network(`{"Type":"ipip","directrouting":true,"VNI":"what flannel ignores"}`), true, ""},
		"null":         {network(`{"Type":"ipip","DirectRouting":null}`), false, ""},
		"wrong type":   {network(`{"Type":"ipip","DirectRouting":"yes"}`), false, "DirectRouting"},
		"no object":    {network(`[]`), false, "want an object"},
		"IPv6, too":    {both, false, "EnableIPv6"},
		"IPv6 only":    {six, false, "IPv4 only"},
		"neither":      {lease.Network{}, false, "no IPv4 range"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := New(Options{})(backend.Params{Network: test.network})
			if test.want != "" {
				if err == nil || !strings.HasPrefix(err.Error(), "ipip: ") || !strings.Contains(err.Error(), test.want) {
					t.Errorf("the error is %v, want %q", err, test.want)
				}
				return
			}
			if err != nil || b.(*overlay).direct != test.direct {
				t.Fatalf("%+v, %v", b, err)
			}
			if err := b.Close(false); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPrepare(t *testing.T) {
	var log testlog.Messages
	b, err := New(Options{})(backend.Params{Network: network(""), Log: slog.New(&log)})
	if err != nil {
		t.Fatal(err)
	}
	attrs, err := b.Prepare(t.Context(), someHost)
	attrs.PublicIP = someHost.Public4
	value, jsonErr := json.Marshal(attrs)
	if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}`; err != nil || jsonErr != nil || string(value) != want {
		t.Errorf("Prepare = %s, %v, %v; want %s", value, err, jsonErr, want)
	}
	if n := log.Count(); n != 0 {
		t.Errorf("%d log messages: %q", n, log.With())
	}
	nat := someHost
	nat.Public4 = ip("203.0.113.7")
	if _, err := b.Prepare(t.Context(), nat); err != nil || log.Count("one to one", "203.0.113.7") != 1 {
		t.Errorf("behind translation: %v, log %q", err, log.With())
	}
	for _, bad := range []func(*backend.Host){
		func(h *backend.Host) { h.Addr4 = netip.Addr{} },
		func(h *backend.Host) { h.MTU = 80 },
	} {
		h := someHost
		bad(&h)
		_, err1 := b.Prepare(t.Context(), h)
		_, err2 := b.Start(t.Context(), h, peer(1, "192.0.2.1"))
		for _, err := range []error{err1, err2} {
			if err == nil || !strings.HasPrefix(err.Error(), "ipip: ") || !strings.Contains(err.Error(), "eth0") {
				t.Errorf("%+v: the error is %v", h, err)
			}
		}
	}
}

// peer is host n.
func peer(n int, at string) lease.Lease {
	l := lease.Lease{Attrs: lease.Attrs{BackendType: "ipip"}}
	l.Subnet = prefix(fmt.Sprintf("10.5.%d.0/24", n))
	if at != "" {
		l.Attrs.PublicIP = ip(at)
	}
	return l
}

// situation has peers as far as they can be served.
func situation(t *testing.T, leases ...lease.Lease) (s kernelbackend.Situation, notes []peerset.Note) {
	t.Helper()
	s = kernelbackend.Situation{Host: someHost, Own: peer(1, "192.0.2.1")}
	s.Self = peerset.Self{Key: s.Own.Key, Addrs: []netip.Addr{someHost.Addr4}}
	chooser := peerset.Chooser{Backend: name, Types: []string{name}, Network: network("")}
	s.Peers, notes = chooser.Choose(s.Self, leases, func(l lease.Lease, p netip.Prefix) (netip.Addr, string) { return end(s, l, p) })
	return s, notes
}

// fakeKernel answers from a table; what is not in it is unreachable.
type fakeKernel map[string]netstate.Hop

func (k fakeKernel) Hop(to netip.Addr) (netstate.Hop, error) {
	if h, ok := k[to.String()]; ok {
		return h, nil
	}
	return netstate.Hop{}, errors.New("test: unreachable")
}

func TestPlan(t *testing.T) {
	kernel := fakeKernel{
		"192.0.2.2":    {Link: "eth0"},
		"198.51.100.3": {Link: "eth0", Gw: ip("192.0.2.254")},
		"192.0.2.4":    {Link: "eth1"},
		"192.0.2.6":    {Link: "lo", Local: true},
	}
	s, notes := situation(t, peer(2, "192.0.2.2"), peer(3, "198.51.100.3"), peer(4, "192.0.2.4"), peer(5, "192.0.2.5"), peer(6, "192.0.2.6"),
		peer(7, "192.0.2.1"), peer(8, ""))
	if len(notes) != 2 {
		t.Errorf("the notes are %v", notes)
	}
	for _, direct := range []bool{false, true} {
		made, err := New(Options{})(backend.Params{Network: network(fmt.Sprintf(`{"DirectRouting":%v}`, direct))})
		if err != nil {
			t.Fatal(err)
		}
		b := made.(*overlay)
		if mtu, err := mtu(s.Host, s.Own); err != nil || mtu != 1480 {
			t.Errorf("MTU %d, %v", mtu, err)
		}
		state, err := b.plan(s, kernel)
		if err != nil {
			t.Error(err)
		}
		var have []string
		for _, r := range state.Routes {
			if !r.OnLink {
				t.Errorf("%v is not on link", r)
			}
			have = append(have, r.String())
		}
		want := []string{
			"route to 10.5.2.0/24 via 192.0.2.2 through flannel.ipip",
			"route to 10.5.3.0/24 via 198.51.100.3 through flannel.ipip",
			"route to 10.5.4.0/24 via 192.0.2.4 through flannel.ipip",
			"route to 10.5.5.0/24 via 192.0.2.5 through flannel.ipip",
			"route to 10.5.6.0/24 via 192.0.2.6 through flannel.ipip",
		}
		if direct {
			want[0] = "route to 10.5.2.0/24 via 192.0.2.2 through eth0"
		}
		if d := cmp.Diff(want, have); d != "" {
			t.Errorf("DirectRouting %v: the routes differ: %s", direct, d)
		}
		if len(state.Addrs) != 1 || state.Addrs[0].String() != "address 10.5.1.0/32 of flannel.ipip" {
			t.Errorf("the addresses are %v", state.Addrs)
		}
		if len(state.Links) != 1 || state.Links[0].MTU != 1480 || state.Links[0].Module != "ipip" || state.Links[0].Option != "CONFIG_NET_IPIP" {
			t.Errorf("the links are %+v", state.Links)
		}
	}
}

func TestUnfit(t *testing.T) {
	local := ip("192.0.2.1")
	link := func(change func(*netlink.Iptun)) netlink.Link {
		d := newDevice(local)
		d.Remote = net.IPv4zero // as the kernel says it
		if change != nil {
			change(d)
		}
		return d
	}
	for name, test := range map[string]struct {
		link netlink.Link
		want string // part of the reason
	}{
		"ours":      {link(nil), ""},
		"flannel's": {link(func(d *netlink.Iptun) { d.Proto = 0 }), ""},
		"by hand":   {link(func(d *netlink.Iptun) { d.Ttl, d.PMtuDisc, d.Tos = 64, 1, 1 }), ""},
		"moved":     {link(func(d *netlink.Iptun) { d.Local = net.IPv4(192, 0, 2, 9) }), "local address is 192.0.2.9, and must be 192.0.2.1"},
		"any":       {link(func(d *netlink.Iptun) { d.Local = net.IPv4zero }), "local address is 0.0.0.0"},
		"to one":    {link(func(d *netlink.Iptun) { d.Remote = net.IPv4(192, 0, 2, 9) }), "192.0.2.9 only"},
		"external":  {&netlink.Iptun{FlowBased: true}, "external"},
		"mpls":      {link(func(d *netlink.Iptun) { d.Proto = 137 }), "137"},
		"fou":       {link(func(d *netlink.Iptun) { d.EncapType = 1 }), "fou"},
		"foreign":   {&netlink.Dummy{}, "type dummy"},
	} {
		if why := unfit(test.link, local); (why == "") != (test.want == "") || !strings.Contains(why, test.want) {
			t.Errorf("%s: %q, want %q", name, why, test.want)
		}
	}
}

func TestFilterOfPeers(t *testing.T) {
	other := peer(9, "192.0.2.9")
	other.Subnet = prefix("10.5.64.0/20")
	s, _ := situation(t, peer(2, "192.0.2.2"), peer(3, "198.51.100.3"), other)
	f := newFilter(s)
	tunnel := func(name, remote string, flags uint32) netlink.Link {
		return &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: name, RawFlags: flags}, Remote: net.ParseIP(remote).To4()}
	}
	f.tunnels([]netlink.Link{
		tunnel("tun1", "198.51.100.99", 1), tunnel("tun2", "198.51.100.98", 0), tunnel("tunl0", "0.0.0.0", 1), tunnel(device, "198.51.100.97", 1),
		&netlink.Sittun{LinkAttrs: netlink.LinkAttrs{Name: "sit1", RawFlags: 1}, Remote: net.ParseIP("198.51.100.96")}, &netlink.Dummy{},
	})
	want := map[string][]string{
		"others":  {"198.51.100.96", "198.51.100.99"},
		"peers24": {"192.0.2.2 10.5.2.0", "198.51.100.3 10.5.3.0"},
		"peers20": {"192.0.2.9 10.5.64.0"},
	}
	have := map[string][]string{}
	for name, set := range f.sets() {
		keys, _ := diff(nil, set)
		for _, k := range keys {
			var text []string
			for ; len(k) >= 4; k = k[4:] {
				text = append(text, netip.AddrFrom4([4]byte([]byte(k[:4]))).String())
			}
			have[name] = append(have[name], strings.Join(text, " "))
		}
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Error("the sets differ:", d)
	}
	if d := cmp.Diff([]int{24, 20}, f.lengths()); d != "" {
		t.Error("the lengths differ:", d)
	}
	add, del := diff(elements{"a": true, "b": true}, elements{"b": true, "c": true, "d": true})
	if d := cmp.Diff([][]string{{"c", "d"}, {"a"}}, [][]string{add, del}); d != "" {
		t.Error("diff:", d)
	}
}

func TestDrops(t *testing.T) {
	var d drops
	now := time.Now()
	for i, step := range []struct {
		count uint64
		after time.Duration
		want  uint64
	}{
		{0, 0, 0}, {5, 0, 5}, {9, time.Second, 0}, {12, quiet, 7}, {12, quiet, 0},
		{3, quiet, 3}, // a new table
		{3, quiet, 0},
	} {
		now = now.Add(step.after)
		if n := d.tell(step.count, now); n != step.want {
			t.Errorf("step %d: %d, want %d", i, n, step.want)
		}
	}
}
