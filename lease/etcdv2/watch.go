package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtls"
	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

// A watch is a chain of long polls: each asks for the first event after the cursor,
// and the server answers when there is one. The cursor is the last event's index,
// and nothing else moves it: that a poll has brought nothing says nothing, since the
// answer may have been lost with the connection. So nothing is ever missed, and the
// price is a new List now and then, when a poll is repeated and the etcd has seen a
// thousand events elsewhere meanwhile.
//
// A poll on a server that has stopped, that lost its cluster, or that is a new one
// in the place of the old waits for ever. Therefore a second goroutine asks the
// same server for the configuration again and again, and for a few numbers that
// come with the answer and that can't go back in the life of an etcd.

// watchTimes are how long a watch waits for what.
type watchTimes struct {
	check    time.Duration // between two checks of the server
	answer   time.Duration // for the answer to a check
	connect  time.Duration // to find a server that works, all of them together
	poll     time.Duration // for a poll, after which it is made anew: something in between may have lost it
	leastGap time.Duration // between two polls without an event
	settle   time.Duration // until a poll that has not been refused counts as accepted
}

// defaultWatchTimes lead to the end of a watch within 10+8+8 seconds.
func defaultWatchTimes() watchTimes {
	return watchTimes{
		check: 10 * time.Second, answer: 8 * time.Second, connect: 8 * time.Second,
		poll: 10 * time.Minute, leastGap: time.Second, settle: 200 * time.Millisecond,
	}
}

// An identity is what tells an etcd from one that took its place, 0 where unknown.
type identity struct {
	cluster uint64 // a new etcd at the same addresses has the same one
	raft    uint64 // the last index of the raft log seen; a new etcd begins at 1
	config  uint64 // when the configuration was last written
}

// A watch is one call of Watch.
type watch struct {
	s      *Store
	fn     func(lease.Batch)
	cursor atomic.Uint64 // nothing up to it is left to be reported
	seen   identity      // touched by one goroutine at a time
	server int
}

// Watch implements [lease.Store]. It goes on with another server when one fails, and
// reports a batch without events soon and then every ten seconds.
func (s *Store) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	ctx, leave, err := s.enter(ctx, false)
	if err != nil {
		return fmt.Errorf("etcdv2: watch: %w", err)
	}
	defer leave()
	w := &watch{s: s, fn: fn}
	w.cursor.Store(after)
	s.mu.Lock()
	w.seen = s.seen
	s.mu.Unlock()
	err = w.run(ctx)
	if over := s.over(ctx); over != nil {
		err = over
	}
	return fmt.Errorf("etcdv2: watch after %d: %w", w.cursor.Load(), err)
}

// run finds a server and follows it, until none is left.
func (w *watch) run(ctx context.Context) error {
	useless := 0
	for {
		if err := w.connect(ctx); err != nil {
			return err
		}
		useful, err := w.follow(ctx)
		if w.s.over(ctx) != nil || errors.Is(err, lease.ErrCompacted) || errors.Is(err, errCredentials) {
			return err
		}
		if useful {
			useless = 0
		} else if useless++; useless > len(w.s.clients) {
			return err // the servers answer checks, but no polls
		}
		w.s.log.Info("etcdv2: the watch lost its server", "err", err)
		w.s.pinned.CompareAndSwap(int64(w.server), int64((w.server+1)%len(w.s.clients)))
	}
}

// connect finds the next server that works.
func (w *watch) connect(ctx context.Context) error {
	first := int(w.s.pinned.Load())
	each := max(w.s.times.connect/time.Duration(len(w.s.clients)), time.Second)
	var errs []error
	for i := range w.s.clients {
		w.server = (first + i) % len(w.s.clients)
		err := w.check(ctx, each)
		if err == nil {
			w.s.pin(w.server, errs)
			return nil
		}
		if w.s.over(ctx) != nil || errors.Is(err, lease.ErrCompacted) || errors.Is(err, errCredentials) {
			return err
		}
		errs = append(errs, err)
	}
	return etcdtls.Join(errs)
}

// follow polls one server until that fails. useful: it has served for a while.
func (w *watch) follow(ctx context.Context) (useful bool, err error) {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive, sick := make(chan struct{}), make(chan error, 1)
	running.Go(func() { sick <- w.attend(ctx, alive) })
	polls := make(chan polled, 1)
	for {
		began := time.Now()
		running.Go(func() { polls <- w.poll(ctx) })
		var p polled
		for waiting := true; waiting; {
			select {
			case p = <-polls:
				waiting = false
			case <-alive:
				useful = true
				w.fn(lease.Batch{Revision: w.cursor.Load()})
			case err := <-sick:
				return useful, err
			}
		}
		if p.err != nil {
			return useful || time.Since(began) > w.s.times.leastGap, p.err
		}
		if p.event == nil { // servers before 3 end a poll after five minutes, and so do proxies
			if err := w.pause(ctx, sick, w.s.times.leastGap-time.Since(began)); err != nil {
				return true, err
			}
			continue
		}
		b, err := w.batch(p.event)
		if err != nil {
			return true, err
		}
		useful = true
		w.cursor.Store(b.Revision)
		w.fn(b)
	}
}

