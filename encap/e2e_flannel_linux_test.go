package encap_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// plainPeer is flannel's udp backend as it has always been: a TUN device
// without any offload, a socket, one packet for each call, one off the TTL each
// way, the bare packet on the wire.
type plainPeer struct {
	dev  *os.File
	conn *net.UDPConn
	to   netip.AddrPort
	wg   sync.WaitGroup
}

// startPlainPeer runs one on host B, with a device of its own.
func startPlainPeer(t *testing.T, l *lab) *plainPeer {
	t.Helper()
	p := &plainPeer{to: l.a.endpoint}
	check(t, l.b.host.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("flannel0")
		if err == nil {
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		p.dev = os.NewFile(uintptr(fd), "flannel0") // now that it can be polled
		p.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.b.endpoint))
		return err
	}))
	check(t, l.b.host.AttachOverlay("flannel0"))
	l.b.settle()
	p.conn.SetReadBuffer(8 << 20)
	p.wg.Go(func() { p.run(p.dev.Read, func(b []byte) (int, error) { return p.conn.WriteToUDPAddrPort(b, p.to) }) })
	p.wg.Go(func() { p.run(p.conn.Read, p.dev.Write) })
	t.Cleanup(func() {
		p.dev.Close()
		p.conn.Close()
		p.wg.Wait()
	})
	return p
}

// run carries packets one way.
func (p *plainPeer) run(read, write func([]byte) (int, error)) {
	buf := make([]byte, 1<<16)
	for {
		n, err := read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return
		}
		if err != nil || n < 20 {
			continue
		}
		if b := buf[:n]; b[0]>>4 == 6 {
			b[7]--
		} else if b[8]--; b[8] == 0 {
			continue
		} else {
			refresh(b)
		}
		_, _ = write(buf[:n])
	}
}

// refresh computes the header checksum of an IPv4 packet.
func refresh(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^sum(p[:int(p[0]&15)*4], 0))
}

// sum is the Internet checksum without the complement, two bytes at a time.
func sum(b []byte, acc uint32) uint16 {
	for i := range b {
		if i%2 == 0 {
			acc += uint32(b[i]) << 8
		} else {
			acc += uint32(b[i])
		}
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc>>16 + acc&0xffff)
}

// udpPacket builds an IPv4 or IPv6 packet with a UDP datagram, checksums and all.
func udpPacket(src, dst netip.AddrPort, ttl byte, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	pseudo := sum(append(src.Addr().AsSlice(), dst.Addr().AsSlice()...), uint32(unix.IPPROTO_UDP+len(udp)))
	c := ^sum(udp, uint32(pseudo))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], c)
	return append(ipHeader(src.Addr(), dst.Addr(), ttl, unix.IPPROTO_UDP, len(udp)), udp...)
}

// ipHeader builds a header for n bytes of proto.
func ipHeader(src, dst netip.Addr, ttl, proto byte, n int) []byte {
	if src.Is4() {
		h := make([]byte, 20)
		h[0], h[6], h[8], h[9] = 0x45, 0x40, ttl, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+n))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		refresh(h)
		return h
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, ttl
	binary.BigEndian.PutUint16(h[4:], uint16(n))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return h
}

