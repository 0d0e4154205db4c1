package ipip

import (
	"errors"
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
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// A host is a member of the network: number n has 192.0.2.n and 10.5.n.0/24. What its
// containers would have is the address 10.5.n.1 on docker0.
type host struct {
	*netlab.NS
	t    *testing.T
	n    int
	host backend.Host
	own  lease.Lease
	part string // of the configuration
	opts Options
	b    *overlay
	log  testlog.Messages
}

// A lab is hosts on one switch.
type lab struct {
	*netlab.Lab
	t  *testing.T
	sw *netlab.NS
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{Lab: netlab.ForTest(t), t: t}
	l.sw = l.namespace("switch")
	must(t, l.sw.Bridge("br0"))
	err := l.sw.Netlink().LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "try"}, Local: net.IPv4(192, 0, 2, 254).To4()})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("kernel has no ipip: modprobe ipip, or a kernel with CONFIG_NET_IPIP")
	}
	must(t, err)
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
func (l *lab) host(n int, sw *netlab.NS, at netip.Prefix) *host {
	l.t.Helper()
	h := &host{NS: l.namespace(fmt.Sprintf("host%d", n)), t: l.t, n: n}
	l.plug(sw, h.NS, "eth0")
	if !at.IsValid() {
		at = prefix(fmt.Sprintf("192.0.2.%d/24", n))
	}
	must(l.t, h.AddAddr("eth0", at))
	must(l.t, h.Sysctl("net/ipv4/ip_forward", "1"))
	must(l.t, h.Bridge("docker0"))
	must(l.t, h.AddAddr("docker0", prefix(fmt.Sprintf("10.5.%d.1/24", n))))
	h.at(at.Addr())
	h.b = h.backend()
	l.t.Cleanup(func() { _ = h.b.Close(true) })
	return h
}

// at says where the host is from now on.
func (h *host) at(at netip.Addr) {
	h.host = backend.Host{Link: "eth0", MTU: 1500, Addr4: at, Public4: at}
	h.own = peer(h.n, at.String())
}

func (h *host) backend() *overlay {
	h.t.Helper()
	b, err := New(h.opts)(backend.Params{Network: network(h.part), Log: slog.New(&h.log)})
	must(h.t, err)
	return b.(*overlay)
}

// start is Prepare and Start.
func (h *host) start() {
	h.t.Helper()
	must(h.t, h.Do(func() error {
		if _, err := h.b.Prepare(h.t.Context(), h.host); err != nil {
			return err
		}
		mtu, err := h.b.Start(h.t.Context(), h.host, h.own)
		if err == nil && mtu != 1480 {
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

// routes lists the main table's routes in the network's range, less docker0's.
func (h *host) routes() (list []string) {
	h.t.Helper()
	nl := h.Netlink()
	all, err := nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	must(h.t, err)
	for _, r := range all {
		if r.Dst == nil || !prefix("10.5.0.0/16").Contains(addrOf(r.Dst.IP)) {
			continue
		}
		text := r.Dst.String()
		if r.Gw != nil {
			text += " via " + r.Gw.String()
		}
		l, err := nl.LinkByIndex(r.LinkIndex)
		if err == nil && l.Attrs().Name != "docker0" {
			list = append(list, text+" "+l.Attrs().Name)
		}
	}
	slices.Sort(list)
	return list
}

// through is how the routes to some hosts read.
func through(link string, others ...*host) (list []string) {
	for _, o := range others {
		list = append(list, fmt.Sprintf("%v via %v %s", o.own.Subnet, o.own.Attrs.PublicIP, link))
	}
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

// container is the address of a host's containers.
func (h *host) container() netip.Addr { return h.own.Subnet.Addr().Next() }

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
	if err := exchange(h, o, h.container(), o.container()); err != nil {
		h.t.Error(err)
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
	buf := make([]byte, 1480-28)
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

// startStream has datagrams go from a host's container to another's and back.
func startStream(h, o *host) *echoes.Stream {
	h.t.Helper()
	return echoes.Start(h.t.Context(), h.listen(h.container()), o.listen(o.container()))
}
