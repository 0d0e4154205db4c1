package tun_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// The offloads that were granted are those that the device has, and those that
// were not asked for it does not have.
func TestOffloads(t *testing.T) {
	ns := newNS(t)
	names := map[tun.Offloads]string{
		tun.Checksum: "tx-checksum-ip-generic",
		tun.TSO4:     "tx-tcp-segmentation",
		tun.TSO6:     "tx-tcp6-segmentation",
		tun.TSOECN:   "tx-tcp-ecn-segmentation",
		tun.USO4:     "tx-udp-segmentation",
	}
	all := open(t, ns, tun.Config{Name: "full"}).Offloads()
	for i, tt := range []struct{ without, gone tun.Offloads }{
		{0, 0},
		{tun.USO4, tun.USO4 | tun.USO6}, // the kernel has them together only
		{tun.USO6, tun.USO4 | tun.USO6},
		{tun.USO4 | tun.USO6, tun.USO4 | tun.USO6},
		{tun.TSOECN, tun.TSOECN},
		{tun.TSO4, tun.TSO4},
		{tun.TSO6, tun.TSO6},
		{tun.TSO4 | tun.TSO6, tun.TSO4 | tun.TSO6 | tun.TSOECN},
		{tun.Checksum, tun.AllOffloads}, // it is the base of all others
		{tun.AllOffloads, tun.AllOffloads},
	} {
		for _, queues := range []int{1, 2} {
			name := fmt.Sprintf("t%d-%d", i, queues)
			d := open(t, ns, tun.Config{Name: name, Queues: queues, Without: tt.without})
			got := d.Offloads()
			if got&tt.without != 0 {
				t.Errorf("without %06b: granted %06b", tt.without, got)
			}
			if want := all &^ tt.gone; got != want {
				t.Errorf("without %06b: granted %06b, want %06b", tt.without, got, want)
			}
			features, err := ns.Features(name)
			check(t, err)
			for o, feature := range names {
				if on := features[feature]; on != (got&o != 0) {
					t.Errorf("without %06b: %s is %v, granted %06b", tt.without, feature, on, got)
				}
			}
		}
	}
}

// A wire carries packets between two queues, virtio header and all, and hands
// each of them to see.
func wire(t *testing.T, from, to *tun.Queue, stop <-chan struct{}, see func(header, packet []byte)) {
	in, ok := from.FD()
	out, ok2 := to.FD()
	if !ok || !ok2 {
		t.Error("a queue has no descriptor")
		return
	}
	buf := make([]byte, 10+65535)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, err := unix.Read(in, buf)
		if errors.Is(err, unix.EAGAIN) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}, 10)
			continue
		}
		if err != nil || n < 10 {
			t.Errorf("read: %d, %v", n, err)
			return
		}
		see(buf[:10], buf[10:n])
		if _, err := unix.Write(out, buf[:n]); err != nil {
			t.Errorf("write: %v", err)
			return
		}
	}
}

// wired connects two devices, each in a namespace of its own, with addresses.
func wired(t *testing.T, cfg tun.Config, see func(header, packet []byte)) (a, b *netlab.NS) {
	t.Helper()
	a, b = newNS(t), newNS(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var devs [2]*tun.Device
	for i, ns := range []*netlab.NS{a, b} {
		devs[i] = open(t, ns, cfg)
		name := devs[i].Name()
		check(t, ns.AddAddr(name, netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/24", i+1))))
		if cfg.MTU >= 1280 {
			check(t, ns.AddAddr(name, netip.MustParsePrefix(fmt.Sprintf("fd09::%d/64", i+1))))
		}
		check(t, ns.Up(name))
	}
	t.Cleanup(func() { // before the devices are closed
		close(stop)
		wg.Wait()
	})
	for q := range devs[0].Queues() {
		wg.Go(func() { wire(t, devs[0].Queues()[q], devs[1].Queues()[q], stop, see) })
		wg.Go(func() { wire(t, devs[1].Queues()[q], devs[0].Queues()[q], stop, func(_, _ []byte) {}) })
	}
	return a, b
}

// send moves n bytes over TCP from a to b.
func send(t *testing.T, a, b *netlab.NS, addr string, n int64) {
	t.Helper()
	var ln *net.TCPListener
	check(t, b.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(addr)})
		return err
	}))
	defer ln.Close()
	deadline := time.Now().Add(patience)
	ln.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		c.SetDeadline(deadline)
		got, err := io.Copy(io.Discard, c)
		if err == nil && got != n {
			err = fmt.Errorf("%d bytes of %d", got, n)
		}
		done <- err
	}()
	check(t, a.Do(func() error {
		d := net.Dialer{Deadline: deadline}
		c, err := d.Dial("tcp", ln.Addr().String())
		if err != nil {
			return err
		}
		c.SetDeadline(deadline)
		_, err = c.Write(make([]byte, n))
		return errors.Join(err, c.Close())
	}))
	check(t, <-done)
}

