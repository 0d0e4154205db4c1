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

// pingLoaded measures round trips beside a TCP stream that takes all it can get. The stream runs until the last reply is
// there, or the measurement fails: what comes back on an idle path is not what was asked for.
func (b *bench) pingLoaded(ctx context.Context, c candidate.Candidate) (got reading, err error) {
	from, to := c.Addrs()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	open, closed, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
			Addr: to, Source: from, Warmup: b.Warmup, Duration: 10*b.Duration + time.Minute, Congestion: b.Congestion,
			OnOpen: func() { close(open) }, OnClose: func() { close(closed) },
		})
		done <- err
	}()
	select {
	case err := <-done: // before the window opened
		return reading{}, errors.Join(errors.New("the load did not start"), err)
	case <-open:
	}
	got, err = b.pings(ctx, c, max(int(b.Duration/pingInterval/2), 5), 0)
	select {
	case e := <-done:
		return got, errors.Join(errors.New("the load ended before the pings"), e, err)
	case <-closed:
		err = errors.Join(errors.New("the pings outlived the load"), err)
	default:
	}
	cancel()
	<-done // ended because it was told to
	return got, err
}
