// Package memory is a [lease.Store] in the memory of this process: for tests,
// examples and single machines. It keeps the whole contract: entries expire, and
// watches see them go; history is limited; one store serves many hosts ([Store.Share]).
//
//	store := memory.New(memory.Config{Network: `{"Network":"10.5.0.0/16"}`})
//	defer store.Close()
//
// It has no goroutines of its own and reads the time by package time only, so that
// days of leases pass at once in a bubble of testing/synctest.
package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// DefaultHistory is how many events are kept where Config does not say. A watch
// that falls further behind ends with lease.ErrCompacted.
const DefaultHistory = 10000

// ErrClosed is wrapped by the errors of a Store that was closed.
var ErrClosed = errors.New("the store is closed")

// Config configures a Store. Its zero value works.
type Config struct {
	// Network is the network's configuration, as in <prefix>/config. "": there
	// is none until SetConfig.
	Network string
	// History is how many of the latest events are kept for watches that go on
	// from an older revision; DefaultHistory if it is less than 1.
	History int
}

// A Store is one host's access to the leases of a network. It implements
// lease.Store; contexts matter to Watch only, since nothing else takes time. Watch
// hands the same Events to every watcher: they must not be changed.
type Store struct {
	c      *contents
	closed atomic.Bool
}

var _ lease.Store = (*Store)(nil)

// New returns a store without entries. It goes when nobody refers to it any more;
// Close only ends the calls under way.
func New(cfg Config) *Store {
	c := &contents{history: cfg.History, cluster: 1}
	if c.history < 1 {
		c.history = DefaultHistory
	}
	c.reset()
	c.config = cfg.Network
	return c.open()
}

// Share returns another Store on the same contents, as another host would have, or
// this one after a restart: it is closed apart from s, and works even if s is
// closed.
func (s *Store) Share() *Store { return s.c.open() }

// Close ends the calls of this Store. The entries stay, for those that share them.
func (s *Store) Close() error {
	s.closed.Store(true)
	s.c.lock()
	defer s.c.unlock()
	s.c.wakeAll() // its watches are among them
	return nil
}

// usable returns why a call must not go on, nil if it may.
func (s *Store) usable(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("memory: %s: %w", op, err)
	}
	if s.closed.Load() {
		return fmt.Errorf("memory: %s: %w", op, ErrClosed)
	}
	return nil
}

// Config implements lease.Store.
func (s *Store) Config(ctx context.Context) ([]byte, error) {
	if err := s.usable(ctx, "config"); err != nil {
		return nil, err
	}
	s.c.lock()
	defer s.c.unlock()
	if s.c.config == "" {
		return nil, fmt.Errorf("memory: config: %w (set it with SetConfig)", lease.ErrNoConfig)
	}
	return []byte(s.c.config), nil
}

// SetConfig sets the network's configuration; "" removes it.
func (s *Store) SetConfig(value string) {
	s.c.lock()
	defer s.c.unlock()
	s.c.config = value
	s.c.revision++ // it is a key of the same store
	s.c.wakeAll()
}

// List implements lease.Store. It knows the time that every entry has left.
func (s *Store) List(ctx context.Context) (lease.Listing, error) {
	if err := s.usable(ctx, "list"); err != nil {
		return lease.Listing{}, err
	}
	now := s.c.lock()
	defer s.c.unlock()
	l := lease.Listing{Revision: s.c.revision, Cluster: s.c.cluster}
	if len(s.c.entries) > 0 {
		l.Entries = make([]lease.Entry, 0, len(s.c.entries))
	}
	for _, e := range s.c.entries {
		l.Entries = append(l.Entries, e.answer(now))
	}
	return l, nil
}

// Create implements lease.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	const op = "create"
	ttl, err := s.check(ctx, op, key, ttl)
	if err != nil {
		return lease.Entry{}, err
	}
	now := s.c.lock()
	defer s.c.unlock()
	if s.c.entries[key] != nil {
		return lease.Entry{}, failed(op, key, lease.ErrExists)
	}
	e := &entry{Entry: lease.Entry{Key: key}, place: -1}
	s.c.entries[key] = e
	s.c.write(e, value, now, ttl)
	return e.answer(now), nil
}

