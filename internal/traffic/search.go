package traffic

import (
	"context"
	"fmt"
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
	Rate float64 `json:"rate"` // packets per second, as achieved in the confirming trial; 0: none passed
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

// A searcher narrows down [low, high): low has passed (or is 0), high has failed (or is 0: nothing has).
type searcher struct {
	config    SearchConfig
	trial     func(rate float64) (UDPResult, error)
	low, high float64
	out       SearchResult
}

// search first doubles or halves the rate from Start until it has one that passes and one that fails, then halves the
// gap, and at the end tries the best rate once more: what does not hold a second time is lowered by the tolerance until
// something does. When the sender falls short without loss, what it achieved has passed and what it was asked for failed.
func search(ctx context.Context, config SearchConfig, trial func(rate float64) (UDPResult, error)) (SearchResult, error) {
	s := searcher{config: config, trial: trial}
	step := config.Step
	for rate := config.Start; ; {
		passed, err := s.try(ctx, rate)
		if err != nil {
			return s.out, err
		}
		if s.low > 0 && s.high > 0 {
			break
		}
		if passed {
			if s.low >= config.Max {
				break
			}
			rate = min(rate*step, config.Max)
		} else {
			if rate = rate / step; rate < minRate {
				return s.out, nil // nothing gets through
			}
		}
		step = min(step*1.2, 4)
	}
	for s.high > 0 && s.high-s.low > config.Tolerance*s.high {
		if _, err := s.try(ctx, (s.low+s.high)/2); err != nil {
			return s.out, err
		}
	}
	return s.confirm(ctx)
}

// try runs a trial at the rate, again when it fails, and moves the bound.
func (s *searcher) try(ctx context.Context, rate float64) (passed bool, err error) {
	achieved := 0.0 // the best without loss, when the sender fell short
	for range 1 + s.config.Retries {
		r, err := s.once(ctx, rate)
		switch {
		case err != nil:
			return false, err
		case r.Loss() > s.config.Loss:
		case short(r):
			achieved = max(achieved, min(r.Achieved, rate))
		default:
			s.low = max(s.low, rate)
			return true, nil
		}
	}
	s.high = rate
	s.low = max(min(s.low, rate/(1+s.config.Tolerance)), achieved) // the first only after noise
	s.out.SenderLimited = achieved > 0
	return false, nil
}

// short tells whether the sender stayed noticeably behind the offered rate.
func short(r UDPResult) bool { return r.Achieved < 0.985*r.Offered }

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

func (s *searcher) confirm(ctx context.Context) (SearchResult, error) {
	for rate := s.low; rate >= minRate; rate /= 1 + s.config.Tolerance {
		for range 1 + s.config.Retries {
			r, err := s.once(ctx, rate)
			if err != nil {
				return s.out, err
			}
			if r.Loss() <= s.config.Loss {
				s.out.Rate = min(r.Achieved, rate)
				return s.out, nil
			}
		}
	}
	return s.out, nil
}
