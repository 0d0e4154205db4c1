package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A clock is the kernel's monotonic clock, read cheaply: time.Since goes through the vDSO, ClockGettime would be a
// system call.
type clock struct {
	start time.Time
	mono  int64 // CLOCK_MONOTONIC at start, ns
}

func newClock() (clock, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return clock{}, fmt.Errorf("traffic: read the monotonic clock: %w", err)
	}
	return clock{start: time.Now(), mono: ts.Nano()}, nil
}

// now is the time since the clock was made.
func (c clock) now() time.Duration { return time.Since(c.start) }

// sleepUntil sleeps until the clock shows at; it returns at once if that is past.
func (c clock) sleepUntil(at time.Duration) error {
	ts := unix.NsecToTimespec(c.mono + int64(at))
	for {
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("clock_nanosleep", err)
		}
	}
}

// preciseTimer makes the sleeps of the calling thread end on time: the kernel may otherwise put each off by 50 us.
func preciseTimer() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) } // less precise where it is refused

// openSocket makes a blocking socket of the address family of addr whose receive calls, and sends, give up with EAGAIN
// after pollInterval. The caller closes it.
func openSocket(addr netip.Addr, kind, protocol int) (int, error) {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := setTimeout(fd, option, pollInterval); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// setTimeout sets SO_RCVTIMEO or SO_SNDTIMEO.
func setTimeout(fd, option int, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return os.NewSyscallError("setsockopt timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv))
}

// setBuffers sets both socket buffers, past the system's limit where the caller may.
func setBuffers(fd, bytes int) error {
	for _, o := range []struct{ force, plain int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, bytes) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, bytes); err != nil {
			return os.NewSyscallError("setsockopt buffer size", err)
		}
	}
	return nil
}

// sockaddr converts an address; zones are not supported.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if ip := a.Addr(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func sockaddrOf(a netip.Addr) unix.Sockaddr { return sockaddr(netip.AddrPortFrom(a, 0)) }

// bindAny binds to a free port of addr and returns it.
func bindAny(fd int, addr netip.Addr) (uint16, error) {
	if err := unix.Bind(fd, sockaddrOf(addr)); err != nil {
		return 0, fmt.Errorf("bind %v: %w", addr, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, fmt.Errorf("getsockname: unexpected %T", name)
}

// again tells whether a call was only interrupted or timed out.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// pathError tells whether an error says something about the path, such as an ICMP error for an earlier packet, and not
// about the socket.
func pathError(err error) bool {
	switch {
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EPROTO):
		return true
	}
	return false
}

// sockaddrStride is the distance of two addresses in sockaddrs: the size of the larger, struct sockaddr_in6, rounded up.
const sockaddrStride = 32

// sockaddrs are addresses of one family in the kernel's form (ip(7), ipv6(7)), made once.
type sockaddrs struct {
	slab  []byte
	size  uint32 // of each
	count int
}

func newSockaddrs(addrs []netip.Addr, port uint16) *sockaddrs {
	s := &sockaddrs{slab: make([]byte, len(addrs)*sockaddrStride), size: unix.SizeofSockaddrInet6, count: len(addrs)}
	family, at := uint16(unix.AF_INET6), 8
	if addrs[0].Is4() {
		s.size, family, at = unix.SizeofSockaddrInet4, unix.AF_INET, 4
	}
	for i, a := range addrs {
		b := s.slab[i*sockaddrStride:]
		binary.NativeEndian.PutUint16(b, family)
		binary.BigEndian.PutUint16(b[2:], port)
		copy(b[at:], a.AsSlice())
	}
	return s
}
