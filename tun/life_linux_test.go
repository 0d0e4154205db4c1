package tun_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// names lists the links of a namespace.
func names(t *testing.T, ns *netlab.NS) string {
	t.Helper()
	links, err := ns.Netlink().LinkList()
	check(t, err)
	var all []string
	for _, l := range links {
		all = append(all, l.Attrs().Name)
	}
	return strings.Join(all, " ")
}

// An Open that fails when the device is there already takes it away again, and
// its descriptors, also when the device was to persist.
func TestOpenFailsHalfway(t *testing.T) {
	ns := newNS(t)
	noLeaks(t, func() {
		for _, cfg := range []tun.Config{
			{TxQueueLen: 1 << 20}, // more than the kernel can allocate
			{TxQueueLen: 1 << 20, Queues: 3, Persist: true, FitGSO: true},
		} {
			d, err := tryOpen(ns, cfg)
			if d != nil {
				d.Close()
				t.Skip("this kernel has room for a queue of a million packets")
			}
			wantError(t, err, nil, "tun: open flannel0: set txqueuelen 1048576: ")
		}
	})
	if got := names(t, ns); got != "lo" {
		t.Errorf("links %q are left", got)
	}
}

// A failed Open of a device that somebody else has kept leaves that alone.
func TestOpenFailsOnAKeptDevice(t *testing.T) {
	ns := newNS(t)
	d, err := tryOpen(ns, tun.Config{Name: "keep", Persist: true})
	check(t, err, d.Close())
	if d, err := tryOpen(ns, tun.Config{Name: "keep", TxQueueLen: 1 << 20}); err == nil {
		d.Close()
		t.Skip("this kernel has room for a queue of a million packets")
	}
	if !exists(ns, "keep") {
		t.Error("the device is gone")
	}
}

// Names that the kernel refuses are no reason to speak of existing interfaces.
func TestOpenNamesOfTheKernel(t *testing.T) {
	ns := newNS(t)
	for _, name := range []string{"a:b", "a\vb", "a\rb", "a\fb"} {
		d, err := tryOpen(ns, tun.Config{Name: name})
		if d != nil {
			d.Close()
		}
		wantError(t, err, nil, "is no interface name")
	}
}

// The longest names there may be, with a number and without.
func TestOpenLongNames(t *testing.T) {
	ns := newNS(t)
	for name, want := range map[string]string{
		"fifteen-bytes-n": "fifteen-bytes-n",
		"thirteen-byt%d":  "thirteen-byt0",
		"%d":              "0",
		"a%db":            "a0b",
	} {
		if d := open(t, ns, tun.Config{Name: name}); d.Name() != want || !exists(ns, want) {
			t.Errorf("%s became %q, want %q", name, d.Name(), want)
		}
	}
}

// A device that was deleted stays deleted, when another takes its name too: the
// old one must not change the new one.
func TestNameTakenByAnother(t *testing.T) {
	ns := newNS(t)
	old := open(t, ns, tun.Config{Name: "t0"})
	check(t, ns.DelLink("t0"))
	open(t, ns, tun.Config{Name: "t0", MTU: 1300})
	if mtu, err := old.MTU(); !errors.Is(err, tun.ErrGone) {
		t.Errorf("MTU of the deleted device: %d, %v, want ErrGone", mtu, err)
	}
	if err := old.SetMTU(1400); !errors.Is(err, tun.ErrGone) {
		t.Errorf("SetMTU of the deleted device: %v, want ErrGone", err)
	}
	if a := attrs(t, ns, "t0"); a.MTU != 1300 {
		t.Errorf("the new device has MTU %d now, it was opened with 1300", a.MTU)
	}
}

// A device that somebody has renamed is not gone.
func TestRenamed(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{Name: "t0", MTU: 1300})
	link, err := ns.Netlink().LinkByName("t0")
	check(t, err, ns.Netlink().LinkSetName(link, "t1"))
	if mtu, err := d.MTU(); mtu != 1300 || err != nil {
		t.Errorf("MTU: %d, %v, want 1300", mtu, err)
	}
	if err := d.SetMTU(1400); err != nil || attrs(t, ns, "t1").MTU != 1400 {
		t.Errorf("SetMTU: %v, the device has %d", err, attrs(t, ns, "t1").MTU)
	}
}

