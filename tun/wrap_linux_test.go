package tun_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/tun"
	wgtun "golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// batchTUN is a wireguard/tun device that reads and writes batches.
type batchTUN struct {
	batch   int
	nameErr error
	reads   chan [][]byte // what Read returns, one element for each call
	readErr chan error    // or this
	written chan []byte
	events  chan wgtun.Event
	mtu     int
	done    chan struct{}
	once    sync.Once
}

func newBatchTUN(batch int) *batchTUN {
	return &batchTUN{batch: batch, mtu: 1420, reads: make(chan [][]byte), readErr: make(chan error, 1),
		written: make(chan []byte, 1024), events: make(chan wgtun.Event, 4), done: make(chan struct{})}
}

func (b *batchTUN) File() *os.File             { return nil }
func (b *batchTUN) MTU() (int, error)          { return b.mtu, nil }
func (b *batchTUN) Name() (string, error)      { return "batch0", b.nameErr }
func (b *batchTUN) Events() <-chan wgtun.Event { return b.events }
func (b *batchTUN) BatchSize() int             { return b.batch }

func (b *batchTUN) Close() error {
	b.once.Do(func() { close(b.done); close(b.events) })
	return nil
}

func (b *batchTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-b.done:
		return 0, os.ErrClosed
	case packets := <-b.reads:
		for i, p := range packets {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		select {
		case err := <-b.readErr:
			return len(packets), err
		default:
			return len(packets), nil
		}
	}
}

func (b *batchTUN) Write(bufs [][]byte, offset int) (int, error) {
	for i, p := range bufs {
		select { // closed before all else
		case <-b.done:
			return i, os.ErrClosed
		default:
		}
		select {
		case <-b.done:
			return i, os.ErrClosed
		case b.written <- bytes.Clone(p[offset:]):
		}
	}
	return len(bufs), nil
}

func wrap(t *testing.T, d wgtun.Device) (*tun.Device, *tun.Queue) {
	t.Helper()
	dev, err := tun.Wrap(d)
	check(t, err)
	t.Cleanup(func() { check(t, dev.Close()) })
	if len(dev.Queues()) != 1 {
		t.Fatalf("%d queues", len(dev.Queues()))
	}
	return dev, dev.Queues()[0]
}

func numbered(n, size int) []byte {
	b := bytes.Repeat([]byte{byte(n)}, max(size, 4))
	binary.BigEndian.PutUint32(b, uint32(n))
	return b
}

func TestWrap(t *testing.T) {
	b := newBatchTUN(5)
	d, q := wrap(t, b)
	if d.Name() != "batch0" || d.Offloads() != 0 || q.Device() != d || q.VirtioHeader() || q.BatchSize() != 5 {
		t.Errorf("name %q, offloads %b, virtio header %v, batch %d", d.Name(), d.Offloads(), q.VirtioHeader(), q.BatchSize())
	}
	if fd, ok := q.FD(); ok || fd != -1 {
		t.Errorf("FD() = %d, %v", fd, ok)
	}
	if mtu, err := d.MTU(); err != nil || mtu != 1420 {
		t.Errorf("MTU() = %d, %v", mtu, err)
	}
	wantError(t, d.SetMTU(1400), errors.ErrUnsupported, "batch0")

	// Batches of all sizes, far more than the ring holds, in order.
	const total = 5000
	go func() {
		for n := 0; n < total; {
			k := min(1+n%5, total-n)
			packets := make([][]byte, k)
			for i := range packets {
				packets[i] = numbered(n+i, (n+i)%1500)
			}
			b.reads <- packets
			n += k
		}
	}()
	for n := 0; n < total; {
		k, err := q.Wait(t.Context())
		check(t, err)
		if k < 1 {
			t.Fatalf("Wait: %d packets", k)
		}
		for i := range k {
			if want := numbered(n+i, (n+i)%1500); !bytes.Equal(q.Packet(i), want) {
				t.Fatalf("packet %d of %d: %x, want %x", n+i, k, q.Packet(i), want)
			}
		}
		take := 1 + n%k // not always all of them
		q.Release(take)
		n += take
	}

	bufs := make([][]byte, 3)
	for i := range bufs {
		bufs[i] = append(make([]byte, tun.Headroom), numbered(i, 100)...)
	}
	if n, err := q.Write(bufs); n != 3 || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	for i := range bufs {
		if got := <-b.written; !bytes.Equal(got, numbered(i, 100)) {
			t.Errorf("written packet %d: %x", i, got)
		}
	}
}

