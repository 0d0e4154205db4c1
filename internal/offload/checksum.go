package offload

// Internet checksums (RFC 1071), summed in the host's byte order and folded late.
//
// Terms:
//   - A sum ("acc") is an unfolded one's complement sum: 64 bits, added with end-around carry. Its four 16-bit parts weigh the same,
//     so 64-bit and 32-bit loads can be added to it as they are, and a packet needs one fold at its very end.
//   - Memory order: a 16-bit word has the value that the host gives its two bytes where they lie. RFC 1071 section 2(B) is why
//     nothing need be swapped: the sum of swapped words is the swapped sum, and PutSum stores it the way the words were loaded.
//   - 0 is the sum of zero bytes only. Any other sum that amounts to zero is a multiple of 0xffff and folds to 0xffff.
//
// A transport checksum is computed so, here for TCP over IPv4:
//
//	clear(segment[16:18]) // the checksum field itself
//	PutSum(segment[16:], Sum(segment, PseudoIPv4(ip, ip[9], len(segment))))
//
// and a received one is right when Fold of the same sum, with the field left in place, is 0xffff.
//
// Nothing here keeps or changes the bytes it is given (PutSum writes its two), allocates, or reads outside the slice.
// The loops are in checksum_generic.go and checksum_amd64.s.

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the bytes of b to the sum acc and returns the new sum, not folded. The 16-bit words are taken in memory order from b[0]
// on, and an odd last byte is padded with a zero byte (RFC 1071 section 1): Sum(b2, Sum(b1, 0)) is the sum of b1 and b2 joined
// only if len(b1) is even. b needs no alignment and may be empty; 16 GiB is the most it may hold.
func Sum(b []byte, acc uint64) uint64 {
	if bits.UintSize == 32 {
		return sum32(b, acc)
	}
	if len(b) >= longMin {
		if haveVector {
			return sumVector(&b[0], len(b), acc)
		}
		return sumLong(b, acc)
	}
	// Headers and small packets: inline, because from here on a call would cost as much as the sum.
	if len(b) < 8 {
		return Add(acc, sumTail(b))
	}
	last := binary.NativeEndian.Uint64(b[len(b)-8:]) // ends with the one to eight bytes that the steps below leave
	var c uint64
	if len(b) > 64 { // ">" in all of these: b is never emptied, so the compiler needs no guard against a pointer behind it
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[32:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[40:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[48:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[56:]), c)
		acc, _ = bits.Add64(acc, 0, c)
		b = b[64:]
	}
	if len(b) > 32 {
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:]), c)
		acc, _ = bits.Add64(acc, 0, c)
		b = b[32:]
	}
	if len(b) > 16 {
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), c)
		acc, _ = bits.Add64(acc, 0, c)
		b = b[16:]
	}
	if len(b) > 8 {
		acc = Add(acc, binary.NativeEndian.Uint64(b))
		b = b[8:]
	}
	return Add(acc, keepLast(last, len(b)))
}

// SumSegments sums the consecutive segments of seg bytes that b consists of, each from zero: out[i] = Sum(b[i*seg:(i+1)*seg], 0),
// where the last one may be short. It returns how many it wrote to out: one per segment begun, at most len(out), and none if seg is
// not positive. It is for the payload of a TSO super-packet: one call takes a quarter less time than a Sum per segment. seg may be odd.
func SumSegments(b []byte, seg int, out []uint64) int {
	if seg <= 0 {
		return 0
	}
	n := 0
	if haveVector && seg >= longMin {
		if n = min(len(b)/seg, len(out)); n > 0 {
			sumVectors(&b[0], seg, &out[0], n)
			b = b[n*seg:]
		}
	}
	for ; n < len(out) && len(b) > 0; n++ {
		k := min(seg, len(b))
		out[n] = Sum(b[:k], 0)
		b = b[k:]
	}
	return n
}

// Add adds two sums with end-around carry: the sum of two joined pieces is Add of theirs, if the first has an even length.
func Add(a, b uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	s, _ = bits.Add64(s, 0, c) // cannot carry again: with c set, s is at most 1<<64 - 2
	return s
}

// Fold reduces a sum to 16 bits in memory order, not complemented: PutSum does that. It is 0 only for 0, which only zero bytes sum
// to; the sum over a whole header, or a whole segment and its pseudo-header, folds to 0xffff exactly if the checksum in it is right.
func Fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff // at most 33 bits
	acc = acc>>16 + acc&0xffff     // at most 18 bits
	acc = acc>>16 + acc&0xffff     // at most 0x10000
	return uint16(acc>>16 + acc)
}

// PutSum stores the checksum of a packet with the sum acc, the complement of Fold(acc), at b[0:2] as it goes on the wire. A checksum
// of 0 is stored as 0: over UDP, where that means "none" (RFC 768, RFC 8200 section 8.1), the caller stores 0xffff instead.
// It panics if b is shorter than 2 bytes.
func PutSum(b []byte, acc uint64) {
	binary.NativeEndian.PutUint16(b, ^Fold(acc))
}

// LoadSum reads b[0:2] as a sum, for example a checksum field that is to take part in an Add. It panics if b is shorter than 2 bytes.
func LoadSum(b []byte) uint64 {
	return uint64(binary.NativeEndian.Uint16(b))
}

// PseudoIPv4 returns the sum of the pseudo-header (RFC 9293 section 3.1, RFC 768) of the packet whose IPv4 header is at hdr: its
// addresses hdr[12:20], the transport protocol proto, and l4len, the bytes of transport header and payload. An l4len above 65535 is
// added as 32 bits, as Linux does in csum_tcpudp_nofold (include/asm-generic/checksum.h). It panics if hdr is shorter than 20 bytes.
func PseudoIPv4(hdr []byte, proto byte, l4len int) uint64 {
	return Add(binary.NativeEndian.Uint64(hdr[12:20]), protoLen(proto, l4len))
}

// PseudoIPv6 is PseudoIPv4 for an IPv6 header (RFC 8200 section 8.1) with the addresses hdr[8:40]; l4len has 32 bits. proto is the
// protocol of the transport header, which after extension headers is not hdr[6], and l4len does not count those. With a routing
// header the final destination counts, not hdr[24:40] of a packet on its way. It panics if hdr is shorter than 40 bytes.
func PseudoIPv6(hdr []byte, proto byte, l4len int) uint64 {
	a := hdr[8:40]
	s, c := bits.Add64(protoLen(proto, l4len), binary.NativeEndian.Uint64(a), 0)
	s, c = bits.Add64(s, binary.NativeEndian.Uint64(a[8:]), c)
	s, c = bits.Add64(s, binary.NativeEndian.Uint64(a[16:]), c)
	s, c = bits.Add64(s, binary.NativeEndian.Uint64(a[24:]), c)
	s, _ = bits.Add64(s, 0, c)
	return s
}

// protoLen is the sum of the protocol and the length, which both pseudo-headers hold in network order: this host's view of the eight
// bytes 0 0 0 proto len len len len.
func protoLen(proto byte, l4len int) uint64 {
	v := uint64(proto)<<32 | uint64(uint32(l4len))
	if bigEndian {
		return v
	}
	return bits.ReverseBytes64(v)
}
