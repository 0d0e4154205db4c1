package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ping sends echo requests until one is answered.
func ping(from, to place, v6 bool) error {
	network, typ := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho)
	if v6 {
		network, typ = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest
	}
	var c *icmp.PacketConn
	if err := from.ns.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, from.addr(v6).String())
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	id := os.Getpid() & 0xffff
	buf := make([]byte, 1500)
	for seq := range 20 {
		msg, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("ping")}}).Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(msg, &net.IPAddr{IP: to.addr(v6).AsSlice()}); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, _, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			got, err := icmp.ParseMessage(typ.Protocol(), buf[:n])
			if err != nil {
				return err
			}
			if e, ok := got.Body.(*icmp.Echo); ok && got.Type != typ && e.ID == id {
				return nil
			}
		}
	}
	return errors.New("no answer to ping")
}

// stream is a steady stream of numbered datagrams from one place to another.
type stream struct {
	t        *testing.T
	tx, rx   *net.UDPConn
	quit     chan struct{}
	wg       sync.WaitGroup
	sent     atomic.Int64
	refused  atomic.Int64 // sends that failed at once
	received atomic.Int64
	latest   atomic.Int64 // the highest number that has arrived
}

// streamPace is between two datagrams.
const streamPace = time.Millisecond

func startStream(t *testing.T, from, to place, v6 bool) *stream {
	t.Helper()
	s := &stream{t: t, quit: make(chan struct{})}
	check(t, to.ns.Do(func() (err error) {
		s.rx, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr(v6), 0)))
		return err
	}))
	check(t, from.ns.Do(func() (err error) {
		s.tx, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.addr(v6), 0)))
		return err
	}))
	dst := s.rx.LocalAddr().(*net.UDPAddr).AddrPort()
	s.wg.Go(func() {
		tick := time.NewTicker(streamPace)
		defer tick.Stop()
		for n := int64(1); ; n++ {
			select {
			case <-s.quit:
				return
			case <-tick.C:
			}
			b := binary.BigEndian.AppendUint64(make([]byte, 0, 64), uint64(n))
			if _, err := s.tx.WriteToUDPAddrPort(b, dst); err != nil {
				s.refused.Add(1)
			}
			s.sent.Store(n)
		}
	})
	s.wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, _, err := s.rx.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n >= 8 {
				s.received.Add(1)
				s.latest.Store(max(s.latest.Load(), int64(binary.BigEndian.Uint64(buf))))
			}
		}
	})
	t.Cleanup(s.stop)
	return s
}

// flows waits until a datagram has arrived that is sent from now on.
func (s *stream) flows() {
	s.t.Helper()
	now := s.sent.Load()
	waitFor(s.t, "datagrams arrive", func() bool { return s.latest.Load() > now })
}

// stop ends the stream.
func (s *stream) stop() {
	select {
	case <-s.quit:
		return
	default:
	}
	close(s.quit)
	s.tx.Close()
	s.rx.Close()
	s.wg.Wait()
}

// lost stops the stream and says how many did not arrive.
func (s *stream) lost() int64 {
	s.flows()
	s.stop()
	return s.latest.Load() - s.received.Load()
}

func (s *stream) String() string {
	return fmt.Sprintf("%d sent, %d arrived, %d refused at once, one each %v", s.sent.Load(), s.received.Load(), s.refused.Load(), streamPace)
}

// leaks looks at a host's underlay for packets that are not encapsulated.
type leaks struct {
	t    *testing.T
	fd   int
	port uint16
}

func watchLeaks(t *testing.T, n *node) *leaks {
	t.Helper()
	l := &leaks{t: t, port: encap.DefaultPort}
	check(t, n.Do(func() error {
		dev, err := net.InterfaceByName(n.Underlay)
		if err != nil {
			return err
		}
		const all = uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		return unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})
	}))
	t.Cleanup(func() { unix.Close(l.fd) })
	return l
}

// take counts the packets since the last time: with an address of the network
// outside, and all.
func (l *leaks) take() (leaked, all int) {
	n4, n6 := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/32")
	buf := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(l.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return leaked, all
		}
		check(l.t, err)
		p := buf[:n]
		if n < 20 {
			continue
		}
		all++
		var src, dst netip.Addr
		switch {
		case p[0]>>4 == 4:
			src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		case p[0]>>4 == 6 && n >= 40:
			src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		}
		if n4.Contains(src) || n4.Contains(dst) || n6.Contains(src) || n6.Contains(dst) {
			leaked++
		}
	}
}
