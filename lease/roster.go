package lease

import (
	"slices"
	"time"
)

// A roster is what a host knows of the leases: the store's entries as last seen, and
// those that are gone but not given up yet. It does no I/O and reads no clock.
//
// Two rules make it calm. Whatever can't be read changes nothing: a peer whose value
// turns to junk stays as it was. And whoever vanishes is held for a while, since a
// lease that was deleted by mistake is taken again by its owner within moments: for
// linger after a deletion, for as long as a lease may live if the whole history is
// gone (the store was wiped or restored), because then the absence of an entry says
// nothing about its owner. A held lease gives way to any live one that overlaps it.
type roster struct {
	linger time.Duration // after a deletion
	ttl    time.Duration // after a loss of history

	known    bool // some listing has been seen
	cluster  uint64
	revision uint64
	members  map[string]*member
	held     int                 // members that are gone
	junk     map[string]struct{} // keys in the store whose value can't be read now
	changes  uint64              // grows with every change of what peers returns
	inStore  covers              // the subnets of readable members that are not gone
	inHold   covers              // and of those that are
}

// A member is one key.
type member struct {
	entry    Entry // as last seen, readable or not
	lease    Lease // the last readable value
	readable bool  // there has been one
	parsed   bool  // it is that of entry
	gone     bool  // not in the store any more
	until    time.Time
}

// An unreadable names an entry that could not be read, and why.
type unreadable struct {
	key string
	err error
}

func newRoster(linger, ttl time.Duration) *roster {
	return &roster{linger: linger, ttl: ttl, members: make(map[string]*member), junk: make(map[string]struct{}), inStore: newCovers(), inHold: newCovers()}
}

// replaced reports whether a listing is of another store than the one known so far,
// or of the same one set back in time.
func (r *roster) replaced(l Listing) bool {
	if !r.known {
		return false
	}
	if l.Revision < r.revision || l.Cluster != 0 && r.cluster != 0 && l.Cluster != r.cluster {
		return true
	}
	// A store that was rebuilt the same way may have the same number, and its revision
	// may have caught up. But an entry does not get younger.
	for _, e := range l.Entries {
		if m := r.members[e.Key]; m != nil && e.Revision < m.entry.Revision && m.entry.Revision <= l.Revision {
			return true
		}
	}
	return false
}

// reset takes a listing in place of all that was known. keep is the caller's own key,
// which it may have written after the listing was made.
func (r *roster) reset(l Listing, keep string, now time.Time) []unreadable {
	lost := r.replaced(l)
	if lost { // revisions of another history compare with nothing
		for _, m := range r.members {
			m.entry.Revision = 0
		}
	}
	seen := make(map[string]bool, len(l.Entries))
	var bad []unreadable
	for _, e := range l.Entries {
		seen[e.Key] = true
		m := r.members[e.Key]
		if m != nil && m.entry.Revision > e.Revision {
			continue // written by ourselves after the listing
		}
		bad = append(bad, r.put(e)...)
	}
	hold := r.linger
	if lost {
		hold = r.ttl
	}
	for key, m := range r.members {
		if !seen[key] && !m.gone && (key != keep || m.entry.Revision <= l.Revision) {
			r.remove(key, m, hold, now)
		}
	}
	r.known, r.revision = true, l.Revision
	if l.Cluster != 0 {
		r.cluster = l.Cluster
	}
	return bad
}

// apply takes what has happened since.
func (r *roster) apply(b Batch, now time.Time) []unreadable {
	var bad []unreadable
	for _, ev := range b.Events {
		m := r.members[ev.Entry.Key]
		if m != nil && ev.Entry.Revision < m.entry.Revision {
			continue // we know better, having written it ourselves
		}
		if !ev.Deleted {
			bad = append(bad, r.put(ev.Entry)...)
		} else if m != nil && !m.gone {
			m.entry.Revision = ev.Entry.Revision
			r.remove(ev.Entry.Key, m, r.linger, now)
		}
	}
	r.revision = max(r.revision, b.Revision)
	return bad
}

