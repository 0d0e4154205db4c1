package hostgw

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/echoes"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

// A host is a member of the network: number n has 192.0.2.n, 2001:db8::n, 10.5.n.0/24
// and fd00:5:0:n::/64. Its containers are the address ...1 of each, on docker0.
type host struct {
	*netlab.NS
	t    *testing.T
	n    int
	host backend.Host
	own  lease.Lease
	b    *kernelbackend.Backend
	log  testlog.Messages
}

// A lab is hosts on one switch.
type lab struct {
	*netlab.Lab
	t  *testing.T
	sw *netlab.NS
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{Lab: netlab.ForTest(t, netlab.NeedIPv6), t: t}
	l.sw = l.namespace("switch")
	must(t, l.sw.Bridge("br0"))
	return l
}

func (l *lab) namespace(name string) *netlab.NS {
	l.t.Helper()
	ns, err := l.Namespace(name)
	must(l.t, err)
	return ns
}

// plug connects an interface to a switch.
func (l *lab) plug(sw, ns *netlab.NS, link string) {
	l.t.Helper()
	port := fmt.Sprintf("%.8s-%.5s", ns.Name(), link)
	must(l.t, l.Veth(ns, link, sw, port, 1500))
	l.join(sw, port)
}

// join makes an interface a port of a switch.
func (l *lab) join(sw *netlab.NS, port string) {
	l.t.Helper()
	dev, err := sw.Netlink().LinkByName(port)
	must(l.t, err)
	br, err := sw.Netlink().LinkByName("br0")
	must(l.t, err)
	must(l.t, sw.Netlink().LinkSetMaster(dev, br))
}

