package encap

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

// one is a packet as the kernel hands it over: checksum partial, no GSO.
func one(in inner) tunRead {
	v := offload.Virtio{Flags: offload.NeedsCsum, CsumStart: uint16(in.ipLen()), CsumOffset: 16}
	switch in.proto {
	case offload.ProtoTCP:
	case offload.ProtoUDP:
		v.CsumOffset = 6
	default:
		return tunRead{p: in.packet()}
	}
	return tunRead{v: v, p: in.build(false)}
}

// big is a super-packet of segments with mss bytes of payload.
func big(in inner, mss int) tunRead {
	p, v := in.super(mss)
	return tunRead{v: v, p: p}
}

// cut returns the packets that a write to the device stands for: what the
// kernel makes of it, by a segmenter that shares no code with the engine.
func cut(w tunWrite) ([][]byte, error) {
	p, v := slices.Clone(w.p), w.v
	if v == (offload.Virtio{}) {
		return [][]byte{p}, nil
	}
	be := binary.BigEndian
	ipLen := 40
	if p[0]>>4 == 4 {
		ipLen = int(p[0]&15) * 4
		if slowSum(p[:ipLen]) != 0 || int(be.Uint16(p[2:])) != len(p) {
			return nil, fmt.Errorf("IPv4 header sum or length %d of %d", be.Uint16(p[2:]), len(p))
		}
	} else if int(be.Uint16(p[4:]))+40 != len(p) {
		return nil, fmt.Errorf("IPv6 length %d of %d", be.Uint16(p[4:]), len(p))
	}
	proto, at, hdr := byte(offload.ProtoTCP), 16, 0
	if v.CsumOffset == 6 {
		proto, at, hdr = offload.ProtoUDP, 6, ipLen+8
	} else {
		hdr = ipLen + int(p[ipLen+12]>>4)*4
	}
	if v.Flags != offload.NeedsCsum || int(v.CsumStart) != ipLen || int(v.CsumOffset) != at {
		return nil, fmt.Errorf("virtio header %+v", v)
	}
	if got, want := be.Uint16(p[ipLen+at:]), ^slowSum(pseudo(p, proto, len(p)-ipLen)); got != want {
		return nil, fmt.Errorf("partial checksum %#04x, want the pseudo-header's %#04x", got, want)
	}
	if v.GSOType == offload.GSONone {
		putL4Sum(p, ipLen, proto)
		return [][]byte{p}, nil
	}
	wantType := map[byte]uint8{4: offload.GSOTCPv4, 6: offload.GSOTCPv6}[p[0]>>4]
	if proto == offload.ProtoUDP {
		wantType = offload.GSOUDPL4
		if int(be.Uint16(p[ipLen+4:])) != len(p)-ipLen {
			return nil, fmt.Errorf("UDP length %d of %d", be.Uint16(p[ipLen+4:]), len(p)-ipLen)
		}
	}
	mss := int(v.GSOSize)
	if v.GSOType != wantType || mss == 0 || len(p)-hdr <= mss || int(v.HdrLen) != hdr {
		return nil, fmt.Errorf("virtio header %+v for %d bytes with %d of headers", v, len(p), hdr)
	}
	if proto == offload.ProtoUDP && len(p)-hdr > 128*mss {
		return nil, fmt.Errorf("%d bytes in segments of %d: more than 128 (EINVAL)", len(p)-hdr, mss)
	}
	var out [][]byte
	id, seq := be.Uint16(p[4:]), be.Uint32(p[ipLen+4:])
	for i, pay := range slices.Collect(slices.Chunk(p[hdr:], mss)) {
		s := slices.Concat(p[:hdr], pay)
		if p[0]>>4 == 4 {
			be.PutUint16(s[2:], uint16(len(s)))
			be.PutUint16(s[4:], id+uint16(i))
			s[10], s[11] = 0, 0
			be.PutUint16(s[10:], slowSum(s[:ipLen]))
		} else {
			be.PutUint16(s[4:], uint16(len(s)-40))
		}
		if proto == offload.ProtoUDP {
			be.PutUint16(s[ipLen+4:], uint16(len(s)-ipLen))
		} else {
			be.PutUint32(s[ipLen+4:], seq+uint32(i*mss))
			if (i+1)*mss < len(p)-hdr {
				s[ipLen+13] &^= fin | psh
			}
			if i > 0 {
				s[ipLen+13] &^= cwr
			}
		}
		putL4Sum(s, ipLen, proto)
		out = append(out, s)
	}
	return out, nil
}

// cutAll is cut for several writes.
func cutAll(t testing.TB, ws []tunWrite) (ps [][]byte) {
	t.Helper()
	for i, w := range ws {
		c, err := cut(w)
		if err != nil {
			t.Fatalf("write %d: %v\n%x", i, err, w.p)
		}
		ps = append(ps, c...)
	}
	return ps
}

// TestCut holds the segmenter against the builder of super-packets.
func TestCut(t *testing.T) {
	flags := tcp4(pattern(4321, 9))
	flags.flags |= psh | fin | cwr
	for _, in := range []inner{tcp4(pattern(5000, 1)), tcp6(pattern(5001, 2)), udp4(pattern(4999, 3)), udp6(pattern(3000, 4)), flags} {
		p, v := in.super(1000)
		got, err := cut(tunWrite{v, p})
		if err != nil {
			t.Fatal(err)
		}
		if err := differ(got, in.segments(1000)); err != nil {
			t.Error(err)
		}
	}
}
