package encap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// oracle is the slow table: all prefixes, and the longest that holds an address.
type oracle struct {
	local []netip.Prefix
	peers []Peer
}

// lookup returns the index of the peer that has a, -1 for this host, -2 for nobody.
func (o oracle) lookup(a netip.Addr) int {
	best, owner := -1, -2
	try := func(ps []netip.Prefix, who int) {
		for _, p := range ps {
			if p.Contains(a) && p.Bits() > best {
				best, owner = p.Bits(), who
			}
		}
	}
	try(o.local, -1)
	for i, p := range o.peers {
		try(p.Subnets, i)
	}
	return owner
}

// anyAddr draws addresses that are close together, so that prefixes overlap.
func anyAddr(t *rapid.T, v6 bool) netip.Addr {
	if v6 {
		var b [16]byte
		b[0], b[1] = 0xfd, rapid.Byte().Draw(t, "b1")&1
		for i := 2; i < 16; i++ {
			if rapid.IntRange(0, 5).Draw(t, "some") == 0 {
				b[i] = rapid.SampledFrom([]byte{1, 0x80, 0xff}).Draw(t, "b")
			}
		}
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte{
		rapid.SampledFrom([]byte{10, 11, 138}).Draw(t, "a"), rapid.SampledFrom([]byte{0, 1, 128, 255}).Draw(t, "b"),
		rapid.SampledFrom([]byte{0, 1, 128, 255}).Draw(t, "c"), rapid.Byte().Draw(t, "d"),
	})
}

func anyPrefix(t *rapid.T) netip.Prefix {
	if rapid.Bool().Draw(t, "v6") {
		return netip.PrefixFrom(anyAddr(t, true), rapid.IntRange(0, 128).Draw(t, "bits"))
	}
	return netip.PrefixFrom(anyAddr(t, false), rapid.IntRange(0, 32).Draw(t, "bits"))
}

// anySet draws a legal set. Host bits of prefixes stay as drawn.
func anySet(t *rapid.T) (o oracle) {
	seen := map[netip.Prefix]bool{}
	fresh := func() (ps []netip.Prefix) {
		for range rapid.IntRange(0, 6).Draw(t, "prefixes") {
			if p := anyPrefix(t); !seen[p.Masked()] {
				seen[p.Masked()] = true
				ps = append(ps, p)
			}
		}
		return ps
	}
	o.local = fresh()
	for i := range rapid.IntRange(0, 12).Draw(t, "peers") {
		ep := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)}), uint16(8285+i%3))
		if i%4 == 3 {
			ep = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfc, 15: byte(i)}), 8285)
		}
		o.peers = append(o.peers, Peer{Endpoint: ep, Subnets: fresh()})
	}
	return o
}

func TestTableLikeOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := NewTable()
		for range rapid.IntRange(1, 3).Draw(t, "sets") { // also after older sets
			o := anySet(t)
			if err := tb.Replace(o.local, o.peers); err != nil {
				t.Fatalf("Replace(%v, %v): %v", o.local, o.peers, err)
			}
			ask := func(a netip.Addr) {
				want := o.lookup(a)
				got, ok := tb.Lookup(a)
				if ok != (want >= 0) || ok && got.Endpoint != o.peers[want].Endpoint {
					t.Fatalf("Lookup(%v) = %v, %v; the oracle says peer %d of %v, local %v", a, got, ok, want, o.peers, o.local)
				}
				if local := tb.cur.Load().lookupAddr(a) == localPeer; local != (want == -1) {
					t.Fatalf("lookupAddr(%v) local = %v, oracle %d", a, local, want)
				}
				if a.Is4() { // a mapped address is the same address
					if m, mok := tb.Lookup(netip.AddrFrom16(a.As16())); mok != ok || m.Endpoint != got.Endpoint {
						t.Fatalf("Lookup of %v mapped to IPv6 = %v, %v; want %v, %v", a, m, mok, got, ok)
					}
				}
			}
			for range 40 {
				ask(anyAddr(t, rapid.Bool().Draw(t, "ask6")))
			}
			// And where mistakes are likely: both ends of every prefix, and beyond.
			all := slices.Clone(o.local)
			for _, p := range o.peers {
				all = append(all, p.Subnets...)
			}
			for _, p := range all {
				first, last := p.Masked().Addr(), lastAddr(p)
				for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
					if a.IsValid() {
						ask(a)
					}
				}
			}
			if got := tb.Peers(); !slices.EqualFunc(got, o.peers, samePeer) {
				t.Fatalf("Peers() = %v, want %v", got, o.peers)
			}
			if got := tb.Local(); len(got) != len(o.local) {
				t.Fatalf("Local() = %v, want %v masked", got, o.local)
			}
		}
	})
}

