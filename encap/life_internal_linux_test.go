package encap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// openFiles lists the process's descriptors.
func openFiles(t testing.TB) map[string]string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(to, "/proc/") {
			m[fd.Name()] = to
		}
	}
	return m
}

// TestDescriptors: none is left, whether an engine ran, failed or was closed
// before it ran.
func TestDescriptors(t *testing.T) {
	use := func(t *testing.T) {
		for _, run := range []bool{true, false} {
			r := newRig(t, Config{SourcePorts: 3})
			if run {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				if err := r.e.Run(ctx); err != nil {
					t.Error(err)
				}
			}
		}
		r := newRig(t, Config{})
		r.tun.push(tunRead{e: unix.EBADFD})
		if err := r.e.Run(context.Background()); !errors.Is(err, ErrDevice) || !errors.Is(err, tun.ErrGone) {
			t.Errorf("Run: %v", err)
		}
	}
	t.Run("first", use) // what the runtime opens once
	before := openFiles(t)
	t.Run("second", use)
	for fd, to := range openFiles(t) {
		if before[fd] != to {
			t.Errorf("descriptor %s is left: %s", fd, to)
		}
	}
	leaks(t)
}

// TestRunOnScript lets the engine's own loop, and its sleep, deal with faults.
func TestRunOnScript(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault unix.Errno
		times int
	}{
		{"no buffers for a while", unix.ENOBUFS, 10}, {"socket full for a while", unix.EAGAIN, 10}, {"interrupted", unix.EINTR, 10},
	} {
		for _, l := range loads() {
			t.Run(c.name+"/"+l.name, func(t *testing.T) {
				r := newRig(t, Config{})
				left, sent := c.times, 0
				done := make(chan struct{})
				r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
					if left--; left >= 0 {
						return -1, c.fault
					}
					n := 1 // and one message at a time
					if sent += len(ms[0].datagrams()); sent == len(l.want) {
						close(done)
					}
					return n, 0
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- r.e.Run(ctx) }()
				r.tun.push(l.reads...)
				select {
				case <-done:
				case err := <-ended:
					t.Fatalf("Run: %v", err)
				case <-time.After(patience):
					t.Fatalf("%d of %d sent", sent, len(l.want))
				}
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Run: %v", err)
				}
				if err := differ(datagramsOf(r.net.take()), l.want); err != nil {
					t.Error(err)
				}
				if st := r.e.Stats(); st.Drops.Total() != 0 || st.TX.Packets != uint64(len(l.want)) {
					t.Errorf("%d packets, drops %v", st.TX.Packets, st.Drops)
				}
			})
		}
	}
}

// TestRunEnds: errors of descriptors end Run, also while it sleeps.
func TestRunEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(r *rig)
		want error
	}{
		{"read", func(r *rig) { r.tun.push(tunRead{e: unix.EBADFD}) }, ErrDevice},
		{"write", func(r *rig) {
			r.tun.refuse = func(tunWrite) unix.Errno { return unix.EBADFD }
			x := udp4(nil)
			x.dst = ip("10.250.0.1")
			r.net.in = []arrival{train(udp4(nil).back().packet())}
			r.tun.push(one(x))
		}, ErrDevice},
		{"send", func(r *rig) {
			r.net.verdict = func([]sentMsg) (int, unix.Errno) { return -1, unix.EBADF }
			r.tun.push(one(udp4(nil)))
		}, ErrSocket},
		{"receive", func(r *rig) { r.net.in = []arrival{{e: unix.EBADF}}; r.tun.push(one(udp4(nil))) }, ErrSocket},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{})
			c.fail(r)
			ended := make(chan error, 1)
			go func() { ended <- r.e.Run(context.Background()) }()
			select {
			case err := <-ended:
				if !errors.Is(err, c.want) || c.want == ErrDevice && !errors.Is(err, tun.ErrGone) {
					t.Errorf("Run: %v, want %v", err, c.want)
				}
			case <-time.After(patience):
				t.Fatal("Run does not end")
			}
		})
	}
	leaks(t)
}

