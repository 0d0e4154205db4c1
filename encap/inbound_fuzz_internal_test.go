package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// mayPass is the filter's rule written down a second time, over netip and a
// list of prefixes: why p from outer must not pass, or nil.
func mayPass(p []byte, outer netip.Addr, local []netip.Prefix, peers []Peer) error {
	var src, dst netip.Addr
	var ttl byte
	switch {
	case len(p) < 20:
		return fmt.Errorf("%d bytes", len(p))
	case p[0]>>4 == 4:
		ihl := int(p[0]&15) * 4
		if ihl < 20 || ihl > len(p) {
			return fmt.Errorf("header of %d bytes", ihl)
		}
		if n := int(binary.BigEndian.Uint16(p[2:])); n != len(p) {
			return fmt.Errorf("length %d of %d", n, len(p))
		}
		if slowSum(p[:ihl]) != 0 {
			return fmt.Errorf("header sum")
		}
		src, dst, ttl = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), p[8]
	case p[0]>>4 == 6:
		if len(p) < 40 || int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			return fmt.Errorf("length field in %d bytes", len(p))
		}
		src, dst, ttl = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), p[7]
	default:
		return fmt.Errorf("version %d", p[0]>>4)
	}
	o := oracle{local: local, peers: peers}
	owner := o.lookup(src)
	if owner < 0 || peers[owner].Endpoint.Addr().Unmap() != outer {
		return fmt.Errorf("source %v belongs to %d, the datagram is from %v", src, owner, outer)
	}
	if o.lookup(dst) != -1 {
		return fmt.Errorf("destination %v belongs to %d", dst, o.lookup(dst))
	}
	if ttl < 2 {
		return fmt.Errorf("TTL %d", ttl)
	}
	return nil
}

// repair makes what the fuzzer sends look more like a packet of peer A, so
// that it gets past the first checks: a bit of how for each repair.
func repair(p []byte, how byte) {
	if len(p) < 40 {
		return
	}
	v6 := how&1 != 0
	if how&2 != 0 {
		p[0] = 0x45
		if v6 {
			p[0] = 0x60
		}
	}
	if p[0]>>4 == 4 {
		if how&4 != 0 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		}
		if how&8 != 0 {
			copy(p[12:], []byte{10, 2})
		}
		if how&16 != 0 {
			copy(p[16:], []byte{10, 1})
		}
		if ihl := int(p[0]&15) * 4; how&32 != 0 && ihl >= 20 && ihl <= len(p) {
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], slowSum(p[:ihl]))
		}
		return
	}
	if how&4 != 0 {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	if how&8 != 0 {
		copy(p[8:], []byte{0xfd, 0, 0, 2, 0, 0, 0, 0})
	}
	if how&16 != 0 {
		copy(p[24:], []byte{0xfd, 0, 0, 1, 0, 0, 0, 0})
	}
}

// FuzzInbound: no datagram panics; the filter passes exactly what mayPass
// does, one TTL less and otherwise as it came; and what it tells is good ICMP.
func FuzzInbound(f *testing.F) {
	outers := []string{"192.0.2.1", "2001:db8::2", "192.0.2.9", "2001:db8::9"}
	for i, in := range []inner{udp4(pattern(30, 1)), udp6(pattern(30, 1)), tcp4(pattern(90, 1)), tcp6(nil)} {
		in = in.back()
		f.Add(in.packet(), byte(i), byte(0))
		in.ttl = 1
		f.Add(in.packet(), byte(0), byte(0xff))
	}
	f.Add([]byte{0x45}, byte(1), byte(0))
	f.Add(make([]byte, 60), byte(0), byte(0x3e))
	tb := newTable(f, filterPeers()...)
	f.Fuzz(func(t *testing.T, data []byte, from, how byte) {
		repair(data, how)
		outer := ip(outers[int(from)%len(outers)])
		s := tb.cur.Load()
		co, out := newCore(tb, Config{})
		for range 2 { // the second time by the flow cache
			p := slices.Clone(data)
			d := co.inbound(s, p, to128(outer))
			why := mayPass(data, outer, localSubnets(), filterPeers())
			if (d == DropNone) != (why == nil) {
				t.Fatalf("%v of a packet that may pass but for: %v\n%x from %v", d, why, data, outer)
			}
			want := data
			if d == DropNone {
				want = hop(data)
			}
			if !bytes.Equal(p, want) {
				t.Fatalf("%v, and now it is %x, want %x", d, p, want)
			}
		}
		for _, msg := range out.toPeers {
			m := mustDecode(t, msg)
			if m.what() != "expired" || !bytes.HasPrefix(data, m.quote) {
				t.Fatalf("%v about %x", m, data)
			}
		}
		if len(out.toHosts) > 0 {
			t.Fatalf("this host was told about a packet that it has not sent: %x", out.toHosts[0])
		}
	})
}
