package offload_test

// The kernel as the second oracle: its own segmentation of the same
// super-packets, in a network namespace. See lab_linux_test.go.

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/offload"
)

// kernelDiff is diff for packets whose IDs must be right, DF or not.
func kernelDiff(got, want [][]byte) string {
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if d := diff(got[i:i+1], want[i:i+1]); d != "" || len(g) > 6 && g[0]>>4 == 4 && !bytes.Equal(g[4:6], w[4:6]) {
			return fmt.Sprintf("segment %d of %d:\n we have     %s\nthe kernel: %s", i, len(want), describe(g), describe(w))
		}
	}
	return diff(got, want)
}

// splitAsKernel has the super-packet cut by the Splitter and by the kernel.
func splitAsKernel(c *cutter, p []byte, v offload.Virtio) ([][]byte, error) {
	kernel, err := c.cut(v, bytes.Clone(p))
	if err != nil {
		return nil, err
	}
	ours, err := split(new(offload.Splitter), bytes.Clone(p), v)
	if err != nil {
		return nil, err
	}
	if d := kernelDiff(ours, kernel); d != "" {
		return nil, fmt.Errorf("%+v: %s", v, d)
	}
	return kernel, nil
}

// TestKernelSplit has random super-packets cut by both.
func TestKernelSplit(t *testing.T) {
	c := newCutter(t)
	rounds, segments := 600, 0
	if testing.Short() {
		rounds = 60
	}
	for seed := range rounds {
		p, v := superPacket(newRand(uint64(seed)))
		udp := v.GSOType == offload.GSOUDPL4
		if udp && (!c.in.uso || len(p) > 128*int(v.GSOSize)) {
			continue // the kernel takes no UDP super-packets before 6.2, and no longer ones
		}
		if !udp && len(p)-20 <= int(v.CsumStart)+int(v.GSOSize)+40 {
			continue // it drops TCP super-packets of one segment, if there are TCP options
		}
		got, err := splitAsKernel(c, p, v)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		segments += len(got)
	}
	t.Logf("%d super-packets, %d segments", rounds, segments)
}

// TestKernelJoin gives random traffic to a Joiner and its runs to the kernel:
// what comes out are the packets that went in.
func TestKernelJoin(t *testing.T) {
	c := newCutter(t)
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	j := offload.NewJoiner(offload.JoinConfig{Packets: 100})
	packets, runs := 0, 0
	for seed := range rounds {
		r := newRand(uint64(1000 + seed))
		b := newBatch(someTraffic(r, 1+r.IntN(100), 1+r.IntN(8))...)
		b.trust(r)
		j.SetConfig(offload.JoinConfig{NoUDP: !c.in.uso})
		n, err := joinAsKernel(c, j, b, r.IntN(2) == 0)
		if err != nil {
			t.Fatalf("seed %d: %v", 1000+seed, err)
		}
		packets, runs = packets+len(b.in), runs+n
	}
	t.Logf("%d packets in %d runs", packets, runs)
}

// joinAsKernel writes the runs that j makes of b, and compares what the kernel
// makes of them with b. It returns the number of runs.
func joinAsKernel(c *cutter, j *offload.Joiner, b *batch, partial bool) (int, error) {
	j.Reset()
	for i, p := range b.in {
		if !j.Add(p, b.trusted[i]) {
			return 0, errors.New("the Joiner is full")
		}
	}
	groups, err := b.groups(j)
	if err != nil {
		return 0, err
	}
	var want [][]byte
	for i, g := range groups {
		r := j.Run(i)
		v := r.Finish(partial)
		pieces := [][]byte{r.First()}
		for cursor := j.Second(r); cursor >= 0; {
			var pay []byte
			pay, cursor = j.Rest(r, cursor)
			pieces = append(pieces, pay)
		}
		if err := c.in.write(v, pieces...); err != nil {
			return 0, fmt.Errorf("run %d of packets %v: %w", i, g, err)
		}
		for _, n := range g {
			want = append(want, b.before[n])
		}
	}
	got, err := c.drain()
	if err != nil {
		return 0, fmt.Errorf("runs %v: %w", groups, err)
	}
	if d := diff(got, want); d != "" {
		return 0, fmt.Errorf("runs %v: %s", groups, d)
	}
	return len(groups), nil
}

