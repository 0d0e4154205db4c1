package tun_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// patience bounds what must happen sooner or later. No test measures time.
const patience = 10 * time.Second

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newNS returns an empty network namespace that ends with the test, which fails
// if something in it is left open.
func newNS(t *testing.T) *netlab.NS {
	t.Helper()
	netlab.Require(t, netlab.NeedTUN)
	l, err := netlab.New()
	check(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := l.Namespace(t.Name())
	check(t, err)
	return n
}

// tryOpen opens a device in ns.
func tryOpen(ns *netlab.NS, cfg tun.Config) (d *tun.Device, err error) {
	if e := ns.Do(func() error {
		d, err = tun.Open(cfg)
		return nil
	}); e != nil {
		return nil, e
	}
	return d, err
}

// open opens a device in ns that is closed with the test.
func open(t *testing.T, ns *netlab.NS, cfg tun.Config) *tun.Device {
	t.Helper()
	d, err := tryOpen(ns, cfg)
	check(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// attrs asks the kernel about a link.
func attrs(t *testing.T, ns *netlab.NS, name string) *netlink.LinkAttrs {
	t.Helper()
	l, err := ns.Netlink().LinkByName(name)
	check(t, err)
	return l.Attrs()
}

// exists says whether ns has a link of that name.
func exists(ns *netlab.NS, name string) bool {
	_, err := ns.Netlink().LinkByName(name)
	return err == nil
}

// eventually polls ok until it is true or patience is over.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// noLeaks runs cycle a few times and fails if goroutines or descriptors pile up.
func noLeaks(t *testing.T, cycle func()) {
	t.Helper()
	count := func() (goroutines, descriptors int) {
		entries, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return runtime.NumGoroutine(), len(entries)
	}
	cycle()
	goroutines, descriptors := count()
	for range 10 {
		cycle()
	}
	if !eventually(func() bool { g, d := count(); return g <= goroutines && d <= descriptors }) {
		g, d := count()
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, %d and %d before\n%s", g, d, goroutines, descriptors, buf[:runtime.Stack(buf, true)])
	}
}

// wantError checks an error's text and what it wraps.
func wantError(t *testing.T, err, is error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("%v does not wrap %v", err, is)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}
