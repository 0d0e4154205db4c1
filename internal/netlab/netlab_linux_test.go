package netlab

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		os.Exit(helper(mode))
	}
	Main(m)
}

// patience bounds what must happen sooner or later. No test measures time.
const patience = 10 * time.Second

func newLab(t *testing.T, needs ...Need) *Lab {
	t.Helper()
	Require(t, needs...)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func namespace(t *testing.T, l *Lab, name string) *NS {
	t.Helper()
	n, err := l.Namespace(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// listen opens a TCP listener inside a namespace.
func listen(t *testing.T, n *NS, addr netip.Addr) net.Listener {
	t.Helper()
	var ln net.Listener
	check(t, n.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	return ln
}

// exchange sends size random bytes over TCP from one namespace to an address in
// another one, and has the checksum of what arrived sent back.
func exchange(t *testing.T, from, to *NS, addr netip.Addr, size int) {
	t.Helper()
	ln := listen(t, to, addr)
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				return err
			}
			_, err = c.Write(h.Sum(nil))
			return err
		}()
	}()

	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var c net.Conn
	check(t, from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), patience)
		return err
	}))
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	check(t, c.(*net.TCPConn).CloseWrite())
	sum, err := io.ReadAll(c)
	check(t, err, <-served)
	if want := sha256.Sum256(data); !bytes.Equal(sum, want[:]) {
		t.Fatalf("%s to %s: other bytes arrived than were sent", from.Name(), addr)
	}
}

// ping sends one echo request and waits for its answer.
func ping(t *testing.T, from *NS, to netip.Addr) {
	t.Helper()
	network, any, proto := "ip4:icmp", "0.0.0.0", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, any, proto = "ip6:ipv6-icmp", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	check(t, from.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, any)
		return err
	}))
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	msg := icmp.Message{Type: request, Body: &icmp.Echo{ID: 0x1234, Seq: 1, Data: []byte("netlab")}}
	wire, err := msg.Marshal(nil)
	check(t, err)
	if _, err := c.WriteTo(wire, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(buf)
		check(t, err)
		answer, err := icmp.ParseMessage(proto, buf[:n])
		check(t, err)
		if echo, ok := answer.Body.(*icmp.Echo); ok && answer.Type == reply && echo.ID == 0x1234 {
			return
		}
	}
}

// pair returns two namespaces with a veth pair "x" - "x" between them and
// addresses of both families.
func pair(t *testing.T, l *Lab, mtu int) (a, b *NS, addr4, addr6 netip.Addr) {
	t.Helper()
	a, b = namespace(t, l, "a"), namespace(t, l, "b")
	check(t, l.Veth(a, "x", b, "x", mtu))
	addr4, addr6 = addresses(t, a, b)
	return a, b, addr4, addr6
}

// addresses gives both ends "x" their addresses, of IPv6 if there is IPv6, and
// returns those of b.
func addresses(t *testing.T, a, b *NS) (addr4, addr6 netip.Addr) {
	t.Helper()
	check(t,
		a.AddAddr("x", netip.MustParsePrefix("192.0.2.1/24")),
		b.AddAddr("x", netip.MustParsePrefix("192.0.2.2/24")))
	if haveIPv6() {
		check(t,
			a.AddAddr("x", netip.MustParsePrefix("2001:db8::1/64")),
			b.AddAddr("x", netip.MustParsePrefix("2001:db8::2/64")))
	}
	return netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
}

func TestVeth(t *testing.T) {
	l := newLab(t, NeedIPv6)
	a, b, addr4, addr6 := pair(t, l, 1400)
	for _, addr := range []netip.Addr{addr4, addr6} {
		ping(t, a, addr)
		exchange(t, a, b, addr, 1<<20)
	}
	exchange(t, a, a, netip.MustParseAddr("127.0.0.1"), 100)

	stats, err := a.LinkStats("x")
	check(t, err)
	if stats.TxBytes < 2<<20 || stats.TxPackets == 0 || stats.RxPackets == 0 {
		t.Errorf("counters after 2 MiB: %+v", stats)
	}
	for _, n := range []*NS{a, b} {
		dev, err := n.Netlink().LinkByName("x")
		check(t, err)
		if mtu := dev.Attrs().MTU; mtu != 1400 {
			t.Errorf("%s: mtu %d", n.Name(), mtu)
		}
	}
}

