package lease

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrExists is what Store.Create returns when there is an entry of that key.
	ErrExists = errors.New("lease: the subnet has an entry already")
	// ErrConflict is what a Store returns when the entry is not the one the
	// caller has seen: it was changed, or is gone.
	ErrConflict = errors.New("lease: the entry was changed or removed by another")
	// ErrCompacted is what Store.Watch returns when it can't tell what happened
	// after the revision asked for: the store has dropped that part of its
	// history, or it never had it (wiped, or restored from a backup). A new
	// List is due.
	ErrCompacted = errors.New("lease: the store has no history from that revision on")
	// ErrNoConfig is what Store.Config returns when the network is not
	// configured yet.
	ErrNoConfig = errors.New("lease: the store has no network configuration")
	// ErrDenied is wrapped by a store's error when the server is there and does
	// not let us in: wrong password, missing right, bad certificate, on either
	// side. To ask again does not help.
	ErrDenied = errors.New("lease: the store refuses access")
	// ErrUnsupported is wrapped by a store's error when the server is there and
	// has no such interface. To ask again does not help.
	ErrUnsupported = errors.New("lease: the server does not have this interface")
)

// A Store keeps the leases of one network where all its hosts reach them. It has no
// opinion about them. Methods may be called from any goroutine, at the same time.
//
// Every method returns promptly when ctx ends, with an error that wraps ctx's. Errors
// other than the ones named mean that the outcome is unknown (the server was not
// reached, or its answer was not); they say which server and why. A method does not
// retry for longer than a connection takes: the caller decides on that.
type Store interface {
	// Config returns the value of <prefix>/config, ErrNoConfig if there is none.
	Config(ctx context.Context) ([]byte, error)

	// List returns all entries, readable or not, in one consistent read. The
	// number of requests does not depend on the number of entries.
	List(ctx context.Context) (Listing, error)

	// Create makes an entry if there is none of that key, else ErrExists. It
	// lives for ttl (whole seconds, rounded up), for ever if that is 0.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) (Entry, error)

	// Update replaces the value and the time to live of an entry that is still
	// at old.Revision, else ErrConflict. Only Key and Revision of old are needed.
	Update(ctx context.Context, old Entry, value []byte, ttl time.Duration) (Entry, error)

	// Renew makes an entry live for ttl from now, with one request. It returns
	// ErrConflict where it finds that the entry is gone or another. A store
	// that cannot compare and extend in one request may miss that, but never
	// extends or changes an entry that is not old. The result replaces old.
	// Renewing a permanent entry does nothing.
	Renew(ctx context.Context, old Entry, ttl time.Duration) (Entry, error)

	// Delete removes an entry that is still at old.Revision; ErrConflict if it
	// was changed or is gone. It returns when the entry is gone, for which a
	// store may need half a second. Only Key and Revision of old are needed.
	Delete(ctx context.Context, old Entry) error

	// Watch calls fn with everything that happens after a revision (of a Listing
	// or a Batch), in order and without gaps, until ctx ends or the store can't
	// go on. It returns ErrCompacted if a List is due, else why it ended, never
	// nil; the caller may then go on from the last Batch's revision. fn is
	// called by one goroutine at a time, never after Watch has returned, and
	// may take its time. It is called with an empty Batch when the server has
	// answered at first, so that the caller knows that it is there. A server
	// that stops answering, or that is replaced by an empty one, ends Watch
	// within half a minute.
	Watch(ctx context.Context, after uint64, fn func(Batch)) error

	// Close releases what the store holds. Calls under way end with an error;
	// entries stay. Closing twice is harmless.
	Close() error
}

// A Reconnector is a Store over a network. Reconnect is to be called when the host's
// address has changed: connections made from the old one are dead, which a store finds
// out by itself only after some time.
type Reconnector interface {
	// Reconnect closes all connections. Calls under way may fail, as they would
	// in the end; a Watch may go on. It does not wait.
	Reconnect()
}

// An Entry is one key of a store.
type Entry struct {
	// Key is the last part of the name, such as 10.5.34.0-24. It need not be
	// readable: anybody can write to a store.
	Key string
	// Value is what is stored there, and must not be changed.
	Value []byte
	// Revision is the one at which the entry was last written.
	Revision uint64
	// Created is the revision at which the entry was made; a later one has a
	// higher number. 0 if unknown, as where Update was told only Key and
	// Revision of the old one.
	Created uint64
	// Permanent: it has no time to live.
	Permanent bool
	// TTL is how long it lived on from the store's answer, 0 if it is permanent
	// or List does not know (to ask would take a request for each key). Create,
	// Update and Renew always know. It is a duration, not a time: the clocks of
	// host and server need not agree.
	TTL time.Duration
	// Handle is the store's own, such as an etcd lease's number.
	Handle int64
}

// A Listing is all entries at one moment.
type Listing struct {
	// Entries in no particular order.
	Entries []Entry
	// Revision of the whole store when it was read; Watch goes on from it.
	Revision uint64
	// Cluster tells one store from another, such as a new one in the place of
	// one that was wiped; 0 if unknown.
	Cluster uint64
}

// A Batch is what Watch reports at once.
type Batch struct {
	// Events in the order in which they happened; they must not be changed.
	// None: nothing happened up to Revision, and the server is there.
	Events []Event
	// Revision to go on from: nothing up to it is left to be reported.
	Revision uint64
}

// An Event is one change of one entry.
type Event struct {
	// Entry as it is now. Of a deleted one only Key is set, and Revision, which
	// is that of the deletion.
	Entry Entry
	// Deleted: removed, or its time was up.
	Deleted bool
}
