package encap

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// load is a series of reads and what they are on the wire.
type load struct {
	name  string
	reads []tunRead
	want  [][]byte
}

func (l *load) big(in inner, mss int) {
	l.reads = append(l.reads, big(in, mss))
	l.want = append(l.want, hops(in.segments(mss))...)
}

func (l *load) one(in inner) {
	l.reads = append(l.reads, one(in))
	l.want = append(l.want, hop(in.packet()))
}

// loads are what a train can be made of.
func loads() (all []load) {
	add := func(name string, f func(l *load)) {
		l := load{name: name}
		f(&l)
		all = append(all, l)
	}
	add("tcp4", func(l *load) { l.big(tcp4(pattern(44*1400-7, 1)), 1400) })
	add("tcp6", func(l *load) { l.big(tcp6(pattern(30*1400, 2)), 1400) })
	add("udp4", func(l *load) { l.big(udp4(pattern(20*1200+1, 3)), 1200) })
	add("udp6", func(l *load) { l.big(udp6(pattern(20*1200, 4)), 1200) })
	add("two messages", func(l *load) { l.big(tcp4(pattern(65535-40-20, 5)), 536) })
	add("small packets", func(l *load) {
		for i := range 30 {
			l.one(udp4(pattern(64, uint32(i))))
		}
	})
	add("small packets, last one smaller", func(l *load) {
		for i := range 9 {
			l.one(tcp6(pattern(600, uint32(i))))
		}
		l.one(tcp6(nil))
	})
	add("mixed", func(l *load) {
		l.one(udp4(pattern(100, 1)))
		l.big(tcp4(pattern(5000, 2)), 1000)
		l.one(udp6(pattern(100, 3)))
		l.one(udp6(pattern(100, 4)))
		l.big(udp6(pattern(5001, 5)), 1000)
		l.one(tcp4(nil))
	})
	return all
}

// finish drives the rig through a load and holds what left against it: all of
// it, once, in order, and counted so.
func (r *rig) finish(l load) {
	r.t.Helper()
	before := r.p.core.stats
	r.tun.push(l.reads...)
	r.mustDrive()
	got := datagramsOf(r.net.take())
	if err := differ(got, l.want); err != nil {
		r.t.Fatal(err)
	}
	st := r.p.core.stats
	if n, b := st.TX.Packets-before.TX.Packets, st.TX.Bytes-before.TX.Bytes; n != uint64(len(got)) || b != total(got) {
		r.t.Errorf("%d packets and %d bytes are counted, %d and %d left", n, b, len(got), total(got))
	}
	if st.Drops != before.Drops {
		r.t.Errorf("drops %v", st.Drops)
	}
}

// trains counts messages of several datagrams.
func trains(ms []sentMsg) (n int) {
	for _, m := range ms {
		if m.seg > 0 {
			n++
		}
	}
	return n
}

// TestLoads: without faults everything leaves, in trains.
func TestLoads(t *testing.T) {
	for _, l := range loads() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.tun.push(l.reads...)
			r.mustDrive()
			ms := r.net.take()
			if err := differ(datagramsOf(ms), l.want); err != nil {
				t.Error(err)
			}
			if trains(ms) == 0 {
				t.Error("no trains")
			}
			st := r.p.core.stats
			if st.TX.Messages != uint64(len(ms)) || st.TX.Trains != uint64(trains(ms)) || st.TX.Packets != uint64(len(l.want)) || st.TX.Bytes != total(l.want) {
				t.Errorf("%d messages, %d trains, %d packets, %d bytes; counted are %+v", len(ms), trains(ms), len(l.want), total(l.want), st.TX)
			}
			for name, cfg := range map[string]Config{"no offload": {Without: SegmentOffload}, "no trains": {Without: Trains}} {
				r := newRig(t, cfg)
				r.tun.push(l.reads...)
				r.mustDrive()
				ms := r.net.take()
				if err := differ(datagramsOf(ms), l.want); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if cfg.Without == SegmentOffload && trains(ms) > 0 || l.name == "small packets" && trains(ms) > 0 {
					t.Errorf("%s: %d trains", name, trains(ms))
				}
			}
		})
	}
}

