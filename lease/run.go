package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// quiet is how long after a report the next one waits, so that a thousand hosts that
// come at once are a few reports, not a thousand.
const quiet = 50 * time.Millisecond

// A View is what Run reports: this host's lease and the complete set of its peers.
type View struct {
	// Own is this host's lease.
	Own Lease
	// Peers are all other hosts' leases in order, and must not be changed.
	Peers []Lease
}

// Run keeps the lease that Acquire has taken, and calls report with every change of it
// or of the peers, always with the complete sets; first with those that Acquire has
// seen. It runs until ctx ends and then returns ctx's error, or until another host
// has our subnet: then the error wraps ErrLost and says whose it is.
//
// Nothing else ends it. While the store can't be reached the peers stay as they are;
// a lease that was deleted or has run out is taken again; entries that can't be read
// are logged once and skipped. report is called by Run's goroutine, one call at a
// time; what happens meanwhile is in the next call.
func (r *Registry) Run(ctx context.Context, report func(View)) error {
	r.mu.Lock()
	if r.running || !r.held {
		defer r.mu.Unlock()
		if r.running {
			return ErrRunning
		}
		return ErrNotHeld
	}
	r.running = true
	k := &keeper{Registry: r, report: report, roster: newRoster(max(r.cfg.Linger, 0), r.cfg.TTL),
		retry: backoff{random: r.cfg.Rand}, dispute: backoff{random: r.cfg.Rand}}
	first, own := r.first, r.entry
	k.renewEarly = r.cfg.Rand(uint64(r.cfg.RenewMargin/10) + 1)
	r.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	feed := make(chan news)
	f := &follower{store: r.store, resync: r.cfg.Resync, random: r.cfg.Rand, out: feed}
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx, &first.Revision) })
	defer func() {
		cancel()
		wg.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running = false
	}()
	k.take(first, time.Now())
	k.complain(k.roster.put(own)) // the listing may be older than our own write
	return k.loop(ctx, feed)
}

// A keeper is one Run: the roster, and what is due when. Only its goroutine uses it.
type keeper struct {
	*Registry
	report func(View)
	roster *roster

	retry      backoff   // of our own writes
	dispute    backoff   // of rewriting what somebody else has written
	disputed   time.Time // when that was last
	notBefore  time.Time // the next of them, after an error
	renewEarly uint64    // nanoseconds by which this host renews before the margin, at random
	failing    bool      // the store's last answer was an error, and that is logged
	expired    bool      // it is logged that our lease has run out
	newConfig  string    // a changed configuration that is logged

	reported     View
	lastReport   time.Time
	reportedAt   uint64 // the roster's changes that are in it
	everReported bool
}

// loop handles one thing after the other.
func (k *keeper) loop(ctx context.Context, feed <-chan news) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, err := k.tend(ctx, time.Now())
		if err != nil {
			return err
		}
		timer.Reset(time.Until(earliest(next, k.tell(time.Now()))))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case n := <-feed:
			k.hear(n, time.Now())
		case <-k.wake:
			k.notBefore = time.Time{}
		case <-timer.C:
		}
	}
}

// hear takes what the follower reports.
func (k *keeper) hear(n news, now time.Time) {
	if n.err != nil {
		k.failed()
		if !k.failing {
			k.failing = true
			k.log.Warn("the lease store does not answer; leases and peers stay as they are", "err", n.err)
		}
		return
	}
	k.contact()
	if k.failing {
		k.failing = false
		k.log.Info("the lease store answers again")
	}
	if n.batch != nil {
		k.complain(k.roster.apply(*n.batch, now))
		return
	}
	k.count(func(s *Stats) { s.Relists++ })
	k.take(*n.listing, now)
	k.mu.Lock()
	old := k.rawConfig
	k.mu.Unlock()
	if n.config != "" && n.config != old && n.config != k.newConfig {
		k.newConfig = n.config
		k.log.Warn("the network's configuration has changed; it is used after a restart", "config", n.config)
	}
}

// take puts a listing in the place of what was known.
func (k *keeper) take(l Listing, now time.Time) {
	if k.roster.replaced(l) {
		k.log.Warn("the lease store was wiped or restored from a backup; peers that it has lost are kept until their leases would have ended", "entries", len(l.Entries))
		k.mu.Lock()
		k.entry.Revision = 0 // of another history
		k.mu.Unlock()
	}
	k.complain(k.roster.reset(l, k.entryNow().Key, now))
}

