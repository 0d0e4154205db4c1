package encap

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/tun"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// patience bounds a wait for something that must happen. It is never a measure.
const patience = 20 * time.Second

// A node is an engine that runs, between a host that the test plays and a real
// UDP socket on loopback. There is one kind for each path, and the tests with
// nodes are run on all of them.
type node struct {
	e     *Engine
	table *Table
	host  testHost
	at    netip.AddrPort
	stop  context.CancelFunc
	ended chan struct{}
	err   error // of Run, when ended is closed
}

// testHost is the host of a node: the other side of its device.
type testHost interface {
	send(p []byte)
	// packets returns what the engine has delivered since the last call, and
	// a channel that is readable when there is more.
	packets() [][]byte
	more() <-chan struct{}
}

// nodeKind makes nodes of one path.
type nodeKind struct {
	name string
	make func(t testing.TB, conn *net.UDPConn, table *Table, cfg Config) (*Engine, testHost)
}

// newNode makes a node with a socket on addr. Its table is empty but for the
// local subnets; peers start it.
func (k nodeKind) newNode(t testing.TB, addr string, cfg Config, local []netip.Prefix) *node {
	t.Helper()
	conn := listen(t, addr)
	n := &node{table: NewTable(), at: conn.LocalAddr().(*net.UDPAddr).AddrPort(), ended: make(chan struct{})}
	if err := n.table.Replace(local, nil); err != nil {
		t.Fatal(err)
	}
	n.e, n.host = k.make(t, conn, n.table, cfg)
	n.stop = sync.OnceFunc(func() { n.err = n.e.Close(); close(n.ended) }) // until it is started
	t.Cleanup(func() { n.end(t) })
	return n
}

// listen opens an engine's socket on loopback.
func listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	loopback(t)
	conn, err := Listen(port(addr), ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// peers gives the node its peers and starts it.
func (n *node) peers(t testing.TB, peers ...Peer) {
	t.Helper()
	if err := n.table.Replace(n.table.Local(), peers); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		defer close(n.ended)
		n.err = n.e.Run(ctx)
	}()
}

// end stops the node and returns what Run did.
func (n *node) end(t testing.TB) error {
	t.Helper()
	n.stop()
	return n.wait(t)
}

// wait waits for Run to end by itself.
func (n *node) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-n.ended:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("Run does not end\n%s", buf[:runtime.Stack(buf, true)])
	}
	return n.err
}

// until collects delivered packets up to and including last.
func (n *node) until(t testing.TB, last []byte) (got [][]byte) {
	t.Helper()
	timeout := time.After(patience)
	for {
		for _, p := range n.host.packets() {
			if got = append(got, p); bytes.Equal(p, last) {
				return got
			}
		}
		select {
		case <-n.host.more():
		case <-n.ended:
			t.Fatalf("Run ended: %v", n.err)
		case <-timeout:
			t.Fatalf("packet not delivered; %d others were", len(got))
		}
	}
}

// memTUN is a wireguard/tun device in memory. It never blocks the engine.
type memTUN struct {
	batch  int
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	events chan wgtun.Event

	mu    sync.Mutex
	out   [][]byte
	wrote chan struct{}
	fail  atomic.Pointer[error] // what Write returns instead of taking packets
}

func newMemTUN(batch int) *memTUN {
	return &memTUN{
		batch: batch, in: make(chan []byte, 4096), closed: make(chan struct{}),
		events: make(chan wgtun.Event, 4), wrote: make(chan struct{}, 1),
	}
}

func (m *memTUN) File() *os.File             { return nil }
func (m *memTUN) MTU() (int, error)          { return 1472, nil }
func (m *memTUN) Name() (string, error)      { return "mem0", nil }
func (m *memTUN) Events() <-chan wgtun.Event { return m.events }
func (m *memTUN) BatchSize() int             { return m.batch }
func (m *memTUN) Close() error               { m.once.Do(func() { close(m.closed); close(m.events) }); return nil }

func (m *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-m.in:
		sizes[0] = copy(bufs[0][offset:], p)
	case <-m.closed:
		return 0, os.ErrClosed
	}
	n := 1
	for ; n < len(bufs); n++ {
		select {
		case p := <-m.in:
			sizes[n] = copy(bufs[n][offset:], p)
		default:
			return n, nil
		}
	}
	return n, nil
}