// TestOffloadRefused: the kernel refuses every train. Each of its packets goes
// once, alone and in order; the peer gets no more trains for a time, other
// peers do; it is said once.
func TestOffloadRefused(t *testing.T) {
	for _, e := range []unix.Errno{unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP} {
		for _, l := range loads() {
			t.Run(e.Error()+"/"+l.name, func(t *testing.T) {
				r := newRig(t, Config{})
				refused := 0
				toA := r.peer("10.2.0.7").Endpoint
				r.net.verdict = kernelLike(func(m sentMsg) unix.Errno {
					if m.seg > 0 && m.to == toA {
						refused++
						return e
					}
					return 0
				})
				r.finish(l)
				if refused == 0 {
					t.Fatal("there was no train to refuse")
				}
				if n := r.p.core.stats.Replays; n == 0 || n > uint64(refused) {
					t.Errorf("%d replays of %d refused messages", n, refused)
				}
				off := e == unix.EIO || e == unix.EINVAL
				if off && !r.peer("10.2.0.7").gsoOff() {
					t.Error("the peer still gets trains")
				}
				if r.peer("10.3.0.7").gsoOff() {
					t.Error("the other peer gets no trains any more")
				}
				if lines := r.log.take(); off && (len(lines) != 1 || !strings.Contains(lines[0], "WARN segmentation offload is refused") || !strings.Contains(lines[0], toA.String())) {
					t.Errorf("logged %q, want one warning that names the peer", lines)
				}

				// From now on nothing has to be refused.
				refused = 0
				r.finish(l)
				if off && refused != 0 {
					t.Errorf("%d more trains were tried", refused)
				}
				// B is not touched.
				r.tun.push(big(tcp4(pattern(5000, 1)).toB(), 1000))
				r.mustDrive()
				if trains(r.net.take()) != 1 {
					t.Error("no train to the other peer")
				}
				if lines := r.log.take(); len(lines) != 0 {
					t.Errorf("logged again: %q", lines)
				}
				// When the time is over, trains again.
				r.net.verdict = nil
				r.peer("10.2.0.7").noGSO.Store(1)
				r.tun.push(l.reads...)
				r.mustDrive()
				ms := r.net.take()
				if err := differ(datagramsOf(ms), l.want); err != nil {
					t.Error(err)
				}
				if trains(ms) == 0 {
					t.Error("no trains after the time of the refusal")
				}
			})
		}
	}
}

// TestUnsendable: a firewall or a missing route refuses what goes to one peer.
// That is lost and counted; the other peer's packets leave, and offload is not
// to blame: when the route is back, trains are.
func TestUnsendable(t *testing.T) {
	for _, e := range []unix.Errno{unix.EPERM, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.ENETDOWN} {
		for _, l := range loads() {
			t.Run(e.Error()+"/"+l.name, func(t *testing.T) {
				r := newRig(t, Config{})
				toA := r.peer("10.2.0.7").Endpoint
				r.net.verdict = kernelLike(func(m sentMsg) unix.Errno {
					if m.to == toA {
						return e
					}
					return 0
				})
				mixed := load{}
				mixed.one(udp4(pattern(10, 1)).toB())
				first := len(mixed.want)
				mixed.reads = append(mixed.reads, l.reads...)
				tail := load{}
				tail.big(tcp6(pattern(4000, 7)).toB(), 1000)
				tail.one(udp6(nil).toB())
				r.tun.push(mixed.reads...)
				r.tun.push(tail.reads...)
				r.mustDrive()
				want := slices.Concat(mixed.want[:first], tail.want)
				if err := differ(datagramsOf(r.net.take()), want); err != nil {
					t.Errorf("to the other peer: %v", err)
				}
				st := r.p.core.stats
				if st.Drops[DropUnreachable] != uint64(len(l.want)) || st.Drops.Total() != uint64(len(l.want)) || st.TX.Packets != uint64(len(want)) {
					t.Errorf("drops %v and %d packets are counted, %d were lost and %d left", st.Drops, st.TX.Packets, len(l.want), len(want))
				}
				if r.peer("10.2.0.7").gsoOff() {
					t.Errorf("%v switched trains off", e)
				}
				r.net.verdict = nil
				r.tun.push(l.reads...)
				r.mustDrive()
				if ms := r.net.take(); trains(ms) == 0 || len(datagramsOf(ms)) != len(l.want) {
					t.Errorf("%d trains and %d datagrams when the peer is reachable again", trains(ms), len(datagramsOf(ms)))
				}
			})
		}
	}
}

