package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"
)

func newRing(t testing.TB, cfg Config) *Ring {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return r
}

// startAt puts an empty ring to a position, as if it had been used that long.
func (r *Ring) startAt(pos uint32) {
	r.head.Store(pos)
	r.tail.Store(pos)
}

func TestNewErrors(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "Slots is 0 (it must be a power of two, at least 1)"},
		{Config{Slots: -2, SlotSize: 1}, "Slots is -2"},
		{Config{Slots: 3, SlotSize: 1}, "Slots is 3"},
		{Config{Slots: 1}, "SlotSize is 0 (it must be at least 1)"},
		{Config{Slots: 1, SlotSize: -1}, "SlotSize is -1"},
		{Config{Slots: 1, SlotSize: 1, Headroom: -1}, "Headroom is -1 (it must not be negative)"},
		{Config{Slots: 1, SlotSize: maxRegion + 1}, "are more than 1073741824 bytes (use fewer or smaller slots)"},
		{Config{Slots: 1, SlotSize: 1, Headroom: maxRegion + 1}, "are more than"},
		{Config{Slots: 1 << 30, SlotSize: 1}, "are more than"},
		{Config{Slots: 1 << 15, SlotSize: 65535}, "are more than"},
		{Config{Slots: 1, SlotSize: maxRegion, Headroom: maxRegion}, "are more than"},
	} {
		r, err := New(tt.cfg)
		if err == nil || r != nil || !strings.HasPrefix(err.Error(), "ring: new: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, %v, want an error with %q", tt.cfg, r, err, tt.want)
		}
	}
}

// Every byte of every slot is there, belongs to that slot alone, and stays.
func TestSlotsAreApart(t *testing.T) {
	for _, cfg := range []Config{
		{Slots: 1, SlotSize: 1},
		{Slots: 8, SlotSize: 1, Headroom: 1},
		{Slots: 4, SlotSize: 63, Headroom: 1},
		{Slots: 4, SlotSize: 64},
		{Slots: 4, SlotSize: 65},
		{Slots: 64, SlotSize: 65536, Headroom: 64},
		{Slots: 16, SlotSize: 2048, Headroom: 16},
	} {
		r := newRing(t, cfg)
		if r.Slots() != cfg.Slots || r.SlotSize() != cfg.SlotSize || r.Headroom() != cfg.Headroom {
			t.Fatalf("%+v: %d slots of %d+%d bytes", cfg, r.Slots(), r.Headroom(), r.SlotSize())
		}
		n := uint32(cfg.Slots)
		for i := range n {
			full := r.Full(i)
			if len(full) != cfg.Headroom+cfg.SlotSize || cap(full) != len(full) || len(r.Slot(i)) != cfg.SlotSize || cap(r.Slot(i)) != cfg.SlotSize {
				t.Fatalf("%+v: slot %d has %d bytes (room for %d), %d with headroom (%d)",
					cfg, i, len(r.Slot(i)), cap(r.Slot(i)), len(full), cap(full))
			}
			for _, b := range full {
				if b != 0 {
					t.Fatalf("%+v: slot %d is not empty", cfg, i)
				}
			}
			for j := range full {
				full[j] = byte(i + 1)
			}
		}
		for i := range n {
			want := bytes.Repeat([]byte{byte(i + 1)}, cfg.Headroom+cfg.SlotSize)
			if !bytes.Equal(r.Full(i), want) || !bytes.Equal(r.Slot(i), want[cfg.Headroom:]) {
				t.Fatalf("%+v: slot %d was overwritten", cfg, i)
			}
			// Positions go round.
			if &r.Slot(i)[0] != &r.Slot(i + n)[0] || &r.Slot(i)[0] != &r.Slot(i - n)[0] {
				t.Fatalf("%+v: position %d is not position %d", cfg, i, i+n)
			}
		}
	}
}

// Slots of a power of two must not all begin at the same offset of a page.
func TestSlotsBeginAtDifferentOffsets(t *testing.T) {
	const page = 4096
	for _, size := range []int{page, 65536, 65536 - 64, 2048, 64} {
		r := newRing(t, Config{Slots: 64, SlotSize: size})
		offsets := make(map[int]bool)
		for i := range uint32(64) {
			at := int(i) * r.stride % page
			if at%cacheLine != 0 {
				t.Errorf("slots of %d bytes: slot %d begins at offset %d, not at a cache line", size, i, at)
			}
			if &r.Slot(i)[0] != &r.mem[int(i)*r.stride] {
				t.Errorf("slots of %d bytes: slot %d does not begin at its stride", size, i)
			}
			offsets[at] = true
		}
		if len(offsets) != page/cacheLine {
			t.Errorf("64 slots of %d bytes begin at %d different offsets of a page, not at %d", size, len(offsets), page/cacheLine)
		}
	}
}

