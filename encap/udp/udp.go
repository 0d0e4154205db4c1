// Package udp is flannel's udp backend: a TUN device with an address and a route
// to the network, and engines (package encap) that carry what is routed there to
// the peers, as the payload of UDP datagrams. Any flannel with the udp backend can
// be the peer.
//
// Unlike flannel's it looks after what it made: a device that was deleted is made
// anew, one that was set down is set up again, and an address, a route or an MTU
// that somebody took away or changed is put back, within about two seconds.
//
// On Linux it needs CAP_NET_ADMIN and /dev/net/tun; CAP_NET_RAW for ICMP errors
// that reach every sender. Elsewhere, and without any privilege, Options.Open
// supplies the device.
package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netns"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/tun"
)

// Options adjusts the backend. The zero value is right for almost everyone.
type Options struct {
	// Device is the name of the TUN device, at most 15 bytes; it may contain
	// one %d, for the first free number. "" is flannel%d. A persistent device
	// of that name that no process uses is taken over; so is, where there is
	// a %d, the one that has this host's address or the network's route.
	Device string
	// Persist leaves the device, with its address and route, when Close is
	// called with keep or the process dies: until a successor takes it over
	// packets for the network are dropped, instead of following the default
	// route unencapsulated. Not together with Open.
	Persist bool
	// Engines is how many engines share the load, each with a thread, a queue
	// of the device and a socket. 0 is half the CPUs, at least 1 and at most
	// 4. A device of Open has as many as it has queues.
	Engines int
	// Encap adjusts the engines. Where its Log is nil they get the backend's.
	Encap encap.Config
	// Open makes the device instead of the kernel, for this host's lease and
	// an inner MTU in bytes: gVisor's netstack, for example, by tun.Wrap. Its
	// addresses and routes are the caller's business, nothing is done with the
	// kernel's. The
	// backend closes the device. Open is called again if the device fails.
	// nil is a TUN device of the kernel, on Linux only.
	Open func(own lease.Lease, mtu int) (*tun.Device, error)
}

// New returns a backend.New for networks of type udp. The backend's part of the
// configuration is {"Type":"udp","Port":8285}: Port, from 1 to 65535, is the UDP
// port of all hosts, encap.DefaultPort where it is left out. Other keys are ignored,
// as flannel does.
//
// The Backend is a backend.Counter and a backend.Prober. It stays in the network
// namespace of the thread that called Start first. Start fails with an error that
// wraps errors.ErrUnsupported where there is neither Linux nor Options.Open.
//
// Where this host and a peer both have an IPv4 address, datagrams travel over that,
// otherwise over IPv6. The MTU is the interface's less 28 bytes for IPv4, or less 48
// if this host has IPv6 only.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		port, err := parsePort(p.Network.Backend)
		if err != nil {
			return nil, err
		}
		switch {
		case opts.Engines < 0 || opts.Engines > tun.MaxQueues:
			return nil, fmt.Errorf("udp: new: Options.Engines is %d (1 to %d, or 0 for a number by CPUs)", opts.Engines, tun.MaxQueues)
		case !p.Network.IPv4.Enabled() && !p.Network.IPv6.Enabled():
			return nil, errors.New("udp: new: the network has neither an IPv4 nor an IPv6 range (set Network or IPv6Network)")
		}
		if opts.Device == "" {
			opts.Device = "flannel%d"
		}
		if opts.Engines == 0 {
			opts.Engines = min(max(runtime.NumCPU()/2, 1), 4)
		}
		o := &overlay{opts: opts, network: p.Network, underlay: p.Underlay, port: port, log: p.Log, table: encap.NewTable(), kick: make(chan struct{}, 1)}
		if o.log == nil {
			o.log = slog.New(slog.DiscardHandler)
		}
		o.chooser = peerset.Chooser{Backend: "udp", Types: []string{"", "udp"}, Network: p.Network, Tunnel: true, Log: o.log}
		if o.opts.Encap.Log == nil {
			o.opts.Encap.Log = o.log
		}
		o.status.err = errors.New("udp: not started")
		return o, nil
	}
}

// overlay implements backend.Backend, Counter and Prober.
type overlay struct {
	opts     Options
	network  lease.Network
	underlay func(backend.Host) []netip.Prefix // nil: not known
	port     uint16
	log      *slog.Logger
	table    *encap.Table
	kick     chan struct{} // wakes the keeper; one is enough
	status   status        // has a lock of its own

	mu      sync.Mutex // guards what follows, against the keeper
	started bool
	closed  bool
	key     lease.Key // this host's subnets
	plan    plan      // in force since the last Start that succeeded
	ns      netns.NS
	devices devices
	dev     *tun.Device // nil while there is none
	group   *group      // nil while there is no device
	leases  []lease.Lease
	chooser peerset.Chooser
	rounds  int // rounds that had to put something right
	stop    context.CancelFunc
	keeper  sync.WaitGroup
}

