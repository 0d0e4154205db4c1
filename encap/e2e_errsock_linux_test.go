package encap_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// errSocket is a connected UDP socket that is told of ICMP errors: what an
// application behind the tunnel can know of them.
type errSocket struct {
	fd int
	v6 bool
}

// icmpError is an entry of its error queue (struct sock_extended_err).
type icmpError struct {
	errno     unix.Errno
	typ, code byte
	mtu       int
	offender  netip.Addr
	payload   []byte // what came back of the datagram
}

func (e icmpError) String() string {
	return fmt.Sprintf("%v (type %d code %d mtu %d) from %v, %d bytes back", e.errno, e.typ, e.code, e.mtu, e.offender, len(e.payload))
}

// newErrSocket connects a socket at p to dst. ttl 0 leaves the system's.
func newErrSocket(p place, dst netip.AddrPort, ttl, discover int) (*errSocket, error) {
	s := &errSocket{v6: dst.Addr().Is6()}
	family, level := unix.AF_INET, unix.IPPROTO_IP
	recvErr, hops, pmtu := unix.IP_RECVERR, unix.IP_TTL, unix.IP_MTU_DISCOVER
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(dst.Port()), Addr: as4(dst.Addr())}
	if s.v6 {
		family, level = unix.AF_INET6, unix.IPPROTO_IPV6
		recvErr, hops, pmtu = unix.IPV6_RECVERR, unix.IPV6_UNICAST_HOPS, unix.IPV6_MTU_DISCOVER
		sa = &unix.SockaddrInet6{Port: int(dst.Port()), Addr: dst.Addr().As16()}
	}
	err := p.ns.Do(func() (err error) {
		s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		opts := []struct{ name, value int }{{recvErr, 1}, {pmtu, discover}}
		if ttl > 0 {
			opts = append(opts, struct{ name, value int }{hops, ttl})
		}
		for _, o := range opts {
			if err := unix.SetsockoptInt(s.fd, level, o.name, o.value); err != nil {
				return fmt.Errorf("option %d: %w", o.name, err)
			}
		}
		return unix.Connect(s.fd, sa)
	})
	if err != nil {
		return nil, errors.Join(err, unix.Close(s.fd))
	}
	return s, nil
}

func (s *errSocket) close() error { return unix.Close(s.fd) }

// send sends b. An error that is pending from before is passed over.
func (s *errSocket) send(b []byte) error {
	for range 8 {
		_, err := unix.Write(s.fd, b)
		if err == nil || errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return errors.New("one pending error after the other")
}

// next takes the next error from the queue, and waits for it.
func (s *errSocket) next(patience time.Duration) (icmpError, error) {
	var e icmpError
	fds := []unix.PollFd{{Fd: int32(s.fd)}}
	for deadline := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return e, fmt.Errorf("no ICMP error in %v (%w)", patience, errors.Join(err, unix.ETIMEDOUT))
		}
		ok, err := s.take(&e)
		if ok || err != nil {
			return e, err
		}
	}
}

// take reads the error queue without waiting.
func (s *errSocket) take(e *icmpError) (ok bool, err error) {
	buf, oob := make([]byte, 4096), make([]byte, 512)
	n, oobn, _, _, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		_, _ = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return false, err
	}
	e.payload = buf[:n]
	for _, m := range msgs {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < 16 {
			continue
		}
		d := m.Data
		e.errno, e.typ, e.code = unix.Errno(binary.NativeEndian.Uint32(d)), d[5], d[6]
		e.mtu = int(binary.NativeEndian.Uint32(d[8:]))
		switch {
		case v4 && len(d) >= 24:
			e.offender = netip.AddrFrom4([4]byte(d[20:24]))
		case v6 && len(d) >= 40:
			e.offender = netip.AddrFrom16([16]byte(d[24:40])).Unmap()
		}
	}
	return true, nil
}

// as4 is As4 that gives zeroes for IPv6.
func as4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}
