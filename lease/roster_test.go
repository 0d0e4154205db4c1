package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// entry4 is an entry of host n in subnet 10.5.n.0/24.
func entry4(n int, rev uint64) Entry {
	return Entry{Key: fmt.Sprintf("10.5.%d.0-24", n), Revision: rev, Value: fmt.Appendf(nil, `{"PublicIP":"192.0.2.%d"}`, n)}
}

// gone4 is its deletion.
func gone4(n int, rev uint64) Event {
	return Event{Entry: Entry{Key: fmt.Sprintf("10.5.%d.0-24", n), Revision: rev}, Deleted: true}
}

// rosterPeers returns the third bytes of the peers' subnets.
func rosterPeers(r *roster) []int {
	var all []int
	for _, p := range r.peers(Lease{Key: Key{Subnet: netip.MustParsePrefix("10.5.250.0/24")}, Attrs: Attrs{PublicIP: netip.MustParseAddr("192.0.2.250")}}) {
		all = append(all, int(p.Subnet.Addr().As4()[2]))
	}
	return all
}

func wantPeers(t *testing.T, r *roster, when string, want ...int) {
	t.Helper()
	if got := rosterPeers(r); !slices.Equal(got, want) {
		t.Errorf("%s: peers %v, want %v", when, got, want)
	}
	held := 0
	for _, m := range r.members {
		if m.gone {
			held++
		}
	}
	if held != r.held {
		t.Errorf("%s: %d members are held, the roster counts %d", when, held, r.held)
	}
}

var rosterStart = time.Unix(1000, 0)

func after(d time.Duration) time.Time { return rosterStart.Add(d) }

func TestRosterLinger(t *testing.T) {
	r := newRoster(5*time.Second, time.Hour)
	r.reset(Listing{Revision: 10, Entries: []Entry{entry4(1, 2), entry4(2, 3), entry4(3, 4)}}, "", after(0))
	wantPeers(t, r, "first", 1, 2, 3)
	r.apply(Batch{Events: []Event{gone4(2, 11)}, Revision: 11}, after(time.Second))
	wantPeers(t, r, "deleted", 1, 2, 3)
	if next := r.sweep(after(5 * time.Second)); next != after(6*time.Second) {
		t.Errorf("look again at %v, want %v", next, after(6*time.Second))
	}
	wantPeers(t, r, "lingers", 1, 2, 3)
	if next := r.sweep(after(6 * time.Second)); !next.IsZero() {
		t.Errorf("look again at %v, nothing is held", next)
	}
	wantPeers(t, r, "given up", 1, 3)

	r.apply(Batch{Events: []Event{gone4(3, 12)}, Revision: 12}, after(7*time.Second))
	r.apply(Batch{Events: []Event{{Entry: entry4(3, 13)}}, Revision: 13}, after(8*time.Second))
	r.sweep(after(time.Hour))
	wantPeers(t, r, "came back", 1, 3)

	// Listings say the same as events.
	r.reset(Listing{Revision: 20, Entries: []Entry{entry4(3, 13)}}, "", after(2*time.Hour))
	wantPeers(t, r, "not in the listing", 1, 3)
	r.sweep(after(2*time.Hour + 5*time.Second))
	wantPeers(t, r, "not in the listing, given up", 3)
}