// All methods at once, from many goroutines, while the device is closed: what
// comes is an answer or ErrClosed, and the race detector is content.
func TestCloseWhileInUse(t *testing.T) {
	ns := newNS(t)
	for i := 0; i < 20 && !t.Failed(); i++ {
		d := open(t, ns, tun.Config{Name: "t0", Queues: 2})
		var wg sync.WaitGroup
		use := func(what string, f func() error) {
			wg.Go(func() {
				for {
					err := f()
					switch {
					case errors.Is(err, tun.ErrClosed):
						return
					case err != nil && !errors.Is(err, tun.ErrGone): // its descriptors are closed first
						t.Errorf("%s: %v", what, err)
						return
					}
				}
			})
		}
		started := make(chan struct{})
		var once sync.Once
		use("MTU", func() error { _, err := d.MTU(); once.Do(func() { close(started) }); return err })
		use("SetMTU", func() error { return d.SetMTU(1400) })
		use("Watch", func() error { _, err := d.Watch(t.Context()); return err })
		use("FD", func() error {
			if _, ok := d.Queues()[1].FD(); !ok {
				return tun.ErrClosed
			}
			return nil
		})
		<-started
		wg.Go(func() { d.Close() })
		check(t, d.Close())
		wg.Wait()
	}
}

// Twenty devices, used and closed in many ways: nothing piles up.
func TestManyDevices(t *testing.T) {
	ns := newNS(t)
	i := 0
	noLeaks(t, func() {
		for range 2 {
			i++
			d, err := tryOpen(ns, tun.Config{Queues: 1 + i%3, FitGSO: i%2 == 0, Persist: i%5 == 0})
			check(t, err)
			name := d.Name()
			events, err := d.Watch(t.Context())
			check(t, err)
			next(t, events)
			check(t, ns.Up(name))
			if i%4 == 0 {
				check(t, ns.DelLink(name))
			}
			check(t, d.Close())
			closes(t, events)
			if i%5 == 0 && exists(ns, name) {
				check(t, ns.DelLink(name))
			}
		}
	})
	if got := names(t, ns); got != "lo" {
		t.Errorf("links %q are left", got)
	}
}

// The methods of the portable path refuse a queue with a descriptor.
func TestRawQueueRefusesPortableMethods(t *testing.T) {
	q := open(t, newNS(t), tun.Config{}).Queues()[0]
	_, err := q.Wait(t.Context())
	wantError(t, err, errors.ErrUnsupported, "tun: wait", "descriptor")
	_, err = q.Write([][]byte{make([]byte, tun.Headroom+20)})
	wantError(t, err, errors.ErrUnsupported, "tun: write", "descriptor")
	if n := q.BatchSize(); n != 1 {
		t.Errorf("batch size %d", n)
	}
	if q.Wrapped() {
		t.Error("the queue says that it is a wrapped device's")
	}
}

// A real device of wireguard/tun whose events nobody watches ends with Close:
// its own goroutines too, which send those events.
func TestWrapUnwatchedEnds(t *testing.T) {
	ns := newNS(t)
	noLeaks(t, func() {
		var w wgtun.Device
		check(t, ns.Do(func() (err error) {
			w, err = wgtun.CreateTUN("wg0", 1400)
			return err
		}))
		d, err := tun.Wrap(w)
		check(t, err)
		for range 8 {
			check(t, ns.Up("wg0"), ns.Down("wg0"))
		}
		check(t, d.Close())
		if !eventually(func() bool { return !exists(ns, "wg0") }) {
			t.Fatal("the device is still there")
		}
	})
}

// mapped says whether memory at an address is mapped.
func mapped(t *testing.T, at uintptr) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	check(t, err)
	for line := range bytes.Lines(maps) {
		var from, to uintptr
		if _, err := fmt.Sscanf(string(line), "%x-%x", &from, &to); err == nil && from <= at && at < to {
			return true
		}
	}
	return false
}

// Packet memory goes at Close if nobody uses it, and otherwise with the queue:
// neither too early nor never.
func TestWrapReturnsMemory(t *testing.T) {
	t.Run("not held", func(t *testing.T) {
		d, err := tun.Wrap(newMemTUN(1, 1, 3))
		check(t, err)
		q := d.Queues()[0]
		poll(t, "no packets", func() bool { k, _ := q.Wait(t.Context()); return k == 3 })
		at := uintptr(unsafe.Pointer(&q.Packet(0)[0]))
		q.Release(3)
		check(t, d.Close())
		if mapped(t, at) {
			t.Error("no packet is held, and the memory stays after Close")
		}
	})
	t.Run("held", heldThenDropped)
}

// heldThenDropped is apart so that nothing refers to the queue when it is over.
func heldThenDropped(t *testing.T) {
	var at uintptr
	func() {
		d, err := tun.Wrap(newMemTUN(1, 1, 3))
		check(t, err)
		q := d.Queues()[0]
		poll(t, "no packets", func() bool { k, _ := q.Wait(t.Context()); return k == 3 })
		at = uintptr(unsafe.Pointer(&q.Packet(0)[0]))
		check(t, d.Close())
		for range 3 {
			runtime.GC()
		}
		for n := range int64(3) {
			if !mapped(t, at) || !isPacket(q.Packet(int(n)), n) {
				t.Fatalf("held packet %d is gone", n)
			}
		}
		runtime.KeepAlive(q)
	}()
	if !eventually(func() bool { runtime.GC(); return !mapped(t, at) }) {
		t.Error("the memory stays mapped when nobody can reach it")
	}
}