// complain logs entries that can't be read.
func (k *keeper) complain(bad []unreadable) {
	for _, u := range bad {
		k.count(func(s *Stats) { s.Unreadable++ })
		k.log.Warn("skipping an entry of the lease store that can't be read (remove it, or mend its value)", "key", u.key, "err", u.err)
	}
}

// entryNow returns our entry as we know it.
func (k *keeper) entryNow() Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.entry
}

// tell reports if there is something new, and returns when to come again for that.
func (k *keeper) tell(now time.Time) (again time.Time) {
	again = k.roster.sweep(now)
	own, _ := k.Lease()
	if k.everReported && k.roster.changes == k.reportedAt && sameLease(own, k.reported.Own) {
		return again
	}
	if due := k.lastReport.Add(quiet); k.everReported && now.Before(due) {
		return earliest(again, due)
	}
	k.reportedAt = k.roster.changes
	v := View{Own: own, Peers: k.roster.peers(own)}
	if k.everReported && samePeers(v.Peers, k.reported.Peers) && sameLease(own, k.reported.Own) {
		return again
	}
	if k.everReported && len(v.Peers) != len(k.reported.Peers) {
		k.log.Info("peers have changed", "before", len(k.reported.Peers), "now", len(v.Peers))
	}
	k.count(func(s *Stats) { s.Peers = len(v.Peers) })
	k.reported, k.everReported = v, true
	k.report(v)
	k.lastReport = time.Now()
	return again
}

// tend does what our own lease needs, and returns when it needs something next.
func (k *keeper) tend(ctx context.Context, now time.Time) (next time.Time, err error) {
	for steps := 0; steps < 10; steps++ {
		k.mu.Lock()
		own, entry, want, expires := k.own, k.entry, k.want, k.expires
		k.mu.Unlock()
		if now.Before(k.notBefore) {
			return k.notBefore, nil
		}
		var doing string
		var done bool
		m, live := k.roster.live(entry.Key)
		switch {
		case !live:
			doing = "take the lease again"
			done, err = k.retake(ctx, own, want)
		case m.entry.Revision > entry.Revision:
			if err := k.adopt(own, m); err != nil {
				return next, err
			}
			done = true
		case !own.Attrs.Equal(want):
			doing = "change the lease"
			done, err = k.rewrite(ctx, own, entry, want)
		case entry.Permanent:
			return time.Time{}, nil
		case now.Before(k.renewAt(expires)):
			return k.renewAt(expires), nil
		default:
			doing = "renew the lease"
			done, err = k.renew(ctx, own, entry, want)
		}
		if ctx.Err() != nil {
			return next, context.Cause(ctx)
		}
		if errors.Is(err, ErrLost) {
			return next, err
		}
		if err != nil {
			k.postpone(doing, own, expires, err)
			return k.notBefore, nil
		}
		if done {
			k.settled(doing, own)
		}
		now = time.Now()
	}
	// Somebody changes the entry as fast as we do. Not at that pace.
	k.notBefore = now.Add(k.retry.next())
	return k.notBefore, nil
}

// renewAt returns when a lease that ends at expires is to be renewed.
func (k *keeper) renewAt(expires time.Time) time.Time {
	return expires.Add(-k.cfg.RenewMargin - time.Duration(k.renewEarly))
}

// postpone puts the next write off after an error.
func (k *keeper) postpone(doing string, own Lease, expires time.Time, err error) {
	pause := k.retry.next()
	k.notBefore = time.Now().Add(pause)
	k.log.Warn("can't "+doing+", trying again", "lease", own.Key, "in", pause.Round(time.Millisecond), "err", err)
	if !k.expired && !expires.IsZero() && time.Now().After(expires) {
		k.expired = true
		k.log.Error("the lease has run out; traffic goes on until another host takes the subnet", "lease", own.Key)
	}
}

// settled notes that a write has succeeded.
func (k *keeper) settled(doing string, own Lease) {
	k.retry.reset()
	k.expired = false
	if doing != "" {
		k.log.Debug("done: "+doing, "lease", own.Key)
	}
}