// A packet that waits is not overwritten by those that come after it, however
// long it is held.
func TestWrapBackPressure(t *testing.T) {
	b := newBatchTUN(1)
	_, q := wrap(t, b)
	stop := make(chan struct{})
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for ; ; n++ {
			select {
			case b.reads <- [][]byte{numbered(n, 60)}:
			case <-stop:
				return
			}
		}
	}()
	last := -1
	if !eventually(func() bool { // until the ring is full
		k, err := q.Wait(t.Context())
		check(t, err)
		full := k == last
		last = k
		return full && k > 1
	}) {
		t.Fatal("the ring never fills")
	}
	for i := range last {
		if !bytes.Equal(q.Packet(i), numbered(i, 60)) {
			t.Errorf("packet %d was overwritten: %x", i, q.Packet(i))
		}
	}
	close(stop)
	if n := <-sent; n < last {
		t.Errorf("%d packets wait, %d were sent", last, n)
	}
}

func TestWrapErrors(t *testing.T) {
	noName := newBatchTUN(1)
	noName.nameErr = errors.New("no name today")
	_, err := tun.Wrap(noName)
	wantError(t, err, noName.nameErr, "tun: wrap")
	_, err = tun.Wrap(newBatchTUN(0))
	wantError(t, err, nil, "tun: wrap batch0", "batch size is 0")

	// Packets beside an error are good; then the error comes, and stays.
	b := newBatchTUN(4)
	_, q := wrap(t, b)
	b.readErr <- wgtun.ErrTooManySegments
	b.reads <- [][]byte{numbered(1, 50), numbered(2, 50)}
	for got := 0; got < 2; {
		k, err := q.Wait(t.Context())
		check(t, err)
		got += k
		q.Release(k)
	}
	broken := errors.New("broken")
	b.readErr <- broken
	b.reads <- [][]byte{numbered(3, 50)}
	k, err := q.Wait(t.Context())
	if k != 1 || err != nil || !bytes.Equal(q.Packet(0), numbered(3, 50)) {
		t.Fatalf("beside the error: %d packets, %v", k, err)
	}
	q.Release(1)
	for range 2 {
		_, err = q.Wait(t.Context())
		wantError(t, err, broken, "tun: read")
	}
}

