// Package keep runs a backend's rounds: each round compares what is with what shall
// be, and puts right what differs. A round comes when somebody wakes the loop, from
// time to time, and again with growing pauses while it fails or has to put things
// right; whoever removes things in a loop costs a round a second.
package keep

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

const (
	// restPause is between two rounds, so that a burst of wakes is one.
	restPause = 10 * time.Millisecond
	// breathe is how many times as long as a round the pause after it is at least,
	// so that rounds that others cause all the time take a sixth of a processor.
	breathe = 5
	// calm is how long nothing must have happened for the pause to be short again.
	calm = 10 * time.Second
)

// A Config says what to keep, and how often.
type Config struct {
	// Round does one round, and says in a few words each what it had to put
	// right of what had been in place before; what is new is not among it. It
	// must end soon after ctx. Rounds never overlap.
	Round func(ctx context.Context) (done []string, err error)
	// Every is how long after a round the next one comes by itself; 0 means
	// that one only comes when it is woken or has failed.
	Every time.Duration
	// MinPause and MaxPause are the pauses after the first round that failed
	// or put something right, and after many; 0 means 50 ms and 1 s.
	MinPause, MaxPause time.Duration
	// MaxRetry is how long at most until a round that failed is repeated though
	// nobody wakes the loop: it begins at MinPause and doubles while the error
	// is the same. 0 means MaxPause.
	MaxRetry time.Duration
	// Log gets what was put right and what can't be, each reason at most once a
	// minute; never nil.
	Log *slog.Logger
}

// A Loop does rounds in a goroutine of its own, and in its callers'. Its methods may
// be called from any goroutine.
type Loop struct {
	cfg  Config
	kick chan struct{} // one is enough
	turn chan struct{} // who has sent into it does a round
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	err  error                // of the last round
	told map[string]time.Time // what has been logged, and when
}

// Start starts a loop. It does no round by itself before it is woken, or Every has
// passed.
func Start(cfg Config) *Loop {
	if cfg.MinPause == 0 {
		cfg.MinPause = 50 * time.Millisecond
	}
	if cfg.MaxPause == 0 {
		cfg.MaxPause = max(time.Second, cfg.MinPause)
	}
	if cfg.MaxRetry == 0 {
		cfg.MaxRetry = cfg.MaxPause
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &Loop{cfg: cfg, kick: make(chan struct{}, 1), turn: make(chan struct{}, 1), stop: stop, told: map[string]time.Time{}}
	l.wg.Go(func() { l.run(ctx) })
	return l
}

// Wake has a round come soon. It does not wait.
func (l *Loop) Wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Now does a round in the calling goroutine, after the one under way, if any. It
// returns the round's error, or ctx's if that ended while it waited; after an error
// of the round the loop tries again by itself. change is called first, with no round
// under way, to say what shall be from now on; it may be nil.
func (l *Loop) Now(ctx context.Context, change func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if change != nil {
		change()
	}
	done, err := l.cfg.Round(ctx)
	l.tell(done)
	if err == nil || ctx.Err() == nil { // else it is the caller's end, not a failure
		l.set(err)
	}
	if err != nil {
		l.news(err.Error()) // the caller is told, so the log need not be
		l.Wake()
	}
	return err
}

// Err returns the last round's error, nil before the first.
func (l *Loop) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close ends the loop and waits for the round under way. Now must not be called any
// more.
func (l *Loop) Close() {
	l.stop()
	l.wg.Wait()
}

func (l *Loop) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// tell logs what a round has put right.
func (l *Loop) tell(done []string) {
	if what := some(done); len(done) > 0 && l.news(strings.Join(what, "\n")) {
		l.cfg.Log.Warn("something was changed or removed, and is put right", "what", what)
	}
}

// news reports whether a text has not been logged within the last minute: what comes
// and goes all the time is said now and then.
func (l *Loop) news(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for old, at := range l.told {
		if now.Sub(at) >= time.Minute {
			delete(l.told, old)
		}
	}
	if _, ok := l.told[text]; ok {
		return false
	}
	l.told[text] = now
	return true
}

// run is the goroutine.
func (l *Loop) run(ctx context.Context) {
	pace := pacing{min: l.cfg.MinPause, max: l.cfg.MaxPause}
	said := ""
	var retry time.Duration // 0: the last round has not failed
	var ended time.Time     // the last round
	for {
		var due <-chan time.Time
		switch {
		case retry > 0:
			due = time.After(retry - time.Since(ended)) // the pause is a part of it
		case l.cfg.Every > 0:
			due = time.After(l.cfg.Every)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		case <-due:
		}
		began := time.Now()
		done, err := l.background(ctx)
		ended = time.Now()
		if ctx.Err() != nil {
			return
		}
		l.tell(done)
		switch {
		case err == nil:
			if said != "" && l.news("right: "+said) {
				l.cfg.Log.Info("it is put right at last", "was", said)
			}
			said, retry = "", 0
		case err.Error() != said:
			said, retry = err.Error(), l.cfg.MinPause
			if l.news(said) {
				l.cfg.Log.Error("can't be put right, trying again", "err", err)
			}
		default:
			retry = min(2*retry, l.cfg.MaxRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(pace.after(ended, err != nil || len(done) > 0), min(breathe*ended.Sub(began), l.cfg.MaxPause))):
		}
	}
}

// background does a round in turn.
func (l *Loop) background(ctx context.Context) (done []string, err error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done, err = l.cfg.Round(ctx)
	if ctx.Err() == nil {
		l.set(err)
	}
	return done, err
}

// some is the first few of many: a thousand peers' routes are one line of the log.
func some(what []string) []string {
	const most = 8
	if len(what) <= most {
		return what
	}
	return append(what[:most:most], "and more")
}

// pacing is how long the loop pauses.
type pacing struct {
	min, max time.Duration
	pause    time.Duration
	last     time.Time // when something had to be done
}

// after returns the pause after a round that ended now. Long ones are spread, so that
// many hosts do not ask one server at once.
func (p *pacing) after(now time.Time, busy bool) time.Duration {
	if now.Sub(p.last) > calm+p.pause {
		p.pause = 0
	}
	if busy {
		p.last, p.pause = now, min(max(2*p.pause, p.min), p.max)
	}
	if p.pause <= time.Second {
		return max(p.pause, restPause)
	}
	return p.pause - rand.N(p.pause/4)
}
