package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// networkOf is the configuration of a network with a backend, whose daemons take no
// subnet beyond 10.5.89.0.
func networkOf(backend string) string {
	return `{"Network":"10.5.0.0/16","SubnetMax":"10.5.89.0","Backend":` + backend + `}`
}

// A member is a host of a cluster that runs a daemon and has a pod.
type member struct {
	*labHost
	args []string // of the daemon
	proc *flanneldProc
	file subnetenv.File
	pod  *pod
}

// members starts daemons on hosts, at the same time, and then a pod on each.
func (c *cluster) members(hosts []*labHost, args ...string) (all []*member) {
	c.t.Helper()
	for _, h := range hosts {
		m := &member{labHost: h, args: append([]string{c.endpoints(), healthPort, healthIP, "-wireguard-key-file=" + h.beside("wgkey")}, args...)}
		m.proc = h.start(m.args...)
		all = append(all, m)
	}
	for _, m := range all {
		m.file = m.proc.ready()
		m.pod = m.labHost.pod(m.file)
	}
	return all
}

// beside is a file of the host's own.
func (h *labHost) beside(name string) string { return filepath.Join(filepath.Dir(h.file), name) }

// again starts the daemon once more, and returns when it is ready. It must have the
// subnet that it had.
func (m *member) again() {
	m.c.t.Helper()
	m.proc = m.start(m.args...)
	if f := m.proc.ready(); f.Key() != m.file.Key() {
		m.c.t.Errorf("%s: the subnets are %v, want %v", m.Name(), f.Key(), m.file.Key())
	}
}

// ends stops the daemon, as it should end.
func (m *member) ends() {
	m.c.t.Helper()
	if code, _ := m.proc.stop(); code != 0 {
		m.c.t.Errorf("%s: exit %d after SIGTERM", m.Name(), code)
	}
}

// lease is the host's lease in etcd.
func (m *member) lease(k keys) string {
	m.c.t.Helper()
	v, _ := k.value(subnetsKey + m.file.Key().String())
	return v
}

// mac is the Ethernet address of a device.
func (h *labHost) mac(device string) string {
	h.c.t.Helper()
	link, err := h.Netlink().LinkByName(device)
	h.c.must(err)
	return link.Attrs().HardwareAddr.String()
}

// kernel is what a host has of a backend: its devices, all on them, and all routes that
// somebody has made, but for default routes. Each is as the command ip shows it, nearly.
func (h *labHost) kernel() (all []string) {
	h.c.t.Helper()
	nl := h.Netlink()
	links, err := nl.LinkList()
	h.c.must(err)
	name := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		name[a.Index] = a.Name
		if !strings.HasPrefix(a.Name, "flannel") {
			continue
		}
		all = append(all, fmt.Sprintf("link %s mtu %d", a.Name, a.MTU))
		addrs, err := nl.AddrList(l, netlink.FAMILY_ALL)
		h.c.must(gone(err))
		for _, addr := range addrs {
			if addr.IP.IsLinkLocalUnicast() {
				continue // the kernel's own
			}
			all = append(all, fmt.Sprintf("addr %s dev %s", addr.IPNet, a.Name))
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
			neighs, err := nl.NeighList(a.Index, family)
			h.c.must(gone(err))
			for _, n := range neighs {
				switch {
				case n.State&netlink.NUD_PERMANENT == 0:
				case family == unix.AF_BRIDGE:
					all = append(all, fmt.Sprintf("fdb %s dst %s dev %s", n.HardwareAddr, n.IP, a.Name))
				default:
					all = append(all, fmt.Sprintf("neigh %s lladdr %s dev %s", n.IP, n.HardwareAddr, a.Name))
				}
			}
		}
	}
	for _, r := range h.routes() {
		all = append(all, routeLine(r, name[r.LinkIndex]))
	}
	slices.Sort(all)
	return all
}

// routeLine is a route as labHost.kernel has it.
func routeLine(r netlink.Route, device string) string {
	line := "route " + r.Dst.String()
	if r.Type != unix.RTN_UNICAST {
		line += fmt.Sprintf(" type %d", r.Type)
	}
	if r.Gw != nil {
		line += " via " + r.Gw.String()
	}
	if device != "" {
		line += " dev " + device
	}
	if r.Flags&int(netlink.FLAG_ONLINK) != 0 {
		line += " onlink"
	}
	return line
}

// routes are the main table's, but for those that the kernel makes, and default routes.
func (h *labHost) routes() (all []netlink.Route) {
	h.c.t.Helper()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.Netlink().RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		h.c.must(err)
		for _, r := range list {
			if r.Protocol != unix.RTPROT_KERNEL && r.Dst != nil && !r.Dst.IP.IsUnspecified() {
				all = append(all, r)
			}
		}
	}
	return all
}

// gone forgives that a device has just been removed.
func gone(err error) error {
	if err == unix.ENODEV || err == unix.EINVAL {
		return nil
	}
	return err
}

// mentions are those lines of the kernel's that have a word.
func (h *labHost) mentions(word string) (all []string) {
	h.c.t.Helper()
	for _, line := range h.kernel() {
		if slices.ContainsFunc(strings.Fields(line), func(w string) bool { return strings.HasPrefix(w, word) }) {
			all = append(all, line)
		}
	}
	return all
}

