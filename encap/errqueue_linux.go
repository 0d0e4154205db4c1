package encap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockExtendedErr is struct sock_extended_err of include/uapi/linux/errqueue.h.
type sockExtendedErr struct {
	errno  uint32
	origin uint8
	typ    uint8
	code   uint8
	_      uint8
	info   uint32
	data   uint32
}

// readError takes one entry from the error queue of fd; ok is false when it is
// empty. The entry's data is valid until the next call.
func (p *rawPath) readError(fd int) (q queuedError, ok bool) {
	oob := p.errOOB[:]
	n, oobn, _, from, err := unix.Recvmsg(fd, p.errData[:], oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return q, false
	}
	q.data = p.errData[:n]
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		q.port = uint16(a.Port)
		q.dest = addr128{0, 0xffff<<32 | uint64(a.Addr[0])<<24 | uint64(a.Addr[1])<<16 | uint64(a.Addr[2])<<8 | uint64(a.Addr[3])}
	case *unix.SockaddrInet6:
		q.port = uint16(a.Port)
		q.dest = addr128{be64(a.Addr[:8]), be64(a.Addr[8:])}
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return q, true
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(m.Data) >= int(unsafe.Sizeof(sockExtendedErr{})) {
			e := (*sockExtendedErr)(unsafe.Pointer(&m.Data[0]))
			q.errno = unix.Errno(e.errno)
			q.origin = e.origin
			q.mtu = int(e.info)
		}
	}
	return q, true
}
