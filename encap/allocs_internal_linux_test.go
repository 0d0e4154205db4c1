package encap

import (
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/sys/unix"
)

// player is a device and a network that play the same packets again and again
// and forget what they are given, without allocating.
type player struct {
	reads    []tunRead
	arrivals []arrival
	at, next int
	writes   int
	sent     int
	refuse   unix.Errno // of messages and writes that use an offload
}

func (y *player) readv(_ int, iov *iovec, _ int) (int, unix.Errno) {
	if y.at == len(y.reads) {
		return -1, unix.EAGAIN
	}
	r := &y.reads[y.at]
	y.at++
	v := unsafe.Slice(iov, 2)
	r.v.Encode(bytesAt(&v[0], offload.VirtioLen))
	return offload.VirtioLen + copy(bytesAt(&v[1], int(v[1].len)), r.p), 0
}

func (y *player) writev(_ int, iov *iovec, n int) (int, unix.Errno) {
	if y.refuse != 0 && bytesAt(iov, 2)[1] != offload.GSONone {
		return -1, y.refuse
	}
	y.writes++
	return 1, 0
}

func (y *player) sendmmsg(_ int, m *mmsghdr, n int) (int, unix.Errno) {
	hs := unsafe.Slice(m, n)
	for i := range hs {
		if y.refuse != 0 && hs[i].hdr.controllen > 0 {
			if i == 0 {
				return -1, y.refuse
			}
			return i, 0
		}
		y.sent++
	}
	return n, 0
}

func (y *player) recvmmsg(_ int, m *mmsghdr, n int) (int, unix.Errno) {
	hs := unsafe.Slice(m, n)
	k := 0
	for ; k < n && y.next < len(y.arrivals); k++ {
		a := &y.arrivals[y.next]
		y.next++
		h := &hs[k].hdr
		putFrom(at[sockname](&h.name), a.from, unix.AF_INET)
		v := at[iovec](&h.iov)
		hs[k].len = uint32(copy(bytesAt(v, int(v.len)), a.data))
		h.flags, h.controllen = 0, 0
		if a.gro > 0 {
			c := at[controlbuf](&h.control)
			h.controllen = putSegment(c, 0)
			(*unix.Cmsghdr)(unsafe.Pointer(c)).Type = unix.UDP_GRO
			(*unix.Cmsghdr)(unsafe.Pointer(c)).SetLen(unix.CmsgLen(4))
			binary.NativeEndian.PutUint32(c[unix.CmsgLen(0):], uint32(a.gro))
		}
	}
	if k == 0 {
		return -1, unix.EAGAIN
	}
	return k, 0
}

// newPlayer puts a player in place of a rig's script.
func newPlayer(r *rig) *player {
	y := &player{}
	r.p.sys = calls{readv: y.readv, writev: y.writev, sendmmsg: y.sendmmsg, recvmmsg: y.recvmmsg}
	return y
}

// round plays everything once.
func (r *rig) round(y *player) {
	y.at, y.next = 0, 0
	if err := r.drive(); err != nil {
		r.t.Fatal(err)
	}
	r.p.publish()
}

func TestPumpAllocs(t *testing.T) {
	var out load
	for _, l := range loads() {
		out.reads = append(out.reads, l.reads...)
		out.want = append(out.want, l.want...)
	}
	noRoute := udp4(nil)
	noRoute.dst = ip("10.250.0.1")
	var in []arrival
	var got int
	for _, x := range []inner{tcp4(nil), tcp6(nil), udp4(nil), udp6(nil)} {
		ps := flow(x, 40, 1000)
		in = append(in, train(ps...), train(ps[:9]...), train(ps[0]))
		got += 50
	}
	x, y := udp4(nil), udp4(nil)
	y.sport++
	in = append(in, train(interleaved(10, flow(x, 10, 100), flow(y, 10, 100))...))
	got += 20
	strange := train(udp4(nil).back().packet())
	strange.from = port("192.0.2.77:1")
	for _, c := range []struct {
		name    string
		cfg     Config
		refuse  unix.Errno
		reads   []tunRead
		in      []arrival
		packets int // per round, either way
	}{
		{"outbound", Config{}, 0, out.reads, nil, len(out.want)},
		{"outbound, source ports", Config{SourcePorts: 8}, 0, out.reads, nil, len(out.want)},
		{"outbound, no offload", Config{Without: SegmentOffload}, 0, out.reads, nil, len(out.want)},
		{"outbound, nowhere to go", Config{}, 0, slices.Repeat([]tunRead{one(noRoute)}, 50), nil, 0},
		{"inbound", Config{}, 0, nil, in, got},
		{"inbound, trusted", Config{Checksums: TrustOuter}, 0, nil, in, got},
		{"inbound, strangers", Config{}, 0, nil, slices.Repeat([]arrival{strange}, 50), 0},
		{"both", Config{}, 0, out.reads, in, len(out.want) + got},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.cfg)
			y := newPlayer(r)
			y.reads, y.arrivals, y.refuse = c.reads, c.in, c.refuse
			r.round(y) // what is made once
			before := r.p.core.stats
			const rounds = 20
			if n := testing.AllocsPerRun(rounds, func() { r.round(y) }); n != 0 {
				t.Errorf("%v allocations for %d packets", n, c.packets)
			}
			st := r.p.core.stats
			moved := st.TX.Packets + st.RX.Packets - before.TX.Packets - before.RX.Packets
			if want := uint64(c.packets) * (rounds + 1); moved != want {
				t.Errorf("%d packets moved, want %d: drops %v", moved, want, st.Drops)
			}
		})
	}
}

// TestReplayAllocs: trouble is no reason to allocate either, except for the
// error queue, which is read once for each refusal.
func TestReplayAllocs(t *testing.T) {
	r := newRig(t, Config{})
	y := newPlayer(r)
	y.refuse = unix.EINVAL
	ps := flow(tcp4(nil), 40, 1000)
	y.arrivals = []arrival{train(ps...)}
	round := func() {
		r.p.rx.noTCP, r.p.rx.noUDP = 0, 0
		r.p.rx.setJoin()
		r.round(y)
	}
	round()
	// One log line, which allocates, for forty packets.
	if n := testing.AllocsPerRun(20, round); n > 20 {
		t.Errorf("%v allocations for the replay of %d packets", n, len(ps))
	}
}