// With FitGSO every super-packet of TCP fits one UDP_SEGMENT send: the segments
// with a header each are no more than a datagram holds. That is what GSOLimits
// promises. They are not much smaller either.
func TestFitGSO(t *testing.T) {
	for _, mtu := range []int{576, 1280, 1472, 8972, 65535} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			var mu sync.Mutex
			most, largest := 0, 0
			a, b := wired(t, tun.Config{MTU: mtu, FitGSO: true}, func(h, p []byte) {
				if h[1]&3 == 0 || h[1]&7 == 5 { // no TCP super-packet
					return
				}
				size := int(binary.NativeEndian.Uint16(h[4:]))
				header := int(binary.NativeEndian.Uint16(h[6:])) + int(p[binary.NativeEndian.Uint16(h[6:])+12]>>4)*4
				segments := (len(p) - header + size - 1) / size
				mu.Lock()
				defer mu.Unlock()
				most, largest = max(most, segments), max(largest, len(p)+(segments-1)*header)
			})
			send(t, a, b, "10.9.0.2", 4<<20)
			if mtu >= 1280 {
				send(t, a, b, "fd09::2", 4<<20)
			}
			mu.Lock()
			defer mu.Unlock()
			size, segs := tun.GSOLimits(mtu)
			if largest > 65507 || most > segs {
				t.Errorf("a super-packet of %d segments has %d bytes on the wire (limits %d bytes, %d segments)", most, largest, size, segs)
			}
			if mtu < 9000 && largest < 50000 {
				t.Errorf("the largest super-packet has %d bytes: the limit is too low", largest)
			}
		})
	}
}

func TestGSOLimits(t *testing.T) {
	for mtu := -10; mtu <= 70000; mtu++ {
		size, segs := tun.GSOLimits(mtu)
		m := min(max(mtu, tun.MinMTU), tun.MaxMTU)
		if segs < 1 || segs*m > 65507 && segs > 1 || (segs+1)*m <= 65507 {
			t.Fatalf("MTU %d: %d segments, %d bytes", mtu, segs, segs*m)
		}
		if size < 1 || size > 65536 {
			t.Fatalf("MTU %d: %d bytes", mtu, size)
		}
	}
}

// Several queues: each carries flows, and together they lose nothing.
func TestQueues(t *testing.T) {
	var mu sync.Mutex
	packets := 0
	a, b := wired(t, tun.Config{MTU: 1472, Queues: 4}, func(_, _ []byte) {
		mu.Lock()
		packets++
		mu.Unlock()
	})
	for range 8 {
		send(t, a, b, "10.9.0.2", 256<<10)
		send(t, a, b, "fd09::2", 256<<10)
	}
	mu.Lock()
	defer mu.Unlock()
	if packets == 0 {
		t.Error("the queues carried nothing")
	}
}

// next reads an event, and fails if the channel is closed.
func next(t *testing.T, events <-chan tun.Event) tun.Event {
	t.Helper()
	select {
	case ev, ok := <-events:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return ev
	case <-time.After(patience):
		t.Fatal("no event")
	}
	return tun.Event{}
}

// until reads events until one is want: intermediate ones may come or be missed.
func until(t *testing.T, events <-chan tun.Event, want tun.Event) {
	t.Helper()
	for {
		if ev := next(t, events); ev == want {
			return
		} else if ev.Gone {
			t.Fatalf("%+v while waiting for %+v", ev, want)
		}
	}
}

// closes waits for the end of the channel.
func closes(t *testing.T, events <-chan tun.Event) {
	t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case ev, ok := <-events:
			if !ok {
				return
			}
			t.Logf("%+v before the end", ev)
		case <-deadline:
			t.Fatal("the channel is not closed")
		}
	}
}

func TestWatch(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{Name: "t0"})
	open(t, ns, tun.Config{Name: "other"})
	events, err := d.Watch(t.Context())
	check(t, err)
	if ev := next(t, events); ev != (tun.Event{MTU: tun.DefaultMTU}) {
		t.Errorf("first event: %+v", ev)
	}
	check(t, ns.Up("other"), ns.SetMTU("other", 1300)) // nobody is told
	check(t, ns.Up("t0"))
	until(t, events, tun.Event{Up: true, MTU: tun.DefaultMTU})
	check(t, ns.SetMTU("t0", 1400))
	until(t, events, tun.Event{Up: true, MTU: 1400})
	check(t, d.SetMTU(1300))
	until(t, events, tun.Event{Up: true, MTU: 1300})
	check(t, ns.Down("t0"))
	until(t, events, tun.Event{MTU: 1300})
	// A second watcher sees the state at once.
	second, err := d.Watch(t.Context())
	check(t, err)
	if ev := next(t, second); ev != (tun.Event{MTU: 1300}) {
		t.Errorf("first event of the second watcher: %+v", ev)
	}
	// One that does not read misses what is between, not the last.
	for range 100 {
		check(t, ns.Up("t0"), ns.Down("t0"))
	}
	check(t, ns.SetMTU("t0", 1280))
	until(t, second, tun.Event{MTU: 1280})
	check(t, ns.DelLink("t0"))
	for _, c := range []<-chan tun.Event{events, second} {
		ev := next(t, c)
		for !ev.Gone {
			ev = next(t, c)
		}
		if ev.Up {
			t.Errorf("last event: %+v", ev)
		}
		closes(t, c)
	}
}

// The end of the context and Close end watching, and leave nothing.
func TestWatchEnds(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{Name: "t0"})
	noLeaks(t, func() {
		ctx, cancel := context.WithCancel(t.Context())
		events, err := d.Watch(ctx)
		check(t, err)
		next(t, events)
		cancel()
		closes(t, events)
	})
	events, err := d.Watch(t.Context())
	check(t, err)
	next(t, events)
	check(t, d.Close())
	closes(t, events)
}

// Whoever starts to watch a device that is gone already is told so.
func TestWatchGone(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{Name: "t0"})
	check(t, ns.DelLink("t0"))
	if _, err := d.MTU(); !errors.Is(err, tun.ErrGone) {
		t.Errorf("MTU: %v", err)
	}
	wantError(t, d.SetMTU(1400), tun.ErrGone)
	events, err := d.Watch(t.Context())
	if errors.Is(err, tun.ErrGone) {
		return
	}
	check(t, err)
	if ev := next(t, events); !ev.Gone {
		t.Errorf("first event: %+v", ev)
	}
	closes(t, events)
}
