package encap

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/flannelkit/flannelkit/internal/offload"
	"github.com/flannelkit/flannelkit/tun"
)

// train is a message of several datagrams from peer A.
func train(ps ...[]byte) arrival {
	a := arrival{from: rigPeers()[0].Endpoint, data: slices.Concat(ps...)}
	if len(ps) > 1 {
		a.gro = len(ps[0])
	}
	return a
}

// each is one message for each packet.
func each(ps [][]byte) (as []arrival) {
	for _, p := range ps {
		as = append(as, train(p))
	}
	return as
}

// flow returns n packets from A's side that can be joined.
func flow(in inner, n, size int) [][]byte {
	in = in.back()
	in.flags &^= psh
	in.payload = pattern(n*size, uint32(n))
	return in.segments(size)
}

func (r *rig) arrive(as ...arrival) []tunWrite {
	r.t.Helper()
	r.net.in = append(r.net.in, as...)
	r.mustDrive()
	return r.tun.take()
}

// joinRefused refuses packets with a GSO type of the list.
func joinRefused(e unix.Errno, types ...uint8) func(w tunWrite) unix.Errno {
	return func(w tunWrite) unix.Errno {
		if slices.Contains(types, w.v.GSOType) {
			return e
		}
		return 0
	}
}

// TestJoined: without faults runs arrive as one write each.
func TestJoined(t *testing.T) {
	for _, in := range []inner{tcp4(nil), tcp6(nil), udp4(nil), udp6(nil)} {
		ps := flow(in, 40, 1000)
		for name, as := range map[string][]arrival{
			"one train": {train(ps...)}, "two trains": {train(ps[:30]...), train(ps[30:]...)}, "single datagrams": each(ps[:8]),
		} {
			t.Run(fmt.Sprintf("%v %s", in.proto, name), func(t *testing.T) {
				r := newRig(t, Config{})
				ws := r.arrive(as...)
				var sent [][]byte
				for _, a := range as {
					sent = append(sent, slices.Collect(slices.Chunk(a.data, max(a.gro, 1040-40+in.headerLen())))...)
				}
				got := cutAll(t, ws)
				if err := differ(got, hops(sent)); err != nil {
					t.Error(err)
				}
				if len(ws) != 1 {
					t.Errorf("%d writes", len(ws))
				}
				if st := r.p.core.stats.RX; st.Packets != uint64(len(sent)) || st.Bytes != total(sent) || st.SuperPackets != 1 || st.DeviceCalls != 1 {
					t.Errorf("%d packets, %d bytes; counted are %+v", len(sent), total(sent), st)
				}
			})
		}
	}
}

// TestWriteErrors is everything else that a write can meet.
func TestWriteErrors(t *testing.T) {
	ps := flow(tcp4(nil), 10, 1000)
	single := udp4(pattern(77, 1)).back().packet()
	times := func(n int, e unix.Errno) func(tunWrite) unix.Errno {
		return func(tunWrite) unix.Errno {
			if n--; n >= 0 {
				return e
			}
			return 0
		}
	}
	always := func(e unix.Errno) func(tunWrite) unix.Errno {
		return func(tunWrite) unix.Errno { return e }
	}
	for _, c := range []struct {
		name    string
		refuse  func(tunWrite) unix.Errno
		dropped uint64 // of 11
		logged  int
	}{
		{"interrupted", times(3, unix.EINTR), 0, 0},
		{"queue full for a moment", times(5, unix.EAGAIN), 0, 0},
		{"no buffers for a moment", times(5, unix.ENOBUFS), 0, 0},
		{"queue full for ever", always(unix.EAGAIN), 11, 0},
		{"down", always(unix.EIO), 11, 0},
		{"down (ENETDOWN)", always(unix.ENETDOWN), 11, 0},
		{"no memory for a large buffer", joinRefused(unix.ENOMEM, offload.GSOTCPv4), 0, 0},
		{"no memory", always(unix.ENOMEM), 11, 0},
		{"refuses everything", always(unix.EINVAL), 11, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.tun.refuse = c.refuse
			got := cutAll(t, r.arrive(train(ps...), train(single)))
			st := r.p.core.stats
			if st.Drops[DropDevice] != c.dropped || st.Drops.Total() != c.dropped || st.RX.Packets != 11-c.dropped {
				t.Errorf("%d packets, drops %v; want %d dropped of 11", st.RX.Packets, st.Drops, c.dropped)
			}
			want := hops(append(slices.Clone(ps), single))
			if c.dropped == 11 {
				want = nil
			}
			if err := differ(got, want); err != nil {
				t.Error(err)
			}
			if lines := r.log.take(); len(lines) != c.logged {
				t.Errorf("logged %q", lines)
			}
			// The device is well again. Joining is off only after EINVAL.
			r.tun.refuse = nil
			ws := r.arrive(train(ps...))
			if err := differ(cutAll(t, ws), hops(ps)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if (len(ws) == 1) != (c.logged == 0) {
				t.Errorf("afterwards %d writes", len(ws))
			}
		})
	}
}

