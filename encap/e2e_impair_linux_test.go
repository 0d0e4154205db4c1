package encap_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// flood sends count datagrams and lets any of them be lost, doubled or late. It
// returns how many different ones arrived, every one with its bytes.
func flood(from, to place, v6 bool, sizes []int, count int) (got int, err error) {
	rx, err := udpSocket(to, netip.AddrPortFrom(to.addr(v6), 0), netip.AddrPort{})
	if err != nil {
		return 0, err
	}
	defer rx.Close()
	tx, err := udpSocket(from, netip.AddrPort{}, rx.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		return 0, err
	}
	defer tx.Close()
	// The last number is sent until it arrives: then all others have, or
	// will not.
	done := make(chan struct{})
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for n := 0; n < count; n++ {
			if _, sendErr = tx.Write(datagram(buf[:sizes[n%len(sizes)]], n)); sendErr != nil {
				return
			}
		}
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
				tx.Write(datagram(buf[:64], count))
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	seen := make(map[int]bool)
	buf := make([]byte, 1<<16)
	rx.SetReadDeadline(time.Now().Add(patience))
	for {
		k, err := rx.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return len(seen), fmt.Errorf("the end has not come: %d of %d have (%w)", len(seen), count, errors.Join(sendErr, err))
		}
		if err != nil {
			return len(seen), err
		}
		n, err := verify(buf[:k])
		switch {
		case err != nil:
			return len(seen), err
		case n == count:
			return len(seen), nil
		case n > count || k != sizes[n%len(sizes)]:
			return len(seen), fmt.Errorf("datagram %d of %d bytes was never sent", n, k)
		}
		seen[n] = true
	}
}

// survives moves TCP both ways and floods UDP both ways, and wants at least
// share of the datagrams.
func (l *lab) survives(t *testing.T, bytes, count int, share float64) {
	t.Helper()
	for name, v6 := range l.inner() {
		pods := []place{l.a.podPlace(), l.b.podPlace()}
		if err := exchange(pods[0], pods[1], v6, bytes); err != nil {
			t.Errorf("TCP %s: %v", name, err)
		}
		sizes := append(unfragmented(l.OverlayMTU, v6), 3000, 100, 1400)
		for i := range sizes {
			sizes[i] = max(sizes[i], 8) // room for the number
		}
		for i := range 2 {
			got, err := flood(pods[i], pods[1-i], v6, sizes, count)
			if err != nil || float64(got) < share*float64(count) {
				t.Errorf("UDP %s from %s: %d of %d datagrams arrived: %v", name, pods[i].name, got, count, err)
			}
		}
	}
}

func TestE2EImpaired(t *testing.T) {
	for _, tt := range []struct {
		name string
		imp  netlab.Impairment
		cfg  labConfig
	}{
		{"loss", netlab.Impairment{Drop: 0.02}, labConfig{}},
		{"reordering", netlab.Impairment{Reorder: 0.05, Hold: 4}, labConfig{}},
		{"duplication", netlab.Impairment{Duplicate: 0.05}, labConfig{}},
		{"corruption", netlab.Impairment{Corrupt: 0.02}, labConfig{}},
		{"all", netlab.Impairment{Drop: 0.01, Reorder: 0.03, Hold: 2, Duplicate: 0.02, Corrupt: 0.01}, labConfig{}},
		{"all, outer v6, ports", netlab.Impairment{Drop: 0.01, Reorder: 0.03, Hold: 2, Duplicate: 0.02, Corrupt: 0.01},
			labConfig{Outer6: true, Engine: encap.Config{SourcePorts: 4}}},
		{"all, trust the outer checksum", netlab.Impairment{Drop: 0.01, Reorder: 0.03, Hold: 2, Duplicate: 0.02, Corrupt: 0.01},
			labConfig{Engine: encap.Config{Checksums: encap.TrustOuter}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it waits for retransmissions
			tt.imp.Seed = 7
			tt.cfg.Net.Impairment = &tt.imp
			l := startLab(t, tt.cfg)
			l.survives(t, 1<<20, 2000, 0.1)
			st := l.b.stats()
			c := l.Link.Counters(netlab.AToB)
			if tt.imp.Corrupt == 0 {
				l.a.dropped()
				l.b.dropped()
			} else if st.SocketDrops > c.Corrupted {
				// A wrong outer checksum counts as the socket's drop.
				t.Errorf("the kernel dropped %d datagrams, %d were corrupted", st.SocketDrops, c.Corrupted)
			}
			if c.Oversized != 0 || tt.imp.Drop > 0 && c.Dropped == 0 || tt.imp.Reorder > 0 && c.Reordered == 0 ||
				tt.imp.Duplicate > 0 && c.Duplicated == 0 || tt.imp.Corrupt > 0 && c.Corrupted == 0 {
				t.Errorf("the link did not do what it was to: %+v", c)
			}
		})
	}
}

