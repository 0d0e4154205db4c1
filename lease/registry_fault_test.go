package lease_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// errDown is what a tap answers while the store is away.
var errDown = errors.New("tap: connection refused")

// errLostAnswer is what a tap answers when the store has done what was asked.
var errLostAnswer = errors.New("tap: the answer was lost")

// A tap is one host's way to a store, which a test can listen to and break.
type tap struct {
	hooks

	mu    sync.Mutex
	under lease.Store
	down  bool
	cut   chan struct{} // closed to end the watches
	calls map[string]int
	total int
	times map[string][]time.Time
}

// The hooks are called without a lock held, and are changed by hook.
type hooks struct {
	// before may sleep, do something first, or return the error with which the
	// call fails without having reached the store. n counts all calls from 1.
	before func(ctx context.Context, op string, n int) error
	// after may replace the answer of a call that has reached the store.
	after func(op string, n int, err error) error
	// filter may change what a watch reports, or hold it back.
	filter func(lease.Batch) (lease.Batch, bool)
	// listed may hold back or change a listing.
	listed func(l *lease.Listing)
}

// hook sets those hooks that h has; the tap may be in use.
func (s *tap) hook(h hooks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.before != nil {
		s.before = h.before
	}
	if h.after != nil {
		s.after = h.after
	}
	if h.filter != nil {
		s.filter = h.filter
	}
	if h.listed != nil {
		s.listed = h.listed
	}
}

// unhook removes all hooks.
func (s *tap) unhook() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = hooks{}
}

// hooked returns the hooks.
func (s *tap) hooked() hooks {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hooks
}

func newTap(under lease.Store) *tap {
	return &tap{under: under, cut: make(chan struct{}), calls: make(map[string]int), times: make(map[string][]time.Time)}
}

// setDown takes the store away, or brings it back.
func (s *tap) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	s.breakWatches()
}

// swap puts another store in the place of this one.
func (s *tap) swap(under lease.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under = under
	s.breakWatches()
}

// breakWatches ends the watches; s.mu is held.
func (s *tap) breakWatches() {
	close(s.cut)
	s.cut = make(chan struct{})
}

// breakWatch ends the watches once.
func (s *tap) breakWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breakWatches()
}

// count returns how many calls of these kinds there were, of all kinds if none is named.
func (s *tap) count(ops ...string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(ops) == 0 {
		return s.total
	}
	n := 0
	for _, op := range ops {
		n += s.calls[op]
	}
	return n
}

// writes returns how many calls there were that change something.
func (s *tap) writes() int { return s.count("create", "update", "renew", "delete") }

// when returns the times of the calls of one kind.
func (s *tap) when(op string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Time(nil), s.times[op]...)
}

// enter counts a call and lets it through or not.
func (s *tap) enter(ctx context.Context, op string) (under lease.Store, n int, err error) {
	s.mu.Lock()
	s.calls[op]++
	s.total++
	s.times[op] = append(s.times[op], time.Now())
	n = s.total
	s.mu.Unlock()
	if before := s.hooked().before; before != nil {
		if err := before(ctx, op, n); err != nil {
			return nil, n, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, n, fmt.Errorf("%s: %w", op, errDown)
	}
	return s.under, n, nil
}

// leave gives the answer.
func (s *tap) leave(op string, n int, err error) error {
	if after := s.hooked().after; after != nil {
		return after(op, n, err)
	}
	return err
}

func (s *tap) Config(ctx context.Context) ([]byte, error) {
	under, n, err := s.enter(ctx, "config")
	if err != nil {
		return nil, err
	}
	raw, err := under.Config(ctx)
	return raw, s.leave("config", n, err)
}

func (s *tap) List(ctx context.Context) (lease.Listing, error) {
	under, n, err := s.enter(ctx, "list")
	if err != nil {
		return lease.Listing{}, err
	}
	l, err := under.List(ctx)
	if listed := s.hooked().listed; listed != nil && err == nil {
		listed(&l)
	}
	return l, s.leave("list", n, err)
}

func (s *tap) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	return s.write(ctx, "create", func(under lease.Store) (lease.Entry, error) { return under.Create(ctx, key, value, ttl) })
}

func (s *tap) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	return s.write(ctx, "update", func(under lease.Store) (lease.Entry, error) { return under.Update(ctx, old, value, ttl) })
}

func (s *tap) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	return s.write(ctx, "renew", func(under lease.Store) (lease.Entry, error) { return under.Renew(ctx, old, ttl) })
}

func (s *tap) Delete(ctx context.Context, old lease.Entry) error {
	_, err := s.write(ctx, "delete", func(under lease.Store) (lease.Entry, error) { return lease.Entry{}, under.Delete(ctx, old) })
	return err
}

func (s *tap) write(ctx context.Context, op string, do func(lease.Store) (lease.Entry, error)) (lease.Entry, error) {
	under, n, err := s.enter(ctx, op)
	if err != nil {
		return lease.Entry{}, err
	}
	e, err := do(under)
	if err := s.leave(op, n, err); err != nil {
		return lease.Entry{}, err
	}
	return e, nil
}

func (s *tap) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	under, n, err := s.enter(ctx, "watch")
	if err != nil {
		return err
	}
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-cut:
			cancel(errDown)
		case <-inner.Done():
		}
	}()
	filter := s.hooked().filter
	err = under.Watch(inner, after, func(b lease.Batch) {
		if filter != nil {
			var pass bool
			if b, pass = filter(b); !pass {
				return
			}
		}
		fn(b)
	})
	if context.Cause(inner) == errDown {
		err = fmt.Errorf("watch: %w", errDown)
	}
	cancel(nil)
	<-ended
	return s.leave("watch", n, err)
}

func (s *tap) Close() error { return nil }

// A journal is where a host's log goes.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// all returns what was logged.
func (j *journal) all() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// lines returns how many lines have all of the words.
func (j *journal) lines(words ...string) int {
	n := 0
	for line := range strings.Lines(j.all()) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			n++
		}
	}
	return n
}
