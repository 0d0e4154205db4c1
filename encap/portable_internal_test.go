package encap

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/net/ipv4"
)

// faultyBatch is a batchConn whose calls may fail first.
type faultyBatch struct {
	batchConn
	write func(ms []ipv4.Message) (int, error) // 0, nil: all of ms, by the socket
	read  func() error                         // nil: by the socket

	mu   sync.Mutex
	sent [][]byte
}

func (f *faultyBatch) WriteBatch(ms []ipv4.Message, flags int) (int, error) {
	n := len(ms)
	if f.write != nil {
		k, err := f.write(ms)
		if err != nil {
			return -1, err
		}
		if k > 0 {
			n = k
		}
	}
	n, err := f.batchConn.WriteBatch(ms[:n], flags)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		f.sent = append(f.sent, slices.Clone(ms[i].Buffers[0]))
	}
	return n, err
}

func (f *faultyBatch) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	if f.read != nil {
		if err := f.read(); err != nil {
			return -1, err
		}
	}
	return f.batchConn.ReadBatch(ms, flags)
}

// faulty is a portable node whose socket fails as f says. It is not started.
func faulty(t testing.TB, f *faultyBatch) *node {
	t.Helper()
	n := portableNode(16).newNode(t, "127.0.0.1:0", Config{}, localSubnets())
	p := n.e.path.(*portablePath)
	f.batchConn = p.batch
	p.batch = f
	return n
}

// opError is err as package net reports it.
func opError(err error) error {
	return &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("sendmmsg", err)}
}

func TestPortableSendErrors(t *testing.T) {
	a, b := newReceiver(t, "127.0.0.1:0"), newReceiver(t, "127.0.0.1:0")
	toB := func(m ipv4.Message) bool {
		return m.Addr.(*net.UDPAddr).AddrPort().Port() == b.at.Port()
	}
	refuseB := func(err error) func([]ipv4.Message) (int, error) {
		return func(ms []ipv4.Message) (int, error) {
			i := slices.IndexFunc(ms, toB)
			if i == 0 {
				return 0, opError(err)
			}
			return i, nil // those before; all if there is none for B
		}
	}
	times := func(n int, err error) func([]ipv4.Message) (int, error) {
		return func([]ipv4.Message) (int, error) {
			if n--; n >= 0 {
				return 0, opError(err)
			}
			return 0, nil
		}
	}
	for _, c := range []struct {
		name  string
		write func([]ipv4.Message) (int, error)
		want  Drop // of B's ten packets
	}{
		{"all well", nil, DropNone},
		{"one at a time", func([]ipv4.Message) (int, error) { return 1, nil }, DropNone},
		{"no buffers for a moment", times(5, syscall.ENOBUFS), DropNone},
		{"no buffers for B", refuseB(syscall.ENOBUFS), DropNoBuffers},
		{"firewall for B", refuseB(syscall.EPERM), DropUnreachable},
		{"no route to B", refuseB(syscall.ENETUNREACH), DropUnreachable},
		{"too big for B", refuseB(syscall.EMSGSIZE), DropTooBig},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := faulty(t, &faultyBatch{write: c.write})
			n.peers(t, Peer{Endpoint: a.at, Subnets: subnetsA()}, Peer{Endpoint: b.at, Subnets: subnetsB()})
			var want [2][][]byte
			for i := range uint32(10) {
				x, y := udp4(pattern(40, i)), udp4(pattern(41, i)).toB()
				n.host.send(x.packet())
				n.host.send(y.packet())
				want[0], want[1] = append(want[0], hop(x.packet())), append(want[1], hop(y.packet()))
			}
			n.host.send(sentinel4())
			want[0] = append(want[0], hop(sentinel4()))
			if err := differ(a.take(t, 11), want[0]); err != nil {
				t.Errorf("A: %v", err)
			}
			dropped := uint64(10)
			if c.want == DropNone {
				dropped = 0
				if err := differ(b.take(t, 10), want[1]); err != nil {
					t.Errorf("B: %v", err)
				}
			}
			if err := n.end(t); err != nil {
				t.Error(err)
			}
			if st := n.e.Stats(); st.Drops[c.want] != dropped || st.Drops.Total() != dropped || st.TX.Packets != 21-dropped {
				t.Errorf("%d packets, drops %v; want %d as %v", st.TX.Packets, st.Drops, dropped, c.want)
			}
		})
	}
	closed := faulty(t, &faultyBatch{write: func([]ipv4.Message) (int, error) { return 0, net.ErrClosed }})
	closed.peers(t, Peer{Endpoint: a.at, Subnets: subnetsA()})
	closed.host.send(sentinel4())
	if err := closed.wait(t); !errors.Is(err, ErrSocket) || errors.Is(err, ErrDevice) {
		t.Errorf("a closed socket: %v", err)
	}
}

