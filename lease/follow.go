package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 10 * time.Second
)

// news is what a follower reports: exactly one of listing, batch and err.
type news struct {
	listing *Listing
	batch   *Batch
	err     error

	config string // with a listing: the network's configuration now, "" if it could not be read
}

// A follower turns a Store into one endless stream: a listing whenever one is due,
// the batches after it, and errors, which change nothing. It never gives up, and
// never asks faster than its backoff, whatever the store does.
type follower struct {
	store  Store
	resync time.Duration
	random func(uint64) uint64
	out    chan<- news

	mu  sync.Mutex
	due bool                    // a listing was asked for
	end context.CancelCauseFunc // of the watch under way
}

// nudge asks for a listing soon. All listings are the follower's, so that none comes
// after a newer one.
func (f *follower) nudge() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = true
	if f.end != nil {
		f.end(errResync)
	}
}

// run ends with ctx only. after is the revision to go on from, or nil to begin with a
// listing.
func (f *follower) run(ctx context.Context, after *uint64) {
	wait := backoff{random: f.random}
	due := f.nextListing()
	for ctx.Err() == nil {
		if after == nil {
			l, config, err := f.list(ctx)
			if err != nil {
				f.send(ctx, news{err: err})
				wait.sleep(ctx)
				continue
			}
			if !f.send(ctx, news{listing: &l, config: config}) {
				return
			}
			after, due = &l.Revision, f.nextListing()
		}
		began := time.Now()
		last, err := f.watch(ctx, *after, due)
		after = &last
		if time.Since(began) > mostBackoff { // else it may be one that always ends
			wait.reset()
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errResync):
			after = nil // the periodic listing, or one that was asked for
			continue
		case errors.Is(err, ErrCompacted):
			after = nil
		default:
			f.send(ctx, news{err: fmt.Errorf("lease: watch: %w", err)})
		}
		wait.sleep(ctx)
	}
}

// errResync ends a watch because a listing is due.
var errResync = errors.New("lease: a listing is due")

// nextListing returns when all leases are to be listed again: not by all hosts at once.
func (f *follower) nextListing() time.Time {
	return time.Now().Add(f.resync + time.Duration(f.random(uint64(f.resync/10)+1)))
}

// watch passes on what happens until the store can't go on or a listing is due. It
// returns the revision reached.
func (f *follower) watch(ctx context.Context, after uint64, due time.Time) (last uint64, err error) {
	ctx, cancel := context.WithDeadlineCause(ctx, due, errResync)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	f.mu.Lock()
	asked := f.due
	f.end = end
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.end = nil
	}()
	if asked {
		return after, errResync
	}
	last = after
	err = f.store.Watch(ctx, after, func(b Batch) {
		if f.send(ctx, news{batch: &b}) {
			last = max(last, b.Revision)
		}
	})
	if ctx.Err() != nil {
		return last, context.Cause(ctx)
	}
	return last, err
}

// list reads everything, and looks whether the network's configuration has changed.
func (f *follower) list(ctx context.Context) (Listing, string, error) {
	f.mu.Lock()
	f.due = false
	f.mu.Unlock()
	l, err := f.store.List(ctx)
	if err != nil {
		return l, "", fmt.Errorf("lease: list: %w", err)
	}
	config, err := f.store.Config(ctx)
	if err != nil {
		config = nil // the next time will do
	}
	return l, string(config), nil
}

// send hands something to Run, unless ctx ends first.
func (f *follower) send(ctx context.Context, n news) bool {
	select {
	case f.out <- n:
		return true
	case <-ctx.Done():
		return false
	}
}

// A backoff is how long to wait before trying again: twice as long each time, a random
// part of it less, so that the hosts do not all come at once.
type backoff struct {
	random func(uint64) uint64
	last   time.Duration
}

func (b *backoff) reset() { b.last = 0 }

// next returns the next pause, between half and the whole of the backoff.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, leastBackoff), mostBackoff)
	return b.last/2 + time.Duration(b.random(uint64(b.last/2)+1))
}

func (b *backoff) sleep(ctx context.Context) { _ = sleep(ctx, b.next()) }
