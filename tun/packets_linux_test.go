package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// Of struct virtio_net_hdr (include/uapi/linux/virtio_net.h).
const (
	vnetLen       = 10
	vnetNeedsCsum = 1
	vnetGSOUDPL4  = 5
)

// read takes the next UDP packet of IPv4 out of one of the queues, with the
// number of the queue. What the kernel sends by itself (IPv6) is skipped.
func read(t *testing.T, queues []*tun.Queue) (queue int, header, packet []byte) {
	t.Helper()
	fds := make([]unix.PollFd, len(queues))
	for i, q := range queues {
		fd, ok := q.FD()
		if !ok {
			t.Fatalf("queue %d has no descriptor", i)
		}
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	buf := make([]byte, vnetLen+65535)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for i := range fds {
			n, err := unix.Read(int(fds[i].Fd), buf)
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			check(t, err)
			if n > vnetLen+28 && buf[vnetLen] == 0x45 && buf[vnetLen+9] == unix.IPPROTO_UDP {
				return i, slices.Clone(buf[:vnetLen]), slices.Clone(buf[vnetLen:n])
			}
		}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	t.Fatal("no packet")
	return 0, nil, nil
}

// ready opens a device with an address that is up, and a UDP socket of its
// namespace bound to that address.
func ready(t *testing.T, cfg tun.Config) (*netlab.NS, *tun.Device, *net.UDPConn) {
	t.Helper()
	ns := newNS(t)
	d := open(t, ns, cfg)
	check(t, ns.AddAddr(d.Name(), netip.MustParsePrefix("10.9.0.1/24")), ns.Up(d.Name()))
	var c *net.UDPConn
	check(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 4000})
		return err
	}))
	t.Cleanup(func() { c.Close() })
	check(t, c.SetDeadline(time.Now().Add(2*patience)))
	return ns, d, c
}

func peer(port int) *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: port} }

// sum16 adds up 16-bit words (RFC 1071); over a whole packet it is 0xffff.
func sum16(b []byte, start uint32) uint16 {
	for len(b) > 1 {
		start += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// pseudo is the sum of the pseudo header of a UDP packet in IPv4.
func pseudo(p []byte) uint32 {
	return uint32(sum16(p[12:20], unix.IPPROTO_UDP+uint32(len(p)-20)))
}

// Without an offload the kernel does the work itself; with it, it leaves it.
func TestChecksumOfPackets(t *testing.T) {
	for _, without := range []tun.Offloads{0, tun.Checksum} {
		_, d, c := ready(t, tun.Config{Name: "t0", Without: without})
		payload := []byte("an odd number of bytes.")
		_, err := c.WriteToUDP(payload, peer(9))
		check(t, err)
		_, h, p := read(t, d.Queues())
		if !bytes.Equal(p[28:], payload) || !bytes.Equal(p[12:20], []byte{10, 9, 0, 1, 10, 9, 0, 2}) {
			t.Fatalf("packet % x", p)
		}
		if without == 0 {
			start, offset := binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint16(h[8:])
			if h[0]&vnetNeedsCsum == 0 || h[1] != 0 || start != 20 || offset != 6 {
				t.Errorf("with the offload: header % x", h)
			}
			if got := uint32(binary.BigEndian.Uint16(p[26:])); got != pseudo(p) {
				t.Errorf("partial checksum %#x, want that of the pseudo header %#x", got, pseudo(p))
			}
			continue
		}
		if !bytes.Equal(h, make([]byte, vnetLen)) {
			t.Errorf("without the offload: header % x", h)
		}
		if got := sum16(p[20:], pseudo(p)); got != 0xffff {
			t.Errorf("without the offload: the checksum is wrong (%#x)", got)
		}
	}
}

// Equal datagrams sent as one cross the device as one if USO was granted, and
// one by one if it was not asked for.
func TestUSO(t *testing.T) {
	const segment = 100
	for _, without := range []tun.Offloads{0, tun.USO4 | tun.USO6} {
		_, d, c := ready(t, tun.Config{Name: "t0", Without: without})
		if without == 0 && d.Offloads()&tun.USO4 == 0 {
			t.Log("this kernel has no USO")
			continue
		}
		raw, err := c.SyscallConn()
		check(t, err)
		check(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment)
		}), err)
		payload := bytes.Repeat([]byte("0123456789"), 35)
		_, err = c.WriteToUDP(payload, peer(9))
		check(t, err)
		if without == 0 {
			_, h, p := read(t, d.Queues())
			if h[1] != vnetGSOUDPL4 || binary.NativeEndian.Uint16(h[4:]) != segment || !bytes.Equal(p[28:], payload) {
				t.Errorf("one send came as % x with %d bytes", h, len(p))
			}
			continue
		}
		for off := 0; off < len(payload); off += segment {
			_, h, p := read(t, d.Queues())
			if want := payload[off:min(off+segment, len(payload))]; h[1] != 0 || !bytes.Equal(p[28:], want) {
				t.Errorf("segment at %d: header % x, %d bytes, want %d", off, h, len(p)-28, len(want))
			}
		}
	}
}

