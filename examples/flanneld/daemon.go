package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

const (
	// closeLimit is how long the end of the daemon waits for its parts. They need
	// some milliseconds; what is stuck ends with the process.
	closeLimit = 700 * time.Millisecond
	// cleanupLimit is the same for -cleanup-on-exit. Routes in a cloud's table take up
	// to a minute to be removed; systemd waits 90 seconds.
	cleanupLimit = 75 * time.Second
)

// errSignal is the cause of a context that SIGTERM or SIGINT has ended.
var errSignal = errors.New("told to end by a signal")

// A daemon is flanneld from the command line to its end. Its life:
//
//  1. Everything that can be wrong with the options is found (parseOptions,
//     candidates) before anything is touched.
//  2. The HTTP server and the watchdog start, so that waiting can be watched.
//  3. choose waits until etcd has the network's configuration.
//  4. join takes a lease and starts the backend: packets flow.
//  5. watch keeps rules, routes and the subnet file in place, and tells everybody
//     how things are, until a signal comes or the node ends.
type daemon struct {
	o      *options
	log    *slog.Logger
	notify *notifier
	health *health
	file   *subnetFile
	net    keeper // of rules and routes
	change chan struct{}
	node   atomic.Pointer[node]
	began  time.Time
	past   history

	ending chan struct{}         // closed when the node has ended by itself
	lost   atomic.Pointer[error] // why

	// Of watch's goroutine only.
	pulse   pulse
	was     string // why it was not ready, when last said
	fileDue bool   // the rules are made, or can't be
	ready   bool   // READY=1 was sent

	// Tests replace these.
	open   func(*options, *slog.Logger) ([]candidate, error)
	joiner func(context.Context, lease.Store) (node, error)
}

// A keeper keeps something in place until ctx ends, calls made when there is news, and
// tells what is amiss. state and status do not wait.
type keeper interface {
	keep(ctx context.Context, n node, made func())
	state() error
	status() masq.Status
}

func newDaemon(o *options, log *slog.Logger, clean func(string) string) *daemon {
	d := &daemon{
		o: o, log: log, health: newHealth(), change: make(chan struct{}, 1), ending: make(chan struct{}),
		file: newSubnetFile(o.subnetFile, log), net: newHostNetwork(o, log),
		notify: newNotifier(clean, log), began: time.Now(), open: candidates,
	}
	d.joiner = d.join
	return d
}

// run is the daemon's life. It returns nil after a signal, else why it can't go on.
func (d *daemon) run(ctx context.Context) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	defer d.notify.close()
	for _, w := range d.o.warnings {
		d.log.Warn(w)
	}
	stores, err := d.open(d.o, d.log)
	if err != nil {
		return err
	}
	endServer, err := serve(ctx, d.o, handler(d.health, newRegistry(d.source()), d.notify.clean), d.log)
	if err != nil {
		closeStores(stores)
		return err
	}
	defer endServer()
	defer d.answerStatus()()
	defer startWatchdog(d.notify, d.health.healthy, d.log)()

	// Apart from this goroutine, which ends in time even when something is stuck.
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx, stores) }()
	select {
	case err = <-ended:
	case <-d.ending:
		err = d.await(ended)
	case <-ctx.Done():
		d.notify.send(systemd.SdNotifyStopping)
		d.notify.status("ending")
		d.health.finish(errors.New("the daemon ends"))
		err = d.await(ended)
	}
	if ctx.Err() != nil {
		if err != nil && !errors.Is(err, errSignal) {
			d.log.Warn("did not end well", "err", err)
		}
		d.log.Info("ended", "why", context.Cause(ctx))
		return nil
	}
	d.notify.status(err.Error())
	return err
}

// await waits for the end of live, for a limited time.
func (d *daemon) await(ended <-chan error) error {
	limit := closeLimit
	if d.o.cleanupOnExit {
		limit = cleanupLimit
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(limit):
		d.log.Warn("some part of the daemon is stuck; the system removes what it holds", "waited", limit)
		if lost := d.lost.Load(); lost != nil {
			return *lost
		}
		return nil
	}
}

// live is steps 3 to 5.
func (d *daemon) live(ctx context.Context, stores []candidate) error {
	d.log.Info("flanneld starts", "version", version(), "etcd", d.o.endpoints, "prefix", d.o.prefix)
	d.notify.status("looking for the network's configuration in etcd")
	store, err := choose(ctx, stores, d.log, func(why error) {
		d.health.waiting(fmt.Errorf("waiting for etcd: %w", why))
		d.notify.status("waiting for etcd: " + why.Error())
	})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }() // the leases stay, and nothing is under way
	d.health.waiting(errors.New("joining the network"))
	d.notify.status("joining the network")
	n, err := d.joiner(ctx, store)
	if err != nil {
		return err
	}
	d.node.Store(&n)
	host := n.Host()
	d.log.Info("joined", "subnet", n.Lease().Key.String(), "interface", host.Link, "public", publicOf(n.Lease()), "backend", n.Network().BackendType, "mtu", n.MTU())
	return d.serveNode(ctx, n)
}

// serveNode watches the node to its end, or to ctx's.
func (d *daemon) serveNode(ctx context.Context, n node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watched sync.WaitGroup
	watched.Go(func() { d.watch(ctx, n) })
	var err error
	select {
	case <-ctx.Done():
	case <-n.Done():
		err = lostErr(n)
		d.health.finish(err)
		d.lost.Store(&err)
		close(d.ending) // run does not wait for us for ever
	}
	cancel()
	closeErr := n.Close()
	watched.Wait()
	if d.o.cleanupOnExit {
		closeErr = errors.Join(closeErr, cleanHost(d.o, d.log, func(subnetenv.File) error { return nil })) // watch has removed the rules
	}
	if err != nil && closeErr != nil {
		d.log.Warn("did not end well", "err", closeErr)
		return err
	}
	return errors.Join(err, closeErr)
}

// poke has watch look. It never blocks.
func (d *daemon) poke() {
	select {
	case d.change <- struct{}{}:
	default:
	}
}

// source is what the metrics are read from.
func (d *daemon) source() gauged {
	return gauged{health: d.health, file: d.file, node: func() node {
		if n := d.node.Load(); n != nil {
			return *n
		}
		return nil
	}}
}

func closeStores(all []candidate) {
	for _, c := range all {
		_ = c.store.Close() // it has not served yet
	}
}

// untilSignal returns a context that the first SIGTERM or SIGINT ends. The second one
// ends the process at once, as if nobody handled it.
func untilSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, os.Interrupt)
	quit := make(chan struct{})
	go func() {
		select {
		case s := <-c:
			signal.Reset(syscall.SIGTERM, os.Interrupt)
			cancel(fmt.Errorf("%w (%v)", errSignal, s))
		case <-quit:
			signal.Stop(c)
		}
	}()
	return ctx, func() {
		close(quit)
		cancel(nil)
	}
}