// TestNoBuffers: ENOBUFS means try again, a little later, and not for ever.
func TestNoBuffers(t *testing.T) {
	for _, e := range []unix.Errno{unix.ENOBUFS, unix.ENOMEM} {
		for _, l := range loads() {
			t.Run(e.Error()+"/"+l.name, func(t *testing.T) {
				r := newRig(t, Config{})
				for _, times := range []int{1, 7, maxAttempts} {
					left := times
					r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
						if left--; left >= 0 {
							return -1, e
						}
						return len(ms), 0
					}
					r.tun.push(l.reads[0])
					if _, err := r.p.tx.pump(); err != nil || !r.p.tx.pending() || !r.p.tx.backoff {
						t.Fatalf("after %v: %v, pending %v, backoff %v", e, err, r.p.tx.pending(), r.p.tx.backoff)
					}
					rest := l
					rest.reads = l.reads[1:]
					r.finish(rest)
					if r.p.tx.backoff || r.p.tx.attempts != 0 {
						t.Errorf("after success: backoff %v, attempts %d", r.p.tx.backoff, r.p.tx.attempts)
					}
				}
				// For ever, to A.
				toA := r.peer("10.2.0.7").Endpoint
				r.net.verdict = kernelLike(func(m sentMsg) unix.Errno {
					if m.to == toA {
						return e
					}
					return 0
				})
				before := r.p.core.stats
				r.tun.push(l.reads...)
				r.tun.push(one(udp4(nil).toB()))
				r.mustDrive()
				if err := differ(datagramsOf(r.net.take()), [][]byte{hop(udp4(nil).toB().packet())}); err != nil {
					t.Errorf("the engine did not go on: %v", err)
				}
				st := r.p.core.stats
				if n := st.Drops[DropNoBuffers] - before.Drops[DropNoBuffers]; n != uint64(len(l.want)) || st.Drops.Total()-before.Drops.Total() != n {
					t.Errorf("%d packets dropped for want of buffers, want %d: %v", n, len(l.want), st.Drops)
				}
			})
		}
	}
}

// TestSourcePorts: flows spread over the extra ports, each always by the same,
// and packets that are too short to have ports do no harm.
func TestSourcePorts(t *testing.T) {
	r := newRig(t, Config{SourcePorts: 4})
	ports := map[int]bool{}
	for _, base := range []inner{udp4(pattern(20, 1)), udp6(pattern(20, 1)), tcp4(pattern(20, 1)), tcp6(nil)} {
		for flow := range uint16(40) {
			in := base
			in.sport += flow
			r.tun.push(one(in), one(in), big(udpOrTCP(in), 500))
			r.mustDrive()
			used := map[int]bool{}
			for _, m := range r.net.take() {
				used[m.fd] = true
				ports[m.fd] = true
			}
			if len(used) != 1 || used[r.p.socks[0]] {
				t.Errorf("flow %v left by %v; the socket itself is %d", in, used, r.p.socks[0])
			}
		}
	}
	if len(ports) != 4 {
		t.Errorf("%d of 4 extra ports were used", len(ports))
	}
	for _, proto := range []byte{6, 17} {
		for n := range 9 {
			for _, in := range []inner{udp4(nil), udp6(nil)} {
				in.proto = 0 // no transport header is built ...
				in.payload = pattern(n, 3)
				p := with(in.packet(), func(b []byte) { // ... and one is announced
					if b[0]>>4 == 4 {
						b[9] = proto
					} else {
						b[6] = proto
					}
				})
				r.tun.push(tunRead{p: p})
				func() {
					defer func() {
						if e := recover(); e != nil {
							t.Errorf("%d bytes behind an IPv%d header of protocol %d: %v", n, p[0]>>4, proto, e)
						}
					}()
					r.mustDrive()
				}()
				if err := differ(datagramsOf(r.net.take()), [][]byte{hop(p)}); err != nil {
					t.Errorf("%d bytes behind an IPv%d header of protocol %d: %v", n, p[0]>>4, proto, err)
				}
			}
		}
	}
}

// udpOrTCP gives a packet enough payload for a super-packet.
func udpOrTCP(in inner) inner {
	in.payload = pattern(2000, 1)
	return in
}