func TestDeviceGone(t *testing.T) {
	for _, e := range []unix.Errno{unix.EBADFD, unix.EBADF, unix.ENODEV} {
		for name, a := range map[string]arrival{"run": train(flow(tcp4(nil), 5, 100)...), "single": train(udp4(nil).back().packet())} {
			r := newRig(t, Config{})
			r.tun.refuse = func(tunWrite) unix.Errno { return e }
			r.net.in = []arrival{a}
			if err := r.drive(); !errors.Is(err, ErrDevice) || !errors.Is(err, tun.ErrGone) || !errors.Is(err, e) || errors.Is(err, ErrSocket) {
				t.Errorf("%s, %v: %v", name, e, err)
			}
			// And while a refused run is replayed.
			r = newRig(t, Config{})
			r.tun.refuse = func(w tunWrite) unix.Errno {
				if w.v.GSOType != 0 {
					return unix.EINVAL
				}
				return e
			}
			r.net.in = []arrival{a}
			if err := r.drive(); !errors.Is(err, tun.ErrGone) {
				t.Errorf("%s, replayed, %v: %v", name, e, err)
			}
		}
	}
}

func TestReceiveErrors(t *testing.T) {
	p := udp4(pattern(50, 1)).back().packet()
	for _, e := range []unix.Errno{unix.EBADF, unix.ENOTSOCK} {
		r := newRig(t, Config{})
		r.net.in = []arrival{train(p), {e: e}}
		if err := r.drive(); !errors.Is(err, ErrSocket) || !errors.Is(err, e) || errors.Is(err, ErrDevice) {
			t.Errorf("%v: %v", e, err)
		}
	}
	for _, e := range []unix.Errno{unix.EINTR, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENOMEM, unix.ENOBUFS, unix.EMSGSIZE} {
		r := newRig(t, Config{})
		ws := r.arrive(arrival{e: e}, train(p), arrival{e: e}, arrival{e: e}, train(p))
		if err := differ(cutAll(t, ws), [][]byte{hop(p), hop(p)}); err != nil {
			t.Errorf("%v: %v", e, err)
		}
		if st := r.p.core.stats; st.Drops.Total() != 0 {
			t.Errorf("%v: drops %v", e, st.Drops)
		}
	}
	// An error that does not go away does not keep the engine from sending.
	r := newRig(t, Config{})
	for range 200 {
		r.net.in = append(r.net.in, arrival{e: unix.EHOSTUNREACH})
	}
	r.tun.push(one(udp4(nil)))
	for range 200 {
		if _, err := r.p.tx.pump(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.p.rx.pump(); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.net.take()) != 1 {
		t.Error("a socket with an error kept the engine from sending")
	}
}

// TestGarbledMessages: what does not fit, or is nothing, is counted once and
// never delivered cut short; its neighbours are.
func TestGarbledMessages(t *testing.T) {
	p := udp4(pattern(500, 1)).back().packet()
	long := make([]byte, packetMax+1)
	copy(long, p)
	a := rigPeers()[0].Endpoint
	for _, c := range []struct {
		name string
		a    arrival
		want Drop
		n    uint64
	}{
		{"empty", arrival{from: a}, DropShort, 1},
		{"one byte", arrival{from: a, data: []byte{0x45}}, DropShort, 1},
		{"cut by the kernel", arrival{from: a, data: p, flags: unix.MSG_TRUNC}, DropTruncated, 1},
		{"control cut by the kernel", arrival{from: a, data: slices.Concat(p, p), flags: unix.MSG_CTRUNC}, DropTruncated, 1},
		{"fills the buffer", arrival{from: a, data: long}, DropTruncated, 1},
		{"stranger", arrival{from: port("192.0.2.99:8285"), data: p}, DropUnknownPeer, 1},
		{"two without a segment size", arrival{from: a, data: slices.Concat(p, p)}, DropLength, 1},
		{"wrong segment size", arrival{from: a, data: slices.Concat(p, p), gro: len(p) - 1}, DropLength, 0},
		{"segments of one byte", arrival{from: a, data: p[:20], gro: 1}, DropShort, 20},
		{"segment larger than the message", arrival{from: a, data: p[:400], gro: 5000}, DropLength, 1},
		{"garbage at the end of a train", arrival{from: a, data: slices.Concat(p, []byte{1}), gro: len(p)}, DropShort, 1},
		{"no name", arrival{data: p}, DropUnknownPeer, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{})
			ws := r.arrive(train(p), c.a, train(p))
			want := [][]byte{hop(p), hop(p)}
			if c.name == "garbage at the end of a train" {
				want = append(want, hop(p))
			}
			if err := differ(cutAll(t, ws), want); err != nil {
				t.Error(err)
			}
			st := r.p.core.stats
			if st.Drops[c.want] == 0 || c.n > 0 && (st.Drops[c.want] != c.n || st.Drops.Total() != c.n) {
				t.Errorf("drops %v, want %d as %v", st.Drops, c.n, c.want)
			}
		})
	}
}

