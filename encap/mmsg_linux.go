package encap

import (
	"unsafe"

	"github.com/flannelkit/flannelkit/internal/offload"
	"github.com/flannelkit/flannelkit/ring"
	"golang.org/x/sys/unix"
)

// This file holds the structures that system calls take, and the calls: with
// errqueue_linux.go and one getsockopt in raw_linux.go all of the package's
// unsafe code.
//
// The structures live in mapped memory beside the packets, and refer to it by
// number: Go's collector neither scans nor moves it, and filling them needs no
// write barriers. The arena (a ring.Ring) is unmapped only after the loop that
// makes the calls has ended.

// iovec is struct iovec.
type iovec struct {
	base uintptr
	len  uintptr
}

// msghdr is struct msghdr of the kernel ABI (struct user_msghdr); Go pads it
// as C does on 32 and 64 bits.
type msghdr struct {
	name       uintptr
	namelen    uint32
	iov        uintptr
	iovlen     uintptr
	control    uintptr
	controllen uintptr
	flags      int32
}

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr msghdr
	len uint32
}

// nameLen has room for sockaddr_in and sockaddr_in6 (28 bytes).
const nameLen = 32

type sockname [nameLen]byte

// controlLen has room for a UDP_GRO (int) or UDP_SEGMENT (uint16) control
// message on every architecture, and some more.
const controlLen = 64

type controlbuf [controlLen]byte

// arena hands out pieces of one ring slot.
type arena struct {
	r    *ring.Ring
	mem  []byte
	used int
}

func newArena(size int) (*arena, error) {
	r, err := ring.New(ring.Config{Slots: 1, SlotSize: size})
	if err != nil {
		return nil, err
	}
	return &arena{r: r, mem: r.Slot(0)}, nil
}

// carve returns a slice of n Ts in the arena, aligned to a cache line. The
// arena's size was computed from the same calls, so it suffices.
func carve[T any](a *arena, n int) []T {
	var t T
	a.used = (a.used + 63) &^ 63
	p := unsafe.Pointer(&a.mem[a.used])
	a.used += n * int(unsafe.Sizeof(t))
	_ = a.mem[a.used-1]
	return unsafe.Slice((*T)(p), n)
}

func addr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// calls are the system calls of the data path; tests put failing ones in their
// place. All are non-blocking except wait.
type calls struct {
	readv    func(fd int, iov *iovec, n int) (int, unix.Errno)
	writev   func(fd int, iov *iovec, n int) (int, unix.Errno)
	sendmmsg func(fd int, m *mmsghdr, n int) (int, unix.Errno)
	recvmmsg func(fd int, m *mmsghdr, n int) (int, unix.Errno)
}

// RawSyscall does not tell the scheduler: the calls never block, and a switch
// of the processor twice for each of them would cost more than they do.

func rawReadv(fd int, iov *iovec, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(iov)), uintptr(n))
	return int(r), e
}

func rawWritev(fd int, iov *iovec, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(iov)), uintptr(n))
	return int(r), e
}

func rawSendmmsg(fd int, m *mmsghdr, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), e
}

func rawRecvmmsg(fd int, m *mmsghdr, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), e
}

// wait blocks in ppoll until a descriptor is ready or ns nanoseconds have
// passed (negative: for ever).
func wait(fds []unix.PollFd, ns int64) unix.Errno {
	var ts *unix.Timespec
	if ns >= 0 {
		t := unix.NsecToTimespec(ns)
		ts = &t
	}
	_, _, e := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	return e
}

// waitBriefly is wait for at most ns nanoseconds, without telling the
// scheduler: most sleeps of a busy engine are shorter than what the runtime's
// monitor thread does about a thread that left for a system call.
func waitBriefly(fds []unix.PollFd, ns int64) (ready int, e unix.Errno) {
	ts := unix.NsecToTimespec(ns)
	r, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return int(r), e
}

// putSegment writes a UDP_SEGMENT control message for segments of size bytes
// and returns its length. The kernel wants exactly CMSG_LEN(2) in it
// (net/ipv4/udp.c udp_cmsg_send).
func putSegment(c *controlbuf, size int) uintptr {
	h := (*unix.Cmsghdr)(unsafe.Pointer(c))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&c[unix.CmsgLen(0)])) = uint16(size)
	return uintptr(unix.CmsgSpace(2))
}

// groSize finds the segment size in n bytes of control messages; 0 means the
// message is one datagram.
func groSize(c *controlbuf, n int) int {
	n = min(n, len(c))
	for at := 0; at+unix.SizeofCmsghdr <= n; {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[at]))
		l := int(h.Len)
		if l < unix.SizeofCmsghdr || l > n-at {
			return 0 // garbled: take it as one datagram
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO {
			d := at + unix.CmsgLen(0)
			switch l - unix.CmsgLen(0) {
			case 4:
				return int(*(*int32)(unsafe.Pointer(&c[d])))
			case 2: // an early form
				return int(*(*uint16)(unsafe.Pointer(&c[d])))
			}
			return 0
		}
		at += (l + unix.SizeofPtr - 1) &^ (unix.SizeofPtr - 1)
	}
	return 0
}

// putName writes the endpoint of p as a socket address of the family of the
// socket and returns its length, or 0 when the family can't express it.
func putName(b *sockname, p *peer, family int) uint32 {
	port := p.Endpoint.Port()
	if family == unix.AF_INET {
		if p.v6 {
			return 0
		}
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(b))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: p.Endpoint.Addr().As4()}
		putPort(&sa.Port, port)
		return unix.SizeofSockaddrInet4
	}
	sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(b))
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: p.Endpoint.Addr().As16()}
	putPort(&sa.Port, port)
	return unix.SizeofSockaddrInet6
}

func putPort(dst *uint16, port uint16) {
	b := (*[2]byte)(unsafe.Pointer(dst))
	b[0], b[1] = byte(port>>8), byte(port)
}

// source reads the address of a received message.
func source(b *sockname) addr128 {
	if (*unix.RawSockaddr)(unsafe.Pointer(b)).Family == unix.AF_INET {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(b)).Addr
		return addr128{0, 0xffff<<32 | uint64(a[0])<<24 | uint64(a[1])<<16 | uint64(a[2])<<8 | uint64(a[3])}
	}
	a := &(*unix.RawSockaddrInet6)(unsafe.Pointer(b)).Addr
	return addr128{be64(a[:8]), be64(a[8:])}
}

func be64(b []byte) uint64 {
	_ = b[7]
	return uint64(b[0])<<56 | uint64(b[1])<<48 | uint64(b[2])<<40 | uint64(b[3])<<32 |
		uint64(b[4])<<24 | uint64(b[5])<<16 | uint64(b[6])<<8 | uint64(b[7])
}

const iovecSize = int(unsafe.Sizeof(iovec{}))

// pairAt returns the n (at most 2) iovecs at v.
func pairAt(v *iovec, n int) []iovec { return unsafe.Slice(v, n) }

// bytesAt returns the first n bytes that v points to. They are in mapped
// memory that the caller keeps mapped.
func bytesAt(v *iovec, n int) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&v.base)), n)
}

// headerBefore moves v's start back by a virtio header's length and returns
// that header.
func headerBefore(v *iovec) *[offload.VirtioLen]byte {
	v.base -= offload.VirtioLen
	v.len += offload.VirtioLen
	return *(**[offload.VirtioLen]byte)(unsafe.Pointer(&v.base))
}
