package offload_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// within returns a copy of b with other bytes around it, and a function that
// says whether these are as they were.
func within(b []byte) (inside []byte, outside func() bool) {
	const margin = 64
	all := bytes.Repeat([]byte{0xa5}, len(b)+2*margin)
	inside = all[margin : margin+len(b) : margin+len(b)]
	copy(inside, b)
	return inside, func() bool {
		guard := bytes.Repeat([]byte{0xa5}, margin)
		return bytes.Equal(all[:margin], guard) && bytes.Equal(all[margin+len(b):], guard)
	}
}

// headerRoom is how long an IP packet that begins like b is at least.
func headerRoom(b []byte) int {
	if len(b) > 0 && b[0]>>4 == 6 {
		return 40
	}
	return 20
}

// FuzzSplit: any packet with any virtio header is refused with ErrSuper, or cut
// as the slow oracle cuts it.
func FuzzSplit(f *testing.F) {
	for seed := range uint64(12) {
		p, v := superPacket(newRand(seed))
		f.Add(p[:min(len(p), 4000)], v.Flags, v.GSOType, v.HdrLen, v.GSOSize, v.CsumStart, v.CsumOffset, true)
	}
	f.Add([]byte{}, byte(0), byte(0), uint16(0), uint16(0), uint16(0), uint16(0), false)
	f.Add(bytes.Repeat([]byte{0x4f}, 59), byte(1), byte(1), uint16(80), uint16(1), uint16(60), uint16(16), true)
	f.Fuzz(func(t *testing.T, data []byte, flags, typ byte, hdrLen, size, start, offset uint16, mend bool) {
		if mend && len(data) >= 40 {
			data = setLength(bytes.Clone(data)) // or hardly anything would get past the first test
		}
		proto, field := byte(protoTCP), 16
		if typ&0x7f == offload.GSOUDPL4 {
			proto, field = protoUDP, 6
		}
		if at := int(start); flags&offload.NeedsCsum != 0 && len(data) >= max(headerRoom(data), at+field+2) {
			data = bytes.Clone(data)
			partial(data, at, proto) // what the kernel promises with that flag
		}
		v := offload.Virtio{Flags: flags, GSOType: typ, HdrLen: hdrLen, GSOSize: size, CsumStart: start, CsumOffset: offset}
		var s offload.Splitter
		p, outside := within(data)
		if err := s.Start(p, v); err != nil {
			if !errors.Is(err, offload.ErrSuper) {
				t.Errorf("error %v, want one of ErrSuper", err)
			}
			if s.Next(make([]byte, 200)) != nil {
				t.Error("a segment after an error")
			}
			if !outside() {
				t.Error("Start wrote outside of the packet")
			}
			return
		}
		if s.Segments() > 3000 {
			return // the oracle would take all day
		}
		v.GSOType &^= 0x80
		p, outside = within(data)
		if err := cutAsOracle(new(offload.Splitter), p, v); err != nil {
			t.Error(err)
		}
		if !outside() {
			t.Error("the Splitter wrote outside of the packet")
		}
	})
}

// script turns fuzz input into packets. Each record has a control byte, a length
// and bytes, which are a packet or the changes to one like the packet before.
func script(data []byte) *batch {
	const (
		follow    = 1 << iota // the packet before, continued, with bytes changed
		cut                   // with less payload
		mendIP                // length and header checksum made right
		mendL4                // checksum (and UDP length) made right
		trustIt               // if its checksum is right
		otherPort             // so that there is more than one flow
	)
	b := &batch{}
	var last []byte
	for len(data) >= 3 && len(b.in) < 200 {
		control, n := data[0], get16(data[1:])%4096
		data = data[3:]
		raw := bytes.Clone(data[:min(n, len(data))])
		data = data[len(raw):]
		p := raw
		if control&follow != 0 && last != nil {
			p = bytes.Clone(last)
			step(p)
			for len(raw) >= 2 && len(p) > 0 {
				p[int(raw[0])%len(p)] ^= raw[1]
				raw = raw[2:]
			}
			if control&cut != 0 && len(p) > 64 {
				p = p[: len(p)-1 : len(p)-1]
			}
		}
		mend(p, control&mendIP != 0, control&mendL4 != 0, control&otherPort != 0)
		last = p
		if slowFault(p) == offload.FaultNone {
			b.add(p, control&trustIt != 0 && sumRight(p))
		}
	}
	return b
}

