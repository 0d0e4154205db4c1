package candidate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/tun"
)

// udp is this project's own engine in its default form: flannel's wire format, a process for each host.
type udp struct {
	settings Settings
	hosts    *netlab.TwoHosts
	procs    []*traffic.Proc
}

// roleUDP is the name of the child process that runs one host's engines.
const roleUDP = "bench-udp"

const udpDevice = "flannel0"

// udpConfig is one host's side.
type udpConfig struct {
	Settings
	MTU        int
	Local      netip.AddrPort
	Remote     netip.AddrPort
	Here, Over netip.Prefix // the subnets of this host and of the other
}

func (u *udp) Name() string { return "udp" }

func (u *udp) Addrs() (a, b netip.Addr) {
	return u.hosts.HostA.Subnet4.Addr(), u.hosts.HostB.Subnet4.Addr()
}

func (u *udp) MTU() int { return u.hosts.OverlayMTU }

func (u *udp) Up(ctx context.Context, bed Bed) error {
	u.hosts, u.procs = bed.Hosts, nil
	a, b := bed.Hosts.HostA, bed.Hosts.HostB
	for _, end := range []struct{ host, other *netlab.Host }{{a, b}, {b, a}} {
		p, err := traffic.Start(traffic.In(end.host.NS), roleUDP, udpConfig{
			Settings: u.settings,
			MTU:      bed.Hosts.OverlayMTU,
			Local:    netip.AddrPortFrom(end.host.Addr4.Addr(), encap.DefaultPort),
			Remote:   netip.AddrPortFrom(end.other.Addr4.Addr(), encap.DefaultPort),
			Here:     end.host.Subnet4, Over: end.other.Subnet4,
		})
		if err != nil {
			return err
		}
		u.procs = append(u.procs, p)
		if err := p.Next(ctx, "ready", nil); err != nil {
			return err
		}
		if err := end.host.AttachOverlay(udpDevice); err != nil {
			return err
		}
	}
	return nil
}

func (u *udp) PIDs() []int {
	var pids []int
	for _, p := range u.procs {
		pids = append(pids, p.PID())
	}
	return pids
}

// Stats returns the counters of both hosts since Up.
func (u *udp) Stats(ctx context.Context) (json.RawMessage, error) {
	var both []json.RawMessage
	for _, p := range u.procs {
		if err := p.Send("stats", nil); err != nil {
			return nil, err
		}
		var one json.RawMessage
		if err := p.Next(ctx, "stats", &one); err != nil {
			return nil, err
		}
		both = append(both, one)
	}
	return json.Marshal(both)
}

func (u *udp) Down() error {
	var err error
	for _, p := range u.procs {
		err = errors.Join(err, p.Close())
	}
	u.procs = nil
	return err
}

// Roles returns the child processes of the candidates, for traffic.RunRole.
func Roles() traffic.Roles { return traffic.Roles{roleUDP: runUDP, roleBackend: runBackend} }

// runUDP is the process of one host: it opens the device, runs the engines, and answers questions about them.
func runUDP(ctx context.Context, link *traffic.Link) (err error) {
	var c udpConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	count := max(c.Engines, 1)
	device, err := tun.Open(tun.Config{Name: udpDevice, MTU: c.MTU, Queues: count})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	table := encap.NewTable()
	peer := encap.Peer{Endpoint: c.Remote, Subnets: []netip.Prefix{c.Over}}
	if err := table.Replace([]netip.Prefix{c.Here}, []encap.Peer{peer}); err != nil {
		return err
	}
	config := encap.Config{SourcePorts: c.SourcePorts}
	if c.NoGSO {
		config.Without |= encap.SegmentOffload
	}
	if c.TrustOuter {
		config.Checksums = encap.TrustOuter
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, count)
	var engines []*encap.Engine
	for _, queue := range device.Queues() {
		conn, err := encap.Listen(c.Local, encap.ListenConfig{ReusePort: count > 1})
		if err != nil {
			return err
		}
		engine, err := encap.New(queue, conn, table, config)
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		engines = append(engines, engine)
		go func() { ended <- engine.Run(ctx) }()
	}
	questions := make(chan error, 1)
	go func() { questions <- answer(ctx, link, engines) }()
	if err := link.Send("ready", nil); err != nil {
		return err
	}
	running := count
	select {
	case err = <-questions: // the parent is done, or gone
	case err = <-ended:
		running--
		if ctx.Err() == nil {
			err = errors.Join(errors.New("bench: an engine ended by itself"), err)
		}
	}
	cancel()
	for ; running > 0; running-- {
		err = errors.Join(err, <-ended)
	}
	return err
}

// answer tells the parent the sum of the engines' counters whenever it asks.
func answer(ctx context.Context, link *traffic.Link, engines []*encap.Engine) error {
	for {
		if err := link.Next(ctx, "stats", nil); err != nil {
			return err
		}
		var sum encap.Stats
		for _, e := range engines {
			sum = sum.Add(e.Stats())
		}
		if err := link.Send("stats", sum); err != nil {
			return fmt.Errorf("bench: tell counters: %w", err)
		}
	}
}
