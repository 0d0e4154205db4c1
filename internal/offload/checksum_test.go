package offload

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

// slowSum is the oracle: RFC 1071 byte by byte in network order, carries at once, sharing no code with what it checks. Its 0 means
// what that of Fold does: only zeros give it.
func slowSum(pieces ...[]byte) uint16 {
	var sum uint32
	for _, b := range pieces {
		for i, x := range b {
			if i%2 == 0 {
				sum += uint32(x) << 8
			} else {
				sum += uint32(x)
			}
			if sum > 0xffff {
				sum -= 0xffff
			}
		}
	}
	return uint16(sum)
}

// inMemory is the eight bytes whose sum an unfolded sum is.
func inMemory(acc uint64) []byte { return binary.NativeEndian.AppendUint64(nil, acc) }

// folded is Fold in network order, as slowSum returns it.
func folded(acc uint64) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, Fold(acc)))
}

type summer struct {
	name string
	min  int // the shortest slice it takes
	sum  func([]byte, uint64) uint64
}

// summers are Sum and everything it may choose from, on any host.
func summers() []summer {
	s := []summer{{"Sum", 0, Sum}, {"sumLong", 0, sumLong}, {"sum32", 0, sum32}}
	if haveVector {
		s = append(s, summer{"sumVector", 8, func(b []byte, acc uint64) uint64 { return sumVector(&b[0], len(b), acc) }})
	}
	return s
}

var seeds = []uint64{0, 1, 0xffff, 0x10000, 0xffffffff, 0x8000000000000000, 0xffffffff00000000, math.MaxUint64 - 1, math.MaxUint64}

func TestSumEveryLengthAndOffset(t *testing.T) {
	all := summers()
	rnd := rand.New(rand.NewPCG(1071, 1))
	fills := map[string]func() byte{
		"random": func() byte { return byte(rnd.Uint32()) },
		"ones":   func() byte { return 0xff },
		"zeros":  func() byte { return 0 },
	}
	const longest = 2100
	for name, fill := range fills {
		for off := range 64 {
			buf := make([]byte, 1<<16) // large enough to begin at a page, so off is the alignment too
			for i := range buf {
				buf[i] = 0x5a // what a sum must not see
			}
			want := uint16(0)
			for n := 0; n <= longest; n++ {
				b := buf[off : off+n]
				if n > 0 {
					b[n-1] = fill()
					// One byte more than the sum before: the same oracle, in steps, or this test would take minutes.
					if n%2 == 1 {
						want = slowSum(be16(want), b[n-1:])
					} else {
						want = slowSum(be16(want), []byte{0, b[n-1]})
					}
				}
				if n%97 == 0 && want != slowSum(b) {
					t.Fatalf("the oracle in steps has %#x for %d bytes, whole it has %#x", want, n, slowSum(b))
				}
				seed := seeds[(n+off)%len(seeds)] // each length meets each of them, and 0
				wantSeeded := slowSum(inMemory(seed), be16(want))
				for _, s := range all {
					if n < s.min {
						continue
					}
					if got := folded(s.sum(b, seed)); got != wantSeeded {
						t.Fatalf("%s of %d bytes (%s) at offset %d on %#x folds to %#x, want %#x", s.name, n, name, off, seed, got, wantSeeded)
					}
				}
			}
		}
	}
}

func be16(x uint16) []byte { return binary.BigEndian.AppendUint16(nil, x) }

func TestSumLargeAndSplit(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1071, 2))
	buf := make([]byte, 65536+64)
	for round := range 400 {
		for i := range buf {
			buf[i] = byte(rnd.Uint32()) | byte(-(round & 1)) // every second round all ones
		}
		n := rnd.IntN(65536 + 1)
		b := buf[rnd.IntN(64):][:n]
		seed := seeds[round%len(seeds)]
		want := slowSum(inMemory(seed), b)
		cut := rnd.IntN(n+1) &^ 1
		for _, s := range summers() {
			if cut < s.min || n-cut < s.min {
				continue
			}
			whole := s.sum(b, seed)
			chained := s.sum(b[cut:], s.sum(b[:cut], seed))
			added := Add(s.sum(b[cut:], 0), Add(seed, s.sum(b[:cut], 0)))
			if folded(whole) != want || folded(chained) != want || folded(added) != want {
				t.Fatalf("%s of %d bytes on %#x, cut at %d: whole %#x, chained %#x, added %#x, want %#x", s.name, n, seed, cut,
					folded(whole), folded(chained), folded(added), want)
			}
		}
	}
}

