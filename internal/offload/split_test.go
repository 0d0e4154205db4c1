package offload_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// split returns the segments of the super-packet p. It checks what the Splitter
// says of them, and that it writes nothing but the headers it is given room for.
func split(s *offload.Splitter, p []byte, v offload.Virtio) ([][]byte, error) {
	payload := bytes.Clone(p)
	if err := s.Start(p, v); err != nil {
		return nil, err
	}
	hl := s.HeaderLen()
	var out [][]byte
	at := hl
	for {
		room := bytes.Repeat([]byte{0xa5}, hl+16)
		dst := room[: hl+len(out)%9 : hl+8] // the room may be larger than the header
		pay := s.Next(dst)
		if !bytes.Equal(room[hl:], bytes.Repeat([]byte{0xa5}, 16)) {
			return nil, fmt.Errorf("segment %d: Next wrote behind the %d bytes of the header", len(out), hl)
		}
		if pay == nil {
			break
		}
		if at+len(pay) > len(p) || &pay[0] != &p[at] {
			return nil, fmt.Errorf("segment %d: the payload is not that at %d", len(out), at)
		}
		at += len(pay)
		out = append(out, append(room[:hl:hl], pay...))
	}
	if at != len(p) || !bytes.Equal(p[hl:], payload[hl:]) {
		return nil, fmt.Errorf("%d of %d bytes are in the segments, or the payload was changed", at, len(p))
	}
	if len(out) != s.Segments() {
		return nil, fmt.Errorf("%d segments, but Segments says %d", len(out), s.Segments())
	}
	for i, b := range out {
		if want := s.SegmentSize(); len(b) != want && (i < len(out)-1 || len(b) > want) {
			return nil, fmt.Errorf("segment %d has %d bytes, but SegmentSize says %d", i, len(b), want)
		}
	}
	return out, nil
}

// superPacket returns a super-packet as a TUN device hands it out.
func superPacket(c chooser) ([]byte, offload.Virtio) {
	f := newFlow(c, c.IntN(16))
	p := f.next
	p.id, p.seq = uint16(c.IntN(1<<16)), uint32(c.IntN(1<<16))<<16|0xf800
	p.tos, p.ttl = byte(c.IntN(256)), byte(c.IntN(254)+2)
	p.label *= uint32(c.IntN(2))
	p.evil = oneIn(c, 8) && !p.v6()
	p.ack, p.window, p.urgent = uint32(c.IntN(1<<30)), uint16(c.IntN(1<<16)), uint16(c.IntN(2))
	p.reserved = byte(pick(c, 0, c.IntN(16)))
	p.flags = ack | byte(pick(c, 0, psh, fin, psh|fin, cwr, cwr|psh, ece, ece|cwr, c.IntN(256)))
	if n := c.IntN(44); p.proto == protoTCP && n < 4 {
		p.tcpOptions = bytes.Repeat([]byte{1}, n*12+4)
	}
	if oneIn(c, 4) {
		if p.v6() {
			p.extend(60)
		} else {
			p.options = bytes.Repeat([]byte{1}, 4*(1+c.IntN(10)))
		}
	}
	size := pick(c, 1+c.IntN(1500), 1448, 8948, 1000, 536, 1)
	most := 65535 - p.headerLen()
	segs := 1 + c.IntN(min(most/size, 48))
	n := min(size*segs+pick(c, 0, 0, 1, c.IntN(size)), most)
	if oneIn(c, 16) && size > 300 {
		n = most
	}
	p.payload = somePayload(c, n)
	b := p.bytes()
	at := p.ipLen()
	v := offload.Virtio{Flags: 1, HdrLen: uint16(p.headerLen()), GSOSize: uint16(size), CsumStart: uint16(at)}
	switch {
	case p.proto == protoUDP:
		v.GSOType, v.CsumOffset = 5, 6
	case p.v6():
		v.GSOType, v.CsumOffset = 4, 16
	default:
		v.GSOType, v.CsumOffset = 1, 16
	}
	if p.proto == protoTCP && p.flags&cwr != 0 {
		v.GSOType |= 0x80
	}
	if oneIn(c, 4) {
		v.HdrLen = uint16(min(p.headerLen()+size, len(b))) // as the kernel says of a forwarded packet
	}
	partial(b, at, p.proto)
	return b, v
}

// partial puts the sum of the pseudo-header where the checksum goes.
func partial(b []byte, at int, proto byte) {
	field := at + 16
	if proto == protoUDP {
		field = at + 6
	}
	put16(b[field:], onesSum(pseudo(b, proto, len(b)-at)))
}

