package gce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cloud.google.com/go/compute/metadata"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/keep"
	"github.com/flannelkit/flannelkit/lease"
)

// Options adjusts the backend. The zero value is right for almost everyone.
type Options struct {
	// Endpoint is the base URL of the Compute Engine API v1, such as
	// http://localhost:8080/compute/v1/ for an emulator; a URL without a path gets
	// /compute/v1/. "" is what CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE says when the
	// backend is made, else Google's.
	Endpoint string
	// HTTPClient makes the requests to the API and to token servers, through a
	// proxy, say. It must not have a Timeout of less than three minutes, and must
	// not authenticate: the token is put in. nil is a client of the backend's own,
	// with http.ProxyFromEnvironment. The metadata server is never asked through
	// it.
	HTTPClient *http.Client
	// CheckEvery is how often the routes are looked at when nothing has happened,
	// 0 being every 5 minutes, and up to an eighth more or less at random, so that
	// hosts that were started together do not ask together. Each look is two or
	// three requests a host, which count against the project's quota of requests a
	// minute.
	CheckEvery time.Duration
}

// New returns a backend.New for networks of type gce. The backend's part of the
// configuration has no keys but Type; others are ignored, as flannel does. The lease
// says nothing of the backend, not even its type, as flannel has it. The MTU is the
// interface's. It fails if the endpoint is no URL; the system is not touched.
//
// Prepare fails, before a lease is taken, with an error that wraps ErrNotInstance,
// ErrCredentials, ErrPermission, ErrForward or ErrUnavailable. Start and Sync fail
// with those or with ErrQuota. While the API is not available, Prepare, Start and Close
// say so at the first failure, and give up after about a minute for each request; what
// fails later than that is tried again in the background. Where the instance has several network interfaces, the
// routes are made in the network of the one that has the host's address.
//
// The Backend is a backend.Prober.
func New(opts Options) backend.New { return newWithPace(opts, usualPace()) }

// newWithPace is New for tests that can't wait.
func newWithPace(opts Options, p pace) backend.New {
	return func(params backend.Params) (backend.Backend, error) {
		base, err := endpoint(opts.Endpoint)
		switch {
		case err != nil:
			return nil, err
		case opts.CheckEvery < 0:
			return nil, fmt.Errorf("gce: new: Options.CheckEvery is %s (0 is every 5 minutes)", opts.CheckEvery)
		case !params.Network.IPv4.Enabled() && !params.Network.IPv6.Enabled():
			return nil, errors.New("gce: new: the network has neither an IPv4 nor an IPv6 range (set Network or IPv6Network)")
		}
		b := &overlay{network: params.Network, log: params.Log, every: opts.CheckEvery, pace: p, due: make(map[string]time.Time),
			status: errors.New("gce: not started"), made: make(map[string]string),
			placed: make(map[netip.Prefix]bool)}
		if b.log == nil {
			b.log = slog.New(slog.DiscardHandler)
		}
		if b.every == 0 {
			b.every = 5 * time.Minute
		}
		if b.pace.spread == 0 {
			b.pace.spread = b.every
		}
		b.every += rand.N(b.every/4+1) - b.every/8
		client := opts.HTTPClient
		if client == nil {
			own := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
				DialContext:         (&net.Dialer{Timeout: p.dial}).DialContext,
				TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
				// Who waits for an operation learns soon that the connection is dead.
				HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second}}
			client = &http.Client{Transport: own}
			b.idle = append(b.idle, own)
		}
		// The metadata server is on the link, never behind a proxy.
		beside := &http.Transport{IdleConnTimeout: time.Minute}
		b.idle = append(b.idle, beside)
		b.meta = metadata.NewClient(&http.Client{Transport: beside, Timeout: p.metadata})
		b.tokens = &tokens{http: client, meta: b.meta, limit: p.call}
		b.api = &api{base: base, http: client, tokens: b.tokens, pace: p}
		b.project = &project{api: b.api}
		return b, nil
	}
}

// overlay implements backend.Backend and Prober.
type overlay struct {
	network lease.Network
	log     *slog.Logger
	every   time.Duration
	pace    pace
	idle    []*http.Transport // of our own
	meta    *metadata.Client
	tokens  *tokens
	api     *api

	// These belong to the round under way, or to the caller while there is no loop.
	project *project
	made    map[string]string     // the ids of routes that this process made, by name
	was     place                 // where the last round was
	placed  map[netip.Prefix]bool // the own routes that have been right there
	due     map[string]time.Time  // when stale routes that were seen are to be removed

	loop *keep.Loop // nil before Start; the round under way reads it with mu

	mu     sync.Mutex // guards what follows
	status error      // before and after the loop
	host   backend.Host
	at     place
	own    []netip.Prefix
	peers  []netip.Prefix
	known  bool      // peers are
	former bool      // a route of a former subnet of ours was left, since peers were not known
	next   time.Time // when the first of the stale routes is due; zero if there is none
	timer  *time.Timer
	closed bool
}

