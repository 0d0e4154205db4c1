package candidate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/tun"
)

// roleUDP is the name of the child process that runs one host's engines.
const roleUDP = "bench-udp"

// udpConfig is one host's side.
type udpConfig struct {
	Engines     int
	SourcePorts int
	Without     encap.Feature
	NoOffloads  bool
	TrustOuter  bool
	NoFilter    bool
	Portable    bool

	Device     string
	MTU        int
	Local      netip.AddrPort
	Remote     netip.AddrPort
	Here, Over netip.Prefix // the subnets of this host and of the other
	Crowd      netip.Prefix // of further peers
	Answers    bool         // this host answers for them, the other one has them as peers
}

// udpQuestion is what the parent wants: counters, or another number of further peers.
type udpQuestion struct{ Peers *int }

// runUDP is the process of one host: it opens the device, runs the engines, and answers the parent's questions.
func runUDP(ctx context.Context, link *traffic.Link) (err error) {
	var c udpConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	device, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	table := encap.NewTable()
	if err := c.fill(table, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, c.Engines)
	var engines []*encap.Engine
	for _, queue := range device.Queues() {
		engine, err := c.engine(queue, table)
		if err != nil {
			return err
		}
		engines = append(engines, engine)
		go func() { ended <- engine.Run(ctx) }()
	}
	questions := make(chan error, 1)
	go func() { questions <- c.answer(ctx, link, table, engines) }()
	if err := link.Send("ready", nil); err != nil {
		return err
	}
	running := len(engines)
	select {
	case err = <-questions: // the parent is done, or gone
	case err = <-ended:
		running--
		if ctx.Err() == nil {
			err = errors.Join(errors.New("candidate: udp: an engine ended by itself"), err)
		}
	}
	cancel()
	for ; running > 0; running-- {
		err = errors.Join(err, <-ended)
	}
	return err
}

// open opens the device: the engine's own kind, or that of other systems.
func (c udpConfig) open() (*tun.Device, error) {
	if !c.Portable {
		config := tun.Config{Name: c.Device, MTU: c.MTU, Queues: c.Engines}
		if c.NoOffloads {
			config.Without = tun.AllOffloads
		}
		return tun.Open(config)
	}
	w, err := wgtun.CreateTUN(c.Device, c.MTU)
	if err != nil {
		return nil, fmt.Errorf("candidate: udp: create %s: %w", c.Device, err)
	}
	d, err := tun.Wrap(w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return d, nil
}

// engine makes the engine of one queue.
func (c udpConfig) engine(queue *tun.Queue, table *encap.Table) (*encap.Engine, error) {
	config := encap.Config{Without: c.Without, NoFilter: c.NoFilter, SourcePorts: c.SourcePorts}
	if c.TrustOuter {
		config.Checksums = encap.TrustOuter
	}
	conn, err := encap.Listen(c.Local, encap.ListenConfig{ReusePort: c.Engines > 1})
	if err != nil {
		return nil, err
	}
	engine, err := encap.New(queue, conn, table, config)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return engine, nil
}

// fill makes the table that of two hosts and n further peers.
func (c udpConfig) fill(table *encap.Table, n int) error {
	local := []netip.Prefix{c.Here}
	peers := make([]encap.Peer, 1, n+1)
	peers[0] = encap.Peer{Endpoint: c.Remote, Subnets: []netip.Prefix{c.Over}}
	switch {
	case c.Answers && n > 0:
		local = append(local, c.Crowd)
	case !c.Answers:
		for i := range n {
			peers = append(peers, encap.Peer{Endpoint: c.Remote, Subnets: []netip.Prefix{crowdSubnet(c.Crowd, i)}})
		}
	}
	return table.Replace(local, peers)
}

// answer does what the parent asks for until it is done: it tells the sum of the engines' counters, after it has changed the
// peers if that is the question.
func (c udpConfig) answer(ctx context.Context, link *traffic.Link, table *encap.Table, engines []*encap.Engine) error {
	for {
		var q udpQuestion
		if err := link.Next(ctx, "question", &q); err != nil {
			return err
		}
		if q.Peers != nil {
			if err := c.fill(table, *q.Peers); err != nil {
				return err
			}
		}
		var sum encap.Stats
		for _, e := range engines {
			sum = sum.Add(e.Stats())
		}
		if err := link.Send("answer", sum); err != nil {
			return fmt.Errorf("candidate: udp: tell counters: %w", err)
		}
	}
}
