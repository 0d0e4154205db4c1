package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// replay returns the revisions that a watch reports at once.
func replay(t *testing.T, s *memory.Store, after uint64) (revisions []uint64, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Watch(ctx, after, func(b lease.Batch) {
		for _, e := range b.Events {
			revisions = append(revisions, e.Entry.Revision)
		}
		if b.Revision == l.Revision {
			cancel()
		}
	})
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return revisions, err
}

// TestHistoryIsLimited: exactly so many events can be had, however many there were.
func TestHistoryIsLimited(t *testing.T) {
	const limit, changes = 10, 1000
	s := memory.New(memory.Config{History: limit})
	e := must(t)(s.Create(t.Context(), "a", nil, 0))
	for range changes {
		e = must(t)(s.Update(t.Context(), e, nil, 0))
		oldest := uint64(1)
		if e.Revision > limit {
			oldest = e.Revision - limit
		}
		got, err := replay(t, s, oldest)
		if err != nil || uint64(len(got)) != e.Revision-oldest || got[0] != oldest+1 {
			t.Fatalf("Watch from revision %d of %d: %d, %v", oldest, e.Revision, got, err)
		}
		if oldest == 1 {
			continue
		}
		if got, err := replay(t, s, oldest-1); !errors.Is(err, lease.ErrCompacted) || got != nil {
			t.Fatalf("Watch from revision %d of %d: %d, %v; want ErrCompacted", oldest-1, e.Revision, got, err)
		}
	}
}

// TestWatchFallsBehind: who is slower than the history is long is told so.
func TestWatchFallsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Config{History: 5})
		done := make(chan error)
		go func() {
			done <- s.Watch(t.Context(), 1, func(lease.Batch) { time.Sleep(time.Minute) })
		}()
		synctest.Wait()
		for i := range 6 {
			must(t)(s.Create(t.Context(), fmt.Sprint(i), nil, 0))
		}
		if err := <-done; !errors.Is(err, lease.ErrCompacted) {
			t.Errorf("Watch: %v; want ErrCompacted", err)
		}
	})
}

func TestCompact(t *testing.T) {
	s := memory.New(memory.Config{})
	must(t)(s.Create(t.Context(), "a", nil, 0))
	s.Compact()
	now := must(t)(s.Create(t.Context(), "b", nil, 0)).Revision
	for after, want := range map[uint64]int{0: -1, now - 2: -1, now - 1: 1, now: 0, now + 1: -1} {
		got, err := replay(t, s, after)
		switch {
		case want < 0 && (!errors.Is(err, lease.ErrCompacted) || got != nil):
			t.Errorf("Watch from revision %d of %d: %d, %v; want ErrCompacted", after, now, got, err)
		case want >= 0 && (err != nil || len(got) != want):
			t.Errorf("Watch from revision %d of %d: %d, %v; want %d events", after, now, got, err, want)
		}
	}
}

func TestWipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := memory.New(memory.Config{Network: "{}"})
		old := must(t)(s.Create(ctx, "a", nil, time.Hour))
		before, _ := s.List(ctx)
		events, done := watch(ctx, s, before.Revision)
		s.Share().Wipe()
		if err := <-done; !errors.Is(err, lease.ErrCompacted) || len(*events) != 0 {
			t.Errorf("Watch of a wiped store: %v, %v; want ErrCompacted", *events, err)
		}
		after, err := s.List(ctx)
		if err != nil || len(after.Entries) != 0 || after.Revision >= before.Revision || after.Cluster == before.Cluster {
			t.Errorf("List of a wiped store: %+v, %v; before %+v", after, err, before)
		}
		if _, err := s.Config(ctx); !errors.Is(err, lease.ErrNoConfig) {
			t.Errorf("Config of a wiped store: %v", err)
		}
		if _, err := s.Renew(ctx, old, time.Hour); !errors.Is(err, lease.ErrConflict) {
			t.Errorf("Renew of a lost entry: %v", err)
		}
		// What has expired in the old cluster is nothing to the new one.
		must(t)(s.Create(ctx, "a", nil, 0))
		time.Sleep(2 * time.Hour)
		if l, _ := s.List(ctx); len(l.Entries) != 1 {
			t.Errorf("List: %v; want one", l.Entries)
		}
	})
}

