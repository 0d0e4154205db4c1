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
)

// udp is this project's own engine: flannel's wire format, a process for each host.
type udp struct {
	named
	procs
	spec   spec
	config udpConfig // what is the same on both hosts
	crowd  crowd
}

// udpFeatures lists the options that switch an optimisation of the engine off: a line for each encap.Feature.
func udpFeatures() []udpFeature {
	return []udpFeature{
		{"gso", "off", "no UDP_SEGMENT: a message to the network is one datagram", encap.SegmentOffload},
		{"gro", "off", "no UDP_GRO: a message from the network is one datagram", encap.ReceiveOffload},
		{"trains", "off", "small packets leave one by one, super-packets as ever", encap.Trains},
		{"join", "off", "no runs of received packets are joined", encap.JoinTCP | encap.JoinUDP},
		{"jointcp", "off", "no runs of received TCP segments are joined", encap.JoinTCP},
		{"joinudp", "off", "no runs of received UDP datagrams are joined", encap.JoinUDP},
		{"batch", "1", "a system call for each message to and from the network", encap.Batches},
		{"briefsleep", "off", "Go's scheduler is told of every sleep, however short", encap.BriefSleep},
	}
}

// A udpFeature is one of them.
type udpFeature struct {
	option, value, about string
	without              encap.Feature
}

func udpOptions() []option {
	off := []string{"off"}
	options := []option{{name: "engines", about: "engines, and so queues and sockets, per host", min: 1, max: 64}}
	for _, f := range udpFeatures() {
		options = append(options, option{name: f.option, about: f.about, words: []string{f.value}})
	}
	return append(options,
		option{name: "offloads", about: "no offloads on the TUN device: only packets of MTU size cross it", words: off},
		option{name: "checksums", about: "the outer checksum is taken for the inner one where the kernel verified it", words: []string{"trust"}},
		option{name: "ports", about: "further source ports that flows are spread over", min: 1, max: 64},
		option{name: "filter", about: "packets are taken from anyone", words: off},
		option{name: "path", about: "the engine over wireguard/tun and x/net, as on other systems", words: []string{"portable"}},
	)
}

func newUDP(s spec) (Candidate, error) {
	c := udpConfig{
		Engines: s.number("engines", 1), SourcePorts: s.number("ports", 0), NoFilter: s.is("filter", "off"),
		TrustOuter: s.is("checksums", "trust"), NoOffloads: s.is("offloads", "off"), Portable: s.is("path", "portable"),
	}
	for _, f := range udpFeatures() {
		if s.is(f.option, f.value) {
			c.Without |= f.without
		}
	}
	if c.Portable {
		for option := range s.chosen {
			if option != "path" && option != "filter" {
				return nil, fmt.Errorf("path=portable has no %s (it goes with filter alone)", option)
			}
		}
	}
	return &udp{named: named(s.text), spec: s, config: c}, nil
}

func (u *udp) Addrs() (a, b netip.Addr) {
	return u.crowd.place.sides[0].first, u.crowd.place.sides[1].first
}

func (u *udp) MTU() int { return u.config.MTU }

func (u *udp) Up(ctx context.Context, bed Bed) error {
	if err := netlab.Check(netlab.NeedTUN); err != nil {
		return fmt.Errorf("candidate: udp: %w: %w", ErrUnavailable, err)
	}
	p, err := newPlace(bed)
	if err != nil {
		return err
	}
	u.crowd.place = p
	u.config.Device = p.device("udp")
	u.config.Crowd = p.crowd
	for i, s := range p.sides {
		c := u.config
		c.MTU = bed.Hosts.MTU - encap.Overhead(s.Addr4.Addr())
		u.config.MTU = c.MTU
		port := p.port(encap.DefaultPort, u.spec)
		c.Local, c.Remote = netip.AddrPortFrom(s.Addr4.Addr(), port), netip.AddrPortFrom(s.other.Addr4.Addr(), port)
		c.Here, c.Over = s.subnet, p.sides[1-i].subnet
		c.Answers = i == 1
		proc, err := traffic.Start(traffic.In(s.NS), roleUDP, c)
		if err != nil {
			return err
		}
		u.procs = append(u.procs, proc)
		if err := proc.Next(ctx, "ready", nil); err != nil {
			return err
		}
		// As flannel has it. It all goes with the device, which goes with the process.
		err = errors.Join(s.Host.Up(c.Device), s.AddAddr(c.Device, single(s.first)))
		if err == nil {
			err = s.AddRoute(p.network, netip.Addr{}, c.Device, c.MTU)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ask has both processes do something and returns what they answer.
func (u *udp) ask(ctx context.Context, q udpQuestion) ([]json.RawMessage, error) {
	var answers []json.RawMessage
	for _, p := range u.procs {
		if err := p.Send("question", q); err != nil {
			return nil, err
		}
		var one json.RawMessage
		if err := p.Next(ctx, "answer", &one); err != nil {
			return nil, err
		}
		answers = append(answers, one)
	}
	return answers, nil
}

// Stats returns the counters of both hosts since Up.
func (u *udp) Stats(ctx context.Context) (json.RawMessage, error) {
	both, err := u.ask(ctx, udpQuestion{})
	if err != nil {
		return nil, err
	}
	return json.Marshal(both)
}

// Peers implements Crowd. The peers are in host A's table, each with its subnet, and there is one route to all of them. Their
// endpoints are all host B's; the engine does not put packets for two peers into one message for that.
func (u *udp) Peers(ctx context.Context, n int) ([]netip.Addr, error) {
	addrs, err := u.crowd.begin(n)
	if err != nil {
		return nil, err
	}
	if _, err := u.ask(ctx, udpQuestion{Peers: &n}); err != nil || n == 0 {
		return nil, err
	}
	a := u.crowd.place.sides[0]
	return addrs, a.addRoute(&u.crowd.undo, u.config.Crowd, netip.Addr{}, u.config.Device, u.config.MTU)
}

func (u *udp) Down() error { return errors.Join(u.crowd.undo.all(), u.procs.end()) }

// Roles returns the child processes of the candidates, for traffic.RunRole.
func Roles() traffic.Roles {
	return traffic.Roles{roleUDP: runUDP, roleBackend: runBackend, rolePlain: runPlain}
}
