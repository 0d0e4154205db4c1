package keep

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannelkit/flannelkit/internal/testlog"
)

// A script is a Round that a test controls, and remembers when it was called.
type script struct {
	mu   sync.Mutex
	at   []time.Duration
	from time.Time
	done []string
	err  error
	took time.Duration
	busy atomic.Int32
	t    *testing.T
}

func (s *script) round(ctx context.Context) ([]string, error) {
	if s.busy.Add(1) != 1 {
		s.t.Error("rounds overlap")
	}
	defer s.busy.Add(-1)
	s.mu.Lock()
	s.at = append(s.at, time.Since(s.from))
	done, err, took := s.done, s.err, s.took
	s.mu.Unlock()
	if took > 0 {
		select {
		case <-time.After(took):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return done, err
}

func (s *script) set(err error, done ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.done = err, done
}

// times returns when there were rounds since the last call.
func (s *script) times() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.at
	s.at = nil
	return at
}

func start(t *testing.T, cfg Config) (*Loop, *script, *testlog.Messages) {
	s, log := &script{t: t, from: time.Now()}, &testlog.Messages{}
	cfg.Round, cfg.Log = s.round, log.Logger()
	return Start(cfg), s, log
}

func TestNoRoundBeforeItIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		time.Sleep(time.Hour)
		if at := s.times(); len(at) != 0 || l.Err() != nil {
			t.Error(at, l.Err())
		}
		for range 100 {
			l.Wake()
		}
		synctest.Wait()
		time.Sleep(time.Hour)
		if at := s.times(); len(at) < 1 || len(at) > 2 {
			t.Error("a hundred wakes:", at)
		}
		l.Close()
		if log.Count("") != 0 {
			t.Error(log.With(""))
		}
	})
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, _ := start(t, Config{Every: 30 * time.Second})
		defer l.Close()
		time.Sleep(5 * time.Minute)
		at := s.times()
		if len(at) != 9 && len(at) != 10 || at[0] != 30*time.Second {
			t.Error(at)
		}
	})
}

// While it fails, the pauses double up to a second; so they do while it has to put
// things right and somebody wakes it all the time.
func TestPauses(t *testing.T) {
	for name, c := range map[string]struct {
		err      error
		done     []string
		cfg      Config
		min, max time.Duration
	}{
		"error":        {errors.New("no"), nil, Config{}, 50 * time.Millisecond, time.Second},
		"put right":    {nil, []string{"x"}, Config{}, 50 * time.Millisecond, time.Second},
		"both":         {errors.New("no"), []string{"x"}, Config{}, 50 * time.Millisecond, time.Second},
		"longer":       {errors.New("no"), nil, Config{MinPause: time.Second, MaxPause: 16 * time.Second}, time.Second, 16 * time.Second},
		"only minimum": {errors.New("no"), nil, Config{MinPause: 3 * time.Second}, 3 * time.Second, 3 * time.Second},
		"only maximum": {errors.New("no"), nil, Config{MaxPause: 4 * time.Second}, 50 * time.Millisecond, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, s, _ := start(t, c.cfg)
				defer l.Close()
				s.set(c.err, c.done...)
				var wg sync.WaitGroup
				end := time.Now().Add(10 * c.max)
				wg.Go(func() {
					for time.Now().Before(end) {
						l.Wake()
						time.Sleep(time.Millisecond)
					}
				})
				wg.Wait()
				at := s.times()
				want := c.min
				for i := 1; i < len(at); i++ {
					gap := at[i] - at[i-1]
					if least := want - want/4; gap < least && want > time.Second || gap < want && want <= time.Second || gap > want+2*time.Millisecond {
						t.Fatalf("pause %d is %v, want %v: %v", i, gap, want, at)
					}
					want = min(2*want, c.max)
				}
				if len(at) < 10 {
					t.Error("too few rounds:", at)
				}
			})
		})
	}
}

// After ten calm seconds the first pause is short again; a wake is answered at once.
func TestPausesAreShortAgainAfterACalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, _ := start(t, Config{})
		defer l.Close()
		s.set(errors.New("no"))
		l.Wake()
		time.Sleep(20 * time.Second)
		s.set(nil)
		time.Sleep(15 * time.Second)
		s.times()
		now := time.Since(s.from)
		s.set(errors.New("again"))
		l.Wake()
		time.Sleep(500 * time.Millisecond)
		at := s.times()
		want := []time.Duration{0, 50, 150, 350}
		if len(at) != len(want) {
			t.Fatalf("%v from %v on", at, now)
		}
		for i, w := range want {
			if at[i]-now != w*time.Millisecond {
				t.Errorf("round %d after %v", i, at[i]-now)
			}
		}
	})
}

// A deed every 200 ms costs about a round a second, in the long run too.
func TestWhoeverRemovesThingsInALoopCostsARoundASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{Every: 30 * time.Second})
		s.set(nil, "route 1")
		for range 60 * 5 {
			l.Wake()
			time.Sleep(200 * time.Millisecond)
		}
		l.Close()
		if n := len(s.times()); n > 66 || n < 50 {
			t.Errorf("%d rounds in a minute", n)
		}
		if n := log.Count("put right"); n > 10 {
			t.Errorf("%d lines in a minute that say the same", n)
		}
	})
}

func TestEachReasonIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		s.set(errors.New("reason one"))
		l.Wake()
		time.Sleep(time.Minute)
		s.set(errors.New("reason two"))
		time.Sleep(time.Minute)
		if l.Err() == nil || l.Err().Error() != "reason two" {
			t.Error(l.Err())
		}
		s.set(nil)
		time.Sleep(time.Minute)
		if l.Err() != nil {
			t.Error(l.Err())
		}
		if a, b, c := log.Count("ERROR", "reason one"), log.Count("ERROR", "reason two"), log.Count("at last"); a != 1 || b != 1 || c != 1 {
			t.Error(log.With(""))
		}
		s.times()
		time.Sleep(time.Hour)
		if at := s.times(); len(at) != 0 {
			t.Error("rounds when all is well:", at)
		}
		s.set(errors.New("reason one")) // once more, it is news
		l.Wake()
		time.Sleep(time.Minute)
		l.Close()
		if a := log.Count("ERROR", "reason one"); a != 2 {
			t.Error(log.With(""))
		}
	})
}

// Two reasons that take turns are not a line a second.
func TestReasonsThatTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		l.Wake()
		for i := range 300 {
			s.set(fmt.Errorf("reason %d", i%2))
			time.Sleep(time.Second)
		}
		l.Close()
		if n := log.Count("ERROR"); n > 20 {
			t.Errorf("%d lines in five minutes for two reasons", n)
		}
	})
}

func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		changed := 0
		if err := l.Now(context.Background(), func() { changed++ }); err != nil || changed != 1 || len(s.times()) != 1 {
			t.Error(err, changed)
		}
		if err := l.Now(context.Background(), nil); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if n := len(s.times()); n != 1 {
			t.Errorf("%d rounds, want the one", n)
		}
		s.set(errors.New("no"))
		if err := l.Now(context.Background(), nil); err == nil || l.Err() == nil {
			t.Error("no error")
		}
		time.Sleep(500 * time.Millisecond)
		if n := len(s.times()); n < 3 {
			t.Error("does not try again by itself")
		}
		s.set(nil)
		time.Sleep(2 * time.Second)
		if l.Err() != nil || log.Count("ERROR") != 0 || log.Count("at last") != 1 {
			t.Error(l.Err(), log.With(""))
		}
		l.Close()
	})
}

// Now and background rounds take turns; change is called with none under way.
func TestNowWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, _ := start(t, Config{})
		s.mu.Lock()
		s.took = time.Second
		s.mu.Unlock()
		var wg sync.WaitGroup
		for range 20 {
			l.Wake()
			wg.Go(func() {
				if err := l.Now(context.Background(), func() {
					if s.busy.Load() != 0 {
						t.Error("change with a round under way")
					}
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		l.Close()
	})
}

func TestNowEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		s.mu.Lock()
		s.took = time.Hour
		s.mu.Unlock()
		l.Wake()
		synctest.Wait() // a background round is under way
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begun := time.Now()
		called := false
		err := l.Now(ctx, func() { called = true })
		if !errors.Is(err, context.DeadlineExceeded) || called || time.Since(begun) != time.Minute {
			t.Error(err, called, time.Since(begun))
		}
		if err := l.Now(ctx, func() { called = true }); !errors.Is(err, context.DeadlineExceeded) || called {
			t.Error(err, called)
		}
		begun = time.Now()
		l.Close() // ends the round
		if time.Since(begun) != 0 || l.Err() != nil {
			t.Error(time.Since(begun), l.Err())
		}
		if log.Count("") != 0 {
			t.Error("the end is no failure:", log.With(""))
		}
	})
}

// The caller's context that ends during its round says nothing of the state, and the
// round is done again.
func TestNowIsCancelledInItsRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		s.mu.Lock()
		s.took = time.Minute
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.Now(ctx, func() {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := l.Err(); err != nil {
			t.Error("Err:", err)
		}
		time.Sleep(2 * time.Minute)
		if n := len(s.times()); n != 2 {
			t.Errorf("%d rounds, want the broken one and another", n)
		}
		l.Close()
		if log.Count("") != 0 {
			t.Error(log.With(""))
		}
	})
}

// What a round of Now puts right is said too.
func TestNowSaysWhatItPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, log := start(t, Config{})
		var many []string
		for i := range 1000 {
			many = append(many, fmt.Sprint("thing ", i))
		}
		s.set(nil, many...)
		if err := l.Now(context.Background(), nil); err != nil {
			t.Error(err)
		}
		l.Close()
		if said := log.With("WARN", "thing 0", "and more"); len(said) != 1 || len(said[0]) > 400 {
			t.Error(said)
		}
	})
}

func TestCloseAtAnyMoment(t *testing.T) {
	for i := range 60 {
		synctest.Test(t, func(t *testing.T) {
			l, s, _ := start(t, Config{Every: 7 * time.Millisecond})
			s.mu.Lock()
			s.took = time.Duration(i%5) * time.Millisecond
			s.mu.Unlock()
			if i%2 == 0 {
				s.set(errors.New("no"), "x")
			}
			l.Wake()
			time.Sleep(time.Duration(i) * time.Millisecond)
			l.Close()
			l.Wake() // harmless
			s.times()
			time.Sleep(time.Hour)
			if at := s.times(); len(at) != 0 {
				t.Error("a round after Close:", at)
			}
			l.Close() // harmless
		})
	}
}
