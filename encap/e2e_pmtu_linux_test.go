package encap_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// throughRouter gives the hosts of l a second way to each other, through a
// router with a link of mtu bytes in its middle that neither host sees, and
// makes it the one that the tunnel takes. To be called before start.
func (l *lab) throughRouter(mtu int) {
	t := l.t
	t.Helper()
	near, err := l.lab.Namespace("routerA")
	check(t, err)
	far, err := l.lab.Namespace("routerB")
	check(t, err)
	check(t, l.lab.Veth(l.a.host.NS, "up0", near, "a", l.MTU), l.lab.Veth(near, "mid", far, "mid", mtu),
		l.lab.Veth(far, "b", l.b.host.NS, "up0", l.MTU))
	for _, ns := range []*netlab.NS{near, far} {
		check(t, ns.Sysctl("net/ipv4/ip_forward", "1"), ns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	}
	for i, v6 := range []bool{false, true} {
		if v6 && mtu < 1280 {
			break
		}
		nets := [][3]string{{"198.51.100", "203.0.113", "192.168.7"}, {"2001:db8:a:", "2001:db8:b:", "2001:db8:c:"}}[i]
		at := func(net string, n int) netip.Prefix {
			if v6 {
				return netip.MustParsePrefix(fmt.Sprintf("%s:%d/64", net, n))
			}
			return netip.MustParsePrefix(fmt.Sprintf("%s.%d/24", net, n))
		}
		a, b, mid := nets[0], nets[1], nets[2]
		check(t, l.a.host.AddAddr("up0", at(a, 1)), near.AddAddr("a", at(a, 2)), near.AddAddr("mid", at(mid, 1)),
			far.AddAddr("mid", at(mid, 2)), far.AddAddr("b", at(b, 2)), l.b.host.AddAddr("up0", at(b, 1)))
		check(t, l.a.host.AddRoute(at(b, 0).Masked(), at(a, 2).Addr(), "up0", 0),
			near.AddRoute(at(b, 0).Masked(), at(mid, 2).Addr(), "mid", 0),
			far.AddRoute(at(a, 0).Masked(), at(mid, 1).Addr(), "mid", 0),
			l.b.host.AddRoute(at(a, 0).Masked(), at(b, 2).Addr(), "up0", 0))
		if v6 == l.cfg.Outer6 {
			l.a.endpoint = netip.AddrPortFrom(at(a, 1).Addr(), encap.DefaultPort)
			l.b.endpoint = netip.AddrPortFrom(at(b, 1).Addr(), encap.DefaultPort)
		}
		if v6 { // see settle
			for addr, ns := range map[netip.Addr]*netlab.NS{at(a, 1).Addr(): l.a.host.NS, at(b, 1).Addr(): l.b.host.NS,
				at(a, 2).Addr(): near, at(b, 2).Addr(): far, at(mid, 1).Addr(): near, at(mid, 2).Addr(): far} {
				waitLocal(t, ns, addr)
			}
		}
	}
}

// toldMTU sends full datagrams that must not be fragmented until the kernel
// refuses them, and wants that to be because of an error that names mtu.
func toldMTU(t *testing.T, from place, dst netip.Addr, full, mtu int) {
	t.Helper()
	where := fmt.Sprintf("%s to %v", from.name, dst)
	s, err := newErrSocket(from, netip.AddrPortFrom(dst, 4000), 0, unix.IP_PMTUDISC_DO)
	check(t, err)
	defer s.close()
	overhead := 28
	if dst.Is6() {
		overhead = 48
	}
	if err := s.send(make([]byte, full-overhead)); errors.Is(err, unix.EMSGSIZE) {
		// An error about earlier traffic of this sender has done it already.
		err = s.send(make([]byte, mtu-overhead))
		if err2 := s.send(make([]byte, mtu-overhead+1)); err != nil || !errors.Is(err2, unix.EMSGSIZE) {
			t.Errorf("%s: the path MTU is not %d: %v, %v", where, mtu, err, err2)
		}
		return
	} else if err != nil {
		t.Fatal(err)
	}
	e, err := s.next(patience / 4)
	if err != nil || e.errno != unix.EMSGSIZE || e.mtu != mtu {
		t.Errorf("%s: told %v (%v), not EMSGSIZE with MTU %d", where, e, err, mtu)
		return
	}
	if err := s.send(make([]byte, full-overhead)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%s: sending %d bytes again: %v, not EMSGSIZE", where, full, err)
	}
	if err := s.send(make([]byte, mtu-overhead)); err != nil {
		t.Errorf("%s: sending %d bytes: %v", where, mtu, err)
	}
}

// learns sends single full packets to the other host until s knows the path MTU.
func (s *side) learns(other *side) {
	s.t.Helper()
	full, err := newErrSocket(s.hostPlace(), netip.AddrPortFrom(other.hostPlace().addr4, 4000), 0, unix.IP_PMTUDISC_DONT)
	check(s.t, err)
	defer full.close()
	s.waitStats("a path MTU learnt", func(st encap.Stats) bool {
		check(s.t, full.send(make([]byte, s.cfg.Net.OverlayMTU-28)))
		return st.PathMTUs > 0
	})
}

// A link in the middle is smaller than both ends: the engine learns it, tells
// the inner senders, and meanwhile nothing is lost for good.
func TestE2EPathMTU(t *testing.T) {
	slow(t)
	for _, tt := range []struct {
		name string
		cfg  labConfig
		mid  int
	}{
		{"v4", labConfig{}, 1400},
		{"v4, 1280", labConfig{}, 1280},
		{"v6", labConfig{Outer6: true}, 1400},
		{"v6, both families on the socket", labConfig{Outer6: true, Dual: true}, 1400},
		{"v4, both families on the socket", labConfig{Dual: true}, 1400},
		{"v4, 9000 at the ends", labConfig{Net: netlab.TwoHostsConfig{MTU: 9000}}, 1500},
		{"v4, ports, two engines", labConfig{Engines: 2, Engine: encap.Config{SourcePorts: 2}}, 1400},
		{"v4, no segment offload", labConfig{Engine: encap.Config{Without: encap.SegmentOffload}}, 1400},
		{"v4, no errors", labConfig{Engine: encap.Config{NoICMP: true}}, 1400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.cfg)
			l.throughRouter(tt.mid)
			l.startAll()
			pods := []place{l.a.podPlace(), l.b.podPlace()}
			for _, v6 := range []bool{false, true} {
				check(t, exchange(pods[0], pods[1], v6, 512<<10))
			}
			l.a.learns(l.b)
			l.b.learns(l.a)
			for _, v6 := range []bool{false, true} {
				check(t, exchange(l.a.hostPlace(), l.b.hostPlace(), v6, 256<<10))
				// Those that may be fragmented inside and those that may not.
				check(t, datagrams(pods[0], pods[1], v6, udpSizes(l.OverlayMTU, v6), 100, tt.cfg.Engines > 1))
				if tt.cfg.Engine.NoICMP {
					continue
				}
				mtu := tt.mid - encap.Overhead(l.b.endpoint.Addr())
				if v6 {
					mtu = max(mtu, 1280)
				}
				if mtu < l.OverlayMTU {
					toldMTU(t, pods[0], pods[1].addr(v6), l.OverlayMTU, mtu)
					toldMTU(t, l.b.hostPlace(), l.a.hostPlace().addr(v6), l.OverlayMTU, mtu)
				}
			}
			l.a.dropped()
			l.b.dropped()
		})
	}
}

