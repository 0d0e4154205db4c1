package offload_test

// What the tests against the kernel are made of: TUN devices opened without
// package tun, and a namespace that forwards from one that may carry
// super-packets to one that may not, so that the kernel has to cut them.

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/offload"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// patience bounds what must happen sooner or later. No test measures time, and a
// busy machine may let a test stand still for half a minute.
const patience = time.Minute

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func newLab(t *testing.T) *netlab.Lab {
	t.Helper()
	netlab.Require(t, netlab.NeedTUN, netlab.NeedIPv6)
	l, err := netlab.New()
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func namespace(t *testing.T, l *netlab.Lab, name string) *netlab.NS {
	t.Helper()
	ns, err := l.Namespace(name)
	must(t, err)
	return ns
}

// device is an open TUN device with virtio headers.
type device struct {
	fd  int
	uso bool // it may carry UDP super-packets
	buf []byte
}

// openTUN makes a TUN device in ns that is up, with all offloads or none.
func openTUN(t *testing.T, ns *netlab.NS, name string, mtu int, offloads bool) *device {
	t.Helper()
	const tsoECN = 0x08 // TUN_F_TSO_ECN, which x/sys lacks
	d := &device{fd: -1, buf: make([]byte, 1<<17)}
	must(t, ns.Do(func() (err error) {
		if d.fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(d.fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("TUNSETIFF %s: %w", name, err)
		}
		if !offloads {
			return unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, 0)
		}
		const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | tsoECN
		if unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
			d.uso = true
			return nil
		}
		return unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp)
	}))
	t.Cleanup(func() { unix.Close(d.fd) })
	must(t, ns.SetMTU(name, mtu), ns.Up(name))
	return d
}

// read returns the next packet, or nil when none comes before the deadline. The
// bytes are good until the next call.
func (d *device) read(deadline time.Time) (offload.Virtio, []byte, error) {
	for {
		n, err := unix.Read(d.fd, d.buf)
		switch {
		case err == nil:
			return offload.DecodeVirtio(d.buf), d.buf[offload.VirtioLen:n], nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return offload.Virtio{}, nil, fmt.Errorf("read from TUN: %w", err)
		}
		left := time.Until(deadline)
		if left <= 0 {
			return offload.Virtio{}, nil, nil
		}
		fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return offload.Virtio{}, nil, fmt.Errorf("poll TUN: %w", err)
		}
	}
}

// write writes one packet, in pieces.
func (d *device) write(v offload.Virtio, pieces ...[]byte) error {
	h := make([]byte, offload.VirtioLen)
	v.Encode(h)
	if _, err := unix.Writev(d.fd, append([][]byte{h}, pieces...)); err != nil {
		return fmt.Errorf("write %+v to TUN: %w", v, err)
	}
	return nil
}

// cutter is a kernel that cuts super-packets: it forwards what is written to in
// to out, which takes whole packets with whole checksums only.
type cutter struct {
	in, out *device
	marks   int
}

func newCutter(t *testing.T) *cutter {
	t.Helper()
	ns := namespace(t, newLab(t), "cutter")
	must(t,
		ns.Sysctl("net/ipv4/conf/all/forwarding", "1"),
		ns.Sysctl("net/ipv4/conf/all/rp_filter", "0"),
		ns.Sysctl("net/ipv4/conf/default/rp_filter", "0"),
		ns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	c := &cutter{in: openTUN(t, ns, "in", 65535, true), out: openTUN(t, ns, "out", 65535, false)}
	must(t,
		ns.AddRoute(netip.MustParsePrefix("10.2.0.0/16"), netip.Addr{}, "out", 0),
		ns.AddRoute(netip.MustParsePrefix("fd02::/16"), netip.Addr{}, "out", 0))
	return c
}

// cut writes a packet and returns what the kernel made of it. The kernel has
// taken one off the TTL; that is put back.
func (c *cutter) cut(v offload.Virtio, pieces ...[]byte) ([][]byte, error) {
	if err := c.in.write(v, pieces...); err != nil {
		return nil, err
	}
	return c.drain()
}

// drain returns all that has come through. It sends a packet behind it to know
// where that ends.
func (c *cutter) drain() ([][]byte, error) {
	c.marks++
	mark := (&packet{
		src: "\x0a\x01\xff\xff", dst: "\x0a\x02\xff\xff", ttl: 2, proto: protoUDP, sport: 9, dport: 9,
		id: uint16(c.marks), payload: fmt.Appendf(nil, "mark %d", c.marks),
	}).bytes()
	if err := c.in.write(offload.Virtio{}, mark); err != nil {
		return nil, err
	}
	var out [][]byte
	for deadline := time.Now().Add(patience); ; {
		v, p, err := c.out.read(deadline)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return nil, fmt.Errorf("nothing comes from the kernel after %d packets", len(out))
		}
		if p[0]>>4 == 6 && !bytes.HasPrefix(p[8:], []byte{0xfd, 1}) {
			continue // the kernel's own: router solicitations and the like
		}
		if v.GSOType != 0 || v.Flags&offload.NeedsCsum != 0 {
			return nil, fmt.Errorf("%+v from a device without offloads", v)
		}
		p = bytes.Clone(p)
		if p[0]>>4 == 6 {
			p[7]++
		} else {
			p[8]++
			completeIPv4(p)
		}
		if bytes.Equal(p, mark) {
			return out, nil
		}
		out = append(out, p)
	}
}

// pump carries packets between two devices until stop is closed; see is called
// for each packet from a to b, and may change it.
func pump(a, b *device, stop <-chan struct{}, see func(*offload.Virtio, []byte)) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		fds := []unix.PollFd{{Fd: int32(a.fd), Events: unix.POLLIN}, {Fd: int32(b.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll TUN: %w", err)
		}
		for _, way := range []struct{ from, to *device }{{a, b}, {b, a}} {
			for {
				v, p, err := way.from.read(time.Time{})
				if err != nil {
					return err
				}
				if p == nil {
					break
				}
				if way.from == a {
					see(&v, p)
				}
				if err := way.to.write(v, p); err != nil {
					return err
				}
			}
		}
	}
}
