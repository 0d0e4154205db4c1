package udp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// stack is a host whose packets are gVisor's business, made anew with each Open.
type stack struct {
	mu     sync.Mutex
	addrs  []netip.Addr
	opened []int // MTUs
	net    *netstack.Net
	dev    io.Closer
	fail   error // of the next Open
	port   uint16
}

func (s *stack) open(_ lease.Lease, mtu int) (*tun.Device, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	dev, nw, err := netstack.CreateNetTUN(s.addrs, nil, mtu)
	if err != nil {
		return nil, err
	}
	once := &closeOnce{Device: dev}
	s.opened, s.net, s.dev = append(s.opened, mtu), nw, once
	return tun.Wrap(once)
}

// closeOnce can be closed under whoever uses it; netstack's own Close panics then.
type closeOnce struct {
	wgtun.Device
	once sync.Once
	err  error
}

func (c *closeOnce) Close() error {
	c.once.Do(func() { c.err = c.Device.Close() })
	return c.err
}

func (s *stack) current() *netstack.Net {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.net
}

// copyBoth sends bytes both ways between two ends.
func copyBoth(near, far net.Conn) error {
	near.SetDeadline(time.Now().Add(patience))
	far.SetDeadline(time.Now().Add(patience))
	there, back := bytes.Repeat([]byte("there"), 100_000), bytes.Repeat([]byte("back"), 100_000)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	wg.Go(func() { _, errs[0] = near.Write(there) })
	wg.Go(func() { _, errs[1] = far.Write(back) })
	wg.Go(func() { errs[2] = expect(far, there) })
	wg.Go(func() { errs[3] = expect(near, back) })
	wg.Wait()
	return errors.Join(errs...)
}

// dialStack connects a pod of the other host to the stack, and back.
func dialStack(from place, s *stack, at netip.Addr) error {
	v6 := at.Is6()
	s.port++ // the last one is busy for a while
	ln, err := s.current().ListenTCPAddrPort(netip.AddrPortFrom(at, s.port))
	if err != nil {
		return err
	}
	defer ln.Close()
	var near net.Conn
	if err := from.ns.Do(func() (err error) {
		near, err = (&net.Dialer{Timeout: patience}).Dial("tcp", netip.AddrPortFrom(at, s.port).String())
		return err
	}); err != nil {
		return err
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		return err
	}
	defer far.Close()
	if err := copyBoth(near, far); err != nil {
		return err
	}
	var back *net.TCPListener
	if err := from.ns.Do(func() (err error) {
		back, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.addr(v6), 0)))
		return err
	}); err != nil {
		return err
	}
	defer back.Close()
	out, err := s.current().Dial("tcp", back.Addr().String())
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := back.Accept()
	if err != nil {
		return err
	}
	defer in.Close()
	return copyBoth(out, in)
}

// A host without a kernel device, and without any privilege: the packets are those of
// a network stack in the process.
func TestNetstack(t *testing.T) {
	l := newLab(t, labConfig{})
	s := &stack{addrs: []netip.Addr{l.b.PodAddr4, l.b.PodAddr6}}
	l.a.start(Options{})
	l.b.make(Options{Open: s.open, Engines: 4, Persist: true})
	l.b.without = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_ADMIN
	mtu, err := l.b.tryStart()
	check(t, err)
	if mtu != 1472 || len(s.opened) != 1 || s.opened[0] != 1472 {
		t.Errorf("MTU %d, opened with %v", mtu, s.opened)
	}
	check(t, l.b.b.Sync(t.Context(), l.b.peers()))
	talk := func() {
		t.Helper()
		for _, at := range s.addrs {
			check(t, dialStack(l.a.pod(), s, at))
		}
	}
	talk()
	l.b.wantTuns() // nothing of it is in the kernel
	if r, err := l.b.Netlink().RouteGet(l.a.Subnet4.Addr().AsSlice()); err == nil {
		t.Errorf("the kernel has a route: %v", r)
	}

	// The interface changes: the device can't, and stays.
	l.b.host.MTU = 1400
	if mtu, err = l.b.tryStart(); err != nil || mtu != 1372 {
		t.Errorf("another MTU: %d, %v", mtu, err)
	}
	talk()
	if n := l.b.log.Count("WARN", "keeps its MTU"); n != 1 || len(s.opened) != 1 {
		t.Errorf("%d warnings, opened %v", n, s.opened)
	}

	// The device fails, and for a while there is no other.
	broken := errors.New("no device today")
	s.mu.Lock()
	s.fail = broken
	s.mu.Unlock()
	check(t, s.dev.Close())
	o := l.b.b.(*overlay)
	waitFor(t, "Probe says why", func() bool { return errors.Is(o.Probe(), broken) })
	if err := o.Sync(t.Context(), l.b.peers()); !errors.Is(err, broken) {
		t.Errorf("Sync without a device: %v", err)
	}
	s.mu.Lock()
	s.fail = nil
	s.mu.Unlock()
	waitFor(t, "Probe succeeds", func() bool { return o.Probe() == nil })
	talk()
	if st := o.Stats(); st.TX.Packets == 0 || st.RX.Packets == 0 {
		t.Errorf("nothing is counted: %+v", st)
	}
	check(t, l.b.b.Close(true))
}

// Start with a device of Open fails without leaving anything.
func TestNetstackFails(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	s := &stack{addrs: []netip.Addr{l.b.PodAddr4}}
	broken := errors.New("no device today")
	blocker := l.b.listen(l.b.host.Addr4)
	noLeaks(t, func() {
		for _, tt := range []struct {
			open func(lease.Lease, int) (*tun.Device, error)
			is   error
		}{{s.open, unix.EADDRINUSE}, {func(lease.Lease, int) (*tun.Device, error) { return nil, broken }, broken}, {func(lease.Lease, int) (*tun.Device, error) { return nil, nil }, nil}} {
			b, err := New(Options{Open: tt.open})(l.b.params())
			check(t, err)
			l.b.b = b
			if _, err := l.b.tryStart(); err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Start: %v, not %v", err, tt.is)
			}
			check(t, b.Close(false))
		}
	})
	check(t, blocker.Close())
	// Two on one host, for two networks.
	l.b.make(Options{Open: s.open})
	_, err := l.b.tryStart()
	check(t, err, l.b.b.Sync(t.Context(), []lease.Lease{l.a.own}))
	l.a.start(Options{})
	check(t, dialStack(l.a.pod(), s, l.b.PodAddr4))
}
