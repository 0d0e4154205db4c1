package vxlan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience is how long tests wait for what comes by itself: much longer than it takes.
const patience = 30 * time.Second

// A cluster is hosts on one link, each with an address of its subnets on lo for
// traffic:
//
//	host i: eth0 192.0.2.i/24, 2001:db8::i/64; lo 10.244.i.1, fd00:244:i::1
type cluster struct {
	t       *testing.T
	lab     *netlab.Lab
	network lease.Network
	opts    Options
	hosts   []*host
}

// A host is one of them.
type host struct {
	*netlab.NS
	c    *cluster
	host backend.Host
	own  lease.Lease
	log  testlog.Messages
	be   *overlay
	in   [2]netip.Addr // for traffic, by family
}

// network makes a configuration: families as in "4", "6" or "46".
func network(t testing.TB, families, part string) lease.Network {
	t.Helper()
	text := `{"Backend":` + part
	switch families {
	case "4":
		text += `,"Network":"10.244.0.0/16"}`
	case "6":
		text += `,"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/32","IPv6SubnetLen":48}`
	case "46":
		text += `,"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/32","IPv6SubnetLen":48}`
	}
	n, err := lease.ParseNetwork([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// newCluster makes n hosts. Nothing is started.
func newCluster(t *testing.T, n int, families, part string) *cluster {
	t.Helper()
	needs := []netlab.Need{netlab.NeedVXLAN}
	if families != "4" {
		needs = append(needs, netlab.NeedIPv6)
	}
	c := &cluster{t: t, lab: netlab.ForTest(t, needs...), network: network(t, families, part)}
	sw := c.namespace("switch")
	var ports []string
	for i := 1; i <= n; i++ {
		ns := c.namespace(fmt.Sprintf("host%d", i))
		port := fmt.Sprintf("p%d", i)
		ports = append(ports, port)
		must(t, c.lab.Veth(ns, "eth0", sw, port, 1500))
		c.add(ns, i)
	}
	must(t, sw.Bridge("br0", ports...))
	return c
}

func (c *cluster) namespace(name string) *netlab.NS {
	c.t.Helper()
	ns, err := c.lab.Namespace(name)
	must(c.t, err)
	return ns
}

// add makes a namespace with an eth0 a host.
func (c *cluster) add(ns *netlab.NS, i int) *host {
	c.t.Helper()
	h := &host{NS: ns, c: c, host: backend.Host{Link: "eth0", MTU: 1500}}
	must(c.t, ns.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
	must(c.t, ns.Sysctl("net/ipv4/ip_forward", "1"))
	h.give("eth0", netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i)))
	if c.network.IPv6.Enabled() {
		must(c.t, ns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
		h.give("eth0", netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i)))
	}
	if c.network.IPv4.Enabled() {
		h.own.Subnet = netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i))
		h.in[v4] = h.own.Subnet.Addr().Next()
		must(c.t, ns.AddAddr("lo", netip.PrefixFrom(h.in[v4], 32)))
	}
	if c.network.IPv6.Enabled() {
		h.own.Subnet6 = netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/48", i))
		h.in[v6] = h.own.Subnet6.Addr().Next()
		must(c.t, ns.AddAddr("lo", netip.PrefixFrom(h.in[v6], 128)))
	}
	h.own.Revision = uint64(i)
	c.hosts = append(c.hosts, h)
	return h
}

// give gives a link an address and makes it the host's.
func (h *host) give(link string, p netip.Prefix) {
	h.c.t.Helper()
	must(h.c.t, h.AddAddr(link, p))
	h.host.Link = link
	if p.Addr().Is4() {
		h.host.Addr4, h.host.Public4, h.own.Attrs.PublicIP = p.Addr(), p.Addr(), p.Addr()
	} else {
		h.host.Addr6, h.host.Public6, h.own.Attrs.PublicIPv6 = p.Addr(), p.Addr(), p.Addr()
	}
}

// start makes the host's backend and starts it.
func (h *host) start() {
	h.c.t.Helper()
	must(h.c.t, h.tryStart())
}

func (h *host) tryStart() error {
	b, err := New(h.c.opts)(backend.Params{Network: h.c.network, Log: h.log.Logger()})
	if err != nil {
		return err
	}
	h.be = b.(*overlay)
	h.c.t.Cleanup(func() { _ = b.Close(true) })
	return h.Do(func() error {
		ctx := context.Background()
		attrs, err := b.Prepare(ctx, h.host)
		if err != nil {
			return err
		}
		attrs.PublicIP, attrs.PublicIPv6 = h.own.Attrs.PublicIP, h.own.Attrs.PublicIPv6
		h.own.Attrs = attrs
		_, err = b.Start(ctx, h.host, h.own)
		return err
	})
}

// sync tells the host of peers.
func (h *host) sync(peers ...*host) {
	h.c.t.Helper()
	must(h.c.t, h.be.Sync(context.Background(), leasesOf(peers)))
}

