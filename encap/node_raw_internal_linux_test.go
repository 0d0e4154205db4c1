package encap

import (
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// rawHost plays the host of a raw path whose device is a script and whose
// socket is real.
type rawHost struct {
	*scriptTUN
	t testing.TB
}

// send drops at the tail when the queue is full, as a device does.
func (h rawHost) send(p []byte) {
	h.mu.Lock()
	full := len(h.in) >= 1000
	h.mu.Unlock()
	if full {
		runtime.Gosched()
		return
	}
	h.push(tunRead{p: p})
}

func (h rawHost) more() <-chan struct{}  { return h.wrote }
func (h rawHost) packets() (ps [][]byte) { return cutAll(h.t, h.take()) }

// rawNode makes nodes of the raw path.
func rawNode() nodeKind {
	return nodeKind{"raw", func(t testing.TB, conn *net.UDPConn, table *Table, cfg Config) (*Engine, testHost) {
		t.Helper()
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(event) })
		e, err := New(fakeQueue(event), conn, table, cfg)
		if err != nil {
			t.Fatal(err)
		}
		d := &scriptTUN{event: event, wrote: make(chan struct{}, 1)}
		p := e.path.(*rawPath)
		p.sys.readv, p.sys.writev = d.readv, d.writev
		for _, fd := range []*int{&p.rawIP4, &p.rawIP6} {
			if *fd >= 0 {
				unix.Close(*fd)
				*fd = -1
			}
		}
		return e, rawHost{d, t}
	}}
}

// nodeKinds are all paths of this system.
func nodeKinds() []nodeKind { return []nodeKind{rawNode(), portableNode(32), portableNode(1)} }

// loopback makes sure that the loopback device is up. It is not in the fresh
// network namespace that an ordinary user's tests run in (netlab.Enter).
func loopback(t testing.TB) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		t.Fatalf("lo: %v", err)
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("the loopback device is down, and can't be brought up: %v (ip link set lo up)", err)
	}
}
