package wireguard

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// TestAttrs has the bytes that flannel writes.
func TestAttrs(t *testing.T) {
	v4 := lease.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}
	v6 := lease.Range{Prefix: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64}
	key := wgtypes.Key(secret([]byte("0123456789abcdef0123456789abcdef")))
	const begin = `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"wireguard",`
	data := func(port string) string {
		return `{"PublicKey":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=","Port":` + port + `}`
	}
	for _, c := range []struct {
		n    lease.Network
		mode mode
		want string
	}{
		{lease.Network{IPv4: v4}, separate, begin + `"BackendData":` + data("51820") + `}`},
		{lease.Network{IPv4: v4, IPv6: v6}, separate, begin + `"BackendData":` + data("51820") + `,"BackendV6Data":` + data("51821") + `}`},
		{lease.Network{IPv4: v4, IPv6: v6}, auto, begin + `"BackendData":` + data("51820") + `,"BackendV6Data":` + data("51820") + `}`},
		{lease.Network{IPv6: v6}, separate, begin + `"BackendV6Data":` + data("51821") + `}`},
	} {
		a, err := attrs(c.n, config{Mode: c.mode, Port: 51820, PortV6: 51821}, key)
		if err != nil {
			t.Fatal(err)
		}
		a.PublicIP = netip.MustParseAddr("192.0.2.1")
		got, err := json.Marshal(a)
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %v\nwant %s", got, err, c.want)
		}
	}
}

// TestPort: the peer's own port counts, but for the one that flannel writes of a device
// that is not there.
func TestPort(t *testing.T) {
	with := func(v4, v6 string) lease.Lease {
		data := func(port string) string {
			if port == "" {
				return ""
			}
			return `{"PublicKey":"x","Port":` + port + `}`
		}
		return withData(data(v4), data(v6))
	}
	for _, c := range []struct {
		m    mode
		l    lease.Lease
		v6   bool
		want uint16
	}{
		{separate, with("51900", "51901"), false, 51900},
		{separate, with("51900", "51901"), true, 51901},
		{separate, with("", "51901"), true, 51901},
		{separate, withData(`{"PublicKey":"x"}`, ""), false, 7},
		{separate, with("0", "0"), true, 7},
		{separate, with("70000", ""), false, 7},
		{auto, with("51900", "51821"), false, 51900},
		{ipv6, with("51900", "51821"), true, 51900},
		{ipv6, with("", "51821"), true, 7},
	} {
		if got := port(c.m, c.l, c.v6, 7); got != c.want {
			t.Errorf("%v %s %s: %d, want %d", c.m, c.l.Attrs.BackendData, c.l.Attrs.BackendV6Data, got, c.want)
		}
	}
}

func withData(v4, v6 string) lease.Lease {
	l := lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.1.2.0/24")}}
	l.Attrs = lease.Attrs{BackendType: "wireguard", PublicIP: netip.MustParseAddr("192.0.2.2")}
	if v4 != "" {
		l.Attrs.BackendData = json.RawMessage(v4)
	}
	if v6 != "" {
		l.Attrs.BackendV6Data = json.RawMessage(v6)
	}
	return l
}

func TestPublicKey(t *testing.T) {
	one, two := wgtypes.Key{1}, wgtypes.Key{2}
	d := func(k wgtypes.Key) string { return `{"publickey":"` + k.String() + `","Port":1}` }
	for _, c := range []struct {
		v4, v6 string
		six    bool
		want   wgtypes.Key
		why    string
	}{
		{d(one), "", false, one, ""},
		{d(one), "", true, one, ""},
		{"", d(two), false, two, ""},
		{"", d(two), true, two, ""},
		{d(one), d(two), false, one, ""},
		{d(one), d(two), true, two, ""},
		{"", "", false, wgtypes.Key{}, "no BackendData"},
		{`{}`, "", false, wgtypes.Key{}, `PublicKey ""`},
		{`{"VNI":1,"VtepMAC":"x"}`, "", false, wgtypes.Key{}, `PublicKey ""`},
		{`{"PublicKey":"AAAA"}`, "", false, wgtypes.Key{}, "32 bytes"},
		{`{"PublicKey":"?"}`, "", false, wgtypes.Key{}, "32 bytes"},
		{d(wgtypes.Key{}), "", false, wgtypes.Key{}, "no WireGuard key"},
		{`{"PublicKey":5}`, "", false, wgtypes.Key{}, "flannel's wireguard backend"},
		{`[]`, "", false, wgtypes.Key{}, "flannel's wireguard backend"},
	} {
		got, why := publicKey(withData(c.v4, c.v6), c.six)
		if got != c.want || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s, %s, IPv6 %v: %v, %q, want %v, %q", c.v4, c.v6, c.six, got, why, c.want, c.why)
		}
	}
}