func TestLinkChanges(t *testing.T) {
	l := newLab(t)
	a, b, addr4, _ := pair(t, l, 1500)
	check(t, a.SetMTU("x", 1300), a.SetGSOMax("x", 20000, 12))
	dev, err := a.Netlink().LinkByName("x")
	check(t, err)
	attrs := dev.Attrs()
	if attrs.MTU != 1300 || attrs.GSOMaxSize != 20000 || attrs.GSOIPv4MaxSize != 20000 || attrs.GSOMaxSegs != 12 {
		t.Errorf("mtu %d, gso max %d, for ipv4 %d, segments %d", attrs.MTU, attrs.GSOMaxSize, attrs.GSOIPv4MaxSize, attrs.GSOMaxSegs)
	}

	const big = 100000 // beyond 64 KB the families have limits of their own
	check(t, a.SetGSOMax("x", big, 0))
	dev, err = a.Netlink().LinkByName("x")
	check(t, err)
	if attrs := dev.Attrs(); attrs.GSOMaxSize != big || attrs.GSOIPv4MaxSize != big || attrs.GSOMaxSegs != 12 {
		t.Errorf("gso max %d, for ipv4 %d, segments %d", attrs.GSOMaxSize, attrs.GSOIPv4MaxSize, attrs.GSOMaxSegs)
	}

	far := netip.MustParsePrefix("198.51.100.1/32")
	check(t, b.AddAddr("lo", far), a.AddRoute(far, addr4, "", 1280))
	ping(t, a, far.Addr())
	routes, err := a.Netlink().RouteGet(far.Addr().AsSlice())
	check(t, err)
	if len(routes) != 1 || !routes[0].Gw.Equal(addr4.AsSlice()) {
		t.Errorf("route: %v", routes)
	}
	check(t, a.DelRoute(far, addr4, ""))
	if _, err := a.Netlink().RouteGet(far.Addr().AsSlice()); err == nil {
		t.Error("the route is still there")
	}

	check(t, a.Down("x"), a.Up("x"), a.waitCarrier("x"))
	ping(t, a, addr4)
	check(t, a.DelLink("x"))
	if err := b.Up("x"); err == nil {
		t.Error("the peer of a deleted end is still there")
	}
}

func TestBridge(t *testing.T) {
	l := newLab(t)
	a, b, sw := namespace(t, l, "a"), namespace(t, l, "b"), namespace(t, l, "switch")
	check(t, l.Veth(a, "x", sw, "a", 1500), l.Veth(b, "x", sw, "b", 1500), sw.Bridge("br0", "a", "b"))
	addr4, _ := addresses(t, a, b)
	ping(t, a, addr4)
}

func TestVXLAN(t *testing.T) {
	l := newLab(t, NeedVXLAN, NeedIPv6)
	a, b, under4, under6 := pair(t, l, 1500)
	for i, remote := range []netip.Addr{under4, under6} {
		name, local := fmt.Sprint("vx", i), remote.Prev()
		cfg := VXLANConfig{VNI: 7 + i, Local: local, Remote: remote, Dev: "x", MTU: 1400}
		back := cfg
		back.Local, back.Remote = remote, local
		check(t, a.VXLAN(name, cfg), b.VXLAN(name, back))
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i), 2})
		check(t, a.AddAddr(name, netip.PrefixFrom(addr.Prev(), 24)), b.AddAddr(name, netip.PrefixFrom(addr, 24)))
		ping(t, a, addr)
		exchange(t, a, b, addr, 1<<20)
		stats, err := a.LinkStats(name)
		check(t, err)
		if stats.TxBytes < 1<<20 {
			t.Errorf("%s carried %d bytes of 1 MiB", name, stats.TxBytes)
		}
	}
}

func TestDo(t *testing.T) {
	l := newLab(t)
	a, b := namespace(t, l, "a"), namespace(t, l, "b")
	where := func() string {
		target, err := os.Readlink(ownNetns)
		check(t, err)
		return target
	}
	home := where()
	check(t, a.Do(func() error {
		outer := where()
		if outer == home || parseInode(outer) != a.ino {
			t.Errorf("in a: %s, outside %s", outer, home)
		}
		check(t, b.Do(func() error {
			if inner := where(); parseInode(inner) != b.ino {
				t.Errorf("in b: %s", inner)
			}
			return nil
		}))
		if again := where(); again != outer {
			t.Errorf("back in a: %s, was %s", again, outer)
		}
		return nil
	}))
	if here := where(); here != home {
		t.Errorf("outside: %s, was %s", here, home)
	}
	if err := a.Do(func() error { return io.EOF }); err != io.EOF {
		t.Errorf("error of the function: %v", err)
	}

	ended := make(chan bool)
	go func() {
		survived := false
		defer func() { ended <- survived }()
		a.Do(func() error { runtime.Goexit(); return nil })
		survived = true
	}()
	if <-ended {
		t.Error("the caller of Do outlived Goexit")
	}
}

