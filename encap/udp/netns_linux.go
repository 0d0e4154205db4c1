package udp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is the network namespace that the backend works in. Its devices and
// sockets are made now and then, by goroutines on any thread, and all belong where
// Start was called.
type namespace struct{ ns netns.NsHandle }

func currentNamespace() (namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return namespace{ns: netns.None()}, fmt.Errorf("network namespace: %w", err)
	}
	return namespace{ns: ns}, nil
}

// do runs fn on a thread in the namespace: the calling one, as a rule. Only where
// that is in another one does it take CAP_SYS_ADMIN.
func (n namespace) do(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer home.Close()
	if home.Equal(n.ns) {
		return fn()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if err = netns.Set(n.ns); err != nil {
			err = fmt.Errorf("enter the network namespace of the first Start: %w (needs CAP_SYS_ADMIN)", err)
			runtime.UnlockOSThread()
			return
		}
		err = fn()
		if back := netns.Set(home); back != nil {
			err = errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
			return // still locked: the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
	}()
	<-ended
	return err
}

func (n *namespace) close() error {
	if !n.ns.IsOpen() {
		return nil
	}
	return n.ns.Close()
}

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
