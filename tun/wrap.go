package tun

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/ring"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// Headroom is how many bytes in front of a packet a wrapped device may use
// for itself (wireguard/tun asks for a virtio header's worth).
const Headroom = 16

// maxPacket is the largest IP packet without jumbograms.
const maxPacket = 65535

// Wrap makes a Device of any wireguard/tun Device: gVisor's netstack, a test
// channel, a device of another system. It takes d over: closing the result
// closes d. A goroutine reads d into a ring of its own until then, so that an
// engine can stop and another one go on without losing packets.
func Wrap(d wgtun.Device) (*Device, error) {
	name, err := d.Name()
	if err != nil {
		return nil, fmt.Errorf("tun: wrap: name: %w", err)
	}
	batch := d.BatchSize()
	if batch < 1 {
		return nil, fmt.Errorf("tun: wrap %s: batch size is %d (it must be at least 1)", name, batch)
	}
	slots := 1 << bits.Len(uint(max(2*batch, 16)-1))
	r, err := ring.New(ring.Config{Slots: slots, SlotSize: maxPacket, Headroom: Headroom})
	if err != nil {
		return nil, fmt.Errorf("tun: wrap %s: %w", name, err)
	}
	dev := &Device{name: name, wrapped: d, quit: make(chan struct{})}
	p := &pump{
		dev: d, ring: r, batch: batch, sizes: make([]int, slots),
		filled: make(chan struct{}, 1), freed: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	dev.queues = []*Queue{{dev: dev, fd: -1, pump: p}}
	mtu, _ := d.MTU()
	dev.events = &events{last: Event{MTU: mtu}, watchers: map[chan Event]bool{}}
	go p.run()
	go dev.drain()
	return dev, nil
}

// pump is the producer of a wrapped device's ring: it reads d, the engine
// consumes. Positions are handed over by ring indices; the channels only wake.
type pump struct {
	dev    wgtun.Device
	ring   *ring.Ring
	batch  int
	sizes  []int // packet length by slot; written before Produce, read after
	filled chan struct{}
	freed  chan struct{}
	stop   chan struct{}
	done   chan struct{}
	err    error // why reading ended; valid when done is closed

	writeMu sync.Mutex // wireguard/tun devices do not all allow concurrent writes
}

func (p *pump) run() {
	defer close(p.done)
	bufs := make([][]byte, p.batch)
	sizes := make([]int, p.batch)
	mask := uint32(p.ring.Slots() - 1)
	for {
		for p.ring.Free() < p.batch {
			select {
			case <-p.freed:
			case <-p.stop:
				p.err = ErrClosed
				return
			}
		}
		head := p.ring.Head()
		for i := range bufs {
			bufs[i] = p.ring.Full(head + uint32(i))
		}
		n, err := p.dev.Read(bufs, sizes, Headroom)
		for i := range n {
			p.sizes[(head+uint32(i))&mask] = sizes[i]
		}
		if n > 0 {
			p.ring.Produce(n)
			wake(p.filled)
		}
		stopped := false
		select {
		case <-p.stop:
			stopped = true
		default:
		}
		switch {
		case err == nil:
		case errors.Is(err, wgtun.ErrTooManySegments):
			// The device cut off what did not fit; what it returned is good.
		case errors.Is(err, os.ErrClosed) || stopped:
			p.err = ErrClosed
			return
		default:
			p.err = fmt.Errorf("tun: read: %w", err)
			return
		}
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Wait blocks until packets wait in the queue of a wrapped device and returns
// how many; ctx ends it with ctx's error, a closed or broken device with the
// reason. Only for queues without FD, and for one goroutine at a time.
func (q *Queue) Wait(ctx context.Context) (int, error) {
	p := q.pump
	if p == nil {
		return 0, fmt.Errorf("tun: wait: %w: the queue has a descriptor, read that", errors.ErrUnsupported)
	}
	for {
		if n := p.ring.Pending(); n > 0 {
			return n, nil
		}
		select {
		case <-p.filled:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-p.done:
			if n := p.ring.Pending(); n > 0 {
				return n, nil
			}
			return 0, p.err
		}
	}
}

// Packet returns the i-th waiting packet, i below what Wait returned. It belongs
// to the caller until Release. Only for queues that are Wrapped.
func (q *Queue) Packet(i int) []byte {
	p := q.pump
	pos := p.ring.Tail() + uint32(i)
	return p.ring.Slot(pos)[:p.sizes[pos&uint32(p.ring.Slots()-1)]]
}

// Release gives the first n waiting packets back to the queue. Only for queues
// that are Wrapped.
func (q *Queue) Release(n int) {
	q.pump.ring.Consume(n)
	wake(q.pump.freed)
}

// Write hands packets to the host. Each of bufs has Headroom bytes of scratch
// space in front of the packet. The count is the device's: packets on some, bytes
// on others.
func (q *Queue) Write(bufs [][]byte) (int, error) {
	p := q.pump
	if p == nil {
		return 0, fmt.Errorf("tun: write: %w: the queue has a descriptor, write that", errors.ErrUnsupported)
	}
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	n, err := p.dev.Write(bufs, Headroom)
	if errors.Is(err, os.ErrClosed) {
		err = ErrClosed
	}
	return n, err
}

// BatchSize is the most packets one Write of a wrapped device should get.
func (q *Queue) BatchSize() int {
	if q.pump == nil {
		return 1
	}
	return q.pump.batch
}

// closeWrapped ends the pump and returns the ring's memory once it is out of it.
func (d *Device) closeWrapped() error {
	p := d.queues[0].pump
	close(p.stop)
	err := d.wrapped.Close()
	<-p.done
	if p.ring.Pending() == 0 {
		return errors.Join(err, p.ring.Close())
	}
	// An engine may still hold packets of the ring: it goes with its last user.
	runtime.AddCleanup(p, func(r *ring.Ring) { _ = r.Close() }, p.ring)
	return err
}

// events hands a wrapped device's events on to all watchers. Somebody has to
// take them always: some devices block when nobody does.
type events struct {
	mu       sync.Mutex
	last     Event
	watchers map[chan Event]bool
}

// drainTime is how long after Close a device gets to end its events.
const drainTime = time.Second

// drain runs until the device closes its channel, which it should do in Close.
func (d *Device) drain() {
	e := d.events
	var late <-chan time.Time // starts with Close
	quit := d.quit
	for {
		select {
		case w, ok := <-d.wrapped.Events():
			if !ok {
				return
			}
			e.tell(d, w)
		case <-quit:
			quit, late = nil, time.After(drainTime)
		case <-late:
			return
		}
	}
}

// tell notes an event and hands the new state to all watchers.
func (e *events) tell(d *Device, w wgtun.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w&wgtun.EventUp != 0 {
		e.last.Up = true
	}
	if w&wgtun.EventDown != 0 {
		e.last.Up = false
	}
	if w&wgtun.EventMTUUpdate != 0 {
		if m, err := d.wrapped.MTU(); err == nil {
			e.last.MTU = m
		}
	}
	for c := range e.watchers {
		send(c, e.last)
	}
}

func (d *Device) watchWrapped(ctx context.Context) <-chan Event {
	out := make(chan Event, 1)
	e := d.events
	e.mu.Lock()
	send(out, e.last)
	e.watchers[out] = true
	e.mu.Unlock()
	go func() {
		gone := false
		select {
		case <-ctx.Done():
		case <-d.quit:
		case <-d.queues[0].pump.done:
			gone = true
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.watchers, out)
		if gone {
			ev := e.last
			ev.Gone = true
			send(out, ev)
		}
		close(out)
	}()
	return out
}

// send replaces an event that was not read yet: the latest state counts.
func send(c chan Event, ev Event) {
	for {
		select {
		case c <- ev:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}
