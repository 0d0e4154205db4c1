package tun_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestOpenDefaults(t *testing.T) {
	ns := newNS(t)
	d := open(t, ns, tun.Config{})
	if d.Name() != "flannel0" {
		t.Errorf("the first device is named %q", d.Name())
	}
	second := open(t, ns, tun.Config{})
	if second.Name() != "flannel1" {
		t.Errorf("the second device is named %q", second.Name())
	}
	a := attrs(t, ns, "flannel0")
	if a.MTU != tun.DefaultMTU || a.TxQLen != tun.DefaultTxQueueLen || a.GSOMaxSize != kernelSize || a.GSOMaxSegs != kernelSegs {
		t.Errorf("MTU %d, txqueuelen %d, gso_max_size %d, gso_max_segs %d; want %d, %d, %d, %d", a.MTU, a.TxQLen,
			a.GSOMaxSize, a.GSOMaxSegs, tun.DefaultMTU, tun.DefaultTxQueueLen, kernelSize, kernelSegs)
	}
	if mtu, err := d.MTU(); err != nil || mtu != tun.DefaultMTU {
		t.Errorf("MTU() = %d, %v", mtu, err)
	}
	if d.Offloads()&(tun.Checksum|tun.TSO4|tun.TSO6) != tun.Checksum|tun.TSO4|tun.TSO6 {
		t.Errorf("offloads %b: every kernel that is supported has checksums and TSO", d.Offloads())
	}
	q := d.Queues()
	if len(q) != 1 || q[0].Device() != d || !q[0].VirtioHeader() {
		t.Fatalf("queues %v", q)
	}
	fd, ok := q[0].FD()
	if !ok {
		t.Fatal("the queue has no descriptor")
	}
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	check(t, err)
	fdFlags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	check(t, err)
	if fl&unix.O_NONBLOCK == 0 || fdFlags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %#x: it must not block, nor outlive exec", fl, fdFlags)
	}
}

func TestOpenConfig(t *testing.T) {
	ns := newNS(t)
	for i, tt := range []struct {
		cfg       tun.Config
		mtu, qlen int
	}{
		{tun.Config{MTU: 68}, 68, tun.DefaultTxQueueLen},
		{tun.Config{MTU: 1280, TxQueueLen: 77}, 1280, 77},
		{tun.Config{MTU: 8972, TxQueueLen: -1}, 8972, 500},
		{tun.Config{MTU: 65535, FitGSO: true}, 65535, tun.DefaultTxQueueLen},
		{tun.Config{FitGSO: true}, tun.DefaultMTU, tun.DefaultTxQueueLen},
		{tun.Config{MTU: 8972, FitGSO: true}, 8972, tun.DefaultTxQueueLen},
		{tun.Config{MTU: 68, FitGSO: true}, 68, tun.DefaultTxQueueLen},
	} {
		tt.cfg.Name = fmt.Sprintf("t%d", i)
		d := open(t, ns, tt.cfg)
		wantLimits(t, ns, tt.cfg.Name, tt.mtu, tt.cfg.FitGSO)
		if a := attrs(t, ns, tt.cfg.Name); a.TxQLen != tt.qlen {
			t.Errorf("%+v: txqueuelen %d, not %d", tt.cfg, a.TxQLen, tt.qlen)
		}
		for _, mtu := range []int{1400, 68, 65535, 1280} {
			check(t, d.SetMTU(mtu))
			wantLimits(t, ns, tt.cfg.Name, mtu, tt.cfg.FitGSO)
		}
		for _, mtu := range []int{67, 0, -1, 65536} {
			wantError(t, d.SetMTU(mtu), nil, "tun: set MTU of "+tt.cfg.Name, "68 to 65535")
		}
		if mtu, err := d.MTU(); err != nil || mtu != 1280 {
			t.Errorf("MTU() = %d, %v", mtu, err)
		}
	}
}

// The kernel's own limits of super-packets.
const (
	kernelSize = 65536
	kernelSegs = 65535
)

// wantLimits checks the MTU of a device and its GSO limits.
func wantLimits(t *testing.T, ns *netlab.NS, name string, mtu int, fit bool) {
	t.Helper()
	size, segs := kernelSize, kernelSegs
	if fit {
		size, segs = tun.GSOLimits(mtu)
	}
	if a := attrs(t, ns, name); a.MTU != mtu || int(a.GSOMaxSize) != size || int(a.GSOMaxSegs) != segs {
		t.Errorf("%s: MTU %d, gso_max_size %d, gso_max_segs %d; want %d, %d, %d", name, a.MTU, a.GSOMaxSize, a.GSOMaxSegs, mtu, size, segs)
	}
}

func TestOpenErrors(t *testing.T) {
	ns := newNS(t)
	for _, tt := range []struct {
		cfg  tun.Config
		want string
	}{
		{tun.Config{Name: "sixteen-bytes-it"}, "has 16 bytes (at most 15)"},
		{tun.Config{Name: "a/b"}, "is no interface name"},
		{tun.Config{Name: "a b"}, "is no interface name"},
		{tun.Config{Name: "a\x00b"}, "is no interface name"},
		{tun.Config{Name: "."}, "is no interface name"},
		{tun.Config{Name: ".."}, "is no interface name"},
		{tun.Config{Name: "a%s"}, "may have one %d"},
		{tun.Config{Name: "a%d%d"}, "may have one %d"},
		{tun.Config{MTU: 67}, "MTU is 67 (68 to 65535"},
		{tun.Config{MTU: 65536}, "MTU is 65536"},
		{tun.Config{MTU: -1}, "MTU is -1"},
		{tun.Config{Queues: -1}, "Queues is -1 (1 to 256"},
		{tun.Config{Queues: 257}, "Queues is 257"},
	} {
		d, err := tryOpen(ns, tt.cfg)
		if d != nil {
			d.Close()
		}
		wantError(t, err, nil, "tun: open", tt.want)
	}
	links, err := ns.Netlink().LinkList()
	check(t, err)
	if len(links) != 1 {
		t.Errorf("%d links are left by failed Opens", len(links)-1)
	}
}

