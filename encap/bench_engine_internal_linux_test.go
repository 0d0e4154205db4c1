package encap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/membw"
	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/sys/unix"
)

// engines are two real ones, as two hosts have them, with everything real but
// the devices: where the queue of a TUN device would be, each has one end of a
// pair of packet sockets, and the other end is the host that sends and receives
// packets with a virtio header in front. So no privilege is needed, and no
// network stack of a host is measured beside the engines.
//
//	host A -> socket pair -> engine A -> UDP on loopback -> engine B -> socket pair -> host B
type engines struct {
	a, b *node
	out  int // host A's end
	in   int // host B's end
}

// socketCopies is how often a byte is copied on that way: into and out of each
// of three sockets.
const socketCopies = 6

// newEngines starts two engines. All of host A's packets go to host B's subnets.
func newEngines(t testing.TB) *engines {
	t.Helper()
	// An engine that waits for the next packet of a bulk transfer keeps its
	// processor of Go's scheduler, so each thread gets one. Where hosts are
	// not one process, they don't share them either.
	procs := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(procs, 4))
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	p := &engines{}
	kind := func(host *int) nodeKind {
		return nodeKind{"socketpair", func(t testing.TB, conn *net.UDPConn, table *Table, cfg Config) (*Engine, testHost) {
			queue := socketPair(t, host)
			e, err := New(fakeQueue(queue), conn, table, cfg)
			if err != nil {
				t.Fatal(err)
			}
			return e, nil
		}}
	}
	p.a = kind(&p.out).newNode(t, "127.0.0.1:0", Config{}, localSubnets())
	p.b = kind(&p.in).newNode(t, "127.0.0.2:0", Config{}, subnetsA())
	p.a.peers(t, Peer{Endpoint: p.b.at, Subnets: subnetsA()})
	p.b.peers(t, Peer{Endpoint: p.a.at, Subnets: localSubnets()})
	return p
}

// socketPair makes a pair that keeps packets apart, as a TUN queue does. The
// queue's end does not block, the host's does, but not for ever.
func socketPair(t testing.TB, host *int) (queue int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	if err := unix.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, opt, &limit); err != nil {
			t.Fatal(err)
		}
	}
	for _, fd := range fds {
		// Forcing it needs CAP_NET_ADMIN.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, DefaultBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, DefaultBuffer)
		}
	}
	*host = fds[1]
	return fds[0]
}

// A stream is packets of one flow, each of which carries its number in the
// first eight bytes of its payload and a pattern in the others. It is sent in
// super-packets of the same number of segments, and may arrive in others.
type stream struct {
	p        inner
	header   int
	payload  int // bytes of each packet's payload
	segments int
	unit     []byte // virtio header and packet to be sent
	want     []byte // a packet's payload
	buf      []byte
	sent     uint64 // packets
	received uint64
	whole    bool // compare all bytes, not just the numbers
}

const numberLen = 8

// newStream returns a stream of packets like p of size bytes.
func newStream(p inner, size, segments int) *stream {
	s := &stream{p: p, header: p.headerLen(), payload: size - p.headerLen(), segments: segments, buf: make([]byte, 1<<17)}
	s.want = pattern(s.payload, 7)
	p.payload = bytes.Repeat(s.want, segments)
	b, v := p.super(s.payload)
	if segments == 1 {
		v.GSOType, v.GSOSize, v.HdrLen = offload.GSONone, 0, 0
	}
	s.unit = make([]byte, offload.VirtioLen, offload.VirtioLen+len(b))
	v.Encode(s.unit)
	s.unit = append(s.unit, b...)
	return s
}

// send sends the next super-packet. Its checksum is partial, as the kernel hands
// over what containers send, so that numbers can be put in as they are.
func (s *stream) send(fd int) error {
	p := s.unit[offload.VirtioLen:]
	if s.p.proto == offload.ProtoTCP {
		binary.BigEndian.PutUint32(p[s.p.ipLen()+4:], s.p.seq+uint32(s.sent)*uint32(s.payload))
	}
	for i := range s.segments {
		binary.BigEndian.PutUint64(p[s.header+i*s.payload:], s.sent)
		s.sent++
	}
	if n, err := unix.Write(fd, s.unit); err != nil || n != len(s.unit) {
		return fmt.Errorf("host sends: %d of %d bytes: %w", n, len(s.unit), err)
	}
	return nil
}