// Whoever sends what he was told to is not told again: with IPv6 inside and a
// path MTU of 1280 outside, packets of 1280 bytes need outer fragments, and no
// smaller ones can be asked for.
func TestE2EToldOnce(t *testing.T) {
	l := newLab(t, labConfig{})
	l.throughRouter(1280)
	l.startAll()
	l.a.learns(l.b)
	from, to := l.a.podPlace(), l.b.podPlace()
	rx, err := udpSocket(to, netip.AddrPortFrom(to.addr6, 4000), netip.AddrPort{})
	check(t, err)
	defer rx.Close()
	s, err := newErrSocket(from, netip.AddrPortFrom(to.addr6, 4000), 0, unix.IP_PMTUDISC_DO)
	check(t, err)
	defer s.close()
	before := l.a.stats()
	buf := make([]byte, 1<<16)
	for i := range 10 {
		b := datagram(make([]byte, 1280-48), i)
		check(t, s.send(b))
		rx.SetReadDeadline(time.Now().Add(patience))
		n, err := rx.Read(buf)
		check(t, err)
		check(t, same(buf[:n], b))
	}
	var e icmpError
	ok, err := s.take(&e)
	check(t, err)
	if st := l.a.stats(); ok || st.ICMPSent+st.ICMPLimited != before.ICMPSent+before.ICMPLimited {
		t.Errorf("told %v about packets of 1280 bytes: %d errors, %d suppressed",
			e, st.ICMPSent-before.ICMPSent, st.ICMPLimited-before.ICMPLimited)
	}
	l.a.dropped()
	l.b.dropped()
}

