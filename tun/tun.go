// Package tun opens TUN devices for package encap: queues with virtio headers
// and segmentation offloads on Linux, and any golang.zx2c4.com/wireguard/tun
// Device everywhere (macOS, Windows, gVisor's netstack, a test channel).
//
// On Linux the queues are raw, non-blocking descriptors that the Go runtime's
// poller does not know: a descriptor in its epoll set would wake a thread of
// the runtime for every packet, beside the engine that really reads it. That
// is why [Open] does not go through wireguard/tun there; [Wrap] takes such a
// device where its portability is worth more than the speed.
//
// The user-visible part of a device (addresses and routes) is the caller's.
package tun

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrClosed: the device was closed.
	ErrClosed = errors.New("tun: device closed")
	// ErrGone: the device was deleted by someone else. The descriptors are
	// useless from then on.
	ErrGone = errors.New("tun: device deleted")
)

// Limits and defaults.
const (
	// DefaultMTU is what is left of 1500 bytes after an IPv4 and a UDP
	// header (20+8): flannel's choice for its udp backend on Ethernet.
	DefaultMTU = 1472
	// MinMTU is IPv4's smallest MTU (RFC 791); IPv6 needs 1280 (RFC 8200).
	MinMTU = 68
	// MaxMTU is the largest MTU that Linux gives a TUN device.
	MaxMTU = 65535
	// MaxQueues is Linux' limit of queues on one device (MAX_TAP_QUEUES).
	MaxQueues = 256
)

// Offloads are segmentation and checksum duties that the device leaves to the
// engine. Checksum is the base of all others.
type Offloads uint8

// Offloads, each named for what may then cross the device uncut.
const (
	Checksum Offloads = 1 << iota // packets with partial checksums
	TSO4                          // TCP over IPv4
	TSO6                          // TCP over IPv6
	TSOECN                        // TCP with CWR set
	USO4                          // equal UDP datagrams over IPv4 (Linux 6.2)
	USO6                          // equal UDP datagrams over IPv6 (Linux 6.2)

	AllOffloads = Checksum | TSO4 | TSO6 | TSOECN | USO4 | USO6
)

// Config describes the device to open. The zero value is a device named
// flannel%d (the kernel puts the first free number) with one queue, MTU 1472
// and all offloads.
type Config struct {
	// Name is the interface name, at most 15 bytes; it may contain one %d.
	// A persistent device of that name is attached to.
	Name string
	// MTU in bytes; 0 means DefaultMTU for a new device and leaves that of
	// an existing one.
	MTU int
	// Queues is the number of queues, one for each engine; 0 means 1. More
	// than one asks for IFF_MULTI_QUEUE.
	Queues int
	// Persist keeps the device when the last descriptor is closed, so that
	// routes stay and nothing leaks past the tunnel during a restart.
	Persist bool
	// TxQueueLen is the number of packets (super-packets count as one) that
	// wait for the engine before the kernel drops; 0 means
	// DefaultTxQueueLen, negative leaves the kernel's 500.
	TxQueueLen int
	// Without lists offloads that are not asked for. The two USO are granted
	// together, so without one there is none.
	Without Offloads
	// FitGSO limits the super-packets of the device (gso_max_size and
	// gso_max_segs) to what fits one UDP_SEGMENT send, see GSOLimits: a burst
	// of TCP then leaves as one message instead of two.
	//
	// Set it only if the links of all containers behind the device have the
	// same limits: the kernel cuts forwarded super-packets that are larger
	// before they reach the device, and then each segment costs a system
	// call (measured: little more than half the throughput).
	FitGSO bool
}

// DefaultTxQueueLen is twice the kernel's 500: room for the small packets that
// arrive while an engine is kept from running for some milliseconds. Bulk TCP
// waits there too, as super-packets, so that much more would cost latency.
const DefaultTxQueueLen = 1000

// Device is an open TUN device. Its methods may be called from any goroutine.
type Device struct {
	name     string
	queues   []*Queue
	offloads Offloads
	wrapped  wgtun.Device // nil on the raw path
	os       osDevice
	closed   atomic.Bool
	use      sync.RWMutex  // held while netlink is used; Close waits for it
	events   *events       // of a wrapped device
	quit     chan struct{} // closed by Close
	closeErr error
	once     sync.Once
}