// twoHosts is two namespaces with a TUN device each, and what goes from the left
// one to the right one is kept.
type twoHosts struct {
	left, right *netlab.NS
	a, b        *device
	mark        bool // congestion: every tenth packet that may be marked is

	mu    sync.Mutex
	seen  int
	super []superSeen
}

type superSeen struct {
	p []byte
	v offload.Virtio
}

func newTwoHosts(t *testing.T, mtu int, mark bool) *twoHosts {
	t.Helper()
	l := newLab(t)
	h := &twoHosts{left: namespace(t, l, "left"), right: namespace(t, l, "right"), mark: mark}
	h.a, h.b = openTUN(t, h.left, "tun", mtu, true), openTUN(t, h.right, "tun", mtu, true)
	for ns, addrs := range map[*netlab.NS][4]string{
		h.left:  {"10.1.0.1/16", "fd01::1/16", "10.2.0.0/16", "fd02::/16"},
		h.right: {"10.2.0.1/16", "fd02::1/16", "10.1.0.0/16", "fd01::/16"},
	} {
		for _, addr := range addrs[:2] {
			must(t, ns.AddAddr("tun", netip.MustParsePrefix(addr)))
		}
		for _, dst := range addrs[2:] {
			must(t, ns.AddRoute(netip.MustParsePrefix(dst), netip.Addr{}, "tun", 0))
		}
		must(t, ns.Sysctl("net/ipv4/tcp_ecn", "1"))
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- pump(h.a, h.b, stop, h.see) }()
	t.Cleanup(func() {
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *twoHosts) see(v *offload.Virtio, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v.GSOType != offload.GSONone {
		h.super = append(h.super, superSeen{bytes.Clone(p), *v})
	}
	at := 1 // where the ECN bits are, and how far from the right
	shift := 0
	if p[0]>>4 == 6 {
		shift = 4
	}
	if h.seen++; h.mark && h.seen%10 == 0 && p[at]>>shift&3 == 2 {
		p[at] |= 3 << shift
		if p[0]>>4 == 4 {
			completeIPv4(p)
		}
	}
}

// taken returns the super-packets seen so far and forgets them.
func (h *twoHosts) taken() []superSeen {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.super
	h.super = nil
	return s
}

// send sends data over TCP from left to right in writes of different sizes, and
// checks that it arrives.
func (h *twoHosts) send(t *testing.T, addr string, data []byte, prepare func(fd int) error) {
	t.Helper()
	var ln net.Listener
	must(t, h.right.Do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}))
	defer ln.Close()
	sum := make(chan any, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			sum <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		s := sha256.New()
		if _, err := io.Copy(s, c); err != nil {
			sum <- err
			return
		}
		sum <- [32]byte(s.Sum(nil))
	}()
	var c net.Conn
	must(t, h.left.Do(func() (err error) {
		d := net.Dialer{Timeout: patience, Control: control(prepare)}
		c, err = d.Dial("tcp", ln.Addr().String())
		return err
	}))
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	want := sha256.Sum256(data)
	for n := 1; len(data) > 0; n = n*7%200001 + 1000 {
		k, err := c.Write(data[:min(n, len(data))])
		must(t, err)
		data = data[k:]
	}
	must(t, c.(*net.TCPConn).CloseWrite())
	if got := <-sum; got != want {
		t.Fatalf("what arrived is not what was sent: %v", got)
	}
}

// control turns a function on a socket into a Dialer's.
func control(prepare func(fd int) error) func(string, string, syscall.RawConn) error {
	if prepare == nil {
		return nil
	}
	return func(_, _ string, rc syscall.RawConn) error {
		var err error
		return errors.Join(rc.Control(func(fd uintptr) { err = prepare(int(fd)) }), err)
	}
}

// TestKernelTCP has the super-packets of real connections cut by the Splitter
// and by the kernel, the segments joined again, and these cut by the kernel.
func TestKernelTCP(t *testing.T) {
	cut := newCutter(t)
	for _, mtu := range []int{1280, 1500, 9000} {
		h := newTwoHosts(t, mtu, mtu == 1500)
		for name, addr := range map[string]string{"IPv4": "10.2.0.1", "IPv6": "fd02::1"} {
			t.Run(fmt.Sprintf("%s/%d", name, mtu), func(t *testing.T) {
				h.send(t, addr, bytes.Repeat(noise, 4)[:1000001], nil)
				compareReal(t, cut, h.taken())
			})
		}
	}
}

