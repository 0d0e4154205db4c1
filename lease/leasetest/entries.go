package leasetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// The keys that most subtests use.
const (
	key1 = "10.5.1.0-24"
	key2 = "10.5.2.0-24"
	key3 = "10.5.3.0-24&fd00:1:2::-64"
)

func testConfig(t *testing.T, n Network) {
	h := n.open(t)
	want := func(value string) {
		t.Helper()
		got, err := h.Config(callContext(t))
		switch {
		case value == "" && !errors.Is(err, lease.ErrNoConfig):
			t.Errorf("Config: %q, %v; want ErrNoConfig", got, err)
		case value != "" && (err != nil || string(got) != value):
			t.Errorf("Config: %q, %v; want %q", got, err, value)
		}
	}
	want("")
	h.create(key1, "an entry is no configuration", long)
	want("")
	for _, value := range []string{`{"Network":"10.5.0.0/16"}`, "{ \"Network\": \"10.6.0.0/16\" }\n", "not JSON, ü"} {
		n.SetConfig(t, value)
		want(value)
	}
	if _, all := h.list(); len(all) != 1 {
		t.Errorf("with a configuration List has %d entries; want 1", len(all))
	}
	n.SetConfig(t, "")
	want("")
}

func testCreate(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	empty, none := a.list()
	if len(none) != 0 {
		t.Fatalf("List of a new network: %v", empty.Entries)
	}
	one := a.create(key1, "one", long)
	if one.Revision <= empty.Revision {
		t.Errorf("Create: revision %d after a List at %d", one.Revision, empty.Revision)
	}
	for _, h := range []*host{a, b} {
		e, err := h.Create(callContext(t), key1, []byte("two"), 2*long)
		if !errors.Is(err, lease.ErrExists) {
			t.Errorf("Create of an existing key: %+v, %v; want ErrExists", e, err)
		}
	}
	b.unchanged(one, "two Creates of an existing key")
	dual := b.create(key3, "", 90*time.Second+time.Millisecond) // rounded up; no value at all
	forever := b.create(key2, "for ever", 0)
	later, all := a.list()
	if len(all) != 3 {
		t.Fatalf("List has %d entries, want 3: %v", len(all), later.Entries)
	}
	if later.Cluster != empty.Cluster {
		t.Errorf("List: cluster %d, and then %d", empty.Cluster, later.Cluster)
	}
	for _, e := range []lease.Entry{one, dual, forever} {
		a.unchanged(e, "Create")
		if got := all[e.Key]; got.TTL != 0 {
			checkTTL(t, "List "+e.Key, got.TTL, e.TTL)
		}
	}
	if _, err := b.Create(callContext(t), key2, []byte("two"), long); !errors.Is(err, lease.ErrExists) {
		t.Errorf("Create of a permanent key: %v; want ErrExists", err)
	}
	b.unchanged(forever, "Create of a permanent key")
	a.remove(one)
	a.unchanged(b.create(key1, "again", long), "Create of a deleted key")
}

// testContention lets fifty hosts take one key, and then fifty keys.
func testContention(t *testing.T, n Network) {
	const acquirers, stores = 50, 5
	hosts := make([]*host, stores)
	for i := range hosts {
		hosts[i] = n.open(t)
	}
	ctx := callContext(t)
	var winner atomic.Int64
	together(t, acquirers, func(i int) error {
		_, err := hosts[i%stores].Create(ctx, key1, []byte(fmt.Sprint(i)), long)
		if err == nil && !winner.CompareAndSwap(0, int64(i)+1) {
			return fmt.Errorf("Create %s: acquirer %d wins too", key1, i)
		}
		if err != nil && !errors.Is(err, lease.ErrExists) {
			return fmt.Errorf("Create %s: %w", key1, err)
		}
		return nil
	})
	_, all := hosts[0].list()
	if got, want := string(all[key1].Value), fmt.Sprint(winner.Load()-1); len(all) != 1 || got != want {
		t.Fatalf("%d entries, %s is %q; the winner was %s", len(all), key1, got, want)
	}

	won := make([]lease.Entry, acquirers)
	together(t, acquirers, func(i int) error {
		for _, k := range rand.New(rand.NewPCG(uint64(i), 0)).Perm(acquirers) {
			var err error
			won[i], err = hosts[i%stores].Create(ctx, fmt.Sprintf("10.6.%d.0-24", k), []byte(fmt.Sprint(i)), long)
			if !errors.Is(err, lease.ErrExists) {
				return err
			}
		}
		return fmt.Errorf("Create: acquirer %d finds all keys taken, though there is one for each", i)
	})
	_, all = hosts[1].list()
	if len(all) != acquirers+1 {
		t.Errorf("List has %d entries; want %d", len(all), acquirers+1)
	}
	for i, e := range won {
		if string(e.Value) != fmt.Sprint(i) {
			t.Errorf("Create by acquirer %d returned value %q", i, e.Value)
		}
		same(t, all, e, "Create")
	}
}

