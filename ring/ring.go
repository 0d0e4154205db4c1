// Package ring holds packet memory: fixed slots in one mapped region outside
// the garbage collector, handed from one producer to one consumer by index.
//
// Nothing is copied and nothing is allocated per packet. The producer fills
// slots and publishes them with [Ring.Produce]; the consumer works on them in
// place and gives them back with [Ring.Consume]. The two may be different
// goroutines (the hand-over is a release/acquire pair of atomics) or the same
// one: the run-to-completion engine of package encap is both, and the ring is
// then what still waits while a socket is full.
//
// A slot is Headroom + SlotSize bytes. Slots do not start at the same offset
// in their pages: with 64 KiB slots every packet header would otherwise fall
// into the same few cache sets and the headers of a batch would evict each
// other.
package ring

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// cacheLine is the size that keeps the two indices apart and that slots are
// aligned to. 64 bytes is right on amd64 and most arm64; where lines are
// larger it costs a little sharing, never correctness.
const cacheLine = 64

// maxRegion bounds a region to what a 32-bit process can still map: 1 GiB.
const maxRegion = 1 << 30

// ErrClosed is returned by [Ring.Close] when the ring was closed before.
var ErrClosed = errors.New("ring: already closed")

// Config says how large a ring is.
type Config struct {
	// Slots is the number of slots: a power of two, at least 1.
	Slots int
	// SlotSize is the number of usable bytes of a slot, at least 1. A slot
	// that is to take any datagram or super-packet needs 65535.
	SlotSize int
	// Headroom is the number of bytes kept free before the usable bytes, for
	// a header that is put in front without moving the packet. Zero is fine.
	Headroom int
}

// Ring is a single producer, single consumer queue of packet slots.
//
// Positions are free-running uint32 counters: position p lives in slot
// p mod Slots, so positions wrap without a special case.
type Ring struct {
	mem      []byte // the aligned part of the mapping, Slots*stride bytes
	unmap    func() error
	stride   int
	headroom int
	size     int
	mask     uint32
	closed   atomic.Bool

	_    [cacheLine]byte
	head atomic.Uint32 // next position the producer fills; written by the producer
	_    [cacheLine - 4]byte
	tail atomic.Uint32 // next position the consumer takes; written by the consumer
	_    [cacheLine - 4]byte
}

// New maps a ring. It fails when cfg is not legal or the system has no memory
// to map; the error says which. The caller owns the ring and closes it when
// neither side (nor the kernel) uses a slot any more.
func New(cfg Config) (*Ring, error) {
	switch {
	case cfg.Slots < 1 || cfg.Slots&(cfg.Slots-1) != 0:
		return nil, fmt.Errorf("ring: new: Slots is %d (it must be a power of two, at least 1)", cfg.Slots)
	case cfg.SlotSize < 1:
		return nil, fmt.Errorf("ring: new: SlotSize is %d (it must be at least 1)", cfg.SlotSize)
	case cfg.Headroom < 0:
		return nil, fmt.Errorf("ring: new: Headroom is %d (it must not be negative)", cfg.Headroom)
	case cfg.SlotSize > maxRegion || cfg.Headroom > maxRegion || cfg.Slots > maxRegion:
		return nil, fmt.Errorf("ring: new: %d slots of %d+%d bytes are more than %d bytes (use fewer or smaller slots)",
			cfg.Slots, cfg.Headroom, cfg.SlotSize, maxRegion)
	}
	if int64(cfg.Headroom)+int64(cfg.SlotSize) > maxRegion {
		return nil, fmt.Errorf("ring: new: slots of %d+%d bytes are more than %d bytes (use smaller slots)",
			cfg.Headroom, cfg.SlotSize, maxRegion)
	}
	stride := strideOf(cfg.Headroom + cfg.SlotSize)
	if int64(stride)*int64(cfg.Slots) > maxRegion {
		return nil, fmt.Errorf("ring: new: %d slots of %d bytes are more than %d bytes (use fewer or smaller slots)",
			cfg.Slots, stride, maxRegion)
	}
	mem, unmap, err := mapRegion(stride * cfg.Slots)
	if err != nil {
		return nil, fmt.Errorf("ring: new: map %d bytes: %w", stride*cfg.Slots, err)
	}
	return &Ring{
		mem: mem, unmap: unmap,
		stride: stride, headroom: cfg.Headroom, size: cfg.SlotSize,
		mask: uint32(cfg.Slots - 1),
	}, nil
}