func samePeer(a, b Peer) bool { return a.Endpoint == b.Endpoint && slices.Equal(a.Subnets, b.Subnets) }

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestTableErrors(t *testing.T) {
	good := []Peer{{Endpoint: port("192.0.2.1:8285"), Subnets: subnetsA()}}
	peer := func(ep string, subnets ...string) Peer {
		p := Peer{Subnets: prefixes(subnets...)}
		if ep != "" {
			p.Endpoint = port(ep)
		}
		return p
	}
	for _, c := range []struct {
		name  string
		local []netip.Prefix
		peers []Peer
		want  string // in the message
	}{
		{"no endpoint", nil, []Peer{peer("")}, "peer 0: endpoint invalid AddrPort is no host's address"},
		{"unspecified v4", nil, []Peer{peer("192.0.2.9:1"), peer("0.0.0.0:8285")}, "peer 1: endpoint 0.0.0.0:8285 is no host's address"},
		{"unspecified v6", nil, []Peer{peer("[::]:8285")}, "endpoint [::]:8285 is no host's address"},
		{"unspecified mapped", nil, []Peer{peer("[::ffff:0.0.0.0]:8285")}, "is no host's address"},
		{"multicast v4", nil, []Peer{peer("224.0.0.1:8285")}, "endpoint 224.0.0.1:8285 is no host's address"},
		{"multicast v6", nil, []Peer{peer("[ff02::1]:8285")}, "endpoint [ff02::1]:8285 is no host's address"},
		{"port 0", nil, []Peer{peer("192.0.2.2:0")}, "endpoint 192.0.2.2:0 has no port (flannel's is 8285)"},
		{"zone", nil, []Peer{peer("[fe80::1%eth0]:8285")}, "endpoint [fe80::1%eth0]:8285 has a zone"},
		{"invalid prefix", nil, []Peer{{Endpoint: port("192.0.2.2:8285"), Subnets: []netip.Prefix{{}}}}, "192.0.2.2:8285: invalid prefix"},
		{"invalid local", []netip.Prefix{netip.PrefixFrom(ip("10.0.0.0"), 33)}, nil, "local: invalid prefix"},
		{"mapped prefix", nil, []Peer{peer("192.0.2.2:8285", "::ffff:10.0.0.0/104")}, "192.0.2.2:8285: prefix ::ffff:10.0.0.0/104 is IPv4 mapped to IPv6 (write it as IPv4)"},
		{"mapped local", prefixes("::ffff:10.0.0.0/104"), nil, "local: prefix ::ffff:10.0.0.0/104 is IPv4 mapped"},
		{"two peers", nil, []Peer{peer("192.0.2.2:8285", "10.5.0.0/16"), peer("192.0.2.3:8285", "10.6.0.0/16", "10.5.7.7/16")},
			"192.0.2.3:8285: prefix 10.5.0.0/16 belongs to 192.0.2.2:8285 already"},
		{"two peers v6", nil, []Peer{peer("192.0.2.2:8285", "fd00::/64"), peer("192.0.2.3:8285", "fd00::1/64")},
			"192.0.2.3:8285: prefix fd00::/64 belongs to 192.0.2.2:8285 already"},
		{"peer and local", prefixes("10.5.0.1/16"), []Peer{peer("192.0.2.2:8285", "10.5.0.0/16")},
			"192.0.2.2:8285: prefix 10.5.0.0/16 belongs to this host already"},
		{"twice local", prefixes("10.5.0.0/16", "10.5.0.0/16"), nil, "local: prefix 10.5.0.0/16 belongs to this host already"},
		{"twice one peer", nil, []Peer{peer("192.0.2.2:8285", "10.5.0.0/16", "10.5.0.0/16")},
			"192.0.2.2:8285: prefix 10.5.0.0/16 belongs to 192.0.2.2:8285 already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := newTable(t, good...)
			before := tb.cur.Load()
			err := tb.Replace(c.local, c.peers)
			if !errors.Is(err, ErrPeers) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error is %v\nwant one that wraps ErrPeers with %q", err, c.want)
			}
			if tb.cur.Load() != before {
				t.Error("the set changed although Replace failed")
			}
			if p, ok := tb.Lookup(ip("10.2.9.9")); !ok || p.Endpoint != good[0].Endpoint {
				t.Errorf("Lookup after the error = %v, %v", p, ok)
			}
		})
	}
}