// errLost: packets did not arrive in time.
var errLost = errors.New("packets lost")

// receive takes a packet, which may be several joined.
func (s *stream) receive(fd int) error {
	n, err := unix.Read(fd, s.buf)
	if err == unix.EINTR {
		return nil
	}
	if err != nil || n == 0 {
		return fmt.Errorf("%w: %d of %d received, then: %w", errLost, s.received, s.sent, err)
	}
	return s.take(s.buf[:n])
}

// take checks that b, with a virtio header in front, are the next packets:
// each once and in the order they were sent.
func (s *stream) take(b []byte) error {
	if len(b) < offload.VirtioLen+s.header+s.payload {
		return fmt.Errorf("packet %d: %d bytes came", s.received, len(b))
	}
	v, pay := offload.DecodeVirtio(b), b[offload.VirtioLen+s.header:]
	if v.GSOType != offload.GSONone && int(v.GSOSize) != s.payload || v.GSOType == offload.GSONone && len(pay) != s.payload {
		return fmt.Errorf("packet %d: %d bytes of payload cut at %d, want packets of %d", s.received, len(pay), v.GSOSize, s.payload)
	}
	for ; len(pay) > 0; pay = pay[s.payload:] {
		if len(pay) < s.payload {
			return fmt.Errorf("packet %d: %d bytes of payload, want %d", s.received, len(pay), s.payload)
		}
		if k := binary.BigEndian.Uint64(pay); k != s.received {
			return fmt.Errorf("%w: packet %d came, want %d", errLost, k, s.received)
		}
		if s.whole && !bytes.Equal(pay[numberLen:s.payload], s.want[numberLen:]) {
			return fmt.Errorf("packet %d: its payload changed", s.received)
		}
		s.received++
	}
	return nil
}

// drain receives until no more than n packets are on their way.
func (s *stream) drain(fd int, n uint64) error {
	for s.sent-s.received > n {
		if err := s.receive(fd); err != nil {
			return err
		}
	}
	return nil
}

// room skips where the system's limits leave less room in a socket's buffer than
// a window needs: packets would be lost, or results not be comparable.
func (p *engines) room(b *testing.B, packets, size int) {
	b.Helper()
	need := packets * (size + 1024) // the kernel counts its bookkeeping too
	for _, s := range []struct {
		fd, opt int
		limit   string
	}{
		{p.b.e.path.(*rawPath).socks[0], unix.SO_RCVBUF, "net.core.rmem_max"},
		{p.out, unix.SO_SNDBUF, "net.core.wmem_max"},
	} {
		if n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, s.opt); err != nil || n < need {
			b.Skipf("a socket's buffer has %d bytes, %d are needed: %v (run it as root, or raise %s)", n, need, err, s.limit)
		}
	}
}

// settled waits until both engines have published what they did.
func (p *engines) settled(t testing.TB, packets uint64) (a, b Stats) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		a, b = p.a.e.Stats(), p.b.e.Stats()
		if a.TX.Packets == packets && b.RX.Packets == packets {
			return a, b
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d packets sent; engine A says %d, drops %v; engine B %d, drops %v",
				packets, a.TX.Packets, a.Drops, b.RX.Packets, b.Drops)
		}
	}
}

