package etcdv3

import (
	"bytes"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A mark is something that was in the store at a revision, by which to recognise the
// store later. Revision and cluster id are not enough: etcd computes the id from the
// configuration, so that a server whose disk was lost comes back with the same one,
// and when all hosts have written their entries again, the revision is where it was.
// But their etcd leases have other numbers.
type mark struct {
	cluster uint64           // 0 if unknown
	kv      *mvccpb.KeyValue // as it was when it was written; nil if there was none
}

// see takes the newest entry, and rather one with an etcd lease, since what is
// permanent a script may write in the same order again.
func (m *mark) see(kv *mvccpb.KeyValue) {
	if m.kv == nil || m.kv.Lease == 0 && kv.Lease != 0 ||
		(m.kv.Lease == 0) == (kv.Lease == 0) && kv.ModRevision > m.kv.ModRevision {
		m.kv = kv
	}
}

// same reports whether this is what was seen.
func (m *mark) same(kvs []*mvccpb.KeyValue) bool {
	if len(kvs) != 1 {
		return false
	}
	a, b := m.kv, kvs[0]
	return a.ModRevision == b.ModRevision && a.CreateRevision == b.CreateRevision && a.Version == b.Version &&
		a.Lease == b.Lease && bytes.Equal(a.Value, b.Value)
}

// marks are those of the last few revisions that callers were told, since it is with
// such a revision that a caller comes back.
type marks struct {
	mu   sync.Mutex
	last [8]struct {
		revision uint64
		mark     mark
	}
	next int
}

func (m *marks) set(revision uint64, k mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last[m.next].revision, m.last[m.next].mark = revision, k
	m.next = (m.next + 1) % len(m.last)
}

// get returns the latest mark of that revision, the zero mark if there is none.
func (m *marks) get(revision uint64) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.last {
		l := &m.last[(m.next+len(m.last)-1-i)%len(m.last)]
		if l.revision == revision {
			return l.mark
		}
	}
	return mark{}
}