// Outer packets must not be fragmented on their way while no path MTU is known,
// trains no less than single ones: where fragments are lost, and many networks
// lose them, nothing would tell.
func TestE2EOuterDF(t *testing.T) {
	l := startLab(t, labConfig{Mode: netlab.M3}) // its frames are what a wire carries
	sniff := newSniffer(t, l.b.host.NS, l.b.host.Underlay)
	check(t, exchange(l.a.podPlace(), l.b.podPlace(), false, 128<<10))
	frames, without := 0, 0
	for _, f := range sniff.take() {
		ip := f[14:]
		if f[12] != 8 || f[13] != 0 || ip[9] != unix.IPPROTO_UDP {
			continue
		}
		frames++
		if ip[6]&0x40 == 0 {
			without++
		}
	}
	if frames < 128<<10/1500 || without > 0 {
		t.Errorf("%d of %d outer packets have no DF", without, frames)
	}
}

// The host's own link gets smaller than the tunnel believes.
func TestE2ELocalMTU(t *testing.T) {
	for _, cfg := range []labConfig{{}, {Outer6: true}, {Mode: netlab.M2}} {
		t.Run(fmt.Sprintf("outer v6 %v, mode %v", cfg.Outer6, cfg.Mode), func(t *testing.T) {
			l := startLab(t, cfg)
			pods := []place{l.a.podPlace(), l.b.podPlace()}
			near, far, err := tcpPair(pods[0], pods[1], false)
			check(t, err)
			defer near.Close()
			defer far.Close()
			check(t, l.a.host.SetMTU(l.a.host.Underlay, 1400), l.b.host.SetMTU(l.b.host.Underlay, 1400))
			// The connection of before, with its full segments, goes on.
			near.SetDeadline(time.Now().Add(2 * patience))
			far.SetDeadline(time.Now().Add(2 * patience))
			check(t, duplex(near, far, 1<<20))
			check(t, exchange(pods[0], pods[1], true, 1<<20))
			for _, s := range []*side{l.a, l.b} {
				s.waitStats("a path MTU learnt", func(st encap.Stats) bool { return st.PathMTUs > 0 && st.Replays > 0 })
			}
			for _, v6 := range []bool{false, true} {
				toldMTU(t, pods[0], pods[1].addr(v6), l.OverlayMTU, 1400-encap.Overhead(l.b.endpoint.Addr()))
				check(t, datagrams(pods[0], pods[1], v6, udpSizes(l.OverlayMTU, v6), 100, false))
			}
			l.a.dropped()
			l.b.dropped()
		})
	}
}
