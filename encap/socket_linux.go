package encap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openSockets duplicates conn's descriptor and makes the sockets beside it.
// All are made here, in New, because the thread that runs the engine may be in
// another network namespace than the caller was.
func (p *rawPath) openSockets(conn *net.UDPConn) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	var dupErr error
	if err := rc.Control(func(s uintptr) {
		fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return err
	}
	if dupErr != nil {
		return fmt.Errorf("duplicate the socket's descriptor: %w", dupErr)
	}
	p.socks = append(p.socks, fd)
	if p.family, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	if p.family != unix.AF_INET && p.family != unix.AF_INET6 {
		return fmt.Errorf("the socket's address family is %d (it must be IPv4 or IPv6)", p.family)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	for range p.cfg.SourcePorts {
		s, err := p.sourcePort(local)
		if err != nil {
			return fmt.Errorf("extra source port: %w", err)
		}
		p.socks = append(p.socks, s)
	}
	if p.probe, err = p.socket(); err != nil {
		return err
	}
	// Without CAP_NET_RAW errors are written to the device, see toHost.
	p.rawIP4, _ = rawIPSocket(unix.AF_INET)
	p.rawIP6, _ = rawIPSocket(unix.AF_INET6)
	// Last, because until New succeeds the socket is also the caller's.
	if err := p.setUpSocket(fd); err != nil {
		return err
	}
	if p.cfg.Without&ReceiveOffload == 0 {
		// Before Linux 5.0 there is none: single datagrams then.
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	} else {
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 0)
	}
	return nil
}

// socket makes a UDP socket that reaches what the engine's own reaches.
func (p *rawPath) socket() (int, error) {
	fd, err := unix.Socket(p.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if p.family == unix.AF_INET6 {
		only, err := unix.GetsockoptInt(p.socks[0], unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
		}
		if err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	return fd, nil
}

func rawIPSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// setUpSocket sets what every sending socket needs: DF on all outer packets, so
// that a smaller path MTU is reported and not silently fragmented, and the
// error queue, which tells of such reports. With it on, ENOBUFS is reported
// instead of hidden.
func (p *rawPath) setUpSocket(fd int) error {
	if err := p.setPMTUDiscovery(fd, unix.IP_PMTUDISC_DO); err != nil {
		return fmt.Errorf("set path MTU discovery: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_RECVERR", err)
	}
	if p.family == unix.AF_INET6 {
		return os.NewSyscallError("setsockopt IPV6_RECVERR", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	}
	return nil
}

// setPMTUDiscovery sets IP_MTU_DISCOVER; the values are the same for IPv6.
func (p *rawPath) setPMTUDiscovery(fd, mode int) error {
	if p.family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode); err != nil {
			return err
		}
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
}

// sourcePort makes a socket on a free port of the same address, for sending.
func (p *rawPath) sourcePort(local unix.Sockaddr) (int, error) {
	fd, err := p.socket()
	if err != nil {
		return -1, err
	}
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		c := *a
		c.Port = 0
		err = unix.Bind(fd, &c)
	case *unix.SockaddrInet6:
		c := *a
		c.Port = 0
		err = unix.Bind(fd, &c)
	default:
		err = errors.New("unknown address family")
	}
	if err == nil {
		err = p.setUpSocket(fd)
	}
	if err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, DefaultBuffer) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, DefaultBuffer)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	// Nobody sends here; what strays in must not hold memory.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	return fd, nil
}

// toHost implements reporter. The error goes out through a raw socket, from
// this host's overlay address: written to the device it would come in with a
// source that is the host's own, which the kernel drops as martian.
func (p *rawPath) toHost(msg, about []byte) {
	if msg[0]>>4 == 4 {
		to := &unix.SockaddrInet4{Addr: [4]byte(msg[16:20])}
		if p.rawIP4 >= 0 && p.table.cur.Load().router4.IsValid() && unix.Sendto(p.rawIP4, msg, 0, to) == nil {
			return
		}
	} else {
		to := &unix.SockaddrInet6{Addr: [16]byte(msg[24:40])}
		if p.rawIP6 >= 0 && p.table.cur.Load().router6.IsValid() && unix.Sendto(p.rawIP6, msg, 0, to) == nil {
			return
		}
	}
	// Second best: from the packet's own destination, which is no martian
	// because its route leads to the device.
	setSource(msg, about)
	p.rx.writePlain(msg)
}

// toPeer implements reporter.
func (p *rawPath) toPeer(pr *peer, msg []byte) {
	if p.tx.pending() {
		return // an error may be lost, a packet may not
	}
	// The batch is empty, so its first message is free for this one.
	if n := putName(&p.tx.names[0], pr, p.family); n != 0 {
		p.tx.sendCopy(msg, n)
	}
}

// kernelAtLeast compares the running kernel's version.
func kernelAtLeast(major, minor, patch int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	var have [3]int
	for i, f := range strings.SplitN(release, ".", 3) {
		digits := strings.TrimRight(f, "abcdefghijklmnopqrstuvwxyz+_")
		have[i], _ = strconv.Atoi(digits)
	}
	want := [3]int{major, minor, patch}
	for i := range want {
		if have[i] != want[i] {
			return have[i] > want[i]
		}
	}
	return true
}
