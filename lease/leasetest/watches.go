package leasetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// testWatchFirst: a watch says that the server is there, before anything happens, and
// that of an empty network sees its very first entry.
func testWatchFirst(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	w := a.watch(l.Revision)
	w.until("first batch, to say that the server is there", func(es []lease.Event) bool {
		return w.batches > 0
	})
	if events := w.count(0); len(events) != 0 {
		t.Errorf("Watch of an empty network reports %s", tail(events))
	}
	e := b.create(key1, "first", long)
	events := w.expect(key1 + "=first")
	if got := events[0].Entry; got.Revision != e.Revision || got.Permanent {
		t.Errorf("Watch: %+v; want revision %d, not permanent", got, e.Revision)
	}
	w.stop()
}

// testWatchOrder: what happens to an entry in the course of its life, to several
// entries, and by several hosts.
func testWatchOrder(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	all := []*watching{a.watch(l.Revision), b.watch(l.Revision), b.watch(l.Revision)}

	one := a.create(key1, "1", long)
	two := b.create(key2, "2", 0)
	three := a.create(key3, "3", long)
	four := b.update(one, "4", 0)
	b.remove(two)
	five := a.create(key2, "5", long)
	a.remove(three)
	six := b.update(five, "", long)
	a.remove(four)

	revisions := []uint64{one.Revision, two.Revision, three.Revision, four.Revision, 0, five.Revision, 0, six.Revision, 0}
	permanent := []int{1, 3}
	for _, w := range all {
		events := w.expect(key1+"=1", key2+"=2", key3+"=3", key1+"=4", "-"+key2, key2+"=5", "-"+key3, key2+"=", "-"+key1)
		for i, e := range events {
			if revisions[i] != 0 && e.Entry.Revision != revisions[i] {
				t.Errorf("Watch: %s; want revision %d", describe(e), revisions[i])
			}
			if e.Entry.Permanent != slices.Contains(permanent, i) {
				t.Errorf("Watch: %s has permanent %t", describe(e), e.Entry.Permanent)
			}
			if e.Entry.TTL != 0 {
				checkTTL(t, "Watch "+describe(e), e.Entry.TTL, long)
			}
		}
	}
	// An entry that came by a watch serves as well as one from List.
	seen := all[0].events[7].Entry
	again := a.update(seen, "7", long)
	a.renew(again, long)
	for _, w := range all {
		w.until("the last update", func(es []lease.Event) bool { return es[len(es)-1].Entry.Revision >= again.Revision })
		w.stop()
	}
}

// testWatchReplay: a watch that starts late is told what it missed, as it was.
func testWatchReplay(t *testing.T, n Network) {
	const changes = 12
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	e := a.create(key1, "0", long)
	want, revisions := []string{key1 + "=0"}, []uint64{l.Revision, e.Revision}
	for i := 1; i < changes; i++ {
		if i%4 == 3 {
			a.remove(e)
			e = a.create(key1, fmt.Sprint(i), long)
			want = append(want, "-"+key1)
			revisions = append(revisions, 0)
		} else {
			e = a.update(e, fmt.Sprint(i), long)
		}
		want = append(want, key1+"="+fmt.Sprint(i))
		revisions = append(revisions, e.Revision)
	}
	for i, revision := range revisions {
		if revision == 0 {
			continue
		}
		w := b.watch(revision)
		w.expect(want[i:]...)
		w.stop()
	}
	// The other way to go on: from the revision of a batch.
	l, _ = b.list()
	w := b.watch(l.Revision)
	a.remove(e)
	w.expect("-" + key1)
	w.stop()
	a.create(key1, "later", long)
	w = a.watch(w.cursor)
	w.expect(key1 + "=later")
	w.stop()
}

// testWatchSlow: fn may take its time. Nothing is lost meanwhile, nobody else waits.
func testWatchSlow(t *testing.T, n Network) {
	const changes = 40
	a, b := n.open(t), n.open(t)
	l, _ := a.list()
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	defer release()
	slow := a.watchWith(l.Revision, func(lease.Batch) { <-held })
	fast := a.watch(l.Revision)
	var want []string
	e := b.create(key1, "start", long)
	want = append(want, key1+"=start")
	for i := range changes {
		e = b.update(e, fmt.Sprint(i), long)
		want = append(want, fmt.Sprintf("%s=%d", key1, i))
	}
	fast.expect(want...)
	release()
	slow.expect(want...)
	slow.stop()
	fast.stop()
}

