package traffic

import (
	"context"
	"errors"
	"math"
	"testing"
)

// A fakePath loses what exceeds its limit, and its sender cannot exceed its own.
type fakePath struct {
	limit, sender float64
	behind        float64      // the share by which the sender is behind at any rate
	dead          int          // from which trial on nothing gets through; 0: never
	noise         map[int]bool // trials, counted from 0, that lose although they should not
	trials        int
}

func (p *fakePath) trial(rate float64) (UDPResult, error) {
	sent := math.Min(rate*(1-p.behind), p.sender)
	lost := math.Max(0, sent-p.limit)
	if p.noise[p.trials] {
		lost = math.Max(lost, sent*0.02)
	}
	p.trials++
	if p.dead > 0 && p.trials >= p.dead {
		lost = sent
	}
	return UDPResult{Offered: rate, Achieved: sent, Sent: uint64(sent), Lost: uint64(lost)}, nil
}

func TestSearch(t *testing.T) {
	const none = math.MaxFloat64
	for _, test := range []struct {
		name         string
		path         fakePath
		config       SearchConfig
		want         float64
		limited      bool
		mostOfTrials int
	}{
		{name: "below the start", path: fakePath{limit: 14_000, sender: none}, want: 14_000, mostOfTrials: 20},
		{name: "above the start", path: fakePath{limit: 190_000, sender: none}, want: 190_000, mostOfTrials: 20},
		{name: "a good guess is cheap", path: fakePath{limit: 119_000, sender: none}, config: SearchConfig{Start: 118_000}, want: 119_000, mostOfTrials: 17},
		{name: "sender falls short", path: fakePath{limit: none, sender: 230_000}, want: 230_000, limited: true, mostOfTrials: 20},
		{name: "sender falls short above the limit", path: fakePath{limit: 150_000, sender: 230_000}, want: 150_000, mostOfTrials: 20},
		{name: "sender always behind", path: fakePath{limit: none, sender: 67_000, behind: 0.25}, config: SearchConfig{Start: 10_000}, want: 67_000, limited: true, mostOfTrials: 20},
		{name: "sender always behind, from its own last rate", path: fakePath{limit: none, sender: 67_000, behind: 0.25}, config: SearchConfig{Start: 67_000, Step: 1.1}, want: 67_000, limited: true, mostOfTrials: 16},
		{name: "sender always behind, limit below", path: fakePath{limit: 40_000, sender: 67_000, behind: 0.25}, want: 40_000, mostOfTrials: 22},
		{name: "the path dies", path: fakePath{limit: 400_000, sender: none, dead: 8}, want: 0, mostOfTrials: 80},
		{name: "no limit up to Max", path: fakePath{limit: none, sender: none}, config: SearchConfig{Max: 300_000}, want: 300_000, mostOfTrials: 10},
		{name: "nothing gets through", path: fakePath{limit: 0, sender: none}, want: 0, mostOfTrials: 30},
		{name: "one unlucky trial", path: fakePath{limit: 119_000, sender: none, noise: map[int]bool{1: true}}, want: 119_000, mostOfTrials: 20},
		{name: "unlucky confirmation", path: fakePath{limit: 119_000, sender: none, noise: map[int]bool{9: true, 10: true, 11: true, 12: true}}, want: 117_000, mostOfTrials: 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.Settle = 1
			got, err := search(t.Context(), test.config.withDefaults(), test.path.trial)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(got.Rate-test.want) > 0.05*test.want {
				t.Errorf("Rate = %.0f, want %.0f within 5 %%; trials %+v", got.Rate, test.want, got.Trials)
			}
			if got.Rate > test.path.limit*1.001 {
				t.Errorf("Rate = %.0f is above the limit %.0f", got.Rate, test.path.limit)
			}
			if got.SenderLimited != test.limited {
				t.Errorf("SenderLimited = %v, want %v", got.SenderLimited, test.limited)
			}
			if test.path.trials > test.mostOfTrials {
				t.Errorf("%d trials, want at most %d", test.path.trials, test.mostOfTrials)
			}
		})
	}
}

func TestSearchFails(t *testing.T) {
	broken := errors.New("broken")
	_, err := search(t.Context(), SearchConfig{}.withDefaults(), func(float64) (UDPResult, error) { return UDPResult{}, broken })
	if !errors.Is(err, broken) {
		t.Errorf("error = %v, want the trial's", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	path := fakePath{limit: 0, sender: 1e9}
	_, err = search(ctx, SearchConfig{}.withDefaults(), func(rate float64) (UDPResult, error) {
		cancel()
		return path.trial(rate)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
}