func TestSysctl(t *testing.T) {
	l := newLab(t)
	a, b := namespace(t, l, "a"), namespace(t, l, "b")
	const path = "net/ipv4/ip_forward"
	check(t, a.Sysctl(path, "1"), b.Sysctl(path, "0"))
	for n, want := range map[*NS]string{a: "1", b: "0"} {
		got, err := n.ReadSysctl(path)
		check(t, err)
		if got != want {
			t.Errorf("%s: %s = %s, want %s", n.Name(), path, got, want)
		}
	}
	for _, path := range []string{"kernel/hostname", "net/../kernel/hostname", "/net/ipv4/ip_forward", "net.ipv4.ip_forward"} {
		if err := a.Sysctl(path, "x"); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
}

func TestTwoHosts(t *testing.T) {
	l := newLab(t, NeedIPv6)
	th, err := l.TwoHosts(TwoHostsConfig{Pods: true, IPv6: true, RPFilter: 1})
	check(t, err)
	a, b := th.HostA, th.HostB
	ping(t, a.NS, b.Addr4.Addr())
	ping(t, a.NS, b.Addr6.Addr())
	ping(t, th.PodA, a.Gateway4)
	ping(t, th.PodA, a.Gateway6)
	if got, _ := a.ReadSysctl("net/ipv4/conf/eth0/rp_filter"); got != "1" {
		t.Errorf("rp_filter = %s", got)
	}

	// Plain routes instead of a tunnel show that everything else is right.
	check(t,
		a.AddRoute(b.Subnet4, b.Addr4.Addr(), "", 0), b.AddRoute(a.Subnet4, a.Addr4.Addr(), "", 0),
		a.AddRoute(b.Subnet6, b.Addr6.Addr(), "", 0), b.AddRoute(a.Subnet6, a.Addr6.Addr(), "", 0))
	exchange(t, th.PodA, th.PodB, b.PodAddr4, 1<<20)
	exchange(t, th.PodB, th.PodA, a.PodAddr6, 1<<20)
	dev, err := th.PodA.Netlink().LinkByName("eth0")
	check(t, err)
	if mtu := dev.Attrs().MTU; mtu != 1472 || th.OverlayMTU != 1472 {
		t.Errorf("pod mtu %d, overlay mtu %d, want 1472", mtu, th.OverlayMTU)
	}
}

// TestAttachOverlay joins two TUN devices by copying packets from one to the
// other, the least that can be called a tunnel.
func TestAttachOverlay(t *testing.T) {
	l := newLab(t, NeedTUN, NeedIPv6)
	th, err := l.TwoHosts(TwoHostsConfig{Pods: true, IPv6: true})
	check(t, err)
	tunA, tunB := openTUN(t, th.HostA.NS, "flannel0"), openTUN(t, th.HostB.NS, "flannel0")
	check(t, th.HostA.AttachOverlay("flannel0"), th.HostB.AttachOverlay("flannel0"))
	done := make(chan struct{}, 2)
	relay := func(dst, src *os.File) {
		defer func() { done <- struct{}{} }()
		for buf := make([]byte, 2000); ; {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			dst.Write(buf[:n])
		}
	}
	go relay(tunA, tunB)
	go relay(tunB, tunA)
	defer func() {
		tunA.Close()
		tunB.Close()
		<-done
		<-done
	}()
	b := th.HostB
	exchange(t, th.PodA, th.PodB, b.PodAddr4, 1<<18)
	exchange(t, th.PodA, th.PodB, b.PodAddr6, 1<<18)
	exchange(t, th.HostA.NS, th.PodB, b.PodAddr4, 1<<18)
	exchange(t, th.HostA.NS, b.NS, b.Subnet4.Addr(), 1<<18)
	exchange(t, th.HostA.NS, b.NS, b.Subnet6.Addr(), 1<<18)
}

func openTUN(t *testing.T, n *NS, name string) *os.File {
	t.Helper()
	fd := -1
	check(t, n.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}))
	return os.NewFile(uintptr(fd), name)
}
