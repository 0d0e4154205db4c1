package encap

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	const rate, burst = 50, 20
	var b bucket
	now := int64(1)
	took := func(tries int) (n int) {
		for range tries {
			if b.take(now, rate, burst) {
				n++
			}
		}
		return n
	}
	if n := took(100); n != burst {
		t.Errorf("%d of a full bucket, want %d", n, burst)
	}
	now += 1e9/rate - 1
	if n := took(10); n != 0 {
		t.Errorf("%d just before the next is due", n)
	}
	now += 2
	if n := took(10); n != 1 {
		t.Errorf("%d when the next is due, want 1", n)
	}
	now += 1e9 / rate * 5
	if n := took(100); n != 5 {
		t.Errorf("%d after the time of five", n)
	}
	// However long nothing happened: a full bucket, no overflow.
	for _, idle := range []int64{1e9, 60e9, 3600e9, 3e17, math.MaxInt64 - 4e17} {
		if now += idle; now < 0 {
			t.Fatal("the test's own clock overflows")
		}
		if n := took(1000); n != burst {
			t.Errorf("%d after %v idle, want %d", n, time.Duration(idle), burst)
		}
		if b.tokens < 0 || b.tokens >= 100 {
			t.Errorf("%d hundredths left after %v idle", b.tokens, time.Duration(idle))
		}
	}
}

// TestBucketRate: the rate is kept however often it is asked, also at
// intervals that are no multiple of what a hundredth takes.
func TestBucketRate(t *testing.T) {
	const seconds = 20
	for _, c := range []struct{ rate, burst int64 }{{limitGroup, burstGroup}, {limitAll, burstAll}} {
		for _, every := range []int64{7777, 15000, 19999, 199_999, 399_000, 1_234_567, 5e6} {
			var b bucket
			n, calls := int64(0), 0
			for now := int64(1); now < seconds*1e9; now += every {
				if calls++; b.take(now, c.rate, c.burst) {
					n++
				}
			}
			want := min(float64(c.rate*seconds), float64(calls))
			if got := float64(n - min(c.burst, n)); got > want*1.001 || got < want*0.97-float64(c.burst) {
				t.Errorf("asked every %v for %d s: %d, want %.0f and a burst of %d", time.Duration(every), seconds, n, want, c.burst)
			}
		}
	}
}

func TestLimiterGroups(t *testing.T) {
	var l limiter
	from := func(a netip.Addr) []byte {
		in := udp4(nil)
		if !a.Is4() {
			in = udp6(nil)
		}
		in.src = a
		return in.packet()
	}
	group := func(p []byte) uint32 {
		if p[0]>>4 == 4 {
			return hash32(binary.BigEndian.Uint32(p[12:])) >> 24
		}
		return hash128(binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:])) >> 24
	}
	flood := from(ip("10.1.0.5"))
	begin := monotonic()
	n := 0
	for range 50_000 {
		if l.allow(flood) {
			n++
		}
	}
	// What it may be depends on how long the loop took.
	limit := burstGroup + int(time.Duration(monotonic()-begin).Seconds()*limitGroup) + 1
	if n < burstGroup || n > limit {
		t.Errorf("one sender got %d errors, want %d to %d", n, burstGroup, limit)
	}
	// Everybody else still gets theirs, until the limit for all.
	others := 0
	for i := range 100 {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})} {
			p := from(a)
			if group(p) == group(flood) {
				continue
			}
			if l.allow(p) {
				others++
			} else if others < burstAll-limit {
				t.Fatalf("%v got nothing after %d others had theirs", a, others)
			}
		}
	}
	total := burstAll + int(time.Duration(monotonic()-begin).Seconds()*limitAll) + 1
	if n+others > total {
		t.Errorf("%d errors in all, want at most %d", n+others, total)
	}
	// Neighbours, as pods of one host are, fall into different groups.
	groups := map[uint32]bool{}
	for i := range 64 {
		groups[group(from(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})))] = true
	}
	if len(groups) < 32 {
		t.Errorf("64 neighbours share %d groups", len(groups))
	}
}