func TestRefusesNonsense(t *testing.T) {
	ctx := t.Context()
	s := memory.New(memory.Config{})
	e := must(t)(s.Create(ctx, "a", []byte("value"), time.Hour))
	for what, err := range map[string]error{
		"Create with a negative time": func() error { _, err := s.Create(ctx, "b", nil, -1); return err }(),
		"Update with a negative time": func() error { _, err := s.Update(ctx, e, nil, -time.Hour); return err }(),
		"Renew with a negative time":  func() error { _, err := s.Renew(ctx, e, -time.Hour); return err }(),
		"Renew without a time":        func() error { _, err := s.Renew(ctx, e, 0); return err }(),
	} {
		if err == nil || errors.Is(err, lease.ErrConflict) {
			t.Errorf("%s: %v; want an error of its own", what, err)
		}
	}
	value := []byte("before")
	e = must(t)(s.Update(ctx, e, value, time.Hour))
	copy(value, "after!")
	if l, _ := s.List(ctx); len(l.Entries) != 1 || string(l.Entries[0].Value) != "before" {
		t.Errorf("List: %v; want the value as it was when it was written", l.Entries)
	}
}

// crowd makes a store with so many entries and watches, and returns what ends it.
// told counts the events that the watches have been told of.
func crowd(tb testing.TB, entries, watches int, told func()) (s *memory.Store, all []lease.Entry, end func()) {
	tb.Helper()
	s = memory.New(memory.Config{})
	for i := range entries {
		e, err := s.Create(tb.Context(), fmt.Sprint(i), nil, time.Hour+time.Duration(i)*time.Second)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, e)
	}
	l, _ := s.List(tb.Context())
	ctx, cancel := context.WithCancel(tb.Context())
	done, started := make(chan error), make(chan struct{}, watches)
	for range watches {
		go func() {
			done <- s.Watch(ctx, l.Revision, func(b lease.Batch) {
				if b.Revision == l.Revision {
					started <- struct{}{}
				}
				for range b.Events {
					told()
				}
			})
		}()
	}
	for range watches {
		<-started
	}
	return s, all, func() {
		cancel()
		for range watches {
			<-done
		}
	}
}

// TestCallsAllocateLittle: among many entries neither a renewal nor an update copies
// more than its own. BenchmarkEvent and BenchmarkRenew show the time.
func TestCallsAllocateLittle(t *testing.T) {
	const entries = 10000
	s, all, end := crowd(t, entries, 0, func() {})
	defer end()
	ctx := t.Context()
	renew := testing.AllocsPerRun(100, func() { must(t)(s.Renew(ctx, all[entries/2], time.Hour)) })
	update := testing.AllocsPerRun(100, func() { all[0] = must(t)(s.Update(ctx, all[0], []byte("value"), time.Hour)) })
	if renew != 0 || update > 2 {
		t.Errorf("among %d entries Renew allocates %v times, Update %v; want 0, and at most 2", entries, renew, update)
	}
}

// BenchmarkEvent is an event among ten thousand entries, until all watches were told.
func BenchmarkEvent(b *testing.B) {
	for _, watches := range []int{0, 1, 1000} {
		b.Run(fmt.Sprint("watches=", watches), func(b *testing.B) {
			told := make(chan struct{}, watches)
			s, all, end := crowd(b, 10000, watches, func() { told <- struct{}{} })
			defer end()
			b.ReportAllocs()
			for b.Loop() {
				e, err := s.Update(b.Context(), all[0], nil, time.Hour)
				if err != nil {
					b.Fatal(err)
				}
				all[0] = e
				for range watches {
					<-told
				}
			}
		})
	}
}

func BenchmarkRenew(b *testing.B) {
	for _, entries := range []int{100, 10000} {
		b.Run(fmt.Sprint("entries=", entries), func(b *testing.B) {
			s, all, end := crowd(b, entries, 1, func() {})
			defer end()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := s.Renew(b.Context(), all[i%entries], time.Hour); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	s, _, end := crowd(b, 10000, 0, func() {})
	defer end()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
