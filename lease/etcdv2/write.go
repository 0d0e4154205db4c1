package etcdv2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	client "go.etcd.io/etcd/client/v2"
)

// Create implements [lease.Store]. After an error that is not ErrExists the entry may
// be there nevertheless: List tells.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	q := url.Values{"prevExist": {"false"}}
	e, err := s.put(ctx, key, q, value, ttl)
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv2: create %q: %w", key, err)
	}
	return e, nil
}

// Update implements [lease.Store].
func (s *Store) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	e, err := s.swap(ctx, old, value, ttl)
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv2: update %q: %w", old.Key, err)
	}
	return e, nil
}

// Renew implements [lease.Store]. It writes old.Value again, since a server before 2.3
// takes a refresh for an empty value.
func (s *Store) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if old.Permanent {
		return old, nil
	}
	e, err := s.swap(ctx, old, old.Value, ttl)
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv2: renew %q: %w", old.Key, err)
	}
	return e, nil
}

// swap writes an entry that is still at old.Revision.
func (s *Store) swap(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	if old.Revision == 0 {
		return lease.Entry{}, lease.ErrConflict // to etcd, 0 means that any will do
	}
	return s.put(ctx, old.Key, url.Values{"prevIndex": {strconv.FormatUint(old.Revision, 10)}}, value, ttl)
}

// put writes an entry if the conditions in the query hold.
func (s *Store) put(ctx context.Context, key string, query url.Values, value []byte, ttl time.Duration) (lease.Entry, error) {
	if err := checkKey(key); err != nil {
		return lease.Entry{}, err
	}
	if ttl < 0 {
		return lease.Entry{}, fmt.Errorf("time to live %v (want 0 or more)", ttl)
	}
	form := url.Values{"value": {string(value)}}
	whole := (ttl + time.Second - 1).Truncate(time.Second)
	if whole > 0 {
		form.Set("ttl", strconv.FormatInt(int64(whole/time.Second), 10))
	}
	r, err := s.write(ctx, &request{method: http.MethodPut, key: s.subnets + "/" + key, query: query, form: form, once: true})
	if err != nil {
		return lease.Entry{}, err
	}
	// The answer's time to live is what is left by the clock of the server that
	// answers, of a moment that another server may have set: what was asked for
	// is nearer the truth.
	n := r.event.Node
	return lease.Entry{
		Key: key, Value: bytes.Clone(value), Revision: n.ModifiedIndex, Created: n.CreatedIndex, Permanent: whole == 0, TTL: whole,
	}, nil
}

// write sends a write and makes the contract's errors of etcd's.
func (s *Store) write(ctx context.Context, req *request) (*reply, error) {
	r, err := s.do(ctx, req)
	if err != nil {
		return nil, err
	}
	switch r.code {
	case 0:
		return r, nil
	case client.ErrorCodeNodeExist:
		return nil, lease.ErrExists
	case client.ErrorCodeTestFailed, client.ErrorCodeKeyNotFound, client.ErrorCodeNotFile: // or a directory in its place
		return nil, lease.ErrConflict
	}
	return nil, r.failed
}

// checkKey keeps a key from meaning something else in a path. A slash is nothing a lease
// has, but what others have written must be removable; a name that begins with _ is
// hidden from List.
func checkKey(key string) error {
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." || part[0] == '_' {
			return errors.New("not a name an entry can have (want one like 10.5.34.0-24)")
		}
	}
	return nil
}
