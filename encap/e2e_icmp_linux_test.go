package encap_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// strangers are addresses of the overlay that are nobody's.
func stranger(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fd00:244:99::9")
	}
	return netip.MustParseAddr("10.244.99.9")
}

// toldAs is what an error has to look like at the sender.
type toldAs struct {
	errno     unix.Errno
	typ, code byte
}

func noRoute(v6 bool) toldAs {
	if v6 {
		return toldAs{unix.ENETUNREACH, 1, 0}
	}
	return toldAs{unix.ENETUNREACH, 3, 0}
}

func expired(v6 bool) toldAs {
	if v6 {
		return toldAs{unix.EHOSTUNREACH, 3, 0}
	}
	return toldAs{unix.EHOSTUNREACH, 11, 0}
}

// isTold sends a datagram and wants the error, from offender.
func isTold(t *testing.T, from place, dst netip.Addr, ttl int, want toldAs, offender netip.Addr) {
	t.Helper()
	where := fmt.Sprintf("%s to %v with TTL %d", from.name, dst, ttl)
	s, err := newErrSocket(from, netip.AddrPortFrom(dst, 4000), ttl, unix.IP_PMTUDISC_WANT)
	check(t, err)
	defer s.close()
	payload := datagram(make([]byte, 100), ttl)
	check(t, s.send(payload))
	e, err := s.next(patience / 4)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if got := (toldAs{e.errno, e.typ, e.code}); got != want || e.offender != offender {
		t.Errorf("%s: told %v, not %v from %v", where, e, want, offender)
	}
	if err := same(e.payload, payload); err != nil {
		t.Errorf("%s: the error quotes: %v", where, err)
	}
}

// ICMP errors really arrive at the sender, in the host and in the pod, whatever
// the reverse path filter.
func TestE2EICMP(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  labConfig
	}{
		{"", labConfig{}},
		{"rp_filter", labConfig{Net: netlab.TwoHostsConfig{RPFilter: 1}}},
		{"outer v6", labConfig{Outer6: true, Net: netlab.TwoHostsConfig{RPFilter: 1}}},
		{"two engines, ports", labConfig{Engines: 2, Engine: encap.Config{SourcePorts: 3}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startLab(t, tt.cfg)
			pod, host := l.a.podPlace(), l.a.hostPlace()
			far := l.b.podPlace()
			for _, v6 := range []bool{false, true} {
				here, there := host.addr(v6), l.b.hostPlace().addr(v6)
				isTold(t, host, stranger(v6), 0, noRoute(v6), here)
				isTold(t, pod, stranger(v6), 0, noRoute(v6), here)
				// Expiring here: 1 at the device.
				isTold(t, host, far.addr(v6), 1, expired(v6), here)
				isTold(t, pod, far.addr(v6), 2, expired(v6), here)
				// Expiring in the far engine: 1 on the wire.
				isTold(t, host, far.addr(v6), 2, expired(v6), there)
				isTold(t, pod, far.addr(v6), 3, expired(v6), there)
			}
			l.a.waitStats("errors by reason", func(st encap.Stats) bool {
				return st.Drops[encap.DropNoRoute] == 4 && st.Drops[encap.DropExpired] == 4 && st.ICMPSent == 8
			})
			l.b.waitStats("errors by reason", func(st encap.Stats) bool {
				return st.Drops[encap.DropExpiredIn] == 4 && st.ICMPSent == 4
			})
			l.a.dropped(encap.DropNoRoute, encap.DropExpired)
			l.b.dropped(encap.DropExpiredIn)
		})
	}
}

// A traceroute sees every hop: no star, as flannel makes two.
func TestE2ETraceroute(t *testing.T) {
	l := startLab(t, labConfig{})
	from, to := l.a.podPlace(), l.b.podPlace()
	for _, v6 := range []bool{false, true} {
		gateway := l.a.host.Gateway4
		last := l.b.host.Subnet4.Addr()
		closed := toldAs{unix.ECONNREFUSED, 3, 3}
		if v6 {
			gateway, last = l.a.host.Gateway6, l.b.host.Subnet6.Addr()
			closed = toldAs{unix.ECONNREFUSED, 1, 4}
		}
		for ttl, want := range []struct {
			told     toldAs
			offender netip.Addr
		}{
			{expired(v6), gateway},                  // host A forwards
			{expired(v6), l.a.hostPlace().addr(v6)}, // engine A
			{expired(v6), l.b.hostPlace().addr(v6)}, // engine B
			{expired(v6), last},                     // host B forwards
			{closed, to.addr(v6)},                   // there
		} {
			isTold(t, from, to.addr(v6), ttl+1, want.told, want.offender)
		}
	}
}

// rawIP sends whole IP packets.
type rawIP struct {
	fd int
	v6 bool
}

