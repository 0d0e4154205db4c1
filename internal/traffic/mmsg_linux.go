package traffic

// The only file of this package with unsafe: the two system calls that move many packets at once, and one socket
// option, none of which x/sys/unix wraps.

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes moved
}

// A mmsgVector is a fixed set of packet buffers for one connected or receiving UDP socket. They lie in one slab. The
// kernel's view of them (vector, parts) points into memory that the struct itself keeps alive.
type mmsgVector struct {
	slab   []byte
	stride int
	parts  []unix.Iovec
	vector []mmsghdr
}

// newMmsgVector makes count buffers of size bytes each.
func newMmsgVector(count, size int) *mmsgVector {
	v := &mmsgVector{stride: (size + 127) &^ 63, parts: make([]unix.Iovec, count), vector: make([]mmsghdr, count)}
	v.slab = make([]byte, count*v.stride)
	for i := range v.vector {
		v.parts[i].Base = &v.slab[i*v.stride]
		v.parts[i].SetLen(size)
		v.vector[i].hdr.Iov = &v.parts[i]
		v.vector[i].hdr.SetIovlen(1)
	}
	return v
}

// resize makes the i-th buffer size bytes long, at most what the vector was made for, and returns it.
func (v *mmsgVector) resize(i, size int) []byte {
	v.parts[i].SetLen(size)
	return v.slab[i*v.stride:][:size]
}

// to sets where the i-th buffer goes: the j-th of names, which must stay as they are until it has left.
func (v *mmsgVector) to(i int, names *sockaddrs, j int) {
	v.vector[i].hdr.Name = &names.slab[j*sockaddrStride]
	v.vector[i].hdr.Namelen = names.size
}

// received returns the packet that the last receive put into the i-th buffer, and whether it had to be cut.
func (v *mmsgVector) received(i int) (b []byte, cut bool) {
	return v.slab[i*v.stride:][:v.vector[i].n], v.vector[i].hdr.Flags&unix.MSG_TRUNC != 0
}

// send sends the buffers [from, to) and returns how many were sent; the error concerns the one after those.
func (v *mmsgVector) send(fd, from, to int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.vector[from])), uintptr(to-from), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// receive waits for a packet and takes all that have come by then.
func (v *mmsgVector) receive(fd int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.vector[0])), uintptr(len(v.vector)), unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// socketDrops returns how many packets the socket has dropped because its buffer was full (SO_MEMINFO, its last field:
// SK_MEMINFO_DROPS of linux/sock_diag.h). It returns 0 where the kernel does not tell (before 4.12).
func socketDrops(fd int) uint64 {
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[8])
}