// An error says who has the device, and nothing is left behind.
func TestOpenTaken(t *testing.T) {
	ns := newNS(t)
	check(t, ns.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"}))
	open(t, ns, tun.Config{Name: "one"})
	open(t, ns, tun.Config{Name: "many", Queues: 2})
	noLeaks(t, func() {
		for _, tt := range []struct {
			cfg  tun.Config
			is   error
			want string
		}{
			{tun.Config{Name: "one"}, unix.EBUSY, "another process has the device open"},
			{tun.Config{Name: "one", Queues: 2}, unix.EINVAL, "other flags"},
			{tun.Config{Name: "many"}, unix.EINVAL, "other flags"},
			{tun.Config{Name: "many", Queues: 256}, unix.E2BIG, "no queue left"},
			{tun.Config{Name: "veth0"}, unix.EINVAL, "exists"},
			{tun.Config{Name: "lo"}, unix.EINVAL, "exists"},
		} {
			d, err := tryOpen(ns, tt.cfg)
			if d != nil {
				d.Close()
			}
			wantError(t, err, tt.is, "tun: open "+tt.cfg.Name, tt.want)
		}
	})
	if a := attrs(t, ns, "many"); a.MTU != tun.DefaultMTU {
		t.Errorf("a failed Open has changed the device: %+v", a)
	}
}

// Without the right to it, the error names the right.
func TestOpenNotPermitted(t *testing.T) {
	ns := newNS(t)
	check(t, ns.Do(func() error { // on a thread of its own
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var all [2]unix.CapUserData
		if err := unix.Capget(&hdr, &all[0]); err != nil {
			return err
		}
		none := all
		none[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			return err
		}
		d, err := tun.Open(tun.Config{Name: "mine"})
		if e := unix.Capset(&hdr, &all[0]); e != nil {
			return e
		}
		if d != nil {
			d.Close()
		}
		wantError(t, err, os.ErrPermission, "tun: open mine", "needs CAP_NET_ADMIN")
		return nil
	}))
}

// Without the device file, the error says how to get it.
func TestOpenNoDeviceFile(t *testing.T) {
	newNS(t) // for what it requires
	result := make(chan error, 1)
	go func() {
		// The thread gets mounts of its own and is not used again: the
		// goroutine ends with it locked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			result <- fmt.Errorf("make mounts private: %w", err)
			return
		}
		if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil {
			result <- fmt.Errorf("hide /dev/net: %w", err)
			return
		}
		d, err := tun.Open(tun.Config{})
		if d != nil {
			d.Close()
		}
		result <- err
	}()
	err := <-result
	if err != nil && !strings.HasPrefix(err.Error(), "tun: ") {
		t.Skip(err)
	}
	wantError(t, err, unix.ENOENT, "tun: open", "modprobe tun")
}

// Close may be called twice; a closed device says so.
func TestClose(t *testing.T) {
	ns := newNS(t)
	d, err := tryOpen(ns, tun.Config{Name: "t0", Queues: 2})
	check(t, err)
	q := d.Queues()[1]
	check(t, d.Close(), d.Close())
	if exists(ns, "t0") {
		t.Error("the device is still there")
	}
	if fd, ok := q.FD(); ok || fd != -1 {
		t.Errorf("FD of a closed device: %d, %v", fd, ok)
	}
	_, err = d.MTU()
	wantError(t, err, tun.ErrClosed)
	wantError(t, d.SetMTU(1400), tun.ErrClosed)
	_, err = d.Watch(t.Context())
	wantError(t, err, tun.ErrClosed)
}

// A persistent device outlives its descriptors and is attached to again, with
// what was set on it.
func TestPersist(t *testing.T) {
	for _, queues := range []int{1, 3} {
		for _, mtu := range []int{1300, 1472, 1500} {
			t.Run(fmt.Sprintf("%d queues, MTU %d", queues, mtu), func(t *testing.T) {
				ns := newNS(t)
				d, err := tryOpen(ns, tun.Config{Name: "keep", Queues: queues, Persist: true, MTU: mtu})
				check(t, err)
				index := attrs(t, ns, "keep").Index
				check(t, ns.Up("keep"))
				check(t, d.Close())
				if !exists(ns, "keep") {
					t.Fatal("the device is gone")
				}

				d, err = tryOpen(ns, tun.Config{Name: "keep", Queues: queues})
				check(t, err)
				if a := attrs(t, ns, "keep"); a.Index != index || a.MTU != mtu {
					t.Errorf("attached to: index %d, MTU %d; it had %d and %d", a.Index, a.MTU, index, mtu)
				}
				check(t, d.Close())
				if exists(ns, "keep") {
					t.Error("the device is still there, though it is not to persist any more")
				}
			})
		}
	}
}

func TestNoLeaks(t *testing.T) {
	ns := newNS(t)
	noLeaks(t, func() {
		d, err := tryOpen(ns, tun.Config{Name: "t0", Queues: 4})
		check(t, err)
		_, err = d.Watch(t.Context())
		check(t, err, d.Close())
	})
}
