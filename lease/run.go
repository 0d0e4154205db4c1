package lease

import (
	"context"
	"errors"
	"sync"
	"time"
)

// quiet is how long after a report the next one waits, so that a thousand hosts that
// come at once are a few reports, not a thousand.
const quiet = 50 * time.Millisecond

// afterOutage is how long peers whose leases are gone linger after an outage of the store
// that was long enough for leases to run out, and for how long that holds: all hosts
// have noticed by then that it is back.
const afterOutage = 2 * time.Minute

// mostBad is how many unreadable entries are logged in repeatLog.
const mostBad = 10

// repeatLog is how often trouble that lasts is logged.
const repeatLog = 10 * time.Minute

// A View is what Run reports: this host's lease and the complete set of its peers.
type View struct {
	// Own is this host's lease.
	Own Lease
	// Peers are all other hosts' leases in order, and must not be changed.
	Peers []Lease
}

// Run keeps the lease that Acquire has taken, and calls report with every change of it
// or of the peers, always with the complete sets; first, at once, with what is known
// from Acquire or from an earlier Run. It runs until ctx ends and then returns its
// cause, or until another host has our subnet: then the error wraps ErrLost and says
// whose it is.
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
	k := &keeper{Registry: r, report: report, roster: r.roster, junk: -1,
		retry: backoff{random: r.cfg.Rand}, dispute: backoff{random: r.cfg.Rand}}
	var bad []unreadable
	if k.roster == nil { // the first Run since Acquire
		k.roster = newRoster(max(r.cfg.Linger, 0), r.cfg.TTL)
		bad = append(k.roster.reset(r.first, r.entry.Key, time.Now()),
			k.roster.put(r.entry)...) // the listing may be older than our own write
		r.roster, r.first = k.roster, Listing{}
	}
	after := k.roster.revision
	k.renewEarly = r.cfg.Rand(uint64(min(r.cfg.RenewMargin/10, (r.cfg.TTL-r.cfg.RenewMargin)/100).Truncate(10*time.Millisecond)) + 1)
	r.mu.Unlock()
	k.complain(bad)

	ctx, cancel := context.WithCancel(ctx)
	feed := make(chan news)
	f := &follower{store: r.store, resync: r.cfg.Resync, random: r.cfg.Rand, out: feed}
	k.nudge = f.nudge
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx, &after) })
	err := k.loop(ctx, feed)
	cancel()
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
	if errors.Is(err, ErrLost) {
		r.held = false
	}
	return err
}

// A keeper is one Run: the roster, and what is due when. Only its goroutine uses it.
type keeper struct {
	*Registry
	report func(View)
	roster *roster
	nudge  func() // asks the follower for a listing

	junk      int       // unreadable entries in the store, when last counted
	badSince  time.Time // unreadable entries are counted for the log from then on
	badLogged int

	waiting     bool      // for that listing
	checkedAt   uint64    // the roster's changes among which no older rival was
	lostHistory bool      // the store was wiped or restored, and our entry with it
	renewed     time.Time // when the lease was last renewed by this Run
	overwritten bool      // somebody else has written our entry
	lastWhy     string    // of the last trouble that was logged
	lastLog     time.Time

	retry      backoff   // of our own writes
	dispute    backoff   // of rewriting what somebody else has written
	disputed   time.Time // when that was last
	notBefore  time.Time // the next of them, after an error
	renewEarly uint64    // nanoseconds by which this host renews before the margin, at random
	expired    bool      // it is logged that our lease has run out
	newConfig  string    // a changed configuration that is logged

	failing       bool      // it is logged that the store does not answer, and not that it does
	failure       string    // the last such error
	failureLogged time.Time // when
	troubleSince  time.Time // the store has not answered the follower; zero if it has
	graceUntil    time.Time // peers linger for longer until then

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
		again := k.tell(time.Now()) // first, since the store may keep us waiting
		next, err := k.tend(ctx, time.Now())
		if err != nil {
			return err
		}
		if k.untold() {
			again = k.tell(time.Now())
		}
		pause := time.Hour // as good as never
		if at := earliest(next, again); !at.IsZero() {
			pause = time.Until(at)
		}
		timer.Reset(pause)
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
		if k.troubleSince.IsZero() {
			k.troubleSince = now
		}
		if why := n.err.Error(); !k.failing && (why != k.failure || now.Sub(k.failureLogged) > repeatLog) {
			k.failing, k.failure, k.failureLogged = true, why, now
			k.log.Warn("the lease store does not answer; leases and peers stay as they are", "err", n.err)
		}
		return
	}
	k.answered(now)
	if n.batch != nil {
		k.complain(k.roster.apply(*n.batch, now))
		return
	}
	k.count(func(s *Stats) { s.Relists++ })
	k.waiting = false
	k.take(*n.listing, now)
	k.compare(n.config)
}

