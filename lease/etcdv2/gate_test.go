package etcdv2

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
)

// A gate is a way to a server that a test can close. Two gates to one server are the
// endpoints of a cluster as a store sees it.
type gate struct {
	endpoint string
	server   string
	taken    atomic.Int64 // connections so far

	mu      sync.Mutex
	mode    gateMode
	changed chan struct{} // closed when the mode changes
	conns   map[net.Conn]bool
}

type gateMode int

const (
	passing gateMode = iota
	silent           // nothing comes through, in either direction
	mute             // requests come through, and instead of the answer the end of the connection
	shut             // connections end at once
)

func newGate(t *testing.T, srv *etcdtest.Server) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	g := &gate{endpoint: "http://" + l.Addr().String(), server: srv.Addr(), changed: make(chan struct{}), conns: make(map[net.Conn]bool)}
	var running sync.WaitGroup
	running.Go(func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			g.taken.Add(1)
			running.Go(func() { g.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.set(shut)
		running.Wait()
	})
	return g
}

// set changes what comes through.
func (g *gate) set(m gateMode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mode = m
	close(g.changed)
	g.changed = make(chan struct{})
	if m == shut {
		g.cutLocked()
	}
}

// cut ends all connections.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cutLocked()
}

func (g *gate) cutLocked() {
	for c := range g.conns {
		c.Close()
	}
}

// track remembers a connection for cut, or refuses it.
func (g *gate) track(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = true
	return g.mode != shut
}

func (g *gate) forget(c net.Conn) {
	c.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
}

// serve connects one connection with the server.
func (g *gate) serve(in net.Conn) {
	defer g.forget(in)
	if !g.track(in) {
		return
	}
	out, err := net.Dial("tcp", g.server)
	if err != nil {
		return
	}
	defer g.forget(out)
	if !g.track(out) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { g.copy(out, in, false) })
	both.Go(func() { g.copy(in, out, true) })
	both.Wait()
}

// copy hands on what comes from one side, as the mode allows.
func (g *gate) copy(to, from net.Conn, answers bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		for {
			g.mu.Lock()
			mode, changed := g.mode, g.changed
			g.mu.Unlock()
			if mode != silent {
				if mode == shut || mode == mute && answers {
					return
				}
				break
			}
			<-changed
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
