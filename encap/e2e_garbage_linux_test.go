package encap_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/encap"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// legal is the slow oracle of what an engine may deliver: written apart from it,
// from RFC 791, RFC 8200 and the filter's three rules.
func (f *forger) legal(p []byte) bool {
	var src, dst netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if header < 20 || header > total || total != len(p) || sum(p[:header], 0) != 0xffff || p[8] < 2 {
			return false
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	case len(p) >= 40 && p[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) || p[7] < 2 {
			return false
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	default:
		return false
	}
	in := func(a netip.Addr, nets []netip.Prefix) bool { return nets[0].Contains(a) || nets[1].Contains(a) }
	return in(src, f.b.local) && in(dst, f.a.local)
}

// garbage makes datagrams that must not be delivered, the same ones for a seed.
type garbage struct {
	f     *forger
	rng   *rand.Rand
	valid [][]byte
}

func newGarbage(f *forger, seed uint64) *garbage {
	g := &garbage{f: f, rng: rand.New(rand.NewPCG(seed, 0))}
	for _, v6 := range []bool{false, true} {
		src, dst := f.b.podPlace().addr(v6), f.a.podPlace().addr(v6)
		g.valid = append(g.valid,
			udpPacket(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 2), 64, make([]byte, 30)),
			udpPacket(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 2), 64, make([]byte, 1300)),
			icmpPacket(src, dst, 8))
	}
	return g
}

// length samples 0 to 65507, small ones most of the time.
func (g *garbage) length() int {
	switch n := g.rng.IntN(1000); {
	case n < 700:
		return g.rng.IntN(100)
	case n < 980:
		return g.rng.IntN(1500)
	case n < 998:
		return g.rng.IntN(9000)
	}
	return g.rng.IntN(65508)
}

// next writes a datagram to b and returns it.
func (g *garbage) next(b []byte) []byte {
	for {
		p := g.candidate(b)
		if !g.f.legal(p) {
			return p
		}
	}
}

func (g *garbage) candidate(b []byte) []byte {
	r := g.rng
	if r.IntN(3) == 0 {
		p := b[:g.length()]
		fill(p, r.Uint64())
		if len(p) > 0 && r.IntN(2) == 0 {
			p[0] = []byte{0x45, 0x46, 0x4f, 0x60}[r.IntN(4)]
		}
		if len(p) >= 20 && p[0]>>4 == 4 && r.IntN(2) == 0 { // a right length leads further in
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			if header := int(p[0]&15) * 4; header >= 20 && header <= len(p) {
				refresh(p)
			}
		}
		if len(p) >= 40 && p[0]>>4 == 6 && r.IntN(2) == 0 {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		return p
	}
	p := b[:copy(b, g.valid[r.IntN(len(g.valid))])]
	for range 1 + r.IntN(4) {
		p[r.IntN(min(len(p), 48))] ^= byte(1 << r.IntN(8))
	}
	if r.IntN(2) == 0 && len(p) >= 20 && p[0] == 0x45 {
		refresh(p)
	}
	switch r.IntN(4) {
	case 0:
		p = p[:r.IntN(len(p)+1)]
	case 1:
		p = b[:len(p)+r.IntN(40)]
	}
	return p
}

// segment writes a datagram of exactly len(b) bytes to b: a train has one size.
func (g *garbage) segment(b []byte) {
	r := g.rng
	for {
		v6 := len(b) >= 48 && r.IntN(2) == 0
		if header := 28; len(b) < header || r.IntN(4) == 0 {
			fill(b, r.Uint64())
		} else {
			if v6 {
				header = 48
			}
			src, dst := g.f.b.podPlace().addr(v6), g.f.a.podPlace().addr(v6)
			copy(b, udpPacket(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 2), 64, b[header:]))
			for range 1 + r.IntN(3) {
				b[r.IntN(min(len(b), header-8))] ^= byte(1 << r.IntN(8))
			}
		}
		if len(b) >= 20 && b[0] == 0x45 && r.IntN(2) == 0 {
			refresh(b)
		}
		if !g.f.legal(b) {
			return
		}
	}
}

// A pace sends no more than the receive buffer holds.
type pace struct {
	f                    *forger
	sent, waiting, bytes int
	seen                 [][]byte
}

// add books n datagrams and waits for the engine if they are many.
func (p *pace) add(n, bytes int) {
	p.sent += n
	p.waiting += n
	p.bytes += bytes
	if p.waiting >= 2048 || p.bytes > 1<<20 {
		p.wait()
	}
}

