package leasetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// ErrInjected is the error of a Fault that names none.
var ErrInjected = errors.New("leasetest: injected failure")

// An Op is a method of lease.Store, by its name.
type Op string

// The methods that a Faulty can spoil.
const (
	Config Op = "Config"
	List   Op = "List"
	Create Op = "Create"
	Update Op = "Update"
	Renew  Op = "Renew"
	Delete Op = "Delete"
	Watch  Op = "Watch"
)

// A Fault is what happens to one call. The zero Fault is none: the call succeeds.
type Fault struct {
	// Before is called first, such as to let another host do something between
	// two calls of the one under test. It may use the store below.
	Before func()
	// Delay passes before the request reaches the store, or before it fails; not
	// more of it than the call's context allows.
	Delay time.Duration
	// Err is what the call returns, without having reached the store.
	Err error
	// Lost lets the request reach the store and take effect there, but its answer
	// gets lost: Err comes instead, ErrInjected if that is nil. If the store
	// itself returns an error, it is lost too. A Watch loses its first batch and
	// ends.
	Lost bool
}

// A Faulty is a Store that stands before another one and fails on demand, as
// networks and servers do: once, for a while, before or after the request has taken
// effect. Without demand it adds nothing. It has no goroutines, and works in a bubble
// of testing/synctest.
type Faulty struct {
	store lease.Store

	mu      sync.Mutex
	script  map[Op][]Fault
	calls   map[Op]int
	down    error                           // what every call returns, nil if up
	silent  chan struct{}                   // closed when the silence ends; nil if there is none
	watches map[int]context.CancelCauseFunc // the running ones
	serial  int
}

var _ lease.Store = (*Faulty)(nil)

// NewFaulty returns a Faulty before a store. Closing it closes that one.
func NewFaulty(s lease.Store) *Faulty {
	return &Faulty{store: s, script: map[Op][]Fault{}, calls: map[Op]int{}, watches: map[int]context.CancelCauseFunc{}}
}

// Inject spoils the next calls of a method, one for each fault, in that order, and
// after those that were injected before.
func (f *Faulty) Inject(op Op, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script[op] = append(f.script[op], faults...)
}

// Calls returns how often a method was called, with whatever result.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Down makes every call fail with err (ErrInjected if that is nil) until Up, as if
// the server were gone. Watches under way end with it. Injected faults wait.
func (f *Faulty) Down(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = fault(err)
	for _, cancel := range f.watches {
		cancel(f.down)
	}
	f.end()
}

// Silence makes every call hang until its context ends or Up is called, when it goes
// on, as if packets were dropped. Watches under way report nothing meanwhile.
func (f *Faulty) Silence() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent == nil {
		f.silent = make(chan struct{})
	}
}

// Up ends what Down or Silence began.
func (f *Faulty) Up() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = nil
	f.end()
}

// end ends the silence. f.mu is held.
func (f *Faulty) end() {
	if f.silent != nil {
		close(f.silent)
		f.silent = nil
	}
}

func fault(err error) error {
	if err == nil {
		return ErrInjected
	}
	return err
}

// pass waits for the end of a silence, and says whether the server is there then.
func (f *Faulty) pass(ctx context.Context) error {
	for {
		f.mu.Lock()
		silent, down := f.silent, f.down
		f.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case down != nil:
			return down
		case silent == nil:
			return nil
		}
		select {
		case <-silent:
		case <-ctx.Done():
		}
	}
}

// begin is what happens to a call before it reaches the store: lost is the error to
// return after it has; err means that it does not get there.
func (f *Faulty) begin(ctx context.Context, op Op) (lost, err error) {
	f.mu.Lock()
	f.calls[op]++
	f.mu.Unlock()
	if err := f.pass(ctx); err != nil {
		return nil, fmt.Errorf("leasetest: faulty %s: %w", op, err)
	}
	f.mu.Lock()
	var this Fault
	if len(f.script[op]) > 0 {
		this, f.script[op] = f.script[op][0], f.script[op][1:]
	}
	f.mu.Unlock()
	if this.Before != nil {
		this.Before()
	}
	if this.Delay > 0 {
		timer := time.NewTimer(this.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("leasetest: faulty %s: %w", op, ctx.Err())
		}
	}
	switch {
	case this.Lost:
		return fmt.Errorf("leasetest: faulty %s: answer lost: %w", op, fault(this.Err)), nil
	case this.Err != nil:
		return nil, fmt.Errorf("leasetest: faulty %s: %w", op, this.Err)
	}
	return nil, nil
}

// through makes one call that returns something.
func through[T any](f *Faulty, ctx context.Context, op Op, call func() (T, error)) (T, error) {
	var none T
	lost, err := f.begin(ctx, op)
	if err != nil {
		return none, err
	}
	result, err := call()
	if lost != nil {
		return none, lost
	}
	return result, err
}

// Config implements lease.Store.
func (f *Faulty) Config(ctx context.Context) ([]byte, error) {
	return through(f, ctx, Config, func() ([]byte, error) { return f.store.Config(ctx) })
}

// List implements lease.Store.
func (f *Faulty) List(ctx context.Context) (lease.Listing, error) {
	return through(f, ctx, List, func() (lease.Listing, error) { return f.store.List(ctx) })
}

// Create implements lease.Store.
func (f *Faulty) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	return through(f, ctx, Create, func() (lease.Entry, error) { return f.store.Create(ctx, key, value, ttl) })
}

// Update implements lease.Store.
func (f *Faulty) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	return through(f, ctx, Update, func() (lease.Entry, error) { return f.store.Update(ctx, old, value, ttl) })
}

// Renew implements lease.Store.
func (f *Faulty) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	return through(f, ctx, Renew, func() (lease.Entry, error) { return f.store.Renew(ctx, old, ttl) })
}

// Delete implements lease.Store.
func (f *Faulty) Delete(ctx context.Context, old lease.Entry) error {
	_, err := through(f, ctx, Delete, func() (struct{}, error) { return struct{}{}, f.store.Delete(ctx, old) })
	return err
}

// Watch implements lease.Store.
func (f *Faulty) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	lost, err := f.begin(ctx, Watch)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.mu.Lock()
	f.serial++
	number := f.serial
	f.watches[number] = cancel
	if f.down != nil { // since begin
		cancel(f.down)
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watches, number)
	}()
	err = f.store.Watch(inner, after, func(b lease.Batch) {
		switch err := f.pass(inner); {
		case lost != nil:
			cancel(lost)
		case err != nil:
			cancel(err)
		default:
			fn(b)
		}
	})
	if ctx.Err() == nil && inner.Err() != nil {
		return fmt.Errorf("leasetest: faulty Watch: %w", context.Cause(inner))
	}
	return err
}

// Close closes the store below.
func (f *Faulty) Close() error { return f.store.Close() }
