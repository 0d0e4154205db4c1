package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/keep"
	"github.com/flannelkit/flannelkit/lease"
)

// defaultCheckEvery keeps 1000 hosts well below the rate that EC2 grants an account.
const defaultCheckEvery = 5 * time.Minute

// Options adjusts the backend. The zero value is right on an EC2 instance with a role.
type Options struct {
	// Region is the AWS region to ask, such as eu-west-1. "" is the one of Config,
	// the environment or the shared configuration file, else the instance's own.
	Region string
	// Config is used instead of what the environment and the shared files say:
	// credentials, HTTP client, endpoint, retryer. It is copied. nil is right for
	// almost everyone. The instance metadata service is asked directly all the
	// same, not by an HTTP client that may use a proxy; but Credentials that ask it
	// do that by whatever client they were made with.
	Config *aws.Config
	// CheckEvery is how long after the last look at the route tables the next one
	// comes, give or take an eighth; what somebody changed in between is put right
	// then. 0 is 5 minutes. Each costs two requests, which count against a limit
	// of the account's.
	CheckEvery time.Duration
}

// New returns a backend.New for networks of type aws-vpc. The one key of the backend's
// part of the configuration is RouteTableID; others are ignored, as flannel does.
//
// Prepare asks the instance metadata service and EC2, and switches the interface's
// source/destination check off if it is on. It fails, before a lease is taken, with an
// error that wraps ErrNotEC2, ErrCredentials, ErrPermission, ErrInterface, ErrRouteTable
// or ErrUnavailable. While EC2 throttles requests, it waits and tries again until ctx
// ends; so does the first Start. Both log a warning as soon as a request has failed that
// is tried again, and when that is for another reason; they give up after some minutes
// at most, if EC2 can't be reached.
//
// Start makes the routes in all tables, or fails, and then takes back those that it
// created. Its MTU is the interface's. From then on the tables are checked now and
// then (Options.CheckEvery). Sync asks EC2 nothing: it takes note of the peers, whose
// routes are their own hosts' business, so that none of theirs is removed. Of others,
// blackholes are removed, and those to this host, which it has had other subnets for.
//
// Close(true) leaves everything as it is; Close(false) deletes the routes to this
// host's subnets that still lead to this instance. It waits for EC2, up to half a
// minute. The source/destination check stays off, since others may rely on it.
//
// The Backend is a backend.Prober. It reports a route that is not there, or leads
// elsewhere, and could not be put right; and, after three checks' time, that EC2
// could not be asked, since routes hold without it.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) { return newVPC(opts, p, usual()) }
}

func newVPC(opts Options, p backend.Params, tune tuning) (*vpc, error) {
	tables, err := parseTables(p.Network.Backend)
	switch {
	case err != nil:
		return nil, err
	case opts.CheckEvery < 0:
		return nil, fmt.Errorf("awsvpc: new: Options.CheckEvery is %v (give a positive time, or 0 for %v)", opts.CheckEvery, defaultCheckEvery)
	case !p.Network.IPv4.Enabled() && !p.Network.IPv6.Enabled():
		return nil, errors.New("awsvpc: new: the network has neither an IPv4 nor an IPv6 range (set Network or IPv6Network)")
	}
	if opts.CheckEvery == 0 {
		opts.CheckEvery = defaultCheckEvery
	}
	v := &vpc{opts: opts, network: p.Network, tables: tables, log: p.Log, tune: tune, touched: make(map[string]bool), placed: make(map[place]string)}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	v.state.idle = errors.New("awsvpc: not started")
	return v, nil
}

// vpc implements backend.Backend and Prober.
type vpc struct {
	opts    Options
	network lease.Network
	tables  []string // of the configuration
	log     *slog.Logger
	tune    tuning
	state   state // has a lock of its own

	cloud  *cloud     // nil before Prepare
	loop   *keep.Loop // nil before the first Start that succeeded
	closed bool

	// These are for rounds, which never overlap, and for Close after the last.
	touched map[string]bool  // IDs of the tables that have, or had, our routes
	placed  map[place]string // routes that were in place once, and to which interface
	off     string           // the interface whose source/destination check was off
	said    string           // the last complaint about routes that nobody needs
}

// Prepare implements backend.Backend. The lease says nothing of the backend.
func (v *vpc) Prepare(ctx context.Context, host backend.Host) (lease.Attrs, error) {
	if err := ctx.Err(); err != nil {
		return lease.Attrs{}, err
	}
	err := v.insist(ctx, func(ctx context.Context) error {
		if err := v.open(ctx); err != nil {
			return err
		}
		n, err := v.cloud.findNIC(ctx, host)
		if err != nil {
			return err
		}
		if n.check {
			if err := v.cloud.checkOff(ctx, n); err != nil {
				return err
			}
			v.log.Info("the source/destination check is switched off", "interface", n.id)
		}
		if v.network.IPv6.Enabled() && !n.ipv6 {
			v.log.Warn("the network has IPv6, but the interface has no IPv6 address in EC2", "interface", n.id,
				"remedy", "give the VPC, its subnets and the interfaces IPv6")
		}
		tables, err := v.cloud.findTables(ctx, v.tables, n)
		if err != nil {
			return err
		}
		_, err = v.usable(tables, n)
		return err
	})
	return lease.Attrs{}, err
}

// open connects to the cloud, once.
func (v *vpc) open(ctx context.Context) (err error) {
	if v.cloud == nil {
		v.cloud, err = openCloud(ctx, v.opts, v.tune, v.log)
	}
	return err
}

