package udp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/netwatch"
	"github.com/flannelkit/flannelkit/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelDevices makes TUN devices in the network namespace of the thread that
// newKernelDevices was called on. All but close has to be called in it.
type kernelDevices struct {
	opts  Options
	log   *slog.Logger
	nl    *netlink.Handle
	index atomic.Int32 // of the device, 0 while there is none; the watcher reads it

	dev     *tun.Device
	name    string         // of the device, kept when it is made anew
	found   bool           // the device was there before this process
	strays  bool           // it may have addresses and routes that are not of this plan
	guarded []netip.Prefix // networks with a guard route

	events *netwatch.Watcher
}

func newKernelDevices(opts Options, log *slog.Logger) (devices, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &kernelDevices{opts: opts, log: log, nl: nl}, nil
}

// open takes a predecessor's device over, or makes one.
func (k *kernelDevices) open(p plan) (*tun.Device, error) {
	if err := k.takeOver(p); err != nil {
		return nil, err
	}
	if k.dev == nil {
		name := k.opts.Device
		if k.name != "" && !k.exists(k.name) {
			name = k.name // the same as before, for those who filter by name
		}
		if err := k.attach(name, p); err != nil {
			return nil, err
		}
	}
	return k.dev, nil
}

// attach opens the device of that name, new or not.
func (k *kernelDevices) attach(name string, p plan) error {
	dev, err := tun.Open(tun.Config{Name: name, MTU: p.mtu, Queues: k.opts.Engines, Persist: k.opts.Persist})
	if err != nil {
		return err
	}
	link, err := k.nl.LinkByName(dev.Name())
	if err != nil {
		return errors.Join(fmt.Errorf("look up %s: %w", dev.Name(), err), setPersist(dev, false), dev.Close())
	}
	k.dev, k.name = dev, dev.Name()
	k.index.Store(int32(link.Attrs().Index))
	k.quieten(link, p)
	return nil
}

// quieten keeps the kernel from using the device for what does not belong into a
// tunnel: without a link-local address it solicits no routers (flannel's device sends
// router solicitations to all peers), and nobody's advertisement configures it.
// Whatever of this can't be set is no reason not to start.
func (k *kernelDevices) quieten(link netlink.Link, p plan) {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h
	if err := k.nl.LinkSetIP6AddrGenMode(link, none); err != nil {
		k.log.Debug("no addr_gen_mode", "device", k.name, "err", err)
	}
	settings := [][2]string{
		{"ipv6/conf/*/accept_ra", "0"},
		// While no process has the device, it has no carrier; its route must be
		// used nevertheless, or packets leave by the default route.
		{"ipv4/conf/*/ignore_routes_with_linkdown", "0"},
		{"ipv6/conf/*/ignore_routes_with_linkdown", "0"},
	}
	if p.ipv6() {
		settings = append(settings, [2]string{"ipv6/conf/*/disable_ipv6", "0"}) // some hosts' default is 1
	}
	for _, v := range settings {
		path := filepath.Join("/proc/sys/net", strings.Replace(v[0], "*", k.name, 1))
		if have, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(have)) == v[1] {
			continue
		}
		if err := os.WriteFile(path, []byte(v[1]), 0); err != nil {
			k.log.Debug("kernel variable not set", "path", path, "value", v[1], "err", err)
		}
	}
}

// exists reports whether there is an interface of that name.
func (k *kernelDevices) exists(name string) bool {
	_, err := k.nl.LinkByName(name)
	return err == nil
}

// link looks the device up. gone is true if it does not exist here any more: it was
// deleted, or moved to another network namespace.
func (k *kernelDevices) link() (l netlink.Link, gone bool, err error) {
	l, err = k.nl.LinkByIndex(int(k.index.Load()))
	if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
		return nil, true, fmt.Errorf("%s: %w", k.name, tun.ErrGone)
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up %s: %w", k.name, err)
	}
	return l, false, nil
}

func (k *kernelDevices) lost() bool {
	_, gone, _ := k.link()
	return gone
}

func (k *kernelDevices) drop(how fate) error {
	dev := k.dev
	k.dev = nil
	k.index.Store(0)
	stays := how == leave || how == asFound && k.found
	k.found = false
	err := setPersist(dev, stays)
	if errors.Is(err, unix.EBADFD) {
		err = nil // deleted: there is nothing to leave
	}
	return errors.Join(err, dev.Close(), k.unguard())
}

func (k *kernelDevices) close() error {
	err := k.unguard()
	if k.events != nil {
		err = errors.Join(err, k.events.Close())
	}
	k.nl.Close()
	return err
}

// setPersist says whether the device outlives its last descriptor.
func setPersist(dev *tun.Device, on bool) error {
	v := 0
	if on {
		v = 1
	}
	for _, q := range dev.Queues() {
		if fd, ok := q.FD(); ok {
			if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, v); err != nil {
				return fmt.Errorf("persistence of %s: %w", dev.Name(), err)
			}
		}
	}
	return nil
}

// notForwarding implements devices.
func (k *kernelDevices) notForwarding(p plan) []string { return netstate.NotForwarding(p.self.Key) }