// checkKernel holds what a host has against what it is to have.
func (h *labHost) checkKernel(when string, want ...string) {
	h.c.t.Helper()
	want = slices.Sorted(slices.Values(want))
	var got []string
	end := time.Now().Add(patience / 4)
	for time.Now().Before(end) {
		if got = h.kernel(); slices.Equal(got, want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.c.t.Errorf("%s: %s the kernel has\n%s\nwant\n%s", h.Name(), when, strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// reachAll is reach for each two of the members.
func reachAll(all ...*member) {
	for i, a := range all {
		a.c.t.Helper()
		for _, b := range all[:i] {
			reach(a.pod, b.pod)
		}
	}
}

// between starts streams in both directions, which flow. They begin one after the other:
// two hosts that have nothing of each other yet and send at the same moment hold up
// WireGuard's handshake for five seconds or more.
func between(pairs ...*pod) (all []*stream) {
	for i, from := range pairs {
		s := startStream(from, pairs[i^1])
		s.t.Helper()
		s.flows()
		all = append(all, s)
	}
	for _, s := range all {
		s.skip()
	}
	return all
}

// noneLost checks that no datagram was lost since the last look.
func noneLost(when string, all []*stream) {
	for _, s := range all {
		s.t.Helper()
		n, of, names := s.lost()
		if n > 0 {
			s.t.Errorf("%s: %s: %d of %d datagrams lost: %s", when, s.name, n, of, names)
		}
		s.t.Logf("%s: %s: %d of %d datagrams lost", when, s.name, n, of)
	}
}

// A tap counts the IPv4 packets that cross the cluster's Ethernet, by what a function
// says of each. A packet is seen once on each port of the bridge.
type tap struct {
	fd   int
	wg   sync.WaitGroup
	end  chan struct{}
	once sync.Once

	mu   sync.Mutex
	seen map[string]int
}

// tap starts one. what may return "" for what is not to be counted.
func (c *cluster) tap(what func(packet []byte) string) *tap {
	c.t.Helper()
	p := &tap{end: make(chan struct{}), seen: map[string]int{}}
	c.must(c.wire.Do(func() (err error) {
		const everything = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, everything)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		return unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000})
	}))
	p.wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			select {
			case <-p.end:
				return
			default:
			}
			n, _, err := unix.Recvfrom(p.fd, b, 0)
			if err != nil || n < 20 || b[0]>>4 != 4 {
				continue
			}
			if s := what(b[:n]); s != "" {
				p.mu.Lock()
				p.seen[s]++
				p.mu.Unlock()
			}
		}
	})
	c.t.Cleanup(p.stop)
	return p
}

// count returns how many packets there were of which what said so.
func (p *tap) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[what]
}

// stop ends it.
func (p *tap) stop() {
	p.once.Do(func() {
		close(p.end)
		p.wg.Wait()
		unix.Close(p.fd)
	})
}

// destination is where an IPv4 packet goes, and the UDP port there, 0 for other
// protocols.
func destination(packet []byte) (to netip.Addr, port int) {
	to = netip.AddrFrom4([4]byte(packet[16:20]))
	if head := int(packet[0]&15) * 4; packet[9] == unix.IPPROTO_UDP && len(packet) >= head+8 {
		port = int(packet[head+2])<<8 | int(packet[head+3])
	}
	return to, port
}

// etcdApart gives the hosts an Ethernet of its own to etcd, so that their connections
// to it survive whatever happens to eth0.
func (c *cluster) etcdApart() {
	c.t.Helper()
	var ports []string
	for i, h := range c.hosts {
		port := fmt.Sprintf("apart%d", i+1)
		c.must(c.lab.Veth(h.NS, "eth9", c.wire, port, 1500))
		ports = append(ports, port)
	}
	c.must(c.wire.Bridge("br9", ports...))
	router := netip.MustParseAddr("203.0.113.254")
	c.must(c.wire.AddAddr("br9", netip.PrefixFrom(router, 24)))
	for i, h := range c.hosts {
		c.must(h.AddAddr("eth9", netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), 24)))
		// The kernel's own kind of route, so that labHost.kernel has nothing of it.
		link, err := h.Netlink().LinkByName("eth9")
		c.must(err)
		c.must(h.Netlink().RouteAdd(&netlink.Route{Dst: hostNet(gateway), Gw: router.AsSlice(), LinkIndex: link.Attrs().Index, Protocol: unix.RTPROT_KERNEL}))
	}
}

// hostNet is an address alone, as netlink wants it.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// farHost puts a host on an Ethernet of its own, 198.51.100.0/24, with the etcd's host
// as the router between.
func (c *cluster) farHost(h *labHost) {
	c.t.Helper()
	router := netip.MustParseAddr("198.51.100.254")
	c.must(h.DelLink("eth0"))
	c.must(c.lab.Veth(h.NS, "eth0", c.wire, "far", 1500))
	h.addr = netip.AddrFrom4([4]byte{198, 51, 100, h.addr.As4()[3]})
	c.must(c.wire.AddAddr("far", netip.PrefixFrom(router, 24)))
	c.must(c.wire.Sysctl("net/ipv4/ip_forward", "1"))
	c.must(h.AddAddr("eth0", netip.PrefixFrom(h.addr, 24)))
	c.must(h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), router, "eth0", 0))
}

// moves gives a host another address, and with it the default route again.
func (m *member) moves(to netip.Addr) {
	m.c.t.Helper()
	link, err := m.Netlink().LinkByName("eth0")
	m.c.must(err)
	m.c.must(m.Netlink().AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: m.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	m.addr = to
	m.c.must(m.AddAddr("eth0", netip.PrefixFrom(to, 24)))
	m.c.must(m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0))
}

// eachBackend runs a test with backends, given as the configuration has them, at the
// same time.
func eachBackend(t *testing.T, test func(t *testing.T, name string), names ...string) {
	t.Parallel()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			netlab.Require(t, netlab.NeedVXLAN)
			test(t, name)
		})
	}
}
