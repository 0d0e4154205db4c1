package encap

import (
	"context"
	"errors"
	"fmt"
	"github.com/flannelkit/flannelkit/internal/offload"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// flood sends both ways through a node until stop is closed, and returns when
// both directions are moving.
func flood(t testing.TB, n *node) (stop func()) {
	t.Helper()
	f := newReceiver(t, "127.0.0.1:0")
	n.peers(t, Peer{Endpoint: f.at, Subnets: subnetsA()})
	quit := make(chan struct{})
	var wg sync.WaitGroup
	running := func() bool {
		select {
		case <-quit:
			return false
		case <-n.ended:
			return false
		default:
			return true
		}
	}
	out, in := udp4(pattern(500, 1)).packet(), udp4(pattern(500, 1)).back().packet()
	wg.Go(func() {
		for running() {
			select {
			case <-quit:
			case <-n.ended:
			default:
				n.host.send(out)
			}
		}
	})
	wg.Go(func() {
		for running() {
			if _, err := f.WriteToUDPAddrPort(in, n.at); err != nil {
				return
			}
			n.host.packets()
		}
	})
	f.take(t, 100)
	for st := n.e.Stats(); st.RX.Packets == 0 || st.TX.Packets == 0; st = n.e.Stats() {
		select {
		case <-n.ended:
			t.Fatalf("Run ended: %v", n.err)
		case <-n.host.more():
			n.host.packets()
		}
	}
	return sync.OnceFunc(func() { close(quit); drain(n); wg.Wait() })
}

// drain makes room for a sender that waits for a device that nobody reads.
func drain(n *node) {
	if m, ok := n.host.(*memTUN); ok {
		for len(m.in) > 0 {
			<-m.in
		}
	}
}

// TestCancel: the end of the context ends Run with nil, under traffic and at
// rest, and nothing is left.
func TestCancel(t *testing.T) {
	for _, k := range nodeKinds() {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/busy=%v", k.name, busy), func(t *testing.T) {
				n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
				if busy {
					defer flood(t, n)()
				} else {
					n.peers(t)
				}
				if err := n.end(t); err != nil {
					t.Errorf("Run: %v", err)
				}
				st := n.e.Stats()
				if busy && (st.TX.Packets == 0 || st.RX.Packets == 0) {
					t.Errorf("the counters are lost when Run has ended: %+v", st)
				}
				if again := n.e.Stats(); again != st {
					t.Error("the counters of an engine that has ended change")
				}
				if err := n.e.Close(); err != nil {
					t.Errorf("Close after Run: %v", err)
				}
				if err := n.e.Run(context.Background()); !errors.Is(err, ErrRunning) {
					t.Errorf("a second Run: %v", err)
				}
				// The port is free again.
				c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(n.at))
				if err != nil {
					t.Errorf("the socket is still open: %v", err)
				} else {
					c.Close()
				}
			})
		}
	}
	// Wrapped devices are closed with their test; what is left then is a leak.
	leaks(t)
}

// TestCloseRunning: Close ends Run as the context does, from any goroutine.
func TestCloseRunning(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
			defer flood(t, n)()
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if err := n.e.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
					n.e.Stats()
				})
			}
			wg.Wait()
			if err := n.wait(t); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	leaks(t)
}

// TestCloseUnused: an engine that never ran is released by Close.
func TestCloseUnused(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			conn := listen(t, "127.0.0.1:0")
			at := conn.LocalAddr().String()
			e, _ := k.make(t, conn, NewTable(), Config{})
			for range 2 {
				if err := e.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			if err := e.Run(context.Background()); !errors.Is(err, ErrRunning) {
				t.Errorf("Run after Close: %v", err)
			}
			if st := e.Stats(); st != (Stats{}) {
				t.Errorf("%+v", st)
			}
			if c, err := Listen(port(at), ListenConfig{}); err != nil {
				t.Errorf("the socket is still open: %v", err)
			} else {
				c.Close()
			}
		})
	}
	leaks(t)
}

// TestCancelled: a context that has ended already is no special case.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, k := range nodeKinds() {
		conn := listen(t, "127.0.0.1:0")
		e, _ := k.make(t, conn, NewTable(), Config{})
		if err := e.Run(ctx); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}

// TestStatsWhileRunning reads the counters from other goroutines.
func TestStatsWhileRunning(t *testing.T) {
	for _, k := range nodeKinds() {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
			stop := flood(t, n)
			defer stop()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					last := n.e.Stats()
					for range 2000 {
						st := n.e.Stats()
						if st.TX.Packets < last.TX.Packets || st.RX.Bytes < last.RX.Bytes || st.Drops.Total() < last.Drops.Total() {
							t.Errorf("counters go back: %+v after %+v", st, last)
							return
						}
						last = st
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestWrappedDeviceCloses: a wrapped device that is closed under an engine ends
// it with an error that says so.
func TestWrappedDeviceCloses(t *testing.T) {
	for _, k := range []nodeKind{portableNode(32), portableNode(1)} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/busy=%v", k.name, busy), func(t *testing.T) {
				n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
				if busy {
					defer flood(t, n)()
				} else {
					n.peers(t)
				}
				n.host.(*memTUN).Close()
				if err := n.wait(t); !errors.Is(err, ErrDevice) || errors.Is(err, ErrSocket) {
					t.Errorf("Run: %v", err)
				}
			})
		}
	}
	leaks(t)
}