// TestKernelTCPExtensionHeader does it with destination options in every packet.
func TestKernelTCPExtensionHeader(t *testing.T) {
	cut := newCutter(t)
	h := newTwoHosts(t, 1500, false)
	h.send(t, "fd02::1", noise, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00")
	})
	compareReal(t, cut, h.taken())
}

// TestKernelTCPRoutingHeader does it with a routing header (RFC 8754) by way of
// one address of the right host to another one: the checksum is over the other.
func TestKernelTCPRoutingHeader(t *testing.T) {
	cut := newCutter(t)
	h := newTwoHosts(t, 1500, false)
	must(t,
		h.right.AddAddr("tun", netip.MustParsePrefix("fd02::2/16")),
		h.right.Sysctl("net/ipv6/conf/all/seg6_enabled", "1"),
		h.right.Sysctl("net/ipv6/conf/tun/seg6_enabled", "1"))
	hop, end := netip.MustParseAddr("fd02::1").As16(), netip.MustParseAddr("fd02::2").As16()
	h.send(t, "fd02::2", noise, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, "\x00\x04\x04\x01\x01\x00\x00\x00"+string(end[:])+string(hop[:]))
	})
	compareReal(t, cut, h.taken())
}

// compareReal compares super-packets as the kernel made them. They are many, of
// a few kinds; some of each will do.
func compareReal(t *testing.T, cut *cutter, super []superSeen) {
	t.Helper()
	const most = 60
	j := offload.NewJoiner(offload.JoinConfig{Packets: 4000, NoUDP: !cut.in.uso})
	b := newBatch()
	segments, withCWR := 0, 0
	for i, s := range super {
		if s.v.GSOType&offload.GSOECN != 0 {
			withCWR++
		} else if len(super) > most && i%(len(super)/most+1) != 0 && i != len(super)-1 {
			continue
		}
		got, err := splitAsKernel(cut, s.p, s.v)
		if err != nil {
			t.Fatalf("super-packet %d of %d: %v", i, len(super), err)
		}
		for _, p := range got {
			if len(b.in) < 400 { // the device's queue takes no more at once
				b.add(p, len(b.in)%3 == 0)
			}
		}
		segments += len(got)
	}
	if len(super) == 0 || segments < 2 {
		t.Fatalf("%d super-packets seen, of %d segments: nothing is compared", len(super), segments)
	}
	runs, err := joinAsKernel(cut, j, b, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d super-packets (%d with CWR), %d segments compared; %d of them in %d runs", len(super), withCWR, segments, len(b.in), runs)
}

// TestKernelUDP does it with the super-packets of UDP sockets.
func TestKernelUDP(t *testing.T) {
	cut := newCutter(t)
	if !cut.in.uso {
		t.Skip("this kernel has no UDP super-packets on TUN devices (Linux 6.2 has)")
	}
	h := newTwoHosts(t, 9000, false)
	for name, addr := range map[string]string{"IPv4": "10.2.0.1", "IPv6": "fd02::1"} {
		t.Run(name, func(t *testing.T) {
			var ln net.PacketConn
			must(t, h.right.Do(func() (err error) {
				ln, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
				return err
			}))
			defer ln.Close()
			sent := 0
			for _, size := range []int{1, 2, 7, 100, 1000, 1001, 1448, 8900} {
				var c net.Conn
				must(t, h.left.Do(func() (err error) {
					d := net.Dialer{Control: control(func(fd int) error {
						return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
					})}
					c, err = d.Dial("udp", ln.LocalAddr().String())
					return err
				}))
				for _, n := range []int{size + 1, 2 * size, 10*size - 1, 63 * size, 63*size + size/2 + 1} {
					if n <= size || n > 65000 {
						continue
					}
					_, err := c.Write(noise[n%1000:][:n])
					must(t, err)
					sent++
				}
				c.Close()
			}
			var super []superSeen
			for deadline := time.Now().Add(patience); len(super) < sent && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				super = append(super, h.taken()...)
			}
			if len(super) != sent {
				t.Fatalf("%d super-packets of %d seen", len(super), sent)
			}
			compareReal(t, cut, super)
		})
	}
}
