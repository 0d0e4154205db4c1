package udp

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// canShare: a socket can join another one on its port.
const canShare = true

// allowSharing lets other sockets of this user join c on its port. That works after
// bind as well, which has made sure that nobody else has the port.
func allowSharing(c *net.UDPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = rc.Control(func(fd uintptr) {
		set = os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, set)
}
