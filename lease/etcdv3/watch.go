package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit/lease"
)

// A watch is a stream, which ends with its connection. clientv3's own Watch would then
// make another one out of sight, for ever, and ask an empty server for what comes
// after a revision which that one will have in some weeks. So streams are made here:
//
//  1. Open a stream and ask for what comes after the cursor.
//  2. When the server has agreed, check with a consistent read that the history up to
//     the cursor is the one that we know (mark). The stream hangs on one process, so
//     what is true now stays true as long as the stream lives.
//  3. Report events. A response holds all events of a revision, but it may be one of
//     several that the server owes us, and its header tells the server's revision:
//     the cursor is that of the last event.
//  4. Every ten seconds ask for a sign of life. No answer within ten more: the end.
//  5. When the stream ends, begin again, unless that leads to nothing for a while.

// watchTimes are how long a watch waits for what.
type watchTimes struct {
	progress time.Duration // between two requests for a sign of life, and for each answer
	open     time.Duration // for a stream to be there and checked
	resume   time.Duration // from the end of a stream to the beginning of the next
	useful   time.Duration // a stream that lived as long as that was one
}

// defaultWatchTimes lead to the end of a watch within 10+10+8 seconds.
func defaultWatchTimes() watchTimes {
	return watchTimes{progress: 10 * time.Second, open: 5 * time.Second, resume: 3 * time.Second, useful: 5 * time.Second}
}

// A watch is one call of Watch.
type watch struct {
	s      *Store
	fn     func(lease.Batch)
	cursor uint64 // nothing up to it is left to be reported
	mark   mark   // of the history up to the cursor

	reported bool // a stream has brought something
	progress uint64
	answers  bool // this etcd answers requests for a sign of life
	refused  bool // the last stream was, for a right that is missing
}

// Watch implements [lease.Store]. It goes on with the same or another server when a
// connection is lost, for a few seconds, and reports a batch without events every ten
// seconds. It returns ErrCompacted where the history up to after can't be recognised,
// which may also be because it was compacted meanwhile.
func (s *Store) Watch(ctx context.Context, after uint64, fn func(lease.Batch)) error {
	ctx, leave, err := s.enter(ctx, false)
	if err != nil {
		return fmt.Errorf("etcdv3: watch: %w", err)
	}
	defer leave()
	w := &watch{s: s, fn: fn, cursor: after, mark: s.marks.get(after)}
	err = w.run(ctx)
	s.marks.set(w.cursor, w.mark)
	if ctx.Err() != nil {
		err = ended(ctx)
	}
	return fmt.Errorf("etcdv3: watch after %d: %w", w.cursor, err)
}