// Prepare implements backend.Backend. The lease says nothing of the backend, not
// even its type: that is how flannel's udp backend has it.
func (o *overlay) Prepare(ctx context.Context, _ backend.Host) (lease.Attrs, error) {
	return lease.Attrs{}, ctx.Err()
}

// Start implements backend.Backend.
func (o *overlay) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p, err := newPlan(o.network, o.port, host, own)
	if err != nil {
		return 0, err
	}
	p.host = host
	o.lookAround(&p)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return 0, errors.New("udp: start: the backend is closed (make another one)")
	case !o.started:
		err = o.startFirst(p, own)
	default:
		err = o.startAgain(p, own)
	}
	if err != nil {
		return 0, fmt.Errorf("udp: start: %w", err)
	}
	o.log.Info("carrying packets", "device", o.dev.Name(), "mtu", p.mtu, "listen", o.plan.listen,
		"subnets", p.local, "engines", len(o.group.engines), "interface", host.Link)
	return p.mtu, nil
}

// startFirst makes everything, or nothing.
func (o *overlay) startFirst(p plan, own lease.Lease) (err error) {
	if o.ns, err = netns.Current(); err != nil {
		return err
	}
	o.devices = &wrapped{make: o.opts.Open, own: own, log: o.log}
	if o.opts.Open == nil {
		if o.devices, err = newKernelDevices(o.opts, o.log); err != nil {
			return errors.Join(err, o.ns.Close())
		}
	}
	defer func() {
		if err != nil {
			o.stopGroup()
			err = errors.Join(err, o.dropDevice(asFound), o.devices.close(), o.ns.Close())
			o.devices, o.plan = nil, plan{}
			o.status.set(fmt.Errorf("udp: not started: %w", err))
		}
	}()
	if err := o.table.Replace(p.local, nil); err != nil {
		return err
	}
	if _, err := o.converge(p, true); err != nil {
		return err
	}
	if err := o.devices.watch(p.routes, o.wake); err != nil {
		return err
	}
	for _, key := range o.devices.notForwarding(p) {
		o.log.Warn("the kernel does not forward packets: containers will not reach other hosts", "remedy", "sysctl -w "+key+"=1")
	}
	o.plan, o.key, o.started = p, own.Key, true
	ctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	o.keeper.Go(func() { o.keep(ctx) })
	o.status.set(nil)
	o.wake() // in case something was changed before the watch began
	return nil
}

// startAgain moves to another address or MTU. After an error the old ones stay in
// force.
func (o *overlay) startAgain(p plan, own lease.Lease) error {
	if own.Key != o.key {
		return fmt.Errorf("the subnet was %v and is now %v (close the backend and make another one)", o.key, own.Key)
	}
	peers, mixed, _ := o.choose(o.leases, p)
	if mixed {
		p.listen = p.everywhere()
	}
	if _, err := o.converge(p, true); err != nil {
		o.wake() // the keeper undoes what was changed
		return err
	}
	o.plan = p
	o.status.set(nil)
	return o.table.Replace(p.local, peers)
}

// Sync implements backend.Backend.
func (o *overlay) Sync(ctx context.Context, peers []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.started || o.closed {
		return errors.New("udp: sync: the backend is not running (call Start first)")
	}
	o.leases = slices.Clone(peers)
	o.lookAround(&o.plan)
	usable, mixed, notes := o.choose(o.leases, o.plan)
	var errs []error
	if err := o.table.Replace(o.plan.local, usable); err != nil {
		errs = append(errs, fmt.Errorf("udp: sync: %w", err))
	}
	errs = append(errs, o.chooser.Say(notes))
	if mixed {
		// From now on, until the next Start: peers come and go.
		o.plan.listen = o.plan.everywhere()
	}
	if err := errors.Join(o.round(), o.prune()); err != nil {
		o.wake() // the keeper tries again
		errs = append(errs, fmt.Errorf("udp: sync: %w", err))
	}
	return errors.Join(errs...)
}

// lookAround notes what the host's own network uses at present.
func (o *overlay) lookAround(p *plan) {
	if o.underlay != nil {
		p.self.Underlay = o.underlay(p.host)
	}
}

// prune removes routes of other backends.
func (o *overlay) prune() error {
	area := netstate.AreaOf(o.network, o.key)
	return o.ns.Do(func() error { return o.devices.prune(area) })
}

// Close implements backend.Backend.
func (o *overlay) Close(keep bool) error {
	if o.stop != nil {
		o.stop()
		o.keeper.Wait()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	o.status.set(errors.New("udp: closed"))
	if !o.started {
		return nil
	}
	how := remove
	if keep && o.opts.Persist {
		how = leave
	}
	o.stopGroup()
	if err := errors.Join(o.dropDevice(how), o.devices.close(), o.ns.Close()); err != nil {
		return fmt.Errorf("udp: close: %w", err)
	}
	return nil
}

// Stats implements backend.Counter.
func (o *overlay) Stats() encap.Stats { return o.status.stats() }

// Probe implements backend.Prober.
func (o *overlay) Probe() error { return o.status.probe() }