// udpPacket is a packet of IPv4 and UDP from the peer to the socket of ready,
// with correct checksums unless partial leaves the outer half to the host.
func udpPacket(payload []byte, partial bool) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], []byte{10, 9, 0, 2, 10, 9, 0, 1})
	binary.BigEndian.PutUint16(p[10:], ^sum16(p[:20], 0))
	binary.BigEndian.PutUint16(p[20:], 9)
	binary.BigEndian.PutUint16(p[22:], 4000)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	p = append(p, payload...)
	if partial {
		binary.BigEndian.PutUint16(p[26:], uint16(pseudo(p)))
	} else {
		binary.BigEndian.PutUint16(p[26:], ^sum16(p[20:], pseudo(p)))
	}
	return p
}

// What is written to the descriptor reaches the sockets of the host: whole,
// with a partial checksum, and as a super-packet.
func TestWriteToHost(t *testing.T) {
	_, d, c := ready(t, tun.Config{Name: "t0"})
	fd, _ := d.Queues()[0].FD()
	buf := make([]byte, 65535)
	receive := func(what string, want []byte) {
		t.Helper()
		n, from, err := c.ReadFromUDP(buf)
		check(t, err)
		if !bytes.Equal(buf[:n], want) || from.String() != "10.9.0.2:9" {
			t.Errorf("%s: %q from %v, want %q", what, buf[:n], from, want)
		}
	}
	write := func(header, packet []byte) {
		t.Helper()
		n, err := unix.Write(fd, append(slices.Clone(header), packet...))
		if err != nil || n != len(header)+len(packet) {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	plain := make([]byte, vnetLen)
	write(plain, udpPacket([]byte("whole"), false))
	receive("whole", []byte("whole"))

	partial := make([]byte, vnetLen)
	partial[0] = vnetNeedsCsum
	binary.NativeEndian.PutUint16(partial[6:], 20)
	binary.NativeEndian.PutUint16(partial[8:], 6)
	write(partial, udpPacket([]byte("partial"), true))
	receive("partial checksum", []byte("partial"))

	broken := udpPacket([]byte("broken"), false)
	broken[30] ^= 1 // the host looks at checksums: this one never arrives
	write(plain, broken)

	if d.Offloads()&tun.USO4 != 0 {
		gso := slices.Clone(partial)
		gso[1] = vnetGSOUDPL4
		binary.NativeEndian.PutUint16(gso[2:], 28)
		binary.NativeEndian.PutUint16(gso[4:], 50)
		payload := bytes.Repeat([]byte("super"), 26)
		write(gso, udpPacket(payload, true))
		receive("super-packet, part 1", payload[:50])
		receive("super-packet, part 2", payload[50:100])
		receive("super-packet, part 3", payload[100:])
	}
	write(plain, udpPacket([]byte("last"), false))
	receive("the last", []byte("last"))
}

// Flows spread over the queues, and a flow stays on the queue that it has.
func TestFlowsSpread(t *testing.T) {
	const queues, flows, rounds = 4, 64, 3
	_, d, c := ready(t, tun.Config{Name: "t0", Queues: queues, TxQueueLen: -1})
	seen := make(map[int]bool)
	for i, q := range d.Queues() {
		fd, ok := q.FD()
		if !ok || seen[fd] || q.Device() != d || !q.VirtioHeader() {
			t.Fatalf("queue %d: descriptor %d, %v", i, fd, ok)
		}
		seen[fd] = true
	}
	if len(seen) != queues {
		t.Fatalf("%d queues, want %d", len(seen), queues)
	}
	queueOf := make(map[uint16]int)
	var load [queues]int
	for round := range rounds {
		for flow := range flows {
			_, err := c.WriteToUDP([]byte("flow"), peer(5000+flow))
			check(t, err)
			i, _, p := read(t, d.Queues())
			port := binary.BigEndian.Uint16(p[22:])
			if int(port) != 5000+flow {
				t.Fatalf("a packet to port %d came when %d was sent", port, 5000+flow)
			}
			if was, ok := queueOf[port]; ok && was != i {
				t.Errorf("round %d: flow %d moved from queue %d to %d", round, flow, was, i)
			}
			queueOf[port] = i
			load[i]++
		}
	}
	if slices.Contains(load[:], 0) {
		t.Errorf("packets by queue: %v: one is never used", load)
	}
}

// What a restart keeps: addresses and routes of a persistent device, which
// bounce nothing off the host in between.
func TestPersistKeepsAddresses(t *testing.T) {
	ns := newNS(t)
	d, err := tryOpen(ns, tun.Config{Name: "keep", Persist: true, MTU: 1400})
	check(t, err)
	check(t, ns.AddAddr("keep", netip.MustParsePrefix("10.9.0.1/24")), ns.Up("keep"), d.Close())
	link, err := ns.Netlink().LinkByName("keep")
	check(t, err)
	for restart := range 2 {
		d = open(t, ns, tun.Config{Name: "keep", Persist: restart == 0})
		addrs, err := ns.Netlink().AddrList(link, unix.AF_INET)
		check(t, err)
		if len(addrs) != 1 || addrs[0].IPNet.String() != "10.9.0.1/24" {
			t.Errorf("restart %d: addresses %v", restart, addrs)
		}
		routes, err := ns.Netlink().RouteList(link, unix.AF_INET)
		check(t, err)
		if len(routes) != 1 || fmt.Sprint(routes[0].Dst) != "10.9.0.0/24" {
			t.Errorf("restart %d: routes %v", restart, routes)
		}
		if mtu, err := d.MTU(); err != nil || mtu != 1400 {
			t.Errorf("restart %d: MTU %d, %v", restart, mtu, err)
		}
		check(t, d.Close())
	}
}
