package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/load"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// requests measures request and response over n TCP connections at once.
func (b *bench) requests(n int) measurement {
	return func(ctx context.Context, c candidate.Candidate) (reading, error) {
		from, to := c.Addrs()
		r, err := load.RR(ctx, b.a, b.b, load.RRConfig{Addr: to, Source: from, Connections: n, Warmup: b.Warmup / 2, Duration: b.Duration})
		return reading{
			value:  us(r.Latency.P50),
			more:   map[string]float64{"p99": us(r.Latency.P99), "p99.9": us(r.Latency.P999), "rate": r.PerSecond},
			detail: r,
		}, err
	}
}

// connects measures connections that are opened, used for one byte each way, and closed.
func (b *bench) connects(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	r, err := load.Connects(ctx, b.a, b.b, load.ConnectConfig{Addr: to, Source: from, Warmup: b.Warmup / 2, Duration: b.Duration})
	return reading{value: r.PerSecond, detail: r}, err
}

func (b *bench) ping(ctx context.Context, c candidate.Candidate) (reading, error) {
	return b.pings(ctx, c, b.Pings, 20)
}

func (b *bench) pings(ctx context.Context, c candidate.Candidate, count, warmup int) (reading, error) {
	from, to := c.Addrs()
	r, err := traffic.Ping(ctx, b.a, traffic.PingConfig{Addr: to, Source: from, Interval: pingInterval, Count: count, Warmup: warmup})
	got := reading{value: us(r.Median), more: map[string]float64{"p99": us(r.P99)}, detail: r}
	if r.Received < r.Sent {
		got.note = fmt.Sprintf("%d of %d requests were lost", r.Sent-r.Received, r.Sent)
	}
	return got, err
}

// pingLoaded measures round trips beside a TCP stream that takes all it can get.
func (b *bench) pingLoaded(ctx context.Context, c candidate.Candidate) (got reading, err error) {
	from, to := c.Addrs()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		tcp traffic.TCPResult
		err error
	}
	open, done := make(chan struct{}), make(chan outcome, 1)
	go func() {
		r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
			Addr: to, Source: from, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion, OnOpen: func() { close(open) },
		})
		done <- outcome{r, err}
	}()
	select {
	case o := <-done: // before the window opened
		return reading{}, errors.Join(errors.New("the load did not start"), o.err)
	case <-open:
	}
	// Half as many as there is time for: a round trip may take longer than the interval.
	count := max(int(b.Duration/pingInterval/2), 5)
	got, err = b.pings(ctx, c, count, 0)
	if err != nil {
		cancel()
	}
	o := <-done
	got.detail = struct {
		Ping any               `json:"ping"`
		Load traffic.TCPResult `json:"load"`
	}{got.detail, o.tcp}
	return got, errors.Join(err, o.err)
}
