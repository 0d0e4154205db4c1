package tun_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/tun"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// waitLimit bounds what must happen sooner or later.
const waitLimit = 10 * time.Second

// memTUN is a device whose packets are counted by the device itself, so that a
// test sees what the pump asked for. It runs on every system.
type memTUN struct {
	batch    int
	burst    int          // packets that a Read returns, at most batch
	calls    atomic.Int64 // of Read
	limit    int64        // packets there are; then Read blocks
	given    atomic.Int64
	misused  atomic.Int64 // calls with a wrong offset or short buffers
	endErr   error        // what Read returns after Close
	events   chan wgtun.Event
	done     chan struct{}
	once     sync.Once
	closings atomic.Int64

	mu      sync.Mutex
	written [][]byte
	offset  int // of the last Write
}

func newMemTUN(batch, burst int, limit int64) *memTUN {
	return &memTUN{batch: batch, burst: burst, limit: limit, endErr: os.ErrClosed,
		events: make(chan wgtun.Event), done: make(chan struct{})}
}

func (m *memTUN) File() *os.File             { return nil }
func (m *memTUN) MTU() (int, error)          { return 1400, nil }
func (m *memTUN) Name() (string, error)      { return "mem0", nil }
func (m *memTUN) Events() <-chan wgtun.Event { return m.events }
func (m *memTUN) BatchSize() int             { return m.batch }

func (m *memTUN) Close() error {
	m.closings.Add(1)
	m.once.Do(func() {
		close(m.done)
		close(m.events) // as wireguard/tun asks of a device
	})
	return nil
}

// memSize is the length of packet n: small ones and the largest there is.
func memSize(n int64) int {
	if n%50 == 49 {
		return 65535
	}
	return 20 + int(n%1500)
}

// Read uses all that it may: the headroom for itself, too, and every buffer to
// its end.
func (m *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	m.calls.Add(1)
	select {
	case <-m.done:
		return 0, m.endErr
	default:
	}
	n := int(min(int64(m.burst), m.limit-m.given.Load()))
	if n == 0 {
		<-m.done
		return 0, m.endErr
	}
	if offset != tun.Headroom || len(bufs) != m.batch || len(sizes) < len(bufs) {
		m.misused.Add(1)
	}
	for i, b := range bufs {
		if len(b) < offset+65535 {
			m.misused.Add(1)
			continue
		}
		for j := range offset {
			b[j] = 0xEE
		}
		if i >= n {
			continue
		}
		k := m.given.Add(1) - 1
		sizes[i] = memSize(k)
		b[offset+sizes[i]-1] = byte(k)
		binary.BigEndian.PutUint64(b[offset:], uint64(k))
	}
	return n, nil
}

func (m *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.offset = offset
	for i, b := range bufs {
		select {
		case <-m.done:
			return i, os.ErrClosed
		default:
		}
		m.written = append(m.written, bytes.Clone(b[offset:]))
	}
	return len(bufs), nil
}

func wrapMem(t *testing.T, m *memTUN) (*tun.Device, *tun.Queue) {
	t.Helper()
	d, err := tun.Wrap(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := m.misused.Load(); n != 0 {
			t.Errorf("%d Reads with a wrong offset or buffers", n)
		}
	})
	return d, d.Queues()[0]
}

// isPacket checks packet n of a memTUN.
func isPacket(p []byte, n int64) bool {
	return len(p) == memSize(n) && binary.BigEndian.Uint64(p) == uint64(n) && p[len(p)-1] == byte(n)
}

// poll waits until ok is true.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// Batch sizes and fill levels of every kind: in order, whole, none lost.
func TestWrapBatches(t *testing.T) {
	const total = 3000
	for _, tt := range []struct{ batch, burst int }{{1, 1}, {7, 3}, {16, 1}, {16, 16}, {128, 128}} {
		m := newMemTUN(tt.batch, tt.burst, total)
		_, q := wrapMem(t, m)
		if q.BatchSize() != tt.batch {
			t.Errorf("batch size %d, want %d", q.BatchSize(), tt.batch)
		}
		for n := int64(0); n < total; {
			k, err := q.Wait(t.Context())
			if err != nil || k < 1 {
				t.Fatalf("batch %d: Wait: %d, %v", tt.batch, k, err)
			}
			for i := range k {
				if !isPacket(q.Packet(i), n+int64(i)) {
					t.Fatalf("batch %d: packet %d is wrong: %d bytes, % x", tt.batch, n+int64(i), len(q.Packet(i)), q.Packet(i)[:8])
				}
			}
			q.Release(k)
			n += int64(k)
		}
	}
}

// The pump reads no further than it has room for, and goes on when there is.
func TestWrapPumpStopsWhenFull(t *testing.T) {
	for _, tt := range []struct {
		batch, burst int
		full         int // packets with which a batch has no room left
	}{
		{1, 1, 16}, {16, 16, 32}, {16, 1, 17}, {16, 5, 20},
	} {
		m := newMemTUN(tt.batch, tt.burst, 1<<40)
		_, q := wrapMem(t, m)
		poll(t, "the ring never fills", func() bool { k, err := q.Wait(t.Context()); return err == nil && k == tt.full })
		calls := m.calls.Load()
		if want := int64(tt.full / tt.burst); calls != want {
			t.Errorf("batch %d of %d: %d Reads, want %d", tt.burst, tt.batch, calls, want)
		}
		for range 1000 {
			runtime.Gosched() // a pump that goes on has every chance to
		}
		if got := m.calls.Load(); got != calls {
			t.Errorf("batch %d of %d: %d more Reads of a full ring", tt.burst, tt.batch, got-calls)
		}
		for i := range tt.full {
			if !isPacket(q.Packet(i), int64(i)) {
				t.Fatalf("packet %d was overwritten", i)
			}
		}
		q.Release(tt.full)
		poll(t, "the pump does not go on", func() bool { k, err := q.Wait(t.Context()); return err == nil && k == tt.full })
		if !isPacket(q.Packet(0), int64(tt.full)) {
			t.Errorf("batch %d of %d: the packets go on at another number", tt.burst, tt.batch)
		}
	}
}