// TestRosterYield: what is held gives way to whoever is alive in its subnet.
func TestRosterYield(t *testing.T) {
	r := newRoster(5*time.Second, time.Hour)
	r.reset(Listing{Revision: 10, Entries: []Entry{entry4(1, 2), entry4(2, 3)}}, "", after(0))
	wide := Entry{Key: "10.5.2.0-23", Revision: 12, Value: []byte(`{"PublicIP":"198.51.100.1"}`)}
	r.apply(Batch{Events: []Event{gone4(2, 11), {Entry: wide}}, Revision: 12}, after(0))
	wantPeers(t, r, "replaced", 1, 2)
	if _, there := r.members["10.5.2.0-24"]; there {
		t.Error("the lease that was replaced is still held")
	}
	// The other order: the new one is there before the old one goes.
	r.apply(Batch{Events: []Event{{Entry: Entry{Key: "10.5.0.0-23", Revision: 13, Value: wide.Value}}, gone4(1, 14)}, Revision: 14}, after(0))
	wantPeers(t, r, "replaced beforehand", 0, 2)

	// In one listing.
	r = newRoster(5*time.Second, time.Hour)
	r.reset(Listing{Revision: 10, Entries: []Entry{entry4(1, 2), entry4(2, 3)}}, "", after(0))
	r.reset(Listing{Revision: 20, Entries: []Entry{wide, entry4(1, 2)}}, "", after(0))
	wantPeers(t, r, "replaced in a listing", 1, 2)
	if len(r.members) != 2 {
		t.Errorf("%d members, want 2", len(r.members))
	}
}

// TestRosterLostHistory: the store was wiped, so absence says nothing.
func TestRosterLostHistory(t *testing.T) {
	for name, l := range map[string]Listing{
		"another cluster":         {Revision: 100, Cluster: 2},
		"another cluster, as old": {Revision: 10, Cluster: 2},
		"set back in time":        {Revision: 5, Cluster: 1, Entries: []Entry{entry4(9, 4)}},
		"no cluster id":           {Revision: 1},
	} {
		r := newRoster(5*time.Second, time.Hour)
		r.reset(Listing{Revision: 10, Cluster: 1, Entries: []Entry{entry4(1, 8), entry4(2, 9)}}, "", after(0))
		if !r.replaced(l) {
			t.Errorf("%s: not noticed", name)
		}
		r.reset(l, "", after(0))
		r.sweep(after(59 * time.Minute))
		got := rosterPeers(r)
		if !slices.Contains(got, 1) || !slices.Contains(got, 2) {
			t.Errorf("%s: peers %v, want 1 and 2 among them", name, got)
		}
		// The owner's new entry has a low revision, and counts.
		moved := entry4(1, 2)
		moved.Value = []byte(`{"PublicIP":"198.51.100.77"}`)
		r.apply(Batch{Events: []Event{{Entry: moved}}, Revision: l.Revision + 1}, after(30*time.Minute))
		if m := r.members["10.5.1.0-24"]; m.gone || m.lease.Attrs.PublicIP.String() != "198.51.100.77" {
			t.Errorf("%s: the new entry is not taken: %+v", name, m)
		}
		r.sweep(after(time.Hour))
		if got := rosterPeers(r); slices.Contains(got, 2) || !slices.Contains(got, 1) {
			t.Errorf("%s: after the time to live: peers %v, want 1 and not 2", name, got)
		}
	}
	r := newRoster(5*time.Second, time.Hour)
	r.reset(Listing{Revision: 10, Cluster: 1}, "", after(0))
	for _, l := range []Listing{{Revision: 10, Cluster: 1}, {Revision: 11, Cluster: 1}, {Revision: 10}} {
		if r.replaced(l) {
			t.Errorf("%+v counts as another store", l)
		}
	}
}

// TestRosterJunk: what can't be read changes nothing, and is named once.
func TestRosterJunk(t *testing.T) {
	r := newRoster(5*time.Second, time.Hour)
	junk := Entry{Key: "junk", Revision: 3, Value: []byte("x")}
	bad := r.reset(Listing{Revision: 10, Entries: []Entry{entry4(1, 2), junk}}, "", after(0))
	if len(bad) != 1 || bad[0].key != "junk" || bad[0].err == nil {
		t.Errorf("bad: %+v", bad)
	}
	if bad := r.reset(Listing{Revision: 11, Entries: []Entry{entry4(1, 2), junk}}, "", after(0)); len(bad) != 0 {
		t.Errorf("named again: %+v", bad)
	}
	broken := Entry{Key: entry4(1, 0).Key, Revision: 12, Value: []byte("{")}
	if bad := r.apply(Batch{Events: []Event{{Entry: broken}}, Revision: 12}, after(0)); len(bad) != 1 {
		t.Errorf("bad: %+v", bad)
	}
	wantPeers(t, r, "value turned to junk", 1)
	r.apply(Batch{Events: []Event{gone4(1, 13)}, Revision: 13}, after(0))
	wantPeers(t, r, "junk deleted", 1)
	r.sweep(after(5 * time.Second))
	wantPeers(t, r, "junk deleted, given up")
	if bad := r.apply(Batch{Events: []Event{{Entry: junk, Deleted: true}}, Revision: 14}, after(0)); len(bad) != 0 || r.held != 0 {
		t.Errorf("deleted junk: %+v, %d held", bad, r.held)
	}
	wantPeers(t, r, "all deleted")
}

