package traffic

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// SearchConfig describes the search for the highest rate without loss. The zero value is a sensible one, save for Size or Mix.
type SearchConfig struct {
	Size      int           // bytes of UDP payload per packet
	Mix       []int         // sizes used in turn, as in UDPTrial; Size is not used then
	Trial     time.Duration // length of one trial; 0 means 1 s
	Loss      float64       // the share of lost packets that is still no loss; 0 means 0.001
	Start     float64       // the first rate tried, packets per second; 0 means 50,000. A good guess saves trials
	Step      float64       // the first factor between rates until the bounds are known; 0 means 1.5; small ones suit a good guess
	Max       float64       // the highest rate tried; 0 means 2,000,000
	Tolerance float64       // the search ends when the bounds are this share apart; 0 means 0.02
	Retries   int           // a rate has failed when this many more trials fail too; 0 means 1, less than 0 means none
	// Settle is a pause before a trial that follows a lossy one, for queues to empty; 0 means 50 ms.
	Settle time.Duration
}

// SearchResult is the rate found and how it was found.
type SearchResult struct {
	Rate float64 `json:"rate"` // packets per second: the median of what was achieved when the rate found was confirmed; 0: none passed
	// Offered is the rate that was asked for then. A later search does well to start there.
	Offered float64 `json:"offered"`
	// SenderLimited says that nothing was lost up to what the sender could send. Mind that the kernel does most of the
	// work of a path, tunnels of its own included, in the time of the process that sends.
	SenderLimited bool        `json:"sender_limited"`
	Trials        []UDPResult `json:"trials"`
}

// minRate is the lowest rate worth a trial.
const minRate = 100

// SearchUDP finds the highest rate with at most the given loss, in the way of RFC 2544 section 26.1, by trials of pair.
func SearchUDP(ctx context.Context, pair *UDPPair, config SearchConfig) (SearchResult, error) {
	config = config.withDefaults()
	return search(ctx, config, func(rate float64) (UDPResult, error) {
		return pair.Trial(ctx, UDPTrial{Rate: rate, Size: config.Size, Mix: config.Mix, Duration: config.Trial})
	})
}

func (c SearchConfig) withDefaults() SearchConfig {
	set := func(v *float64, to float64) {
		if *v <= 0 {
			*v = to
		}
	}
	set(&c.Loss, 0.001)
	set(&c.Start, 50_000)
	set(&c.Step, 1.5)
	set(&c.Max, 2_000_000)
	set(&c.Tolerance, 0.02)
	if c.Trial <= 0 {
		c.Trial = time.Second
	}
	if c.Settle <= 0 {
		c.Settle = 50 * time.Millisecond
	}
	if c.Retries == 0 {
		c.Retries = 1
	}
	c.Retries = max(c.Retries, 0)
	c.Start = min(max(c.Start, minRate), c.Max)
	return c
}

// A searcher narrows the offered rate down to [low, high): at low nothing was lost, or low is 0; at high something was, or
// high is 0. What counts in the end is what the sender achieved: on a machine that it shares with the path, it is behind
// at any rate, and to take that for a failure of the path would walk down to nothing.
type searcher struct {
	config    SearchConfig
	trial     func(rate float64) (UDPResult, error)
	low, high float64
	best      float64 // the most that was achieved without loss
	bestAt    float64 // the rate offered then
	flat      int     // trials without loss, one after the other, in which a sender that fell short did not achieve more
	out       SearchResult
}

// plateau is after how many trials without more a sender is full.
const plateau = 2

// search raises or lowers the rate from Start until it has one that loses nothing and one that does, then halves the gap.
// It ends early when the sender is full: when more is asked for and no more comes. The rate at which most arrived is then
// tried again and again, and what the sender achieves there is the result; where something is lost, it is lowered by the
// tolerance until nothing is.
func search(ctx context.Context, config SearchConfig, trial func(rate float64) (UDPResult, error)) (SearchResult, error) {
	s := searcher{config: config, trial: trial}
	step := config.Step
	for rate := config.Start; ; {
		passed, err := s.try(ctx, rate)
		if err != nil {
			return s.out, err
		}
		if s.low > 0 && s.high > 0 || s.flat >= plateau || passed && rate >= config.Max {
			break
		}
		if passed {
			rate = min(rate*step, config.Max)
		} else if rate /= step; rate < minRate {
			return s.out, nil // nothing gets through
		}
		step = min(step*1.2, 4)
	}
	for s.high > 0 && s.flat < plateau && s.high-s.low > config.Tolerance*s.high {
		if _, err := s.try(ctx, (s.low+s.high)/2); err != nil {
			return s.out, err
		}
	}
	if s.flat >= plateau && s.best < s.bestAt {
		// Asked for less, a path that suffers from too much may carry more.
		if _, err := s.try(ctx, s.best); err != nil {
			return s.out, err
		}
	}
	return s.confirm(ctx)
}

// try runs a trial at the rate, again when something is lost, and moves the bound.
func (s *searcher) try(ctx context.Context, rate float64) (passed bool, err error) {
	for range 1 + s.config.Retries {
		r, err := s.once(ctx, rate)
		if err != nil {
			return false, err
		}
		if r.Loss() > s.config.Loss {
			continue
		}
		achieved := min(r.Delivered(), rate)
		if short(r) && achieved < s.best*(1+s.config.Tolerance) {
			s.flat++
		} else {
			s.flat = 0
		}
		if achieved > s.best {
			s.best, s.bestAt = achieved, rate
		}
		s.low = max(s.low, rate)
		return true, nil
	}
	if s.high == 0 || rate < s.high {
		s.high = rate
	}
	return false, nil
}

// short tells whether the sender, or what arrived, stayed noticeably behind the offered rate.
func short(r UDPResult) bool { return r.Delivered() < 0.985*r.Offered }

func (s *searcher) once(ctx context.Context, rate float64) (UDPResult, error) {
	if n := len(s.out.Trials); n > 0 && s.out.Trials[n-1].Lost > 0 {
		select {
		case <-ctx.Done():
			return UDPResult{}, ctx.Err()
		case <-time.After(s.config.Settle):
		}
	}
	r, err := s.trial(rate)
	if err != nil {
		return r, fmt.Errorf("search at %.0f packets/s: %w", rate, err)
	}
	s.out.Trials = append(s.out.Trials, r)
	return r, nil
}

// confirmations is how often the rate found is tried again. The best of many trials is what the machine did in a lucky
// moment; the median of these is what it does.
const confirmations = 3

func (s *searcher) confirm(ctx context.Context) (SearchResult, error) {
	limited := s.high == 0 // nothing was ever lost
	down := s.config.Tolerance
	for rate := s.bestAt; rate >= minRate; {
		var achieved []float64
		fell, lost := 0, 0
		for len(achieved) < confirmations && lost <= s.config.Retries {
			r, err := s.once(ctx, rate)
			switch {
			case err != nil:
				return s.out, err
			case r.Loss() > s.config.Loss:
				lost++
				continue
			case short(r):
				fell++
			}
			achieved = append(achieved, min(r.Delivered(), rate))
		}
		if len(achieved) == confirmations {
			slices.Sort(achieved)
			s.out.Rate, s.out.Offered, s.out.SenderLimited = achieved[confirmations/2], rate, limited && 2*fell > confirmations
			return s.out, nil
		}
		limited = false
		rate /= 1 + down
		down *= 1.5 // a path that has died since is found out soon
	}
	return s.out, nil
}