// TestSumCarries puts every combination of words at the edges of a carry where they meet: in neighbouring words of one chain, and
// (repeated) in one vector lane.
func TestSumCarries(t *testing.T) {
	all := summers()
	words := []uint64{0, 1, math.MaxUint32, math.MaxUint32 + 1, 0xffffffff00000000, math.MaxUint64 - 1, math.MaxUint64}
	for i := range len(words) * len(words) * len(words) * len(words) {
		var pattern []byte
		for range 4 {
			pattern = append(pattern, inMemory(words[i%len(words)])...)
			i /= len(words)
		}
		b := bytes.Repeat(pattern, 6)
		for _, seed := range seeds {
			want := slowSum(inMemory(seed), b)
			for _, s := range all {
				if got := folded(s.sum(b, seed)); got != want {
					t.Fatalf("%s of 6 times %x on %#x folds to %#x, want %#x", s.name, pattern, seed, got, want)
				}
			}
		}
	}
}

func TestAddAndFold(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1071, 3))
	values := append([]uint64{}, seeds...)
	for range 300 {
		values = append(values, rnd.Uint64()>>rnd.UintN(64), math.MaxUint64<<rnd.UintN(64))
	}
	for _, a := range values {
		if got, want := folded(a), slowSum(inMemory(a)); got != want {
			t.Errorf("Fold(%#x) is %#x in network order, want %#x", a, got, want)
		}
		for _, b := range values {
			if got, want := folded(Add(a, b)), slowSum(inMemory(a), inMemory(b)); got != want {
				t.Errorf("Add(%#x, %#x) folds to %#x, want %#x", a, b, got, want)
			}
		}
	}
}

func TestBigEndian(t *testing.T) {
	if got := binary.NativeEndian.Uint16([]byte{1, 0}) == 0x100; got != bigEndian {
		t.Fatalf("bigEndian is %v, encoding/binary says %v", bigEndian, got)
	}
}

func TestPutAndLoadSum(t *testing.T) {
	// The example of RFC 1071 section 3: the words sum to ddf2.
	rfc := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	got := make([]byte, 4)
	PutSum(got[1:], Sum(rfc, 0))
	if want := []byte{0, 0x22, 0x0d, 0}; !bytes.Equal(got, want) {
		t.Errorf("PutSum left % x, want % x", got, want)
	}
	if got := folded(Sum(rfc, LoadSum(got[1:]))); got != 0xffff {
		t.Errorf("the sum with its checksum folds to %#x, want 0xffff", got)
	}
	// A checksum of 0 stays 0, and that of nothing is 0xffff.
	PutSum(got, 0xffff)
	PutSum(got[2:], 0)
	if want := []byte{0, 0, 0xff, 0xff}; !bytes.Equal(got, want) {
		t.Errorf("PutSum of 0xffff and 0 left % x, want % x", got, want)
	}
}

func TestPseudoHeaders(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1071, 4))
	hdr := make([]byte, 60)
	for round := range 2000 {
		for i := range hdr {
			hdr[i] = byte(rnd.Uint32()) | byte(-(round & 1))
		}
		proto, n := byte(rnd.Uint32()), int(rnd.Uint32N(1<<16))
		n4 := binary.BigEndian.AppendUint16([]byte{0, proto}, uint16(n))
		if got, want := folded(PseudoIPv4(hdr, proto, n)), slowSum(hdr[12:20], n4); got != want {
			t.Fatalf("PseudoIPv4 of % x, %d, %d folds to %#x, want %#x", hdr[:20], proto, n, got, want)
		}
		for _, n := range []int{n, n << 8, n << 15} {
			n6 := append(binary.BigEndian.AppendUint32(nil, uint32(n)), 0, 0, 0, proto)
			if got, want := folded(PseudoIPv6(hdr, proto, n)), slowSum(hdr[8:40], n6); got != want {
				t.Fatalf("PseudoIPv6 of % x, %d, %d folds to %#x, want %#x", hdr[:40], proto, n, got, want)
			}
			if got, want := folded(PseudoIPv4(hdr, proto, n)), slowSum(hdr[12:20], n6); got != want {
				t.Fatalf("PseudoIPv4 of % x, %d, %d folds to %#x, want %#x", hdr[:20], proto, n, got, want)
			}
		}
	}
}

