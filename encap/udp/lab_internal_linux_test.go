package udp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// The fixture of the tests with namespaces: two hosts, each with a backend of this
// process on it, started by backend.New alone. Leases are made by hand.

// patience bounds what must happen sooner or later. No test measures time.
const patience = 20 * time.Second

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// eventually polls ok until it is true or patience is over.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// waitFor fails the test unless ok becomes true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !eventually(ok) {
		t.Fatalf("not after %v: %s", patience, what)
	}
}

// labConfig says what newLab builds. The zero value is two dual-stack hosts with
// pods.
type labConfig struct {
	Net     netlab.TwoHostsConfig // Pods is always on
	V4Only  bool                  // no IPv6 anywhere
	Outer6  bool                  // public addresses: IPv6 alone
	Network func(*lease.Network)
}

// lab is two hosts.
type lab struct {
	*netlab.TwoHosts
	t       *testing.T
	network lease.Network
	a, b    *node
}

// node is one host: its backend changes, its lease does not.
type node struct {
	*netlab.Host
	t    *testing.T
	lab  *lab
	b    backend.Backend
	log  *testlog.Messages
	host backend.Host
	own  lease.Lease

	without uint32 // capabilities that Start does not have, as bits
	files   uint64 // descriptors that Start may open, less one; 0: any number
}