// cutAsOracle splits p and compares with the slow oracle.
func cutAsOracle(s *offload.Splitter, p []byte, v offload.Virtio) error {
	proto := byte(protoTCP)
	if v.GSOType == 5 {
		proto = protoUDP
	}
	want := slowCut(p, int(v.CsumStart), proto, int(v.GSOSize))
	got, err := split(s, p, v)
	if err != nil {
		return err
	}
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			return fmt.Errorf("%+v: segment %d of %d:\n got %s\nwant %s", v, i, len(want), describe(got[i]), describe(want[i]))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%+v: %d segments, want %d", v, len(got), len(want))
	}
	return nil
}

func TestSplitProperty(t *testing.T) {
	var s offload.Splitter // one for all: nothing may stay behind
	rounds := 1500
	if testing.Short() {
		rounds = 400
	}
	for seed := range rounds {
		p, v := superPacket(newRand(uint64(seed)))
		if err := cutAsOracle(&s, p, v); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		p, v := superPacket(rapidChooser{rt})
		if err := cutAsOracle(&s, p, v); err != nil {
			rt.Fatal(err)
		}
	})
}

// TestSplitZeroSum cuts segments whose checksums are zero before they are
// written: UDP sends 0xffff for it (RFC 768), TCP zero.
func TestSplitZeroSum(t *testing.T) {
	var s offload.Splitter
	for _, base := range basePackets() {
		const size, segs = 100, 3
		base.payload = bytes.Clone(noise[:size*segs])
		at, typ, off := base.ipLen(), byte(1), 16
		if base.v6() {
			typ = 4
		}
		if base.proto == protoUDP {
			typ, off = 5, 6
		}
		v := offload.Virtio{Flags: 1, GSOType: typ, GSOSize: size, CsumStart: uint16(at), CsumOffset: uint16(off)}
		// With two zero bytes in it a segment has some checksum; put there, it makes the sum all ones.
		for i := range segs {
			put16(base.payload[i*size+10:], 0)
		}
		b := base.bytes()
		for i, seg := range slowCut(b, at, base.proto, size) {
			copy(b[base.headerLen()+i*size+10:], seg[at+off:at+off+2])
		}
		partial(b, at, base.proto)
		got, err := split(&s, b, v)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if base.proto == protoUDP {
			want = 0xffff
		}
		for i, seg := range got {
			if get16(seg[at+off:]) != want || !sumRight(seg) {
				t.Errorf("IPv%d, protocol %d: segment %d has the checksum %#x, want %#x", b[0]>>4, base.proto, i, get16(seg[at+off:]), want)
			}
		}
	}
}

// TestSplitSourceRoute: what is sent by way of another host has that one's
// address in its IP header, and a checksum over that of its destination (RFC
// 8200 section 8.1, RFC 1122 section 3.2.1.8). The kernel knows; its partial
// checksum is all that tells.
func TestSplitSourceRoute(t *testing.T) {
	for _, p := range basePackets() {
		p.payload = noise[:1000]
		hop := p.dst[:len(p.dst)-1] + "\x77"
		if p.v6() {
			p.extType, p.ext = 43, append([]byte{p.proto, 4, 4, 1, 1, 0, 0, 0}, p.dst+hop...)
		} else {
			p.options = append([]byte{131, 7, 4}, p.dst+"\x00"...)
		}
		via := func(b []byte) []byte {
			if p.v6() {
				copy(b[24:], hop)
			} else {
				copy(b[16:], hop)
				completeIPv4(b)
			}
			return b
		}
		super := p.bytes()
		var want [][]byte
		for _, b := range slowCut(super, p.ipLen(), p.proto, 300) {
			want = append(want, via(b))
		}
		partial(super, p.ipLen(), p.proto)
		v := offload.Virtio{Flags: 1, GSOType: 5, GSOSize: 300, CsumStart: uint16(p.ipLen()), CsumOffset: 6}
		if p.proto == protoTCP {
			v.GSOType, v.CsumOffset = map[bool]byte{false: 1, true: 4}[p.v6()], 16
		}
		got, err := split(new(offload.Splitter), via(super), v)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(got, want); d != "" {
			t.Errorf("IPv%d, protocol %d: %s", super[0]>>4, p.proto, d)
		}
	}
}

