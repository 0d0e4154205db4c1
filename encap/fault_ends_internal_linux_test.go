package encap

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/tun"
)

// TestBlockedSocketAlone: while one of several sockets is full, the engine
// waits for that one. The others have room, and would not let it sleep.
func TestBlockedSocketAlone(t *testing.T) {
	r := newRig(t, Config{SourcePorts: 3})
	full := true
	r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
		if full {
			return -1, unix.EAGAIN
		}
		return len(ms), 0
	}
	r.tun.push(one(udp4(nil)))
	if _, err := r.p.tx.pump(); err != nil || !r.p.tx.pending() {
		t.Fatalf("%v, pending %v", err, r.p.tx.pending())
	}
	if err := r.p.sleep(false); err != nil { // the socket has room in truth
		t.Fatal(err)
	}
	sock := r.p.tx.meta[r.p.tx.sent].sock
	for i := range r.p.socks {
		if got := r.p.polls[2+i].Events&unix.POLLOUT != 0; got != (i == sock) {
			t.Errorf("waits for room in socket %d: %v; the batch is for socket %d", i, got, sock)
		}
	}
	if r.p.polls[1].Events != 0 {
		t.Error("waits for the queue, which can't be read before the batch has left")
	}
	full = false
	r.mustDrive()
	if len(r.net.take()) != 1 {
		t.Error("the packet did not leave")
	}
}

// TestSendBroken: a descriptor that is of no use ends the engine.
func TestSendBroken(t *testing.T) {
	for _, e := range []unix.Errno{unix.EBADF, unix.ENOTSOCK} {
		for _, replay := range []bool{false, true} {
			r := newRig(t, Config{})
			r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
				if replay && ms[0].seg > 0 {
					return -1, unix.EIO
				}
				return -1, e
			}
			r.tun.push(big(tcp4(pattern(5000, 1)), 1000))
			if err := r.drive(); !errors.Is(err, ErrSocket) || !errors.Is(err, e) || errors.Is(err, ErrDevice) {
				t.Errorf("%v (replay %v) ends with %v", e, replay, err)
			}
		}
	}
}

func TestReadErrors(t *testing.T) {
	for _, c := range []struct {
		e    unix.Errno
		gone bool
	}{{unix.EBADFD, true}, {unix.EBADF, true}, {unix.ENODEV, true}, {unix.EIO, false}, {unix.EFAULT, false}} {
		r := newRig(t, Config{})
		r.tun.push(one(udp4(nil)), tunRead{e: c.e})
		err := r.drive()
		if !errors.Is(err, ErrDevice) || !errors.Is(err, c.e) || errors.Is(err, tun.ErrGone) != c.gone || errors.Is(err, ErrSocket) {
			t.Errorf("%v ends with %v", c.e, err)
		}
	}
	// Interrupted or not: everything is read.
	r := newRig(t, Config{})
	l := load{reads: []tunRead{{e: unix.EINTR}}}
	l.one(udp4(nil))
	l.reads = append(l.reads, tunRead{e: unix.EINTR}, tunRead{e: unix.EINTR})
	l.big(tcp4(pattern(3000, 1)), 1000)
	r.finish(l)
}

// TestBadReads: what contradicts its virtio header is counted and dropped, and
// its neighbours are not harmed.
func TestBadReads(t *testing.T) {
	good := udp4(pattern(33, 1))
	cases := map[string]tunRead{}
	add := func(name string, in inner, change func(r *tunRead)) {
		x := big(in, 1000)
		change(&x)
		cases[name] = x
	}
	add("no segment size", tcp4(pattern(3000, 1)), func(r *tunRead) { r.v.GSOSize = 0 })
	add("wrong version", tcp4(pattern(3000, 1)), func(r *tunRead) { r.v.GSOType = 4 })
	add("unknown type", tcp4(pattern(3000, 1)), func(r *tunRead) { r.v.GSOType = 3 })
	add("checksum start in the IP header", tcp4(pattern(3000, 1)), func(r *tunRead) { r.v.CsumStart = 19 })
	add("checksum start beyond", tcp6(pattern(3000, 1)), func(r *tunRead) { r.v.CsumStart = 60000 })
	add("only headers", tcp4(pattern(3000, 1)), func(r *tunRead) { r.p = r.p[:40]; r.p[2], r.p[3] = 0, 40 })
	add("TCP header of 0", tcp4(pattern(3000, 1)), func(r *tunRead) { r.p[32] = 0 })
	add("length", tcp4(pattern(3000, 1)), func(r *tunRead) { r.p[2]++ })
	add("checksum beyond", udp4(pattern(3, 1)), func(r *tunRead) { *r = one(udp4(pattern(3, 1))); r.v.CsumStart = 40 })
	add("short", udp4(pattern(3, 1)), func(r *tunRead) { r.p = r.p[:19]; r.v.GSOType = 0 })
	for name, bad := range cases {
		r := newRig(t, Config{})
		r.tun.push(one(good), bad, one(good), big(tcp4(pattern(2500, 2)), 1000))
		r.mustDrive()
		want := slices.Concat([][]byte{hop(good.packet()), hop(good.packet())}, hops(tcp4(pattern(2500, 2)).segments(1000)))
		if err := differ(datagramsOf(r.net.take()), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if st := r.p.core.stats; st.Drops[DropBadPacket] != 1 || st.Drops.Total() != 1 {
			t.Errorf("%s: drops %v", name, st.Drops)
		}
	}
}
