package load

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latency is a distribution of times. All of them are correct to three digits, as the histogram keeps them.
type Latency struct {
	Count uint64        `json:"count"`
	Min   time.Duration `json:"min_ns"`
	P50   time.Duration `json:"p50_ns"`
	P90   time.Duration `json:"p90_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`

	// Percentiles draw the distribution: eight for every factor of ten of what lies above (0, 0.25, 0.44 to 0.9, to
	// 0.99, to 0.999, ...), up to five nines or until one single value lies above; the last has Q = 1.
	Percentiles []Quantile `json:"percentiles"`
}

// A Quantile says that the share Q (0 to 1) of all times is at most D.
type Quantile struct {
	Q float64       `json:"q"`
	D time.Duration `json:"d_ns"`
}

// maxLatency is the largest time that can be recorded; it is beyond any timeout that makes sense.
const maxLatency = 10 * time.Minute

// newHistogram makes a histogram for nanoseconds up to maxLatency with three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(maxLatency), 3) }

// record adds one time. It does not allocate.
func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(int64(min(max(d, 0), maxLatency))) // fails only outside these bounds
}

// summarize reads a histogram.
func summarize(h *hdrhistogram.Histogram) Latency {
	count := h.TotalCount()
	if count == 0 {
		return Latency{}
	}
	const perDecade, decades = 8, 5
	var shares []float64
	for i := range perDecade*decades + 1 {
		above := math.Pow(10, -float64(i)/perDecade)
		if above*float64(count) < 1 {
			break
		}
		shares = append(shares, 1-above)
	}
	shares = append(shares, 1)
	at := func(share float64) time.Duration {
		return time.Duration(min(h.ValueAtPercentile(100*share), h.Max()))
	}
	l := Latency{
		Count: uint64(count), Min: time.Duration(h.Min()), Max: time.Duration(h.Max()),
		P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999),
	}
	for _, share := range shares {
		l.Percentiles = append(l.Percentiles, Quantile{share, at(share)})
	}
	return l
}
