package memory_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
)

// A seen event is one that a watch has reported, and when.
type seen struct {
	after time.Duration // since the watch began
	text  string
}

// watch starts a watch in a bubble, which adds to the result until the context ends.
func watch(ctx context.Context, s *memory.Store, after uint64) (events *[]seen, done <-chan error) {
	events = new([]seen)
	ended := make(chan error, 1)
	start := time.Now()
	go func() {
		ended <- s.Watch(ctx, after, func(b lease.Batch) {
			for _, e := range b.Events {
				text := "-" + e.Entry.Key
				if !e.Deleted {
					text = e.Entry.Key + "=" + string(e.Entry.Value)
				}
				*events = append(*events, seen{time.Since(start), text})
			}
		})
	}()
	synctest.Wait() // it has started
	return events, ended
}

func must(t *testing.T) func(lease.Entry, error) lease.Entry {
	return func(e lease.Entry, err error) lease.Entry {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

// TestExpiresToTheMoment: in a bubble the time is exact, and days are nothing.
func TestExpiresToTheMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		s := memory.New(memory.Config{})
		events, done := watch(ctx, s, 1)
		start := time.Now()
		ok := must(t)
		ok(s.Create(ctx, "a", nil, day))
		ok(s.Create(ctx, "b", nil, day+time.Nanosecond)) // rounded up
		ok(s.Create(ctx, "c", nil, day))                 // in the same moment as a
		renewed := ok(s.Create(ctx, "r", nil, 2*time.Hour))
		ok(s.Create(ctx, "f", nil, 0))
		first := ok(s.Create(ctx, "first", nil, time.Hour))
		ok(s.Update(ctx, first, []byte("later"), 3*day)) // the next to expire does not any more
		for range 24 {
			time.Sleep(time.Hour)
			synctest.Wait()
			e := ok(s.Renew(ctx, renewed, 2*time.Hour))
			if e.Revision != renewed.Revision || e.TTL != 2*time.Hour {
				t.Fatalf("Renew: %+v; want the same revision and two hours", e)
			}
		}
		l, err := s.List(ctx) // exactly at the deadline of a and c: gone
		if err != nil || len(l.Entries) != 4 {
			t.Fatalf("List after a day: %v, %v; want b, r, f, first", l.Entries, err)
		}
		for _, e := range l.Entries {
			want := map[string]time.Duration{"b": time.Second, "r": 2 * time.Hour, "f": 0, "first": 2 * day}[e.Key]
			if e.TTL != want || e.Permanent != (e.Key == "f") {
				t.Errorf("List: %s has TTL %v, permanent %t; want %v", e.Key, e.TTL, e.Permanent, want)
			}
		}
		time.Sleep(10 * day)
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
		want := []seen{{0, "a="}, {0, "b="}, {0, "c="}, {0, "r="}, {0, "f="}, {0, "first="}, {0, "first=later"},
			{day, "-a"}, {day, "-c"}, {day + time.Second, "-b"}, {day + 2*time.Hour, "-r"}, {3 * day, "-first"}}
		if !slices.Equal(*events, want) {
			t.Errorf("Watch reports\n%v\nwant\n%v", *events, want)
		}
		if passed := time.Since(start); passed != 11*day {
			t.Errorf("%v have passed", passed)
		}
	})
}

// TestExpiresUnwatched: nothing runs while nobody watches; what is due is gone all
// the same, and a watch that comes later is told in order.
func TestExpiresUnwatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, ok := memory.New(memory.Config{}), must(t)
		old := ok(s.Create(ctx, "b", nil, 2*time.Second))
		ok(s.Create(ctx, "a", nil, time.Second))
		time.Sleep(time.Minute)
		for what, err := range map[string]error{
			"Renew":  func() error { _, err := s.Renew(ctx, old, time.Hour); return err }(),
			"Update": func() error { _, err := s.Update(ctx, old, nil, 0); return err }(),
			"Delete": s.Delete(ctx, old),
		} {
			if !errors.Is(err, lease.ErrConflict) {
				t.Errorf("%s of an expired entry: %v", what, err)
			}
		}
		again := ok(s.Create(ctx, "a", []byte("again"), time.Hour))
		if again.Revision != 6 { // two entries came, two went, before this one
			t.Errorf("revision %d of the fifth change; want 6", again.Revision)
		}
		events, done := watch(ctx, s, 1)
		time.Sleep(time.Hour)
		synctest.Wait()
		cancel()
		<-done
		want := []seen{{0, "b="}, {0, "a="}, {0, "-a"}, {0, "-b"}, {0, "a=again"}, {time.Hour, "-a"}}
		if !slices.Equal(*events, want) {
			t.Errorf("Watch reports %v; want %v", *events, want)
		}
	})
}

// TestBubblesInTurn: a store that was made outside of any bubble may be used in
// several, one after the other, since it keeps neither timers nor channels for watches
// that have ended.
func TestBubblesInTurn(t *testing.T) {
	s := memory.New(memory.Config{})
	for i := range 3 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l, err := s.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			events, done := watch(ctx, s, l.Revision)
			must(t)(s.Create(ctx, fmt.Sprint(i), nil, time.Minute))
			must(t)(s.Create(ctx, fmt.Sprint(i, " stays"), nil, 1000*time.Hour))
			time.Sleep(time.Hour)
			synctest.Wait()
			if len(*events) != 3 {
				t.Errorf("bubble %d: Watch reports %v", i, *events)
			}
			cancel()
			<-done
		})
	}
}

// TestCloseInBubble: a bubble ends only when all its goroutines have.
func TestCloseInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Config{Network: "{}"})
		other := s.Share()
		must(t)(s.Create(t.Context(), "a", nil, time.Hour))
		_, done := watch(t.Context(), s, 1)
		s.Close()
		if err := <-done; !errors.Is(err, memory.ErrClosed) {
			t.Errorf("Watch of a closed store: %v", err)
		}
		if _, err := s.Config(t.Context()); !errors.Is(err, memory.ErrClosed) {
			t.Errorf("Config of a closed store: %v", err)
		}
		for _, s := range []*memory.Store{other, s.Share()} {
			if l, err := s.List(t.Context()); err != nil || len(l.Entries) != 1 {
				t.Errorf("List of another store after Close: %v, %v", l, err)
			}
		}
	})
}

func TestSlowWatchGetsOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := memory.New(memory.Config{})
		var sizes []int
		done := make(chan error)
		go func() {
			done <- s.Watch(ctx, 1, func(b lease.Batch) {
				sizes = append(sizes, len(b.Events))
				time.Sleep(time.Second)
			})
		}()
		synctest.Wait()
		for i := range 100 {
			must(t)(s.Create(ctx, fmt.Sprint(i), nil, 0))
		}
		time.Sleep(time.Minute)
		s.SetConfig("{}") // a revision at which nothing happens to the leases
		time.Sleep(time.Minute)
		cancel()
		<-done
		if want := []int{0, 100, 0}; !slices.Equal(sizes, want) {
			t.Errorf("batches of %v events; want %v", sizes, want)
		}
	})
}
