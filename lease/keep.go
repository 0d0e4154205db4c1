package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// tend does what our own lease needs, and returns when it needs something next.
func (k *keeper) tend(ctx context.Context, now time.Time) (next time.Time, err error) {
	for steps := 0; steps < 10; steps++ {
		k.mu.Lock()
		own, entry, want, expires := k.own, k.entry, k.want, k.expires
		k.mu.Unlock()
		switch {
		case k.waiting:
			return time.Time{}, nil
		case now.Before(k.notBefore):
			return k.notBefore, nil
		}
		if err := k.yieldToOlder(ctx, own, entry); err != nil {
			return next, err
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
		case k.overwritten || !own.Attrs.Equal(want):
			doing = "change the lease"
			done, err = k.rewrite(ctx, own, entry, want)
		case entry.Permanent:
			return time.Time{}, nil
		case now.Before(k.renewAt(entry, expires)):
			return k.renewAt(entry, expires), nil
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

// renewAt returns when a lease that ends at expires is to be renewed. The store may
// have granted less than was asked for, and a lease is not renewed all the time.
func (k *keeper) renewAt(entry Entry, expires time.Time) time.Time {
	margin := k.cfg.RenewMargin + time.Duration(k.renewEarly)
	if entry.TTL > 0 {
		margin = min(margin, max(entry.TTL/2, entry.TTL-(k.cfg.TTL-k.cfg.RenewMargin)))
	}
	at := expires.Add(-margin)
	if soonest := k.renewed.Add(min(time.Second, entry.TTL/2)); at.Before(soonest) {
		return soonest
	}
	return at
}

// postpone puts the next write off after an error.
func (k *keeper) postpone(doing string, own Lease, expires time.Time, err error) {
	pause := k.retry.next()
	k.notBefore = time.Now().Add(pause)
	if why := doing + err.Error(); why != k.lastWhy || time.Since(k.lastLog) > repeatLog {
		k.lastWhy, k.lastLog = why, time.Now()
		k.log.Warn("can't "+doing+", trying again until it works", "lease", own.Key, "err", err)
	}
	if !k.expired && !expires.IsZero() && time.Now().After(expires) {
		k.expired = true
		k.log.Error("the lease has run out; traffic goes on until another host takes the subnet", "lease", own.Key)
	}
}

// settled notes that a write has succeeded.
func (k *keeper) settled(doing string, own Lease) {
	k.retry.reset()
	k.expired = false
	k.lastWhy = ""
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
	// A reservation that an operator has removed is none any more. One that was lost
	// with everything else is.
	ttl := k.cfg.TTL
	if k.lostHistory {
		ttl = k.ttlOf(k.entryNow())
	}
	e, err := k.store.Create(ctx, own.Key.String(), value, ttl)
	if errors.Is(err, ErrExists) {
		k.relist()
		return false, nil
	}
	if err != nil {
		k.failed()
		return false, err
	}
	k.contact()
	k.count(func(s *Stats) { s.Retaken++ })
	k.overwritten, k.lostHistory = false, false
	k.log.Warn("the lease was gone from the store (deleted, expired, or the store was wiped); it has been taken again", "lease", own.Key)
	k.hold(e, own.Key, want, asked)
	k.complain(k.roster.put(e))
	return true, nil
}

// adopt looks at an entry of ours that somebody else has written.
func (k *keeper) adopt(own Lease, m *member) error {
	l, err := parseEntry(m.entry)
	if err == nil && !k.ours(l.Attrs, m.entry.Created) {
		return lost(own, l)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	permanent := m.entry.Permanent
	if err != nil { // nobody makes a reservation of junk
		permanent = k.entry.Permanent
	}
	switch e := m.entry; {
	case permanent:
		k.expires = time.Time{}
	case e.TTL > 0:
		k.expires = now.Add(e.TTL)
	case e.Handle != k.entry.Handle || k.entry.Permanent || e.Permanent:
		k.expires = now // of unknown life: to be renewed at once
	}
	if permanent != k.entry.Permanent {
		k.log.Info("somebody has changed the lease", "lease", own.Key, "reserved", permanent)
	}
	k.entry.Permanent, k.own.Reserved = permanent, permanent
	k.entry.Revision, k.own.Revision, k.entry.Handle = m.entry.Revision, m.entry.Revision, m.entry.Handle
	k.entry.Created = m.entry.Created
	if err != nil || !l.Attrs.Equal(k.want) {
		k.log.Warn("somebody has overwritten what our lease says (another host with this public address?), writing it anew", "lease", own.Key, "err", err)
		if now.Sub(k.disputed) > time.Minute {
			k.dispute.reset()
		}
		k.disputed = now
		k.overwritten = true
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
	done, err := k.wrote(own, e, want, asked, err)
	k.overwritten = k.overwritten && !done
	return done, err
}

// renew makes our lease live on.
func (k *keeper) renew(ctx context.Context, own Lease, entry Entry, want Attrs) (bool, error) {
	asked := time.Now()
	e, err := k.store.Renew(ctx, entry, k.ttlOf(entry))
	done, err := k.wrote(own, e, want, asked, err)
	switch {
	case err != nil:
		k.count(func(s *Stats) { s.RenewErrors++ })
	case done:
		k.renewed = asked
		k.count(func(s *Stats) { s.Renewals++ })
	}
	return done, err
}

// wrote takes the outcome of a write to our entry.
func (k *keeper) wrote(own Lease, e Entry, attrs Attrs, asked time.Time, err error) (bool, error) {
	if errors.Is(err, ErrConflict) {
		k.relist()
		return false, nil
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

// relist has all leases listed after a conflict, so that the next step knows what
// happened; which it does not take at once, in case that the store always says so.
func (k *keeper) relist() {
	k.contact()
	k.count(func(s *Stats) { s.Conflicts++ })
	k.waiting = true
	k.notBefore = time.Now().Add(k.retry.next())
	k.nudge()
}

// yieldToOlder gives our entry back if another host has made one before that overlaps
// it: neither of the two could know when they were made.
func (k *keeper) yieldToOlder(ctx context.Context, own Lease, entry Entry) error {
	if k.checkedAt == k.roster.changes || entry.Created == 0 {
		return nil
	}
	other, found := k.roster.older(own, entry.Created)
	if !found {
		k.checkedAt = k.roster.changes
		return nil
	}
	if err := k.store.Delete(ctx, entry); err != nil && !errors.Is(err, ErrConflict) {
		k.failed() // it ends by itself
	}
	return lost(own, other)
}

// lost returns the error of a subnet that is another's.
func lost(own, other Lease) error {
	return fmt.Errorf("%w: %s is leased by %s as %s (join again to get another subnet, and restart the containers that have addresses in this one)",
		ErrLost, own.Key, other.Attrs.public(), other.Key)
}
