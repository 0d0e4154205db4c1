package peerset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
	"pgregory.net/rapid"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

func chooser(log *testlog.Messages) *Chooser {
	return &Chooser{
		Backend: "vxlan", Types: []string{"vxlan", "other-name"}, Log: log.Logger(),
		Network: lease.Network{IPv4: lease.Range{Prefix: pfx("10.244.0.0/16"), SubnetLen: 24}, IPv6: lease.Range{Prefix: pfx("fd00:244::/48"), SubnetLen: 64}},
	}
}

func self() Self {
	return Self{Key: lease.Key{Subnet: pfx("10.244.0.0/24"), Subnet6: pfx("fd00:244::/64")}, Addrs: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}
}

// end is where a host is, by family.
func end(l lease.Lease, subnet netip.Prefix) (netip.Addr, string) {
	at := l.Attrs.PublicIP
	if subnet.Addr().Is6() {
		at = l.Attrs.PublicIPv6
	}
	if why := self().Unreachable(at); why != "" {
		return netip.Addr{}, why
	}
	return at, ""
}

func host(i int, typ string, rev uint64, subnet, subnet6 string) lease.Lease {
	l := lease.Lease{Revision: rev, Attrs: lease.Attrs{BackendType: typ, PublicIP: addr(fmt.Sprintf("192.0.2.%d", i)), PublicIPv6: addr(fmt.Sprintf("2001:db8::%x", i))}}
	if subnet != "" {
		l.Subnet = pfx(subnet)
	}
	if subnet6 != "" {
		l.Subnet6 = pfx(subnet6)
	}
	return l
}

func draw(rt *rapid.T) (all []lease.Lease) {
	v4 := []string{"", "10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.2.0/25", "10.244.2.128/26", "10.244.0.0/16", "10.0.0.0/8", "10.245.1.0/24", "10.244.0.128/25"}
	v6 := []string{"", "fd00:244::/64", "fd00:244:0:1::/64", "fd00:244:0:2::/64", "fd00:244:0:2:8000::/65", "fd00:245::/64"}
	types := []string{"vxlan", "VXLAN", "Other-Name", "host-gw", "", "vxlan "}
	n := rapid.IntRange(0, 7).Draw(rt, "leases")
	for i := range n {
		all = append(all, host(rapid.IntRange(1, 5).Draw(rt, "at"), rapid.SampledFrom(types).Draw(rt, "type"), uint64(100+i),
			rapid.SampledFrom(v4).Draw(rt, "subnet"), rapid.SampledFrom(v6).Draw(rt, "subnet6")))
	}
	return all
}

// slow is what Choose is documented to choose: by subnet, the newest usable lease.
func slow(leases []lease.Lease) map[string]bool {
	got := map[string]bool{}
	for i, l := range leases {
		if t := strings.ToLower(l.Attrs.BackendType); t != "vxlan" && t != "other-name" {
			continue
		}
		for _, s := range l.Prefixes() {
			usable := func(m lease.Lease, s netip.Prefix) bool {
				t := strings.ToLower(m.Attrs.BackendType)
				network, own := pfx("10.244.0.0/16"), pfx("10.244.0.0/24")
				if s.Addr().Is6() {
					network, own = pfx("fd00:244::/48"), pfx("fd00:244::/64")
				}
				inside := func(inner, outer netip.Prefix) bool {
					return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
				}
				return (t == "vxlan" || t == "other-name") && inside(s, network) && !inside(s, own) && m.Attrs.PublicIP != addr("192.0.2.1")
			}
			if !usable(l, s) {
				continue
			}
			best := true
			for j, m := range leases {
				if j != i && slices.Contains(m.Prefixes(), s) && usable(m, s) && m.Revision > l.Revision {
					best = false
				}
			}
			if best {
				at, _ := end(l, s)
				got[fmt.Sprintf("%v at %v by %d", s, at, l.Revision)] = true
			}
		}
	}
	return got
}

func chosen(peers []Peer) map[string]bool {
	got := map[string]bool{}
	for _, p := range peers {
		if p.Subnet.IsValid() {
			got[fmt.Sprintf("%v at %v by %d", p.Subnet, p.At, p.Lease.Revision)] = true
		}
		if p.Subnet6.IsValid() {
			got[fmt.Sprintf("%v at %v by %d", p.Subnet6, p.At6, p.Lease.Revision)] = true
		}
	}
	return got
}

