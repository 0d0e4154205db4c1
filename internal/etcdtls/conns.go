package etcdtls

import (
	"net"
	"sync"
)

// Conns are the open connections of a store, so that all of them can be closed: after
// the host's address has changed they are dead, and nobody tells. The zero value has
// none.
type Conns struct {
	mu   sync.Mutex
	open map[*tracked]struct{}
}

// tracked is one of them.
type tracked struct {
	net.Conn
	of *Conns
}

// Track adds a connection, until it is closed.
func (c *Conns) Track(conn net.Conn) net.Conn {
	t := &tracked{conn, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[*tracked]struct{})
	}
	c.open[t] = struct{}{}
	return t
}

// Close closes all connections that are open now. Whoever uses them sees an error, and
// makes new ones.
func (c *Conns) Close() {
	c.mu.Lock()
	all := make([]*tracked, 0, len(c.open))
	for t := range c.open {
		all = append(all, t)
	}
	c.mu.Unlock()
	for _, t := range all {
		_ = t.Close() // its user may have been faster
	}
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t)
	t.of.mu.Unlock()
	return t.Conn.Close()
}
