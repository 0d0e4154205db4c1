package encap_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"golang.org/x/sys/unix"
)

// crowd is n peers that nobody talks to.
func crowd(n int) []encap.Peer {
	peers := make([]encap.Peer, n)
	for i := range peers {
		a := [4]byte{10, 200, byte(i >> 8), byte(i)}
		b := [4]byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}
		peers[i] = encap.Peer{
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4(a), encap.DefaultPort),
			Subnets:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(b), 32)},
		}
	}
	return peers
}

// The peer set is replaced by an equal one, and by ones with more peers around
// it, all the time while traffic flows: nothing is lost, not even one datagram.
func TestE2EReplaceUnderTraffic(t *testing.T) {
	l := startLab(t, labConfig{})
	pods := []place{l.a.podPlace(), l.b.podPlace()}
	result := make(chan error, 2)
	stop := make(chan struct{})
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				result <- nil
				return
			default:
				err = exchange(pods[0], pods[1], false, 1<<20)
			}
		}
		result <- err
	}()
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				result <- nil
				return
			default:
				err = datagrams(pods[1], pods[0], true, unfragmented(l.OverlayMTU, true), 500, false)
			}
		}
		result <- err
	}()
	for i := range 1000 {
		others := crowd(i % 50)
		check(t, l.a.table.Replace(l.a.local, append(others, l.b.peer())))
		check(t, l.b.table.Replace(l.b.local, append([]encap.Peer{l.a.peer()}, others...)))
		if i%10 == 0 {
			time.Sleep(time.Millisecond) // let the engines see this one
		}
	}
	close(stop)
	check(t, <-result)
	check(t, <-result)
	l.a.dropped()
	l.b.dropped()
}

// A peer that is removed becomes unreachable, and reachable when it is back.
func TestE2EPeerRemoved(t *testing.T) {
	l := startLab(t, labConfig{})
	from, to := l.a.podPlace(), l.b.podPlace()
	near, far, err := tcpPair(from, to, false)
	check(t, err)
	defer near.Close()
	defer far.Close()

	check(t, l.a.table.Replace(l.a.local, nil))
	for _, v6 := range []bool{false, true} {
		isTold(t, from, to.addr(v6), 0, noRoute(v6), l.a.hostPlace().addr(v6))
	}
	// B still knows A, but A does not know B: what B sends is dropped.
	before := l.a.stats().Drops[encap.DropUnknownPeer]
	s, err := newErrSocket(to, netip.AddrPortFrom(from.addr4, 4000), 0, unix.IP_PMTUDISC_WANT)
	check(t, err)
	defer s.close()
	check(t, s.send([]byte("anybody?")))
	l.a.waitStats("datagram of an unknown peer", func(st encap.Stats) bool { return st.Drops[encap.DropUnknownPeer] > before })

	l.setPeers(l.a)
	near.SetDeadline(time.Now().Add(2 * patience))
	far.SetDeadline(time.Now().Add(2 * patience))
	check(t, duplex(near, far, 64<<10)) // a connection survives it
	l.a.dropped(encap.DropNoRoute, encap.DropUnknownPeer)
	l.b.dropped()
}

// A peer whose endpoint changes is followed, within one connection.
func TestE2EEndpointChanged(t *testing.T) {
	l := startLab(t, labConfig{Dual: true})
	from, to := l.a.podPlace(), l.b.podPlace()
	near, far, err := tcpPair(from, to, true)
	check(t, err)
	defer near.Close()
	defer far.Close()
	near.SetDeadline(time.Now().Add(2 * patience))
	far.SetDeadline(time.Now().Add(2 * patience))

	done := make(chan error, 1)
	go func() { done <- duplex(near, far, 8<<20) }()
	// From IPv4 to IPv6 outside, and back, in the middle of it. Both hosts
	// change at different moments: TCP has to make up for what was dropped.
	for i := range 20 {
		addrA, addrB := l.a.host.Addr4.Addr(), l.b.host.Addr4.Addr()
		if i%2 == 0 {
			addrA, addrB = l.a.host.Addr6.Addr(), l.b.host.Addr6.Addr()
		}
		peerA := encap.Peer{Endpoint: netip.AddrPortFrom(addrA, encap.DefaultPort), Subnets: l.a.local}
		peerB := encap.Peer{Endpoint: netip.AddrPortFrom(addrB, encap.DefaultPort), Subnets: l.b.local}
		check(t, l.a.table.Replace(l.a.local, []encap.Peer{peerB}))
		check(t, l.b.table.Replace(l.b.local, []encap.Peer{peerA}))
		time.Sleep(2 * time.Millisecond)
	}
	check(t, <-done)
	check(t, exchange(from, to, false, 64<<10))

	// And to a set without it.
	check(t, l.a.table.Replace(l.a.local, crowd(1)))
	isTold(t, from, to.addr(true), 0, noRoute(true), l.a.hostPlace().addr6)
}