// TestTinySegments: thousands of TCP segments of one byte in one batch make a
// run of more pieces than one writev takes.
func TestTinySegments(t *testing.T) {
	ps := flow(tcp4(nil), 3000, 1)
	r := newRig(t, Config{})
	r.arrive(train(udp4(nil).back().packet())) // no train: the next batch is 64 messages
	var as []arrival
	for c := range slices.Chunk(ps, 64) {
		as = append(as, train(c...))
	}
	defer func() {
		if e := recover(); e != nil {
			t.Fatalf("the engine panics: %v", e)
		}
	}()
	if err := differ(cutAll(t, r.arrive(as...)), hops(ps)); err != nil {
		t.Error(err)
	}
}

// TestTrusted: with TrustOuter packets are marked partial, which a device may
// refuse too.
func TestTrusted(t *testing.T) {
	ps := flow(udp4(nil), 3, 200)
	bad := bytes.Clone(ps[1]) // a payload byte that the inner sum does not fit
	bad[len(bad)-1]++
	r := newRig(t, Config{Checksums: TrustOuter})
	ws := r.arrive(train(ps...), train(tcp4(pattern(9, 1)).back().packet()))
	if err := differ(cutAll(t, ws), append(hops(ps), hop(tcp4(pattern(9, 1)).back().packet()))); err != nil {
		t.Error(err)
	}
	// Verified: what is wrong stays as it is, alone, for the kernel to find.
	r = newRig(t, Config{})
	got := cutAll(t, r.arrive(train(ps[0], bad, ps[2])))
	if err := differ(got, hops([][]byte{ps[0], bad, ps[2]})); err != nil {
		t.Errorf("a wrong checksum was mended: %v", err)
	}
	// Over IPv6 every outer checksum was verified, also a single datagram's.
	v6 := Peer{Endpoint: port("[::1]:9"), Subnets: subnetsA()}
	r = newRigOn(t, "[::1]:0", Config{Checksums: TrustOuter}, v6)
	one := arrival{from: v6.Endpoint, data: ps[0]}
	ws = r.arrive(one)
	if len(ws) != 1 || ws[0].v.Flags != offload.NeedsCsum || differ(cutAll(t, ws), hops(ps[:1])) != nil {
		t.Errorf("a trusted packet was written as %+v", ws)
	}
	r.tun.refuse = func(w tunWrite) unix.Errno {
		if w.v.Flags != 0 {
			return unix.EINVAL
		}
		return 0
	}
	for range 2 {
		ws = r.arrive(one)
		if len(ws) != 1 || ws[0].v != (offload.Virtio{}) || !bytes.Equal(ws[0].p, hop(ps[0])) {
			t.Errorf("refused, it was written as %+v", ws)
		}
	}
	if st := r.p.core.stats; st.Replays != 1 || st.Drops.Total() != 0 {
		t.Errorf("%d replays, drops %v; want one replay, as it is remembered", st.Replays, st.Drops)
	}
}