// Open creates the device, or attaches to a persistent one. It needs
// CAP_NET_ADMIN over the network namespace of the calling thread, which is the
// device's from then on. Offloads that the kernel refuses are left out, see
// [Device.Offloads]; anything else it refuses is an error that says why, and
// then nothing is left behind.
//
// Outside Linux, Open makes a device of wireguard/tun and wraps it; one queue
// is all there is and an MTU all that can be set.
func Open(cfg Config) (*Device, error) { return open(cfg) }

// Name returns the interface name.
func (d *Device) Name() string { return d.name }

// Queues returns the device's queues. A queue is used by one engine only:
// two readers of one queue reorder its packets.
func (d *Device) Queues() []*Queue { return d.queues }

// Offloads returns what the kernel granted on every queue.
func (d *Device) Offloads() Offloads { return d.offloads }

// MTU asks the system for the MTU in bytes.
func (d *Device) MTU() (int, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	if d.closed.Load() {
		return 0, ErrClosed
	}
	if d.wrapped != nil {
		return d.wrapped.MTU()
	}
	return d.osMTU()
}

// SetMTU changes the MTU (MinMTU..MaxMTU) and, with Config.FitGSO, the GSO
// limits with it. A wrapped device returns an error that wraps
// errors.ErrUnsupported.
func (d *Device) SetMTU(mtu int) error {
	d.use.RLock()
	defer d.use.RUnlock()
	if d.closed.Load() {
		return ErrClosed
	}
	return d.osSetMTU(mtu)
}

// Event is a change of the device.
type Event struct {
	// Up is whether the interface is administratively up.
	Up bool
	// MTU in bytes, 0 if unknown.
	MTU int
	// Gone: the device does not exist any more. It is the last event.
	Gone bool
}

// Watch sends the device's state at once and then every change of it until ctx
// ends, the device is gone or it is closed; then the channel is closed. A slow
// reader misses intermediate states, never the latest.
func (d *Device) Watch(ctx context.Context) (<-chan Event, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	if d.closed.Load() {
		return nil, ErrClosed
	}
	if d.wrapped != nil {
		return d.watchWrapped(ctx), nil
	}
	return d.osWatch(ctx)
}

// Close closes all queues. Unless it is persistent the device disappears when
// the last engine on it has ended too: a running engine has descriptors of its
// own, so that closing under it is safe. Closing twice returns the result of
// the first time.
func (d *Device) Close() error {
	d.once.Do(func() {
		d.closed.Store(true)
		close(d.quit)
		if d.wrapped != nil {
			d.closeErr = d.closeWrapped()
			return
		}
		d.use.Lock()
		defer d.use.Unlock()
		d.closeErr = d.osClose()
	})
	return d.closeErr
}

// Queue is one queue of a device.
type Queue struct {
	dev  *Device
	fd   int // raw path; -1 on the portable one
	vnet bool
	pump *pump // portable path; nil on the raw one
}

// Device returns the device that the queue belongs to.
func (q *Queue) Device() *Device { return q.dev }

// Wrapped reports whether the queue is a wireguard/tun Device's, see [Wrap]: it
// is used by Wait, Packet, Release and Write. Otherwise it has a descriptor.
func (q *Queue) Wrapped() bool { return q.pump != nil }

// FD returns the queue's non-blocking descriptor for raw reads and writes, and
// whether there is one. It stays the device's: duplicate it to keep it.
func (q *Queue) FD() (fd int, ok bool) {
	if q.pump != nil || q.dev.closed.Load() {
		return -1, false
	}
	return q.fd, true
}

// VirtioHeader reports whether every packet on FD has a virtio header of 10
// bytes in front.
func (q *Queue) VirtioHeader() bool { return q.vnet }

// GSOLimits returns the largest gso_max_size (bytes) and gso_max_segs with
// which every TCP super-packet of full segments fits into one UDP_SEGMENT send
// over an MTU of mtu bytes, of about 510 or more (1010 or more before Linux 6.9,
// which took 64 segments at once instead of 128). One such send carries at most 65507 bytes, the
// largest UDP payload over IPv4; the kernel's own limit of 64 KiB of TCP
// payload makes one segment more than fits.
func GSOLimits(mtu int) (size, segs int) {
	mtu = min(max(mtu, MinMTU), MaxMTU)
	segs = max(maxUDPPayload/mtu, 1)
	// The kernel takes MAX_TCP_HEADER (at most 320) and one byte off before
	// it counts segments (net/core/sock.c sk_setup_caps).
	size = min(segs*max(mtu-40, 28)+400, 65536)
	return size, segs
}

const maxUDPPayload = 65507
