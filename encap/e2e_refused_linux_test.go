package encap_test

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"golang.org/x/sys/unix"
)

// The kernel refuses some of the joined packets. Their parts are written one by
// one then: nothing is lost, nothing is changed, not in these packets and not in
// those of other flows that came between them.
func TestE2ERefusedRuns(t *testing.T) {
	for _, tt := range []struct {
		name   string
		every  int
		errno  unix.Errno
		engine encap.Config
	}{
		{"every one, no memory", 1, unix.ENOMEM, encap.Config{}},
		{"every other one, no memory", 2, unix.ENOMEM, encap.Config{}},
		{"some, no memory", 5, unix.ENOMEM, encap.Config{Checksums: encap.TrustOuter}},
		{"invalid", 1, unix.EINVAL, encap.Config{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, labConfig{Engine: tt.engine})
			l.a.open()
			l.setPeers(l.a)
			l.a.start()
			l.b.open()
			l.setPeers(l.b)
			e := l.b.engine(0)
			e.RefuseJoined(tt.every, tt.errno)
			l.b.runs = append(l.b.runs, run(e))
			t.Cleanup(func() { check(t, l.b.runs[0].stop(t)) })
			interleaved(t, l, 4000)
			check(t, exchange(l.a.podPlace(), l.b.podPlace(), false, 1<<20))
			l.b.waitStats("refused runs", func(st encap.Stats) bool { return st.Replays > 0 })
			l.a.dropped()
			l.b.dropped()
		})
	}
}

// interleaved sends datagrams of one size in turn over three flows, so that
// one train holds packets of all of them.
func interleaved(t *testing.T, l *lab, count int) {
	t.Helper()
	from, to := l.a.podPlace(), l.b.podPlace()
	var tx [3]*net.UDPConn
	var wg sync.WaitGroup
	for i := range tx {
		rx, err := udpSocket(to, netip.AddrPortFrom(to.addr4, uint16(5000+i)), netip.AddrPort{})
		check(t, err)
		defer rx.Close()
		tx[i], err = udpSocket(from, netip.AddrPort{}, rx.LocalAddr().(*net.UDPAddr).AddrPort())
		check(t, err)
		defer tx[i].Close()
		wg.Go(func() {
			buf := make([]byte, 2000)
			for n := i; n < count; n += len(tx) {
				rx.SetReadDeadline(time.Now().Add(patience / 2))
				k, err := rx.Read(buf)
				if os.IsTimeout(err) {
					t.Errorf("flow %d: datagram %d has not come", i, n)
					return
				}
				if got, err := verify(buf[:k]); err != nil || got != n {
					t.Errorf("flow %d: %d instead of %d: %v", i, got, n, err)
					return
				}
			}
		})
	}
	buf := make([]byte, 1000)
	for n := range count {
		if _, err := tx[n%len(tx)].Write(datagram(buf, n)); err != nil {
			t.Error(err)
			break
		}
		if n%200 == 199 { // no more than the device's queue holds
			l.a.waitStats("datagrams sent", func(st encap.Stats) bool { return st.TX.Packets > uint64(n) })
		}
	}
	wg.Wait()
}
