package encap

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"github.com/flannelkit/flannelkit/internal/offload"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// A rig is a raw path whose system calls are scripted: a device and a network
// that exist only in this process. Nothing in it needs a privilege. A test
// either drives the two pumps by hand, step by step, or lets the engine run:
// the device's descriptor is an eventfd, so that the engine's poll works.

// at returns what the number p points to, as mmsg_linux.go does.
func at[T any](p *uintptr) *T { return *(**T)(unsafe.Pointer(p)) }

// gather copies the bytes of n iovecs at v.
func gather(v *iovec, n int) (b []byte) {
	for i := range n {
		x := &unsafe.Slice(v, n)[i]
		b = append(b, bytesAt(x, int(x.len))...)
	}
	return b
}

// tunRead is a packet that the device delivers, or an error.
type tunRead struct {
	v offload.Virtio
	p []byte
	e unix.Errno
}

// tunWrite is a packet that the engine wrote.
type tunWrite struct {
	v offload.Virtio
	p []byte
}

// scriptTUN is the device.
type scriptTUN struct {
	mu     sync.Mutex
	event  int // eventfd: readable while packets wait
	in     []tunRead
	out    []tunWrite
	refuse func(w tunWrite) unix.Errno // nil: takes everything
	wrote  chan struct{}               // a token for a write that nobody looked at yet
}

func (d *scriptTUN) push(rs ...tunRead) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in = append(d.in, rs...)
	one := [8]byte{1}
	_, _ = unix.Write(d.event, one[:])
}

func (d *scriptTUN) readv(_ int, iov *iovec, n int) (int, unix.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.in) == 0 {
		var count [8]byte
		_, _ = unix.Read(d.event, count[:])
		return -1, unix.EAGAIN
	}
	r := d.in[0]
	d.in = d.in[1:]
	if r.e != 0 {
		return -1, r.e
	}
	v := unsafe.Slice(iov, n)
	if n != 2 || v[0].len != offload.VirtioLen || int(v[1].len) < len(r.p) {
		return -1, unix.EINVAL
	}
	r.v.Encode(bytesAt(&v[0], offload.VirtioLen))
	copy(bytesAt(&v[1], int(v[1].len)), r.p)
	return offload.VirtioLen + len(r.p), 0
}

func (d *scriptTUN) writev(_ int, iov *iovec, n int) (int, unix.Errno) {
	b := gather(iov, n)
	if n > maxOut || len(b) < offload.VirtioLen {
		return -1, unix.EINVAL // UIO_MAXIOV
	}
	w := tunWrite{offload.DecodeVirtio(b), b[offload.VirtioLen:]}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		if e := d.refuse(w); e != 0 {
			return -1, e
		}
	}
	d.out = append(d.out, w)
	select {
	case d.wrote <- struct{}{}:
	default:
	}
	return len(b), 0
}

// take returns what was written since the last call.
func (d *scriptTUN) take() (ws []tunWrite) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ws, d.out = d.out, nil
	return ws
}

// sentMsg is a message that the engine sent.
type sentMsg struct {
	fd   int
	to   netip.AddrPort
	seg  int // UDP_SEGMENT, 0: one datagram
	data []byte
}

// datagrams cuts the message as the kernel would.
func (m sentMsg) datagrams() (ds [][]byte) {
	if m.seg == 0 {
		return [][]byte{m.data}
	}
	return slices.Collect(slices.Chunk(m.data, m.seg))
}

// arrival is a message from the network, or an error of the socket.
type arrival struct {
	from  netip.AddrPort
	data  []byte
	gro   int   // UDP_GRO, 0: none
	flags int32 // MSG_TRUNC and the like
	e     unix.Errno
}

// scriptNet is the UDP side.
type scriptNet struct {
	mu      sync.Mutex
	t       testing.TB
	family  int
	real    bool // the kernel's calls; verdicts still hold
	verdict func(ms []sentMsg) (int, unix.Errno)
	sent    []sentMsg
	calls   int
	in      []arrival
}