// pause waits, so that a poll that always ends at once does not become a loop.
func (w *watch) pause(ctx context.Context, sick <-chan error, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case err := <-sick:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// polled is the outcome of a long poll: an event, an error, or neither.
type polled struct {
	event *client.Response
	err   error
}

// poll waits for the first event after the cursor.
func (w *watch) poll(ctx context.Context) polled {
	q := url.Values{"wait": {"true"}, "recursive": {"true"}}
	q.Set("waitIndex", strconv.FormatUint(w.cursor.Load()+1, 10))
	r, err := w.s.try(ctx, w.server, &request{method: http.MethodGet, key: w.s.subnets, query: q}, w.s.times.poll)
	switch {
	case err != nil && errors.Is(err, errNoAnswer) && !unsent(err):
		return polled{}
	case err != nil:
		return polled{err: err}
	case r.code == client.ErrorCodeEventIndexCleared:
		return polled{err: fmt.Errorf("%w: etcd has had a thousand events since", lease.ErrCompacted)}
	case r.failed != nil:
		return polled{err: r.failed}
	}
	return polled{event: r.event}
}

// batch makes of an event what the caller is told.
func (w *watch) batch(ev *client.Response) (lease.Batch, error) {
	n := ev.Node
	b := lease.Batch{Revision: n.ModifiedIndex}
	if n.ModifiedIndex <= w.cursor.Load() {
		return b, fmt.Errorf("%w: etcd reports event %d again", lease.ErrCompacted, n.ModifiedIndex)
	}
	deleted := removes(ev)
	switch ev.Action {
	case "delete", "expire", "compareAndDelete", "set", "create", "update", "compareAndSwap":
	default:
		return b, fmt.Errorf("%w: what is the event %q of %s?", lease.ErrCompacted, ev.Action, n.Key)
	}
	key, below := w.s.entryKey(n.Key)
	if !below && n.Key != w.s.subnets && !strings.HasPrefix(w.s.subnets, n.Key+"/") {
		return b, nil // a directory beside ours whose name is the beginning of ours: etcd reports its end too
	}
	switch {
	case n.Dir && deleted, !n.Dir && !below:
		return b, fmt.Errorf("%w: all of %s is removed", lease.ErrCompacted, n.Key)
	case n.Dir && (ev.PrevNode == nil || ev.PrevNode.Dir): // a new directory
	case n.Dir, deleted: // removed, also by a directory in its place
		b.Events = []lease.Event{{Entry: lease.Entry{Key: key, Revision: n.ModifiedIndex}, Deleted: true}}
	case condemns(ev): // the end of it is reported when it comes
	default:
		b.Events = []lease.Event{{Entry: entryOf(key, n)}}
	}
	return b, nil
}

// attend checks the server from time to time, and returns when it is not what it was. It
// was checked just before.
func (w *watch) attend(ctx context.Context, alive chan<- struct{}) error {
	next := time.NewTimer(w.s.times.settle)
	defer next.Stop()
	for first := true; ; first = false {
		select {
		case <-next.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !first {
			if err := w.check(ctx, w.s.times.answer); err != nil {
				return err
			}
		}
		select {
		case alive <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		next.Reset(w.s.times.check)
	}
}

// check asks the server what it is. A plain read is answered by the server alone, which
// may be behind its cluster or cut off from it. So where the answer is one that only a
// new etcd, such a server, or nothing at all happening can explain, a consistent read
// tells these apart: it takes the cluster, and is never older than any answer before.
func (w *watch) check(ctx context.Context, timeout time.Duration) error {
	began := time.Now()
	id, index, err := w.ask(ctx, false, timeout)
	if err != nil {
		return err
	}
	if id.raft <= w.seen.raft || w.differs(id, index) != "" {
		if id, index, err = w.ask(ctx, true, timeout-time.Since(began)); err != nil {
			return err
		}
		if why := w.differs(id, index); why != "" {
			return fmt.Errorf("%w: %s: %s", lease.ErrCompacted, w.s.access.Endpoints[w.server], why)
		}
	}
	if id.raft == 0 { // an answer that there is no configuration has no number
		id.raft = w.seen.raft
	}
	w.seen = id
	w.s.mu.Lock()
	w.s.seen = id
	w.s.mu.Unlock()
	return nil
}

// ask reads the configuration, for what comes with it.
func (w *watch) ask(ctx context.Context, quorum bool, timeout time.Duration) (identity, uint64, error) {
	r, err := w.s.try(ctx, w.server, get(w.s.config, false, quorum), timeout)
	if err != nil {
		return identity{}, 0, err
	}
	id := identity{cluster: r.cluster, raft: r.raft, config: missing}
	if r.event != nil {
		id.config = r.event.Node.ModifiedIndex
	}
	return id, r.index, nil
}

// missing stands for a configuration that is not there.
const missing = ^uint64(0)

// differs says what shows that the history up to the cursor is not this etcd's.
func (w *watch) differs(id identity, index uint64) string {
	switch old := w.seen; {
	case index < w.cursor.Load():
		return fmt.Sprintf("it is only at index %d: it was replaced or restored", index)
	case id.cluster != old.cluster && id.cluster != 0 && old.cluster != 0:
		return "it is another cluster"
	case id.raft < old.raft && id.raft != 0:
		return fmt.Sprintf("its log went back from %d to %d: it was replaced or restored", old.raft, id.raft)
	case id.config != old.config && old.config != 0:
		return "the configuration was written anew, which may be by another etcd's operator"
	}
	return ""
}