func newRawIP(p place, v6 bool) (*rawIP, error) {
	r := &rawIP{v6: v6}
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	return r, p.ns.Do(func() (err error) {
		r.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
}

func (r *rawIP) send(p []byte) error {
	if r.v6 {
		return unix.Sendto(r.fd, p, 0, &unix.SockaddrInet6{Addr: [16]byte(p[24:40])})
	}
	return unix.Sendto(r.fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
}

// icmpPacket builds an ICMP message of the type; an error quotes a packet.
func icmpPacket(src, dst netip.Addr, typ byte) []byte {
	quote := udpPacket(netip.AddrPortFrom(dst, 1), netip.AddrPortFrom(src, 2), 9, make([]byte, 16))
	body := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, quote...)
	proto, acc := byte(unix.IPPROTO_ICMP), uint32(0)
	if src.Is6() {
		proto = unix.IPPROTO_ICMPV6
		acc = uint32(sum(append(src.AsSlice(), dst.AsSlice()...), uint32(proto)+uint32(len(body))))
	}
	c := ^sum(body, acc)
	body[2], body[3] = byte(c>>8), byte(c)
	return append(ipHeader(src, dst, 64, proto, len(body)), body...)
}

// No error is made about an ICMP error, a multicast, or a later fragment.
func TestE2ENoICMPAboutErrors(t *testing.T) {
	l := startLab(t, labConfig{})
	host := l.a.hostPlace()
	for _, v6 := range []bool{false, true} {
		before := l.a.stats()
		r, err := newRawIP(host, v6)
		check(t, err)
		defer unix.Close(r.fd)
		src, dst := host.addr(v6), stranger(v6)
		silent := []byte{3, 4, 5, 11, 12} // unreachable, quench, redirect, expired, parameter
		loud := []byte{8, 13}             // echo, timestamp
		if v6 {
			silent = []byte{1, 2, 3, 4, 127, 137} // as above, packet too big, redirect
			loud = []byte{128, 129}
		}
		for _, typ := range silent {
			check(t, r.send(icmpPacket(src, dst, typ)))
		}
		later := udpPacket(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 2), 64, make([]byte, 64))
		if v6 {
			next := append([]byte{unix.IPPROTO_UDP, 0, 0, 8, 0, 0, 0, 1}, later[40:]...)
			later = append(ipHeader(src, dst, 64, 44, len(next)), next...)
		} else {
			later[6], later[7] = 0, 1
			refresh(later)
		}
		check(t, r.send(later))
		n := uint64(len(silent) + 1)
		st := l.a.waitStats("drops", func(st encap.Stats) bool {
			return st.Drops[encap.DropNoRoute] == before.Drops[encap.DropNoRoute]+n
		})
		if st.ICMPSent != before.ICMPSent || st.ICMPLimited != before.ICMPLimited {
			t.Errorf("v6 %v: %d errors about ICMP errors and fragments (%d limited)", v6, st.ICMPSent-before.ICMPSent, st.ICMPLimited)
		}
		for i, typ := range loud {
			check(t, r.send(icmpPacket(src, dst, typ)))
			l.a.waitStats(fmt.Sprintf("an error about ICMP type %d", typ), func(st encap.Stats) bool {
				return st.ICMPSent == before.ICMPSent+uint64(i)+1
			})
		}
	}
}

// A flood of bad packets makes few errors, and the counters account for all.
func TestE2EICMPLimited(t *testing.T) {
	l := startLab(t, labConfig{})
	const floods = 10_000
	s, err := newErrSocket(l.a.podPlace(), netip.AddrPortFrom(stranger(false), 4000), 0, unix.IP_PMTUDISC_WANT)
	check(t, err)
	defer s.close()
	told := 0
	for i := range uint64(floods) {
		check(t, s.send([]byte("nobody there")))
		for {
			var e icmpError
			ok, err := s.take(&e)
			check(t, err)
			if !ok {
				break
			}
			told++
		}
		if i%100 == 99 { // not more than the device's queue holds
			l.a.waitStats("drops", func(st encap.Stats) bool { return st.Drops[encap.DropNoRoute] == i+1 })
		}
	}
	st := l.a.stats()
	if st.ICMPSent == 0 || st.ICMPSent > floods/10 || st.ICMPSent+st.ICMPLimited != floods {
		t.Errorf("%d errors and %d suppressed for %d packets", st.ICMPSent, st.ICMPLimited, floods)
	}
	if told == 0 || uint64(told) > st.ICMPSent {
		t.Errorf("the sender was told %d times, %d errors were sent", told, st.ICMPSent)
	}
	// Another sender is not silenced by that one's flood.
	isTold(t, l.a.hostPlace(), stranger(true), 0, noRoute(true), l.a.host.Subnet6.Addr())
}

// NoICMP is silence.
func TestE2ENoICMP(t *testing.T) {
	l := startLab(t, labConfig{Engine: encap.Config{NoICMP: true}})
	for _, v6 := range []bool{false, true} {
		s, err := newErrSocket(l.a.hostPlace(), netip.AddrPortFrom(stranger(v6), 4000), 0, unix.IP_PMTUDISC_WANT)
		check(t, err)
		defer s.close()
		check(t, s.send([]byte("nobody there")))
		before := uint64(1)
		if v6 {
			before = 2
		}
		l.a.waitStats("drops", func(st encap.Stats) bool { return st.Drops[encap.DropNoRoute] == before })
		var e icmpError
		if ok, err := s.take(&e); ok || err != nil || l.a.stats().ICMPSent != 0 {
			t.Errorf("v6 %v: told %v (%v)", v6, e, errors.Join(err))
		}
	}
}
