package udp

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
	"pgregory.net/rapid"
)

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// peerLease makes a lease of strings: subnets and public addresses of either family.
func peerLease(revision uint64, backendType string, words ...string) lease.Lease {
	l := lease.Lease{Revision: revision, Attrs: lease.Attrs{BackendType: backendType}}
	for _, w := range words {
		switch {
		case strings.Contains(w, "/") && !strings.Contains(w, ":"):
			l.Subnet = prefix(w)
		case strings.Contains(w, "/"):
			l.Subnet6 = prefix(w)
		case !strings.Contains(w, ":"):
			l.Attrs.PublicIP = addr(w)
		default:
			l.Attrs.PublicIPv6 = addr(w)
		}
	}
	return l
}

// newOverlay makes a backend without starting it, and the plan of host 10.244.1.0.
func newOverlay(t testing.TB, families string) (*overlay, plan) {
	t.Helper()
	network := lease.Network{
		IPv4: lease.Range{Prefix: prefix("10.244.0.0/16"), SubnetLen: 24},
		IPv6: lease.Range{Prefix: prefix("fd00:244::/32"), SubnetLen: 64},
	}
	b, err := New(Options{})(backend.Params{Network: network, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	o := b.(*overlay)
	host := backend.Host{Link: "eth0", MTU: 1500}
	own := peerLease(1, "", "10.244.1.0/24", "fd00:244:1::/64")
	if strings.Contains(families, "4") {
		host.Addr4, own.Attrs.PublicIP = addr("192.0.2.1"), addr("192.0.2.1")
	}
	if strings.Contains(families, "6") {
		host.Addr6, own.Attrs.PublicIPv6 = addr("2001:db8::1"), addr("2001:db8::1")
	}
	p, err := newPlan(network, o.port, host, own)
	if err != nil {
		t.Fatal(err)
	}
	return o, p
}

// chooseCase is a set of leases and what is made of it.
type chooseCase struct {
	name     string
	families string // of the underlay here
	leases   []lease.Lease
	peers    string
	mixed    bool
	bad      []string // in errors, in this order
	said     []string // in notes that are no errors
}

func chooseCases() []chooseCase {
	good := peerLease(5, "", "10.244.2.0/24", "192.0.2.2")
	const goodPeer = "192.0.2.2:8285[10.244.2.0/24]"
	return []chooseCase{
		{name: "none", families: "4"},
		{name: "one", families: "4", leases: []lease.Lease{good}, peers: goodPeer},
		{name: "dual", families: "4", leases: []lease.Lease{peerLease(1, "udp", "10.244.2.0/24", "fd00:244:2::/64", "192.0.2.2", "2001:db8::2")},
			peers: "192.0.2.2:8285[10.244.2.0/24 fd00:244:2::/64]"},
		{name: "type in capitals", families: "4", leases: []lease.Lease{peerLease(1, "UDP", "10.244.2.0/24", "192.0.2.2")}, peers: goodPeer},
		{name: "IPv4 is preferred", families: "46", leases: []lease.Lease{peerLease(1, "", "10.244.2.0/24", "192.0.2.2", "2001:db8::2")}, peers: goodPeer},
		{name: "IPv6 where the peer has nothing else", families: "46", leases: []lease.Lease{peerLease(1, "", "10.244.2.0/24", "2001:db8::2"),
			peerLease(1, "", "10.244.3.0/24", "192.0.2.3")}, peers: "[2001:db8::2]:8285[10.244.2.0/24] 192.0.2.3:8285[10.244.3.0/24]", mixed: true},
		{name: "IPv6 where this host has nothing else", families: "6", leases: []lease.Lease{peerLease(1, "", "10.244.2.0/24", "192.0.2.2", "2001:db8::2")},
			peers: "[2001:db8::2]:8285[10.244.2.0/24]"},
		{name: "no common family", families: "4", leases: []lease.Lease{peerLease(1, "", "10.244.3.0/24", "2001:db8::3"), good}, peers: goodPeer,
			bad: []string{"10.244.3.0-24 at 2001:db8::3: left out: it has no public address of a family"}},
		{name: "the other backend", families: "4", leases: []lease.Lease{peerLease(1, "vxlan", "10.244.3.0/24", "192.0.2.3"), good}, peers: goodPeer,
			said: []string{`10.244.3.0-24 at 192.0.2.3 has the backend "vxlan"`}},
		{name: "useless addresses", families: "46", leases: []lease.Lease{
			peerLease(1, "", "10.244.3.0/24", "0.0.0.0"), peerLease(1, "", "10.244.4.0/24", "224.0.0.1"), peerLease(1, "", "10.244.5.0/24", "255.255.255.255"),
			peerLease(1, "", "10.244.6.0/24", "fe80::1"), peerLease(1, "", "10.244.7.0/24", "ff02::1"), peerLease(1, "", "10.244.8.0/24"), good},
			peers: goodPeer, bad: []string{"10.244.3.0-24", "10.244.4.0-24", "10.244.5.0-24", "10.244.6.0-24", "10.244.7.0-24", "10.244.8.0-24"}},
		{name: "mapped address", families: "4", leases: []lease.Lease{{Key: good.Key, Attrs: lease.Attrs{PublicIP: addr("::ffff:192.0.2.2")}}}, peers: goodPeer},
		{name: "ourselves", families: "46", leases: []lease.Lease{peerLease(9, "", "10.244.3.0/24", "192.0.2.1"), peerLease(9, "", "10.244.4.0/24", "2001:db8::1"), good},
			peers: goodPeer, bad: []string{"10.244.3.0-24 at 192.0.2.1: left out: its public address 192.0.2.1 is this host's own", "10.244.4.0-24"}},
		{name: "our subnet", families: "4", leases: []lease.Lease{peerLease(9, "", "10.244.1.0/24", "192.0.2.3"), peerLease(9, "", "10.244.1.128/25", "192.0.2.4"), good},
			peers: goodPeer, bad: []string{"10.244.1.0/24 left out: it is this host's own", "10.244.1.128/25 left out"}},
		{name: "no subnet", families: "4", leases: []lease.Lease{peerLease(9, "", "192.0.2.3"), good}, peers: goodPeer, bad: []string{"no subnet"}},
		{name: "not the network's", families: "4", leases: []lease.Lease{peerLease(9, "", "10.0.0.0/8", "192.0.2.3"), peerLease(9, "", "0.0.0.0/0", "192.0.2.4"),
			peerLease(9, "", "10.245.1.0/24", "fd00:244:9::/64", "192.0.2.5"), good}, peers: "192.0.2.5:8285[fd00:244:9::/64] " + goodPeer,
			bad: []string{"10.0.0.0/8 left out: it is not in the network 10.244.0.0/16", "0.0.0.0/0 left out", "10.245.1.0/24 left out"}},
		{name: "the later lease wins", families: "4", leases: []lease.Lease{peerLease(4, "", "10.244.2.0/24", "fd00:244:3::/64", "192.0.2.3"), good},
			peers: "192.0.2.3:8285[fd00:244:3::/64] " + goodPeer, bad: []string{"10.244.2.0-24&fd00:244:3::-64 at 192.0.2.3: 10.244.2.0/24 left out: it belongs to 192.0.2.2"}},
		{name: "in whatever order", families: "4", leases: []lease.Lease{good, peerLease(4, "", "10.244.2.0/24", "192.0.2.3")},
			peers: goodPeer, bad: []string{"it belongs to 192.0.2.2"}},
		{name: "three of them", families: "4", leases: []lease.Lease{peerLease(4, "", "10.244.2.0/24", "192.0.2.4"), good, peerLease(3, "", "10.244.2.0/24", "192.0.2.3")},
			peers: goodPeer, bad: []string{"at 192.0.2.4: 10.244.2.0/24 left out", "at 192.0.2.3: 10.244.2.0/24 left out"}},
		{name: "without revisions", families: "4", leases: []lease.Lease{peerLease(0, "", "10.244.2.0/24", "192.0.2.9"), peerLease(0, "", "10.244.2.0/24", "192.0.2.3")},
			peers: "192.0.2.9:8285[10.244.2.0/24]", bad: []string{"at 192.0.2.3"}},
		{name: "one host says it twice", families: "4", leases: []lease.Lease{good, peerLease(6, "", "10.244.2.0/24", "fd00:244:2::/64", "192.0.2.2")},
			peers: "192.0.2.2:8285[10.244.2.0/24 fd00:244:2::/64]"},
		{name: "one inside the other", families: "4", leases: []lease.Lease{good, peerLease(6, "", "10.244.2.128/25", "192.0.2.3"), peerLease(6, "", "10.244.0.0/16", "192.0.2.4")},
			peers: goodPeer + " 192.0.2.3:8285[10.244.2.128/25] 192.0.2.4:8285[10.244.0.0/16]",
			said:  []string{"10.244.2.0/24 of 192.0.2.2 is inside 10.244.0.0/16 of 192.0.2.4", "10.244.2.128/25 of 192.0.2.3 is inside 10.244.2.0/24"}},
		{name: "host bits", families: "4", leases: []lease.Lease{peerLease(6, "", "10.244.2.77/24", "192.0.2.2")}, peers: goodPeer},
		{name: "one key twice", families: "4", leases: []lease.Lease{{Key: lease.Key{Subnet: good.Subnet, Subnet6: good.Subnet}, Attrs: good.Attrs}}, peers: goodPeer},
	}
}

func TestChoose(t *testing.T) {
	for _, tt := range chooseCases() {
		t.Run(tt.name, func(t *testing.T) {
			o, p := newOverlay(t, tt.families)
			peers, mixed, notes := o.choose(tt.leases, p)
			var text []string
			for _, p := range peers {
				text = append(text, fmt.Sprintf("%v%v", p.Endpoint, p.Subnets))
			}
			if got := strings.Join(text, " "); got != tt.peers || mixed != tt.mixed {
				t.Errorf("peers %s, mixed %v\nwant  %s, %v", got, mixed, tt.peers, tt.mixed)
			}
			var bad, said []string
			for _, n := range notes {
				if n.Bad {
					bad = append(bad, n.Text)
				} else {
					said = append(said, n.Text)
				}
			}
			for kind, pair := range map[string][2][]string{"bad": {bad, tt.bad}, "said": {said, tt.said}} {
				if !slices.EqualFunc(pair[0], pair[1], strings.Contains) {
					t.Errorf("%s:\n%s\nwant:\n%s", kind, strings.Join(pair[0], "\n"), strings.Join(pair[1], "\n"))
				}
			}
			if err := o.table.Replace(p.local, peers); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whatever the leases, the table takes what is chosen; every subnet that is fine is
// served, by the latest claim; the order of the leases does not matter.
func TestChooseProperties(t *testing.T) {
	o, p := newOverlay(t, "46")
	someAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
		return addr(rapid.SampledFrom([]string{"", "0.0.0.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "224.0.0.1", "255.255.255.255",
			"::ffff:192.0.2.2", "::", "2001:db8::1", "2001:db8::2", "2001:db8::3", "fe80::1%eth0", "ff02::1"}).Draw(t, "addr"))
	})
	somePrefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		return prefix(rapid.SampledFrom([]string{"", "0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.4/30", "10.244.2.0/24", "10.244.2.9/24", "10.244.2.0/25",
			"10.244.3.0/24", "::ffff:10.244.3.0/120", "::/0", "fd00:244::/32", "fd00:244:1::/64", "fd00:244:2::/64", "fd00:244:3::/64", "fe80::/64"}).Draw(t, "prefix"))
	})
	someLease := rapid.Custom(func(t *rapid.T) lease.Lease {
		return lease.Lease{
			Key:      lease.Key{Subnet: somePrefix.Draw(t, "subnet"), Subnet6: somePrefix.Draw(t, "subnet6")},
			Revision: rapid.Uint64Range(0, 3).Draw(t, "revision"),
			Attrs: lease.Attrs{PublicIP: someAddr.Draw(t, "v4"), PublicIPv6: someAddr.Draw(t, "v6"),
				BackendType: rapid.SampledFrom([]string{"", "", "udp", "vxlan"}).Draw(t, "type")},
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		leases := rapid.SliceOfN(someLease, 0, 8).Draw(t, "leases")
		peers, _, _ := o.choose(leases, p)
		if err := o.table.Replace(p.local, peers); err != nil {
			t.Fatal(err)
		}
		got := owners(peers)
		// The oracle: for each prefix by itself, the best claim.
		want := map[netip.Prefix]netip.AddrPort{}
		best := map[netip.Prefix]uint64{}
		for _, l := range leases {
			at, why := endpoint(l.Attrs, p)
			end := netip.AddrPortFrom(at, o.port)
			if l.Attrs.BackendType == "vxlan" || why != "" {
				continue
			}
			for _, s := range l.Prefixes() {
				if o.chooser.Unusable(s, p.self.Key) != "" {
					continue
				}
				s = s.Masked()
				old, taken := want[s]
				if !taken || l.Revision > best[s] || l.Revision == best[s] && end.Compare(old) > 0 {
					want[s], best[s] = end, l.Revision
				}
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("chosen:\n%v\nwant:\n%v", got, want)
		}
		rand.Shuffle(len(leases), func(i, j int) { leases[i], leases[j] = leases[j], leases[i] })
		again, _, _ := o.choose(leases, p)
		if fmt.Sprint(owners(again)) != fmt.Sprint(want) {
			t.Fatalf("in another order:\n%v\nwant:\n%v", owners(again), want)
		}
		if _, ok := o.table.Lookup(addr("10.244.1.5")); ok {
			t.Fatal("an address of our own subnet goes to a peer")
		}
		if _, ok := o.table.Lookup(addr("8.8.8.8")); ok {
			t.Fatal("an address outside the network goes to a peer")
		}
	})
}

func owners(peers []encap.Peer) map[netip.Prefix]netip.AddrPort {
	m := map[netip.Prefix]netip.AddrPort{}
	for _, p := range peers {
		for _, s := range p.Subnets {
			m[s] = p.Endpoint
		}
	}
	return m
}

// What is wrong with a peer is said once, and again when it has changed; it is an
// error each time.
func TestSayOnce(t *testing.T) {
	o, p := newOverlay(t, "4")
	var log record
	o.chooser.Log = slog.New(&log)
	foreign := peerLease(1, "vxlan", "10.244.3.0/24", "192.0.2.3")
	bad := peerLease(1, "", "10.244.4.0/24", "192.0.2.1")
	step := func(lines int, fails bool, leases ...lease.Lease) {
		t.Helper()
		log.n = 0
		_, _, notes := o.choose(leases, p)
		if err := o.chooser.Say(notes); (err != nil) != fails {
			t.Errorf("error: %v", err)
		}
		if log.n != lines {
			t.Errorf("%d lines, not %d", log.n, lines)
		}
	}
	step(2, true, foreign, bad)
	step(0, true, foreign, bad)
	step(0, true, bad, foreign)
	step(0, false, foreign)
	step(1, true, foreign, bad) // it is back
	foreign.Attrs.BackendType = "host-gw"
	step(1, false, foreign)
	step(0, false)
}

func manyLeases(n int) []lease.Lease {
	var all []lease.Lease
	for i := range n {
		k := i + 2
		all = append(all, lease.Lease{Revision: uint64(i),
			Key:   lease.Key{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(k >> 4), byte(k << 4)}), 28)},
			Attrs: lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(k >> 8), byte(k)})}})
	}
	return all
}