func TestLimitedIsCounted(t *testing.T) {
	co, out := newCore(newTable(t), Config{})
	in := udp4(nil)
	in.dst = ip("10.200.0.1")
	p := in.packet()
	begin := monotonic()
	const tries = 1000
	for range tries {
		if _, d := co.outbound(co.table.cur.Load(), p); d != DropNoRoute {
			t.Fatal(d)
		}
	}
	sent := len(out.toHosts)
	if limit := burstGroup + int(time.Duration(monotonic()-begin).Seconds()*limitGroup) + 1; sent > limit || sent < burstGroup {
		t.Errorf("%d errors for %d packets, want %d to %d", sent, tries, burstGroup, limit)
	}
	if co.stats.ICMPSent != uint64(sent) || co.stats.ICMPLimited != uint64(tries-sent) {
		t.Errorf("%d sent and %d limited are counted, %d were sent of %d", co.stats.ICMPSent, co.stats.ICMPLimited, sent, tries)
	}
}

// FuzzICMP: whatever the host sends, nothing panics, and an error about it is
// a good message to its sender that no rule forbids.
func FuzzICMP(f *testing.F) {
	for _, in := range []inner{udp4(pattern(30, 1)), udp6(pattern(600, 1)), tcp4(pattern(1400, 1)), tcp6(pattern(1400, 1))} {
		for _, ttl := range []byte{1, 64} {
			in.ttl = ttl
			f.Add(in.packet(), uint16(1400))
		}
		in.dst = ip(map[bool]string{true: "10.250.0.1", false: "fd00:9::1"}[in.src.Is4()])
		f.Add(in.packet(), uint16(0))
	}
	errs := udp6(append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, pattern(60, 1)...))
	errs.proto, errs.ttl = 58, 1
	f.Add(errs.packet(), uint16(1280))
	errs.ext, errs.next = []byte{58, 0, 1, 4, 0, 0, 0, 0}, 0
	f.Add(errs.packet(), uint16(1280))
	tb := newTable(f, filterPeers()...)
	f.Fuzz(func(t *testing.T, data []byte, pmtu uint16) {
		s := tb.cur.Load()
		co, out := newCore(tb, Config{})
		p := slices.Clone(data)
		pr, d := co.outbound(s, p)
		if len(out.toHosts) > 1 || len(out.toPeers) > 0 {
			t.Fatalf("%d errors to this host, %d to peers", len(out.toHosts), len(out.toPeers))
		}
		if pr != nil {
			co.tooBig(s, p, len(p), pr, int(pmtu))
		}
		if len(out.toHosts) == 0 {
			return
		}
		msg := out.toHosts[0]
		for range 2 {
			m := mustDecode(t, msg)
			switch w := m.what(); {
			case d == DropNoRoute && w == "unreachable", d == DropExpired && w == "expired":
			case d == DropNone && m.mtu >= 68 && (!m.v6 || m.mtu >= 1280):
			default:
				t.Fatalf("%v about a packet that is %v", m, d)
			}
			if m.dst != udpSource(p) || !bytes.HasPrefix(p, m.quote) || m.dst.IsMulticast() || m.dst.IsUnspecified() || m.dst.IsLoopback() {
				t.Fatalf("%v about %x", m, p)
			}
			if proto, typ := p[9], byte(0); p[0]>>4 == 4 && proto == 1 {
				if typ = p[int(p[0]&15)*4]; typ != 0 && (typ < 8 || typ == 11 || typ == 12 || typ > 18) {
					t.Fatalf("an error about ICMP type %d", typ)
				}
			} else if p[0]>>4 == 6 && p[6] == 58 && p[40] < 128 {
				t.Fatalf("an error about ICMPv6 type %d", p[40])
			}
			setSource(msg, p) // the form that is written to the device
		}
	})
}