// testWatchNoHistory: a revision which the store has never had is one whose history
// it can't tell: the server was wiped, or restored from a backup. Its own latest
// revision is none of those.
func testWatchNoHistory(t *testing.T, n Network) {
	h := n.open(t)
	h.create(key1, "one", long)
	l, _ := h.list()
	for _, after := range []uint64{l.Revision + 1_000_000, l.Revision + 1_000_000_000_000} {
		w := h.watch(after)
		if err := w.wait("its revision is of the future"); !errors.Is(err, lease.ErrCompacted) {
			t.Errorf("Watch from revision %d of %d: %v; want ErrCompacted", after, l.Revision, err)
		}
		if len(w.events) != 0 {
			t.Errorf("Watch from a revision of the future reports %s", tail(w.events))
		}
	}
	w := h.watch(l.Revision)
	h.create(key2, "two", long)
	w.expect(key2 + "=two")
	w.stop()
}

// testCompact: whoever asks for what is compacted has to List; who is up to date
// need not.
func testCompact(t *testing.T, n Network) {
	needs(t, n.Compact != nil, "Compact: a watch from a compacted revision is not tested")
	a, b := n.open(t), n.open(t)
	old, _ := a.list()
	f := b.follow()
	e := a.create(key1, "start", long)
	for i := range 8 {
		e = a.update(e, fmt.Sprint(i), long)
	}
	other := a.create(key2, "other", long)
	n.Compact(t)
	a.unchanged(e, "Compact")
	w := b.watch(old.Revision)
	if err := w.wait("its revision is compacted"); !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("Watch from a compacted revision: %v; want ErrCompacted", err)
	}
	if len(w.events) != 0 {
		t.Errorf("Watch from a compacted revision reports %s", tail(w.events))
	}
	l, _ := b.list()
	w = b.watch(l.Revision)
	e = a.renew(e, long)
	a.remove(other)
	w.until("a deletion after Compact", func(es []lease.Event) bool {
		return slices.ContainsFunc(es, func(e lease.Event) bool { return e.Deleted && e.Entry.Key == key2 })
	})
	w.stop()
	a.update(e, "end", long)
	f.until("the last update", func(all map[string]lease.Entry) bool { return len(all) == 1 && string(all[key1].Value) == "end" })
}

// testLarge: a network of a thousand hosts.
func testLarge(t *testing.T, n Network) {
	const entries, writers = 1000, 20
	h := n.open(t)
	h.create(key1, "one", long)
	requests := func(f func()) int {
		if n.Requests == nil {
			f()
			return 0
		}
		before := n.Requests()
		f()
		return n.Requests() - before
	}
	small := requests(func() { h.list() })
	ctx := callContext(t)
	together(t, writers, func(w int) error {
		for i := w; i < entries; i += writers {
			ttl := time.Duration(i%2) * 10 * long
			if _, err := h.Create(ctx, fmt.Sprintf("10.%d.%d.0-24", 64+i/256, i%256), []byte(fmt.Sprint(i)), ttl); err != nil {
				return fmt.Errorf("Create number %d: %w", i, err)
			}
		}
		return nil
	})
	var all map[string]lease.Entry
	large := requests(func() { _, all = h.list() })
	if len(all) != entries+1 {
		t.Errorf("List has %d entries; want %d", len(all), entries+1)
	}
	for i := range entries {
		e := all[fmt.Sprintf("10.%d.%d.0-24", 64+i/256, i%256)]
		if string(e.Value) != fmt.Sprint(i) || e.Permanent != (i%2 == 0) {
			t.Errorf("List: entry number %d is %+v", i, e)
		}
	}
	if small != large {
		t.Errorf("List takes %d requests for one entry, %d for %d; the number must not depend on it", small, large, len(all))
	}
	e := all["10.64.1.0-24"]
	if took := requests(func() { h.renew(e, 10*long) }); n.Requests != nil && took != 1 {
		t.Errorf("Renew takes %d requests; want one", took)
	}
}
