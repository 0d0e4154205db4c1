// Package membw measures how fast one thread of this machine reads and copies
// memory, so that a benchmark can print beside its own speed the limit that no
// program on the same machine passes by much.
//
// A checksum reads every byte once: [Read] is its limit. What the kernel does
// between a program, a socket and a device are copies: [Copy], and as many of
// them as there are. Splitting and joining super-packets move no payload; where
// they don't sum it either, no bandwidth limits them.
//
// The limits are those of Go code with what Go has for the purpose: copy for
// copying, and for reading the fastest of a sum over 64-bit words in eight
// accumulators, bytes.IndexByte and bytes.Equal, two vector loops of the
// runtime. A benchmark may pass them: data of a few KiB stays in the first
// level cache, which is faster than the 64 KiB of [Cache]; a hand-written
// vector loop may beat those of the runtime; a program with several threads
// has several threads' share of the memory; and the benchmark may have met the
// machine in a quieter moment than this package did. Far beyond 100 % means
// that the benchmark does not touch what it says.
package membw

import (
	"bytes"
	"encoding/binary"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

// Kind is what is done with the bytes.
type Kind uint8

// Kinds.
const (
	Read Kind = iota // every byte is loaded once
	Copy             // every byte is loaded once and stored once, and counts once
)

// Set is how much memory the work goes round in.
type Set uint8

// Sets.
const (
	Cache  Set = iota // 64 KiB, the size of a super-packet: stays in a core's own cache
	Memory            // 256 MiB: more than caches hold, so that all comes from memory
)

// Bytes returns the size of the set in bytes.
func (s Set) Bytes() int {
	if s == Memory {
		return 256 << 20
	}
	return 64 << 10
}

// String returns the kind as it is in the metrics' names.
func (k Kind) String() string {
	if k == Copy {
		return "copy"
	}
	return "read"
}

// limits are measured once in a process: a fraction is worth something only if
// all are fractions of the same number.
var limits [2]struct {
	once sync.Once
	rate [2]float64 // by Kind
}

// Limit returns the most bytes per second one thread reads or copies. The first
// call for a set measures: some 50 ms for Cache; for Memory half a second, most
// of it to get 256 MiB from the system, which are given back at once. Later
// calls return the same number. Call it while no benchmark's timer runs.
func Limit(k Kind, s Set) float64 {
	l := &limits[s]
	l.once.Do(func() { l.rate[Read], l.rate[Copy] = measure(s) })
	return l.rate[k]
}

// Report adds to a benchmark, after its loop, what moving bytesPerOp bytes in
// each operation is in proportion to the limit, as metrics that benchstat
// reads: "GB/s" (10⁹ bytes a second), "limit-GB/s", and "%-of-read-limit" or
// "%-of-copy-limit". Whoever copies the bytes three times counts them three
// times. The rate that SetBytes makes testing print counts what the user gets.
func Report(b *testing.B, bytesPerOp int, k Kind, s Set) {
	b.Helper()
	b.StopTimer()
	report(b.ReportMetric, float64(bytesPerOp)*float64(b.N), b.Elapsed(), k, Limit(k, s))
}

func report(metric func(float64, string), bytes float64, took time.Duration, k Kind, limit float64) {
	if took <= 0 {
		return
	}
	rate := bytes / took.Seconds()
	metric(rate/1e9, "GB/s")
	metric(limit/1e9, "limit-GB/s")
	metric(100*rate/limit, "%-of-"+k.String()+"-limit")
}

const (
	chunk   = 32 << 10 // one copy or read: about a super-packet, and half of Cache
	timed   = 8 << 20  // bytes between two looks at the clock
	working = 10 * time.Millisecond
)

// measure goes round in the set and keeps the best stretch of each way to read
// and to copy: another process can only make a stretch slower.
func measure(s Set) (read, copied float64) {
	set := make([]byte, s.Bytes())
	set[0] = 1 // and so all: memory of its own, not the system's page of zeros
	for n := 1; n < len(set); n *= 2 {
		copy(set[n:], set[:n])
	}
	half := len(set) / 2
	from, to := set[:half], set[half:]
	var sink uint64
	for _, way := range []func(a, b []byte){
		func(a, b []byte) { sink += sum(a) + sum(b) },
		func(a, b []byte) { sink += uint64(bytes.IndexByte(a, 0) + bytes.IndexByte(b, 0)) },
		func(a, b []byte) {
			if bytes.Equal(a, b) { // they are, so it reads both to the end
				sink++
			}
		},
	} {
		read = max(read, best(half, func(at int) { way(from[at:at+chunk], to[at:at+chunk]) }))
	}
	read *= 2 // both halves
	copied = best(half, func(at int) { sink += uint64(copy(to[at:at+chunk], from[at:at+chunk])) })
	if s == Memory {
		set, from, to = nil, nil, nil
		debug.FreeOSMemory() // the benchmarks that follow have a heap of their usual size
	}
	if sink == 0 { // never, but the compiler doesn't know, and must not drop the work
		return 0, 0
	}
	return read, copied
}

// best walks over a half in chunks until it has worked long enough, at least
// once to its end, and returns the bytes per second of its fastest stretch.
func best(half int, do func(at int)) (rate float64) {
	at := 0
	for begin := time.Now(); time.Since(begin) < working || at < half; {
		at %= half
		n := 0
		start := time.Now()
		for ; n < timed; n += chunk {
			do(at % half)
			at += chunk
		}
		if took := time.Since(start).Seconds(); took > 0 {
			rate = max(rate, float64(n)/took)
		}
	}
	return rate
}

// sum adds words in eight accumulators, so that no addition waits for another.
// len(b) is a multiple of 64. The race detector would make its every load a call.
//
//go:norace
func sum(b []byte) uint64 {
	var s0, s1, s2, s3, s4, s5, s6, s7 uint64
	for len(b) >= 64 {
		s0 += binary.NativeEndian.Uint64(b[0:])
		s1 += binary.NativeEndian.Uint64(b[8:])
		s2 += binary.NativeEndian.Uint64(b[16:])
		s3 += binary.NativeEndian.Uint64(b[24:])
		s4 += binary.NativeEndian.Uint64(b[32:])
		s5 += binary.NativeEndian.Uint64(b[40:])
		s6 += binary.NativeEndian.Uint64(b[48:])
		s7 += binary.NativeEndian.Uint64(b[56:])
		b = b[64:]
	}
	return s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
}