// TestPublicKeyOfAnyLength has no more of a lease in messages than helps.
func TestPublicKeyOfAnyLength(t *testing.T) {
	long := strings.Repeat("7", 100000)
	for _, raw := range []string{`{"PublicKey":"` + long + `"}`, `{"PublicKey":` + long + `}`, long, `"` + long} {
		if _, why := publicKey(withData(raw, ""), false); why == "" || len(why) > 300 {
			t.Errorf("%d bytes: %.400s", len(why), why)
		}
	}
}

func TestEndpoint(t *testing.T) {
	a := netip.MustParseAddr
	self := wgtypes.Key{9}
	public4, private4, public6, private6 := a("203.0.113.2"), a("10.99.0.2"), a("2001:db8::2"), a("fd99::2")
	sub4, sub6 := netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:1::/64")
	both := backend.Host{Public4: a("192.0.2.1"), Public6: a("2001:db8::1")}
	for _, c := range []struct {
		m      mode
		host   backend.Host
		v4, v6 netip.Addr
		subnet netip.Prefix
		want   netip.Addr
		why    string
	}{
		{separate, both, public4, public6, sub4, public4, ""},
		{separate, both, public4, public6, sub6, public6, ""},
		{separate, both, public4, netip.Addr{}, sub6, netip.Addr{}, "no public IPv6 address"},
		{ipv4, both, public4, public6, sub6, public4, ""},
		{ipv6, both, public4, public6, sub4, public6, ""},
		{ipv6, both, public4, netip.Addr{}, sub4, netip.Addr{}, "no public IPv6 address, which Mode ipv6 needs"},
		{auto, both, public4, public6, sub6, public4, ""},
		{auto, both, private4, public6, sub4, public6, ""},
		{auto, both, private4, private6, sub4, private4, ""},
		{auto, backend.Host{Public4: a("10.99.0.1"), Public6: a("fd99::1")}, private4, public6, sub4, private4, ""},
		{auto, both, private4, netip.Addr{}, sub4, private4, ""},
		{auto, both, netip.Addr{}, private6, sub4, private6, ""},
		{auto, backend.Host{Public6: a("fd99::1")}, private4, private6, sub4, private6, ""},
		{auto, backend.Host{Public4: a("10.99.0.1")}, private4, public6, sub4, private4, ""},
		{auto, both, netip.Addr{}, netip.Addr{}, sub4, netip.Addr{}, "no public IPv4 address"},
		{auto, both, a("192.0.2.1"), netip.Addr{}, sub4, a("192.0.2.1"), "this host's own"},
	} {
		l := withData(`{"PublicKey":"`+wgtypes.Key{1}.String()+`"}`, "")
		l.Subnet6 = sub6
		l.Attrs.PublicIP, l.Attrs.PublicIPv6 = c.v4, c.v6
		s := kernelbackend.Situation{Host: c.host, Self: peerset.Self{Addrs: []netip.Addr{both.Public4}}}
		got, why := endpoint(c.m, s, self, l, c.subnet)
		if got != c.want || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s, %v and %v for %v: %v, %q, want %v, %q", c.m, c.v4, c.v6, c.subnet, got, why, c.want, c.why)
		}
	}
	l := withData(`{"PublicKey":"`+self.String()+`"}`, "")
	if _, why := endpoint(separate, kernelbackend.Situation{}, self, l, sub4); !strings.Contains(why, "cloned") {
		t.Errorf("a peer with this host's own key: %q", why)
	}
}

