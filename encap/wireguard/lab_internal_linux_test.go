package wireguard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// The lab is hosts on one bridge, each with a backend of this process. A host's pod is
// an address of its subnet on lo. Leases are made by hand.

// patience bounds what must happen sooner or later. No test measures time.
const patience = 60 * time.Second

type lab struct {
	*netlab.Lab
	t       *testing.T
	wire    *netlab.NS // has the bridge, br0
	network lease.Network
	hosts   []*host
	dir     string
}

type host struct {
	*netlab.NS
	lab  *lab
	n    int
	log  *testlog.Messages
	b    *wireguard
	impl Implementation
	at   backend.Host
	own  lease.Lease
	pod  [2]netip.Addr // IPv4 and IPv6
	key  string        // file
	keys string        // Backend of its configuration, if not the lab's
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// waitFor fails the test unless ok becomes true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// needs skips the test where the implementation is not to be had.
func needs(t *testing.T, impls ...Implementation) {
	t.Helper()
	netlab.Require(t, netlab.NeedIPv6)
	for _, impl := range impls {
		switch impl {
		case Userspace, Auto: // which is that where the kernel has none
			netlab.Require(t, netlab.NeedTUN)
		case Kernel:
			if err := kernelHas(t); errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("this kernel has no WireGuard (modprobe wireguard, or CONFIG_WIREGUARD); the tests in a virtual machine have it")
			}
		}
	}
}

// kernelHas tries whether the kernel makes WireGuard devices.
func kernelHas(t *testing.T) error {
	t.Helper()
	l := netlab.ForTest(t)
	ns, err := l.Namespace("probe")
	check(t, err)
	return ns.Netlink().LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
}

// newLab makes a host for each implementation. keys are those of the configuration's
// Backend, as JSON.
func newLab(t *testing.T, keys string, impls ...Implementation) *lab {
	t.Helper()
	needs(t, impls...)
	l := &lab{Lab: netlab.ForTest(t), t: t, dir: t.TempDir()}
	l.network = lease.Network{
		IPv4:        lease.Range{Prefix: netip.MustParsePrefix("10.244.0.0/16"), SubnetLen: 24},
		IPv6:        lease.Range{Prefix: netip.MustParsePrefix("fd00:244::/32"), SubnetLen: 64},
		BackendType: "wireguard", Backend: json.RawMessage(keys),
	}
	var err error
	l.wire, err = l.Namespace("wire")
	check(t, err)
	check(t, l.wire.Bridge("br0"))
	for i, impl := range impls {
		l.addHost(i+1, impl)
	}
	return l
}

func (l *lab) addHost(n int, impl Implementation) *host {
	l.t.Helper()
	ns, err := l.Namespace(fmt.Sprintf("host%d", n))
	check(l.t, err)
	h := &host{NS: ns, lab: l, n: n, log: &testlog.Messages{}, impl: impl, key: filepath.Join(l.dir, "keys", fmt.Sprint(n))}
	// Else the second address of a subnet goes with the first.
	check(l.t, ns.Sysctl("net/ipv4/conf/all/promote_secondaries", "1"))
	port := fmt.Sprintf("port%d", n)
	check(l.t, l.Veth(ns, "eth0", l.wire, port, 1500))
	br, err := l.wire.Netlink().LinkByName("br0")
	check(l.t, err)
	end, err := l.wire.Netlink().LinkByName(port)
	check(l.t, err, l.wire.Netlink().LinkSetMaster(end, br))
	addr := func(format string) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, n)) }
	h.at = backend.Host{Link: "eth0", MTU: 1500, Addr4: addr("192.0.2.%d"), Addr6: addr("2001:db8::%d")}
	h.at.Public4, h.at.Public6 = h.at.Addr4, h.at.Addr6
	h.pod = [2]netip.Addr{addr("10.244.%d.2"), addr("fd00:244:%d::2")}
	h.own.Subnet = netip.PrefixFrom(addr("10.244.%d.0"), 24)
	h.own.Subnet6 = netip.PrefixFrom(addr("fd00:244:%d::"), 64)
	check(l.t, h.AddAddr("eth0", netip.PrefixFrom(h.at.Addr4, 24)), h.AddAddr("eth0", netip.PrefixFrom(h.at.Addr6, 64)))
	check(l.t, h.AddAddr("lo", netip.PrefixFrom(h.pod[0], 32)), h.AddAddr("lo", netip.PrefixFrom(h.pod[1], 128)))
	l.hosts = append(l.hosts, h)
	return h
}

// start has a new backend on the host.
func (h *host) start() {
	h.lab.t.Helper()
	if _, err := h.tryStart(); err != nil {
		h.lab.t.Fatalf("host%d: %v", h.n, err)
	}
	h.lab.t.Cleanup(func() { check(h.lab.t, h.b.Close(false)) })
}