// A thousand peers are no work to speak of. How much is in the log.
func TestThousandPeers(t *testing.T) {
	o, p := newOverlay(t, "4")
	p.local, p.self.Key = []netip.Prefix{prefix("10.244.0.0/28")}, lease.Key{Subnet: prefix("10.244.0.0/28")}
	leases := manyLeases(1000)
	sync := func() {
		peers, _, notes := o.choose(leases, p)
		if err := errors.Join(o.table.Replace(p.local, peers), o.chooser.Say(notes)); err != nil || len(peers) != len(leases) {
			t.Fatalf("%d peers: %v", len(peers), err)
		}
	}
	start := time.Now()
	const rounds = 20
	for range rounds {
		sync()
	}
	took := time.Since(start) / rounds
	allocs := testing.AllocsPerRun(5, sync)
	t.Logf("%d peers: %v, %.0f allocations", len(leases), took, allocs)
	if allocs > 15*float64(len(leases)) {
		t.Errorf("%.0f allocations for %d peers", allocs, len(leases))
	}
}

func BenchmarkThousandPeers(b *testing.B) {
	o, p := newOverlay(b, "4")
	p.local, p.self.Key = []netip.Prefix{prefix("10.244.0.0/28")}, lease.Key{Subnet: prefix("10.244.0.0/28")}
	leases := manyLeases(1000)
	b.ReportAllocs()
	for b.Loop() {
		peers, _, notes := o.choose(leases, p)
		if err := errors.Join(o.table.Replace(p.local, peers), o.chooser.Say(notes)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPort(t *testing.T) {
	for part, want := range map[string]uint16{
		``: 8285, `{}`: 8285, `{"Type":"udp"}`: 8285, `{"Port":null}`: 8285, `{"Type":"udp","Port":9000}`: 9000,
		`{"type":"udp","port":1}`: 1, `{"PORT":65535}`: 65535, `{"Port":7,"VNI":"what flannel ignores"}`: 7,
	} {
		if got, err := parsePort(json.RawMessage(part)); err != nil || got != want {
			t.Errorf("%s: port %d, %v; want %d", part, got, err, want)
		}
	}
	for part, says := range map[string]string{
		`{"Port":0}`: " 0 ", `{"Port":65536}`: "65536", `{"Port":-1}`: "-1", `{"Port":"8285"}`: `"8285"`, `{"port":8285.5}`: "8285.5",
		`{"Port":[1]}`: "[1]", `{"Port":true}`: "true",
	} {
		_, err := parsePort(json.RawMessage(part))
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "Backend.Port") || !strings.Contains(err.Error(), "65535") {
			t.Errorf("%s: %v", part, err)
		}
	}
	for _, part := range []string{`[]`, `"udp"`, `{`} {
		if _, err := parsePort(json.RawMessage(part)); err == nil || !strings.Contains(err.Error(), "Backend") {
			t.Errorf("%s: %v", part, err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	network := lease.Network{IPv4: lease.Range{Prefix: prefix("10.244.0.0/16"), SubnetLen: 24}}
	for name, try := range map[string]func() (backend.Backend, error){
		"Port": func() (backend.Backend, error) {
			n := network
			n.Backend = []byte(`{"Port":0}`)
			return New(Options{})(backend.Params{Network: n})
		},
		"Engines": func() (backend.Backend, error) { return New(Options{Engines: -1})(backend.Params{Network: network}) },
		"257":     func() (backend.Backend, error) { return New(Options{Engines: 257})(backend.Params{Network: network}) },
		"range":   func() (backend.Backend, error) { return New(Options{})(backend.Params{}) },
	} {
		if b, err := try(); err == nil || b != nil || !strings.HasPrefix(err.Error(), "udp: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	b, err := New(Options{})(backend.Params{Network: network}) // no Log
	if err != nil {
		t.Fatal(err)
	}
	attrs, err := b.Prepare(t.Context(), backend.Host{})
	if err != nil {
		t.Fatal(err)
	}
	attrs.PublicIP = addr("192.0.2.1")
	if value, err := json.Marshal(attrs); err != nil || string(value) != `{"PublicIP":"192.0.2.1","PublicIPv6":null}` {
		t.Errorf("the lease is %s, %v", value, err)
	}
}

func TestPlan(t *testing.T) {
	network := lease.Network{IPv4: lease.Range{Prefix: prefix("10.244.0.0/16"), SubnetLen: 24}, IPv6: lease.Range{Prefix: prefix("fd00:244::/32"), SubnetLen: 64}}
	host := func(mtu int, v4, v6 string) backend.Host {
		return backend.Host{Link: "eth0", MTU: mtu, Addr4: addr(v4), Addr6: addr(v6)}
	}
	own := func(words ...string) lease.Lease { return peerLease(1, "", words...) }
	for _, tt := range []struct {
		name   string
		host   backend.Host
		own    lease.Lease
		listen string
		mtu    int
		says   string // of the error
	}{
		{"v4", host(1500, "192.0.2.1", ""), own("10.244.1.0/24", "192.0.2.1"), "192.0.2.1:8285", 1472, ""},
		{"NAT", host(1500, "10.0.0.1", ""), own("10.244.1.0/24", "203.0.113.1"), "10.0.0.1:8285", 1472, ""},
		{"v6", host(1500, "", "2001:db8::1"), own("10.244.1.0/24", "fd00:244:1::/64", "2001:db8::1"), "[2001:db8::1]:8285", 1452, ""},
		{"both", host(1500, "192.0.2.1", "2001:db8::1"), own("10.244.1.0/24", "192.0.2.1", "2001:db8::1"), "192.0.2.1:8285", 1472, ""},
		{"both, v6 public", host(1500, "192.0.2.1", "2001:db8::1"), own("10.244.1.0/24", "2001:db8::1"), "[2001:db8::1]:8285", 1452, ""},
		{"loopback", host(65536, "127.0.0.1", ""), own("10.244.1.0/24", "127.0.0.1"), "127.0.0.1:8285", 65507, ""},
		{"smallest", host(96, "192.0.2.1", ""), own("10.244.1.0/24", "192.0.2.1"), "192.0.2.1:8285", tun.MinMTU, ""},
		{"smallest with v6", host(1308, "192.0.2.1", ""), own("10.244.1.0/24", "fd00:244:1::/64", "192.0.2.1"), "192.0.2.1:8285", 1280, ""},
		{"too small", host(95, "192.0.2.1", ""), own("10.244.1.0/24", "192.0.2.1"), "", 0, "95"},
		{"too small for v6", host(1307, "192.0.2.1", ""), own("fd00:244:1::/64", "192.0.2.1"), "", 0, "1280"},
		{"no address", host(1500, "", ""), own("10.244.1.0/24", "192.0.2.1"), "", 0, "eth0"},
		{"the other family's", host(1500, "", "2001:db8::1"), own("10.244.1.0/24", "192.0.2.1"), "", 0, "eth0"},
		{"no subnet", host(1500, "192.0.2.1", ""), own("192.0.2.1"), "", 0, "no subnet"},
		{"another network's", host(1500, "192.0.2.1", ""), own("10.245.1.0/24", "192.0.2.1"), "", 0, "10.244.0.0/16"},
	} {
		p, err := newPlan(network, 8285, tt.host, tt.own)
		if tt.says != "" {
			if err == nil || !strings.HasPrefix(err.Error(), "udp: start: ") || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil || p.listen.String() != tt.listen || p.mtu != tt.mtu || !slices.Equal(p.local, tt.own.Prefixes()) {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
	}
}