func TestSumSegments(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1071, 5))
	buf := make([]byte, 70000)
	for i := range buf {
		buf[i] = byte(rnd.Uint32())
	}
	const untouched = 0xdeadbeef
	for _, seg := range []int{-1, 0, 1, 2, 7, 8, 64, 127, 128, 129, 255, 536, 1288, 1399, 1448, 8948, 65000, math.MaxInt} {
		for _, n := range []int{0, 1, 2, seg - 1, seg, seg + 1, 2*seg - 1, 2 * seg, 2*seg + 1, 17*seg + 9, 65000} {
			if n < 0 || n > 65000 {
				continue
			}
			for _, room := range []int{0, 1, 2, 17, 18, 70} {
				b := buf[room : room+n]
				out := make([]uint64, room+1)
				for i := range out {
					out[i] = untouched
				}
				want := 0
				if seg > 0 {
					want = n / seg
					if n%seg > 0 {
						want++
					}
				}
				want = min(want, room)
				if got := SumSegments(b, seg, out[:room]); got != want {
					t.Fatalf("SumSegments(%d bytes, %d, %d sums) wrote %d, want %d", n, seg, room, got, want)
				}
				for i, got := range out {
					if i >= want {
						if got != untouched {
							t.Fatalf("SumSegments(%d bytes, %d, %d sums) wrote out[%d] behind the end", n, seg, room, i)
						}
						continue
					}
					if want := slowSum(b[i*seg : i*seg+min(seg, n-i*seg)]); folded(got) != want {
						t.Fatalf("SumSegments(%d bytes, %d): out[%d] folds to %#x, want %#x", n, seg, i, folded(got), want)
					}
				}
			}
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint64(0), uint16(0), uint16(0))
	f.Add([]byte{0x45}, uint64(math.MaxUint64), uint16(3), uint16(1))
	f.Add(bytes.Repeat([]byte{0xff}, 300), uint64(math.MaxUint64), uint16(1), uint16(129))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, off, seg uint16) {
		data = bytes.Repeat(data, 1+int(off>>12)) // the fuzzer likes short inputs, the loops do not
		b := data[min(int(off&63), len(data)):]
		want := slowSum(inMemory(seed), b)
		for _, s := range summers() {
			if len(b) < s.min {
				continue
			}
			if got := folded(s.sum(b, seed)); got != want {
				t.Errorf("%s of % x on %#x folds to %#x, want %#x", s.name, b, seed, got, want)
			}
		}
		out := make([]uint64, 8)
		for i, got := range out[:SumSegments(b, int(seg), out)] {
			if piece := b[i*int(seg) : min(len(b), (i+1)*int(seg))]; folded(got) != slowSum(piece) {
				t.Errorf("SumSegments of % x, %d: out[%d] folds to %#x, want %#x", b, seg, i, folded(got), slowSum(piece))
			}
		}
	})
}

func TestChecksumAllocs(t *testing.T) {
	buf, out, all := make([]byte, 65000), make([]uint64, 64), summers()
	allocs := testing.AllocsPerRun(100, func() {
		for _, n := range []int{3, 20, 100, 1460, len(buf)} {
			for _, s := range all {
				if n >= s.min {
					out[0] = s.sum(buf[:n], out[0])
				}
			}
		}
		SumSegments(buf, 1448, out)
		acc := Add(PseudoIPv4(buf, 6, 1460), PseudoIPv6(buf, 17, 1460))
		PutSum(buf, Add(acc, LoadSum(buf)))
	})
	if allocs != 0 {
		t.Errorf("%v allocations per run, want 0", allocs)
	}
}
