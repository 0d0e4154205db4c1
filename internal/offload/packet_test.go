package offload_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

func TestCheck(t *testing.T) {
	v4, v6 := basePackets()[0].bytes(), basePackets()[1].bytes()
	options := basePackets()[2]
	options.options = bytes.Repeat([]byte{1}, 40)
	change := func(b []byte, at int, to ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], to)
		return b
	}
	empty4 := (&packet{src: "\x0a\x01\x00\x02", dst: "\x0a\x02\x00\x02", ttl: 64, proto: 59}).bytes()
	short := change(v4, 0, 0x44) // its 16 bytes have the right sum
	put16(short[10:], 0)
	put16(short[10:], 0xffff-onesSum(short[:16]))
	for _, r := range []struct {
		name string
		p    []byte
		want offload.Fault
	}{
		{"IPv4 header of 16 bytes, summed", short, offload.FaultHeader},
		{"IPv4", v4, offload.FaultNone},
		{"IPv6", v6, offload.FaultNone},
		{"IPv4 with options", options.bytes(), offload.FaultNone},
		{"IPv4 with nothing in it", empty4, offload.FaultNone},
		{"IPv6 with nothing in it", setLength(bytes.Clone(v6[:40])), offload.FaultNone},
		{"nothing", nil, offload.FaultShort},
		{"19 bytes", v4[:19], offload.FaultShort},
		{"39 bytes of IPv6", v6[:39], offload.FaultShort},
		{"version 0", change(v4, 0, 0x05), offload.FaultVersion},
		{"version 5", change(v4, 0, 0x55), offload.FaultVersion},
		{"version 15", change(v6, 0, 0xf0), offload.FaultVersion},
		{"IPv4 cut by a byte", v4[:len(v4)-1], offload.FaultLength},
		{"IPv4 and a byte more", append(bytes.Clone(v4), 0), offload.FaultLength},
		{"IPv4 of length 0", change(v4, 2, 0, 0), offload.FaultLength},
		{"IPv4 with options cut by a byte", options.bytes()[:80], offload.FaultLength},
		{"IPv4 header of 16 bytes", change(v4, 0, 0x44), offload.FaultHeader},
		{"IPv4 header of 0 bytes", change(v4, 0, 0x40), offload.FaultHeader},
		{"IPv4 header longer than the packet", change(empty4, 0, 0x46), offload.FaultHeader},
		{"IPv4 header of 24 bytes that has 20", change(v4, 0, 0x46), offload.FaultHeader},
		{"wrong TTL", change(v4, 8, 63), offload.FaultHeader},
		{"wrong address", change(v4, 19, 3), offload.FaultHeader},
		{"wrong option", change(options.bytes(), 59, 0), offload.FaultHeader},
		{"checksum 0", change(v4, 10, 0, 0), offload.FaultHeader},
		{"bytes behind the header", change(v4, 20, 1, 2, 3), offload.FaultNone},
		{"other hop limit", change(v6, 7, 63), offload.FaultNone},
	} {
		if got := offload.Check(r.p); got != r.want || slowFault(r.p) != r.want {
			t.Errorf("%s: fault %d, want %d (the oracle has %d)", r.name, got, r.want, slowFault(r.p))
		}
	}
}

// TestCheckProperty holds Check against the oracle, on packets with a bit or two
// changed.
func TestCheckProperty(t *testing.T) {
	c := newRand(6)
	var seen [5]int
	for range 20000 {
		f := newFlow(c, c.IntN(16))
		f.mss = 1 + c.IntN(60)
		b := f.make(c).bytes()
		for range c.IntN(3) {
			b[c.IntN(min(len(b), 24))] ^= 1 << c.IntN(8)
		}
		b = b[:len(b)-c.IntN(len(b))*c.IntN(2)*c.IntN(2)*c.IntN(2)]
		got, want := offload.Check(b), slowFault(b)
		if got != want {
			t.Fatalf("fault %d, want %d: %s", got, want, describe(b))
		}
		seen[got]++
	}
	for f, n := range seen {
		if n < 100 {
			t.Errorf("fault %d: only %d packets of %v", f, n, seen)
		}
	}
}

// TestDecTTL compares with a header built anew: for every TTL, and for every
// value of the checksum.
func TestDecTTL(t *testing.T) {
	try := func(p packet) {
		before := p.bytes()
		if got := offload.TTL(before); got != p.ttl {
			t.Fatalf("TTL is %d, want %d: %s", got, p.ttl, describe(before))
		}
		got := bytes.Clone(before)
		offload.DecTTL(got)
		p.ttl--
		if want := p.bytes(); !bytes.Equal(got, want) {
			t.Fatalf("from TTL %d:\n was %s\n got %s\nwant %s", p.ttl+1, describe(before), describe(got), describe(want))
		}
	}
	c := newRand(7)
	for range 400 {
		p := newFlow(c, c.IntN(16)).next
		p.id, p.tos, p.proto, p.evil = uint16(c.IntN(1<<16)), byte(c.IntN(256)), byte(c.IntN(256)), oneIn(c, 2)
		p.payload = somePayload(c, c.IntN(4))
		if !p.v6() {
			p.options = somePayload(c, 4*c.IntN(11))
		}
		for ttl := 1; ttl < 256; ttl++ {
			p.ttl = byte(ttl)
			try(p)
		}
	}
	p := packet{src: "\x0a\x01\x00\x02", dst: "\x0a\x02\x00\x02", proto: 59}
	for id := range 1 << 16 {
		p.id, p.ttl = uint16(id), byte(id%255+1)
		try(p)
		p.ttl = 1
		try(p)
	}
}

