package extension

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

const (
	slowMost     = 8  // times as many slow commands as places
	mostRemovals = 6  // attempts to remove a peer
	mostErrors   = 16 // peers that one error tells about
)

// A crew runs the peers' commands, each peer's one after the other, several peers' at
// the same time. It tries again what fails, by itself.
type crew struct {
	runner   *runner
	cmds     commands
	places   int
	slow     time.Duration // a command that takes longer leaves its place to another
	minPause time.Duration // after the first failure
	maxPause time.Duration // after many
	log      *slog.Logger

	kick chan struct{} // wakes the goroutine; one is enough
	wg   sync.WaitGroup
	end  context.CancelFunc // nil while there is no goroutine

	mu      sync.Mutex // guards what follows
	peers   map[lease.Key]*peer
	redo    bool          // what has been added may be gone
	changed chan struct{} // closed and made anew when a peer's command has ended
}

func newCrew(r *runner, cmds commands, places int, log *slog.Logger) *crew {
	return &crew{runner: r, cmds: cmds, places: places, slow: time.Second, minPause: time.Second, maxPause: 2 * time.Minute, log: log,
		kick: make(chan struct{}, 1), peers: make(map[lease.Key]*peer), changed: make(chan struct{})}
}

// want makes the peers exactly those; with a nil spec one stays as it is. It returns
// those whose commands have to run first.
func (c *crew) want(wanted map[lease.Key]*spec) (waiting []*peer) {
	if c.end == nil {
		ctx, end := context.WithCancel(context.Background())
		c.end = end
		c.wg.Go(func() { c.run(ctx) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var coming, going []*peer
	before := len(c.peers)
	if c.redo {
		for _, p := range c.peers {
			if p.want != nil {
				p.again = true
				p.change(p.want)
			}
		}
		c.redo = false
	}
	for key, s := range wanted {
		p := c.peers[key]
		switch {
		case s == nil:
			continue
		case p == nil:
			p = &peer{key: key, want: s}
			c.peers[key] = p
		case p.want == nil || *p.want != *s:
			p.again = p.again || p.want == nil && p.busy // its removal is under way
			p.change(s)
		case !p.again || p.busy:
			continue
		}
		coming = append(coming, p)
	}
	for key, p := range c.peers {
		if _, stays := wanted[key]; stays {
			continue
		}
		if p.want != nil {
			p.change(nil)
			waiting = append(waiting, p)
		}
		if p.have == nil && !p.busy {
			c.forget(p)
			continue
		}
		going = append(going, p)
	}
	c.order(coming, going)
	if len(coming)+len(going) > 0 {
		c.log.Debug("peers have changed", "before", before, "now", len(wanted), "to add", len(coming), "to remove", len(going))
	}
	c.wake()
	return append(waiting, coming...)
}

// order has removals run before the adds that they could undo, and once only: a retry
// would undo them.
func (c *crew) order(coming, going []*peer) {
	for _, g := range going {
		if g.have == nil {
			continue
		}
		for _, p := range coming {
			if !related(g.have, p.want) {
				continue
			}
			if g.tries > 0 && !g.busy {
				c.log.Warn("giving up to remove the peer, since another one takes its place", "err", g.err)
				c.forget(g)
				break
			}
			g.last = true
			p.after = append(p.after, g)
		}
	}
}

// forget drops a peer.
func (c *crew) forget(p *peer) {
	p.done = true
	delete(c.peers, p.key)
}

// again has all peers removed and added at the next call of want.
func (c *crew) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.redo = c.cmds.SubnetRemove != "" // without, most adds would fail
}

// wait waits until the first command of each has ended, or as long as told.
func (c *crew) wait(ctx context.Context, waiting []*peer, most time.Duration) error {
	late := time.After(most)
	for {
		c.mu.Lock()
		waiting = slices.DeleteFunc(waiting, func(p *peer) bool { return !p.fresh() })
		changed := c.changed
		c.mu.Unlock()
		if len(waiting) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-late:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wake has the goroutine look at the peers.
func (c *crew) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run is the goroutine: it starts whatever may start.
func (c *crew) run(ctx context.Context) {
	for {
		var timer <-chan time.Time
		if next := c.start(ctx); !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-c.kick:
		case <-timer:
		}
	}
}

// start starts the commands for which there is a place, what has never been tried
// first, and returns when to look again, the zero Time if nothing but an end or a
// change can bring something to do.
func (c *crew) start(ctx context.Context) (next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	sooner := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	quick, busy := 0, 0
	for _, p := range c.peers {
		if p.busy {
			busy++
			if now.Sub(p.since) < c.slow {
				quick++
				sooner(p.since.Add(c.slow))
			}
		} else if !p.idle() {
			sooner(p.due)
		}
	}
	for _, retries := range []bool{false, true} {
		for _, p := range c.peers {
			if quick >= c.places || busy >= c.places*slowMost {
				return next
			}
			if p.fresh() == retries || !p.ready(now) {
				continue
			}
			quick++
			busy++
			p.busy, p.since, p.again = true, now, false
			sooner(now.Add(c.slow))
			j := job{p: p, want: p.want, have: p.have, good: p.good, retry: p.tries > 0}
			if p.want != nil {
				p.have, p.good = p.want, false
			}
			c.wg.Go(func() { c.finish(ctx, j, c.serve(ctx, j)) })
		}
	}
	return next
}

// A job is what is to be done for a peer.
type job struct {
	p          *peer
	want, have *spec
	good       bool
	retry      bool
}

// serve does a job, without the lock.
func (c *crew) serve(ctx context.Context, j job) error {
	if j.want == nil {
		err := c.remove(ctx, j.have, j.retry)
		if err != nil && !j.good {
			c.log.Debug("the peer can't be removed, but adding it had failed already", "err", err)
			err = nil
		}
		return err
	}
	if j.have != nil {
		if err := c.remove(ctx, j.have, j.retry); err != nil && ctx.Err() == nil {
			c.log.Debug("the peer can't be removed before it is added again", "err", err)
		}
	}
	err := c.add(ctx, j.want, j.retry)
	if err == nil || j.have != nil || !ended(err) || c.cmds.SubnetRemove == "" {
		return err
	}
	// Most often a predecessor's work is in the way.
	c.log.Debug("adding the peer failed, removing and adding it", "err", err)
	if rerr := c.remove(ctx, j.want, true); rerr != nil {
		c.log.Debug("there was nothing to remove", "err", rerr)
	}
	return c.add(ctx, j.want, true)
}

// add runs SubnetAddCommand.
func (c *crew) add(ctx context.Context, s *spec, retry bool) error {
	return c.call(ctx, keyAdd, c.cmds.SubnetAdd, s, retry)
}

// remove runs SubnetRemoveCommand.
func (c *crew) remove(ctx context.Context, s *spec, retry bool) error {
	return c.call(ctx, keyRemove, c.cmds.SubnetRemove, s, retry)
}

// call runs a command for a peer, if there is one.
func (c *crew) call(ctx context.Context, key, command string, s *spec, retry bool) error {
	if command == "" || s == nil {
		return nil
	}
	_, err := c.runner.run(ctx, call{key: key, text: command, vars: s.vars, stdin: s.data, peer: s.String(), retry: retry})
	return err
}

// String names the peer in messages.
func (s *spec) String() string {
	both := strings.TrimSpace(s.vars.subnet + " " + s.vars.subnet6)
	at := strings.TrimSpace(s.vars.public + " " + s.vars.public6)
	return both + " at " + at
}

// finish notes how a job ended.
func (c *crew) finish(ctx context.Context, j job, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := j.p
	p.busy = false
	if j.want != nil {
		p.good = err == nil
	} else if err == nil {
		p.have, p.good = nil, false
	}
	if ctx.Err() == nil {
		c.judge(j, err)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	c.wake()
}

// judge decides whether and when there is another try.
func (c *crew) judge(j job, err error) {
	p := j.p
	switch {
	case p.want != j.want && p.want != nil: // it has changed meanwhile
	case p.want == nil && p.have == nil:
		c.forget(p)
	case p.want != j.want: // it went meanwhile
	case err == nil:
		p.tries, p.err = 0, nil
	case p.want == nil && (p.last || p.tries+1 >= mostRemovals):
		c.log.Error("giving up to remove the peer", "err", err)
		c.forget(p)
	default:
		pause := min(c.minPause<<min(p.tries, 20), c.maxPause)
		p.tries++
		p.err, p.due = err, time.Now().Add(pause-rand.N(pause/4+1)) // not all at once
	}
}

// stop kills what is under way and waits for it. want must not be called any more.
func (c *crew) stop() {
	if c.end != nil {
		c.end()
		c.wg.Wait()
	}
}