// testUpdate also covers Renew: what has to hold for both.
func testUpdate(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	one := a.create(key1, "one", long)
	two := a.update(one, "two", long)
	b.unchanged(two, "Update")
	three := b.update(lease.Entry{Key: two.Key, Revision: two.Revision}, "", 2*long) // only those two count
	a.unchanged(three, "Update by another, with nothing but key and revision")
	for _, stale := range []lease.Entry{one, two, {Key: key1, Revision: three.Revision + 1}, {Key: key1}} {
		_, err := a.Update(callContext(t), stale, []byte("stale"), long)
		conflict(t, fmt.Sprintf("Update at revision %d of %d", stale.Revision, three.Revision), err)
	}
	a.unchanged(three, "stale Updates")

	e := a.create(key2, "renewed", long)
	for range 3 {
		e = a.renew(e, long)
	}
	b.unchanged(e, "Renew")
	e = b.renew(e, long)
	b.unchanged(e, "Renew by another")
	e = a.update(e, "updated", long)
	e = a.renew(e, long)
	a.unchanged(e, "Renew after Update")
	a.remove(e)
	_, err := a.Update(callContext(t), e, []byte("gone"), long)
	conflict(t, "Update of a deleted entry", err)
	if _, err := a.Renew(callContext(t), e, long); err != nil {
		conflict(t, "Renew of a deleted entry", err)
	}
	_, err = a.Update(callContext(t), lease.Entry{Key: "10.5.99.0-24", Revision: e.Revision}, []byte("never"), long)
	conflict(t, "Update of an entry that never was", err)
	_, err = a.Update(callContext(t), lease.Entry{Key: "10.5.99.0-24"}, []byte("never"), long) // 0 is what a missing key has in etcd
	conflict(t, "Update at revision 0 of an entry that never was", err)
	if _, all := b.list(); len(all) != 1 {
		t.Errorf("List has %d entries; want only %s: %v", len(all), key1, all)
	}
}

// testPermanent: what has no time limit keeps none until an Update gives it one.
func testPermanent(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	e := a.create(key1, "for ever", 0)
	e = a.renew(e, long)
	b.unchanged(e, "Renew of a permanent entry")
	_, all := b.list()
	e = b.renew(all[key1], long)
	a.unchanged(e, "Renew of a permanent entry from List")
	e = a.update(e, "still", 0)
	b.unchanged(e, "Update of a permanent entry")
	e = b.update(e, "no more", long)
	a.unchanged(e, "Update that sets a time limit")
	e = a.renew(e, long)
	e = b.update(e, "again", 0)
	a.unchanged(e, "Update that takes the time limit away")
	a.remove(e)
	b.absent(key1, "Delete of a permanent entry")
}

func testDelete(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	one := a.create(key1, "one", long)
	bystander := a.create(key2, "bystander", long)
	two := a.update(one, "two", long)
	for _, stale := range []lease.Entry{one, {Key: key1, Revision: two.Revision + 1}, {Key: key1}} {
		conflict(t, fmt.Sprintf("Delete at revision %d of %d", stale.Revision, two.Revision), b.Delete(callContext(t), stale))
	}
	a.unchanged(two, "stale Deletes")
	b.remove(lease.Entry{Key: two.Key, Revision: two.Revision})
	a.absent(key1, "Delete")
	conflict(t, "Delete of a deleted entry", a.Delete(callContext(t), two))
	conflict(t, "Delete of an entry that never was", a.Delete(callContext(t), lease.Entry{Key: "10.5.99.0-24", Revision: two.Revision}))
	conflict(t, "Delete at revision 0 of an entry that never was", a.Delete(callContext(t), lease.Entry{Key: "10.5.99.0-24"}))
	b.unchanged(bystander, "Delete of another entry")
}

// testForeign: an entry that another host has made in the place of one's own is
// never touched, whatever one does with what one remembers.
func testForeign(t *testing.T, n Network) {
	a, b := n.open(t), n.open(t)
	stale := func(what string, old, now lease.Entry) {
		t.Helper()
		if _, err := a.Renew(callContext(t), old, long); err != nil {
			conflict(t, what+": Renew", err)
		}
		b.unchanged(now, what+": Renew")
		_, err := a.Update(callContext(t), old, []byte("mine"), long)
		conflict(t, what+": Update", err)
		_, err = a.Update(callContext(t), old, []byte("mine"), 0)
		conflict(t, what+": Update without time limit", err)
		b.unchanged(now, what+": Update")
		conflict(t, what+": Delete", a.Delete(callContext(t), old))
		b.unchanged(now, what+": Delete")
	}
	const key7 = "10.5.7.0-24"
	all := []lease.Entry{a.create(key1, "a", long), a.create(key2, "the same", long), a.create(key7, "a", 0)}
	a.remove(all[1])
	b.removeAll(all[0], all[2])
	stale("taken by another", all[0], b.create(key1, "b", long))
	stale("taken by another with the same value", all[1], b.create(key2, "the same", long))
	theirs := b.create(key7, "b", long)
	stale("permanent, and taken by another", all[2], theirs)
	a.unchanged(theirs, "all of that")

	mine := a.create(key3, "a", long)
	theirs = b.update(mine, "b", long)
	stale("changed by another", mine, theirs)
	theirs = b.update(theirs, "b", 0)
	stale("made permanent by another", mine, theirs)
	stale("made permanent by another, older", lease.Entry{Key: key3, Revision: mine.Revision, Handle: mine.Handle}, theirs)
}