// wait waits until all that was sent has been dealt with.
func (p *pace) wait() {
	p.f.t.Helper()
	p.f.a.waitStats(fmt.Sprintf("%d datagrams", p.sent), func(st encap.Stats) bool {
		return inboundDrops(st)+st.SocketDrops+st.RX.Packets >= uint64(p.sent)
	})
	p.seen = append(p.seen, p.f.sniff.take()...)
	p.waiting, p.bytes = 0, 0
}

// Datagrams of garbage from a peer's address, of all lengths: none is delivered,
// none is fatal, and each is counted.
func TestE2EGarbage(t *testing.T) {
	slow(t)
	f := newForger(t, labConfig{})
	g := newGarbage(f, 11)
	conn := ipv4.NewPacketConn(f.peer)
	const total, batch = 150_000, 64
	ms := make([]ipv4.Message, batch)
	buf := make([][]byte, batch)
	for i := range ms {
		buf[i] = make([]byte, 1<<16)
		ms[i].Addr = net.UDPAddrFromAddrPort(f.a.endpoint)
	}
	for p := (&pace{f: f}); ; {
		bytes := 0
		for i := range ms {
			b := g.next(buf[i])
			bytes += len(b)
			ms[i].Buffers = [][]byte{b}
		}
		for at := 0; at < batch; {
			n, err := conn.WriteBatch(ms[at:], 0)
			check(t, err)
			at += n
		}
		if p.add(batch, bytes); p.sent > total {
			p.check()
			return
		}
	}
}

// The rest of a million, in trains, as UDP_GRO delivers them.
func TestE2EGarbageTrains(t *testing.T) {
	slow(t)
	f := newForger(t, labConfig{})
	g := newGarbage(f, 12)
	rc, err := f.peer.SyscallConn()
	check(t, err)
	const total = 850_000
	all := make([]byte, 1<<16)
	setSize := func(n int) {
		check(t, rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, n) }), err)
	}
	for p := (&pace{f: f}); ; {
		size := 20 + g.rng.IntN(100)
		if g.rng.IntN(20) == 0 {
			size = 20 + g.rng.IntN(1400)
		}
		count := 1 + g.rng.IntN(min(64, 65507/size))
		train := all[:count*size-g.rng.IntN(size)] // the last one may be shorter
		for at := 0; at < len(train); at += size {
			g.segment(train[at:min(at+size, len(train))])
		}
		setSize(size)
		_, err = f.peer.WriteToUDPAddrPort(train, f.a.endpoint)
		check(t, err)
		if p.add(count, len(train)); p.sent > total {
			setSize(0)
			p.check()
			break
		}
	}
	f.a.waitStats("trains", func(st encap.Stats) bool { return st.RX.Trains > 10_000 })
}

// check checks that nothing of it passed, and that good packets still do.
func (p *pace) check() {
	f, sent := p.f, p.sent
	f.t.Helper()
	p.wait()
	st, seen := f.a.stats(), p.seen
	if len(seen) != 0 || st.RX.Packets != 0 {
		f.t.Errorf("%d packets of garbage were delivered, %d seen", st.RX.Packets, len(seen))
		for _, p := range seen[:min(len(seen), 5)] {
			f.t.Logf("%x", p[:min(len(p), 64)])
		}
	}
	if got := inboundDrops(st) + st.SocketDrops; got != uint64(sent) || st.SocketDrops > uint64(sent)/100 {
		f.t.Errorf("%d datagrams sent, %d dropped, %d of them by the kernel", sent, got, st.SocketDrops)
	}
	for _, d := range []encap.Drop{encap.DropShort, encap.DropNotIP, encap.DropLength, encap.DropHeader,
		encap.DropSpoofed, encap.DropNotLocal, encap.DropExpiredIn} {
		if st.Drops[d] == 0 && (d != encap.DropShort || sent < 500_000) {
			f.t.Errorf("nothing was dropped because of %v: the garbage is too plain", d)
		}
	}
	f.t.Logf("%d datagrams: %v, %d ICMP errors", sent, st.Drops, st.ICMPSent)
	for _, v6 := range []bool{false, true} {
		for _, x := range f.forgeries(v6) {
			if x.drop == encap.DropNone {
				f.try(x)
			}
		}
	}
}
