package ipip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease"
)

// The tests in here need a kernel with ipip devices. In a machine without, package vm
// runs them in one that has.

var none netip.Prefix

// three starts three hosts that know each other.
func (l *lab) three() (a, b, c *host) {
	l.t.Helper()
	a, b, c = l.host(1, l.sw, none), l.host(2, l.sw, none), l.host(3, l.sw, none)
	for _, h := range []*host{a, b, c} {
		h.start()
	}
	must(l.t, a.sync(b, c))
	must(l.t, b.sync(a, c))
	must(l.t, c.sync(a, b))
	return a, b, c
}

// device returns flannel.ipip, nil if there is none.
func (h *host) device() *netlink.Iptun {
	h.t.Helper()
	d, err := h.Netlink().LinkByName(device)
	if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
		return nil
	}
	must(h.t, err)
	return d.(*netlink.Iptun)
}

// addrs lists the IPv4 addresses of flannel.ipip.
func (h *host) addrs() (list []string) {
	h.t.Helper()
	all, err := h.Netlink().AddrList(h.device(), netlink.FAMILY_V4)
	must(h.t, err)
	for _, a := range all {
		list = append(list, a.IPNet.String())
	}
	return list
}

// eventually waits until something holds, and returns how long that took.
func (h *host) eventually(what string, ok func() bool) time.Duration {
	h.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			h.t.Fatalf("host %d: %s does not come", h.n, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

func TestKernelPeers(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	d := a.device()
	if d == nil || d.MTU != 1480 || addrOf(d.Local) != ip("192.0.2.1") || addrOf(d.Remote) != ip("0.0.0.0") || d.Proto != protocol || d.Ttl != 0 || d.PMtuDisc != 0 {
		t.Fatalf("the device is %+v", d)
	}
	if list := fmt.Sprint(a.addrs()); list != "[10.5.1.0/32]" {
		t.Errorf("its addresses are %v", list)
	}
	a.wants(through(device, b, c))
	for _, pair := range [][2]*host{{a, b}, {b, c}, {c, a}} {
		pair[0].reaches(pair[1])
	}
	// From the host itself, with the device's address, to a container.
	if err := exchange(a, b, a.own.Subnet.Addr(), b.container()); err != nil {
		t.Error(err)
	}
	must(t, a.sync(b)) // c leaves
	a.wants(through(device, b))
	must(t, a.sync(b, c)) // and joins again
	a.reaches(c)

	// b moves to another address.
	must(t, b.AddAddr("eth0", prefix("192.0.2.22/24")))
	b.at(ip("192.0.2.22"))
	b.start()
	if d := b.device(); addrOf(d.Local) != ip("192.0.2.22") {
		t.Errorf("the device is at %v", d.Local)
	}
	must(t, b.sync(a, c))
	before := a.b.Stats().Writes
	must(t, a.sync(b, c))
	if n := a.b.Stats().Writes - before; n != 2 {
		t.Errorf("a changed peer costs %d changes, want the route and the filter", n)
	}
	must(t, c.sync(a, b))
	a.wants(through(device, b, c))
	a.reaches(b)
	b.reaches(c)
	must(t, a.b.Close(false))
	a.wants()
	if a.device() != nil || a.tables() != 0 {
		t.Errorf("Close left the device %v, and %d tables", a.device(), a.tables())
	}
}

func (h *host) tables() (n int) {
	h.t.Helper()
	must(h.t, h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		list, err := c.ListTables()
		n = len(list)
		return err
	}))
	return n
}

