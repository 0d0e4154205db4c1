package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const device = "/dev/net/tun"

// virtioLen is the size of the virtio header asked for (struct virtio_net_hdr).
const virtioLen = 10

// tunFTSOECN is TUN_F_TSO_ECN of include/uapi/linux/if_tun.h, missing in x/sys.
const tunFTSOECN = 0x08

// osDevice is what a Device on Linux has besides its queues.
type osDevice struct {
	nl      *netlink.Handle
	ns      netns.NsHandle // the device's network namespace
	index   int
	existed bool // Open attached to a persistent device
	fitGSO  bool
}

func open(cfg Config) (*Device, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "flannel%d"
	}
	queues := max(cfg.Queues, 1)
	d := &Device{os: osDevice{ns: netns.None()}, quit: make(chan struct{})}
	name := cfg.Name
	if _, err := netlink.LinkByName(name); err == nil {
		d.os.existed = true
	}
	for i := range queues {
		fd, got, err := openQueue(name, queues > 1)
		if err != nil {
			d.discard()
			return nil, fmt.Errorf("tun: open %s: queue %d: %w", cfg.Name, i, err)
		}
		name = got
		d.queues = append(d.queues, &Queue{dev: d, fd: fd, vnet: true})
	}
	d.name = name
	if err := d.setUp(cfg); err != nil {
		d.discard()
		return nil, fmt.Errorf("tun: open %s: %w", name, err)
	}
	return d, nil
}

// check finds what is wrong with a Config before anything is made.
func (cfg *Config) check() error {
	switch {
	case len(cfg.Name) >= unix.IFNAMSIZ:
		return fmt.Errorf("tun: open: name %q has %d bytes (at most %d)", cfg.Name, len(cfg.Name), unix.IFNAMSIZ-1)
	case strings.ContainsAny(cfg.Name, "/: \t\n\v\f\r\x00") || cfg.Name == "." || cfg.Name == "..":
		return fmt.Errorf("tun: open: name %q is no interface name (no slash, colon or space)", cfg.Name)
	case strings.Count(cfg.Name, "%") > 1 || strings.Contains(cfg.Name, "%") && !strings.Contains(cfg.Name, "%d"):
		return fmt.Errorf("tun: open: name %q (a name may have one %%d and no other %%)", cfg.Name)
	case cfg.MTU != 0 && (cfg.MTU < MinMTU || cfg.MTU > MaxMTU):
		return fmt.Errorf("tun: open: MTU is %d (%d to %d, or 0 for %d)", cfg.MTU, MinMTU, MaxMTU, DefaultMTU)
	case cfg.Queues < 0 || cfg.Queues > MaxQueues:
		return fmt.Errorf("tun: open: Queues is %d (1 to %d, or 0 for 1)", cfg.Queues, MaxQueues)
	}
	return nil
}

// openQueue opens one queue of the device name and returns its real name.
func openQueue(name string, multi bool) (fd int, got string, err error) {
	fd, err = unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", explainOpen(err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fd, "", err
	}
	flags := unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(uint16(flags))
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fd, "", explainSetIff(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, virtioLen); err != nil {
		return fd, "", fmt.Errorf("set the virtio header size: %w", err)
	}
	return fd, ifr.Name(), nil
}

func explainOpen(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w (load the module: modprobe tun; in a container, pass the device in)", device, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %s: %w (run as root, or chmod 0666 %s as udev does)", device, err, device)
	}
	return fmt.Errorf("open %s: %w", device, err)
}

func explainSetIff(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w (another process has the device open)", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w (an interface of that name exists and is no TUN device, or has other flags: choose another name, or open it with as many queues as before)", err)
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w (the device has no queue left)", err)
	}
	return err
}

