package offload_test

// The slow oracle: packets built and super-packets cut as the RFCs say, byte by
// byte, sharing no code with package offload. Only its plain struct Virtio and
// the numbers of its constants are used.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/flannelkit/flannelkit/internal/offload"
)

const (
	protoTCP = 6
	protoUDP = 17

	fin, syn, rst, psh = 1, 2, 4, 8
	ack, urg, ece, cwr = 16, 32, 64, 128
)

// packet is an IP packet before it is bytes. The zero value of a field is what
// an ordinary packet has there.
type packet struct {
	src, dst string // 4 or 16 bytes each
	tos, ttl byte
	proto    byte // of the transport header

	// IPv4
	id       uint16
	df, evil bool
	mf       bool
	fragment uint16 // offset in units of 8 bytes
	options  []byte // a multiple of 4 bytes

	// IPv6
	label   uint32
	ext     []byte // extension headers, the last of which names proto
	extType byte   // of the first of them

	sport, dport uint16
	payload      []byte

	// TCP
	seq, ack   uint32
	flags      byte
	reserved   byte // the four bits beside the data offset, AE the lowest
	window     uint16
	urgent     uint16
	tcpOptions []byte // a multiple of 4 bytes

	noSum  bool // UDP without a checksum
	badSum bool
	udpLen int // what to add to the right UDP length
}

func (p *packet) v6() bool { return len(p.src) == 16 }

func (p *packet) ipLen() int {
	if p.v6() {
		return 40 + len(p.ext)
	}
	return 20 + len(p.options)
}

func (p *packet) headerLen() int {
	switch p.proto {
	case protoTCP:
		return p.ipLen() + 20 + len(p.tcpOptions)
	case protoUDP:
		return p.ipLen() + 8
	}
	return p.ipLen()
}

func (p *packet) bytes() []byte {
	b := p.network(p.headerLen() - p.ipLen() + len(p.payload))
	at := len(b)
	switch p.proto {
	case protoTCP:
		b = be16(b, p.sport, p.dport)
		b = be32(b, p.seq, p.ack)
		b = append(b, byte(5+len(p.tcpOptions)/4)<<4|p.reserved, p.flags)
		b = be16(b, p.window, 0, p.urgent)
		b = append(b, p.tcpOptions...)
	case protoUDP:
		b = be16(b, p.sport, p.dport, uint16(8+len(p.payload)+p.udpLen), 0)
	}
	b = append(b, p.payload...)
	complete(b, at, p.proto)
	field := map[byte]int{protoTCP: at + 16, protoUDP: at + 6}[p.proto]
	if field > 0 && p.noSum {
		b[field], b[field+1] = 0, 0
	}
	if field > 0 && p.badSum {
		b[field] ^= 0x55
		if p.proto == protoUDP && b[field] == 0 && b[field+1] == 0 {
			b[field] = 0xaa
		}
	}
	return b
}

// network returns the IP header of a packet with n bytes behind it.
func (p *packet) network(n int) []byte {
	var b []byte
	if p.v6() {
		next := p.proto
		if len(p.ext) > 0 {
			next = p.extType
		}
		b = be32(b, 6<<28|uint32(p.tos)<<20|p.label)
		b = be16(b, uint16(len(p.ext)+n))
		b = append(b, next, p.ttl)
		b = append(b, p.src+p.dst...)
		return append(b, p.ext...)
	}
	frag := p.fragment
	for i, set := range []bool{p.mf, p.df, p.evil} {
		if set {
			frag |= 0x2000 << i
		}
	}
	b = append(b, 4<<4|byte(5+len(p.options)/4), p.tos)
	b = be16(b, uint16(p.ipLen()+n), p.id, frag)
	b = append(b, p.ttl, p.proto, 0, 0)
	b = append(b, p.src+p.dst...)
	b = append(b, p.options...)
	completeIPv4(b)
	return b
}

func be16(b []byte, words ...uint16) []byte {
	for _, w := range words {
		b = append(b, byte(w>>8), byte(w))
	}
	return b
}

func be32(b []byte, words ...uint32) []byte {
	for _, w := range words {
		b = append(b, byte(w>>24), byte(w>>16), byte(w>>8), byte(w))
	}
	return b
}

func put16(b []byte, v int) { b[0], b[1] = byte(v>>8), byte(v) }

func get16(b []byte) int { return int(b[0])<<8 | int(b[1]) }

// onesSum is the one's complement sum of RFC 1071 over the pieces, of which
// only the last may have an odd length.
func onesSum(pieces ...[]byte) int {
	var sum uint32
	for _, b := range pieces {
		for i, x := range b {
			if i%2 == 0 {
				sum += uint32(x) << 8
			} else {
				sum += uint32(x)
			}
			sum = sum&0xffff + sum>>16
		}
	}
	return int(sum)
}