// TestKernelDirectRouting: peers on the link are reached directly, the others through
// the tunnel, and each changes its way with the network.
func TestKernelDirectRouting(t *testing.T) {
	l := newLab(t)
	far := l.namespace("far")
	must(t, far.Bridge("br0"))
	router := l.namespace("router")
	l.plug(l.sw, router, "eth0")
	l.plug(far, router, "eth1")
	must(t, router.AddAddr("eth0", prefix("192.0.2.254/24")))
	must(t, router.AddAddr("eth1", prefix("198.51.100.254/24")))
	must(t, router.Sysctl("net/ipv4/ip_forward", "1"))
	a, b, d := l.host(1, l.sw, none), l.host(2, l.sw, none), l.host(4, far, prefix("198.51.100.4/24"))
	for _, h := range []*host{a, b} {
		must(t, h.AddRoute(prefix("0.0.0.0/0"), ip("192.0.2.254"), "eth0", 0))
	}
	must(t, d.AddRoute(prefix("0.0.0.0/0"), ip("198.51.100.254"), "eth0", 0))
	for _, h := range []*host{a, b, d} {
		h.part = `{"Type":"ipip","DirectRouting":true}`
		h.b = h.backend()
		h.start()
	}
	must(t, a.sync(b, d))
	must(t, b.sync(a, d))
	must(t, d.sync(a, b))
	a.wants(through("eth0", b), through(device, d))
	d.wants(through(device, a, b))
	a.reaches(b)
	before, err := a.LinkStats(device)
	must(t, err)
	a.reaches(d)
	after, err := a.LinkStats(device)
	must(t, err)
	if after == before {
		t.Error("nothing went through the tunnel")
	}
	// b goes behind the router, as far as a knows: both ways must work.
	must(t, a.AddRoute(prefix("192.0.2.2/32"), ip("192.0.2.254"), "eth0", 0))
	t.Logf("the tunnel is taken %v later", a.waits(through(device, b, d)))
	a.reaches(b)
	must(t, a.DelRoute(prefix("192.0.2.2/32"), ip("192.0.2.254"), "eth0"))
	must(t, a.sync(b, d))
	a.wants(through("eth0", b), through(device, d))
	a.reaches(b)
}

// TestKernelSpoofing: who is no peer, or pretends to be another one, is not heard in
// the containers; without the filter it is.
func TestKernelSpoofing(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	stranger := l.namespace("stranger")
	l.plug(l.sw, stranger, "eth0")
	must(t, stranger.AddAddr("eth0", prefix("192.0.2.66/24")))
	got := a.listen(a.container())
	if err := exchange(b, a, b.container(), a.container()); err != nil {
		t.Fatal(err)
	}
	// fire has a host send a datagram as if b's containers had sent it, and then b
	// send one, and says which came.
	fire := func(from *netlab.NS, outer netip.Addr) (spoofed bool) {
		t.Helper()
		must(t, from.Do(func() error { return sendDatagram(outer, b.container(), got, "spoofed") }))
		real := b.listen(b.container())
		buf := make([]byte, 100)
		for range 20 {
			_, err := real.WriteTo([]byte("real"), got.LocalAddr())
			must(t, err)
			_ = got.SetReadDeadline(time.Now().Add(patience / 20))
			for {
				n, err := got.Read(buf)
				if err != nil {
					break
				}
				if string(buf[:n]) == "real" {
					return spoofed
				}
				spoofed = true
			}
		}
		t.Fatal("nothing arrives")
		return false
	}
	for range 2 { // the first one may be lost while the neighbour is unknown
		if fire(stranger, ip("192.0.2.66")) {
			t.Error("a stranger is heard")
		}
		if fire(c.NS, ip("192.0.2.3")) {
			t.Error("a peer is heard as another one")
		}
		if !fire(b.NS, ip("192.0.2.2")) {
			t.Error("the peer itself is not heard: the test proves nothing")
		}
	}
	a.opts.NoFilter = true
	a.restart(true)
	must(t, a.sync(b, c))
	if n := a.tables(); n != 0 {
		t.Errorf("without the filter there are %d tables", n)
	}
	if !fire(stranger, ip("192.0.2.66")) {
		t.Error("a stranger is not heard without the filter: the test proves nothing")
	}
}