func texts(notes []Note) (all []string) {
	for _, n := range notes {
		all = append(all, fmt.Sprint(n.Bad, " ", n.Text))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func shuffled(rt *rapid.T, leases []lease.Lease) []lease.Lease {
	seed := rapid.Uint64().Draw(rt, "order")
	other := slices.Clone(leases)
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
	return other
}

func TestChoosesWhatTheSlowWayChooses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		leases := draw(rt)
		peers, notes := chooser(&testlog.Messages{}).Choose(self(), leases, end)
		if got, want := chosen(peers), slow(leases); fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Fatalf("chosen %v\nwant   %v\nof %v", got, want, leases)
		}
		last := -1
		for _, p := range peers { // in the order of the leases
			i := slices.IndexFunc(leases, func(l lease.Lease) bool { return l.Revision == p.Lease.Revision })
			if i <= last {
				rt.Fatal("order:", peers)
			}
			last = i
			if p.At.IsValid() != p.Subnet.IsValid() || p.At6.IsValid() != p.Subnet6.IsValid() {
				rt.Fatalf("half: %+v", p)
			}
		}
		served := len(chosen(peers))
		claims := 0
		for _, l := range leases {
			claims += len(l.Prefixes())
		}
		if served < claims && len(notes) == 0 && len(slow(leases)) < len(leases) {
			rt.Fatal("nothing is said of what is left out")
		}
	})
}

func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		leases := draw(rt)
		other := shuffled(rt, leases)
		a, _ := chooser(&testlog.Messages{}).Choose(self(), leases, end)
		b, _ := chooser(&testlog.Messages{}).Choose(self(), other, end)
		if fmt.Sprint(chosen(a)) != fmt.Sprint(chosen(b)) {
			rt.Fatalf("%v\n%v", chosen(a), chosen(b))
		}
	})
}

// A store without revisions: the set's order must not matter either.
func TestOrderDoesNotMatterWithoutRevisions(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		leases := draw(rt)
		slices.SortFunc(leases, func(a, b lease.Lease) int { return strings.Compare(a.Key.String(), b.Key.String()) })
		leases = slices.CompactFunc(leases, func(a, b lease.Lease) bool { return a.Key == b.Key }) // no store has a key twice
		for i := range leases {
			leases[i].Revision = 0
			leases[i].Attrs.BackendData = fmt.Appendf(nil, `"%d"`, i)
		}
		other := shuffled(rt, leases)
		a, _ := chooser(&testlog.Messages{}).Choose(self(), leases, end)
		b, _ := chooser(&testlog.Messages{}).Choose(self(), other, end)
		name := func(peers []Peer) (all []string) {
			for _, p := range peers {
				for _, s := range []netip.Prefix{p.Subnet, p.Subnet6} {
					if s.IsValid() {
						all = append(all, fmt.Sprintf("%v by %s", s, p.Lease.Attrs.BackendData))
					}
				}
			}
			slices.Sort(all)
			return all
		}
		if fmt.Sprint(name(a)) != fmt.Sprint(name(b)) {
			rt.Fatalf("%v\n%v", name(a), name(b))
		}
	})
}

// What is said must not depend on the order, or it is said with every Sync.
func TestNotesDoNotDependOnTheOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		leases := draw(rt)
		other := shuffled(rt, leases)
		log := &testlog.Messages{}
		c := chooser(log)
		_, notes := c.Choose(self(), leases, end)
		_ = c.Say(notes)
		said := log.Count("")
		_, notes2 := c.Choose(self(), other, end)
		_ = c.Say(notes2)
		if log.Count("") != said {
			rt.Fatalf("said anew:\n%s\nand then\n%s", strings.Join(texts(notes), "\n"), strings.Join(texts(notes2), "\n"))
		}
	})
}

// Three hosts that claim one subnet are as good as two.
func TestNotesOfThreeClaims(t *testing.T) {
	a, b, c := host(2, "vxlan", 1, "10.244.2.0/24", ""), host(3, "vxlan", 2, "10.244.2.0/24", "fd00:244:0:3::/64"), host(4, "vxlan", 3, "10.244.2.0/24", "fd00:244:0:4::/64")
	first := ""
	for _, order := range [][]lease.Lease{{a, b, c}, {a, c, b}, {b, a, c}, {b, c, a}, {c, a, b}, {c, b, a}} {
		_, notes := chooser(&testlog.Messages{}).Choose(self(), order, end)
		said := strings.Join(texts(notes), "\n")
		if first == "" {
			first = said
		}
		if said != first {
			t.Errorf("%s\nand in another order\n%s", first, said)
		}
	}
}