// TestSplitRefuses is about super-packets that contradict their virtio header.
func TestSplitRefuses(t *testing.T) {
	for _, r := range []struct {
		name  string
		about about
		spoil func(p []byte, v *offload.Virtio) []byte
	}{
		{"no GSO type", all, func(p []byte, v *offload.Virtio) []byte { v.GSOType = 0; return p }},
		{"UDP fragmentation", all, func(p []byte, v *offload.Virtio) []byte { v.GSOType = 3; return p }},
		{"unknown type", all, func(p []byte, v *offload.Virtio) []byte { v.GSOType = 7; return p }},
		{"type of the other IP version", tcp | anyIP, func(p []byte, v *offload.Virtio) []byte { v.GSOType ^= 1 ^ 4; return p }},
		{"other IP version", all, func(p []byte, v *offload.Virtio) []byte { p[0] ^= 0x20; return p }},
		{"IP version 5", all, func(p []byte, v *offload.Virtio) []byte { p[0] = 0x55; return p }},
		{"segments of no bytes", all, func(p []byte, v *offload.Virtio) []byte { v.GSOSize = 0; return p }},
		{"no payload", all, func(p []byte, v *offload.Virtio) []byte { return setLength(p[:v.HdrLen]) }},
		{"cut short", all, func(p []byte, v *offload.Virtio) []byte { return p[:len(p)-1] }},
		{"a byte too many", all, func(p []byte, v *offload.Virtio) []byte { return append(p, 0) }},
		{"nothing", all, func(p []byte, v *offload.Virtio) []byte { return nil }},
		{"less than an IPv4 header", all, func(p []byte, v *offload.Virtio) []byte { return p[:19] }},
		{"less than an IPv6 header", any6, func(p []byte, v *offload.Virtio) []byte { return p[:39] }},
		{"half a transport header", all, func(p []byte, v *offload.Virtio) []byte { return setLength(p[:v.CsumStart+7]) }},
		{"most of a TCP header", tcp | anyIP, func(p []byte, v *offload.Virtio) []byte { return setLength(p[:v.CsumStart+19]) }},
		{"TCP header of 16 bytes", tcp | anyIP, func(p []byte, v *offload.Virtio) []byte { p[v.CsumStart+12] = 0x40; return p }},
		{"TCP header longer than the packet", tcp | anyIP, func(p []byte, v *offload.Virtio) []byte {
			p[v.CsumStart+12] = 0xf0
			return setLength(p[:v.CsumStart+60])
		}},
		{"no partial checksum", all, func(p []byte, v *offload.Virtio) []byte { v.Flags = 0; return p }},
		{"a valid checksum, not a partial one", all, func(p []byte, v *offload.Virtio) []byte { v.Flags = offload.DataValid; return p }},
		{"checksum of the other protocol", all, func(p []byte, v *offload.Virtio) []byte { v.CsumOffset ^= 6 ^ 16; return p }},
		{"checksum from 0 on", all, func(p []byte, v *offload.Virtio) []byte { v.CsumStart = 0; return p }},
		{"checksum inside the IP header", all, func(p []byte, v *offload.Virtio) []byte { v.CsumStart--; return p }},
		{"checksum behind the packet", all, func(p []byte, v *offload.Virtio) []byte { v.CsumStart = 0xffff; return p }},
		{"IPv4 options that are none", any4, func(p []byte, v *offload.Virtio) []byte { v.CsumStart += 4; return p }},
		{"IPv4 header of 16 bytes", any4, func(p []byte, v *offload.Virtio) []byte { p[0] = 0x44; v.CsumStart = 16; return p }},
		{"IPv4 header longer than the packet", any4, func(p []byte, v *offload.Virtio) []byte {
			p[0] = 0x4f
			v.CsumStart = 60
			return setLength(p[:40])
		}},
	} {
		for _, base := range basePackets() {
			if !r.about.covers(&base) {
				continue
			}
			base.payload = noise[:1000]
			p := base.bytes()
			v := offload.Virtio{Flags: 1, GSOType: 5, GSOSize: 100, HdrLen: uint16(base.headerLen()), CsumStart: uint16(base.ipLen()), CsumOffset: 6}
			if base.proto == protoTCP {
				v.GSOType, v.CsumOffset = map[bool]byte{false: 1, true: 4}[base.v6()], 16
			}
			var s offload.Splitter
			if err := s.Start(bytes.Clone(p), v); err != nil {
				t.Fatalf("unspoiled: %v", err)
			}
			p = r.spoil(p, &v)
			if err := s.Start(p, v); !errors.Is(err, offload.ErrSuper) {
				t.Errorf("%s: IPv%d, protocol %d: error %v, want one of ErrSuper", r.name, base.network(0)[0]>>4, base.proto, err)
			}
			if pay := s.Next(make([]byte, 200)); pay != nil {
				t.Errorf("%s: after the error there is a segment", r.name)
			}
		}
	}
}

// setLength makes the length in the IP header that of p.
func setLength(p []byte) []byte {
	if p[0]>>4 == 6 {
		put16(p[4:], len(p)-40)
	} else {
		put16(p[2:], len(p))
	}
	return p
}
