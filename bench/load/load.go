package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

const (
	roleRRServer      = "load-rr-server"
	roleRRClient      = "load-rr-client"
	roleConnectServer = "load-connect-server"
	roleConnectClient = "load-connect-client"
)

const (
	// DefaultTimeout is how long one transaction may take.
	DefaultTimeout = 5 * time.Second
	// MaxSize is the largest request, in bytes. It fits the buffers of a connection whatever their size, so that two
	// ends which both send first and read then cannot wait for each other.
	MaxSize = 16 << 10
	// MaxConnections is the most connections of one test.
	MaxConnections = 1024
)

// Roles returns a new map with the roles that [RR] and [Connects] start. The program must pass them to traffic.RunRole
// first thing in its main function, together with all its other roles.
func Roles() traffic.Roles {
	return traffic.Roles{
		roleRRServer:      rrServerRole,
		roleRRClient:      rrClientRole,
		roleConnectServer: connectServerRole,
		roleConnectClient: connectClientRole,
	}
}

// RRConfig describes a test of requests and replies. Only Addr and Duration are required.
type RRConfig struct {
	Addr   netip.Addr // the server's address
	Source netip.Addr // the client's address; the zero value leaves it to the kernel

	Connections int           // at the same time, one transaction at a time on each; 0 means 1, at most MaxConnections
	Size        int           // bytes of a request and of a reply; 0 means 1, at most MaxSize
	Warmup      time.Duration // transactions before the window opens; not counted
	Duration    time.Duration // the window
	Timeout     time.Duration // without a reply, for the test to fail, and for the connections to be made; 0 means DefaultTimeout

	// OnOpen and OnClose are called as the window opens and closes, to read counters. They must be quick.
	OnOpen, OnClose func()
}

// RRResult is what the client measured in the window.
type RRResult struct {
	Transactions uint64  `json:"transactions"` // on all connections together
	PerSecond    float64 `json:"per_second"`
	// Latency is from just before the request is written until the reply has been read. With several connections it
	// includes the time that a reply waits while the client handles another one: all are handled by one thread.
	Latency Latency `json:"latency"`
}

// RR sends requests from one place to another and back again. The client and the server are two new processes. It fails
// when the connections cannot be made, when a connection breaks, and when a transaction takes longer than the timeout:
// the path lost it for good. When ctx ends first, both processes are stopped and its error is returned.
func RR(ctx context.Context, from, to traffic.Place, config RRConfig) (RRResult, error) {
	c := params{
		Addr: config.Addr, Source: config.Source, Connections: max(config.Connections, 1), Size: max(config.Size, 1),
		Warmup: config.Warmup, Duration: config.Duration, Timeout: config.Timeout,
	}
	t := test{name: "rr", server: roleRRServer, client: roleRRClient, params: c, open: config.OnOpen, close: config.OnClose}
	l, err := t.run(ctx, from, to)
	return RRResult{l.Count, perSecond(l, config.Duration), l}, err
}

// ConnectConfig describes a test of new connections. Only Addr and Duration are required.
type ConnectConfig struct {
	Addr   netip.Addr // the server's address
	Source netip.Addr // the client's address; the zero value leaves it to the kernel

	Warmup   time.Duration // connections before the window opens; not counted
	Duration time.Duration // the window
	Timeout  time.Duration // of one connection, for the test to fail; 0 means DefaultTimeout

	// OnOpen and OnClose are called as the window opens and closes, to read counters. They must be quick.
	OnOpen, OnClose func()
}

// ConnectResult is what the client measured in the window.
type ConnectResult struct {
	Connections uint64  `json:"connections"`
	PerSecond   float64 `json:"per_second"` // making the socket and closing it included
	// Latency is from the connect call until the reply has been read: two round trips and the server's accept.
	Latency Latency `json:"latency"`
}

// Connects makes TCP connections from one place to another, one after the other: connect, send a byte, read a byte,
// close. It fails at the first connection that cannot be made or does not answer within the timeout. When ctx ends
// first, both processes are stopped and its error is returned.
//
// The client closes by a reset (SO_LINGER with zero seconds, socket(7)). An ordinary end would leave each port in
// TIME-WAIT for a minute (RFC 9293 section 3.6.1), so that the ports of an address, 28,232 by default, would be used up
// within seconds; a reset leaves nothing behind on either side. The window thus has one packet per connection, the
// reset, in place of the three or four of an ordinary end.
func Connects(ctx context.Context, from, to traffic.Place, config ConnectConfig) (ConnectResult, error) {
	c := params{
		Addr: config.Addr, Source: config.Source, Connections: 1, Size: 1,
		Warmup: config.Warmup, Duration: config.Duration, Timeout: config.Timeout,
	}
	t := test{name: "connects", server: roleConnectServer, client: roleConnectClient, params: c, open: config.OnOpen, close: config.OnClose}
	l, err := t.run(ctx, from, to)
	return ConnectResult{l.Count, perSecond(l, config.Duration), l}, err
}

func perSecond(l Latency, window time.Duration) float64 {
	if l.Count == 0 {
		return 0
	}
	return float64(l.Count) / window.Seconds()
}

// params are what both ends are told. The client gets them with the server's port.
type params struct {
	Addr, Source              netip.Addr
	Port                      uint16
	Connections, Size         int
	Warmup, Duration, Timeout time.Duration
}

func (p params) check() error {
	switch {
	case !p.Addr.IsValid():
		return errors.New("no address")
	case p.Duration <= 0:
		return errors.New("no duration")
	case p.Connections > MaxConnections:
		return fmt.Errorf("%d connections (at most %d)", p.Connections, MaxConnections)
	case p.Size > MaxSize:
		return fmt.Errorf("requests of %d bytes (at most %d)", p.Size, MaxSize)
	}
	return nil
}

// listening is the server's first message.
type listening struct {
	Port uint16 `json:"port"`
}

// A test is one run of a client and a server.
type test struct {
	params
	name           string
	server, client string // roles
	open, close    func()
}

func (t test) run(ctx context.Context, from, to traffic.Place) (l Latency, err error) {
	if err := t.check(); err != nil {
		return l, fmt.Errorf("load: %s: %w", t.name, err)
	}
	if t.Timeout <= 0 {
		t.Timeout = DefaultTimeout
	}
	server, err := traffic.Start(to, t.server, t.params)
	if err != nil {
		return l, err
	}
	defer func() { err = ended(ctx, err, server) }()
	var at listening
	if err := server.Next(ctx, "listening", &at); err != nil {
		return l, err
	}
	t.Port = at.Port
	client, err := traffic.Start(from, t.client, t.params)
	if err != nil {
		return l, err
	}
	defer func() { err = ended(ctx, err, client) }()
	for _, step := range []struct {
		kind string
		call func()
	}{{"open", t.open}, {"close", t.close}} {
		if err := client.Next(ctx, step.kind, nil); err != nil {
			return l, err
		}
		if step.call != nil {
			step.call()
		}
	}
	var got Latency // only whole
	if err := client.Next(ctx, "result", &got); err != nil {
		return l, err
	}
	if got.Count == 0 {
		return l, fmt.Errorf("load: %s to %v: no transaction began within the window of %v (a longer one helps)", t.name, t.Addr, t.Duration)
	}
	return got, nil
}

// ended ends a child and adds its own reason to what went wrong before: a server that died explains why the client's
// connection broke. Whoever cancelled needs no further reasons.
func ended(ctx context.Context, err error, p *traffic.Proc) error {
	end := p.Close()
	if err != nil && ctx.Err() != nil {
		return err
	}
	return errors.Join(err, end)
}
