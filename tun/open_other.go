//go:build !linux

package tun

import (
	"context"
	"errors"
	"fmt"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

type osDevice struct{}

func open(cfg Config) (*Device, error) {
	if cfg.Queues > 1 {
		return nil, fmt.Errorf("tun: open %s: %w: %d queues (this system has one queue for each device)", cfg.Name, errors.ErrUnsupported, cfg.Queues)
	}
	if cfg.Persist {
		return nil, fmt.Errorf("tun: open %s: %w: persistent devices", cfg.Name, errors.ErrUnsupported)
	}
	mtu := cfg.MTU
	if mtu == 0 {
		mtu = DefaultMTU
	}
	w, err := wgtun.CreateTUN(cfg.Name, mtu)
	if err != nil {
		return nil, fmt.Errorf("tun: open %s: %w (run with the rights to create network interfaces)", cfg.Name, err)
	}
	d, err := Wrap(w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return d, nil
}

func (d *Device) osMTU() (int, error) { return d.wrapped.MTU() }

func (d *Device) osSetMTU(int) error {
	return fmt.Errorf("tun: set MTU of %s: %w on this system", d.name, errors.ErrUnsupported)
}

func (d *Device) osWatch(context.Context) (<-chan Event, error) { return nil, errors.ErrUnsupported }

func (d *Device) osClose() error { return nil }
