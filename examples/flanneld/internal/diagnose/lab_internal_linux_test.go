package diagnose

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/encap/udp"
	"github.com/flannelkit/flannelkit/encap/wireguard"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// A cluster is hosts on one link, on each of which a backend of ours runs:
//
//	host i: eth0 192.0.2.i/24, 2001:db8::i/64; docker0 10.5.i.1/24, fd00:5:i::1/64
type cluster struct {
	t       *testing.T
	lab     *netlab.Lab
	network lease.Network
	sw      *netlab.NS // port pI leads to host I
	hosts   []*labHost
}

// A labHost is one host of a cluster, and what flanneld would know there.
type labHost struct {
	*netlab.NS
	c    *cluster
	at   backend.Host
	own  lease.Lease
	mtu  int
	be   backend.Backend
	dir  string // of its files
	conf string // dockerd's
}

// newCluster makes n hosts with a backend. Families are "4", "6" or "46".
func newCluster(t *testing.T, n int, families, part string) *cluster {
	t.Helper()
	needs := []netlab.Need{netlab.NeedTUN, netlab.NeedVXLAN}
	text := `{"Network":"10.5.0.0/16","Backend":` + part
	switch families {
	case "6":
		text = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/32","IPv6SubnetLen":48,"Backend":` + part
		needs = append(needs, netlab.NeedIPv6)
	case "46":
		text += `,"EnableIPv6":true,"IPv6Network":"fd00:5::/32","IPv6SubnetLen":48`
		needs = append(needs, netlab.NeedIPv6)
	}
	network, err := lease.ParseNetwork([]byte(text + "}"))
	check(t, err)
	c := &cluster{t: t, lab: netlab.ForTest(t, needs...), network: network}
	c.sw = c.namespace("switch")
	var ports []string
	for i := 1; i <= n; i++ {
		c.hosts = append(c.hosts, c.newHost(i))
		ports = append(ports, fmt.Sprintf("p%d", i))
	}
	check(t, c.sw.Bridge("br0", ports...))
	for _, h := range c.hosts {
		h.start()
	}
	for _, h := range c.hosts {
		h.sync()
	}
	return c
}

func (c *cluster) namespace(name string) *netlab.NS {
	c.t.Helper()
	ns, err := c.lab.Namespace(name)
	check(c.t, err)
	return ns
}

// newHost makes a host with addresses and a bridge.
func (c *cluster) newHost(i int) *labHost {
	c.t.Helper()
	h := &labHost{NS: c.namespace(fmt.Sprintf("host%d", i)), c: c, dir: c.t.TempDir(), at: backend.Host{Link: "eth0", MTU: 1500}}
	h.conf = filepath.Join(h.dir, "daemon.json")
	check(c.t, c.lab.Veth(h.NS, "eth0", c.sw, fmt.Sprintf("p%d", i), 1500), h.Bridge("docker0"))
	if c.network.IPv4.Enabled() {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		check(c.t, h.Sysctl("net/ipv4/ip_forward", "1"), h.AddAddr("eth0", netip.PrefixFrom(a, 24)))
		h.own.Subnet = netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", i))
		check(c.t, h.AddAddr("docker0", netip.PrefixFrom(h.own.Subnet.Addr().Next(), 24)))
		h.at.Addr4, h.at.Public4, h.own.Attrs.PublicIP = a, a, a
	}
	if c.network.IPv6.Enabled() {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i))
		check(c.t, h.Sysctl("net/ipv6/conf/all/forwarding", "1"), h.AddAddr("eth0", netip.PrefixFrom(a, 64)))
		h.own.Subnet6 = netip.MustParsePrefix(fmt.Sprintf("fd00:5:%d::/48", i))
		check(c.t, h.AddAddr("docker0", netip.PrefixFrom(h.own.Subnet6.Addr().Next(), 48)))
		h.at.Addr6, h.at.Public6, h.own.Attrs.PublicIPv6 = a, a, a
	}
	return h
}