// Update implements lease.Store.
func (s *Store) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	const op = "update"
	ttl, err := s.check(ctx, op, old.Key, ttl)
	if err != nil {
		return lease.Entry{}, err
	}
	now := s.c.lock()
	defer s.c.unlock()
	e := s.c.at(old)
	if e == nil {
		return lease.Entry{}, failed(op, old.Key, lease.ErrConflict)
	}
	s.c.write(e, value, now, ttl)
	return e.answer(now), nil
}

// Renew implements lease.Store. It changes neither revision nor value, and no watch
// reports it.
func (s *Store) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	const op = "renew"
	ttl, err := s.check(ctx, op, old.Key, ttl)
	if err != nil {
		return lease.Entry{}, err
	}
	now := s.c.lock()
	defer s.c.unlock()
	e := s.c.at(old)
	if e == nil {
		return lease.Entry{}, failed(op, old.Key, lease.ErrConflict)
	}
	if !e.Permanent {
		if ttl == 0 {
			return lease.Entry{}, failed(op, old.Key, errors.New("no time to live (Update makes an entry permanent)"))
		}
		s.c.live(e, now, ttl)
	}
	return e.answer(now), nil
}

// Delete implements lease.Store.
func (s *Store) Delete(ctx context.Context, old lease.Entry) error {
	const op = "delete"
	if err := s.usable(ctx, op); err != nil {
		return err
	}
	s.c.lock()
	defer s.c.unlock()
	e := s.c.at(old)
	if e == nil {
		return failed(op, old.Key, lease.ErrConflict)
	}
	s.c.remove(e)
	return nil
}

// Watch implements lease.Store. It begins with an empty Batch at once; what happens
// while fn is busy comes in one.
func (s *Store) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	const op = "watch"
	cluster := s.c.enter()
	defer s.c.leave()
	for first := true; ; first = false {
		batch, wake, err := s.c.since(after, cluster)
		if err := s.usable(ctx, op); err != nil { // asked now, since from now on Close wakes us
			return err
		}
		if err != nil {
			return fmt.Errorf("memory: %s from revision %d: %w", op, after, err)
		}
		if first {
			fn(lease.Batch{Revision: after}) // the store is there
			continue
		}
		if wake == nil {
			fn(batch)
			after = batch.Revision
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

// Compact drops all history up to now: a watch that goes on from an older revision
// ends with lease.ErrCompacted.
func (s *Store) Compact() {
	s.c.lock()
	defer s.c.unlock()
	s.c.log, s.c.compacted = nil, s.c.revision
}

// Wipe does what losing its disk does to a server: a new cluster, without entries
// and configuration, begins again at a low revision. Watches under way end with
// lease.ErrCompacted.
func (s *Store) Wipe() {
	s.c.lock()
	defer s.c.unlock()
	s.c.cluster++
	s.c.reset()
	s.c.wakeAll()
}

// check is usable and the common checks of a call that sets a time to live, which it
// returns in whole seconds.
func (s *Store) check(ctx context.Context, op, key string, ttl time.Duration) (time.Duration, error) {
	if err := s.usable(ctx, op); err != nil {
		return 0, err
	}
	if ttl < 0 {
		return 0, failed(op, key, fmt.Errorf("time to live %v is negative", ttl))
	}
	if part := ttl % time.Second; part != 0 {
		ttl += time.Second - part
	}
	return ttl, nil
}

// failed is the error of a call that concerns one key.
func failed(op, key string, err error) error { return fmt.Errorf("memory: %s %s: %w", op, key, err) }

// answer is the entry as a caller gets it.
func (e *entry) answer(now time.Time) lease.Entry {
	a := e.Entry
	if !a.Permanent {
		a.TTL = e.deadline.Sub(now)
	}
	return a
}

// write gives an entry a new value and time to live, at a new revision.
func (c *contents) write(e *entry, value []byte, now time.Time, ttl time.Duration) {
	e.Value = bytes.Clone(value)
	c.live(e, now, ttl)
	c.revision++
	e.Revision = c.revision
	if e.Created == 0 {
		e.Created = c.revision
	}
	if e.Created == 0 {
		e.Created = c.revision
	}
	c.record(lease.Event{Entry: e.Entry})
}
