package ring

import (
	"encoding/binary"
	"runtime"
	"testing"

	"pgregory.net/rapid"
)

// model is what a ring does, said without positions: the packets that wait.
type model struct {
	r       *Ring
	waiting []uint64
	next    uint64 // the number of the packet that is filled next
}

func (m *model) produce(t *rapid.T) {
	n := rapid.IntRange(-1, m.r.Slots()+1).Draw(t, "n")
	legal := n >= 0 && len(m.waiting)+n <= m.r.Slots()
	if legal {
		for i := range n {
			b := m.r.Full(m.r.Head() + uint32(i))
			binary.LittleEndian.PutUint64(b, m.next+uint64(i))
			b[len(b)-1] = byte(m.next + uint64(i))
		}
	}
	if got := m.r.Produce(n); got != legal {
		t.Fatalf("Produce(%d) with %d of %d waiting: %v", n, len(m.waiting), m.r.Slots(), got)
	}
	if legal {
		for range n {
			m.waiting = append(m.waiting, m.next)
			m.next++
		}
	}
}

func (m *model) consume(t *rapid.T) {
	n := rapid.IntRange(-1, m.r.Slots()+1).Draw(t, "n")
	legal := n >= 0 && n <= len(m.waiting)
	if got := m.r.Consume(n); got != legal {
		t.Fatalf("Consume(%d) with %d waiting: %v", n, len(m.waiting), got)
	}
	if legal {
		m.waiting = m.waiting[n:]
	}
}

func (m *model) rewind(t *rapid.T) {
	empty := len(m.waiting) == 0
	if got := m.r.Rewind(); got != empty {
		t.Fatalf("Rewind with %d waiting: %v", len(m.waiting), got)
	}
	if empty && m.r.Head()&m.r.mask != 0 {
		t.Fatalf("after Rewind the next position is %d, not the first slot's", m.r.Head())
	}
}

// check compares: the counts, and every packet that waits.
func (m *model) check(t *rapid.T) {
	if m.r.Pending() != len(m.waiting) || m.r.Free() != m.r.Slots()-len(m.waiting) {
		t.Fatalf("pending %d, free %d, want %d of %d", m.r.Pending(), m.r.Free(), len(m.waiting), m.r.Slots())
	}
	if m.r.Head()-m.r.Tail() != uint32(len(m.waiting)) {
		t.Fatalf("head %d, tail %d, %d waiting", m.r.Head(), m.r.Tail(), len(m.waiting))
	}
	for i, want := range m.waiting {
		b := m.r.Full(m.r.Tail() + uint32(i))
		if got := binary.LittleEndian.Uint64(b); got != want || b[len(b)-1] != byte(want) {
			t.Fatalf("waiting packet %d is %d (last byte %d), want %d", i, got, b[len(b)-1], want)
		}
	}
}

// Whatever is called in whatever order, from whatever position.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, err := New(Config{
			Slots:    1 << rapid.IntRange(0, 5).Draw(t, "log slots"),
			SlotSize: rapid.IntRange(9, 200).Draw(t, "size"),
			Headroom: rapid.IntRange(0, 70).Draw(t, "headroom"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		// Often close to the wrap.
		r.startAt(-rapid.Uint32Range(0, 100).Draw(t, "before the wrap"))
		if rapid.Bool().Draw(t, "anywhere") {
			r.startAt(rapid.Uint32().Draw(t, "start"))
		}
		m := &model{r: r}
		t.Repeat(map[string]func(*rapid.T){
			"produce": m.produce, "consume": m.consume, "rewind": m.rewind, "": m.check,
		})
	})
}

// One goroutine that is both sides, with Rewind as the engine uses it: a ring
// that is emptied every time never leaves its first slots.
func TestRewindKeepsToTheFirstSlots(t *testing.T) {
	r := newRing(t, Config{Slots: 8, SlotSize: 64})
	r.startAt(3)
	for round := range 100 {
		if !r.Rewind() || r.Head() != 0 {
			t.Fatalf("round %d: the next position is %d", round, r.Head())
		}
		if n := 1 + round%3; !r.Produce(n) || !r.Consume(n) {
			t.Fatalf("round %d: %d slots were refused", round, n)
		}
	}
	// A full lap ends at the first slot by itself: nothing has to move then.
	if !r.Rewind() || !r.Produce(8) || !r.Consume(8) || !r.Rewind() || r.Head()&7 != 0 {
		t.Errorf("after a lap the next position is %d", r.Head())
	}
}

// The two sides really run at the same time: each waits for the other in
// between, so that full and empty rings come up thousands of times.
func TestHandOverUnderPressure(t *testing.T) {
	for slots, total := range map[int]uint64{1: 5_000, 2: 10_000, 64: 120_000} {
		r := newRing(t, Config{Slots: slots, SlotSize: 16})
		r.startAt(-uint32(total / 3)) // the wrap is on the way
		go func() {
			for n := uint64(0); n < total; {
				for r.Free() == 0 {
					runtime.Gosched()
				}
				binary.LittleEndian.PutUint64(r.Slot(r.Head()), n)
				r.Produce(1)
				n++
			}
		}()
		wrong := 0 // counted, not fatal: the producer needs the ring to the end
		for n := uint64(0); n < total; {
			k := r.Pending()
			if k == 0 {
				runtime.Gosched()
				continue
			}
			if k > slots {
				wrong++
			}
			for i := range k {
				if binary.LittleEndian.Uint64(r.Slot(r.Tail()+uint32(i))) != n+uint64(i) {
					wrong++
				}
			}
			r.Consume(k)
			n += uint64(k)
		}
		if wrong != 0 {
			t.Errorf("%d slots: %d of %d packets did not come whole and in order", slots, wrong, total)
		}
	}
}

// The usable bytes begin right behind the headroom, in memory.
func TestSlotIsBehindTheHeadroom(t *testing.T) {
	for _, headroom := range []int{0, 1, 16, 64, 100} {
		r := newRing(t, Config{Slots: 4, SlotSize: 300, Headroom: headroom})
		for pos := range uint32(9) {
			if full, slot := r.Full(pos), r.Slot(pos); &full[headroom] != &slot[0] || &full[headroom+299] != &slot[299] {
				t.Fatalf("headroom %d, position %d: Slot is not the end of Full", headroom, pos)
			}
		}
	}
}
