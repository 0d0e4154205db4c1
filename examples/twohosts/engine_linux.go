package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/tun"
)

// This file is a host's process: what flanneld is to flannel, without the
// leases. It opens the device, tells the table who has which subnet, and runs
// one engine on each queue. The device's address and routes are given by
// whoever manages the host's network, here topology_linux.go.

const (
	roleEngine = "twohosts-engine"
	device     = "flannel0"
)

// engineConfig is what the process of one host is told.
type engineConfig struct {
	Host    string // its name, for the log
	Engines int
	MTU     int            // of the device
	Listen  netip.AddrPort // this host on the link
	Local   []netip.Prefix // this host's subnets
	Peer    netip.AddrPort // the other host on the link
	Remote  []netip.Prefix // its subnets
	Verbose bool
}

func roles() traffic.Roles {
	r := traffic.StandardRoles()
	r[roleEngine] = engineRole
	return r
}

// engineRole runs a host's engines until the parent closes the link, and tells
// it their counters whenever it asks.
func engineRole(ctx context.Context, link *traffic.Link) (err error) {
	var c engineConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	dev, err := tun.Open(tun.Config{Name: device, MTU: c.MTU, Queues: c.Engines, FitGSO: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()

	table := encap.NewTable()
	if err := table.Replace(c.Local, []encap.Peer{{Endpoint: c.Peer, Subnets: c.Remote}}); err != nil {
		return err
	}
	engines, err := newEngines(c, dev, table)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		defer cancel() // the parent is done, or gone
		answered <- answer(ctx, link, engines)
	}()
	if err := link.Send("ready", nil); err != nil {
		return err
	}
	if err := runEngines(ctx, engines); err != nil {
		return err
	}
	cancel()
	return <-answered
}

// newEngines makes an engine for each queue of the device. They share the port
// and the table.
func newEngines(c engineConfig, dev *tun.Device, table *encap.Table) (engines []*encap.Engine, err error) {
	defer func() {
		if err != nil {
			for _, e := range engines {
				err = errors.Join(err, e.Close())
			}
		}
	}()
	var log *slog.Logger
	if c.Verbose {
		h := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
		log = slog.New(h).With("host", c.Host)
		log.Info("device is open", "device", dev.Name(), "mtu", c.MTU, "queues", len(dev.Queues()), "listen", c.Listen, "peer", c.Peer)
	}
	for _, queue := range dev.Queues() {
		conn, err := encap.Listen(c.Listen, encap.ListenConfig{ReusePort: c.Engines > 1})
		if err != nil {
			return engines, err
		}
		e, err := encap.New(queue, conn, table, encap.Config{Log: log})
		if err != nil {
			return engines, errors.Join(err, conn.Close())
		}
		engines = append(engines, e)
	}
	return engines, nil
}

// runEngines runs them all until ctx ends or one of them fails.
func runEngines(ctx context.Context, engines []*encap.Engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(engines))
	for _, e := range engines {
		go func() { ended <- e.Run(ctx) }()
	}
	var err error
	for range engines {
		err = errors.Join(err, <-ended)
		cancel()
	}
	return err
}

// answer tells the sum of the engines' counters, again and again.
func answer(ctx context.Context, link *traffic.Link, engines []*encap.Engine) error {
	for {
		if err := link.Next(ctx, "counters", nil); err != nil {
			return err
		}
		var sum encap.Stats
		for _, e := range engines {
			sum = sum.Add(e.Stats())
		}
		if err := link.Send("counters", countersOf(sum)); err != nil {
			return fmt.Errorf("tell counters: %w", err)
		}
	}
}