func (h *host) tryStart() (mtu int, err error) {
	h.lab.t.Helper()
	network := h.lab.network
	if h.keys != "" {
		network.Backend = json.RawMessage(h.keys)
	}
	b, err := New(Options{KeyFile: h.key, Implementation: h.impl})(backend.Params{Network: network, Log: h.log.Logger()})
	check(h.lab.t, err)
	h.b = b.(*wireguard)
	ctx := context.Background()
	attrs, err := h.b.Prepare(ctx, h.at)
	check(h.lab.t, err)
	attrs.PublicIP, attrs.PublicIPv6 = h.at.Public4, h.at.Public6
	h.own.Attrs = attrs
	h.own.Revision++
	err = h.Do(func() error {
		var err error
		mtu, err = h.b.Start(ctx, h.at, h.own)
		return err
	})
	if err != nil {
		_ = h.b.Close(false)
	}
	return mtu, err
}

// startAll starts all and makes them known to each other.
func (l *lab) startAll() {
	l.t.Helper()
	for _, h := range l.hosts {
		h.start()
	}
	l.syncAll()
}

func (l *lab) syncAll() {
	l.t.Helper()
	for _, h := range l.hosts {
		h.sync(l.hosts...)
	}
}

// sync makes the other hosts known to one.
func (h *host) sync(hosts ...*host) {
	h.lab.t.Helper()
	check(h.lab.t, h.b.Sync(context.Background(), leases(h, hosts...)))
}

func leases(but *host, hosts ...*host) (all []lease.Lease) {
	for _, h := range hosts {
		if h != but {
			all = append(all, h.own)
		}
	}
	return all
}

// socket opens a UDP socket in a namespace.
func socket(t *testing.T, ns *netlab.NS, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	check(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a datagram from one pod to another until it arrives, or tries are over,
// and reports whether it did. One is sent each 50 ms.
func ask(from, to *host, family, tries int) bool {
	return send(from.lab.t, from.NS, netip.AddrPortFrom(from.pod[family], 0), to.NS, netip.AddrPortFrom(to.pod[family], 7777), tries)
}

func send(t *testing.T, fromNS *netlab.NS, from netip.AddrPort, toNS *netlab.NS, to netip.AddrPort, tries int) bool {
	t.Helper()
	server, client := socket(t, toNS, to), socket(t, fromNS, from)
	defer server.Close()
	defer client.Close()
	port := client.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	buf := make([]byte, 2000)
	for i := range tries {
		text := fmt.Sprintf("%s number %d", plaintext, i)
		if _, err := client.WriteToUDPAddrPort([]byte(text), to); err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, src, err := server.ReadFromUDPAddrPort(buf)
		if err == nil && src.Port() == port && strings.HasPrefix(string(buf[:n]), plaintext) { // and no late one of another call
			return true
		}
	}
	return false
}

// plaintext must not be seen on the wire.
const plaintext = "flannelkit: this is plain text"

// reach fails the test unless packets of both families pass between two hosts.
func reach(t *testing.T, a, b *host) {
	t.Helper()
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, way := range [][2]*host{{a, b}, {b, a}} {
			if !ask(way[0], way[1], family, int(patience/(50*time.Millisecond))) {
				t.Fatalf("%s from host%d to host%d does not arrive", name, way[0].n, way[1].n)
			}
		}
	}
}

// sniff calls fn with each frame on the bridge until stop is called, which returns
// what fn has returned: how many were of interest.
func (l *lab) sniff(fn func(frame []byte) bool) (stop func() int) {
	l.t.Helper()
	var fd int
	check(l.t, l.wire.Do(func() (err error) {
		all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000})
	}))
	quit, count := make(chan struct{}), make(chan int)
	go func() {
		n, ending := 0, false
		buf := make([]byte, 1<<16)
		for {
			m, _, err := unix.Recvfrom(fd, buf, 0)
			switch {
			case err == nil:
				if fn(buf[:m]) {
					n++
				}
				continue
			case errors.Is(err, syscall.EINTR):
				continue
			}
			select {
			case <-quit:
				if ending {
					count <- n
					return
				}
				ending = true // what came after the silence is to be read first
			default:
			}
		}
	}()
	return func() int {
		close(quit)
		n := <-count
		_ = unix.Close(fd)
		return n
	}
}

func hasPlaintext(frame []byte) bool { return bytes.Contains(frame, []byte(plaintext)) }

// link returns a device of a host, nil if there is none.
func (h *host) link(name string) netlink.Link {
	l, err := h.Netlink().LinkByName(name)
	if err != nil {
		return nil
	}
	return l
}

// leaks fails the test unless goroutines and descriptors are back to what they were
// when it was called.
func leaks(t *testing.T) (done func()) {
	t.Helper()
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(list)
	}
	g, f := runtime.NumGoroutine(), files()
	return func() {
		t.Helper()
		deadline := time.Now().Add(patience)
		for runtime.NumGoroutine() > g || files() > f {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), g, files(), f, buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}