// sendDatagram sends a packet in a packet with a UDP datagram to a socket.
func sendDatagram(outer, inner netip.Addr, to *net.UDPConn, text string) error {
	c, err := net.ListenIP("ip4:4", &net.IPAddr{IP: outer.AsSlice()})
	if err != nil {
		return err
	}
	defer c.Close()
	at := to.LocalAddr().(*net.UDPAddr).AddrPort()
	p := make([]byte, 28+len(text))
	p[0], p[3], p[8], p[9] = 0x45, byte(len(p)), 64, unix.IPPROTO_UDP
	copy(p[12:], inner.AsSlice())
	copy(p[16:], at.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 { // RFC 791 section 3.1; UDP's may be 0
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16)
	p[10], p[11] = byte(sum>>8), byte(sum)
	p[21], p[22], p[23], p[25] = 9, byte(at.Port()>>8), byte(at.Port()), byte(8+len(text))
	copy(p[28:], text)
	_, err = c.WriteToIP(p, &net.IPAddr{IP: net.IPv4(192, 0, 2, 1)})
	return err
}

func TestKernelRepair(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	must(t, a.DelRoute(prefix("10.5.2.0/24"), ip("192.0.2.2"), device))
	t.Logf("the route is back after %v", a.waits(through(device, b, c)))
	must(t, a.Netlink().AddrDel(a.device(), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 5, 1, 0), Mask: net.CIDRMask(32, 32)}}))
	t.Logf("the address is back after %v", a.eventually("the address", func() bool { return fmt.Sprint(a.addrs()) == "[10.5.1.0/32]" }))
	must(t, a.DelLink(device))
	t.Logf("the device is back after %v", a.eventually("the device", func() bool { return a.device() != nil }))
	t.Logf("and the routes %v later", a.waits(through(device, b, c)))
	a.reaches(b)
	must(t, a.Down(device))
	t.Logf("the routes are back %v after the device was taken down", a.waits(through(device, b, c)))
	must(t, a.SetMTU(device, 1400))
	t.Logf("the MTU is back after %v", a.eventually("the MTU", func() bool { return a.device().MTU == 1480 }))
	must(t, a.Down("eth0"))
	must(t, a.Up("eth0"))
	a.waits(through(device, b, c))
	a.reaches(b)
	// The filter is looked after in each round, by the next one.
	must(t, a.Do(func() error {
		n, err := nftables.New()
		if err == nil {
			n.FlushRuleset()
			err = n.Flush()
		}
		return err
	}))
	must(t, a.sync(b, c))
	if a.tables() != 1 {
		t.Error("the filter is not back")
	}
	a.reaches(b)
}

// TestKernelPredecessor: flannel's device is taken over, with the routes that are
// right; what is others' stays.
func TestKernelPredecessor(t *testing.T) {
	l := newLab(t)
	a, b := l.host(1, l.sw, none), l.host(2, l.sw, none)
	nl := a.Netlink()
	must(t, nl.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: device, MTU: 1480}, Local: net.IPv4(192, 0, 2, 1).To4()}))
	must(t, a.AddAddr(device, prefix("10.5.1.0/32")))
	must(t, a.AddAddr(device, prefix("10.5.77.0/32"))) // of a lease before
	must(t, a.Up(device))
	index := a.device().Index
	// Another tunnel of the operator's, from the same address.
	must(t, nl.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "mine"}, Local: net.IPv4(192, 0, 2, 1).To4(), Remote: net.IPv4(192, 0, 2, 9).To4()}))
	must(t, a.Up("mine"))
	onlink := func(dst, gw, link string) {
		t.Helper()
		dev, err := nl.LinkByName(link)
		must(t, err)
		_, n, err := net.ParseCIDR(dst)
		must(t, err)
		must(t, nl.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(gw), LinkIndex: dev.Attrs().Index, Flags: int(netlink.FLAG_ONLINK)}))
	}
	onlink("10.5.2.0/24", "192.0.2.2", device)
	onlink("10.5.8.0/24", "192.0.2.8", device) // gone
	onlink("10.5.9.0/24", "192.0.2.9", "eth0") // gone, and was routed directly
	onlink("10.77.0.0/24", "192.0.2.19", "mine")
	a.start()
	must(t, a.sync(b))
	a.wants(through(device, b))
	if d := a.device(); d.Index != index {
		t.Error("flannel's device was not taken over")
	}
	if list := fmt.Sprint(a.addrs()); list != "[10.5.1.0/32]" {
		t.Errorf("the addresses are %v", list)
	}
	b.start()
	must(t, b.sync(a))
	a.reaches(b)
	// What comes for the other tunnel reaches it.
	end := l.namespace("end")
	l.plug(l.sw, end, "eth0")
	must(t, end.AddAddr("eth0", prefix("192.0.2.9/24")))
	must(t, end.Netlink().LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "mine"}, Local: net.IPv4(192, 0, 2, 9).To4(), Remote: net.IPv4(192, 0, 2, 1).To4()}))
	must(t, end.AddAddr("mine", prefix("203.0.113.2/30")))
	must(t, a.AddAddr("mine", prefix("203.0.113.1/30")))
	must(t, end.Up("mine"))
	other := &host{NS: end, t: t}
	if err := exchange(other, a, ip("203.0.113.2"), ip("203.0.113.1")); err != nil {
		t.Error("the operator's tunnel:", err)
	}
	must(t, a.b.Close(false))
	if _, err := nl.LinkByName("mine"); err != nil {
		t.Error(err)
	}
	if _, err := nl.LinkByName("tunl0"); err != nil {
		t.Log("there is no tunl0:", err)
	}
}