func (s *scriptNet) sendmmsg(fd int, m *mmsghdr, n int) (int, unix.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	hs := unsafe.Slice(m, n)
	ms := make([]sentMsg, n)
	for i := range hs {
		ms[i] = s.decode(fd, &hs[i].hdr)
	}
	if s.verdict != nil {
		k, e := s.verdict(ms)
		if e != 0 {
			return -1, e
		}
		n = min(n, k)
	}
	if s.real {
		k, e := rawSendmmsg(fd, m, n)
		if e != 0 {
			return -1, e
		}
		n = k
	}
	s.sent = append(s.sent, ms[:n]...)
	return n, 0
}

// decode reads a message as the kernel would, and holds it against its limits.
func (s *scriptNet) decode(fd int, h *msghdr) (m sentMsg) {
	name := at[sockname](&h.name)
	m = sentMsg{fd: fd, to: nameOf(name), data: gather(at[iovec](&h.iov), int(h.iovlen))}
	if h.iovlen > 1024 || h.iovlen == 0 {
		s.t.Errorf("a message of %d iovecs", h.iovlen)
	}
	if h.controllen > 0 {
		c := unsafe.Slice(at[byte](&h.control), h.controllen)
		cs, err := unix.ParseSocketControlMessage(c)
		if err != nil || len(cs) != 1 || cs[0].Header.Level != unix.SOL_UDP || cs[0].Header.Type != unix.UDP_SEGMENT || int(cs[0].Header.Len) != unix.CmsgLen(2) {
			s.t.Errorf("control message %v, %v", cs, err)
			return m
		}
		m.seg = int(binary.NativeEndian.Uint16(cs[0].Data))
		if k := len(m.datagrams()); k < 2 || k > 128 {
			s.t.Errorf("a train of %d datagrams", k)
		}
	}
	if len(m.data) > maxUDPPayload {
		s.t.Errorf("a message of %d bytes", len(m.data))
	}
	return m
}

// kernelLike makes a verdict of what the kernel says about each message: it
// stops at the first one that fails, and reports the error only if that is
// also the first of the call.
func kernelLike(judge func(m sentMsg) unix.Errno) func(ms []sentMsg) (int, unix.Errno) {
	return func(ms []sentMsg) (int, unix.Errno) {
		for i, m := range ms {
			if e := judge(m); e != 0 {
				if i == 0 {
					return -1, e
				}
				return i, 0
			}
		}
		return len(ms), 0
	}
}

func (s *scriptNet) recvmmsg(fd int, m *mmsghdr, n int) (int, unix.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.real {
		return rawRecvmmsg(fd, m, n)
	}
	hs := unsafe.Slice(m, n)
	k := 0
	for k < n && len(s.in) > 0 {
		a := s.in[0]
		if a.e != 0 {
			if k > 0 {
				break
			}
			s.in = s.in[1:]
			return -1, a.e
		}
		s.in = s.in[1:]
		h := &hs[k].hdr
		putFrom(at[sockname](&h.name), a.from, s.family)
		v := at[iovec](&h.iov)
		hs[k].len = uint32(copy(bytesAt(v, int(v.len)), a.data))
		h.flags = a.flags
		h.controllen = 0
		if a.gro > 0 {
			c := cmsg(nil, unix.SOL_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, uint32(a.gro)))
			h.controllen = uintptr(copy(at[controlbuf](&h.control)[:], c))
		}
		k++
	}
	if k == 0 {
		return -1, unix.EAGAIN
	}
	return k, 0
}

// putFrom writes a source address as a socket of that family reports it.
func putFrom(b *sockname, from netip.AddrPort, family int) {
	*b = sockname{}
	binary.NativeEndian.PutUint16(b[:], uint16(family))
	binary.BigEndian.PutUint16(b[2:], from.Port())
	if family == unix.AF_INET {
		copy(b[4:8], from.Addr().AsSlice())
		return
	}
	a := from.Addr().As16()
	copy(b[8:24], a[:])
}

