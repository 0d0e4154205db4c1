package encap

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlSocket returns the function that sets options before bind.
func controlSocket(cfg ListenConfig) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if !cfg.ReusePort {
			return nil
		}
		var err error
		if e := c.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		}); e != nil {
			return e
		}
		return err
	}
}

// setBuffers asks for n bytes each way: past the system's limit where
// permitted, up to it elsewhere.
func setBuffers(c *net.UDPConn, n int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs error
	if err := rc.Control(func(fd uintptr) {
		for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o[0], n) != nil {
				errs = errors.Join(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o[1], n))
			}
		}
	}); err != nil {
		return err
	}
	return errs
}

func explainListen(err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return " (another flannel or engine has the port: stop it, choose another port, or set ReusePort on all of them)"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return " (no interface has that address)"
	case errors.Is(err, unix.EACCES):
		return " (ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE)"
	}
	return ""
}