// The context ends Wait, and Close does, whatever it waits for.
func TestWrapWaitEnds(t *testing.T) {
	noLeaks(t, func() {
		b := newBatchTUN(1)
		d, err := tun.Wrap(b)
		check(t, err)
		q := d.Queues()[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := q.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
		cancel()
		waiting := make(chan error)
		go func() {
			_, err := q.Wait(context.Background())
			waiting <- err
		}()
		check(t, d.Close(), d.Close())
		wantError(t, <-waiting, tun.ErrClosed)
		if _, err := q.Wait(context.Background()); !errors.Is(err, tun.ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
		if _, err := q.Write([][]byte{make([]byte, tun.Headroom+20)}); !errors.Is(err, tun.ErrClosed) {
			t.Errorf("Write after Close: %v", err)
		}
		_, err = d.MTU()
		wantError(t, err, tun.ErrClosed)
	})
}

// Close while packets wait that an engine still holds: they stay readable.
func TestWrapCloseWithPacketsHeld(t *testing.T) {
	b := newBatchTUN(1)
	d, err := tun.Wrap(b)
	check(t, err)
	q := d.Queues()[0]
	for i := range 3 {
		b.reads <- [][]byte{numbered(i, 200)}
	}
	if !eventually(func() bool { k, err := q.Wait(t.Context()); check(t, err); return k == 3 }) {
		t.Fatal("the packets do not come")
	}
	check(t, d.Close())
	for i := range 3 {
		if !bytes.Equal(q.Packet(i), numbered(i, 200)) {
			t.Errorf("packet %d after Close: %x", i, q.Packet(i))
		}
	}
	q.Release(3)
	_, err = q.Wait(t.Context())
	wantError(t, err, tun.ErrClosed)
}

// Several goroutines may write.
func TestWrapConcurrentWrites(t *testing.T) {
	c := tuntest.NewChannelTUN()
	_, q := wrap(t, c.TUN())
	const writers, each = 4, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := q.Write([][]byte{append(make([]byte, tun.Headroom), numbered(w*each+i, 40)...)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := make(map[uint32]bool)
	for range writers * each {
		p := <-c.Inbound
		n := binary.BigEndian.Uint32(p)
		if seen[n] || !bytes.Equal(p, numbered(int(n), 40)) {
			t.Fatalf("packet %d: %x", n, p)
		}
		seen[n] = true
	}
	wg.Wait()
}

func TestWrapWatch(t *testing.T) {
	b := newBatchTUN(1)
	d, _ := wrap(t, b)
	events, err := d.Watch(t.Context())
	check(t, err)
	if ev := next(t, events); ev != (tun.Event{MTU: 1420}) {
		t.Errorf("first event: %+v", ev)
	}
	b.events <- wgtun.EventUp
	until(t, events, tun.Event{Up: true, MTU: 1420})
	b.mtu = 1300
	b.events <- wgtun.EventMTUUpdate
	until(t, events, tun.Event{Up: true, MTU: 1300})
	b.events <- wgtun.EventDown
	until(t, events, tun.Event{MTU: 1300})
	b.Close() // by itself
	until(t, events, tun.Event{MTU: 1300, Gone: true})
	closes(t, events)
}

// A real device of wireguard/tun, wrapped: packets of the kernel come out, and
// those written go in.
func TestWrapRealDevice(t *testing.T) {
	ns := newNS(t)
	var w wgtun.Device
	check(t, ns.Do(func() (err error) {
		w, err = wgtun.CreateTUN("wg0", 1400)
		return err
	}))
	d, q := wrap(t, w)
	if d.Name() != "wg0" {
		t.Errorf("name %q", d.Name())
	}
	check(t, ns.AddAddr("wg0", netip.MustParsePrefix("10.9.0.1/24")), ns.Up("wg0"))
	var c *net.UDPConn
	check(t, ns.Do(func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 4000})
		return err
	}))
	defer c.Close()
	for i := range 50 {
		payload := []byte(fmt.Sprint("packet ", i))
		_, err := c.Write(payload)
		check(t, err)
		// Turn it round: addresses and ports swapped, no checksum changes.
		var back []byte
		for back == nil {
			k, err := q.Wait(t.Context())
			check(t, err)
			for i := range k {
				if p := q.Packet(i); p[0]>>4 == 4 && p[9] == 17 && bytes.HasSuffix(p, payload) {
					back = append(make([]byte, tun.Headroom), p...)
				}
			}
			q.Release(k)
		}
		p := back[tun.Headroom:]
		for j := range 4 {
			p[12+j], p[16+j] = p[16+j], p[12+j]
		}
		p[20], p[21], p[22], p[23] = p[22], p[23], p[20], p[21]
		_, err = q.Write([][]byte{back})
		check(t, err)
		c.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		check(t, err)
		if !bytes.Equal(buf[:n], payload) {
			t.Fatalf("%q came back as %q", payload, buf[:n])
		}
	}
}