// start starts the host's backend.
func (h *labHost) start() {
	h.c.t.Helper()
	backends := flannelkit.DefaultBackends()
	backends["udp"] = udp.New(udp.Options{Persist: true})
	backends["wireguard"] = wireguard.New(wireguard.Options{KeyFile: filepath.Join(h.dir, "key")})
	make := backends[h.c.network.BackendType]
	err := h.Do(func() (err error) {
		ctx := context.Background()
		if h.be, err = make(backend.Params{Network: h.c.network}); err != nil {
			return err
		}
		h.c.t.Cleanup(func() { check(h.c.t, h.be.Close(false)) })
		attrs, err := h.be.Prepare(ctx, h.at)
		if err != nil {
			return err
		}
		attrs.PublicIP, attrs.PublicIPv6 = h.own.Attrs.PublicIP, h.own.Attrs.PublicIPv6
		h.own.Attrs = attrs
		h.mtu, err = h.be.Start(ctx, h.at, h.own)
		return err
	})
	if errors.Is(err, errors.ErrUnsupported) {
		h.c.t.Skip(err)
	}
	check(h.c.t, err)
	h.write(h.file())
}

// sync tells the host of the others.
func (h *labHost) sync() {
	h.c.t.Helper()
	check(h.c.t, h.Do(func() error { return h.be.Sync(context.Background(), h.others()) }))
}

// stopKeeping ends the backend, which would put right what a test breaks, and leaves
// what it has made.
func (h *labHost) stopKeeping() {
	h.c.t.Helper()
	check(h.c.t, h.be.Close(true))
}

func (h *labHost) others() (list []lease.Lease) {
	for _, o := range h.c.hosts {
		if o != h {
			list = append(list, o.own)
		}
	}
	return list
}

// file is what the host's subnet file has to say.
func (h *labHost) file() subnetenv.File {
	return subnetenv.File{
		Network: h.c.network.IPv4.Prefix, Subnet: h.own.Subnet, Network6: h.c.network.IPv6.Prefix, Subnet6: h.own.Subnet6, MTU: h.mtu,
	}
}

// cni is where its CNI networks are, if there are any.
func (h *labHost) cni() string { return filepath.Join(h.dir, "net.d") }

func (h *labHost) path() string { return filepath.Join(h.dir, "subnet.env") }

// write writes the subnet file, and Docker's options beside it.
func (h *labHost) write(f subnetenv.File) {
	h.c.t.Helper()
	check(h.c.t, subnetenv.Write(h.path(), f))
	if f.Subnet.IsValid() {
		text, err := subnetenv.DockerOptions(f, subnetenv.Docker{})
		check(h.c.t, err, os.WriteFile(filepath.Join(h.dir, "docker_opts.env"), text, 0o644))
	}
}

// report is what flanneld on the host would answer.
func (h *labHost) report() *report.Report {
	n := h.c.network
	r := &report.Report{
		Daemon:     &report.Daemon{Ready: true},
		Network:    &report.Network{IPv4: n.IPv4.Prefix, IPv6: n.IPv6.Prefix, Backend: n.BackendType, Config: n.Backend},
		Lease:      &report.Lease{Subnet: h.own.Subnet, Subnet6: h.own.Subnet6, PublicIP: h.own.Attrs.PublicIP, PublicIPv6: h.own.Attrs.PublicIPv6, MTU: h.mtu},
		Host:       &report.Host{Interface: "eth0", MTU: 1500, Addr4: h.at.Addr4, Addr6: h.at.Addr6},
		SubnetFile: &report.SubnetFile{Path: h.path()},
	}
	for _, l := range h.others() {
		r.Peers = append(r.Peers, report.Peer{
			Subnet: l.Subnet, Subnet6: l.Subnet6, PublicIP: l.Attrs.PublicIP, PublicIPv6: l.Attrs.PublicIPv6, Backend: l.Attrs.BackendType,
		})
	}
	return r
}

// look looks at the host.
func (h *labHost) look(r *report.Report) *report.Report {
	h.c.t.Helper()
	check(h.c.t, h.Do(func() error { look(h.c.t.Context(), r, paths{dockerConfig: h.conf, cniDir: h.cni()}); return nil }))
	return r
}

// ping asks the host's peers.
func (h *labHost) ping(r *report.Report) *report.Report {
	h.c.t.Helper()
	check(h.c.t, h.Do(func() error { Ping(h.c.t.Context(), r); return nil }))
	return r
}

// port puts an interface into a bridge of the host, as a container would have.
func (h *labHost) port(bridge, name string, mtu int) {
	h.c.t.Helper()
	check(h.c.t, h.c.lab.Veth(h.NS, name, h.c.namespace(name), "eth0", mtu))
	nl := h.Netlink()
	br, err := nl.LinkByName(bridge)
	check(h.c.t, err)
	l, err := nl.LinkByName(name)
	check(h.c.t, err, nl.LinkSetMaster(l, br))
}