func TestDistinct(t *testing.T) {
	withV6 := func(l lease.Lease, key byte) lease.Lease {
		l.Attrs.BackendV6Data = json.RawMessage(`{"PublicKey":"` + wgtypes.Key{key}.String() + `"}`)
		return l
	}
	mk := func(subnet, at string, key byte, rev uint64) lease.Lease {
		l := withData(`{"PublicKey":"`+wgtypes.Key{key}.String()+`"}`, "")
		l.Subnet, l.Attrs.PublicIP, l.Revision = netip.MustParsePrefix(subnet), netip.MustParseAddr(at), rev
		return l
	}
	other := mk("10.1.9.0/24", "192.0.2.9", 1, 99)
	other.Attrs.BackendType = "vxlan"
	bad := mk("10.1.8.0/24", "192.0.2.8", 0, 1)
	for _, c := range []struct {
		name  string
		in    []lease.Lease
		kept  string
		notes int
		bad   bool
	}{
		{"all different", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 1), mk("10.1.2.0/24", "192.0.2.2", 2, 2)}, "10.1.1.0-24 10.1.2.0-24", 0, false},
		{"others are left alone", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 1), other, bad, bad}, "10.1.1.0-24 10.1.9.0-24 10.1.8.0-24 10.1.8.0-24", 0, false},
		{"a clone", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 5), mk("10.1.2.0/24", "192.0.2.2", 1, 4)}, "10.1.1.0-24", 1, true},
		{"an old lease", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 5), mk("10.1.2.0/24", "192.0.2.1", 1, 6)}, "10.1.2.0-24", 1, false},
		{"three", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 5), mk("10.1.2.0/24", "192.0.2.2", 1, 7), mk("10.1.3.0/24", "192.0.2.3", 1, 6)}, "10.1.2.0-24", 2, true},
		{"half a clone", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 5), withV6(mk("10.1.2.0/24", "192.0.2.2", 1, 6), 2)}, "10.1.2.0-24", 1, true},
		{"the other half", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 5), withV6(mk("10.1.2.0/24", "192.0.2.2", 2, 4), 1)}, "10.1.1.0-24", 1, true},
		{"no revisions", []lease.Lease{mk("10.1.1.0/24", "192.0.2.1", 1, 0), mk("10.1.2.0/24", "192.0.2.2", 1, 0)}, "10.1.2.0-24", 1, true},
	} {
		for range 2 { // in both orders
			kept, notes := distinct(c.in)
			var got []string
			for _, l := range kept {
				got = append(got, l.Key.String())
			}
			want := strings.Fields(c.kept)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || len(notes) != c.notes || len(notes) > 0 && notes[0].Bad != c.bad {
				t.Errorf("%s: kept %v, notes %v, want %v and %d, bad %v", c.name, got, notes, want, c.notes, c.bad)
			}
			slices.Reverse(c.in)
		}
	}
}

// FuzzPublicKey has no lease do more than be left out.
func FuzzPublicKey(f *testing.F) {
	f.Add([]byte(`{"PublicKey":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`))
	f.Add([]byte(`{"publickey":null}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l := withData(string(raw), "")
		key, why := publicKey(l, false)
		if (why == "") == (key == wgtypes.Key{}) {
			t.Fatalf("%s: key %v, why %q", raw, key, why)
		}
		if why == "" {
			back, err := json.Marshal(data{PublicKey: key.String()})
			if err != nil {
				t.Fatal(err)
			}
			if again, why := publicKey(withData("", string(back)), true); again != key || why != "" {
				t.Fatalf("%s became %s: %v, %s", raw, back, again, why)
			}
		}
	})
}

// FuzzConfig has no configuration that is accepted go beyond the limits.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"MTU":1400,"Mode":"auto","PSK":"` + goodPSK + `","ListenPort":7,"PersistentKeepaliveInterval":25}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseConfig(raw)
		if err == nil && (c.Port < 1 || c.Port > 65535 || c.PortV6 < 1 || c.PortV6 > 65535 || c.MTU < 0 || c.Keepalive < 0 || !slices.Contains([]mode{separate, auto, ipv4, ipv6}, c.Mode)) {
			t.Fatalf("%s: %+v", raw, c)
		}
	})
}