// receivedTTL reads a datagram and the TTL that it arrived with.
func receivedTTL(c *net.UDPConn, v6 bool) (payload []byte, ttl int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	c.SetReadDeadline(time.Now().Add(patience))
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	var n, oobn int
	e := rc.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(e, err); err != nil {
		return nil, 0, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		if m.Header.Type == unix.IP_TTL && m.Header.Level == unix.IPPROTO_IP ||
			m.Header.Type == unix.IPV6_HOPLIMIT && m.Header.Level == unix.IPPROTO_IPV6 {
			ttl = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return buf[:n], ttl, err
}

// setOption sets an integer option of IPPROTO_IP or, for v6, of IPPROTO_IPV6.
func setOption(c *net.UDPConn, v6 bool, option4, option6, value int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, option4
	if v6 {
		level, option = unix.IPPROTO_IPV6, option6
	}
	var set error
	err = rc.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, set)
}

// checkTTL sends a datagram of TTL 64 and wants it to arrive with ttl.
func checkTTL(t *testing.T, from, to place, v6 bool, ttl int) {
	t.Helper()
	rx, err := udpSocket(to, netip.AddrPortFrom(to.addr(v6), 0), netip.AddrPort{})
	check(t, err)
	defer rx.Close()
	check(t, setOption(rx, v6, unix.IP_RECVTTL, unix.IPV6_RECVHOPLIMIT, 1))
	tx, err := udpSocket(from, netip.AddrPort{}, rx.LocalAddr().(*net.UDPAddr).AddrPort())
	check(t, err)
	defer tx.Close()
	check(t, setOption(tx, v6, unix.IP_TTL, unix.IPV6_UNICAST_HOPS, 64))
	_, err = tx.Write([]byte("ttl"))
	check(t, err)
	if _, got, err := receivedTTL(rx, v6); err != nil || got != ttl {
		t.Errorf("%s to %s, v6 %v: TTL 64 arrives as %d, not %d (%v)", from.name, to.name, v6, got, ttl, err)
	}
}

// One is taken off the TTL on each side, as by flannel, and one by every kernel
// that forwards.
func checkTTLs(t *testing.T, l *lab) {
	t.Helper()
	for _, v6 := range l.inner() {
		checkTTL(t, l.a.hostPlace(), l.b.hostPlace(), v6, 62)
		checkTTL(t, l.b.hostPlace(), l.a.hostPlace(), v6, 62)
		checkTTL(t, l.a.podPlace(), l.b.podPlace(), v6, 60)
		checkTTL(t, l.b.podPlace(), l.a.podPlace(), v6, 60)
		checkTTL(t, l.a.podPlace(), l.b.hostPlace(), v6, 61)
	}
}

func TestE2ETTL(t *testing.T) {
	checkTTLs(t, startLab(t, labConfig{}))
}

// A peer that speaks flannel's original format, one packet for each call.
func TestE2EPlainPeer(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  labConfig
	}{
		{"v4", labConfig{}},
		{"v4 on a wire", labConfig{Mode: netlab.M2}},
		{"v6", labConfig{Outer6: true}},
		{"ports", labConfig{Engine: encap.Config{SourcePorts: 8}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.BareB = true
			l := startLab(t, tt.cfg)
			startPlainPeer(t, l)
			checkTTLs(t, l)
			for _, v6 := range l.inner() {
				from, to := l.a.podPlace(), l.b.podPlace()
				check(t, exchange(from, to, v6, 1<<20))
				check(t, exchange(l.a.hostPlace(), l.b.hostPlace(), v6, 256<<10))
				whole := unfragmented(l.OverlayMTU, v6)
				check(t, datagrams(from, to, v6, whole, 300, tt.cfg.Engine.SourcePorts > 0))
				check(t, datagrams(to, from, v6, udpSizes(l.OverlayMTU, v6), 100, false))
			}
			// Like flannel it sends what its device says to all routers too.
			l.a.dropped(encap.DropSpoofed)
		})
	}
}

// Every byte on the wire: the datagram is the packet, with one off its TTL and
// the header's checksum right, and nothing else.
func TestE2EWireFormat(t *testing.T) {
	l := startLab(t, labConfig{BareB: true})
	wire, err := udpSocket(l.b.hostPlace(), l.b.endpoint, netip.AddrPort{})
	check(t, err)
	defer wire.Close()
	buf := make([]byte, 1<<16)
	for _, v6 := range []bool{false, true} {
		pod := l.a.podPlace()
		near := netip.AddrPortFrom(pod.addr(v6), 4001)
		far := netip.AddrPortFrom(l.b.podPlace().addr(v6), 4002)
		c, err := udpSocket(pod, near, far)
		check(t, err)
		defer c.Close()
		check(t, setOption(c, v6, unix.IP_TTL, unix.IPV6_UNICAST_HOPS, 64))
		check(t, setOption(c, v6, unix.IP_RECVTTL, unix.IPV6_RECVHOPLIMIT, 1))
		for _, size := range []int{0, 1, 8, 1000, 1424} {
			payload := datagram(make([]byte, size), size)
			_, err = c.Write(payload)
			check(t, err)
			wire.SetReadDeadline(time.Now().Add(patience))
			n, src, err := wire.ReadFromUDPAddrPort(buf)
			check(t, err)
			if src.Port() != encap.DefaultPort || src.Addr().Unmap() != l.a.endpoint.Addr() {
				t.Errorf("the datagram comes from %v, not from %v", src, l.a.endpoint)
			}
			got, want := buf[:n], udpPacket(near, far, 62, payload)
			// What the sending kernel chooses: identification, flow label.
			if v6 {
				copy(want[1:4], got[1:4])
			} else {
				copy(want[4:6], got[4:6])
				refresh(want)
			}
			if err := same(got, want); err != nil {
				t.Errorf("v6 %v, %d bytes, on the wire: %v", v6, size, err)
			}

			_, err = wire.WriteToUDPAddrPort(udpPacket(far, near, 10, payload), src)
			check(t, err)
			got, ttl, err := receivedTTL(c, v6)
			check(t, err)
			if err := same(got, payload); err != nil || ttl != 8 {
				t.Errorf("v6 %v, %d bytes, from the wire: %v, TTL %d (want 8)", v6, size, err, ttl)
			}
		}
	}
	l.a.dropped()
}