// TestRXChaos: flows interleaved at random in messages at random, and a device
// that refuses at random. All arrive with their own bytes, flows in order.
func TestRXChaos(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, Config{Checksums: Checksums(rapid.IntRange(0, 1).Draw(rt, "policy"))})
		defer r.e.Close()
		script := append(rapid.SliceOfN(rapid.IntRange(0, 4), 1, 20).Draw(rt, "script"), 0)
		step := 0
		r.tun.refuse = func(w tunWrite) unix.Errno {
			step++
			switch e := script[step%len(script)]; {
			case e == 1 && w.v != (offload.Virtio{}):
				return unix.EINVAL
			case e == 2 && w.v.GSOType != 0:
				return unix.ENOMEM
			case e == 3:
				return unix.EAGAIN
			case e == 4:
				return unix.EINTR
			}
			return 0
		}
		for range rapid.IntRange(1, 3).Draw(rt, "batches") {
			size := rapid.SampledFrom([]int{1, 10, 1000}).Draw(rt, "size")
			var left [][][]byte
			for i := range rapid.IntRange(1, 10).Draw(rt, "flows") {
				in := []inner{tcp4(nil), udp4(nil)}[rapid.IntRange(0, 1).Draw(rt, "udp")]
				in.sport += uint16(i)
				left = append(left, flow(in, rapid.IntRange(1, 12).Draw(rt, "packets"), size+20-in.headerLen()+20))
			}
			var sent [][]byte
			var as []arrival
			for len(left) > 0 {
				i := rapid.IntRange(0, len(left)-1).Draw(rt, "next")
				p := left[i][0]
				if left[i] = left[i][1:]; len(left[i]) == 0 {
					left = slices.Delete(left, i, i+1)
				}
				sent = append(sent, p)
				if a := len(as) - 1; a >= 0 && as[a].gro == len(p) && rapid.IntRange(0, 7).Draw(rt, "cut") > 0 {
					as[a].data = append(as[a].data, p...)
				} else {
					as = append(as, arrival{from: rigPeers()[0].Endpoint, data: bytes.Clone(p), gro: len(p)})
				}
			}
			r.net.in = as
			if err := r.drive(); err != nil {
				rt.Fatal(err)
			}
			var got [][]byte
			for _, w := range r.tun.take() {
				c, err := cut(w)
				if err != nil {
					rt.Fatal(err)
				}
				got = append(got, c...)
			}
			if err := differByFlow(got, hops(sent)); err != nil {
				rt.Fatal(err)
			}
		}
		if n := r.p.core.stats.Drops.Total(); n != 0 {
			rt.Fatalf("%d dropped", n)
		}
	})
}