// retake makes our entry again after it was removed, or its time was up, unless another
// host has some of the subnet by now.
func (k *keeper) retake(ctx context.Context, own Lease, want Attrs) (bool, error) {
	if other, taken := k.roster.rival(own.Key, own.Attrs); taken {
		return false, lost(own, other)
	}
	value, err := json.Marshal(want)
	if err != nil {
		return false, fmt.Errorf("lease: attributes: %w", err)
	}
	asked := time.Now()
	e, err := k.store.Create(ctx, own.Key.String(), value, k.ttlOf(k.entryNow()))
	if errors.Is(err, ErrExists) {
		return false, k.relist(ctx)
	}
	if err != nil {
		k.failed()
		return false, err
	}
	k.contact()
	k.count(func(s *Stats) { s.Retaken++ })
	k.log.Warn("the lease was gone from the store (deleted, expired, or the store was wiped); it has been taken again", "lease", own.Key)
	k.hold(e, own.Key, want, asked)
	k.complain(k.roster.put(e))
	return true, nil
}

// adopt looks at an entry of ours that somebody else has written.
func (k *keeper) adopt(own Lease, m *member) error {
	l, err := parseEntry(m.entry)
	if err == nil && !l.Attrs.sameHost(own.Attrs) {
		return lost(own, l)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	switch e := m.entry; {
	case e.Permanent:
		k.expires = time.Time{}
	case e.TTL > 0:
		k.expires = now.Add(e.TTL)
	case e.Handle != k.entry.Handle || k.entry.Permanent:
		k.expires = now // of unknown life: to be renewed at once
	}
	if m.entry.Permanent != k.entry.Permanent {
		k.log.Info("somebody has changed the lease", "lease", own.Key, "reserved", m.entry.Permanent)
	}
	k.entry.Permanent, k.own.Reserved = m.entry.Permanent, m.entry.Permanent
	k.entry.Revision, k.own.Revision, k.entry.Handle = m.entry.Revision, m.entry.Revision, m.entry.Handle
	k.own.Attrs = l.Attrs // none if it can't be read: equal to nothing, so written anew
	if err != nil || !l.Attrs.Equal(k.want) {
		k.log.Warn("somebody has overwritten what our lease says (another host with this public address?), writing it anew", "lease", own.Key, "err", err)
		if now.Sub(k.disputed) > time.Minute {
			k.dispute.reset()
		}
		k.disputed = now
		k.notBefore = now.Add(k.dispute.next())
	}
	return nil
}

// rewrite changes what our lease says.
func (k *keeper) rewrite(ctx context.Context, own Lease, entry Entry, want Attrs) (bool, error) {
	value, err := json.Marshal(want)
	if err != nil {
		return false, fmt.Errorf("lease: attributes: %w", err)
	}
	asked := time.Now()
	e, err := k.store.Update(ctx, entry, value, k.ttlOf(entry))
	return k.wrote(ctx, own, e, want, asked, err)
}

// renew makes our lease live on.
func (k *keeper) renew(ctx context.Context, own Lease, entry Entry, want Attrs) (bool, error) {
	asked := time.Now()
	e, err := k.store.Renew(ctx, entry, k.ttlOf(entry))
	done, err := k.wrote(ctx, own, e, want, asked, err)
	switch {
	case err != nil:
		k.count(func(s *Stats) { s.RenewErrors++ })
	case done:
		k.count(func(s *Stats) { s.Renewals++ })
	}
	return done, err
}

// wrote takes the outcome of a write to our entry.
func (k *keeper) wrote(ctx context.Context, own Lease, e Entry, attrs Attrs, asked time.Time, err error) (bool, error) {
	if errors.Is(err, ErrConflict) {
		return false, k.relist(ctx)
	}
	if err != nil {
		k.failed()
		return false, err
	}
	k.contact()
	k.hold(e, own.Key, attrs, asked)
	k.complain(k.roster.put(e))
	return true, nil
}

// relist reads all leases after a conflict, so that the next step knows what happened.
func (k *keeper) relist(ctx context.Context) error {
	k.count(func(s *Stats) { s.Conflicts++; s.Relists++ })
	l, err := k.store.List(ctx)
	if err != nil {
		k.failed()
		return err
	}
	k.take(l, time.Now())
	return nil
}

// lost returns the error of a subnet that is another's.
func lost(own, other Lease) error {
	return fmt.Errorf("%w: %s is leased by %s as %s (join again to get another subnet, and restart the containers that have addresses in this one)",
		ErrLost, own.Key, other.Attrs.public(), other.Key)
}

// sameLease reports whether two leases say the same, revisions aside.
func sameLease(a, b Lease) bool { return samePeers([]Lease{a}, []Lease{b}) }

// earliest returns the first of two times, of which zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