// pseudo is the pseudo-header of RFC 9293 3.1 and RFC 8200 8.1. A packet with a
// routing header is not provided for.
func pseudo(b []byte, proto byte, n int) []byte {
	if b[0]>>4 == 6 {
		return append(be32(bytes.Clone(b[8:40]), uint32(n)), 0, 0, 0, proto)
	}
	return be16(append(bytes.Clone(b[12:20]), 0, proto), uint16(n))
}

// complete writes the TCP or UDP checksum of b, whose transport header is at.
func complete(b []byte, at int, proto byte) {
	field := at + 16
	switch proto {
	case protoTCP:
	case protoUDP:
		field = at + 6
	default:
		return
	}
	put16(b[field:], 0)
	sum := 0xffff - onesSum(pseudo(b, proto, len(b)-at), b[at:])
	if proto == protoUDP && sum == 0 {
		sum = 0xffff // RFC 768
	}
	put16(b[field:], sum)
}

func completeIPv4(b []byte) {
	put16(b[10:], 0)
	put16(b[10:], 0xffff-onesSum(b[:int(b[0]&15)*4]))
}

// slowFinish is FinishChecksum on a copy of b.
func slowFinish(b []byte, start, offset int) ([]byte, bool) {
	b = bytes.Clone(b)
	if at := start + offset; start < 0 || offset < 0 || at+2 > len(b) {
		return b, false
	}
	carry := bytes.Clone(b[start+offset:][:2])
	put16(b[start+offset:], 0)
	sum := 0xffff - onesSum(carry, b[start:])
	if offset == 6 && sum == 0 {
		sum = 0xffff
	}
	put16(b[start+offset:], sum)
	return b, true
}

// slowCut cuts the super-packet b into segments of size payload bytes.
func slowCut(b []byte, at int, proto byte, size int) [][]byte {
	hl := at + 8
	if proto == protoTCP {
		hl = at + int(b[at+12]>>4)*4
	}
	var out [][]byte
	for off := hl; off < len(b); off += size {
		last := off+size >= len(b)
		s := bytes.Clone(b[:hl])
		s = append(s, b[off:min(off+size, len(b))]...)
		if b[0]>>4 == 6 {
			put16(s[4:], len(s)-40)
		} else {
			put16(s[2:], len(s))
			put16(s[4:], (get16(b[4:])+len(out))&0xffff)
			completeIPv4(s)
		}
		if proto == protoUDP {
			put16(s[at+4:], len(s)-at)
		} else {
			seq := uint32(get16(b[at+4:]))<<16 + uint32(get16(b[at+6:])) + uint32(off-hl)
			copy(s[at+4:], be32(nil, seq))
			if !last {
				s[at+13] &^= fin | psh
			}
			if len(out) > 0 {
				s[at+13] &^= cwr
			}
		}
		complete(s, at, proto)
		out = append(out, s)
	}
	return out
}

// slowExpand returns the packets that a receiver of b with virtio header v
// gets, and an error if v is not what Linux asks of a header that is written to
// a device (include/linux/virtio_net.h), or b not what v says.
func slowExpand(b []byte, v offload.Virtio) ([][]byte, error) {
	if v == (offload.Virtio{}) {
		return [][]byte{b}, nil
	}
	at, proto, field := 20, b[9], 0
	if b[0]>>4 == 6 {
		at, proto = 40, b[6]
	}
	hl := at + 8
	switch proto {
	case protoTCP:
		field, hl = 16, at+int(b[at+12]>>4)*4
	case protoUDP:
		field = 6
	}
	typ := map[[2]byte]byte{{4, 6}: 1, {6, 6}: 4, {4, 17}: 5, {6, 17}: 5}[[2]byte{b[0] >> 4, proto}]
	switch {
	case b[0] != 0x45 && b[0]>>4 != 6, typ == 0:
		return nil, fmt.Errorf("virtio header %+v for a packet that starts with % x", v, b[:20])
	case v.Flags != 1, int(v.CsumStart) != at, int(v.CsumOffset) != field, int(v.HdrLen) != hl:
		return nil, fmt.Errorf("virtio header %+v for headers of %d and %d bytes", v, at, hl)
	case onesSum(pseudo(b, proto, len(b)-at)) != get16(b[at+field:]):
		return nil, fmt.Errorf("partial checksum %#x, the pseudo-header's sum is %#x", get16(b[at+field:]), onesSum(pseudo(b, proto, len(b)-at)))
	case slowFault(b) != offload.FaultNone:
		return nil, fmt.Errorf("fault %d in a run of %d bytes: % x", slowFault(b), len(b), b[:at])
	}
	if v.GSOType == 0 {
		if v.GSOSize != 0 {
			return nil, fmt.Errorf("virtio header %+v without a GSO type", v)
		}
		c := bytes.Clone(b)
		complete(c, at, proto)
		return [][]byte{c}, nil
	}
	switch {
	case v.GSOType != typ, v.GSOSize == 0, len(b)-hl <= int(v.GSOSize):
		return nil, fmt.Errorf("virtio header %+v for IPv%d, protocol %d, %d bytes", v, b[0]>>4, proto, len(b))
	case proto == protoUDP && get16(b[at+4:]) != len(b)-at:
		return nil, fmt.Errorf("UDP length %d, %d bytes", get16(b[at+4:]), len(b)-at)
	}
	return slowCut(b, at, proto, int(v.GSOSize)), nil
}