// TestRosterReplay: batches from before a listing change nothing for good.
func TestRosterReplay(t *testing.T) {
	r := newRoster(5*time.Second, time.Hour)
	now := entry4(1, 8)
	now.Value = []byte(`{"PublicIP":"198.51.100.1"}`)
	r.reset(Listing{Revision: 10, Entries: []Entry{now, entry4(3, 9)}}, "", after(0))
	r.apply(Batch{Events: []Event{{Entry: entry4(1, 5)}, gone4(1, 6), {Entry: entry4(1, 7)}, {Entry: now}, gone4(3, 4)}, Revision: 8}, after(0))
	wantPeers(t, r, "replayed", 1, 3)
	if ip := r.members[now.Key].lease.Attrs.PublicIP.String(); ip != "198.51.100.1" {
		t.Errorf("the peer is at %s, an old address", ip)
	}
	if r.replaced(Listing{Revision: 10}) {
		t.Error("an old batch has set the revision back")
	}
}

// TestRosterReserved: a lease becomes a reservation and an ordinary one again.
func TestRosterReserved(t *testing.T) {
	r := newRoster(5*time.Second, time.Hour)
	r.reset(Listing{Revision: 10, Entries: []Entry{entry4(1, 2)}}, "", after(0))
	for i, permanent := range []bool{true, false, false} {
		before := r.changes
		e := entry4(1, uint64(11+i))
		e.Permanent = permanent
		r.apply(Batch{Events: []Event{{Entry: e}}, Revision: e.Revision}, after(0))
		if got := r.members[e.Key].lease.Reserved; got != permanent {
			t.Errorf("step %d: reserved %t, want %t", i, got, permanent)
		}
		if changed := r.changes != before; changed != (i < 2) {
			t.Errorf("step %d: counts as a change: %t", i, changed)
		}
	}
}

// TestBackoff: no pause is shorter than half of the backoff, none longer than its most.
func TestBackoff(t *testing.T) {
	for _, random := range []func(uint64) uint64{func(uint64) uint64 { return 0 }, func(n uint64) uint64 { return n - 1 }} {
		b := backoff{random: random}
		sum := time.Duration(0)
		for i := range 100 {
			d := b.next()
			if d < leastBackoff/2 || d > mostBackoff || i > 10 && d < mostBackoff/2 {
				t.Errorf("pause %d is %v", i, d)
			}
			sum += d
		}
		if sum < 80*mostBackoff/2 {
			t.Errorf("100 pauses take %v only", sum)
		}
		b.reset()
		if d := b.next(); d > leastBackoff {
			t.Errorf("after reset: %v", d)
		}
	}
}

// TestErrLostNames: whoever reads the error knows whom to look for.
func TestErrLostNames(t *testing.T) {
	own, _ := parseEntry(entry4(1, 1))
	other, _ := parseEntry(Entry{Key: "10.5.0.0-23", Value: []byte(`{"PublicIP":"198.51.100.9"}`)})
	err := lost(own, other)
	if !errors.Is(err, ErrLost) {
		t.Errorf("%v does not wrap ErrLost", err)
	}
	for _, word := range []string{"10.5.1.0-24", "198.51.100.9", "10.5.0.0-23"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %s", err, word)
		}
	}
}