func leasesOf(peers []*host) (all []lease.Lease) {
	for _, p := range peers {
		all = append(all, p.own)
	}
	return all
}

// up starts all hosts and tells them of each other.
func (c *cluster) up() {
	c.t.Helper()
	for _, h := range c.hosts {
		h.start()
	}
	c.meet()
}

func (c *cluster) meet() {
	c.t.Helper()
	for _, h := range c.hosts {
		h.sync(slices.DeleteFunc(slices.Clone(c.hosts), func(p *host) bool { return p == h })...)
	}
}

// reach checks that TCP and UDP go from one host to another, in each family that the
// network has, and that the other sees the first one's address.
func (c *cluster) reach(from, to *host) {
	c.t.Helper()
	for _, f := range []family{v4, v6} {
		if to.in[f].IsValid() {
			must(c.t, talk(from, to, f, patience))
		}
	}
}

// talk does a round trip by UDP, again until it is answered, and one by TCP.
func talk(from, to *host, f family, within time.Duration) error {
	e, err := listen(to, f)
	if err != nil {
		return err
	}
	defer e.close()
	if err := udpTrip(from, f, e.addr, within); err != nil {
		return fmt.Errorf("UDP %s to %s: %w", from.Name(), to.Name(), err)
	}
	return from.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.in[f].AsSlice()}, Timeout: within}
		conn, err := d.Dial("tcp", e.addr.String())
		if err != nil {
			return fmt.Errorf("TCP %s to %s: %w", from.Name(), to.Name(), err)
		}
		defer conn.Close()
		must2(conn.SetDeadline(time.Now().Add(within)))
		sent := make([]byte, 64<<10) // full packets
		go func() { _, _ = conn.Write(sent) }()
		_, err = readFull(conn, len(sent))
		return err
	})
}

// udpTrip sends datagrams until one is echoed.
func udpTrip(from *host, f family, to netip.AddrPort, within time.Duration) error {
	return from.Do(func() error {
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: from.in[f].AsSlice()}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer conn.Close()
		buf := make([]byte, 2000)
		for end := time.Now().Add(within); ; {
			_, err := conn.Write(make([]byte, 1000))
			if err == nil {
				must2(conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
				if _, err = conn.Read(buf); err == nil {
					return nil
				}
			}
			if time.Now().After(end) {
				return err
			}
			if !isTimeout(err) {
				time.Sleep(10 * time.Millisecond) // unreachable at once
			}
		}
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// An echo answers TCP and UDP in a namespace.
type echo struct {
	addr netip.AddrPort
	tcp  net.Listener
	udp  *net.UDPConn
}

func listen(h *host, f family) (*echo, error) {
	e := &echo{}
	err := h.Do(func() (err error) {
		if e.tcp, err = net.Listen("tcp", netip.AddrPortFrom(h.in[f], 0).String()); err != nil {
			return err
		}
		e.addr = e.tcp.Addr().(*net.TCPAddr).AddrPort()
		e.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(e.addr))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := e.tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					_, _ = conn.Write(buf[:n])
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := e.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = e.udp.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return e, nil
}

func (e *echo) close() { _, _ = e.tcp.Close(), e.udp.Close() }

func readFull(conn net.Conn, n int) (int, error) {
	buf := make([]byte, n)
	for have := 0; have < n; {
		m, err := conn.Read(buf[have:])
		have += m
		if err != nil {
			return have, fmt.Errorf("%d of %d bytes: %w", have, n, err)
		}
	}
	return n, nil
}

// vxlan returns a device of the host, nil if there is none.
func (h *host) vxlan(name string) *netlink.Vxlan {
	l, err := h.Netlink().LinkByName(name)
	if err != nil {
		return nil
	}
	x, _ := l.(*netlink.Vxlan)
	return x
}

// entries describes what a device carries: "via", "neigh" and "fdb" lines, sorted.
func (h *host) entries() []string {
	h.c.t.Helper()
	var all []string
	names := map[int]string{}
	links, err := h.Netlink().LinkList()
	must(h.c.t, err)
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.Netlink().RouteList(nil, fam)
		must(h.c.t, err)
		for _, r := range routes {
			if r.Gw != nil && r.Dst != nil {
				all = append(all, fmt.Sprintf("%v via %v dev %s", r.Dst, r.Gw, names[r.LinkIndex]))
			}
		}
	}
	for _, l := range links {
		if l.Type() != "vxlan" {
			continue
		}
		for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, unix.AF_BRIDGE} {
			neighs, err := h.Netlink().NeighList(l.Attrs().Index, fam)
			must(h.c.t, err)
			for _, n := range neighs {
				if n.State&unix.NUD_PERMANENT != 0 {
					all = append(all, fmt.Sprintf("%s: %v is %v", l.Attrs().Name, n.IP, n.HardwareAddr))
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// await waits until ok, and returns how long that took.
func await(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			t.Fatalf("after %v still not: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must2 is for what can't fail on an open connection.
func must2(err error) {
	if err != nil {
		panic(err)
	}
}