// put takes an entry that is in the store.
func (r *roster) put(e Entry) []unreadable {
	m := r.members[e.Key]
	if m == nil {
		m = new(member)
		r.members[e.Key] = m
	}
	unchanged := string(m.entry.Value) == string(e.Value)
	same := unchanged && m.entry.Revision == e.Revision
	if e.Created == 0 && !m.gone {
		e.Created = m.entry.Created
	}
	m.entry = e
	back := m.gone
	if back {
		r.move(m, false)
	}
	l := m.lease
	if m.readable && unchanged && m.parsed {
		l.Reserved, l.Revision = e.Permanent, e.Revision
	} else {
		var err error
		l, err = parseEntry(e)
		if m.parsed = err == nil; err != nil {
			r.junk[e.Key] = struct{}{}
			if same {
				return nil
			}
			return []unreadable{{e.Key, err}}
		}
	}
	delete(r.junk, e.Key)
	if back || !m.readable || !l.Attrs.Equal(m.lease.Attrs) || l.Reserved != m.lease.Reserved {
		r.changes++
	}
	if !m.readable {
		r.inStore.add(l.Key, 1)
	}
	m.lease, m.readable = l, true
	if r.held > 0 {
		r.yield(l.Key)
	}
	return nil
}

// remove holds a member that is not in the store any more, or forgets it at once where
// a live one has its place.
func (r *roster) remove(key string, m *member, hold time.Duration, now time.Time) {
	delete(r.junk, key)
	if !m.readable || hold <= 0 {
		r.drop(key, m)
		return
	}
	r.move(m, true)
	m.until = now.Add(hold)
	if !r.inStore.may(m.lease.Key) {
		return
	}
	for _, other := range r.members {
		if !other.gone && other.readable && other.lease.Overlaps(m.lease.Key) {
			r.drop(key, m)
			return
		}
	}
}

// move puts a member among those that are gone, or back.
func (r *roster) move(m *member, gone bool) {
	from, to, n := r.inStore, r.inHold, 1
	if !gone {
		from, to, n = r.inHold, r.inStore, -1
	}
	if m.readable {
		from.add(m.lease.Key, -1)
		to.add(m.lease.Key, 1)
	}
	m.gone = gone
	r.held += n
}

// drop forgets a member.
func (r *roster) drop(key string, m *member) {
	if m.gone {
		r.move(m, false)
	}
	if m.readable {
		r.inStore.add(m.lease.Key, -1)
	}
	delete(r.members, key)
	r.changes++
}

// yield forgets what is held in the place of a live lease.
func (r *roster) yield(to Key) {
	if !r.inHold.may(to) {
		return
	}
	for key, m := range r.members {
		if m.gone && m.lease.Overlaps(to) {
			r.drop(key, m)
		}
	}
}

// sweep gives up what has been held long enough, and returns when to look again, the
// zero Time if nothing is held.
func (r *roster) sweep(now time.Time) (next time.Time) {
	if r.held == 0 {
		return next
	}
	for key, m := range r.members {
		switch {
		case !m.gone:
		case !m.until.After(now):
			r.drop(key, m)
		case next.IsZero() || m.until.Before(next):
			next = m.until
		}
	}
	return next
}

// live returns the entry of a key if the store has it.
func (r *roster) live(key string) (*member, bool) {
	m := r.members[key]
	return m, m != nil && !m.gone
}

// rival returns a live lease of another host that overlaps k.
func (r *roster) rival(k Key, own Attrs) (Lease, bool) {
	name := k.String()
	for key, m := range r.members {
		if key != name && !m.gone && m.readable && m.lease.Overlaps(k) && !m.lease.Attrs.sameHost(own) {
			return m.lease, true
		}
	}
	return Lease{}, false
}

// older returns a live lease of another host that overlaps our own and was made before it.
func (r *roster) older(own Lease, created uint64) (Lease, bool) {
	name := own.Key.String()
	for key, m := range r.members {
		if key != name && !m.gone && m.readable && m.entry.Created != 0 && m.entry.Created < created && m.lease.Overlaps(own.Key) && !m.lease.Attrs.sameHost(own.Attrs) {
			return m.lease, true
		}
	}
	return Lease{}, false
}

// peers returns the leases of all other hosts, held ones included, in order. A second
// lease of our own (one with our public address) is no peer: packets sent there
// would come back.
func (r *roster) peers(own Lease) []Lease {
	name := own.Key.String()
	all := make([]Lease, 0, len(r.members))
	for key, m := range r.members {
		if key != name && m.readable && !m.lease.Attrs.sameHost(own.Attrs) {
			all = append(all, m.lease)
		}
	}
	slices.SortFunc(all, compareLeases)
	return all
}

// compareLeases orders leases by subnet.
func compareLeases(a, b Lease) int {
	if c := a.Subnet.Compare(b.Subnet); c != 0 {
		return c
	}
	return a.Subnet6.Compare(b.Subnet6)
}

// samePeers reports whether two sets say the same, revisions aside.
func samePeers(a, b []Lease) bool {
	return slices.EqualFunc(a, b, func(x, y Lease) bool {
		return x.Key == y.Key && x.Reserved == y.Reserved && x.Attrs.Equal(y.Attrs)
	})
}
