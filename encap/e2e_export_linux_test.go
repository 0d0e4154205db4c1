package encap

import "golang.org/x/sys/unix"

// RefuseJoined makes every n-th write of a joined packet to the device fail with
// errno e, as a kernel without a large buffer (ENOMEM) or with a broken check
// (EINVAL) does. To be called before Run.
func (e *Engine) RefuseJoined(n int, errno unix.Errno) {
	p := e.path.(*rawPath)
	write, count := p.sys.writev, 0
	p.sys.writev = func(fd int, iov *iovec, k int) (int, unix.Errno) {
		// Every write begins with the virtio header; its second byte is the
		// GSO type.
		if bytesAt(iov, 2)[1] != 0 {
			if count++; count%n == 0 {
				return -1, errno
			}
		}
		return write(fd, iov, k)
	}
}