// answered ends an outage, if there was one.
func (k *keeper) answered(now time.Time) {
	k.contact()
	if k.failing {
		k.failing = false
		k.log.Info("the lease store answers again")
	}
	// After an outage in which nobody could renew, many leases have run out, and
	// their owners need some time to come back.
	if !k.troubleSince.IsZero() && now.Sub(k.troubleSince) >= k.cfg.RenewMargin/2 {
		k.graceUntil = now.Add(afterOutage)
	}
	k.troubleSince = time.Time{}
	k.roster.linger = k.cfg.Linger
	if k.cfg.Linger > 0 && now.Before(k.graceUntil) {
		k.roster.linger = max(k.cfg.Linger, afterOutage)
	}
}

// compare tells if the network's configuration is another one now; "" is unknown.
func (k *keeper) compare(config string) {
	k.mu.Lock()
	old := k.rawConfig
	k.mu.Unlock()
	if config == "" || config == old || config == k.newConfig {
		return
	}
	k.newConfig = config
	network, err := ParseNetwork([]byte(config)) // whose String has no secrets
	k.log.Warn("the network's configuration has changed; it is used after a restart", "network", network, "err", err)
}

// take puts a listing in the place of what was known.
func (k *keeper) take(l Listing, now time.Time) {
	if k.roster.replaced(l) {
		k.log.Warn("the lease store was wiped or restored from a backup; peers that it has lost are kept until their leases would have ended", "entries", len(l.Entries))
		k.mu.Lock()
		k.entry.Revision, k.entry.Created = 0, 0 // of another history
		k.mu.Unlock()
		k.lostHistory = true
	}
	key := k.entryNow().Key
	k.complain(k.roster.reset(l, key, now))
	if _, there := k.roster.live(key); there {
		k.lostHistory = false
	}
}

// complain logs entries that can't be read: some of them, since whoever fills a store
// with junk must not fill the log.
func (k *keeper) complain(bad []unreadable) {
	if n := len(k.roster.junk); n != k.junk {
		k.junk = n
		k.count(func(s *Stats) { s.UnreadableNow = n })
	}
	if time.Since(k.badSince) > repeatLog {
		k.badSince, k.badLogged = time.Now(), 0
	}
	for _, u := range bad {
		k.count(func(s *Stats) { s.Unreadable++ })
		switch k.badLogged++; {
		case k.badLogged <= mostBad:
			k.log.Warn("skipping an entry of the lease store that can't be read (remove it, or mend its value)", "key", u.key, "err", u.err)
		case k.badLogged == mostBad+1:
			k.log.Warn("skipping more entries of the lease store that can't be read, without a line for each", "key", u.key)
		}
	}
}

// entryNow returns our entry as we know it.
func (k *keeper) entryNow() Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.entry
}

// untold reports whether something may have changed since the last report.
func (k *keeper) untold() bool {
	own, _ := k.Lease()
	return !k.everReported || k.roster.changes != k.reportedAt || !sameLease(own, k.reported.Own)
}

// tell reports if there is something new, and returns when to come again for that.
func (k *keeper) tell(now time.Time) (again time.Time) {
	again = k.roster.sweep(now)
	if !k.untold() {
		return again
	}
	own, _ := k.Lease()
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

// sameLease reports whether two leases say the same, revisions aside.
func sameLease(a, b Lease) bool { return samePeers([]Lease{a}, []Lease{b}) }

// earliest returns the first of two times, of which zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