// BenchmarkEngine carries packets from host to host through two engines and a
// UDP socket each. One operation is one packet, or super-packet, that host A
// sends; a window of them is on its way, and all of them have to arrive, each
// once and in order. size is that of a packet on the wire, without the outer
// headers. MB/s count each packet once.
//
// One thread is the hosts, and each engine is one: on fewer than three
// processors they take turns, and what is measured is the work of all three
// added. GB/s and the share of the limit count the copies that the kernel
// makes, six for each byte; the sums of a checksum on either side come on top.
// syscalls/packet are those of both engines together.
func BenchmarkEngine(b *testing.B) {
	udp, tcp := udp4(nil), tcp4(nil)
	for _, c := range []struct {
		name           string
		p              inner
		size, segments int
		window         int // packets
	}{
		{"udp", udp, 64, 1, 256},
		{"udp", udp, 1400, 1, 128},
		{"udp", udp, 1400, 44, 16 * 44},
		{"tcp", tcp, 1400, 44, 16 * 44},
	} {
		b.Run(fmt.Sprintf("proto=%s/size=%d/segments=%d", c.name, c.size, c.segments), func(b *testing.B) {
			p, s := newEngines(b), newStream(c.p, c.size, c.segments)
			must := func(err error) {
				if err != nil {
					b.Fatalf("%v\nengine A: %+v\nengine B: %+v", err, p.a.e.Stats(), p.b.e.Stats())
				}
			}
			window := uint64(c.window)
			p.room(b, c.window, c.size)
			s.whole = true // once all bytes, before the clock runs
			for s.sent < 4*window {
				must(s.drain(p.in, window-uint64(c.segments)))
				must(s.send(p.out))
			}
			must(s.drain(p.in, 0))
			s.whole = false
			beforeA, beforeB := p.settled(b, s.sent)
			before := s.sent
			b.ReportAllocs()
			b.SetBytes(int64(c.size * c.segments))
			for b.Loop() {
				if s.sent-s.received > window-uint64(c.segments) {
					must(s.drain(p.in, window/2)) // in one go: fewer switches between threads
				}
				must(s.send(p.out))
			}
			b.StartTimer() // what is on its way counts too
			must(s.drain(p.in, 0))
			b.StopTimer()
			afterA, afterB := p.settled(b, s.sent)
			packets := float64(s.sent - before)
			calls := afterA.SystemCalls() - beforeA.SystemCalls() + afterB.SystemCalls() - beforeB.SystemCalls()
			if want := uint64(b.N * c.segments); s.sent-before != want || s.received != s.sent {
				b.Errorf("%d packets sent, %d received, want %d", s.sent-before, s.received-before, want)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/packets, "ns/packet")
			b.ReportMetric(float64(calls)/packets, "syscalls/packet")
			membw.Report(b, socketCopies*c.size*c.segments, membw.Copy, membw.Cache)
		})
	}
}

// TestStreamBites: the benchmark's check sees what is lost, doubled, changed or
// cut at the wrong place. (That it accepts what engines make of a stream is what
// the benchmark itself shows.)
func TestStreamBites(t *testing.T) {
	var host int
	queue := socketPair(t, &host)
	unit := func(s *stream) []byte {
		if err := s.send(queue); err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(s.unit)
	}
	fresh := func() *stream {
		s := newStream(tcp4(nil), 1400, 3)
		s.whole = true
		return s
	}
	s := fresh()
	first, second := unit(s), unit(s)
	for name, change := range map[string]func(s *stream, b []byte) []byte{
		"lost":       func(s *stream, b []byte) []byte { return second },
		"twice":      func(s *stream, b []byte) []byte { s.received = 3; return b },
		"cut":        func(s *stream, b []byte) []byte { return b[:len(b)-1] },
		"changed":    func(s *stream, b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut size":   func(s *stream, b []byte) []byte { b[4]++; b[5]++; return b },
		"one packet": func(s *stream, b []byte) []byte { clear(b[:offload.VirtioLen]); return b },
		"nothing":    func(s *stream, b []byte) []byte { return nil },
	} {
		s := fresh()
		if err := s.take(change(s, bytes.Clone(first))); err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
	if err := s.drain(host, 0); err != nil || s.received != 6 {
		t.Errorf("what was sent: %v, %d packets", err, s.received)
	}
	s.sent++ // a packet that is not there, waited for not so long
	if err := unix.SetsockoptTimeval(host, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := s.drain(host, 0); !errors.Is(err, errLost) {
		t.Errorf("a packet that does not come: %v", err)
	}
}