// TestRealDeviceWithPortable: a raw engine on a real TUN device, and a portable
// one that the test plays the host of. The kernel answers what it is sent.
func TestRealDeviceWithPortable(t *testing.T) {
	netlab.Require(t, netlab.NeedTUN, netlab.NeedIPv6)
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	ns, err := lab.Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	var dev *tun.Device
	var conn *net.UDPConn
	var y *node
	if err := ns.Do(func() error {
		if dev, err = tun.Open(tun.Config{Name: "flannel0"}); err != nil {
			return err
		}
		if conn, err = Listen(port("127.0.0.1:0"), ListenConfig{}); err != nil {
			return err
		}
		y = portableNode(8).newNode(t, "127.0.0.1:0", Config{}, subnetsA())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, err := range []error{
		ns.Up("flannel0"), ns.AddAddr("flannel0", netip.MustParsePrefix("10.1.0.1/32")), ns.AddAddr("flannel0", netip.MustParsePrefix("fd00:1::1/128")),
		ns.AddRoute(netip.MustParsePrefix("10.2.0.0/16"), netip.Addr{}, "flannel0", 0), ns.AddRoute(netip.MustParsePrefix("fd00:2::/64"), netip.Addr{}, "flannel0", 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	xAt := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	table := newTable(t, Peer{Endpoint: y.at, Subnets: subnetsA()})
	y.peers(t, Peer{Endpoint: xAt, Subnets: localSubnets()})
	x, err := New(dev.Queues()[0], conn, table, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for i := range byte(20) {
		y.ping(t, i)
	}
}

// ping sends echo requests over IPv4 and IPv6 to the host of a real device. The
// kernel's answer has the same bytes but for the type and the checksum.
func (n *node) ping(t *testing.T, i byte) {
	t.Helper()
	for _, in := range []inner{udp4(nil), udp6(nil)} {
		in = in.back()
		in.payload = append([]byte{8, 0, 0, 0, 0, i, 0, 1}, pattern(int(i)*60, uint32(i))...)
		in.proto, in.dst = 1, ip("10.1.0.1")
		reply := byte(0)
		if !in.src.Is4() {
			in.proto, in.dst, in.payload[0], reply = 58, ip("fd00:1::1"), 128, 129
		}
		at := in.ipLen()
		sum := func(p []byte) uint16 {
			if in.proto == 1 {
				return slowSum(p[at:])
			}
			return slowSum(pseudo(p, 58, len(p)-at), p[at:])
		}
		echo := in.packet()
		binary.BigEndian.PutUint16(echo[at+2:], sum(echo))
		pong := n.answer(t, echo, at)
		if pong[at] != reply || udpSource(pong) != in.dst {
			t.Fatalf("echo %d: the answer is %x", i, pong)
		}
		if s := sum(pong); s != 0 {
			t.Errorf("echo %d: the answer's checksum is off by %#x: %x", i, s, pong)
		}
	}
}

// answer sends an echo request until there is an answer with its bytes: the kernel limits
// how many it gives, by what all tests of the machine ask it.
func (n *node) answer(t *testing.T, echo []byte, at int) []byte {
	t.Helper()
	for range int(patience / time.Second) {
		n.host.send(echo)
		for again := time.After(time.Second); ; {
			for _, pong := range n.host.packets() {
				if len(pong) == len(echo) && bytes.Equal(pong[at+4:], echo[at+4:]) {
					return pong
				}
			}
			select {
			case <-n.host.more():
				continue
			case <-n.ended:
				t.Fatalf("Run: %v", n.err)
			case <-again:
			}
			break
		}
	}
	t.Fatal("no echo request was answered")
	return nil
}

func TestListenInUse(t *testing.T) {
	c := listen(t, "127.0.0.1:0")
	defer c.Close()
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := Listen(at, ListenConfig{}); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another flannel or engine has the port") {
		t.Errorf("%v", err)
	}
	if _, err := Listen(port("192.0.2.1:0"), ListenConfig{}); !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "no interface has that address") {
		t.Errorf("%v", err)
	}
	x, err := Listen(port("127.0.0.1:0"), ListenConfig{ReusePort: true})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := Listen(x.LocalAddr().(*net.UDPAddr).AddrPort(), ListenConfig{ReusePort: true})
	if err != nil {
		t.Fatal(err)
	}
	y.Close()
}