// slowFault is Check.
func slowFault(b []byte) offload.Fault {
	if len(b) < 20 {
		return offload.FaultShort
	}
	hl := int(b[0]&15) * 4
	switch v := b[0] >> 4; {
	case v != 4 && v != 6:
		return offload.FaultVersion
	case v == 6 && len(b) < 40:
		return offload.FaultShort
	case v == 6 && 40+get16(b[4:]) != len(b), v == 4 && get16(b[2:]) != len(b):
		return offload.FaultLength
	case v == 4 && (hl < 20 || hl > len(b) || onesSum(b[:hl]) != 0xffff):
		return offload.FaultHeader
	}
	return offload.FaultNone
}

// sumRight says whether the TCP or UDP checksum of b, without options or
// extension headers, is right.
func sumRight(b []byte) bool {
	at, proto := 20, b[9]
	if b[0]>>4 == 6 {
		at, proto = 40, b[6]
	}
	if b[0] != 0x45 && at == 20 || proto != protoTCP && proto != protoUDP || len(b) < at+8 {
		return false
	}
	return onesSum(pseudo(b, proto, len(b)-at), b[at:]) == 0xffff
}

// samePacket compares a packet that came out with the one that went in. The ID
// of an IPv4 packet with DF means nothing (RFC 6864), and in a checksum that is
// not UDP's, 0xffff is another way to write 0.
func samePacket(got, want []byte) bool {
	return bytes.Equal(normal(got), normal(want))
}

func normal(b []byte) []byte {
	if slowFault(b) != offload.FaultNone {
		return b
	}
	b = bytes.Clone(b)
	at, proto := 40, b[6]
	if b[0]>>4 == 4 {
		at, proto = int(b[0]&15)*4, b[9]
		if b[6]&0x40 != 0 {
			b[4], b[5] = 0, 0
		}
		completeIPv4(b)
	}
	if proto == protoTCP && len(b) >= at+20 && get16(b[at+16:]) == 0xffff {
		put16(b[at+16:], 0)
	}
	return b
}

// describe is a packet for an error message.
func describe(b []byte) string {
	return fmt.Sprintf("%d bytes: % x", len(b), b[:min(len(b), 80)])
}

// diff returns what tells got from want, "" if nothing does.
func diff(got, want [][]byte) string {
	for i := range min(len(got), len(want)) {
		if !samePacket(got[i], want[i]) {
			return fmt.Sprintf("packet %d of %d:\n got %s\nwant %s", i, len(want), describe(got[i]), describe(want[i]))
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d packets, want %d", len(got), len(want))
	}
	return ""
}

// TestOracle holds the oracle against numbers that others have written down. What
// else it says is held against the kernel, in kernel_linux_test.go.
func TestOracle(t *testing.T) {
	header := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	p := packet{src: "\xc0\xa8\x00\x01", dst: "\xc0\xa8\x00\xc7", ttl: 64, proto: protoUDP, df: true}
	if got := p.network(0x73 - 20); !bytes.Equal(got, header) {
		t.Errorf("IPv4 header % x, want % x", got, header)
	}
	if b := be16(nil, 0x0001, 0xf203, 0xf4f5, 0xf6f7); onesSum(b) != 0xddf2 { // RFC 1071, section 3
		t.Errorf("sum %#x of % x, want 0xddf2", onesSum(b), b)
	}
	u := packet{src: "\x0a\x01\x00\x02", dst: "\x0a\x02\x00\x02", ttl: 64, proto: protoUDP, sport: 1, dport: 2, payload: []byte("abc")}
	if b := u.bytes(); len(b) != 31 || binary.BigEndian.Uint16(b[24:]) != 11 || !sumRight(b) || slowFault(b) != 0 {
		t.Errorf("UDP packet % x", b)
	}
}
