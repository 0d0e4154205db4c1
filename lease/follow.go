package lease

import (
	"context"
	"errors"
	"fmt"
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
}

// run ends with ctx only. after is the revision to go on from, or nil to begin with a
// listing.
func (f *follower) run(ctx context.Context, after *uint64) {
	wait := backoff{random: f.random}
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
			after = &l.Revision
		}
		last, heard, err := f.watch(ctx, *after)
		after = &last
		if heard {
			wait.reset()
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.DeadlineExceeded) && errors.Is(err, errResync):
			after = nil // the periodic listing
			continue
		case errors.Is(err, ErrCompacted):
			after = nil
		default:
			f.send(ctx, news{err: fmt.Errorf("lease: watch: %w", err)})
		}
		wait.sleep(ctx)
	}
}

// errResync: the time for a periodic listing has come.
var errResync = fmt.Errorf("lease: a listing is due: %w", context.DeadlineExceeded)

// watch passes on what happens until the store can't go on or a listing is due. It
// returns the revision reached, and whether the store has said anything at all.
func (f *follower) watch(ctx context.Context, after uint64) (last uint64, heard bool, err error) {
	due := f.resync + time.Duration(f.random(uint64(f.resync/10)+1)) // not all hosts at once
	ctx, cancel := context.WithTimeoutCause(ctx, due, errResync)
	defer cancel()
	last = after
	err = f.store.Watch(ctx, after, func(b Batch) {
		if f.send(ctx, news{batch: &b}) {
			last, heard = max(last, b.Revision), true
		}
	})
	if ctx.Err() != nil {
		return last, heard, context.Cause(ctx)
	}
	return last, heard, err
}

// list reads everything, and looks whether the network's configuration has changed.
func (f *follower) list(ctx context.Context) (Listing, string, error) {
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
