package tun

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (d *Device) osMTU() (int, error) {
	l, err := d.link()
	if err != nil {
		return 0, fmt.Errorf("tun: MTU of %s: %w", d.name, err)
	}
	return l.Attrs().MTU, nil
}

func (d *Device) osSetMTU(mtu int) error {
	if d.wrapped != nil {
		return fmt.Errorf("tun: set MTU of %s: %w (set it where the wrapped device was made)", d.name, errors.ErrUnsupported)
	}
	if mtu < MinMTU || mtu > MaxMTU {
		return fmt.Errorf("tun: set MTU of %s: %d is out of range (%d to %d)", d.name, mtu, MinMTU, MaxMTU)
	}
	l, err := d.link()
	if err != nil {
		return fmt.Errorf("tun: set MTU of %s: %w", d.name, err)
	}
	if err := d.os.nl.LinkSetMTU(l, mtu); errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("tun: set MTU of %s: %w", d.name, ErrGone)
	} else if err != nil {
		return fmt.Errorf("tun: set MTU of %s to %d: %w", d.name, mtu, err)
	}
	if d.os.fitGSO {
		if err := d.limitGSO(l, mtu); err != nil {
			return fmt.Errorf("tun: set MTU of %s: %w", d.name, err)
		}
	}
	return nil
}

// osWatch subscribes to link messages of the device's namespace.
func (d *Device) osWatch(ctx context.Context) (<-chan Event, error) {
	done := make(chan struct{})
	updates := make(chan netlink.LinkUpdate)
	ns := d.os.ns
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		Namespace:     &ns,
		ListExisting:  true,
		ErrorCallback: func(error) {}, // the closed channel says it
	})
	if err != nil {
		return nil, fmt.Errorf("tun: watch %s: subscribe to link changes: %w", d.name, err)
	}
	out := make(chan Event, 1)
	_, err = d.link() // now that no deletion can be missed
	gone := errors.Is(err, ErrGone)
	go func() {
		defer close(out)
		defer func() {
			close(done)
			for range updates { // the subscription ends only when it is read
			}
		}()
		if gone {
			send(out, Event{Gone: true})
			return
		}
		var last Event
		seen := false
		for {
			select {
			case <-ctx.Done():
				return
			case <-d.quit:
				return
			case u, ok := <-updates:
				if !ok {
					return
				}
				if int(u.Index) != d.os.index {
					continue
				}
				if u.Header.Type == unix.RTM_DELLINK {
					last.Up, last.Gone = false, true
					send(out, last)
					return
				}
				ev := Event{Up: u.Attrs().Flags&net.FlagUp != 0, MTU: u.Attrs().MTU}
				if !seen || ev != last {
					seen, last = true, ev
					send(out, ev)
				}
			}
		}
	}()
	return out, nil
}
