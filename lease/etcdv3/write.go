package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit/lease"
)

// How long an entry lives is the business of an etcd lease, which takes a request of
// its own to make, before the one that writes the key. What can go wrong in between
// must leave no etcd lease behind for longer than the time it was made for, and must
// never take away a key:
//
//   - The number of an etcd lease is chosen here, not by the server, so that one can
//     be revoked whose making was not confirmed.
//   - To revoke an etcd lease removes the keys that hang on it. One that may have a
//     key is revoked only if the server says that it has none; in doubt it stays, and
//     expires.
//   - Nobody waits for that. It is tried once, in the background.

// Create implements [lease.Store]. The TTL of the result is what the server granted,
// which may be more: it gives no less than one and a half of its election timeouts.
func (s *Store) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (lease.Entry, error) {
	w := write{key: key, value: value, ttl: ttl, cmp: clientv3.Compare(clientv3.CreateRevision(s.subnets+key), "=", 0), fresh: true}
	e, err := s.write(ctx, w)
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv3: create %s: %w", key, err)
	}
	return e, nil
}

// Update implements [lease.Store]. The TTL of the result is as with Create.
func (s *Store) Update(ctx context.Context, old lease.Entry, value []byte, ttl time.Duration) (lease.Entry, error) {
	e, err := s.replace(ctx, old, write{value: value, ttl: ttl})
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv3: update %s: %w", old.Key, err)
	}
	return e, nil
}

// Renew implements [lease.Store]. It does not notice that another has replaced the
// entry where the etcd lease of the old one still lives, and that one it extends, for
// nobody. Where the etcd lease was granted for another time than ttl by far, such as
// by a host with another configuration, the entry gets a new one, with another
// Revision.
func (s *Store) Renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if old.Permanent {
		return old, nil
	}
	e, err := s.renew(ctx, old, ttl)
	if err != nil {
		return lease.Entry{}, fmt.Errorf("etcdv3: renew %s: %w", old.Key, err)
	}
	return e, nil
}

func (s *Store) renew(ctx context.Context, old lease.Entry, ttl time.Duration) (lease.Entry, error) {
	if ttl <= 0 {
		return lease.Entry{}, fmt.Errorf("time to live %v (want more than 0; Update makes an entry permanent)", ttl)
	}
	if old.Handle == 0 { // from somewhere else than a Store of this kind
		var resp *clientv3.GetResponse
		err := s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
			resp, err = s.client.Get(ctx, s.subnets+old.Key)
			return err
		})
		switch {
		case err != nil:
			return lease.Entry{}, err
		case len(resp.Kvs) == 0 || uint64(resp.Kvs[0].ModRevision) != old.Revision:
			return lease.Entry{}, lease.ErrConflict
		}
		if old = s.entry(resp.Kvs[0]); old.Permanent {
			return old, nil
		}
	}
	granted, err := s.keepAlive(ctx, old.Handle)
	if err != nil {
		return lease.Entry{}, err
	}
	if granted == 0 {
		return lease.Entry{}, fmt.Errorf("%w: its etcd lease %x has ended", lease.ErrConflict, old.Handle)
	}
	if granted < ttl/2 || granted > 2*ttl+time.Minute {
		return s.replace(ctx, old, write{ttl: ttl, keep: true})
	}
	old.TTL = granted
	return old, nil
}

// keepAlive lets an etcd lease begin anew, and returns for how long, 0 if there is no
// such lease.
func (s *Store) keepAlive(ctx context.Context, id int64) (time.Duration, error) {
	var resp *pb.LeaseKeepAliveResponse
	err := s.do(ctx, s.timeout, func(ctx context.Context) error {
		stream, err := s.leases.LeaseKeepAlive(ctx)
		if err != nil {
			return err
		}
		// Where these fail, Recv returns the reason.
		_ = stream.Send(&pb.LeaseKeepAliveRequest{ID: id})
		_ = stream.CloseSend()
		if resp, err = stream.Recv(); err != nil {
			if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
				if p, ok := peer.FromContext(stream.Context()); ok {
					a.endpoint = p.Addr.String()
				}
			}
		}
		return err
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return seconds(resp.TTL), nil
}

// Delete implements [lease.Store].
func (s *Store) Delete(ctx context.Context, old lease.Entry) error {
	if !known(old.Revision) {
		return fmt.Errorf("etcdv3: delete %s: %w", old.Key, lease.ErrConflict)
	}
	key := s.subnets + old.Key
	var resp *clientv3.TxnResponse
	err := s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", int64(old.Revision))).
			Then(clientv3.OpDelete(key, clientv3.WithPrevKV())).Commit()
		return err
	})
	if err == nil && !resp.Succeeded {
		err = lease.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("etcdv3: delete %s: %w", old.Key, err)
	}
	for _, kv := range resp.Responses[0].GetResponseDeleteRange().GetPrevKvs() {
		s.release(kv.Lease, maybe)
	}
	return nil
}

// A write is an entry to be written.
type write struct {
	key   string
	value []byte
	keep  bool // the value that is there, instead of that one
	ttl   time.Duration
	cmp   clientv3.Cmp // only if
	fresh bool         // there is none before
}

