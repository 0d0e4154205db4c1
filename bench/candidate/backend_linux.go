package candidate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/hostgw"
	"github.com/flannelkit/flannelkit/encap/ipip"
	"github.com/flannelkit/flannelkit/encap/vxlan"
	"github.com/flannelkit/flannelkit/encap/wireguard"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease"
)

// A backendKind is one of this project's other backends. Each has a network of its own, so that all can be up at once.
type backendKind struct {
	name   string // of the candidate
	about  string
	config func(p place) string // the backend's part of the network's configuration
	make   func(dir string) backend.New
}

// backends lists them. The kernel carries the packets of most; wireguard's are encrypted by the kernel where it can, else
// by the child process. The names of the devices are flannel's, so each can be there once.
func backends() []backendKind {
	plain := func(config string) func(place) string { return func(place) string { return config } }
	return []backendKind{
		{"vxlan-backend", "this project's vxlan backend", // its port is not the yardstick's
			func(p place) string { return fmt.Sprintf(`{"Type":"vxlan","VNI":%d,"Port":%d}`, 1000+p.n, 9000+p.n) },
			func(string) backend.New { return vxlan.New(vxlan.Options{}) }},
		{"host-gw", "this project's host-gw backend: routes, no tunnel", plain(`{"Type":"host-gw"}`),
			func(string) backend.New { return hostgw.New() }},
		{"ipip", "this project's ipip backend", plain(`{"Type":"ipip"}`),
			func(string) backend.New { return ipip.New(ipip.Options{}) }},
		{"wireguard", "this project's wireguard backend, encrypted", plain(`{"Type":"wireguard"}`),
			func(dir string) backend.New {
				return wireguard.New(wireguard.Options{KeyFile: filepath.Join(dir, "wgkey")})
			}},
	}
}

// backendHosts is a pair of hosts with one of them, a process for each.
type backendHosts struct {
	named
	procs
	undo undo
	kind backendKind
	ends []backendConfig
	mtu  int
}

// roleBackend is the name of the child process that runs one host's backend.
const roleBackend = "bench-backend"

// backendConfig is one host's side.
type backendConfig struct {
	Kind    string
	Network string // the network's configuration
	Host    backend.Host
	Subnet  netip.Prefix
}

// backendReady is what the process of one host says when packets can flow, or why they can't on this machine.
type backendReady struct {
	MTU     int
	Missing string
}

// addr is the address by which the host is reached: the first of the subnet that is not the device's.
func (c backendConfig) addr() netip.Addr { return c.Subnet.Addr().Next() }

func (h *backendHosts) Addrs() (a, b netip.Addr) { return h.ends[0].addr(), h.ends[1].addr() }

func (h *backendHosts) MTU() int { return h.mtu }

func (h *backendHosts) Up(ctx context.Context, bed Bed) error {
	p, err := newPlace(bed)
	if err != nil {
		return err
	}
	h.ends, h.mtu = nil, 0
	leases := make([]lease.Lease, 0, 2)
	for _, s := range p.sides {
		c := backendConfig{
			Kind: h.kind.name, Subnet: s.subnet,
			Network: fmt.Sprintf(`{"Network":"%v","SubnetLen":%d,"Backend":%s}`, p.network, s.subnet.Bits(), h.kind.config(p)),
			Host:    backend.Host{Link: s.Underlay, MTU: bed.Hosts.MTU, Addr4: s.Addr4.Addr(), Public4: s.Addr4.Addr()},
		}
		h.ends = append(h.ends, c)
		if err := s.addAddr(&h.undo, "lo", single(c.addr())); err != nil {
			return err
		}
		proc, err := traffic.Start(traffic.In(s.NS), roleBackend, c)
		if err != nil {
			return err
		}
		h.procs = append(h.procs, proc)
		l := lease.Lease{Key: lease.Key{Subnet: c.Subnet}}
		if err := proc.Next(ctx, "attrs", &l.Attrs); err != nil {
			return err
		}
		leases = append(leases, l)
	}
	for i, proc := range h.procs {
		if err := proc.Send("leases", []lease.Lease{leases[i], leases[1-i]}); err != nil {
			return err
		}
		var ready backendReady
		if err := proc.Next(ctx, "ready", &ready); err != nil {
			return err
		}
		if ready.Missing != "" {
			return fmt.Errorf("candidate: %s: %w: %s", h.Name(), ErrUnavailable, ready.Missing)
		}
		h.mtu = ready.MTU
	}
	return nil
}

func (h *backendHosts) Stats(context.Context) (json.RawMessage, error) { return nil, nil }

func (h *backendHosts) Down() error { return errors.Join(h.procs.end(), h.undo.all()) }

// runBackend is the process of one host. It tells its lease's data, is told both leases, and then serves until the
// parent is done.
func runBackend(ctx context.Context, link *traffic.Link) (err error) {
	var c backendConfig
	if err := link.Config(ctx, &c); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-backend")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b, err := c.make(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(false)) }()
	attrs, err := b.Prepare(ctx, c.Host)
	if err != nil {
		return err
	}
	attrs.PublicIP = c.Host.Public4
	if err := link.Send("attrs", attrs); err != nil {
		return err
	}
	var leases []lease.Lease
	if err := link.Next(ctx, "leases", &leases); err != nil {
		return err
	}
	var ready backendReady
	ready.MTU, err = b.Start(ctx, c.Host, leases[0])
	switch {
	case err == nil:
		if err := b.Sync(ctx, leases[1:]); err != nil {
			return err
		}
	case errors.Is(err, unix.EOPNOTSUPP): // what the kernel says to a type of device that it doesn't know
		ready.Missing = err.Error()
	default:
		return err
	}
	if err := link.Send("ready", ready); err != nil {
		return err
	}
	err = link.Next(ctx, "stop", nil) // it never comes: the parent ends the link
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
}

// make makes the backend, with files in dir.
func (c backendConfig) make(dir string) (backend.Backend, error) {
	for _, k := range backends() {
		if k.name != c.Kind {
			continue
		}
		network, err := lease.ParseNetwork([]byte(c.Network))
		if err != nil {
			return nil, err
		}
		return k.make(dir)(backend.Params{Network: network, Log: slog.New(slog.DiscardHandler)})
	}
	return nil, fmt.Errorf("candidate: no backend %q", c.Kind)
}