// host makes host n, with an address other than the usual one if at is valid.
func (l *lab) host(n int, sw *netlab.NS, at, at6 netip.Prefix) *host {
	l.t.Helper()
	h := &host{NS: l.namespace(fmt.Sprintf("host%d", n)), t: l.t, n: n}
	l.plug(sw, h.NS, "eth0")
	if !at.IsValid() {
		at, at6 = prefix(fmt.Sprintf("192.0.2.%d/24", n)), prefix(fmt.Sprintf("2001:db8::%d/64", n))
	}
	must(l.t, h.AddAddr("eth0", at))
	must(l.t, h.AddAddr("eth0", at6))
	must(l.t, h.Sysctl("net/ipv4/ip_forward", "1"))
	must(l.t, h.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	must(l.t, h.Bridge("docker0"))
	must(l.t, h.AddAddr("docker0", prefix(fmt.Sprintf("10.5.%d.1/24", n))))
	must(l.t, h.AddAddr("docker0", prefix(fmt.Sprintf("fd00:5:0:%d::1/64", n))))
	h.at(at.Addr(), at6.Addr())
	h.b = h.backend()
	l.t.Cleanup(func() { _ = h.b.Close(true) })
	return h
}

// at says where the host is from now on.
func (h *host) at(at, at6 netip.Addr) {
	h.host = backend.Host{Link: "eth0", MTU: 1500, Addr4: at, Addr6: at6, Public4: at, Public6: at6}
	h.own = peer(h.n, at.String(), at6.String())
}

func (h *host) backend() *kernelbackend.Backend {
	h.t.Helper()
	return h.backendFor(dualStack(""))
}

func (h *host) backendFor(network lease.Network) *kernelbackend.Backend {
	h.t.Helper()
	b, err := New()(backend.Params{Network: network, Log: slog.New(&h.log)})
	must(h.t, err)
	return b.(*kernelbackend.Backend)
}

// start is Prepare and Start.
func (h *host) start() {
	h.t.Helper()
	must(h.t, h.Do(func() error {
		if _, err := h.b.Prepare(h.t.Context(), h.host); err != nil {
			return err
		}
		mtu, err := h.b.Start(h.t.Context(), h.host, h.own)
		if err == nil && mtu != 1500 {
			err = fmt.Errorf("the MTU is %d", mtu)
		}
		return err
	}))
}

// sync is Sync with the leases of others.
func (h *host) sync(others ...*host) error {
	var leases []lease.Lease
	for _, o := range others {
		leases = append(leases, o.own)
	}
	return h.b.Sync(h.t.Context(), leases)
}

// restart is what a new process does.
func (h *host) restart(keep bool) {
	h.t.Helper()
	must(h.t, h.b.Close(keep))
	h.b = h.backend()
	h.start()
}

// routes lists the main table's routes in the network's ranges, less docker0's.
func (h *host) routes() (list []string) {
	h.t.Helper()
	nl := h.Netlink()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		must(h.t, err)
		for _, r := range all {
			if r.Dst == nil || !prefix("10.5.0.0/16").Contains(addrOf(r.Dst.IP)) && !prefix("fd00:5::/48").Contains(addrOf(r.Dst.IP)) {
				continue
			}
			text := r.Dst.String()
			if r.Gw != nil {
				text += " via " + r.Gw.String()
			}
			if l, err := nl.LinkByIndex(r.LinkIndex); err == nil {
				if l.Attrs().Name == "docker0" {
					continue
				}
				text += " " + l.Attrs().Name
			}
			list = append(list, text)
		}
	}
	slices.Sort(list)
	return list
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// to is how the routes to some hosts read.
func to(others ...*host) (list []string) {
	for _, o := range others {
		list = append(list, fmt.Sprintf("%v via %v eth0", o.own.Subnet, o.own.Attrs.PublicIP), fmt.Sprintf("%v via %v eth0", o.own.Subnet6, o.own.Attrs.PublicIPv6))
	}
	slices.Sort(list)
	return list
}

// wants checks the routes.
func (h *host) wants(want ...[]string) {
	h.t.Helper()
	all := slices.Concat(want...)
	slices.Sort(all)
	if have := h.routes(); !slices.Equal(have, all) {
		h.t.Errorf("host %d has the routes %q, want %q", h.n, have, all)
	}
}

// waits waits for the routes, and returns how long that took.
func (h *host) waits(want ...[]string) time.Duration {
	h.t.Helper()
	all := slices.Concat(want...)
	slices.Sort(all)
	start := time.Now()
	for !slices.Equal(h.routes(), all) {
		if time.Since(start) > patience {
			h.t.Fatalf("host %d still has the routes %q, want %q", h.n, h.routes(), all)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// containers are the addresses of a host's containers.
func (h *host) containers() []netip.Addr {
	return []netip.Addr{h.own.Subnet.Addr().Next(), h.own.Subnet6.Addr().Next()}
}

// listen opens a UDP socket in a host.
func (h *host) listen(at netip.Addr) *net.UDPConn {
	h.t.Helper()
	var c *net.UDPConn
	must(h.t, h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	}))
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// reaches exchanges datagrams between the containers of two hosts.
func (h *host) reaches(o *host) {
	h.t.Helper()
	for i, from := range h.containers() {
		if err := exchange(h, o, from, o.containers()[i]); err != nil {
			h.t.Error(err)
		}
	}
}

// exchange has one datagram of full size go to and fro.
func exchange(h, o *host, from, to netip.Addr) error {
	h.t.Helper()
	there := o.listen(to)
	go echoes.Serve(there)
	defer there.Close()
	here := h.listen(from)
	defer here.Close()
	buf := make([]byte, 1500-48)
	for range 20 {
		_, err := here.WriteTo(buf, there.LocalAddr())
		if err != nil {
			return fmt.Errorf("%v to %v: %w", from, to, err)
		}
		_ = here.SetReadDeadline(time.Now().Add(patience / 20)) // neighbours may take a second to be found
		if n, at, err := here.ReadFromUDPAddrPort(buf); err == nil && n == len(buf) && at.Addr() == to {
			return nil
		}
	}
	return fmt.Errorf("no packet comes back from %v to %v", to, from)
}

// startStream has datagrams go from a host's first container to another's and back.
func startStream(h, o *host) *echoes.Stream {
	h.t.Helper()
	return echoes.Start(h.t.Context(), h.listen(h.containers()[0]), o.listen(o.containers()[0]))
}
