package diagnose

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// echoConn is an echoSocket: a raw one, or for ordinary users one of icmp(7) that can
// send echo requests only.
type echoConn struct {
	v6     bool
	conn   net.PacketConn
	packet bool // raw: addresses are net.IPAddr
	seq    uint16
	buf    []byte
}

// openEcho makes a socket in the network namespace of the calling thread. source may be
// the zero Addr, for the kernel's choice.
func openEcho(v6 bool, source netip.Addr) (echoSocket, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if v6 {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	raw := true
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		raw = false
		var err2 error
		if fd, err2 = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto); err2 != nil {
			return nil, fmt.Errorf("diagnose: ping: open a socket for echo requests: %w", err)
		}
	}
	if err := setUp(fd, v6, raw, source); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("diagnose: ping: %w", err)
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close() // FilePacketConn has one of its own
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("diagnose: ping: %w", err)
	}
	return &echoConn{v6: v6, conn: conn, packet: raw, buf: make([]byte, 65536)}, nil
}

// setUp sets a socket's options and its address.
func setUp(fd int, v6, raw bool, source netip.Addr) error {
	// More than the default, if allowed: many answers come at once.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	// Packets must not be cut, whatever the kernel remembers of the way's MTU: what
	// it remembers may be what is to be found, or no longer true.
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if v6 {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("forbid fragments: %w", err)
	}
	var to unix.Sockaddr
	if source.Is4() {
		to = &unix.SockaddrInet4{Addr: source.As4()}
	} else if source.Is6() {
		to = &unix.SockaddrInet6{Addr: source.As16()}
	}
	if to != nil {
		if err := unix.Bind(fd, to); err != nil {
			return fmt.Errorf("send from %v: %w", source, err)
		}
	}
	if !raw {
		return nil
	}
	// Everybody's ICMP comes to a raw socket: raw(7), icmp6(7) for RFC 3542.
	if v6 {
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		for _, t := range []ipv6.ICMPType{ipv6.ICMPTypeEchoReply, ipv6.ICMPTypeDestinationUnreachable, ipv6.ICMPTypePacketTooBig} {
			filter.Data[t>>5] &^= 1 << (uint(t) & 31)
		}
		return unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter)
	}
	const icmpFilter = 1 // ICMP_FILTER, linux/icmp.h
	pass := uint32(1)<<uint(ipv4.ICMPTypeEchoReply) | uint32(1)<<uint(ipv4.ICMPTypeDestinationUnreachable)
	return unix.SetsockoptString(fd, unix.SOL_RAW, icmpFilter, string(binary.NativeEndian.AppendUint32(nil, ^pass)))
}

func (c *echoConn) setDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

func (c *echoConn) close() error { return c.conn.Close() }

func (c *echoConn) send(to netip.Addr, payload []byte) error {
	c.seq++
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(c.seq), Data: payload}}
	if c.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	b, err := m.Marshal(nil) // the kernel makes IPv6's checksum
	if err != nil {
		return err
	}
	var addr net.Addr = &net.UDPAddr{IP: to.AsSlice()}
	if c.packet {
		addr = &net.IPAddr{IP: to.AsSlice()}
	}
	for range 20 {
		_, err = c.conn.WriteTo(b, addr)
		if !errors.Is(err, unix.ENOBUFS) {
			break
		}
		time.Sleep(time.Millisecond) // the queue of the device is full
	}
	if errors.Is(err, unix.EMSGSIZE) {
		return errTooBig
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err
	}
	return err
}

func (c *echoConn) receive() (e echo, err error) {
	for failed := 0; ; {
		n, from, err := c.conn.ReadFrom(c.buf)
		now := time.Now()
		var timeout net.Error
		switch {
		case err != nil && errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, net.ErrClosed):
			return e, err
		case err != nil: // about one packet that was sent, as a rule
			if failed++; failed > 100 {
				return e, err
			}
			continue
		}
		e = c.parse(c.buf[:n])
		if e.payload == nil {
			continue
		}
		switch a := from.(type) {
		case *net.IPAddr:
			e.from, _ = netip.AddrFromSlice(a.IP)
		case *net.UDPAddr:
			e.from, _ = netip.AddrFromSlice(a.IP)
		}
		e.from = e.from.Unmap()
		if e.said != "" {
			e.said = fmt.Sprintf("%v says: %s", e.from, e.said)
		}
		e.at = now
		return e, nil
	}
}

// parse reads an ICMP message. Its payload is nil if it is of no interest.
func (c *echoConn) parse(b []byte) (e echo) {
	if len(b) < 8 {
		return e
	}
	if !c.v6 {
		switch ipv4.ICMPType(b[0]) {
		case ipv4.ICMPTypeEchoReply:
			e.payload = b[8:]
		case ipv4.ICMPTypeDestinationUnreachable:
			// The packet that it is about, RFC 792: some say no more of it than the
			// ICMP header, which tells nothing of ours.
			if q := b[8:]; len(q) >= 20 && len(q) >= int(q[0]&15)*4+8 && q[9] == unix.IPPROTO_ICMP {
				e.payload, e.said = q[int(q[0]&15)*4+8:], unreachable(b)
			}
		}
		return e
	}
	switch q := b[8:]; ipv6.ICMPType(b[0]) {
	case ipv6.ICMPTypeEchoReply:
		e.payload = q
	case ipv6.ICMPTypePacketTooBig:
		if len(q) >= 48 {
			e.payload, e.said = q[48:], fmt.Sprintf("packet is larger than %d bytes", binary.BigEndian.Uint32(b[4:]))
		}
	case ipv6.ICMPTypeDestinationUnreachable:
		if len(q) >= 48 {
			e.payload, e.said = q[48:], fmt.Sprintf("destination unreachable, code %d of RFC 4443", b[1])
		}
	}
	return e
}

// unreachable is a Destination Unreachable message in words: RFC 792, 1122, 1191, 1812.
func unreachable(b []byte) string {
	switch b[1] {
	case 0:
		return "network unreachable"
	case 1:
		return "host unreachable"
	case 4:
		return fmt.Sprintf("packet is larger than %d bytes", binary.BigEndian.Uint16(b[6:]))
	case 9, 10, 13:
		return "administratively prohibited"
	}
	return fmt.Sprintf("destination unreachable, code %d", b[1])
}