// What may be produced and consumed, at every fill and across the wrap of the
// 32-bit positions.
func TestProduceAndConsume(t *testing.T) {
	const slots = 8
	r := newRing(t, Config{Slots: slots, SlotSize: 8})
	for _, start := range []uint32{0, 5, math.MaxUint32, math.MaxUint32 - 3, math.MaxUint32 - slots + 1, 1 << 31} {
		for fill := range slots + 1 {
			r.startAt(start)
			if !r.Produce(fill) {
				t.Fatalf("at %d: %d slots were not taken", start, fill)
			}
			if r.Pending() != fill || r.Free() != slots-fill || r.Head() != start+uint32(fill) || r.Tail() != start {
				t.Fatalf("at %d: after %d: pending %d, free %d, head %d, tail %d", start, fill, r.Pending(), r.Free(), r.Head(), r.Tail())
			}
			for _, n := range []int{-1, slots - fill + 1, slots + 1, math.MaxInt32, math.MinInt32} {
				if r.Produce(n) {
					t.Fatalf("at %d: with %d in it, %d were taken", start, fill, n)
				}
			}
			for _, n := range []int{-1, fill + 1, slots + 1, math.MaxInt32, math.MinInt32} {
				if r.Consume(n) {
					t.Fatalf("at %d: with %d in it, %d were given back", start, fill, n)
				}
			}
			if r.Pending() != fill {
				t.Fatalf("at %d: what was refused changed it: pending %d, not %d", start, r.Pending(), fill)
			}
			if rewound := r.Rewind(); rewound != (fill == 0) || r.Pending() != fill {
				t.Fatalf("at %d: Rewind with %d in it: %v", start, fill, rewound)
			}
			if !r.Consume(fill) || r.Pending() != 0 || r.Free() != slots {
				t.Fatalf("at %d: %d were not given back", start, fill)
			}
			if !r.Rewind() || r.Head()&(slots-1) != 0 || r.Head() != r.Tail() || r.Free() != slots {
				t.Fatalf("at %d: Rewind of an empty ring: head %d, tail %d", start, r.Head(), r.Tail())
			}
		}
	}
}

// Two goroutines hand packets over, in order and whole, around the wrap.
func TestTwoGoroutines(t *testing.T) {
	const slots, total = 16, 50_000
	r := newRing(t, Config{Slots: slots, SlotSize: 32, Headroom: 8})
	start := uint32(math.MaxUint32 - total/2)
	r.startAt(start)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := uint64(0); n < total; {
			free := r.Free()
			if free == 0 {
				runtime.Gosched()
				continue
			}
			k := min(free, 1+int(n%5), total-int(n))
			for i := range k {
				b := r.Full(r.Head() + uint32(i))
				binary.LittleEndian.PutUint64(b, n+uint64(i))
				binary.LittleEndian.PutUint64(b[32:], ^(n + uint64(i)))
			}
			if !r.Produce(k) {
				t.Errorf("%d of %d free slots were not taken", k, free)
				return
			}
			n += uint64(k)
		}
	}()
	for n := uint64(0); n < total; {
		pending := r.Pending()
		if pending == 0 {
			runtime.Gosched()
			continue
		}
		k := min(pending, 1+int(n%7))
		for i := range k {
			b := r.Full(r.Tail() + uint32(i))
			if got, not := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[32:]); got != n+uint64(i) || not != ^got {
				t.Fatalf("packet %d is %d (%d)", n+uint64(i), got, ^not)
			}
		}
		if !r.Consume(k) {
			t.Fatalf("%d of %d waiting slots were not given back", k, pending)
		}
		n += uint64(k)
	}
	<-done
	if r.Pending() != 0 || r.Head() != start+total {
		t.Errorf("head %d, %d pending at the end", r.Head(), r.Pending())
	}
}

func TestCloseTwice(t *testing.T) {
	r, err := New(Config{Slots: 2, SlotSize: 65535})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v, not ErrClosed", err)
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRing(t, Config{Slots: 64, SlotSize: 2048, Headroom: 64})
	sum := 0
	allocs := testing.AllocsPerRun(1000, func() {
		for i := range r.Free() {
			r.Full(r.Head() + uint32(i))[0] = byte(i)
		}
		r.Produce(64)
		for i := range r.Pending() {
			sum += len(r.Slot(r.Tail() + uint32(i)))
		}
		r.Consume(64)
		r.Rewind()
	})
	if allocs != 0 || sum == 0 {
		t.Errorf("%v allocations for a round of 64 packets", allocs)
	}
}