// insist calls f again for as long as EC2 throttles requests: when a thousand hosts
// start at once, those who give up and begin anew ask the most. With the ctx that f
// gets, each request that is tried again is logged.
func (v *vpc) insist(ctx context.Context, f func(context.Context) error) error {
	ctx, w := withWaiting(ctx, v.log)
	for pause := v.tune.min; ; pause = min(2*pause, v.tune.max/10) {
		err := f(ctx)
		if err == nil {
			w.over()
		}
		if !errors.Is(err, ErrThrottled) {
			return err
		}
		w.again(actionOf(err), err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("awsvpc: gave up waiting: %w: %w", context.Cause(ctx), err)
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// Start implements backend.Backend.
func (v *vpc) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	before := v.state.aim()
	switch {
	case v.closed:
		return 0, errors.New("awsvpc: start: the backend is closed (make another one)")
	case host.MTU <= 0:
		return 0, fmt.Errorf("awsvpc: start: the MTU of %s is %d (choose an interface that carries packets)", host.Link, host.MTU)
	case len(own.Prefixes()) == 0:
		return 0, errors.New("awsvpc: start: the lease has no subnet")
	case v.loop != nil && own.Key != before.own:
		return 0, fmt.Errorf("awsvpc: start: the subnet was %v and is now %v (close the backend and make another one)", before.own, own.Key)
	}
	aim := aim{host: host, own: own.Key}
	if v.loop == nil {
		err = v.startFirst(ctx, aim)
	} else {
		err = v.startAgain(ctx, aim, before)
	}
	if err != nil {
		return 0, err
	}
	v.log.Info("the VPC routes the subnet to this host", "subnets", own.Prefixes(), "interface", v.state.eni(), "instance", v.cloud.instance, "region", v.cloud.region)
	return host.MTU, nil
}

// startAgain has the loop do a round for what shall be now.
func (v *vpc) startAgain(ctx context.Context, now, before aim) error {
	ctx, w := withWaiting(ctx, v.log)
	if err := v.loop.Now(ctx, func() { v.state.setAim(now) }); err != nil {
		v.state.setAim(before)
		v.loop.Wake() // it goes back to what was
		return err
	}
	w.over()
	return nil
}

// startFirst does the first round by itself, so that nothing tries on after an error.
func (v *vpc) startFirst(ctx context.Context, a aim) error {
	v.state.setAim(a)
	clear(v.placed)
	v.off = ""
	var made, maybe []place
	err := v.insist(ctx, func(ctx context.Context) error {
		if err := v.open(ctx); err != nil {
			return err
		}
		f := v.check(ctx, false)
		made, maybe = append(made, f.made...), append(maybe, f.maybe...)
		return f.err()
	})
	if err != nil {
		return errors.Join(err, v.takeBack(ctx, made, maybe))
	}
	v.state.begin()
	every := v.opts.CheckEvery
	if eighth := every / 8; eighth > 0 {
		every += rand.N(2*eighth) - eighth // hosts that began together do not ask together
	}
	v.loop = keep.Start(keep.Config{Round: v.round, Every: every, MinPause: v.tune.min, MaxPause: v.tune.max, Log: v.log})
	return nil
}

// takeBack removes routes that a Start has made which failed after all, or whose ctx
// has ended; therefore it has little time of its own. Those that it may have made are
// looked at first.
func (v *vpc) takeBack(ctx context.Context, made, maybe []place) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.tune.undo)
	defer cancel()
	var errs []error
	for _, p := range made {
		errs = append(errs, v.cloud.remove(ctx, p.table, p.dest))
	}
	if len(maybe) > 0 {
		errs = append(errs, v.withdraw(ctx, func(p place) bool { return slices.Contains(maybe, p) }))
	}
	return errors.Join(errs...)
}

// Sync implements backend.Backend. It asks EC2 nothing.
func (v *vpc) Sync(ctx context.Context, peers []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.loop == nil || v.closed {
		return errors.New("awsvpc: sync: the backend is not running (call Start first)")
	}
	var subnets []netip.Prefix
	for _, p := range peers {
		subnets = append(subnets, p.Prefixes()...)
	}
	if v.state.setPeers(subnets) {
		v.loop.Wake()
	}
	return nil
}

// Probe implements backend.Prober.
func (v *vpc) Probe() error { return v.state.probe(time.Now(), 3*v.opts.CheckEvery) }

// Close implements backend.Backend.
func (v *vpc) Close(keep bool) error {
	if v.closed {
		return nil
	}
	v.closed = true
	v.state.end(errors.New("awsvpc: closed"))
	if v.loop == nil {
		return nil
	}
	v.loop.Close()
	if keep {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), v.tune.closing, fmt.Errorf("not done within %v", v.tune.closing))
	defer cancel()
	if err := v.withdraw(ctx, func(place) bool { return true }); err != nil {
		return fmt.Errorf("awsvpc: close: routes to this host are left behind: %w", err)
	}
	return nil
}

// withdraw deletes our routes, those chosen, where they still lead to us.
func (v *vpc) withdraw(ctx context.Context, chosen func(place) bool) error {
	var ids []string
	for id := range v.touched {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	tables, err := v.cloud.findTables(ctx, ids, nic{})
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tables {
		for _, dest := range v.state.aim().own.Prefixes() {
			if r, ok := t.route(dest); ok && chosen(place{t.id, dest}) && (r.eni == v.state.eni() || r.instance == v.cloud.instance) {
				errs = append(errs, v.cloud.remove(ctx, t.id, dest))
			}
		}
	}
	return errors.Join(errs...)
}
