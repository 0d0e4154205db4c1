package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/tun"
)

// A group is the engines of a device, one for each queue, all on one address. It
// runs once; when one of its engines fails, the group is replaced.
type group struct {
	engines []*encap.Engine
	listen  netip.AddrPort
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu  sync.Mutex
	err error // why the first engine failed
}

// newGroup makes the sockets and engines, which do not run yet. Only the first
// socket has to have the port for itself: SO_REUSEPORT from the start would let two
// networks of one user share a port, each getting half of the other's packets. With
// shared it joins the sockets of another group of this backend.
func (o *overlay) newGroup(dev *tun.Device, listen netip.AddrPort, shared bool) (g *group, err error) {
	g = &group{listen: listen}
	defer func() {
		if err != nil {
			g.discard()
			g = nil
		}
	}()
	for i, queue := range dev.Queues() {
		conn, err := encap.Listen(listen, encap.ListenConfig{ReusePort: shared || i > 0})
		if errors.Is(err, syscall.EADDRINUSE) {
			return g, fmt.Errorf("port %d of %v: %w (another network, or another flannel, has it: stop that, or set another Port in this network's Backend)",
				listen.Port(), listen.Addr(), syscall.EADDRINUSE)
		}
		if err != nil {
			return g, err
		}
		if err := allowSharing(conn); err != nil {
			return g, errors.Join(err, conn.Close())
		}
		e, err := encap.New(queue, conn, o.table, o.opts.Encap)
		if err != nil {
			return g, errors.Join(err, conn.Close())
		}
		g.engines = append(g.engines, e)
	}
	return g, nil
}

// discard releases a group that never ran.
func (g *group) discard() {
	for _, e := range g.engines {
		_ = e.Close() // it has done nothing yet that could get lost
	}
}

// run starts the engines. failed is called when one ends before stop.
func (g *group) run(failed func()) {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for _, e := range g.engines {
		g.wg.Go(func() {
			err := e.Run(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = errors.New("encap: the engine ended by itself")
			}
			g.mu.Lock()
			if g.err == nil {
				g.err = err
			}
			g.mu.Unlock()
			failed()
		})
	}
}

// stop ends the engines and waits for them.
func (g *group) stop() {
	if g.cancel != nil {
		g.cancel()
		g.wg.Wait()
		return
	}
	g.discard()
}

// failure returns why an engine of the group ended, nil while all run.
func (g *group) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *group) stats() (sum encap.Stats) {
	for _, e := range g.engines {
		sum = sum.Add(e.Stats())
	}
	return sum
}

// status is what other goroutines may ask about at any time.
type status struct {
	mu    sync.Mutex
	err   error       // what is wrong, except for a failed engine
	group *group      // whose engines count
	past  encap.Stats // of the groups before
}

func (s *status) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// replace makes g the group that counts; what the one before did is kept.
func (s *status) replace(g *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != nil {
		s.past = s.past.Add(s.group.stats())
	}
	s.group = g
}

func (s *status) stats() encap.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group == nil {
		return s.past
	}
	return s.past.Add(s.group.stats())
}

func (s *status) probe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.group != nil {
		if err := s.group.failure(); err != nil {
			return fmt.Errorf("udp: an engine ended, and is about to be restarted: %w", err)
		}
	}
	return s.err
}