// replace writes in the place of old.
func (s *Store) replace(ctx context.Context, old lease.Entry, w write) (lease.Entry, error) {
	if !known(old.Revision) {
		return lease.Entry{}, lease.ErrConflict
	}
	w.key = old.Key
	w.cmp = clientv3.Compare(clientv3.ModRevision(s.subnets+old.Key), "=", int64(old.Revision))
	e, err := s.write(ctx, w)
	if w.keep {
		e.Value = old.Value
	}
	return e, err
}

// known reports whether a revision is one that a key may have. In a comparison 0 is
// that of a key that does not exist.
func known(revision uint64) bool { return revision > 0 && revision <= math.MaxInt64 }

// write grants an etcd lease and writes the key. ErrExists or ErrConflict say that the
// condition does not hold.
func (s *Store) write(ctx context.Context, w write) (lease.Entry, error) {
	if w.ttl < 0 {
		return lease.Entry{}, fmt.Errorf("time to live %v (want 0 or more)", w.ttl)
	}
	e := lease.Entry{Key: w.key, Value: w.value, Permanent: w.ttl == 0}
	if w.ttl > 0 {
		var err error
		if e.Handle, e.TTL, err = s.grant(ctx, w.ttl); err != nil {
			return lease.Entry{}, err
		}
	}
	opts := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(e.Handle)), clientv3.WithPrevKV()}
	if w.keep {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	var resp *clientv3.TxnResponse
	err := s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = s.client.Txn(ctx).If(w.cmp).Then(clientv3.OpPut(s.subnets+w.key, string(w.value), opts...)).Commit()
		return err
	})
	switch {
	case err != nil:
		if definite(err) {
			s.release(e.Handle, unused)
		} else if w.fresh { // an entry that was there before is worth more than a tidy server
			s.release(e.Handle, maybe)
		}
		return lease.Entry{}, err
	case !resp.Succeeded:
		s.release(e.Handle, unused)
		if w.fresh {
			return lease.Entry{}, lease.ErrExists
		}
		return lease.Entry{}, lease.ErrConflict
	}
	e.Revision = uint64(resp.Header.Revision)
	e.Created = e.Revision
	if prev := resp.Responses[0].GetResponsePut().GetPrevKv(); prev != nil {
		e.Created = uint64(prev.CreateRevision)
		s.release(prev.Lease, maybe)
	}
	return e, nil
}

// grant makes an etcd lease.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error) {
	id = 1 + rand.Int64N(math.MaxInt64)
	req := &pb.LeaseGrantRequest{ID: id, TTL: int64((ttl + time.Second - 1) / time.Second)}
	var resp *pb.LeaseGrantResponse
	err = s.do(ctx, s.timeout, func(ctx context.Context) (err error) {
		resp, err = s.leases.LeaseGrant(ctx, req)
		return err
	})
	if err != nil {
		if !definite(err) {
			s.release(id, asked)
		}
		return 0, 0, err
	}
	return id, seconds(resp.TTL), nil
}

// definite reports whether a request was certainly not carried out: it was not sent,
// or etcd looked at it and refused.
func definite(err error) bool {
	switch codeOf(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.FailedPrecondition, codes.NotFound, codes.OutOfRange, codes.ResourceExhausted, codes.Unauthenticated:
		return true
	}
	return errors.As(err, new(*unsent))
}

// How sure one is of an etcd lease that is not needed.
type surety int

const (
	unused surety = iota // no key hangs on it
	maybe                // there may be a key, and then it must stay
	asked                // it may not be there yet: the server has not confirmed it
)

// release revokes an etcd lease. It returns at once, and nobody learns how it ended:
// what stays expires.
func (s *Store) release(id int64, sure surety) {
	if id == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return
	}
	s.tidy.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, cleanupTimeout)
		defer cancel()
		err := s.revoke(ctx, id, sure)
		// A request that was cancelled may reach the server, or its log, after this one.
		for pause := cleanupTimeout / 16; sure == asked && errors.Is(err, rpctypes.ErrLeaseNotFound) && ctx.Err() == nil; pause *= 2 {
			select {
			case <-time.After(pause):
				err = s.revoke(ctx, id, sure)
			case <-ctx.Done():
			}
		}
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			s.log.Debug("etcdv3: an etcd lease that is not needed stays until it expires", "err", err)
		}
	})
}

// revoke does what release is for.
func (s *Store) revoke(ctx context.Context, id int64, sure surety) error {
	if sure == maybe {
		var resp *pb.LeaseTimeToLiveResponse
		err := s.request(ctx, cleanupTimeout, func(ctx context.Context) (err error) {
			resp, err = s.leases.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
			return err
		})
		if err != nil || resp.TTL <= 0 || len(resp.Keys) > 0 {
			return err
		}
	}
	return s.request(ctx, cleanupTimeout, func(ctx context.Context) error {
		_, err := s.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
		return err
	})
}

// seconds is a number of seconds as etcd counts a time to live.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