// TestPortableReceiveErrors: while a peer is down, some systems report each
// datagram that it refuses at the next receive. That may be often, and is no
// reason to end; an error that stays is.
func TestPortableReceiveErrors(t *testing.T) {
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ECONNRESET} {
		left := 1000
		n := faulty(t, &faultyBatch{read: func() error {
			if left--; left >= 0 {
				return &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmmsg", e)}
			}
			return nil
		}})
		a := newReceiver(t, "127.0.0.1:0")
		n.peers(t, Peer{Endpoint: a.at, Subnets: subnetsA()})
		p := udp4(nil).back().packet()
		if _, err := a.WriteToUDPAddrPort(p, n.at); err != nil {
			t.Fatal(err)
		}
		n.until(t, hop(p))
		if err := n.end(t); err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
	n := faulty(t, &faultyBatch{read: func() error { return syscall.EIO }})
	n.peers(t)
	if err := n.wait(t); !errors.Is(err, ErrSocket) || !errors.Is(err, syscall.EIO) {
		t.Errorf("an error that stays: %v", err)
	}
}

// TestPortableHandOver: an engine that ends while packets wait leaves them in
// the device's ring for the next one, as Wrap promises. What it has taken out
// is sent or counted.
func TestPortableHandOver(t *testing.T) {
	a := newReceiver(t, "127.0.0.1:0")
	m := newMemTUN(32)
	dev, err := tun.Wrap(m)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	var want [][]byte
	for i := range uint32(500) {
		p := udp4(pattern(30, i)).packet()
		m.send(p)
		want = append(want, hop(p))
	}
	table := newTable(t, Peer{Endpoint: a.at, Subnets: subnetsA()})
	engine := func(ctx context.Context, f *faultyBatch) (dropped int) {
		e, err := New(dev.Queues()[0], listen(t, "127.0.0.1:0"), table, Config{})
		if err != nil {
			t.Fatal(err)
		}
		p := e.path.(*portablePath)
		f.batchConn = p.batch
		p.batch = f
		if err := e.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		st := e.Stats()
		if st.TX.Packets != uint64(len(f.sent)) {
			t.Errorf("%d packets are counted, %d were sent", st.TX.Packets, len(f.sent))
		}
		return int(st.Drops.Total())
	}
	// The first engine is told to end while it sends: after one packet.
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	dropped := engine(ctx, &faultyBatch{write: func([]ipv4.Message) (int, error) {
		if calls++; calls == 1 {
			return 1, nil
		}
		cancel()
		return 0, opError(os.ErrDeadlineExceeded)
	}})
	if calls > 2 {
		t.Errorf("the engine made %d more calls after it was told to end", calls-2)
	}
	// The second one sends the rest, each once.
	ctx, cancel = context.WithCancel(context.Background())
	ended := make(chan int)
	go func() { ended <- engine(ctx, &faultyBatch{}) }()
	got := a.until(t, want[len(want)-1])
	cancel()
	dropped += <-ended
	missing, err := lost(got, want)
	if err != nil {
		t.Error(err)
	}
	if len(missing) != dropped || dropped > portableBatch {
		t.Errorf("%d packets are missing, %d are counted as dropped, and one batch is %d", len(missing), dropped, portableBatch)
	}
}
