package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An NS is one network namespace of a Lab. Its methods may be called from any
// goroutine; after the lab is closed they return ErrClosed.
type NS struct {
	name string
	ino  uint64 // as in net:[4026531840]
	lab  *Lab

	mu     sync.RWMutex // held for reading while fd is in use
	fd     int          // -1 once closed
	handle *netlink.Handle
}

// Namespace creates an empty network namespace. The name serves error messages
// only. Its loopback device is up. Duplicate address detection is off, so that
// IPv6 addresses can be used as soon as they are added. Everything else is as
// the kernel makes it: no forwarding, and the IPv4 settings of the machine's
// own namespace where the kernel inherits them (net.core.devconf_inherit_init_net).
func (l *Lab) Namespace(name string) (*NS, error) {
	n := &NS{name: name, lab: l, fd: -1}
	err := inNewNetns(func() (err error) {
		if n.fd, err = openNetns(ownNetns); err != nil {
			return err
		}
		if n.ino, err = inode(n.fd); err != nil {
			return err
		}
		if n.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		if haveIPv6() {
			for _, who := range []string{"all", "default"} {
				if err := writeSysctl("net/ipv6/conf/"+who+"/accept_dad", "0"); err != nil {
					return err
				}
			}
		}
		lo, err := n.handle.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return n.handle.LinkSetUp(lo)
	})
	if err == nil {
		err = l.adopt(n)
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("netlab: create namespace %s: %w", name, err)
	}
	return n, nil
}

// Name returns the name that the namespace was created with.
func (n *NS) Name() string { return n.name }

// Path returns a path that names the namespace to setns and to programs, as
// long as the lab is open. It lies under /proc of this process.
func (n *NS) Path() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd)
}

// Do runs fn on an operating system thread inside the namespace and returns
// its error. Sockets and TUN devices opened by fn belong to the namespace for
// good. Goroutines started by fn do not run inside it. fn may fail the test
// with t.Fatal: the caller of Do ends too.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		n.mu.RLock()
		defer n.mu.RUnlock()
		if n.fd < 0 {
			return n.errorf("enter", ErrClosed)
		}
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return n.errorf("enter", err)
		}
		return nil
	}, fn)
}

// Netlink returns the namespace's route netlink handle, for what this package
// has no method for. The namespace owns it: do not close it. It is nil once
// the lab is closed.
func (n *NS) Netlink() *netlink.Handle {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.handle
}

// withNetlink calls fn with the open handle and dresses its error.
func (n *NS) withNetlink(op string, fn func(*netlink.Handle) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.handle == nil {
		return n.errorf(op, ErrClosed)
	}
	if err := fn(n.handle); err != nil {
		return n.errorf(op, err)
	}
	return nil
}

// withLink is withNetlink for one device.
func (n *NS) withLink(op, link string, fn func(*netlink.Handle, netlink.Link) error) error {
	return n.withNetlink(op+" "+link, func(h *netlink.Handle) error {
		dev, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		return fn(h, dev)
	})
}

// Sysctl sets a kernel variable of the namespace. The path is relative to
// /proc/sys and starts with "net/", for example "net/ipv4/ip_forward".
func (n *NS) Sysctl(path, value string) error {
	err := n.Do(func() error { return writeSysctl(path, value) })
	if err != nil {
		return n.errorf("sysctl", err)
	}
	return nil
}

// ReadSysctl returns a kernel variable of the namespace, without the newline
// at its end. The path is as for Sysctl.
func (n *NS) ReadSysctl(path string) (string, error) {
	var b []byte
	err := checkSysctl(path)
	if err == nil {
		err = n.Do(func() (err error) {
			b, err = os.ReadFile("/proc/sys/" + path)
			return err
		})
	}
	if err != nil {
		return "", n.errorf("sysctl", err)
	}
	return strings.TrimRight(string(b), "\n"), nil
}

// writeSysctl relies on /proc/sys/net showing every thread the variables of its
// own network namespace (net/sysctl_net.c).
func writeSysctl(path, value string) error {
	if err := checkSysctl(path); err != nil {
		return err
	}
	err := os.WriteFile("/proc/sys/"+path, []byte(value), 0)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w (/proc/sys is mounted read-only; in a container: --privileged)", err)
	}
	return err
}

// checkSysctl refuses what is not per namespace: a test must not change the
// machine that it runs on.
func checkSysctl(path string) error {
	if !strings.HasPrefix(path, "net/") || filepath.Clean(path) != path {
		return fmt.Errorf("%q does not name a network variable (want a path such as net/ipv4/ip_forward)", path)
	}
	return nil
}

// closeHandle closes the netlink sockets, and returns the descriptor that is left.
func (n *NS) closeHandle() (fd int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handle != nil {
		n.handle.Close()
		n.handle = nil
	}
	return n.fd
}

// close gives the namespace up. The kernel destroys it, and every device in
// it, when the last socket inside is closed too.
func (n *NS) close() {
	n.closeHandle()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

func (n *NS) errorf(op string, err error) error {
	return fmt.Errorf("netlab: %s: %s: %w", n.name, op, err)
}
