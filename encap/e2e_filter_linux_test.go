package encap_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
)

// forger is a socket of the test on host B that sends datagrams to A's engine,
// and a second one at an address that is no peer's.
type forger struct {
	*lab
	peer, stranger *net.UDPConn
	sniff          *sniffer
}

func newForger(t *testing.T, cfg labConfig) *forger {
	t.Helper()
	cfg.BareB = true
	f := &forger{lab: startLab(t, cfg)}
	other := netip.MustParseAddr("192.0.2.77")
	if cfg.Outer6 {
		other = netip.MustParseAddr("2001:db8::77")
	}
	check(t, f.b.host.AddAddr(f.b.host.Underlay, netip.PrefixFrom(other, other.BitLen())))
	if cfg.Outer6 {
		waitLocal(t, f.b.host.NS, other)
	}
	var err error
	f.peer, err = udpSocket(f.b.hostPlace(), f.b.endpoint, netip.AddrPort{})
	check(t, err)
	t.Cleanup(func() { f.peer.Close() })
	f.stranger, err = udpSocket(f.b.hostPlace(), netip.AddrPortFrom(other, 4001), netip.AddrPort{})
	check(t, err)
	t.Cleanup(func() { f.stranger.Close() })
	f.sniff = newSniffer(t, f.a.host.NS, "flannel0")
	return f
}

// A forgery is a datagram and what must become of it.
type forgery struct {
	name   string
	packet []byte
	drop   encap.Drop
	from   *net.UDPConn // nil: the peer
}

// changed returns a copy of p with f applied; an IPv4 header gets its checksum.
func changed(p []byte, f func([]byte) []byte) []byte {
	p = f(append([]byte(nil), p...))
	if len(p) >= 20 && p[0] == 0x45 {
		refresh(p)
	}
	return p
}