func (m *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	default:
	}
	if e := m.fail.Load(); e != nil {
		return 0, *e
	}
	m.mu.Lock()
	for _, b := range bufs {
		m.out = append(m.out, bytes.Clone(b[offset:]))
		clear(b[:offset]) // a device may use it
	}
	m.mu.Unlock()
	select {
	case m.wrote <- struct{}{}:
	default:
	}
	return len(bufs), nil
}

func (m *memTUN) send(p []byte)         { m.in <- bytes.Clone(p) }
func (m *memTUN) more() <-chan struct{} { return m.wrote }
func (m *memTUN) packets() (ps [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ps, m.out = m.out, nil
	return ps
}

// portableNode makes nodes on a memTUN of that batch size.
func portableNode(batch int) nodeKind {
	name := map[bool]string{true: "portable", false: "portable, one by one"}[batch > 1]
	return nodeKind{name, func(t testing.TB, conn *net.UDPConn, table *Table, cfg Config) (*Engine, testHost) {
		t.Helper()
		m := newMemTUN(batch)
		dev, err := tun.Wrap(m)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() }) // runs after the node has ended
		e, err := New(dev.Queues()[0], conn, table, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return e, m
	}}
}

// leaks fails the test when goroutines of an engine or a device are left.
func leaks(t testing.TB) {
	t.Helper()
	var left []string
	for begin := time.Now(); time.Since(begin) < patience; runtime.Gosched() {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		left = slices.DeleteFunc(strings.Split(string(buf), "\n\n"), func(g string) bool {
			ours := strings.Contains(g, "encap.(*rawPath)") || strings.Contains(g, "encap.(*portablePath)") ||
				strings.Contains(g, "encap.(*Engine)") || strings.Contains(g, "flannelkit/tun.")
			return !ours || strings.Contains(g, "encap.leaks")
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}

// newFlannels starts a node among hosts that are no engines of ours.
func newFlannels(t testing.TB, n *node) map[string]receiver {
	t.Helper()
	fs := map[string]receiver{hostA: newReceiver(t, "127.0.0.1:0"), stranger: newReceiver(t, "127.0.0.3:0"), hostB: newReceiver(t, "127.0.0.2:0")}
	fs[hostC] = newReceiver(t, "127.0.0.1:0")
	n.peers(t, Peer{Endpoint: fs[hostA].at, Subnets: subnetsA()}, Peer{Endpoint: fs[hostB].at, Subnets: subnetsB()},
		Peer{Endpoint: fs[hostC].at, Subnets: prefixes("10.4.0.0/16")})
	return fs
}

// receiver is a plain UDP socket, as flannel has one: one datagram a call.
type receiver struct {
	*net.UDPConn
	at netip.AddrPort
}

func newReceiver(t testing.TB, addr string) receiver {
	t.Helper()
	loopback(t)
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(port(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return receiver{c, netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}
}

func (c receiver) next(t testing.TB) []byte {
	t.Helper()
	return c.take(t, 1)[0]
}

// take waits for n datagrams.
func (c receiver) take(t testing.TB, n int) [][]byte {
	t.Helper()
	ds, err := c.collect(n)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

// collect is take for goroutines that may not end the test.
func (c receiver) collect(n int) (ds [][]byte, err error) {
	b := make([]byte, 65536)
	for range n {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		k, err := c.Read(b)
		if err != nil {
			return ds, fmt.Errorf("datagram %d of %d: %w", len(ds), n, err)
		}
		ds = append(ds, bytes.Clone(b[:k]))
	}
	return ds, nil
}

// until collects datagrams up to last.
func (c receiver) until(t testing.TB, last []byte) (ds [][]byte) {
	t.Helper()
	for {
		if ds = append(ds, c.next(t)); bytes.Equal(ds[len(ds)-1], last) {
			return ds
		}
	}
}

// pending collects what has come already: a marker of the socket's own is last.
func (c receiver) pending(t testing.TB) [][]byte {
	t.Helper()
	marker := []byte("the end")
	if _, err := c.WriteToUDPAddrPort(marker, c.at); err != nil {
		t.Fatal(err)
	}
	ds := c.until(t, marker)
	return ds[:len(ds)-1]
}
