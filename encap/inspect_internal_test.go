package encap

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
	"pgregory.net/rapid"
)

// captured keeps what a core reports.
type captured struct {
	toHosts, toPeers [][]byte
	abouts           [][]byte
	peers            []*peer
}

func (c *captured) toHost(msg, about []byte) {
	c.toHosts = append(c.toHosts, slices.Clone(msg))
	c.abouts = append(c.abouts, slices.Clone(about))
}

func (c *captured) toPeer(pr *peer, msg []byte) {
	c.toPeers = append(c.toPeers, slices.Clone(msg))
	c.peers = append(c.peers, pr)
}

func newCore(tb *Table, cfg Config) (*core, *captured) {
	out := &captured{}
	return &core{cfg: cfg, log: slog.New(slog.DiscardHandler), table: tb, out: out}, out
}

// outerOf is the address of a datagram's sender as the socket reports it.
func outerOf(s string) addr128 { return to128(ip(s)) }

// filterPeers are A and B, and C that shares A's address behind a NAT.
func filterPeers() []Peer {
	return []Peer{
		{Endpoint: port("192.0.2.1:8285"), Subnets: subnetsA()},
		{Endpoint: port("[2001:db8::2]:8285"), Subnets: subnetsB()},
		{Endpoint: port("192.0.2.1:9999"), Subnets: prefixes("10.4.0.0/16")},
	}
}

func TestInbound(t *testing.T) {
	outers := map[string]string{hostA: "192.0.2.1", hostB: "2001:db8::2", stranger: "192.0.2.9"}
	for _, c := range inboundCases() {
		for _, noFilter := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/noFilter=%v", c.name, noFilter), func(t *testing.T) {
				tb := newTable(t, filterPeers()...)
				co, out := newCore(tb, Config{NoFilter: noFilter})
				want, told := c.want, c.told
				if noFilter {
					want, told = c.noFilter, c.noFilter == DropExpiredIn
				}
				for range 2 { // the second time perhaps from the flow cache
					p := slices.Clone(c.p)
					if got := co.inbound(tb.cur.Load(), p, outerOf(outers[c.from])); got != want {
						t.Fatalf("%v, want %v", got, want)
					}
					if want == DropNone && !bytes.Equal(p, hop(c.p)) {
						t.Errorf("passed as %x, want %x", p, hop(c.p))
					} else if want != DropNone && !bytes.Equal(p, c.p) {
						t.Errorf("dropped, and changed to %x from %x", p, c.p)
					}
				}
				if got := len(out.toPeers) == 2; got != told || len(out.toHosts) != 0 {
					t.Errorf("%d errors to peers, %d to this host; want one each time: %v", len(out.toPeers), len(out.toHosts), told)
				}
				if !told {
					return
				}
				m := mustDecode(t, out.toPeers[0])
				if m.what() != "expired" || out.peers[0].Endpoint != port("192.0.2.1:8285") || !bytes.Equal(m.quote, c.p) {
					t.Errorf("the sender was told %v by %v", m, out.peers[0].Endpoint)
				}
				if router := tb.cur.Load().router(c.p); m.src != router || m.dst != udpSource(c.p) {
					t.Errorf("error from %v to %v, want from %v to %v", m.src, m.dst, router, udpSource(c.p))
				}
			})
		}
	}
}

func udpSource(p []byte) netip.Addr {
	n := 16
	at := 8
	if p[0]>>4 == 4 {
		n, at = 4, 12
	}
	a, _ := netip.AddrFromSlice(p[at : at+n])
	return a
}

// TestInboundExpiredFromNobody: with the filter off an expired packet whose
// source is nobody's is told to nobody.
func TestInboundExpiredFromNobody(t *testing.T) {
	tb := newTable(t, filterPeers()...)
	co, out := newCore(tb, Config{NoFilter: true})
	for _, src := range []string{"8.8.8.8", "10.1.0.9"} {
		in := udp4(nil).back()
		in.src, in.ttl = ip(src), 1
		if d := co.inbound(tb.cur.Load(), in.packet(), outerOf("192.0.2.9")); d != DropExpiredIn || len(out.toPeers) != 0 {
			t.Errorf("from %s: %v, %d errors", src, d, len(out.toPeers))
		}
	}
}

func TestOutbound(t *testing.T) {
	endpoints := map[string]string{hostA: "192.0.2.1:8285", hostB: "[2001:db8::2]:8285", hostC: "192.0.2.1:9999"}
	for _, c := range outboundCases() {
		t.Run(c.name, func(t *testing.T) {
			tb := newTable(t, filterPeers()...)
			co, out := newCore(tb, Config{})
			p := slices.Clone(c.p)
			pr, d := co.outbound(tb.cur.Load(), p)
			if d != c.want || (pr != nil) != (c.peer != "") || pr != nil && pr.Endpoint.String() != endpoints[c.peer] {
				t.Fatalf("%v to %v, want %v to %q", d, pr, c.want, c.peer)
			}
			if want := c.p; d == DropNone && !bytes.Equal(p, hop(want)) || d != DropNone && !bytes.Equal(p, want) {
				t.Errorf("the packet became %x\nfrom %x", p, want)
			}
			if c.told == "" {
				if len(out.toHosts)+len(out.toPeers) != 0 {
					t.Errorf("somebody was told: %v %v", out.toHosts, out.toPeers)
				}
				return
			}
			if len(out.toHosts) != 1 || len(out.toPeers) != 0 {
				t.Fatalf("%d errors to this host, %d to peers; want one and none", len(out.toHosts), len(out.toPeers))
			}
			m := mustDecode(t, out.toHosts[0])
			if m.what() != c.told || m.src != tb.cur.Load().router(c.p) || m.dst != udpSource(c.p) || !bytes.Equal(m.quote, c.p) {
				t.Errorf("told %v, want %s from %v to %v", m, c.told, tb.cur.Load().router(c.p), udpSource(c.p))
			}
			if co.stats.ICMPSent != 1 {
				t.Errorf("ICMPSent is %d", co.stats.ICMPSent)
			}
		})
	}
}

