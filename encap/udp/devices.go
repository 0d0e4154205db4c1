package udp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// devices makes the device and looks after it: there is at most one at a time. The
// kernel's are in kernel_linux.go; wrapped are those of Options.Open.
type devices interface {
	// open makes the device, or takes over what a predecessor has left.
	open(p plan) (*tun.Device, error)
	// lost reports whether somebody deleted the device.
	lost() bool
	// settle gives the device its MTU, addresses and routes, sets it up, and
	// returns what was missing of that. It does as much as it can.
	settle(p plan) (done []string, err error)
	// prune removes the routes of another backend, which go before ours.
	prune(area netstate.Area) error
	// drop closes the device. Its engines have ended.
	drop(how fate) error
	// watch calls changed, until close, after every change of what settle
	// makes.
	watch(routes []netip.Prefix, changed func()) error
	// notForwarding names kernel variables that keep containers' packets from
	// being forwarded.
	notForwarding(p plan) []string
	// close releases everything else.
	close() error
}

// fate is what becomes of a device that is dropped.
type fate int

const (
	remove  fate = iota // it disappears
	leave               // it stays for a successor
	asFound             // it stays if it was there before this process
)

// wrapped is a device of Options.Open. Nothing of it is in the kernel.
type wrapped struct {
	make func(own lease.Lease, mtu int) (*tun.Device, error)
	own  lease.Lease
	log  *slog.Logger
	dev  *tun.Device
	mtu  int // that it has
}

func (w *wrapped) open(p plan) (*tun.Device, error) {
	dev, err := w.make(w.own, p.mtu)
	if err != nil {
		return nil, fmt.Errorf("Options.Open: %w", err)
	}
	if dev == nil {
		return nil, errors.New("Options.Open returned no device and no error")
	}
	w.dev, w.mtu = dev, p.mtu
	return dev, nil
}

func (w *wrapped) lost() bool { return false } // its engine notices

// settle tells the device of a new MTU. Most can't change it: larger packets are then
// fragmented outside, on the way.
func (w *wrapped) settle(p plan) (done []string, err error) {
	if w.mtu == p.mtu {
		return nil, nil
	}
	if err := w.dev.SetMTU(p.mtu); err != nil {
		w.log.Warn("the device keeps its MTU", "device", w.dev.Name(), "mtu", w.mtu, "wanted", p.mtu, "err", err)
	}
	w.mtu = p.mtu
	return nil, nil
}

func (w *wrapped) drop(fate) error {
	dev := w.dev
	w.dev = nil
	return dev.Close()
}

func (w *wrapped) watch([]netip.Prefix, func()) error { return nil }

func (w *wrapped) prune(netstate.Area) error { return nil }

func (w *wrapped) notForwarding(plan) []string { return nil }

func (w *wrapped) close() error { return nil }