// Prepare implements backend.Backend. The lease says nothing of the backend.
func (b *overlay) Prepare(ctx context.Context, host backend.Host) (lease.Attrs, error) {
	at, err := b.locate(telling(ctx, b.log), host)
	if err != nil {
		return lease.Attrs{}, fmt.Errorf("gce: prepare: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at, b.host = at, host
	return lease.Attrs{}, nil
}

// Start implements backend.Backend. It waits until the route is made.
func (b *overlay) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	ctx = telling(ctx, b.log)
	b.mu.Lock()
	at, old, before, closed := b.at, b.host, b.own, b.closed
	b.mu.Unlock()
	was := at
	prefixes := own.Prefixes()
	switch {
	case closed:
		return 0, errors.New("gce: start: the backend is closed (make another one)")
	case host.MTU <= 0:
		return 0, fmt.Errorf("gce: start: the MTU of %s is %d (choose an interface that carries packets)", host.Link, host.MTU)
	case len(prefixes) == 0:
		return 0, errors.New("gce: start: the lease has no subnet (acquire one first)")
	case b.loop != nil && !slices.Equal(before, prefixes):
		return 0, fmt.Errorf("gce: start: the subnet was %v and is now %v (close the backend and make another one)", before, prefixes)
	}
	if at.instance == "" || old.Addr4 != host.Addr4 || old.Addr6 != host.Addr6 {
		if at, err = b.locate(ctx, host); err != nil {
			return 0, fmt.Errorf("gce: start: %w", err)
		}
	}
	if b.loop == nil {
		err = b.begin(ctx, host, at, prefixes)
	} else if err = b.loop.Now(ctx, func() { b.set(host, at, prefixes) }); err != nil {
		b.set(old, was, before)
		b.loop.Wake() // what was in force is put back
	}
	if err != nil {
		return 0, fmt.Errorf("gce: start: %w", err)
	}
	b.log.Info("the VPC network carries packets", "network", lastPart(at.network), "instance", lastPart(at.instance),
		"project", at.project, "subnets", prefixes, "mtu", host.MTU, "interface", host.Link)
	return host.MTU, nil
}

// begin is the first Start, or another try of it. The loop is begun only when the first
// round has succeeded: else nothing shall be tried again.
func (b *overlay) begin(ctx context.Context, host backend.Host, at place, own []netip.Prefix) error {
	b.set(host, at, own)
	if _, err := b.round(ctx); err != nil { // whatever it has done is new
		b.undo(ctx)
		return err
	}
	loop := keep.Start(keep.Config{Round: b.round, Every: b.every, MinPause: b.pace.repair, MaxPause: 300 * b.pace.repair, Log: b.log})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loop = loop
	b.arm()
	return nil
}

// set says what the next round is to make true.
func (b *overlay) set(host backend.Host, at place, own []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.host, b.at, b.own = host, at, own
}

// undo removes what a first Start that failed has made. If the caller's patience has
// ended it is left to Close.
func (b *overlay) undo(ctx context.Context) {
	for name := range b.made {
		if ctx.Err() != nil {
			return
		}
		if err := b.project.delete(ctx, name); err != nil {
			b.log.Warn("a route of a start that failed is left", "route", name, "err", err)
		}
		delete(b.made, name)
	}
}

// Sync implements backend.Backend. Each host makes its own route only, so there is
// nothing to do for peers, and nothing is asked of the API: a route that a peer leaves
// behind is seen at the next look. Only the first Sync may have one come soon. The
// error is that of the last look at the routes.
func (b *overlay) Sync(ctx context.Context, peers []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.loop == nil || b.isClosed() {
		return errors.New("gce: sync: the backend is not running (call Start first)")
	}
	var all []netip.Prefix
	for _, p := range peers {
		all = append(all, p.Prefixes()...)
	}
	b.mu.Lock()
	first := !b.known
	b.peers, b.known = all, true
	if first && b.former {
		b.loop.Wake()
	}
	if first {
		b.arm()
	}
	b.mu.Unlock()
	if err := b.loop.Err(); err != nil {
		return fmt.Errorf("gce: sync: %w", err)
	}
	return nil
}

// Close implements backend.Backend. keep leaves this host's routes: they lead here
// while nobody forwards, and a successor finds them right. Otherwise they are
// deleted, unless they lead to another instance by now; that takes 50 seconds at most,
// after which the error says what may be left.
func (b *overlay) Close(keep bool) error {
	if b.loop != nil {
		b.loop.Close()
	}
	b.mu.Lock()
	closed, own, at := b.closed, b.own, b.at
	b.closed, b.status = true, errors.New("gce: closed")
	b.arm() // nothing any more
	b.mu.Unlock()
	if closed {
		return nil
	}
	defer func() {
		for _, t := range b.idle {
			t.CloseIdleConnections()
		}
	}()
	if keep || len(own) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(telling(context.Background(), b.log), b.pace.end)
	defer cancel()
	b.project.settleLeft(ctx)
	var errs []error
	for _, p := range own {
		errs = append(errs, b.remove(ctx, at, routeName(p)), b.remove(ctx, at, nextName(p)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("gce: close: %w", err)
	}
	return nil
}

// Probe implements backend.Prober: the error of the last look at the routes, which may
// be CheckEvery old.
func (b *overlay) Probe() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *overlay) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}