// TestWrappedDeviceRefuses: what a device does not take is counted, and the
// engine goes on.
func TestWrappedDeviceRefuses(t *testing.T) {
	for _, k := range []nodeKind{portableNode(32), portableNode(1)} {
		t.Run(k.name, func(t *testing.T) {
			n := k.newNode(t, "127.0.0.1:0", Config{}, localSubnets())
			f := newReceiver(t, "127.0.0.1:0")
			n.peers(t, Peer{Endpoint: f.at, Subnets: subnetsA()})
			down := errors.New("interface is down")
			m := n.host.(*memTUN)
			m.fail.Store(&down)
			p := udp4(nil).back().packet()
			for range 10 {
				if _, err := f.WriteToUDPAddrPort(p, n.at); err != nil {
					t.Fatal(err)
				}
			}
			for n.e.Stats().Drops[DropDevice] < 10 {
				select {
				case <-n.ended:
					t.Fatalf("Run: %v", n.err)
				default:
				}
			}
			m.fail.Store(nil)
			last := udp4([]byte("up again")).back().packet()
			if _, err := f.WriteToUDPAddrPort(last, n.at); err != nil {
				t.Fatal(err)
			}
			if got := n.until(t, hop(last)); len(got) != 1 {
				t.Errorf("%d packets were delivered", len(got))
			}
			if err := n.end(t); err != nil {
				t.Error(err)
			}
			if st := n.e.Stats(); st.RX.Packets != 1 || st.Drops.Total() != 10 {
				t.Errorf("%d packets, drops %v", st.RX.Packets, st.Drops)
			}
		})
	}
}

// TestChannelTUN: the test device of wireguard/tun works as any other.
// tunPing is tuntest.Ping with a right IP header checksum: that one stores the
// complement of it, and the filter drops such packets.
func tunPing(dst, src netip.Addr) []byte {
	p := tuntest.Ping(dst, src)
	p[10], p[11] = 0, 0
	offload.PutSum(p[10:], offload.Sum(p[:offload.IPv4Len], 0))
	return p
}

func TestChannelTUN(t *testing.T) {
	var chans [2]*tuntest.ChannelTUN
	i := 0
	channel := nodeKind{"channel", func(t testing.TB, conn *net.UDPConn, table *Table, cfg Config) (*Engine, testHost) {
		t.Helper()
		chans[i] = tuntest.NewChannelTUN()
		dev, err := tun.Wrap(chans[i].TUN())
		if err != nil {
			t.Fatal(err)
		}
		i++
		t.Cleanup(func() { dev.Close() })
		e, err := New(dev.Queues()[0], conn, table, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return e, nil
	}}
	x, y := pair(t, channel, channel, "127.0.0.1:0", Config{})
	for range 10 {
		ping := tunPing(ip("10.2.0.7"), ip("10.1.0.5"))
		chans[0].Outbound <- ping
		if err := differ([][]byte{<-chans[1].Inbound}, [][]byte{hop(hop(ping))}); err != nil {
			t.Fatal(err)
		}
		pong := tunPing(ip("10.1.0.5"), ip("10.2.0.7"))
		chans[1].Outbound <- pong
		if err := differ([][]byte{<-chans[0].Inbound}, [][]byte{hop(hop(pong))}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*node{x, y} {
		if err := n.end(t); err != nil {
			t.Error(err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	dev, err := tun.Wrap(newMemTUN(4))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	conn := listen(t, "127.0.0.1:0")
	defer conn.Close()
	q, tb := dev.Queues()[0], NewTable()
	for _, c := range []struct {
		q    *tun.Queue
		conn *net.UDPConn
		tb   *Table
		cfg  Config
		want string
	}{
		{nil, conn, tb, Config{}, "queue, conn and table are all required"},
		{q, nil, tb, Config{}, "queue, conn and table are all required"},
		{q, conn, nil, Config{}, "queue, conn and table are all required"},
		{q, conn, tb, Config{SourcePorts: -1}, "SourcePorts is -1 (0 to 64)"},
		{q, conn, tb, Config{SourcePorts: 65}, "SourcePorts is 65 (0 to 64)"},
		{q, conn, tb, Config{Checksums: 2}, "unknown Checksums policy 2"},
	} {
		if e, err := New(c.q, c.conn, c.tb, c.cfg); e != nil || err == nil || !strings.Contains(err.Error(), "encap: new: "+c.want) {
			t.Errorf("%v, %v; want %q", e, err, c.want)
		}
	}
	// On failure the socket stays the caller's.
	if _, err := conn.WriteToUDPAddrPort([]byte("x"), conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		t.Errorf("the socket is closed: %v", err)
	}
}

func TestListen(t *testing.T) {
	loopback(t)
	for _, c := range []struct {
		addr netip.AddrPort
		cfg  ListenConfig
		want string
	}{
		{netip.AddrPortFrom(netip.Addr{}, 5), ListenConfig{}, "encap: listen: invalid address"},
		{port("127.0.0.1:0"), ListenConfig{Buffer: -1}, "Buffer is -1 (it must not be negative)"},
	} {
		if conn, err := Listen(c.addr, c.cfg); conn != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, %v; want %q", conn, err, c.want)
		}
	}
	for addr, takes := range map[string][]string{
		"127.0.0.1:0": {"127.0.0.1"}, "0.0.0.0:0": {"127.0.0.1"}, "[::1]:0": {"::1"}, "[::]:0": {"127.0.0.1", "::1"},
		"[::ffff:127.0.0.1]:0": {"127.0.0.1"},
	} {
		conn, err := Listen(port(addr), ListenConfig{Buffer: 1 << 20})
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, from := range []string{"127.0.0.1", "::1"} {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip(from), at.Port())))
			if err != nil {
				t.Fatal(err)
			}
			// A refusal comes with the second write at the latest.
			_, _ = c.Write([]byte("x"))
			_, err = c.Write([]byte("x"))
			if got, want := err == nil, slices.Contains(takes, from); got != want {
				t.Errorf("%s takes from %s: %v, want %v (%v)", addr, from, got, want, err)
			}
			c.Close()
		}
		conn.Close()
	}
}