func TestSay(t *testing.T) {
	log := &testlog.Messages{}
	c := chooser(log)
	good, bad := Note{"a note", false}, Note{"a bad note", true}
	for i := range 3 {
		if err := c.Say([]Note{good, bad, bad, good}); err == nil || !strings.Contains(err.Error(), "vxlan: sync: a bad note") || strings.Contains(err.Error(), "a note") && !strings.Contains(err.Error(), "a bad note") {
			t.Error(i, err)
		}
	}
	if err := c.Say([]Note{good}); err != nil {
		t.Error(err)
	}
	if log.Count("a bad note") != 1 || log.Count("INFO a note") != 1 || log.Count("WARN a bad note") != 1 {
		t.Error(log.With(""))
	}
	_ = c.Say([]Note{good, bad}) // it is back
	if log.Count("a bad note") != 2 || log.Count("INFO a note") != 1 {
		t.Error(log.With(""))
	}
	if err := c.Say(nil); err != nil {
		t.Error(err)
	}
}

// A thousand bad leases are not a megabyte of error with every Sync.
func TestErrorOfManyBadPeersIsBounded(t *testing.T) {
	c := chooser(&testlog.Messages{})
	var leases []lease.Lease
	for i := range 1000 {
		leases = append(leases, host(9, "vxlan", uint64(i), fmt.Sprintf("10.245.%d.%d/28", i>>4, i<<4&0xff), ""))
	}
	_, notes := c.Choose(self(), leases, end)
	if err := c.Say(notes); err == nil || len(err.Error()) > 8000 {
		t.Errorf("%d bytes", len(fmt.Sprint(err)))
	}
}

func TestUnusable(t *testing.T) {
	c := chooser(&testlog.Messages{})
	for s, ok := range map[string]bool{
		"10.244.1.0/24": true, "10.244.1.0/25": true, "10.244.0.0/16": true, "10.244.0.0/24": false, "10.244.0.128/25": false, "10.244.0.1/32": false,
		"10.0.0.0/8": false, "0.0.0.0/0": false, "10.245.0.0/24": false, "fd00:244:0:1::/64": true, "fd00:244::/64": false, "fd00:244::1/128": false,
		"::/0": false, "fd00:245::/64": false, "::ffff:10.244.1.0/120": false,
	} {
		if why := c.Unusable(pfx(s), self().Key); (why == "") != ok {
			t.Errorf("%s: %q", s, why)
		}
	}
	c.Network.IPv6 = lease.Range{}
	if why := c.Unusable(pfx("fd00:244:0:1::/64"), self().Key); why == "" {
		t.Error("IPv6 in a network without")
	}
}

func TestUnreachable(t *testing.T) {
	for s, ok := range map[string]bool{
		"192.0.2.9": true, "2001:db8::9": true, "10.0.0.1": true, "192.0.2.1": false, "2001:db8::1": false, "0.0.0.0": false, "::": false,
		"224.0.0.1": false, "ff02::1": false, "255.255.255.255": false, "fe80::1": false, "fe80::1%eth0": false, "2001:db8::9%eth0": false,
	} {
		if why := self().Unreachable(addr(s)); (why == "") != ok {
			t.Errorf("%s: %q", s, why)
		}
	}
	if self().Unreachable(netip.Addr{}) == "" {
		t.Error("no address is reachable")
	}
}

// What leads to this host itself is no peer's address.
func TestLoopbackAndMappedOwnAddressesAreUnreachable(t *testing.T) {
	for _, s := range []string{"127.0.0.1", "127.9.9.9", "::1", "::ffff:192.0.2.1", "::ffff:127.0.0.1"} {
		if self().Unreachable(addr(s)) == "" {
			t.Errorf("%s is taken for a peer's public address", s)
		}
	}
}

func TestChooseOddLeases(t *testing.T) {
	c := chooser(&testlog.Messages{})
	none := host(2, "vxlan", 1, "", "")
	bare := host(3, "vxlan", 2, "10.244.3.0/24", "fd00:244:0:3::/64")
	bare.Attrs.PublicIPv6 = netip.Addr{}
	unmasked := host(4, "vxlan", 3, "10.244.4.7/24", "")
	peers, notes := c.Choose(self(), []lease.Lease{none, bare, unmasked}, end)
	if len(peers) != 2 || peers[0].Subnet != pfx("10.244.3.0/24") || peers[0].Subnet6.IsValid() || peers[1].Subnet != pfx("10.244.4.0/24") {
		t.Errorf("%+v", peers)
	}
	if all := texts(notes); len(all) != 2 || !strings.Contains(all[0]+all[1], "no subnet") || !strings.Contains(all[0]+all[1], "no public address") {
		t.Errorf("%q", all)
	}
	if peers, notes := c.Choose(self(), nil, end); len(peers) != 0 || len(notes) != 0 {
		t.Error(peers, notes)
	}
}