// TestTableTakes is what looks odd and is legal.
func TestTableTakes(t *testing.T) {
	tb := NewTable()
	if _, ok := tb.Lookup(netip.Addr{}); ok {
		t.Error("the zero address has a peer")
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(ip("192.0.2.1").As16()), 8285)
	peers := []Peer{
		{Endpoint: mapped, Subnets: prefixes("10.2.0.0/16")},
		{Endpoint: port("192.0.2.1:8285"), Subnets: prefixes("10.3.0.0/16")}, // NAT: one endpoint, two hosts
		{Endpoint: port("192.0.2.1:8286"), Subnets: prefixes("10.4.0.0/16")},
		{Endpoint: port("192.0.2.7:8285")}, // no subnet yet
		{Endpoint: port("192.0.2.8:8285"), Subnets: prefixes("0.0.0.0/0", "::/0")},
	}
	if err := tb.Replace(prefixes("10.2.3.0/24"), peers); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{
		"10.2.0.1": "192.0.2.1:8285", "10.2.3.1": "", "10.3.0.1": "192.0.2.1:8285", "10.4.0.1": "192.0.2.1:8286",
		"8.8.8.8": "192.0.2.8:8285", "2001:db8::1": "192.0.2.8:8285",
	} {
		got, ok := tb.Lookup(ip(a))
		if ok != (want != "") || ok && got.Endpoint.String() != want {
			t.Errorf("Lookup(%s) = %v, %v, want %q", a, got.Endpoint, ok, want)
		}
	}
	s := tb.cur.Load()
	if s.peers[0].learnt != s.peers[1].learnt || s.peers[0].learnt == s.peers[2].learnt {
		t.Error("peers at one endpoint share what is learnt about it, others do not")
	}
	if s.peers[0].overhead != 28 || s.peers[0].v6 {
		t.Errorf("a mapped endpoint has overhead %d, v6 %v", s.peers[0].overhead, s.peers[0].v6)
	}
	// What Replace was given and what Peers returned may be changed by their owners.
	peers[0].Subnets[0] = netip.MustParsePrefix("10.99.0.0/16")
	tb.Peers()[1].Subnets[0] = netip.MustParsePrefix("10.98.0.0/16")
	tb.Local()[0] = netip.MustParsePrefix("10.97.0.0/16")
	if got := tb.Peers(); got[0].Subnets[0].String() != "10.2.0.0/16" || got[1].Subnets[0].String() != "10.3.0.0/16" || tb.Local()[0].String() != "10.2.3.0/24" {
		t.Errorf("the table shares its slices: %v %v", got, tb.Local())
	}
}