// forgeries lists them for one inner IP version.
func (f *forger) forgeries(v6 bool) []forgery {
	podA, hostA := f.a.podPlace().addr(v6), f.a.hostPlace().addr(v6)
	podB := f.b.podPlace().addr(v6)
	// third is in the subnet of a peer that lives elsewhere.
	third, world, underlay := "10.244.3.3", "8.8.8.8", f.a.host.Addr4.Addr()
	nobodys := []string{"10.244.2.2", "10.244.3.3", "10.244.99.9", "8.8.8.8", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"}
	short := 19
	if v6 {
		third, world, underlay = "fd00:244:3::3", "2001:4860::8", f.a.host.Addr6.Addr()
		nobodys = []string{"fd00:244:2::2", "fd00:244:3::3", "2001:4860::8", "::1", "::", "ff02::1", "fe80::1", "::ffff:10.244.1.2"}
		short = 39
	}
	packet := func(src, dst netip.Addr, ttl byte) []byte {
		return udpPacket(netip.AddrPortFrom(src, 6666), netip.AddrPortFrom(dst, 6667), ttl, []byte("forged packet"))
	}
	good := packet(podB, podA, 9)
	put16 := func(at, add int) func([]byte) []byte {
		return func(p []byte) []byte {
			binary.BigEndian.PutUint16(p[at:], uint16(int(binary.BigEndian.Uint16(p[at:]))+add))
			return p
		}
	}
	length := 2
	if v6 {
		length = 4
	}
	list := []forgery{
		{"stranger", good, encap.DropUnknownPeer, f.stranger},
		{"from the pod itself", packet(podA, podA, 9), encap.DropSpoofed, nil},
		{"from the host itself", packet(hostA, podA, 9), encap.DropSpoofed, nil},
		{"from the underlay address", packet(underlay, podA, 9), encap.DropSpoofed, nil},
		{"from another peer's subnet", packet(netip.MustParseAddr(third), podA, 9), encap.DropSpoofed, nil},
		{"from the world", packet(netip.MustParseAddr(world), podA, 9), encap.DropSpoofed, nil},
		{"to the underlay address", packet(podB, underlay, 9), encap.DropNotLocal, nil},
		{"TTL 1", packet(podB, podA, 1), encap.DropExpiredIn, nil},
		{"TTL 0", packet(podB, podA, 0), encap.DropExpiredIn, nil},
		{"empty", nil, encap.DropShort, nil},
		{"one byte", good[:1], encap.DropShort, nil},
		{"short of a header", good[:short], encap.DropShort, nil},
		{"version 5", changed(good, func(p []byte) []byte { p[0] = 0x55; return p }), encap.DropNotIP, nil},
		{"version 0", changed(good, func(p []byte) []byte { p[0] = 0x05; return p }), encap.DropNotIP, nil},
		{"cut short", good[:len(good)-1], encap.DropLength, nil},
		{"a byte too many", append(good[:len(good):len(good)], 0), encap.DropLength, nil},
		{"length one more", changed(good, put16(length, 1)), encap.DropLength, nil},
		{"length one less", changed(good, put16(length, -1)), encap.DropLength, nil},
	}
	for _, a := range nobodys {
		list = append(list, forgery{"to " + a, packet(podB, netip.MustParseAddr(a), 9), encap.DropNotLocal, nil})
	}
	if !v6 {
		list = append(list,
			forgery{"header of 16 bytes", changed(good, func(p []byte) []byte { p[0] = 0x44; return p }), encap.DropHeader, nil},
			forgery{"header longer than the packet", changed(good[:40], func(p []byte) []byte { p[0] = 0x4f; p[3] = 40; return p }), encap.DropHeader, nil})
		wrong := append([]byte(nil), good...)
		wrong[10] ^= 0x40
		list = append(list, forgery{"wrong header checksum", wrong, encap.DropHeader, nil})
	}
	return append(list, forgery{"good", good, encap.DropNone, nil})
}

// try sends one forgery and wants exactly its counter to move.
func (f *forger) try(x forgery) {
	f.t.Helper()
	if x.from == nil {
		x.from = f.peer
	}
	before := f.a.stats()
	f.sniff.take()
	_, err := x.from.WriteToUDPAddrPort(x.packet, f.a.endpoint)
	check(f.t, err)
	var st encap.Stats
	if !eventually(func() bool {
		st = f.a.stats()
		return st.RX.Packets+inboundDrops(st) > before.RX.Packets+inboundDrops(before)
	}) {
		f.t.Fatalf("%s: neither delivered nor dropped", x.name)
	}
	seen := f.sniff.take()
	if x.drop == encap.DropNone {
		if st.RX.Packets != before.RX.Packets+1 || len(seen) != 1 || len(seen[0]) != len(x.packet) {
			f.t.Errorf("%s: not delivered: %d packets seen, drops %v, before %v", x.name, len(seen), st.Drops, before.Drops)
		}
		return
	}
	want := before.Drops
	want[x.drop]++
	want[encap.DropNotUnicast] = st.Drops[encap.DropNotUnicast] // the device's own neighbour discovery
	if st.Drops != want || len(seen) != 0 {
		f.t.Errorf("%s: %d packets delivered, drops %v, want one more %v than %v", x.name, len(seen), st.Drops, x.drop, before.Drops)
	}
}

// inboundDrops is the number of datagrams that were dropped.
func inboundDrops(st encap.Stats) (n uint64) {
	for d, v := range st.Drops.All() {
		if d >= encap.DropTruncated {
			n += v
		}
	}
	return n
}

// setFilterPeers gives A a third peer, whose subnets nobody may claim.
func (f *forger) setFilterPeers() {
	f.t.Helper()
	check(f.t, f.a.table.Replace(f.a.local, []encap.Peer{f.b.peer(), {
		Endpoint: netip.MustParseAddrPort("192.0.2.3:8285"),
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:244:3::/64")},
	}}))
}

func TestE2EFilter(t *testing.T) {
	for _, outer6 := range []bool{false, true} {
		for _, engine := range []encap.Config{{}, {Checksums: encap.TrustOuter, Without: encap.ReceiveOffload}} {
			t.Run(fmt.Sprintf("outer v6 %v, trust %v", outer6, engine.Checksums == encap.TrustOuter), func(t *testing.T) {
				f := newForger(t, labConfig{Outer6: outer6, Engine: engine})
				f.setFilterPeers()
				for _, v6 := range []bool{false, true} {
					for _, x := range f.forgeries(v6) {
						x.name = fmt.Sprintf("inner v6 %v: %s", v6, x.name)
						f.try(x)
					}
				}
			})
		}
	}
}

// Without the filter whatever is well formed is delivered.
func TestE2ENoFilter(t *testing.T) {
	f := newForger(t, labConfig{Engine: encap.Config{NoFilter: true}})
	f.setFilterPeers()
	for _, v6 := range []bool{false, true} {
		for _, x := range f.forgeries(v6) {
			switch x.drop {
			case encap.DropUnknownPeer, encap.DropSpoofed, encap.DropNotLocal:
				x.drop = encap.DropNone
			}
			f.try(x)
		}
	}
}

// A datagram may be far larger than the MTU of the device; it arrives whole.
func TestE2ELargeDatagramIsWhole(t *testing.T) {
	f := newForger(t, labConfig{})
	for _, v6 := range []bool{false, true} {
		to := f.a.hostPlace()
		rx, err := udpSocket(to, netip.AddrPortFrom(to.addr(v6), 4000), netip.AddrPort{})
		check(t, err)
		defer rx.Close()
		buf := make([]byte, 1<<16)
		header := 28
		if v6 {
			header = 48
		}
		for _, n := range []int{1473, 3032, 16000, 32769, 65507 - header} {
			payload := datagram(make([]byte, n), n)
			p := udpPacket(netip.AddrPortFrom(f.b.podPlace().addr(v6), 1), netip.AddrPortFrom(to.addr(v6), 4000), 9, payload)
			_, err := f.peer.WriteToUDPAddrPort(p, f.a.endpoint)
			check(t, err)
			rx.SetReadDeadline(time.Now().Add(patience))
			k, err := rx.Read(buf)
			check(t, err)
			check(t, same(buf[:k], payload))
		}
	}
	f.a.dropped()
}

// An inbound ICMP error that expires is not answered with another one.
func TestE2ENoICMPAboutInboundErrors(t *testing.T) {
	f := newForger(t, labConfig{})
	for _, v6 := range []bool{false, true} {
		src, dst := f.b.podPlace().addr(v6), f.a.podPlace().addr(v6)
		silent, loud := byte(3), byte(8)
		if v6 {
			silent, loud = 1, 128
		}
		for _, typ := range []byte{silent, loud} {
			before := f.a.stats()
			p := changed(icmpPacket(src, dst, typ), func(p []byte) []byte {
				if v6 {
					p[7] = 1
				} else {
					p[8] = 1
				}
				return p
			})
			f.try(forgery{fmt.Sprintf("ICMP type %d with TTL 1", typ), p, encap.DropExpiredIn, nil})
			want := before.ICMPSent
			if typ == loud {
				want++
			}
			if st := f.a.stats(); st.ICMPSent != want || st.ICMPLimited != before.ICMPLimited {
				t.Errorf("v6 %v: %d errors about ICMP type %d", v6, st.ICMPSent-before.ICMPSent, typ)
			}
		}
	}
}