// A relay hands datagrams on and corrupts some: the outer checksum is right
// again afterwards, the inner packet is not.
type relay struct {
	in, out  *net.UDPConn
	to       netip.AddrPort
	rng      *rand.Rand
	share    float64
	corrupt  int
	finished chan struct{}
}

func (r *relay) run() {
	defer close(r.finished)
	buf := make([]byte, 1<<16)
	for {
		n, err := r.in.Read(buf)
		if err != nil {
			return
		}
		if r.rng.Float64() < r.share {
			buf[r.rng.IntN(n)] ^= byte(1 + r.rng.IntN(255))
			r.corrupt++
		}
		_, _ = r.out.WriteToUDPAddrPort(buf[:n], r.to)
	}
}

// TestE2ECorruptInside has packets corrupted before they were encapsulated, as
// far as the receiving engine can tell. It may hand them to the kernel, which
// drops them by their checksum, but it must not make them good.
func TestE2ECorruptInside(t *testing.T) {
	for name, cfg := range map[string]labConfig{"v4": {}, "v6": {Outer6: true}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, cfg)
			for _, s := range []*side{l.a, l.b} {
				s.open()
			}
			// Both engines send to relays on host B; the way to the other
			// engine's filter is open because B's address is that of the
			// relays too.
			at := l.b.endpoint.Addr()
			socks := make([]*net.UDPConn, 2)
			for i := range socks {
				var err error
				socks[i], err = udpSocket(l.b.hostPlace(), netip.AddrPortFrom(at, uint16(7001+i)), netip.AddrPort{})
				check(t, err)
			}
			relays := []*relay{
				{in: socks[0], out: socks[1], to: l.b.endpoint},
				{in: socks[1], out: socks[0], to: l.a.endpoint},
			}
			for i, r := range relays {
				r.rng, r.share, r.finished = rand.New(rand.NewPCG(3, uint64(i))), 0.02, make(chan struct{})
				go r.run()
			}
			t.Cleanup(func() {
				for i, r := range relays {
					socks[i].Close()
					<-r.finished
					if r.corrupt == 0 {
						t.Errorf("relay %d corrupted nothing", i)
					}
				}
			})
			check(t, l.a.table.Replace(l.a.local, []encap.Peer{{Endpoint: netip.AddrPortFrom(at, 7001), Subnets: l.b.local}}))
			check(t, l.b.table.Replace(l.b.local, []encap.Peer{{Endpoint: netip.AddrPortFrom(at, 7002), Subnets: l.a.local}}))
			l.a.start()
			l.b.start()
			l.survives(t, 512<<10, 2000, 0.5)
			// What can be wrong with a header is noticed here already.
			l.a.dropped(encap.DropHeader, encap.DropLength, encap.DropNotIP, encap.DropSpoofed, encap.DropNotLocal, encap.DropExpiredIn)
			l.b.dropped(encap.DropHeader, encap.DropLength, encap.DropNotIP, encap.DropSpoofed, encap.DropNotLocal, encap.DropExpiredIn)
		})
	}
}
