package offload

import (
	"encoding/binary"
	"math/bits"
	"runtime"
)

// longMin is the length from which Sum leaves the work to a loop. Measured on an AMD EPYC (Zen 3) with the data in the first-level
// cache, the AVX2 loop overtakes the inline steps of Sum between 112 and 136 bytes.
const longMin = 128

// bigEndian is whether the first byte of a word in memory is its highest. These are all such ports of the Go compiler; a test
// compares it with what binary.NativeEndian does.
const bigEndian = runtime.GOARCH == "s390x" || runtime.GOARCH == "ppc64" || runtime.GOARCH == "mips" || runtime.GOARCH == "mips64"

// sumLong is Sum in Go for many bytes, on 64-bit hosts without a vector version. Two chains of carries run side by side: one alone
// waits for each addition (23 GB/s where two reach 33).
//
// The carry out of a chain can always be added without another one: a chain that begins without a carry never gets to all ones AND
// a carry, since the step before would have had to be there already.
func sumLong(b []byte, acc uint64) uint64 {
	var acc2, c uint64
	for len(b) > 64 {
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:]), c)
		acc, _ = bits.Add64(acc, 0, c)
		acc2, c = bits.Add64(acc2, binary.NativeEndian.Uint64(b[32:]), 0)
		acc2, c = bits.Add64(acc2, binary.NativeEndian.Uint64(b[40:]), c)
		acc2, c = bits.Add64(acc2, binary.NativeEndian.Uint64(b[48:]), c)
		acc2, c = bits.Add64(acc2, binary.NativeEndian.Uint64(b[56:]), c)
		acc2, _ = bits.Add64(acc2, 0, c)
		b = b[64:]
	}
	return Sum(b, Add(acc, acc2)) // at most 64 bytes, so Sum does not come back here
}

// sum32 is Sum for hosts with 32-bit registers, where a 64-bit carry costs more than it saves. Fewer than 1<<30 words of 32 bits fit
// into a slice there, so their 64-bit sum needs no carry at all.
func sum32(b []byte, acc uint64) uint64 {
	var s uint64
	for len(b) >= 16 {
		s += uint64(binary.NativeEndian.Uint32(b[0:]))
		s += uint64(binary.NativeEndian.Uint32(b[4:]))
		s += uint64(binary.NativeEndian.Uint32(b[8:]))
		s += uint64(binary.NativeEndian.Uint32(b[12:]))
		b = b[16:]
	}
	if len(b) >= 8 {
		s += uint64(binary.NativeEndian.Uint32(b[0:]))
		s += uint64(binary.NativeEndian.Uint32(b[4:]))
		b = b[8:]
	}
	return Add(acc, s+sumTail(b))
}

// sumTail is the sum of b, which has fewer than eight bytes.
func sumTail(b []byte) uint64 {
	var s uint64
	if len(b) >= 4 {
		s = uint64(binary.NativeEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.NativeEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		odd := uint64(b[0])
		if bigEndian {
			odd <<= 8
		}
		s += odd
	}
	return s
}

// keepLast returns the word w, loaded from eight bytes, with only the last n of them (1 to 8) left, moved to the front and followed
// by zeros: the sum of these n bytes, without a branch per length and without a load behind them.
func keepLast(w uint64, n int) uint64 {
	shift := uint(-n) & 7 * 8
	if bigEndian {
		return w << shift
	}
	return w >> shift
}