// TestDecTTLOtherZero: a header checksum may be written as 0xffff instead of 0;
// the header must stay right.
func TestDecTTLOtherZero(t *testing.T) {
	p := packet{src: "\x0a\x01\x00\x02", dst: "\x0a\x02\x00\x02", proto: 59, ttl: 9}
	p.id = uint16(get16(p.bytes()[10:]))
	b := p.bytes()
	if get16(b[10:]) != 0 {
		t.Fatalf("the checksum is not zero: % x", b)
	}
	b[10], b[11] = 0xff, 0xff
	for offload.TTL(b) > 0 {
		if f := offload.Check(b); f != offload.FaultNone {
			t.Fatalf("fault %d: % x", f, b)
		}
		offload.DecTTL(b)
	}
}

func TestFinishChecksum(t *testing.T) {
	c := newRand(8)
	for range 5000 {
		f := newFlow(c, c.IntN(16))
		p := f.next
		p.payload = somePayload(c, 1+c.IntN(2000))
		if c.IntN(3) == 0 && !p.v6() {
			p.options = make([]byte, 4*c.IntN(11))
		} else if c.IntN(3) == 0 && p.v6() {
			p.extend(60)
		}
		want := p.bytes()
		at, offset := p.ipLen(), 16
		if p.proto == protoUDP {
			offset = 6
		}
		got := bytes.Clone(want)
		partial(got, at, p.proto)
		if !offload.FinishChecksum(got, at, offset) || !bytes.Equal(got, want) {
			t.Fatalf("start %d, offset %d:\n got %s\nwant %s", at, offset, describe(got), describe(want))
		}
	}
}

// TestFinishChecksumZero: a computed zero stays zero in TCP and is 0xffff in UDP.
func TestFinishChecksumZero(t *testing.T) {
	for _, p := range basePackets() {
		at, offset, want := p.ipLen(), 16, 0
		if p.proto == protoUDP {
			offset, want = 6, 0xffff
		}
		p.payload = make([]byte, 200)
		copy(p.payload, p.bytes()[at+offset:][:2])
		b := p.bytes()
		partial(b, at, p.proto)
		if !offload.FinishChecksum(b, at, offset) || get16(b[at+offset:]) != want {
			t.Errorf("IPv%d, protocol %d: checksum %#x, want %#x", b[0]>>4, p.proto, get16(b[at+offset:]), want)
		}
	}
}

// TestFinishChecksumAnywhere takes any place in any bytes, or refuses it.
func TestFinishChecksumAnywhere(t *testing.T) {
	c := newRand(9)
	refused := 0
	for range 20000 {
		b := somePayload(c, c.IntN(40))
		start, offset := c.IntN(45)-2, c.IntN(45)-2
		if oneIn(c, 8) {
			start, offset = pick(c, start, 0xffff), pick(c, offset, 0xffff)
		}
		want, fits := slowFinish(b, start, offset)
		if !fits {
			refused++
		}
		if got := bytes.Clone(b); offload.FinishChecksum(got, start, offset) != fits || !bytes.Equal(got, want) {
			t.Fatalf("start %d, offset %d in % x: % x, want % x", start, offset, b, got, want)
		}
	}
	if refused < 1000 || refused > 19000 {
		t.Errorf("%d of 20000 refused: that proves little", refused)
	}
}

func TestVirtio(t *testing.T) {
	c := newRand(10)
	for range 1000 {
		v := offload.Virtio{
			Flags: byte(c.IntN(256)), GSOType: byte(c.IntN(256)), HdrLen: uint16(c.IntN(1 << 16)),
			GSOSize: uint16(c.IntN(1 << 16)), CsumStart: uint16(c.IntN(1 << 16)), CsumOffset: uint16(c.IntN(1 << 16)),
		}
		b := bytes.Repeat([]byte{0xa5}, offload.VirtioLen+6)
		v.Encode(b)
		// The C struct: two bytes and four words of the host's order, no padding.
		want, err := binary.Append(nil, binary.NativeEndian, v)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[:offload.VirtioLen], want) || !bytes.Equal(b[offload.VirtioLen:], bytes.Repeat([]byte{0xa5}, 6)) {
			t.Fatalf("%+v is encoded as % x, want % x and nothing behind it", v, b, want)
		}
		if got := offload.DecodeVirtio(b); got != v {
			t.Fatalf("%+v is decoded as %+v", v, got)
		}
	}
	if got := offload.DecodeVirtio(make([]byte, offload.VirtioLen)); got != (offload.Virtio{}) {
		t.Errorf("zeros are decoded as %+v", got)
	}
}
