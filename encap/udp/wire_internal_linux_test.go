package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/lease"
)

// original is flannel's udp backend as it has always been: a TUN device without any
// offload, one packet for each call, one off the TTL each way, the bare IPv4 packet
// on the wire.
type original struct {
	dev  *os.File
	conn *net.UDPConn
	to   netip.AddrPort
}

// startOriginal runs it on host B instead of a backend.
func startOriginal(t *testing.T, l *lab) {
	t.Helper()
	o := &original{to: netip.AddrPortFrom(l.a.host.Addr4, 8285)}
	check(t, l.b.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("flannel0")
		if err == nil {
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		o.dev = os.NewFile(uintptr(fd), "flannel0") // now that it can be polled
		o.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.b.host.Addr4, 8285)))
		return err
	}))
	check(t, l.b.AttachOverlay("flannel0"))
	var wg sync.WaitGroup
	wg.Go(func() { o.carry(o.dev.Read, func(b []byte) (int, error) { return o.conn.WriteToUDPAddrPort(b, o.to) }) })
	wg.Go(func() { o.carry(o.conn.Read, o.dev.Write) })
	t.Cleanup(func() { o.dev.Close(); o.conn.Close(); wg.Wait() })
}

// carry carries packets one way.
func (o *original) carry(read, write func([]byte) (int, error)) {
	buf := make([]byte, 1472)
	for {
		n, err := read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 20 || buf[0]>>4 != 4 || buf[8] < 2 {
			continue
		}
		// One off the TTL is one in the high byte of a word: RFC 1624, equation 3.
		buf[8]--
		sum := uint32(binary.BigEndian.Uint16(buf[10:])) + 0x100
		binary.BigEndian.PutUint16(buf[10:], uint16(sum+sum>>16))
		_, _ = write(buf[:n])
	}
}

// The peer is the original flannel.
func TestOriginalPeer(t *testing.T) {
	l := newLab(t, labConfig{V4Only: true})
	l.a.start(Options{})
	startOriginal(t, l)
	l.talk()
}

// The leases are what a real store holds at its worst: the good peer is served, the
// others are told of, once.
func TestGarbagePeers(t *testing.T) {
	l := newLab(t, labConfig{})
	l.startBoth(Options{})
	bad := []lease.Lease{
		peerLease(1, "vxlan", "10.244.3.0/24", "192.0.2.3"),
		peerLease(1, "", "10.244.2.0/24", "192.0.2.3"), // B's, by an older lease
		peerLease(9, "", "10.244.1.0/24", "192.0.2.4"), // ours
		peerLease(9, "", "0.0.0.0/0", "192.0.2.5"),
		peerLease(9, "", "10.244.5.0/24", "192.0.2.1"), // at our address
		peerLease(9, "", "10.244.6.0/24", "224.0.0.1"),
		{},
	}
	l.b.own.Revision = 7
	for round := range 3 {
		err := l.a.b.Sync(t.Context(), append(bad, l.a.peers()...))
		if err == nil || strings.Count(err.Error(), "udp: sync: ") != len(bad)-1 {
			t.Errorf("Sync: %v", err)
		}
		if n := l.a.log.Count("WARN peer"); n != len(bad)-1 {
			t.Errorf("%d warnings after %d rounds", n, round+1)
		}
		if n := l.a.log.Count("INFO peer", "vxlan"); n != 1 {
			t.Errorf("the foreign peer is logged %d times", n)
		}
		l.talk()
	}
	if peers := l.a.b.(*overlay).table.Peers(); len(peers) != 1 {
		t.Errorf("peers: %v", peers)
	}
	// A peer that leaves is gone, one that moves is followed.
	check(t, l.a.b.Sync(t.Context(), nil))
	if peers := l.a.b.(*overlay).table.Peers(); len(peers) != 0 {
		t.Errorf("peers: %v", peers)
	}
	check(t, l.a.b.Sync(t.Context(), l.a.peers()))
	l.talk()
	// What the caller does with its slice afterwards is its business.
	mine := l.a.peers()
	check(t, l.a.b.Sync(t.Context(), mine))
	mine[0] = lease.Lease{}
	_, err := l.a.tryStart()
	check(t, err)
	l.talk()
}

// Sync with many peers, kernel and all. How long it takes is in the log.
func TestSyncThousand(t *testing.T) {
	l := newLab(t, labConfig{Network: func(n *lease.Network) { n.IPv4.SubnetLen = 28 }})
	l.a.own.Subnet = netip.MustParsePrefix("10.244.0.0/28")
	l.a.make(Options{})
	_, err := l.a.tryStart()
	check(t, err)
	leases := manyLeases(1000)
	for range 3 {
		start := time.Now()
		check(t, l.a.b.Sync(t.Context(), leases))
		t.Logf("%d peers: %v", len(leases), time.Since(start))
	}
	if n := len(l.a.b.(*overlay).table.Peers()); n != len(leases) {
		t.Errorf("%d peers", n)
	}
}

// The kernel says nothing of its own through the tunnel: no router solicitation, no
// neighbour discovery, no duplicate address detection.
func TestQuiet(t *testing.T) {
	l := newLab(t, labConfig{})
	for _, k := range []string{"net/ipv6/conf/default/accept_dad", "net/ipv6/conf/all/accept_dad"} {
		check(t, l.a.Sysctl(k, "1")) // as everywhere else
	}
	l.startBoth(Options{})
	l.talk()
	conf := "net/ipv6/conf/flannel0/"
	for key, want := range map[string]string{"accept_ra": "0", "addr_gen_mode": "1", "disable_ipv6": "0"} {
		if got, err := l.a.ReadSysctl(conf + key); err != nil || got != want {
			t.Errorf("%s is %s, not %s (%v)", key, got, want, err)
		}
	}
	link, err := l.a.Netlink().LinkByName("flannel0")
	check(t, err)
	addrs, err := l.a.Netlink().AddrList(link, unix.AF_INET6)
	check(t, err)
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 || !bytes.Equal(a.IP, l.a.Subnet6.Addr().AsSlice()) {
			t.Errorf("address %v, flags %x", a, a.Flags)
		}
	}
}

// Where IPv6 is off by default, the device has it all the same if the network does.
func TestIPv6OffByDefault(t *testing.T) {
	l := newLab(t, labConfig{})
	for _, n := range []*node{l.a, l.b} {
		check(t, n.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"))
	}
	l.startBoth(Options{})
	l.talk()
}
