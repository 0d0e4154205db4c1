package etcdv2

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

const (
	removalPoll  = 2 * time.Second        // for the news of a removal, before the entry is read instead
	removalPause = 100 * time.Millisecond // before that
)

// Delete implements [lease.Store]. It takes as long as the servers need to notice that
// an entry's time is up: on average a quarter of a second, at most a half if their
// clocks agree, and longer by what the leader's is behind. Should that be longer than
// Config.RequestTimeout, it is an error. Only Key and Revision of old are needed; with
// its Value there is one request less.
//
// After an error other than ErrConflict, also after the end of ctx, the entry may
// already be about to end. ErrConflict may also mean that somebody prolonged it in the
// last moment, as its owner does who has just listed it.
//
// etcd has a deletion with a condition, but reports it as compareAndDelete. The
// flannels that use this interface, up to 0.17, know only delete and expire (see
// parseSubnetWatchResponse in their subnet/etcdv2/registry.go). Any other event has to
// have a value to them, and one that has not they ask for again every second, for ever,
// so that they see no later one. Therefore Delete gives the entry a time to live of 0,
// with the same condition and the same value, and the servers expire it.
func (s *Store) Delete(ctx context.Context, old lease.Entry) error {
	if err := s.remove(ctx, old); err != nil {
		return fmt.Errorf("etcdv2: delete %q: %w", old.Key, err)
	}
	return nil
}

// remove makes an entry that is still at old.Revision expire.
func (s *Store) remove(ctx context.Context, old lease.Entry) error {
	if err := checkKey(old.Key); err != nil {
		return err
	}
	if old.Revision == 0 {
		return lease.ErrConflict // to etcd, 0 means that any will do
	}
	ctx, leave, err := s.enter(ctx, true)
	if err != nil {
		return err
	}
	defer leave()
	path, value := s.subnets+"/"+old.Key, string(old.Value)
	if value == "" { // not known, or none
		n, err := s.look(ctx, path)
		if err != nil {
			return err
		}
		if n == nil || n.ModifiedIndex != old.Revision {
			return lease.ErrConflict
		}
		value = n.Value
	}
	r, err := s.write(ctx, &request{
		method: http.MethodPut, key: path, query: url.Values{"prevIndex": {strconv.FormatUint(old.Revision, 10)}},
		form: url.Values{"value": {value}, "ttl": {"0"}}, once: true,
	})
	if err != nil {
		return err
	}
	return s.awaitRemoval(ctx, path, r.event.Node.ModifiedIndex)
}

// awaitRemoval waits until an entry is gone that was made to expire by the write at an
// index.
func (s *Store) awaitRemoval(ctx context.Context, path string, index uint64) error {
	for began := time.Now(); ; {
		n, known := s.news(ctx, path, index)
		if !known {
			if err := s.rest(ctx, removalPause); err != nil {
				return err
			}
			var err error
			if n, err = s.look(ctx, path); err != nil {
				return fmt.Errorf("%w; the outcome is unknown", err)
			}
		}
		switch {
		case n == nil, n.CreatedIndex > index: // nothing is there, or what somebody has made since
			return nil
		case n.ModifiedIndex != index: // prolonged by somebody, and not ours to remove
			return lease.ErrConflict
		case time.Since(began) > s.timeout:
			return fmt.Errorf("%s: etcd has not removed the entry in %v, though its time is up; it will (do the clocks of the servers differ?)",
				s.access.Endpoints[s.pinned.Load()], s.timeout)
		}
	}
}

// news returns the entry, nil if none, as it is after the first event that follows an
// index, if the server tells.
func (s *Store) news(ctx context.Context, path string, index uint64) (n *client.Node, known bool) {
	q := url.Values{"wait": {"true"}, "waitIndex": {strconv.FormatUint(index+1, 10)}}
	req := &request{method: http.MethodGet, key: path, query: q}
	r, err := s.try(ctx, int(s.pinned.Load()), req, min(removalPoll, s.timeout))
	switch {
	case err != nil || r.event == nil:
		return nil, false
	case removes(r.event), r.event.Node.Dir: // also what it was in
		return nil, true
	}
	return r.event.Node, true
}

// look returns the entry as it is now, nil if there is none.
func (s *Store) look(ctx context.Context, path string) (*client.Node, error) {
	r, err := s.do(ctx, get(path, false, true))
	switch {
	case err != nil:
		return nil, err
	case r.code == client.ErrorCodeKeyNotFound, r.code == client.ErrorCodeNotDir, r.failed == nil && r.event.Node.Dir:
		return nil, nil
	case r.failed != nil:
		return nil, r.failed
	}
	return r.event.Node, nil
}

// rest waits, unless the call has to end.
func (s *Store) rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return s.over(ctx)
}

// removes reports whether an event is an end.
func removes(ev *client.Response) bool {
	return ev.Action == "delete" || ev.Action == "expire" || ev.Action == "compareAndDelete"
}

// condemns reports whether an event is the first part of a Delete: an entry is as it
// was, except that its time is up. Where the clocks of servers differ it may look as if
// a moment were left; then it is reported, and tells nobody anything new.
func condemns(ev *client.Response) bool {
	n, prev := ev.Node, ev.PrevNode
	return ev.Action == "compareAndSwap" && n.Expiration != nil && n.TTL <= 0 && prev != nil && prev.Value == n.Value
}
