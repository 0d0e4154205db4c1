package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// watch looks at everything, every second and when the node has changed, until ctx
// ends. It is the only goroutine that touches the subnet file. Rules and routes are
// kept by one of their own, since the programs behind them may take their time.
func (d *daemon) watch(ctx context.Context, n node) {
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		d.net.keep(ctx, n, d.poke)
	}()
	defer func() { <-kept }()
	t := time.NewTicker(turnEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		d.turn(n)
		select {
		case <-t.C:
		case <-d.change:
		case <-ctx.Done():
		}
	}
}

// turn is one look: it does what is due and tells what it has seen.
func (d *daemon) turn(n node) {
	nodeErr := n.Ready()
	rulesErr := d.net.state()
	// Whoever sees the file starts containers, so the rules come first. Where they
	// can't be had the file comes all the same, as flannel's does.
	fileErr := errors.New(report.WaitsForRules)
	if d.fileDue = d.fileDue || !errors.Is(rulesErr, errNotYet); d.fileDue {
		fileErr = d.file.keep(n, d.o.ipMasq)
	}
	stats := n.Stats()
	d.past.note(stats, time.Now())
	now := look{
		checks: []check{{"node", nodeErr}, {"rules", rulesErr}, {"subnet-file", fileErr}},
		stuck:  d.pulse.check(stats, time.Now()),
	}
	d.health.set(now)
	d.tell(n, now)
}

// tell the service manager and the log what has changed.
func (d *daemon) tell(n node, now look) {
	err := d.health.ready()
	if !d.ready && d.started() == nil {
		d.ready = true
		d.notify.send(systemd.SdNotifyReady)
		d.log.Info("ready")
	} else if err == nil && d.was != "" {
		d.log.Info("ready again")
	}
	why := ""
	if err != nil {
		why = err.Error()
	}
	if why != d.was && why != "" && (d.ready || d.fileDue) { // at the start it is just not there yet
		d.log.Warn("not ready", "why", why)
	}
	d.was = why
	if why != "" {
		d.notify.status("not ready: " + why)
		return
	}
	host := n.Host()
	l := n.Lease()
	d.notify.status(fmt.Sprintf("%s by %s over %s (%s), peers: %d", l.Key.String(), n.Network().BackendType, host.Link, publicOf(l), n.Stats().Lease.Peers))
}

// started returns nil when services that need the network may start: packets can flow
// and the subnet file is there. Rules that can't be had are no reason to keep them
// waiting for ever, and a service manager from giving up on us: /readyz tells of them.
func (d *daemon) started() error {
	return notReady(slices.DeleteFunc(d.health.checks(), func(c check) bool { return c.name == "rules" }))
}