// strideOf rounds n up to an odd number of cache lines. Odd, because the line
// offsets of consecutive slots then run through all 64 lines of a page before
// one repeats.
func strideOf(n int) int {
	lines := (n + cacheLine - 1) / cacheLine
	return (lines | 1) * cacheLine
}

// Close unmaps the memory. Every slice obtained from the ring is invalid after
// it: touching one faults. A second Close returns [ErrClosed] and does nothing.
func (r *Ring) Close() error {
	if r.closed.Swap(true) {
		return ErrClosed
	}
	r.mem = nil
	if err := r.unmap(); err != nil {
		return fmt.Errorf("ring: close: %w", err)
	}
	return nil
}

// Slots returns the number of slots.
func (r *Ring) Slots() int { return int(r.mask) + 1 }

// SlotSize returns the usable bytes of a slot.
func (r *Ring) SlotSize() int { return r.size }

// Headroom returns the bytes in front of the usable bytes of a slot.
func (r *Ring) Headroom() int { return r.headroom }

// Slot returns the usable bytes of the slot at position pos. The slice belongs
// to the producer for positions in [Head, Head+Free) and to the consumer for
// positions in [Tail, Tail+Pending).
func (r *Ring) Slot(pos uint32) []byte {
	o := int(pos&r.mask)*r.stride + r.headroom
	return r.mem[o : o+r.size : o+r.size]
}

// Full returns the slot at position pos with its headroom in front: usable
// bytes begin at index Headroom. Ownership is that of [Ring.Slot].
func (r *Ring) Full(pos uint32) []byte {
	o := int(pos&r.mask) * r.stride
	n := r.headroom + r.size
	return r.mem[o : o+n : o+n]
}

// Head returns the position of the first slot the producer may fill. Producer only.
func (r *Ring) Head() uint32 { return r.head.Load() }

// Free returns how many slots the producer may fill now, starting at Head.
// It can only grow until the producer publishes. Producer only.
func (r *Ring) Free() int { return int(r.mask) + 1 - int(r.head.Load()-r.tail.Load()) }

// Produce hands the next n filled slots to the consumer. It returns false, and
// hands over nothing, when n is negative or larger than Free. Producer only.
func (r *Ring) Produce(n int) bool {
	if n < 0 || n > r.Free() {
		return false
	}
	r.head.Store(r.head.Load() + uint32(n))
	return true
}

// Tail returns the position of the first slot that waits for the consumer. Consumer only.
func (r *Ring) Tail() uint32 { return r.tail.Load() }

// Pending returns how many slots wait for the consumer, starting at Tail. It
// can only grow until the consumer gives some back. Consumer only.
func (r *Ring) Pending() int { return int(r.head.Load() - r.tail.Load()) }

// Consume gives the first n waiting slots back to the producer. It returns
// false, and gives back nothing, when n is negative or larger than Pending.
// Consumer only.
func (r *Ring) Consume(n int) bool {
	if n < 0 || n > r.Pending() {
		return false
	}
	r.tail.Store(r.tail.Load() + uint32(n))
	return true
}

// Rewind moves an empty ring back to its first slot, so that a producer that
// is its own consumer keeps using the slots that are still in the cache
// instead of walking through all of them. It returns false when slots are
// still waiting. Only for an owner of both sides: never call it while another
// goroutine produces or consumes.
func (r *Ring) Rewind() bool {
	h := r.head.Load()
	if h != r.tail.Load() {
		return false
	}
	if h&r.mask != 0 {
		r.head.Store(0)
		r.tail.Store(0)
	}
	return true
}
