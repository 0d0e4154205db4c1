package tun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
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

// watchAgain is how long to wait before a broken subscription is renewed.
const watchAgain = 100 * time.Millisecond

// osWatch subscribes to link messages of the device's namespace. A subscription
// breaks when more messages come than its socket holds; then it is renewed, and
// begins with the state of the time.
func (d *Device) osWatch(ctx context.Context) (<-chan Event, error) {
	updates, end, err := d.subscribe()
	if err != nil {
		return nil, err
	}
	w := &watcher{d: d, out: make(chan Event, 1)}
	_, err = d.link() // now that no deletion can be missed
	gone := errors.Is(err, ErrGone)
	go func() {
		defer close(w.out)
		for {
			over := gone || w.follow(ctx, updates)
			end()
			if gone {
				send(w.out, Event{Gone: true})
			}
			for !over {
				select {
				case <-ctx.Done():
					return
				case <-d.quit:
					return
				case <-time.After(watchAgain):
				}
				if updates, end, err = d.subscribe(); err == nil {
					break
				}
			}
			if over {
				return
			}
		}
	}()
	return w.out, nil
}

// subscribe starts a subscription; end ends it and waits for its goroutine.
func (d *Device) subscribe() (updates chan netlink.LinkUpdate, end func(), err error) {
	done := make(chan struct{})
	updates = make(chan netlink.LinkUpdate)
	opts := netlink.LinkSubscribeOptions{
		ListExisting:  true,
		ErrorCallback: func(error) {}, // the closed channel says it
	}
	// To enter a namespace takes CAP_SYS_ADMIN, even for a thread that is in it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return nil, nil, fmt.Errorf("tun: watch %s: network namespace: %w", d.name, err)
	}
	defer home.Close()
	if ns := d.os.ns; !home.Equal(ns) {
		opts.Namespace = &ns
	}
	err = netlink.LinkSubscribeWithOptions(updates, done, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("tun: watch %s: subscribe to link changes: %w", d.name, err)
	}
	return updates, func() {
		close(done)
		for range updates { // the subscription ends only when it is read
		}
	}, nil
}

// watcher is one Watch.
type watcher struct {
	d    *Device
	out  chan Event
	last Event
	seen bool
}

// follow sends events until the watch is over, which it returns, or the
// subscription broke.
func (w *watcher) follow(ctx context.Context, updates chan netlink.LinkUpdate) (over bool) {
	for {
		select {
		case <-ctx.Done():
			return true
		case <-w.d.quit:
			return true
		case u, ok := <-updates:
			switch {
			case !ok:
				return false
			case int(u.Index) != w.d.os.index:
				continue
			case u.Header.Type == unix.RTM_DELLINK:
				w.last.Up, w.last.Gone = false, true
				send(w.out, w.last)
				return true
			}
			ev := Event{Up: u.Attrs().Flags&net.FlagUp != 0, MTU: u.Attrs().MTU}
			if !w.seen || ev != w.last {
				w.seen, w.last = true, ev
				send(w.out, ev)
			}
		}
	}
}
