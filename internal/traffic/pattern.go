package traffic

import "encoding/binary"

// fillPattern writes the bytes [offset, offset+len(b)) of the endless pattern that belongs to seed. Every 8-byte word is
// a mix of the seed and its position (splitmix64's finalizer), so any part of the stream can be made alone, no part
// repeats, and a receiver can say at which byte a stream went wrong: lost, doubled, swapped or changed.
func fillPattern(b []byte, seed, offset uint64) {
	word := offset / 8
	if skip := int(offset % 8); skip != 0 && len(b) > 0 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], mix(seed, word))
		b = b[copy(b, w[skip:]):]
		word++
	}
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, mix(seed, word))
		b = b[8:]
		word++
	}
	if len(b) > 0 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], mix(seed, word))
		copy(b, w[:])
	}
}

func mix(seed, word uint64) uint64 {
	z := seed + (word+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// firstDifference returns the index of the first byte in which a and b, of equal length, differ, or -1.
func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