// setUp gives the device its offloads and attributes.
func (d *Device) setUp(cfg Config) error {
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	d.os.ns = ns
	if d.os.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	link, err := d.link()
	if err != nil {
		return err
	}
	d.os.index = link.Attrs().Index
	d.offloads = AllOffloads
	if cfg.Without&(USO4|USO6) != 0 {
		cfg.Without |= USO4 | USO6 // the kernel grants both or none
	}
	for _, q := range d.queues {
		d.offloads &= grant(q.fd, AllOffloads&^cfg.Without)
	}
	for _, q := range d.queues { // the device has one set: the smallest
		if got := grant(q.fd, d.offloads); got != d.offloads {
			return fmt.Errorf("offloads %b were granted, then refused (%b left)", d.offloads, got)
		}
	}
	mtu := cfg.MTU
	if mtu == 0 {
		mtu = DefaultMTU
		if d.os.existed {
			mtu = link.Attrs().MTU
		}
	}
	if err := d.os.nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU %d: %w", mtu, err)
	}
	if cfg.TxQueueLen >= 0 {
		n := cfg.TxQueueLen
		if n == 0 {
			n = DefaultTxQueueLen
		}
		if err := d.os.nl.LinkSetTxQLen(link, n); err != nil {
			return fmt.Errorf("set txqueuelen %d: %w", n, err)
		}
	}
	if d.os.fitGSO = cfg.FitGSO; cfg.FitGSO {
		if err := d.limitGSO(link, mtu); err != nil {
			return err
		}
	}
	for _, q := range d.queues {
		on := 0
		if cfg.Persist {
			on = 1
		}
		if err := unix.IoctlSetInt(q.fd, unix.TUNSETPERSIST, on); err != nil {
			return fmt.Errorf("set persistence: %w", err)
		}
	}
	return nil
}

// limitGSO sets the GSO limits that suit the MTU. A kernel that does not know
// them (before 4.10) keeps its own: then a burst leaves as two sends.
func (d *Device) limitGSO(link netlink.Link, mtu int) error {
	size, segs := GSOLimits(mtu)
	if err := d.os.nl.LinkSetGSOMaxSize(link, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set gso_max_size %d: %w", size, err)
	}
	if err := d.os.nl.LinkSetGSOMaxSegs(link, segs); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set gso_max_segs %d: %w", segs, err)
	}
	return nil
}

// grant asks for the offloads want, one after the other, and returns what the
// kernel gave.
func grant(fd int, want Offloads) Offloads {
	flags := func(o Offloads) (f int) {
		for _, x := range []struct {
			o Offloads
			f int
		}{{Checksum, unix.TUN_F_CSUM}, {TSO4, unix.TUN_F_TSO4}, {TSO6, unix.TUN_F_TSO6}, {TSOECN, tunFTSOECN},
			{USO4, unix.TUN_F_USO4}, {USO6, unix.TUN_F_USO6}} {
			if o&x.o != 0 {
				f |= x.f
			}
		}
		return f
	}
	var got Offloads
	for _, o := range []Offloads{Checksum, TSO4, TSO6, TSOECN, USO4 | USO6} {
		if o != Checksum && got&Checksum == 0 || o == TSOECN && got&(TSO4|TSO6) == 0 {
			continue // it needs what was not wanted or refused
		}
		if want&o == o && unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags(got|o)) == nil {
			got |= o
		}
	}
	// A refusal changed nothing, but what an earlier opener asked for may be
	// in force still.
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags(got))
	return got
}

// link looks the device up: by its index, once that is known, because another
// device may have its name by now.
func (d *Device) link() (l netlink.Link, err error) {
	if d.os.index != 0 {
		l, err = d.os.nl.LinkByIndex(d.os.index)
	} else {
		l, err = d.os.nl.LinkByName(d.name)
	}
	if err != nil {
		var nf netlink.LinkNotFoundError
		if errors.As(err, &nf) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("look up the interface: %w", err)
	}
	return l, nil
}

// discard undoes a failed Open.
func (d *Device) discard() { _ = d.osClose() }

func (d *Device) osClose() error {
	var errs []error
	for _, q := range d.queues {
		if err := unix.Close(q.fd); err != nil {
			errs = append(errs, os.NewSyscallError("close", err))
		}
	}
	if d.os.nl != nil {
		d.os.nl.Close()
	}
	if d.os.ns.IsOpen() {
		errs = append(errs, d.os.ns.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tun: close %s: %w", d.name, err)
	}
	return nil
}