// take returns the messages sent since the last call.
func (s *scriptNet) take() (ms []sentMsg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ms, s.sent = s.sent, nil
	return ms
}

func datagramsOf(ms []sentMsg) (ds [][]byte) {
	for _, m := range ms {
		ds = append(ds, m.datagrams()...)
	}
	return ds
}

// logBook keeps log records.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logBook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logBook) WithGroup(string) slog.Handler            { return l }
func (l *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

func (l *logBook) take() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, l.lines = l.lines, nil
	return lines
}

// rig is a raw path on the script.
type rig struct {
	t     testing.TB
	e     *Engine
	p     *rawPath
	tun   *scriptTUN
	net   *scriptNet
	table *Table
	log   *logBook
	addr  netip.AddrPort // the socket's own
}

// rigPeers are the peers of a rig unless it is given others: nothing listens
// there, and nothing is sent there either, but the kernel knows a route.
func rigPeers() []Peer {
	return []Peer{
		{Endpoint: port("127.0.0.2:8285"), Subnets: subnetsA()},
		{Endpoint: port("127.0.0.3:8285"), Subnets: subnetsB()},
	}
}

func newRig(t testing.TB, cfg Config, peers ...Peer) *rig {
	t.Helper()
	return newRigOn(t, "127.0.0.1:0", cfg, peers...)
}

// newRigOn is newRig with a socket bound to addr.
func newRigOn(t testing.TB, addr string, cfg Config, peers ...Peer) *rig {
	t.Helper()
	if len(peers) == 0 {
		peers = rigPeers()
	}
	r := &rig{t: t, table: newTable(t, peers...), log: &logBook{}}
	conn := listen(t, addr)
	r.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(r.log)
	if r.e, err = New(fakeQueue(event), conn, r.table, cfg); err != nil {
		t.Fatal(err)
	}
	r.p = r.e.path.(*rawPath)
	r.tun = &scriptTUN{event: event, wrote: make(chan struct{}, 1)}
	r.net = &scriptNet{t: t, family: r.p.family}
	r.p.sys = calls{readv: r.tun.readv, writev: r.tun.writev, sendmmsg: r.net.sendmmsg, recvmmsg: r.net.recvmmsg}
	// ICMP errors go to the script, not to the machine that runs the tests.
	for _, fd := range []*int{&r.p.rawIP4, &r.p.rawIP6} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	t.Cleanup(func() {
		if err := r.e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		unix.Close(event)
	})
	return r
}

// fakeQueue makes a queue of fd without a device behind it. Package tun has no
// need of a way to do that; this test sets the fields that FD, VirtioHeader and
// Device read.
func fakeQueue(fd int) *tun.Queue {
	q := &tun.Queue{}
	for name, value := range map[string]any{"fd": fd, "vnet": true, "dev": &tun.Device{}} {
		f := reflect.ValueOf(q).Elem().FieldByName(name)
		reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
	}
	return q
}

// drive pumps both directions until neither has anything to do. A batch that
// stays blocked for long is an error.
func (r *rig) drive() error {
	for blocked := 0; ; {
		sent, err := r.p.tx.pump()
		if err != nil {
			return err
		}
		got, err := r.p.rx.pump()
		if err != nil {
			return err
		}
		if sent || got {
			blocked = 0
			continue
		}
		if !r.p.tx.pending() {
			return nil
		}
		if blocked++; blocked > 10_000 {
			return fmt.Errorf("blocked for ever: message %d of %d", r.p.tx.sent, r.p.tx.n)
		}
	}
}

func (r *rig) mustDrive() {
	r.t.Helper()
	if err := r.drive(); err != nil {
		r.t.Fatal(err)
	}
}

// peer returns the peer behind an inner address.
func (r *rig) peer(addr string) *peer { return r.table.cur.Load().lookupAddr(ip(addr)) }