// TestKernelUnfit: a device that can't be used is made anew.
func TestKernelUnfit(t *testing.T) {
	l := newLab(t)
	a, b := l.host(1, l.sw, none), l.host(2, l.sw, none)
	must(t, a.Netlink().LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: device, MTU: 1480}, Local: net.IPv4(192, 0, 2, 250).To4()}))
	must(t, b.Bridge(device)) // not even a tunnel
	a.start()
	b.start()
	must(t, a.sync(b))
	must(t, b.sync(a))
	a.reaches(b)
	if a.log.Count("made anew", "192.0.2.250") != 1 {
		t.Errorf("the log has %q", a.log.With())
	}
}

func TestKernelRestart(t *testing.T) {
	l := newLab(t)
	a, b, c := l.three()
	a.reaches(b)
	s := startStream(a, b)
	for range 5 {
		s.More(t, 100)
		a.restart(true)
		s.More(t, 100)
		must(t, a.sync(b, c))
		if n := a.b.Stats().Writes; n != 0 {
			t.Errorf("a restart made %d changes", n)
		}
	}
	sent, lost := s.End(t)
	t.Logf("%d datagrams", sent)
	if sent == 0 || lost > 0 {
		t.Errorf("%d of %d datagrams lost over restarts", lost, sent)
	}
}

// TestKernelThousand: many peers are there soon, and a change costs what it is.
func TestKernelThousand(t *testing.T) {
	l := newLab(t)
	a := l.host(1, l.sw, none)
	leases := make([]lease.Lease, 1000)
	for i := range leases {
		leases[i] = lease.Lease{Attrs: lease.Attrs{BackendType: "ipip", PublicIP: netip.AddrFrom4([4]byte{172, 16, byte(1 + i/200), byte(1 + i%200)})}}
		leases[i].Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(16 + i/8), byte(i % 8 * 32)}), 27)
	}
	a.start()
	made := a.b.Stats().Writes
	step := func(want uint64, what string, leases []lease.Lease) {
		t.Helper()
		before, start := a.b.Stats().Writes, time.Now()
		must(t, a.b.Sync(t.Context(), leases))
		t.Logf("%s: %v", what, time.Since(start))
		if n := a.b.Stats().Writes - before; n != want {
			t.Errorf("%s: %d writes, want %d", what, n, want)
		}
	}
	t.Logf("%d writes for the device, its address and the filter", made)
	step(1001, "1,000 peers", leases)
	step(0, "nothing new", leases)
	step(2, "one leaves", leases[1:])
	step(2, "one joins", leases)
	leases[500].Attrs.PublicIP = ip("172.16.99.99")
	step(2, "one moves", leases)
	must(t, a.b.Close(true))
	a.b = a.backend()
	a.start()
	step(0, "restart", leases)
}

// TestNoModule: without ipip in the kernel the error names the module.
func TestNoModule(t *testing.T) {
	l := &lab{Lab: netlab.ForTest(t), t: t}
	l.sw = l.namespace("switch")
	must(t, l.sw.Bridge("br0"))
	err := l.sw.Netlink().LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "try"}})
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel has ipip")
	}
	a := l.host(1, l.sw, none)
	err = a.Do(func() error { _, err := a.b.Start(t.Context(), a.host, a.own); return err })
	if text := fmt.Sprint(err); !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(text, "modprobe ipip") || !strings.Contains(text, "CONFIG_NET_IPIP") {
		t.Errorf("the error is %q", text)
	}
	if n := a.tables(); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}