// run makes streams until that leads to nothing.
func (w *watch) run(ctx context.Context) error {
	if w.cursor >= math.MaxInt64 {
		return fmt.Errorf("%w: there is no such revision", lease.ErrCompacted)
	}
	const shortest, longest, most = 50 * time.Millisecond, time.Second, 10
	pause, useless := shortest, 0
	trouble := time.Time{} // since when there was no good stream
	for {
		begin := time.Now()
		w.reported = false
		checked, err := w.follow(ctx)
		if ctx.Err() != nil || !w.passing(err) || !checked && trouble.IsZero() && !errors.Is(err, errAgain) {
			return err
		}
		now := time.Now()
		if w.reported || checked && now.Sub(begin) > w.s.times.useful {
			pause, useless = shortest, 0
		} else {
			useless++
		}
		if checked || trouble.IsZero() {
			trouble = now
		}
		if useless > most || now.Sub(trouble) > w.s.times.resume {
			return err
		}
		if useless == 0 {
			w.s.log.Info("etcdv3: the watch lost its connection", "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, longest)
	}
}

// passing reports whether an error may be gone in a moment.
func (w *watch) passing(err error) bool {
	return !errors.Is(err, lease.ErrCompacted) && !errors.Is(err, lease.ErrDenied) && !errors.Is(err, lease.ErrUnsupported) &&
		!errors.Is(err, errMute) && !errors.Is(err, errClosed)
}

// errMute ends a watch: the server had its time.
var errMute = errors.New("the server gives no sign of life (is it stopped or overloaded?)")

// errAgain ends a stream that is to be made once more.
var errAgain = errors.New("the server ends the watch")

// A received is what came from the stream: a response or its end.
type received struct {
	resp *pb.WatchResponse
	err  error
}

// A flow is one stream.
type flow struct {
	stream   pb.Watch_WatchClient
	in       chan received // closed after an error
	waiting  atomic.Bool   // a response waits to be taken
	endpoint string        // the server
}

// follow makes a stream and reports what comes, until it ends. checked: the server had
// agreed and was the right one.
func (w *watch) follow(ctx context.Context) (checked bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &flow{in: make(chan received)}
	defer func() {
		cancel(nil)
		for range f.in { // until the receiver has ended
		}
	}()
	token := w.s.session.token.Load()
	late := time.AfterFunc(w.s.times.open, func() {
		w.s.forget(token)
		cancel(errLate)
	})
	defer late.Stop()
	if err := w.open(ctx, f); err != nil {
		return false, err
	}
	if !late.Stop() {
		return false, fmt.Errorf("%s: %w", f.at(w.s), errLate)
	}
	if err := w.check(ctx); err != nil {
		return false, err
	}
	w.fn(lease.Batch{Revision: w.cursor}) // the server is there
	return true, w.report(ctx, f)
}

// open makes a stream and waits until the server agrees to report.
func (w *watch) open(ctx context.Context, f *flow) error {
	s := w.s
	var stream pb.Watch_WatchClient
	err := s.request(ctx, s.times.open, func(limited context.Context) error {
		// The stream outlives the request: it must not end with its context.
		c := clientv3.WithRequireLeader(context.WithValue(ctx, attemptKey{}, limited.Value(attemptKey{})))
		var err error
		stream, err = pb.NewWatchClient(s.client.ActiveConnection()).Watch(c, grpc.MaxCallRecvMsgSize(math.MaxInt32))
		return err
	})
	if err != nil {
		close(f.in)
		return err
	}
	f.stream = stream
	go f.receive()
	key := []byte(s.subnets)
	// Without fragments, which part what happened at one revision.
	create := &pb.WatchCreateRequest{Key: key, RangeEnd: []byte(clientv3.GetPrefixRangeEnd(s.subnets)), StartRevision: int64(w.cursor) + 1}
	// An error of Send says nothing; what comes from Recv then says why.
	_ = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	r := <-f.in
	if p, ok := peer.FromContext(stream.Context()); ok && p.Addr != nil { // known once something came
		f.endpoint = p.Addr.String()
	}
	switch {
	case r.err != nil:
		return w.broken(ctx, f, r.err)
	case r.resp.Canceled:
		return w.canceled(ctx, f, r.resp)
	case !r.resp.Created:
		return fmt.Errorf("%s: the server begins with something else than its consent", f.at(s))
	}
	w.refused = false
	return nil
}

// receive takes what comes. It has no limit but the stream's context.
func (f *flow) receive() {
	defer close(f.in)
	for {
		resp, err := f.stream.Recv()
		f.waiting.Store(true)
		select {
		case f.in <- received{resp, err}:
		case <-f.stream.Context().Done():
			if err == nil {
				err = f.stream.Context().Err()
			}
			f.in <- received{nil, err} // whoever leaves takes all that comes
		}
		f.waiting.Store(false)
		if err != nil {
			return
		}
	}
}

// at names the server for a message.
func (f *flow) at(s *Store) string {
	if f.endpoint == "" {
		return s.everywhere()
	}
	return f.endpoint
}

// broken explains the end of a stream.
func (w *watch) broken(ctx context.Context, f *flow, err error) error {
	return w.s.explain(ctx, ctx, w.s.times.open, f.endpoint, err)
}

// canceled explains why the server does not report, or not any more.
func (w *watch) canceled(ctx context.Context, f *flow, resp *pb.WatchResponse) error {
	if resp.CompactRevision > 0 {
		return fmt.Errorf("%w: etcd keeps it from revision %d on", lease.ErrCompacted, resp.CompactRevision)
	}
	_, reason, ok := strings.Cut(resp.CancelReason, " desc = ") // a status of grpc, as text
	if !ok {
		reason = resp.CancelReason
	}
	err := rpctypes.Error(errors.New(reason))
	if errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: %s", lease.ErrCompacted, reason)
	}
	// Some servers say "permission denied" for a session that is gone too. A request
	// of another kind tells, and gets a new one.
	if err := w.check(ctx); err != nil {
		return err
	}
	var answer rpctypes.EtcdError
	if sessionGone(err, "") && errors.As(err, &answer) {
		if w.refused {
			return w.s.answered(f.at(w.s), answer)
		}
		w.refused = true
		return fmt.Errorf("%s: %w: %s", f.at(w.s), errAgain, reason)
	}
	return fmt.Errorf("%s: the server ends the watch: %s", f.at(w.s), reason)
}

// report reports what comes.
func (w *watch) report(ctx context.Context, f *flow) error {
	tick := time.NewTicker(w.s.times.progress)
	defer tick.Stop()
	asked := false // for a sign of life, and nothing came since
	w.progress = 0
	for {
		select {
		case r := <-f.in:
			asked = false
			if r.err != nil {
				return w.broken(ctx, f, r.err)
			}
			if err := w.take(ctx, f, r.resp); err != nil {
				return err
			}
		case <-tick.C:
			if f.waiting.Load() {
				continue
			}
			if asked {
				if err := w.alive(ctx, f); err != nil {
					return err
				}
			}
			ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
			_ = f.stream.Send(ask) // Recv has the reason of an error
			asked = true
		}
	}
}

// alive looks for another sign of life than the one that the server owes us. Servers
// before 3.4 do not know the request, and later ones up to 3.4.31 and 3.5.13 may not
// answer it before the first event (https://github.com/etcd-io/etcd/issues/17507).
func (w *watch) alive(ctx context.Context, f *flow) error {
	if !w.answers {
		err := w.check(ctx)
		if err == nil {
			w.fn(lease.Batch{Revision: w.cursor})
		}
		if err == nil || !w.passing(err) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", f.at(w.s), errMute)
}

// take reports a response.
func (w *watch) take(ctx context.Context, f *flow, resp *pb.WatchResponse) error {
	switch {
	case resp.Canceled:
		return w.canceled(ctx, f, resp)
	case len(resp.Events) > 0:
		b := w.batch(resp.Events)
		if len(b.Events) > 0 {
			w.reported, w.cursor = true, b.Revision
			w.fn(b)
		}
		return nil
	case resp.Created:
		return nil
	}
	w.answers, w.reported = true, true
	revision := uint64(max(0, resp.Header.GetRevision()))
	if revision < w.cursor { // a server that is behind, or another one behind a proxy
		if err := w.check(ctx); err != nil {
			return err
		}
	}
	// "Nothing is left up to this revision" may arrive before an event of that
	// revision (https://github.com/etcd-io/etcd/issues/15220), so it is believed when
	// ten seconds have passed without one.
	if w.progress > w.cursor {
		w.cursor = w.progress
	}
	w.progress = revision
	w.fn(lease.Batch{Revision: w.cursor})
	return nil
}

// batch makes of events what the caller is told.
func (w *watch) batch(events []*mvccpb.Event) lease.Batch {
	b := lease.Batch{Revision: w.cursor}
	for _, ev := range events {
		revision := uint64(ev.Kv.ModRevision)
		if revision <= w.cursor { // told already
			continue
		}
		if revision <= w.progress {
			w.progress = 0 // it came too early
		}
		e := w.s.entry(ev.Kv)
		deleted := ev.Type == mvccpb.DELETE
		if deleted {
			e = lease.Entry{Key: e.Key, Revision: e.Revision}
		} else {
			w.mark.see(ev.Kv)
		}
		b.Events = append(b.Events, lease.Event{Entry: e, Deleted: deleted})
		b.Revision = revision
	}
	return b
}

// check reports ErrCompacted unless the store is the one that the cursor is from.
func (w *watch) check(ctx context.Context) error {
	if w.mark.kv == nil {
		_, err := w.read(ctx, w.s.config, clientv3.WithCountOnly())
		return err
	}
	key := string(w.mark.kv.Key)
	now, err := w.read(ctx, key)
	if err != nil || w.mark.same(now) {
		return err
	}
	// The entry was changed since, or never was. Its history tells, if there is one.
	then, err := w.read(ctx, key, clientv3.WithRev(w.mark.kv.ModRevision))
	if err == nil && !w.mark.same(then) {
		err = fmt.Errorf("%w: %s is not what it was at revision %d: the store was replaced or restored", lease.ErrCompacted, key, w.mark.kv.ModRevision)
	}
	return err
}

// read reads a key, consistently, and compares what comes with every answer.
func (w *watch) read(ctx context.Context, key string, opts ...clientv3.OpOption) ([]*mvccpb.KeyValue, error) {
	var resp *clientv3.GetResponse
	err := w.s.request(ctx, min(w.s.timeout, w.s.times.open), func(ctx context.Context) (err error) {
		resp, err = w.s.client.Get(ctx, key, opts...)
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		return nil, fmt.Errorf("%w: %w", lease.ErrCompacted, err)
	case err != nil:
		return nil, err
	case resp.Header.Revision < int64(w.cursor):
		return nil, fmt.Errorf("%w: the store is only at revision %d: it was replaced or restored", lease.ErrCompacted, resp.Header.Revision)
	case w.mark.cluster != 0 && resp.Header.ClusterId != w.mark.cluster:
		return nil, fmt.Errorf("%w: it is another cluster", lease.ErrCompacted)
	}
	w.mark.cluster = resp.Header.ClusterId
	return resp.Kvs, nil
}