// Close of the wrapper or of the device itself, with packets in the ring: those
// are delivered first.
func TestWrapEndsAfterThePackets(t *testing.T) {
	for _, tt := range []struct {
		name  string
		close func(d *tun.Device, m *memTUN) error
	}{
		{"wrapper", func(d *tun.Device, _ *memTUN) error { return d.Close() }},
		{"device", func(_ *tun.Device, m *memTUN) error { return m.Close() }},
	} {
		m := newMemTUN(1, 1, 9)
		d, q := wrapMem(t, m)
		poll(t, "no packets", func() bool { k, _ := q.Wait(t.Context()); return k == 9 })
		if err := tt.close(d, m); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // packets that wait come before the end of the context as well
		for n := range int64(9) {
			if k, err := q.Wait(ctx); k != 9-int(n) || err != nil {
				t.Fatalf("closed %s: Wait: %d, %v, want %d packets", tt.name, k, err, 9-n)
			}
			if !isPacket(q.Packet(0), n) {
				t.Fatalf("closed %s: packet %d is wrong", tt.name, n)
			}
			q.Release(1)
		}
		if k, err := q.Wait(t.Context()); k != 0 || !errors.Is(err, tun.ErrClosed) {
			t.Errorf("closed %s: after the packets: %d, %v", tt.name, k, err)
		}
	}
}

// After Close the reason is that it was closed, whatever the device says about
// being read then.
func TestWrapClosedIsErrClosed(t *testing.T) {
	m := newMemTUN(1, 1, 0)
	m.endErr = errors.New("use of a closed gadget")
	d, q := wrapMem(t, m)
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if n := m.closings.Load(); n != 1 {
		t.Errorf("the wrapped device was closed %d times", n)
	}
	if _, err := q.Wait(t.Context()); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("Wait after Close: %v, want ErrClosed", err)
	}
	if err := d.SetMTU(1400); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("SetMTU after Close: %v", err)
	}
	if _, err := d.Watch(t.Context()); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

// Wait says why the context ended.
func TestWrapWaitCause(t *testing.T) {
	_, q := wrapMem(t, newMemTUN(1, 1, 0))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	ended := make(chan error, 1)
	go func() {
		_, err := q.Wait(ctx)
		ended <- err
	}()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Wait: %v, want the cause", err)
	}
}

// Each packet goes to the device with its headroom in front.
func TestWrapWriteOffset(t *testing.T) {
	m := newMemTUN(4, 1, 0)
	_, q := wrapMem(t, m)
	bufs := make([][]byte, 4)
	for i := range bufs {
		bufs[i] = append(bytes.Repeat([]byte{0xEE}, tun.Headroom), bytes.Repeat([]byte{byte(i)}, 20+i)...)
	}
	if n, err := q.Write(bufs); n != 4 || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if n, err := q.Write(nil); n != 0 || err != nil {
		t.Errorf("Write of nothing: %d, %v", n, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.offset != tun.Headroom || len(m.written) != 4 {
		t.Fatalf("%d packets at offset %d", len(m.written), m.offset)
	}
	for i, p := range m.written {
		if !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, 20+i)) {
			t.Errorf("packet %d: % x", i, p)
		}
	}
}

// Every watcher sees every change: they do not take them from each other.
func TestWrapTwoWatchers(t *testing.T) {
	m := newMemTUN(1, 1, 0)
	d, _ := wrapMem(t, m)
	var watchers [2]<-chan tun.Event
	for i := range watchers {
		events, err := d.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ev := <-events; ev != (tun.Event{MTU: 1400}) {
			t.Fatalf("first event: %+v", ev)
		}
		watchers[i] = events
	}
	m.events <- wgtun.EventUp
	for i, events := range watchers {
		select {
		case ev := <-events:
			if ev != (tun.Event{Up: true, MTU: 1400}) {
				t.Errorf("watcher %d: %+v", i, ev)
			}
		case <-time.After(waitLimit / 10):
			t.Errorf("watcher %d was not told that the device is up", i)
		}
	}
}

// A device blocks in its own events when nobody takes them: they are taken
// though nobody watches, and the first event of a later watcher tells of them.
func TestWrapTakesEvents(t *testing.T) {
	m := newMemTUN(1, 1, 0)
	d, _ := wrapMem(t, m)
	for i, e := range []wgtun.Event{wgtun.EventUp, wgtun.EventMTUUpdate, wgtun.EventUp} {
		select {
		case m.events <- e:
		case <-time.After(waitLimit / 10):
			t.Fatalf("event %d blocks the device: nobody takes it", i)
		}
	}
	events, err := d.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev != (tun.Event{Up: true, MTU: 1400}) {
		t.Errorf("first event: %+v, want that the device is up", ev)
	}
}

// Taking packets out allocates nothing, on either side of the ring.
func TestWrapNoAllocations(t *testing.T) {
	_, q := wrapMem(t, newMemTUN(8, 8, 1<<40))
	ctx, sum := context.Background(), 0
	allocs := testing.AllocsPerRun(500, func() {
		k, err := q.Wait(ctx)
		if err != nil {
			t.Error(err)
		}
		for i := range k {
			sum += len(q.Packet(i))
		}
		q.Release(k)
	})
	if allocs != 0 || sum == 0 {
		t.Errorf("%v allocations for each Wait", allocs)
	}
}