func newLab(t *testing.T, cfg labConfig) *lab {
	t.Helper()
	needs := []netlab.Need{netlab.NeedTUN}
	if !cfg.V4Only {
		needs = append(needs, netlab.NeedIPv6)
	}
	netlab.Require(t, needs...)
	nl, err := netlab.New()
	check(t, err)
	t.Cleanup(func() {
		if err := nl.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg.Net.Pods, cfg.Net.IPv6 = true, !cfg.V4Only
	hosts, err := nl.TwoHosts(cfg.Net)
	check(t, err)
	l := &lab{TwoHosts: hosts, t: t, network: lease.Network{
		IPv4:        lease.Range{Prefix: hosts.Network4, SubnetLen: 24},
		BackendType: "udp",
	}}
	if !cfg.V4Only {
		l.network.IPv6 = lease.Range{Prefix: hosts.Network6, SubnetLen: 64}
	}
	if cfg.Network != nil {
		cfg.Network(&l.network)
	}
	l.a, l.b = l.newNode(hosts.HostA, cfg), l.newNode(hosts.HostB, cfg)
	return l
}

func (l *lab) newNode(h *netlab.Host, cfg labConfig) *node {
	l.t.Helper()
	link, err := h.Netlink().LinkByName(h.Underlay)
	check(l.t, err)
	n := &node{Host: h, t: l.t, lab: l, log: &testlog.Messages{}}
	n.host = backend.Host{Link: h.Underlay, LinkIndex: link.Attrs().Index, MTU: l.MTU}
	if !cfg.Outer6 {
		n.host.Addr4, n.host.Public4 = h.Addr4.Addr(), h.Addr4.Addr()
		n.own.Attrs.PublicIP = n.host.Public4
	}
	if cfg.Outer6 {
		n.host.Addr6, n.host.Public6 = h.Addr6.Addr(), h.Addr6.Addr()
		n.own.Attrs.PublicIPv6 = n.host.Public6
	}
	if l.network.IPv4.Enabled() {
		n.own.Subnet = h.Subnet4
	}
	if l.network.IPv6.Enabled() {
		n.own.Subnet6 = h.Subnet6
	}
	return n
}

// inner lists whether tests are for IPv4 (false) and IPv6 (true) inside.
func (l *lab) inner() (v6 []bool) {
	if l.network.IPv4.Enabled() {
		v6 = append(v6, false)
	}
	if l.network.IPv6.Enabled() {
		v6 = append(v6, true)
	}
	return v6
}

// make makes the node's next backend.
func (n *node) make(opts Options) {
	n.t.Helper()
	b, err := New(opts)(n.params())
	check(n.t, err)
	n.b = b
	n.t.Cleanup(func() {
		if err := b.Close(false); err != nil {
			n.t.Errorf("%s: %v", n.Name(), err)
		}
		if n.t.Failed() {
			n.t.Logf("%s logged:\n%s", n.Name(), strings.Join(n.log.With(), "\n"))
		}
	})
}

func (n *node) params() backend.Params {
	return backend.Params{Network: n.lab.network, Log: n.log.Logger()}
}

// tryStart starts the backend inside the host.
func (n *node) tryStart() (mtu int, err error) {
	n.t.Helper()
	if e := n.Do(func() error {
		return withoutCaps(n.without, func() error {
			return withFiles(n.files, func() error {
				mtu, err = n.b.Start(n.t.Context(), n.host, n.own)
				return nil
			})
		})
	}); e != nil {
		n.t.Fatal(e)
	}
	return mtu, err
}

// start makes and starts a backend whose peer is the other host.
func (n *node) start(opts Options) {
	n.t.Helper()
	n.make(opts)
	_, err := n.tryStart()
	check(n.t, err, n.b.Sync(n.t.Context(), n.peers()))
	n.settle()
}

// peers is the other host's lease.
func (n *node) peers() []lease.Lease {
	if n == n.lab.a {
		return []lease.Lease{n.lab.b.own}
	}
	return []lease.Lease{n.lab.a.own}
}

// startBoth starts both hosts.
func (l *lab) startBoth(opts Options) {
	l.t.Helper()
	l.a.start(opts)
	l.b.start(opts)
}

// settle waits until the kernel takes the host's addresses for its own: for IPv6
// ones it makes the route a moment after the address.
func (n *node) settle() {
	n.t.Helper()
	for _, s := range n.own.Prefixes() {
		waitFor(n.t, fmt.Sprintf("%v is local", s.Addr()), func() bool { return here(n.Netlink(), s.Addr()) })
	}
	if n.own.Subnet6.IsValid() {
		waitFor(n.t, "the pod's address is local", func() bool { return here(n.Pod.Netlink(), n.PodAddr6) })
	}
}

// here asks the kernel whether it takes an address for its own.
func here(nl *netlink.Handle, a netip.Addr) bool {
	routes, err := nl.RouteGet(a.AsSlice())
	return err == nil && len(routes) == 1 && (routes[0].Type == unix.RTN_LOCAL || routes[0].Table == unix.RT_TABLE_LOCAL)
}

// state is what the kernel has for the overlay.
type state struct {
	Up     bool
	MTU    int
	Addrs  []string
	Routes []string // main table's routes on the device
}

// state reads a device; ok is false if there is none.
func (n *node) state(dev string) (s state, ok bool) {
	n.t.Helper()
	link, err := n.Netlink().LinkByName(dev)
	if err != nil {
		return s, false
	}
	s.Up, s.MTU = link.Attrs().Flags&net.FlagUp != 0, link.Attrs().MTU
	addrs, err := rtnl.Again(func() ([]netlink.Addr, error) { return n.Netlink().AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return s, false
	}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, rtnl.Prefix(a.IPNet).String())
	}
	routes, err := rtnl.Again(func() ([]netlink.Route, error) { return n.Netlink().RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return s, false
	}
	for _, r := range routes {
		// The kernel's own: an IPv6 address makes one in the main table too.
		if r.Protocol != unix.RTPROT_KERNEL {
			s.Routes = append(s.Routes, rtnl.Prefix(r.Dst).String())
		}
	}
	slices.Sort(s.Addrs)
	slices.Sort(s.Routes)
	return s, true
}

// wanted is the state that a started host must have.
func (n *node) wanted(mtu int) state {
	s := state{Up: true, MTU: mtu}
	for _, p := range n.own.Prefixes() {
		s.Addrs = append(s.Addrs, hostAddress(p).String())
	}
	for _, r := range []lease.Range{n.lab.network.IPv4, n.lab.network.IPv6} {
		if r.Enabled() {
			s.Routes = append(s.Routes, r.Prefix.String())
		}
	}
	slices.Sort(s.Addrs)
	slices.Sort(s.Routes)
	return s
}

// waitState waits for the wanted state.
func (n *node) waitState(dev string, mtu int) {
	n.t.Helper()
	want := n.wanted(mtu)
	var got state
	if !eventually(func() bool { got, _ = n.state(dev); return fmt.Sprint(got) == fmt.Sprint(want) }) {
		n.t.Fatalf("%s: %s is %+v, not %+v", n.Name(), dev, got, want)
	}
}

// place is where a socket can be.
type place struct {
	ns    *netlab.NS
	addr4 netip.Addr
	addr6 netip.Addr
}

func (p place) addr(v6 bool) netip.Addr {
	if v6 {
		return p.addr6
	}
	return p.addr4
}

func (n *node) pod() place { return place{n.Pod, n.PodAddr4, n.PodAddr6} }

// self is the host by its overlay addresses.
func (n *node) self() place { return place{n.NS, n.Subnet4.Addr(), n.Subnet6.Addr()} }

// exchange sends bytes both ways over a TCP connection and compares them.
func exchange(from, to place, v6 bool) error {
	const size = 1 << 20
	deadline := time.Now().Add(patience)
	var ln *net.TCPListener
	if err := to.ns.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.addr(v6), 0)))
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	var near net.Conn
	if err := from.ns.Do(func() (err error) {
		near, err = (&net.Dialer{Deadline: deadline}).Dial("tcp", ln.Addr().String())
		return err
	}); err != nil {
		return err
	}
	defer near.Close()
	ln.SetDeadline(deadline)
	far, err := ln.Accept()
	if err != nil {
		return err
	}
	defer far.Close()
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	there := bytes.Repeat([]byte("the quick brown fox "), size/20)
	back := bytes.ToUpper(there)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	wg.Go(func() { _, errs[0] = near.Write(there) })
	wg.Go(func() { _, errs[1] = far.Write(back) })
	wg.Go(func() { errs[2] = expect(far, there) })
	wg.Go(func() { errs[3] = expect(near, back) })
	wg.Wait()
	return errors.Join(errs...)
}

func expect(r io.Reader, want []byte) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes arrive than were sent")
	}
	return nil
}

// talk checks that everything passes between the hosts and between the pods.
func (l *lab) talk() {
	l.t.Helper()
	for _, v6 := range l.inner() {
		for _, pair := range [][2]place{{l.a.pod(), l.b.pod()}, {l.b.pod(), l.a.pod()}, {l.a.self(), l.b.self()}, {l.b.self(), l.a.pod()}} {
			if err := exchange(pair[0], pair[1], v6); err != nil {
				l.t.Fatalf("%v to %v: TCP: %v", pair[0].addr(v6), pair[1].addr(v6), err)
			}
			if err := ping(pair[0], pair[1], v6); err != nil {
				l.t.Fatalf("%v to %v: %v", pair[0].addr(v6), pair[1].addr(v6), err)
			}
		}
	}
}

// openPath opens a namespace's path until the test ends.
func openPath(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// listen takes the port of the network on an address.
func (n *node) listen(a netip.Addr) (c *net.UDPConn) {
	n.t.Helper()
	check(n.t, n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, encap.DefaultPort)))
		return err
	}))
	return c
}

// slow skips a test that takes long, most of all under the race detector.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some seconds: not with -short")
	}
}
