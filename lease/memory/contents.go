package memory

import (
	"cmp"
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// contents is what all Stores of one network share.
//
// An entry's time is up when the clock says so, not when some timer runs: whoever
// takes the lock first removes what is due. The one timer there is only runs while
// somebody watches, who would otherwise not learn of it.
//
// Costs, of n entries and w watches: a write or a renewal log n, and one wake-up
// for each watch that waits; a watch finds its place in the history by log n, and
// copies nothing.
type contents struct {
	mu        sync.Mutex
	cluster   uint64 // number of this cluster: one more for each Wipe
	config    string
	revision  uint64 // of the last change of anything
	entries   map[string]*entry
	deadlines deadlines // those that are not permanent, next to expire first

	// The log is only ever appended to and cut at its front, so parts of it are
	// handed out as they are.
	history   int // how long it may be
	log       []lease.Event
	compacted uint64 // what happened up to this revision is not in the log any more

	watches int
	wake    chan struct{} // closed when something happens; nil if nobody waits for it
	timer   *time.Timer   // nil if nothing can expire, or nobody watches
	rings   time.Time     // when timer does: no later than the next deadline
}

// An entry is one key. TTL of the embedded one stays 0: deadline tells it.
type entry struct {
	lease.Entry
	deadline time.Time
	place    int // in deadlines, -1 if not there
}

// firstRevision is that of an empty store, as in etcd.
const firstRevision = 1

func (c *contents) open() *Store { return &Store{c: c} }

// reset makes it an empty store.
func (c *contents) reset() {
	c.config, c.revision, c.compacted = "", firstRevision, firstRevision
	c.entries = make(map[string]*entry)
	c.deadlines, c.log = nil, nil
}

// lock also removes what is due. It returns the time at which it did.
func (c *contents) lock() time.Time {
	c.mu.Lock()
	now := time.Now()
	for len(c.deadlines) > 0 && !now.Before(c.deadlines[0].deadline) {
		c.remove(c.deadlines[0])
	}
	return now
}

// unlock also sets the timer for what is due next.
func (c *contents) unlock() {
	defer c.mu.Unlock()
	if c.watches == 0 || len(c.deadlines) == 0 {
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
		return
	}
	next := c.deadlines[0].deadline
	if c.timer != nil && !next.Before(c.rings) {
		return // it rings in time; if too early, then it is set again
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(time.Until(next), func() {
		c.lock()
		if c.timer == t { // else it has been replaced since
			c.timer = nil
		}
		c.unlock()
	})
	c.timer, c.rings = t, next
}

// at returns the entry if it is the one that the caller has seen, else nil.
func (c *contents) at(old lease.Entry) *entry {
	if e := c.entries[old.Key]; e != nil && e.Revision == old.Revision {
		return e
	}
	return nil
}

// live sets an entry's time to live, 0 being for ever.
func (c *contents) live(e *entry, now time.Time, ttl time.Duration) {
	e.Permanent = ttl == 0
	if e.Permanent {
		if e.place >= 0 {
			heap.Remove(&c.deadlines, e.place)
		}
		return
	}
	e.deadline = now.Add(ttl)
	if e.place >= 0 {
		heap.Fix(&c.deadlines, e.place)
		return
	}
	heap.Push(&c.deadlines, e)
}

// remove removes an entry, at a new revision.
func (c *contents) remove(e *entry) {
	if e.place >= 0 {
		heap.Remove(&c.deadlines, e.place)
	}
	delete(c.entries, e.Key)
	c.revision++
	c.record(lease.Event{Entry: lease.Entry{Key: e.Key, Revision: c.revision}, Deleted: true})
}

// record appends to the log.
func (c *contents) record(e lease.Event) {
	if len(c.log) == c.history {
		c.compacted = c.log[0].Entry.Revision
		c.log = c.log[1:] // append copies what is left to a new array now and then
	}
	c.log = append(c.log, e)
	c.wakeAll()
}

func (c *contents) wakeAll() {
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// since returns what happened after a revision, or, if nothing did, a channel that
// is closed when something has. cluster is the one that the revision belongs to.
func (c *contents) since(after, cluster uint64) (lease.Batch, <-chan struct{}, error) {
	c.mu.Lock() // not c.lock: what is due wakes the caller when the timer removes it
	defer c.mu.Unlock()
	if cluster != c.cluster || after < c.compacted || after > c.revision {
		return lease.Batch{}, nil, lease.ErrCompacted
	}
	if after == c.revision {
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		return lease.Batch{}, c.wake, nil
	}
	i, _ := slices.BinarySearchFunc(c.log, after+1, func(e lease.Event, revision uint64) int {
		return cmp.Compare(e.Entry.Revision, revision)
	})
	return lease.Batch{Events: slices.Clip(c.log[i:]), Revision: c.revision}, nil, nil
}

// enter counts a watch in, and leave out: the timer needs to run while there are any.
func (c *contents) enter() (cluster uint64) {
	c.lock()
	defer c.unlock()
	c.watches++
	return c.cluster
}

func (c *contents) leave() {
	c.lock()
	defer c.unlock()
	if c.watches--; c.watches == 0 {
		c.wake = nil // the next may be in another bubble of testing/synctest
	}
}

// deadlines is a heap of entries; see container/heap.
type deadlines []*entry

func (d deadlines) Len() int { return len(d) }

// Less orders those that expire in the same moment by age.
func (d deadlines) Less(i, j int) bool {
	return d[i].deadline.Before(d[j].deadline) || d[i].deadline.Equal(d[j].deadline) && d[i].Revision < d[j].Revision
}

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements heap.Interface.
func (d *deadlines) Push(x any) {
	e := x.(*entry)
	e.place = len(*d)
	*d = append(*d, e)
}

// Pop implements heap.Interface.
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	e := (*d)[last]
	(*d)[last] = nil
	e.place, *d = -1, (*d)[:last]
	return e
}
