package wireguard

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A device inside this process is wireguard-go's Device over a TUN device. By itself,
// wireguard-go follows the TUN device's state: it opens its UDP sockets when that
// comes up, and asks for the MTU when it changes, from goroutines that may run on
// threads of any network namespace. So it is not told of changes here, but what it
// shall do: rounds, which are in the right namespace, configure it and bring it up,
// and sockets are opened in no other call.

// An inproc is such a device.
type inproc struct {
	name  string
	index int // of the link
	tun   *tunnel
	dev   *device.Device
	isUp  bool
}

// openInproc makes the TUN device in the namespace of the calling thread. It carries
// nothing before up.
func openInproc(name string, mtu int, log *slog.Logger) (*inproc, error) {
	t, err := openTunnel(name, mtu)
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("%w (close: %v)", err, t.Close())
	}
	l := &quiet{log: log.With("backend", "wireguard", "device", name)}
	dev := device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: l.errorf})
	return &inproc{name: name, index: link.Index, tun: t, dev: dev}, nil
}

// up lets packets flow. It is called in the namespace.
func (p *inproc) up(port int) error {
	if p.isUp {
		return nil
	}
	if err := p.dev.Up(); err != nil {
		return fmt.Errorf("open UDP port %d: %w", port, explainPort(err))
	}
	p.isUp = true
	return nil
}

// ended reports whether the device has ended, be it that the TUN device was removed.
func (p *inproc) ended() bool {
	select {
	case <-p.dev.Wait():
		return true
	default:
		return false
	}
}

// close ends it, and the TUN device with it.
func (p *inproc) close() { p.dev.Close() }

func (p *inproc) setMTU(mtu int) { p.tun.setMTU(mtu) }

// get implements control.
func (p *inproc) get() (*wgtypes.Device, error) {
	s, err := p.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	return readUAPI(s)
}

// set implements control. wireguard-go's errors quote endpoints and prefixes, no keys.
func (p *inproc) set(c wgtypes.Config) error { return p.dev.IpcSet(writeUAPI(c)) }

// A tunnel is a tun.Device that only tells of changes of the MTU, and only ours.
type tunnel struct {
	tun.Device
	mtu    atomic.Int64
	events chan tun.Event

	mu     sync.Mutex
	closed bool // events is closed
}

// openTunnel makes a TUN device that ends with its descriptor.
func openTunnel(name string, mtu int) (*tunnel, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	if err := attach(fd, name); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("TUN device: %w", err)
	}
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(fd) // owns fd from now on, also if it fails
	if err != nil {
		return nil, fmt.Errorf("TUN device: %w", err)
	}
	t := &tunnel{Device: dev, events: make(chan tun.Event, 1)}
	t.mtu.Store(int64(mtu))
	return t, nil
}

// attach makes the device of a descriptor of /dev/net/tun, with headers that let
// packets pass unsegmented (IFF_VNET_HDR).
func attach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
}

// MTU implements tun.Device.
func (t *tunnel) MTU() (int, error) { return int(t.mtu.Load()), nil }

// Events implements tun.Device.
func (t *tunnel) Events() <-chan tun.Event { return t.events }

func (t *tunnel) setMTU(mtu int) {
	if mtu == 0 || t.mtu.Swap(int64(mtu)) == int64(mtu) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is under way, and finds the new MTU
	}
}

// Close implements tun.Device.
func (t *tunnel) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.events)
	}
	t.mu.Unlock()
	return t.Device.Close()
}

// quietFor is how long an error of one kind is not repeated.
const quietFor = 30 * time.Second

// A quiet logs wireguard-go's errors. Some come with every packet while the network
// is down. They name peers by the beginning and end of their public keys.
type quiet struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time // by format
}

func (q *quiet) errorf(format string, args ...any) {
	now := time.Now()
	q.mu.Lock()
	if q.last == nil {
		q.last = map[string]time.Time{}
	}
	last, said := q.last[format]
	repeat := !said || now.Sub(last) >= quietFor
	if repeat {
		q.last[format] = now
	}
	q.mu.Unlock()
	if repeat {
		q.log.Warn("wireguard-go: " + fmt.Sprintf(format, args...))
	}
}
