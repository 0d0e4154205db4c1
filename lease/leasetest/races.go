package leasetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// A writer changes a few keys at random, in competition with others, and keeps
// account of what it has done.
type writer struct {
	store lease.Store
	rand  *rand.Rand
	known map[string]lease.Entry // what it last saw of each key
	wrote []string               // "revision key=value" of each success
	gone  map[string]int         // successful deletions, by key
}

// step does one thing. Losing against another is no error.
func (w *writer) step(ctx context.Context, value string) error {
	key := fmt.Sprintf("10.7.%d.0-24", w.rand.IntN(12))
	old, known := w.known[key]
	var e lease.Entry
	var err error
	switch {
	case !known:
		e, err = w.store.Create(ctx, key, []byte(value), long*time.Duration(w.rand.IntN(2)))
	case w.rand.IntN(3) == 0:
		if err = w.store.Delete(ctx, old); err == nil {
			w.gone[key]++
		}
		delete(w.known, key)
		return ignoreLoss(err)
	default:
		e, err = w.store.Update(ctx, old, []byte(value), long*time.Duration(w.rand.IntN(2)))
	}
	if err != nil {
		delete(w.known, key)
		return ignoreLoss(err)
	}
	w.known[key] = e
	w.wrote = append(w.wrote, fmt.Sprintf("%d %s=%s", e.Revision, key, value))
	return nil
}

// ignoreLoss drops the errors that say that another was faster.
func ignoreLoss(err error) error {
	if errors.Is(err, lease.ErrConflict) || errors.Is(err, lease.ErrExists) {
		return nil
	}
	return err
}

// testWatchConcurrent: under writers, a watch reports exactly what they have done,
// and a listing at any moment plus the watch from its revision is the truth.
func testWatchConcurrent(t *testing.T, n Network) {
	const writers, steps, late = 6, 40, 6
	h := n.open(t)
	start, _ := h.list()
	full := h.watch(start.Revision)
	progress := make(chan error) // holds the writers back, so that they are at it all the time
	all := make([]*writer, writers)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range all {
		w := &writer{store: n.open(t), rand: rand.New(rand.NewPCG(uint64(i), 1)), known: map[string]lease.Entry{}, gone: map[string]int{}}
		all[i] = w
		running.Go(func() {
			for s := range steps {
				select {
				case progress <- w.step(ctx, fmt.Sprintf("%d.%d", i, s)):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	var watches []*watching
	var listings []lease.Listing
	var reader *host
	for i := range writers * steps {
		select {
		case err := <-progress:
			if err != nil {
				t.Fatalf("a writer: %v", err)
			}
		case <-ctx.Done():
			t.Fatalf("the writers need more than %v", patience)
		}
		switch i % (writers * steps / late) {
		case 0:
			reader = n.open(t)
			l, _ := reader.list()
			listings = append(listings, l)
		case writers * steps / late / 2: // there is something between the two
			watches = append(watches, reader.watch(listings[len(listings)-1].Revision))
		}
	}
	running.Wait()
	const last = "10.8.0.0-24"
	h.create(last, "the end", 0)
	_, truth := h.list()
	seenLast := func(es []lease.Event) bool { return len(es) > 0 && es[len(es)-1].Entry.Key == last }
	events := full.until("the last event", seenLast)
	checkWritten(t, events[:len(events)-1], all)
	for i, w := range watches {
		got := w.until("the last event", seenLast)
		from, _ := slices.BinarySearchFunc(events, listings[i].Revision+1, byRevision)
		if a, b := joined(got), joined(events[from:]); a != b {
			t.Errorf("a watch from revision %d reports\n%s\nthe one from the start\n%s", listings[i].Revision, a, b)
		}
		picture := make(map[string]lease.Entry)
		for _, e := range listings[i].Entries {
			picture[e.Key] = e
		}
		for _, e := range got {
			fold(picture, e)
		}
		if diff := equal(picture, truth); diff != "" {
			t.Errorf("a listing at revision %d and the watch from there: %s", listings[i].Revision, diff)
		}
		w.stop()
	}
	full.stop()
}

func byRevision(e lease.Event, revision uint64) int { return cmp.Compare(e.Entry.Revision, revision) }

// joined is events as lines.
func joined(events []lease.Event) string {
	var lines []string
	for _, e := range events {
		lines = append(lines, describe(e))
	}
	return strings.Join(lines, "\n")
}

// checkWritten checks that events are what the writers did, no more and no less.
func checkWritten(t *testing.T, events []lease.Event, writers []*writer) {
	t.Helper()
	var wrote, seen []string
	gone := make(map[string]int)
	for _, w := range writers {
		wrote = append(wrote, w.wrote...)
		for key, times := range w.gone {
			gone[key] += times
		}
	}
	for _, e := range events {
		if e.Deleted {
			gone[e.Entry.Key]--
			continue
		}
		seen = append(seen, fmt.Sprintf("%d %s=%s", e.Entry.Revision, e.Entry.Key, e.Entry.Value))
	}
	slices.Sort(wrote)
	slices.Sort(seen)
	if !slices.Equal(wrote, seen) {
		t.Errorf("written:\n%s\nwatched:\n%s", strings.Join(wrote, "\n"), strings.Join(seen, "\n"))
	}
	for key, times := range gone {
		if times != 0 {
			t.Errorf("%s was deleted %d times more than Watch reports", key, times)
		}
	}
	if len(wrote) == 0 {
		t.Error("the writers have written nothing")
	}
}

// testConcurrent uses every method of two Stores from many goroutines. It is there
// for the race detector, and for what hangs.
func testConcurrent(t *testing.T, n Network) {
	const users, steps = 12, 15
	n.SetConfig(t, "{}")
	hosts := []*host{n.open(t), n.open(t)}
	start, _ := hosts[0].list()
	f := hosts[1].follow()
	ctx := callContext(t)
	together(t, users, func(i int) error {
		s := hosts[i%2].Store
		w := &writer{store: s, rand: rand.New(rand.NewPCG(uint64(i), 2)), known: map[string]lease.Entry{}, gone: map[string]int{}}
		for step := range steps {
			if err := w.step(ctx, fmt.Sprintf("%d.%d", i, step)); err != nil {
				return err
			}
			for key, e := range w.known {
				e, err := s.Renew(ctx, e, long)
				if err == nil {
					w.known[key] = e
				} else if err = ignoreLoss(err); err != nil {
					return err
				}
				break
			}
			if value, err := s.Config(ctx); err != nil || string(value) != "{}" {
				return fmt.Errorf("Config: %q, %w", value, err)
			}
			if _, err := s.List(ctx); err != nil {
				return err
			}
			if step%5 == i%5 {
				if err := shortWatch(ctx, s, start.Revision); err != nil {
					return err
				}
			}
		}
		return nil
	})
	end := hosts[0].create("10.8.0.0-24", "the end", 0)
	_, truth := hosts[0].list()
	// Renew may change revisions and not be reported, so only values count.
	f.until("picture that is as the list", func(all map[string]lease.Entry) bool {
		if all[end.Key].Revision == 0 || len(all) != len(truth) {
			return false
		}
		for key, e := range truth {
			if string(all[key].Value) != string(e.Value) {
				return false
			}
		}
		return true
	})
}

// shortWatch watches until there is an event, and leaves.
func shortWatch(ctx context.Context, s lease.Store, after uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.Watch(ctx, after, func(b lease.Batch) {
		if len(b.Events) > 0 {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) && !errors.Is(err, lease.ErrCompacted) {
		return fmt.Errorf("Watch: %w; want context.Canceled", err)
	}
	return nil
}
