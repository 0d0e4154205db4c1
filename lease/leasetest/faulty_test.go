package leasetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/leasetest"
	"github.com/flannelkit/flannelkit/lease/memory"
)

const key = "10.5.1.0-24"

// memoryNetwork is a harness over memory, with a wrapper around every store.
func memoryNetwork(wrap func(lease.Store) lease.Store) leasetest.Network {
	s := memory.New(memory.Config{})
	return leasetest.Network{
		Open:      func(*testing.T) lease.Store { return wrap(s.Share()) },
		SetConfig: func(_ *testing.T, value string) { s.SetConfig(value) },
		Put: func(t *testing.T, name, value string) error {
			if len(name) < 8 || name[:8] != "subnets/" {
				return fmt.Errorf("%s: %w", name, errors.ErrUnsupported)
			}
			_, err := s.Create(t.Context(), name[8:], []byte(value), 0)
			return err
		},
		Compact: func(*testing.T) { s.Compact() },
		Wipe:    func(*testing.T) { s.Wipe() },
	}
}

// TestFaultyAddsNothing: without demand a Faulty is as good as the store below.
func TestFaultyAddsNothing(t *testing.T) {
	leasetest.Run(t, leasetest.Harness{New: func(*testing.T) leasetest.Network {
		return memoryNetwork(func(s lease.Store) lease.Store { return leasetest.NewFaulty(s) })
	}})
}

func TestFaultyCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		below := memory.New(memory.Config{Network: "{}"})
		f := leasetest.NewFaulty(below)
		defer f.Close()
		entries := func() int {
			l, err := below.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return len(l.Entries)
		}

		f.Inject(leasetest.Create, leasetest.Fault{Err: io.EOF}, leasetest.Fault{Lost: true, Err: io.ErrUnexpectedEOF}, leasetest.Fault{})
		if _, err := f.Create(ctx, key, nil, time.Hour); !errors.Is(err, io.EOF) || entries() != 0 {
			t.Errorf("Create that does not reach the store: %v, %d entries", err, entries())
		}
		if _, err := f.Create(ctx, key, nil, time.Hour); !errors.Is(err, io.ErrUnexpectedEOF) || entries() != 1 {
			t.Errorf("Create whose answer is lost: %v, %d entries", err, entries())
		}
		if _, err := f.Create(ctx, key, nil, time.Hour); !errors.Is(err, lease.ErrExists) {
			t.Errorf("Create with the zero Fault: %v", err)
		}
		f.Inject(leasetest.Create, leasetest.Fault{Lost: true})
		if _, err := f.Create(ctx, key, nil, time.Hour); !errors.Is(err, leasetest.ErrInjected) || errors.Is(err, lease.ErrExists) {
			t.Errorf("Create whose refusal is lost: %v", err)
		}
		if got := f.Calls(leasetest.Create); got != 4 {
			t.Errorf("Calls: %d of Create; want 4", got)
		}

		// Another host is faster between two calls.
		l, err := f.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f.Inject(leasetest.Update, leasetest.Fault{Before: func() {
			if _, err := below.Update(ctx, l.Entries[0], []byte("faster"), time.Hour); err != nil {
				t.Error(err)
			}
		}})
		if _, err := f.Update(ctx, l.Entries[0], []byte("slower"), time.Hour); !errors.Is(err, lease.ErrConflict) {
			t.Errorf("Update after another's: %v; want ErrConflict", err)
		}

		f.Inject(leasetest.List, leasetest.Fault{Delay: time.Minute}, leasetest.Fault{Delay: time.Minute})
		start := time.Now()
		if _, err := f.List(ctx); err != nil || time.Since(start) != time.Minute {
			t.Errorf("delayed List: %v after %v", err, time.Since(start))
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := f.List(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("List that is delayed for longer than its context: %v", err)
		}
	})
}

func TestFaultyDownAndSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		below := memory.New(memory.Config{Network: "{}"})
		f := leasetest.NewFaulty(below)
		defer f.Close()

		events, ended := 0, make(chan error, 1)
		watch := func() {
			ended <- f.Watch(ctx, 1, func(b lease.Batch) { events += len(b.Events) })
		}
		go watch()
		synctest.Wait()
		f.Silence()
		e, err := below.Create(ctx, key, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, err := f.Renew(short, e, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Renew in silence: %v; want DeadlineExceeded", err)
		}
		time.AfterFunc(time.Minute, f.Up)
		if c, err := f.Config(ctx); err != nil || string(c) != "{}" {
			t.Errorf("Config when the silence is over: %q, %v", c, err)
		}
		synctest.Wait()
		if events != 1 {
			t.Errorf("Watch reports %d events after the silence; want 1", events)
		}

		f.Down(io.EOF)
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("Watch when the server goes down: %v; want EOF", err)
		}
		if err := f.Delete(ctx, e); !errors.Is(err, io.EOF) {
			t.Errorf("Delete while the server is down: %v; want EOF", err)
		}
		if err := f.Watch(ctx, 1, nil); !errors.Is(err, io.EOF) {
			t.Errorf("Watch while the server is down: %v; want EOF", err)
		}
		f.Up()
		f.Inject(leasetest.Watch, leasetest.Fault{Lost: true})
		events = 0
		watch()
		if err := <-ended; !errors.Is(err, leasetest.ErrInjected) || events != 0 {
			t.Errorf("Watch that loses its first batch: %v, %d events", err, events)
		}
		go watch()
		synctest.Wait()
		if events != 1 {
			t.Errorf("the next Watch reports %d events; want 1", events)
		}
		f.Close()
		if err := <-ended; !errors.Is(err, memory.ErrClosed) {
			t.Errorf("Watch of a closed store: %v", err)
		}
	})
}
