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

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/hostgw"
	"github.com/flannelkit/flannelkit/encap/vxlan"
	"github.com/flannelkit/flannelkit/encap/wireguard"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease"
)

// A backendKind is one of this project's other backends, with a network of its own, so that all can be up at once.
type backendKind struct {
	name   string // of the candidate
	config string // of the network
	make   func(dir string) backend.New
}

// backends lists them. The kernel carries the packets of most; wireguard's are encrypted by the kernel where it can, else
// by the child process.
func backends() []backendKind {
	return []backendKind{
		{"vxlan-backend", `{"Network":"10.246.0.0/16","Backend":{"Type":"vxlan","VNI":246,"Port":8246}}`,
			func(string) backend.New { return vxlan.New(vxlan.Options{}) }},
		{"host-gw", `{"Network":"10.247.0.0/16","Backend":{"Type":"host-gw"}}`,
			func(string) backend.New { return hostgw.New() }},
		{"wireguard", `{"Network":"10.248.0.0/16","Backend":{"Type":"wireguard"}}`,
			func(dir string) backend.New {
				return wireguard.New(wireguard.Options{KeyFile: filepath.Join(dir, "wgkey")})
			}},
	}
}

// backendHosts is a pair of hosts with one of them, a process for each.
type backendHosts struct {
	kind  backendKind
	procs []*traffic.Proc
	ends  []backendConfig
	mtu   int
}

// roleBackend is the name of the child process that runs one host's backend.
const roleBackend = "bench-backend"

// backendConfig is one host's side.
type backendConfig struct {
	Kind   string
	Host   backend.Host
	Subnet netip.Prefix
}

// addr is the address by which the host is reached: the first of the subnet that is not the device's.
func (c backendConfig) addr() netip.Addr { return c.Subnet.Addr().Next() }

func (h *backendHosts) Name() string { return h.kind.name }

func (h *backendHosts) Addrs() (a, b netip.Addr) { return h.ends[0].addr(), h.ends[1].addr() }

func (h *backendHosts) MTU() int { return h.mtu }

func (h *backendHosts) Up(ctx context.Context, bed Bed) error {
	h.procs, h.ends, h.mtu = nil, nil, 0
	network, err := lease.ParseNetwork([]byte(h.kind.config))
	if err != nil {
		return err
	}
	leases := make([]lease.Lease, 0, 2)
	for i, host := range []*netlab.Host{bed.Hosts.HostA, bed.Hosts.HostB} {
		base := network.IPv4.Prefix.Addr().As4()
		base[2] = byte(i + 1)
		c := backendConfig{
			Kind: h.kind.name, Subnet: netip.PrefixFrom(netip.AddrFrom4(base), network.IPv4.SubnetLen),
			Host: backend.Host{Link: host.Underlay, MTU: bed.Hosts.MTU, Addr4: host.Addr4.Addr(), Public4: host.Addr4.Addr()},
		}
		h.ends = append(h.ends, c)
		if err := host.AddAddr("lo", netip.PrefixFrom(c.addr(), 32)); err != nil {
			return err
		}
		p, err := traffic.Start(traffic.In(host.NS), roleBackend, c)
		if err != nil {
			return err
		}
		h.procs = append(h.procs, p)
		l := lease.Lease{Key: lease.Key{Subnet: c.Subnet}}
		if err := p.Next(ctx, "attrs", &l.Attrs); err != nil {
			return err
		}
		leases = append(leases, l)
	}
	for i, p := range h.procs {
		if err := p.Send("leases", []lease.Lease{leases[i], leases[1-i]}); err != nil {
			return err
		}
		if err := p.Next(ctx, "ready", &h.mtu); err != nil {
			return err
		}
	}
	return nil
}

func (h *backendHosts) PIDs() []int {
	var pids []int
	for _, p := range h.procs {
		pids = append(pids, p.PID())
	}
	return pids
}

func (h *backendHosts) Stats(context.Context) (json.RawMessage, error) { return nil, nil }

func (h *backendHosts) Down() error {
	var err error
	for _, p := range h.procs {
		err = errors.Join(err, p.Close())
	}
	h.procs = nil
	return err
}

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
	b, err := makeBackend(c.Kind, dir)
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
	mtu, err := b.Start(ctx, c.Host, leases[0])
	if err != nil {
		return err
	}
	if err := b.Sync(ctx, leases[1:]); err != nil {
		return err
	}
	if err := link.Send("ready", mtu); err != nil {
		return err
	}
	err = link.Next(ctx, "stop", nil) // it never comes: the parent ends the link
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
}

// makeBackend makes the backend of a candidate, with files in dir.
func makeBackend(name, dir string) (backend.Backend, error) {
	for _, k := range backends() {
		if k.name != name {
			continue
		}
		network, err := lease.ParseNetwork([]byte(k.config))
		if err != nil {
			return nil, err
		}
		return k.make(dir)(backend.Params{Network: network, Log: slog.New(slog.DiscardHandler)})
	}
	return nil, fmt.Errorf("bench: no backend %q", name)
}