func TestTableKeepsLearnt(t *testing.T) {
	a := Peer{Endpoint: port("192.0.2.1:8285"), Subnets: subnetsA()}
	b := Peer{Endpoint: port("192.0.2.2:8285"), Subnets: subnetsB()}
	tb := newTable(t, a, b)
	for _, p := range tb.cur.Load().peers {
		if !p.setPathMTU(1400) || p.setPathMTU(1400) {
			t.Error("setPathMTU reports a change the first time and only then")
		}
		if !p.setGSOOff() || p.setGSOOff() {
			t.Error("setGSOOff reports a change the first time and only then")
		}
	}
	find := func(addr string) *peer { return tb.cur.Load().lookupAddr(ip(addr)) }
	// B goes, A moves to another subnet.
	a.Subnets = prefixes("10.9.0.0/16")
	if err := tb.Replace(localSubnets(), []Peer{a}); err != nil {
		t.Fatal(err)
	}
	if p := find("10.9.0.1"); p.pathMTU() != 1400 || !p.gsoOff() {
		t.Errorf("A has path MTU %d, GSO off %v: its endpoint stayed", p.pathMTU(), p.gsoOff())
	}
	// A set that is refused takes nothing away, then B comes back.
	if err := tb.Replace(nil, []Peer{{}}); err == nil {
		t.Fatal("an illegal set was taken")
	}
	if err := tb.Replace(localSubnets(), []Peer{a, b}); err != nil {
		t.Fatal(err)
	}
	if p := find("10.9.0.1"); p.pathMTU() != 1400 || !p.gsoOff() {
		t.Errorf("A has path MTU %d, GSO off %v after another Replace", p.pathMTU(), p.gsoOff())
	}
	if p := find("10.3.0.1"); p.pathMTU() != 0 || p.gsoOff() {
		t.Errorf("B has path MTU %d, GSO off %v: it was gone meanwhile", p.pathMTU(), p.gsoOff())
	}
	// Another port is another endpoint.
	a.Endpoint = port("192.0.2.1:8286")
	if err := tb.Replace(localSubnets(), []Peer{a}); err != nil {
		t.Fatal(err)
	}
	if p := find("10.9.0.1"); p.pathMTU() != 0 || p.gsoOff() {
		t.Errorf("A at another port has path MTU %d, GSO off %v", p.pathMTU(), p.gsoOff())
	}
}

func TestLearntExpires(t *testing.T) {
	l := &learnt{}
	if l.pathMTU() != 0 || l.gsoOff() {
		t.Fatal("something is known of a new endpoint")
	}
	l.setPathMTU(1300)
	l.setGSOOff()
	for _, until := range []int64{l.pmtuUntil.Load(), l.noGSO.Load()} {
		if left := time.Duration(until - monotonic()); left > learnTime || left < learnTime-time.Minute {
			t.Errorf("learnt for %v, want %v", left, learnTime)
		}
	}
	l.pmtuUntil.Store(monotonic() - 1)
	l.noGSO.Store(monotonic() - 1)
	if l.pathMTU() != 0 || l.gsoOff() {
		t.Errorf("path MTU %d, GSO off %v when their time is over", l.pathMTU(), l.gsoOff())
	}
	if !l.setPathMTU(1300) || !l.setGSOOff() {
		t.Error("learning the same again after the time is over is a change: it is logged again")
	}
}

// TestTableReplaceUnderReaders has readers ask for two addresses of one
// snapshot while sets alternate: they must see one set or the other.
func TestTableReplaceUnderReaders(t *testing.T) {
	sets := [2][]Peer{
		{{Endpoint: port("192.0.2.1:8285"), Subnets: prefixes("10.2.0.0/16", "fd00:2::/64")}},
		{{Endpoint: port("192.0.2.2:8285"), Subnets: prefixes("10.2.0.0/24", "fd00:2::/80")},
			{Endpoint: port("192.0.2.3:8285"), Subnets: prefixes("10.9.0.0/16")}},
	}
	tb := newTable(t, sets[0]...)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := tb.cur.Load()
				x, y := s.lookupAddr(ip("10.2.0.1")), s.lookupAddr(ip("fd00:2::1"))
				if x == nil || x != y || (s.lookupAddr(ip("10.9.0.1")) != nil) != (x.Endpoint.Addr() == ip("192.0.2.2")) {
					t.Errorf("a mixture of two sets: %v and %v", x, y)
					return
				}
				if _, ok := tb.Lookup(ip("10.2.0.1")); !ok {
					t.Error("nothing in force for a moment")
					return
				}
			}
		})
	}
	for i := range 2000 {
		if err := tb.Replace(localSubnets(), sets[i%2]); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestTableLookupAllocs(t *testing.T) {
	tb := newTable(t, Peer{Endpoint: port("192.0.2.1:8285"), Subnets: subnetsA()})
	s := tb.cur.Load()
	v4, v6 := ip("10.2.0.7"), ip("fd00:2::7")
	hi := binary.BigEndian.Uint64(v6.AsSlice())
	if n := testing.AllocsPerRun(1000, func() {
		_, a := tb.Lookup(v4)
		_, b := tb.Lookup(v6)
		if !a || !b || s.lookup4(0x0a020007) == nil || s.lookup6(hi, 7) == nil {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations for four lookups", n)
	}
}