// step makes of b the packet that comes after it, as far as it has the fields.
func step(b []byte) {
	at, proto := 20, byte(0)
	if len(b) >= 60 {
		proto = b[9]
		if b[0]>>4 == 6 {
			at, proto = 40, b[6]
		} else {
			put16(b[4:], get16(b[4:])+1)
		}
	}
	if proto == protoTCP && len(b) >= at+20 {
		seq := uint32(get16(b[at+4:]))<<16 + uint32(get16(b[at+6:])+len(b)-at-int(b[at+12]>>4)*4)
		copy(b[at+4:], be32(nil, seq))
	}
}

func mend(b []byte, ip, l4, port bool) {
	if len(b) < 40 {
		return
	}
	at, proto := 20, b[9]
	if b[0]>>4 == 6 {
		at, proto = 40, b[6]
	}
	if port && len(b) >= at+4 {
		b[at] ^= 0x10
	}
	if ip {
		setLength(b)
		if b[0] == 0x45 {
			completeIPv4(b)
		}
	}
	if l4 && (proto == protoTCP && len(b) >= at+20 || proto == protoUDP && len(b) >= at+8) {
		if proto == protoUDP {
			put16(b[at+4:], len(b)-at)
		}
		complete(b, at, proto)
	}
}

// scripted is the reverse: a script that gives these packets, some of them as
// changes to the one before.
func scripted(specs []*packet) []byte {
	var out []byte
	var last []byte
	for i, p := range specs {
		raw := p.bytes()
		next := bytes.Clone(last)
		if step(next); len(raw) == len(last) && i%5 != 0 {
			out = append(out, 1|16, 0, 0)
			n := 0
			for at := range raw {
				if at < 256 && next[at] != raw[at] && n < 250 {
					out = append(out, byte(at), next[at]^raw[at])
					n += 2
				}
			}
			out[len(out)-n-1] = byte(n)
		} else {
			raw = raw[:min(len(raw), 4095)]
			out = append(out, 4|8|16)
			out = append(be16(out, uint16(len(raw))), raw...)
		}
		last = raw
	}
	return out
}

// FuzzJoin: whatever packets come, nothing is lost, doubled or overtaken, and the
// runs are, for the slow oracle, the packets that came.
func FuzzJoin(f *testing.F) {
	for i, p := range basePackets() {
		f.Add(scripted(train(p, 4, 100, 50)), uint64(i))
	}
	for seed := range uint64(8) {
		f.Add(scripted(someTraffic(newRand(seed), 16, 3)), seed)
	}
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		b := script(data)
		c := newRand(seed)
		j := offload.NewJoiner(offload.JoinConfig{Packets: len(b.in), KeepTunnelPorts: oneIn(c, 2)})
		groups, err := b.join(j, c)
		if err == nil {
			err = b.overtaken(groups)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// FuzzCheck: Check says what the oracle says, and DecTTL and FinishChecksum do
// what it does, whatever the bytes are.
func FuzzCheck(f *testing.F) {
	for _, p := range basePackets() {
		f.Add(p.bytes(), uint16(p.ipLen()), uint16(16), false)
		p.options, p.payload = []byte{1, 1, 1, 1}, nil
		f.Add(p.bytes(), uint16(p.ipLen()), uint16(6), false)
	}
	f.Add([]byte{0x45}, uint16(0), uint16(6), true)
	f.Fuzz(func(t *testing.T, data []byte, start, offset uint16, mended bool) {
		b, outside := within(data)
		if mended {
			mend(b, true, false, false)
		}
		before := bytes.Clone(b)
		fault := offload.Check(b)
		if want := slowFault(b); fault != want || !bytes.Equal(b, before) {
			t.Fatalf("fault %d, want %d: %s", fault, want, describe(before))
		}
		if fault == offload.FaultNone && offload.TTL(b) > 0 {
			want := bytes.Clone(before)
			if b[0]>>4 == 6 {
				want[7]--
			} else {
				want[8]--
			}
			if b[0]>>4 == 4 {
				completeIPv4(want)
			}
			if offload.DecTTL(b); slowFault(b) != offload.FaultNone || !samePacket(b, want) {
				t.Fatalf("DecTTL:\n was %s\n got %s", describe(before), describe(b))
			}
			copy(b, before)
		}
		want, fits := slowFinish(b, int(start), int(offset))
		if offload.FinishChecksum(b, int(start), int(offset)) != fits || !bytes.Equal(b, want) {
			t.Fatalf("FinishChecksum(%d, %d): % x, want % x", start, offset, b, want)
		}
		if !outside() {
			t.Fatal("bytes around the packet were changed")
		}
	})
}