// TestNoICMP: Config.NoICMP makes none.
func TestNoICMP(t *testing.T) {
	tb := newTable(t, filterPeers()...)
	co, out := newCore(tb, Config{NoICMP: true})
	x := udp4(nil)
	x.dst = ip("10.200.0.1")
	co.outbound(tb.cur.Load(), x.packet())
	y := udp4(nil).back()
	y.ttl = 1
	co.inbound(tb.cur.Load(), y.packet(), outerOf("192.0.2.1"))
	if len(out.toHosts)+len(out.toPeers) != 0 || co.stats.ICMPSent != 0 {
		t.Errorf("%d errors, %d counted", len(out.toHosts)+len(out.toPeers), co.stats.ICMPSent)
	}
}

// TestFlowCacheChangesNothing compares a core that remembers flows with cores
// that never saw a packet, while peers come, go and move.
func TestFlowCacheChangesNothing(t *testing.T) {
	sets := [][]Peer{
		filterPeers(),
		{{Endpoint: port("192.0.2.1:8285"), Subnets: prefixes("10.3.0.0/16", "fd00:2::/64")}},
		{{Endpoint: port("192.0.2.5:8285"), Subnets: subnetsA()}},
		{},
	}
	rapid.Check(t, func(t *rapid.T) {
		tb := NewTable()
		cached, _ := newCore(tb, Config{NoICMP: true})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "replace") == 0 {
				local := localSubnets()
				if rapid.IntRange(0, 4).Draw(t, "other local") == 0 {
					local = prefixes("10.99.0.0/16")
				}
				if err := tb.Replace(local, rapid.SampledFrom(sets).Draw(t, "set")); err != nil {
					t.Fatal(err)
				}
			}
			in := udp4(nil).back()
			in.src = ip(rapid.SampledFrom([]string{"10.2.0.7", "10.3.0.7", "10.4.0.7"}).Draw(t, "src"))
			in.dst = ip(rapid.SampledFrom([]string{"10.1.0.5", "10.1.0.6", "10.99.0.1"}).Draw(t, "dst"))
			if rapid.Bool().Draw(t, "v6") {
				in = udp6(nil).back()
				in.src = ip(rapid.SampledFrom([]string{"fd00:2::7", "fd00:2::8", "fd00:3::7"}).Draw(t, "src6"))
			}
			outer := outerOf(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.5", "2001:db8::2"}).Draw(t, "outer"))
			fresh, _ := newCore(tb, Config{NoICMP: true})
			got := cached.inbound(tb.cur.Load(), in.packet(), outer)
			if want := fresh.inbound(tb.cur.Load(), in.packet(), outer); got != want {
				t.Fatalf("%v from %v: %v with a flow cache that has %+v, %v without", in, outer, got, cached.flow, want)
			}
		}
	})
}

// TestFlowCache is what the cache must not let through, one by one.
func TestFlowCache(t *testing.T) {
	for _, p := range [][]byte{udp4(nil).back().packet(), udp6(nil).back().packet()} {
		tb := newTable(t, filterPeers()...)
		co, _ := newCore(tb, Config{})
		arrive := func(outer string) Drop { return co.inbound(tb.cur.Load(), slices.Clone(p), outerOf(outer)) }
		if d := arrive("192.0.2.1"); d != DropNone {
			t.Fatalf("the flow's first packet: %v", d)
		}
		if d := arrive("192.0.2.9"); d != DropUnknownPeer {
			t.Errorf("the same flow from a stranger: %v", d)
		}
		if d := arrive("2001:db8::2"); d != DropSpoofed {
			t.Errorf("the same flow from another peer: %v", d)
		}
		if d := arrive("192.0.2.1"); d != DropNone {
			t.Errorf("the flow again: %v", d)
		}
		moved := filterPeers()[:1]
		moved[0].Endpoint = port("192.0.2.7:8285")
		if err := tb.Replace(localSubnets(), moved); err != nil {
			t.Fatal(err)
		}
		if d := arrive("192.0.2.1"); d != DropUnknownPeer {
			t.Errorf("the flow after its peer moved: %v", d)
		}
		if d := arrive("192.0.2.7"); d != DropNone {
			t.Errorf("the flow from where its peer is now: %v", d)
		}
		if err := tb.Replace(prefixes("10.77.0.0/16"), moved); err != nil {
			t.Fatal(err)
		}
		if d := arrive("192.0.2.7"); d != DropNotLocal {
			t.Errorf("the flow after this host's subnet changed: %v", d)
		}
	}
}

// TestDecTTLOfSuper: a super-packet loses one hop as a whole; its segments are
// compared in the tests of the raw path.
func TestDecTTLOfSuper(t *testing.T) {
	tb := newTable(t, filterPeers()...)
	co, _ := newCore(tb, Config{})
	p, _ := tcp4(pattern(5000, 1)).super(1000)
	before := offload.TTL(p)
	if _, d := co.outbound(tb.cur.Load(), p); d != DropNone || offload.TTL(p) != before-1 || slowSum(p[:20]) != 0 {
		t.Errorf("%v, TTL %d from %d, header sum %#x", d, offload.TTL(p), before, slowSum(p[:20]))
	}
}
