package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// bench measures on one bed.
type bench struct {
	options
	hosts   *netlab.TwoHosts
	a, b    traffic.Place
	guesses map[guess]float64 // packets per second that the last search found
}

// guess says what a search was about.
type guess struct {
	candidate string
	test      result.Test
}

// reading is what one kind of measurement returns.
type reading struct {
	value  float64
	full   bool // the sender
	note   string
	detail any
}

// measure takes one step. All tests send from host A to host B.
func (b *bench) measure(ctx context.Context, s step, c candidate.Candidate) (result.Sample, error) {
	out := result.Sample{Mode: s.mode, Test: s.test, Candidate: s.candidate, Run: s.run, Start: time.Now()}
	meter, err := traffic.StartMeter(c.PIDs()...)
	if err != nil {
		return out, err
	}
	var got reading
	switch s.test {
	case result.TCP1:
		got, err = b.tcp(ctx, c, 1)
	case result.TCP4:
		got, err = b.tcp(ctx, c, 4)
	case result.UDP64:
		got, err = b.udp(ctx, c, s.test, 64)
	case result.UDP1400:
		got, err = b.udp(ctx, c, s.test, 1400)
	case result.RTT:
		got, err = b.ping(ctx, c)
	case result.CPU:
		got, err = b.cpu(ctx, c)
	case result.Idle:
		got, err = b.idle(ctx, c)
	case result.Memory:
		got, err = b.memory(c)
	default:
		err = fmt.Errorf("no such test: %s", s.test)
	}
	if err != nil {
		return out, err
	}
	usage, err := meter.Stop()
	if err != nil {
		return out, err
	}
	out.Took = time.Since(out.Start)
	out.Value, out.SenderFull, out.Note = got.value, got.full, got.note
	if all := usage.Wall * time.Duration(runtime.NumCPU()); all > 0 {
		out.Steal = usage.Steal.Seconds() / all.Seconds()
	}
	stats, err := c.Stats(ctx)
	if err != nil {
		return out, err
	}
	out.Detail, err = json.Marshal(struct {
		Result   any             `json:"result,omitempty"`
		Usage    traffic.Usage   `json:"usage"`           // of the whole step, setting up included
		Counters json.RawMessage `json:"stats,omitempty"` // the candidate's own, since it was set up
	}{got.detail, usage, stats})
	return out, err
}

// tcp measures the highest rate that n streams reach together.
func (b *bench) tcp(ctx context.Context, c candidate.Candidate, n int) (reading, error) {
	from, to := c.Addrs()
	if b.useIperf3() {
		return b.iperf3(ctx, from, to, n)
	}
	r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
		Addr: to, Source: from, Streams: n, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion,
	})
	return reading{value: r.BitsPerSecond / 1e9, detail: r}, err
}

func (b *bench) useIperf3() bool {
	if b.Generator == "auto" {
		_, err := exec.LookPath("iperf3")
		return err == nil
	}
	return b.Generator == "iperf3"
}

// udp searches the highest rate without loss, from where the last search of the same kind ended.
func (b *bench) udp(ctx context.Context, c candidate.Candidate, test result.Test, size int) (reading, error) {
	from, to := c.Addrs()
	pair, err := traffic.OpenUDP(ctx, b.a, b.b, traffic.UDPConfig{Addr: to, Source: from})
	if err != nil {
		return reading{}, err
	}
	config := traffic.SearchConfig{Size: size, Trial: b.Trial, Tolerance: b.Tolerance, Start: 100_000}
	key := guess{c.Name(), test}
	if last, ok := b.guesses[key]; ok {
		config.Start, config.Step = last, 1.1
	}
	r, err := traffic.SearchUDP(ctx, pair, config)
	if err != nil {
		_ = pair.Close() // err says more
		return reading{}, err
	}
	if r.Rate > 0 {
		b.guesses[key] = r.Rate
	}
	got := reading{value: r.Rate / 1000, full: r.SenderLimited, detail: r}
	if n := receiverDrops(r); n > 0 {
		got.note = fmt.Sprintf("%.1f %% of the loss happened in the receiver's socket, not on the path", n*100)
	}
	return got, pair.Close()
}

// receiverDrops is the share of all lost packets that the receiving socket dropped.
func receiverDrops(r traffic.SearchResult) float64 {
	var lost, drops uint64
	for _, t := range r.Trials {
		lost += t.Lost
		drops += t.ReceiverDrops
	}
	if lost == 0 {
		return 0
	}
	return float64(drops) / float64(lost)
}

func (b *bench) ping(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	r, err := traffic.Ping(ctx, b.a, traffic.PingConfig{Addr: to, Source: from, Interval: pingInterval, Count: b.Pings, Warmup: 20})
	got := reading{value: float64(r.Median) / 1e3, detail: r}
	if r.Received < r.Sent {
		got.note = fmt.Sprintf("%d of %d requests were lost", r.Sent-r.Received, r.Sent)
	}
	return got, err
}

// cpu measures what one stream at a fixed rate costs the whole machine, sender and receiver included: what a tunnel adds
// to that is its price, wherever its work is accounted.
func (b *bench) cpu(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	others, err := busyNow(ctx)
	if err != nil {
		return reading{}, err
	}
	var meter *traffic.Meter
	var usage traffic.Usage
	var openErr, closeErr error
	r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
		Addr: to, Source: from, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion, Rate: b.Rate * 1e9,
		OnOpen: func() { meter, openErr = traffic.StartMeter(c.PIDs()...) },
		OnClose: func() {
			if openErr == nil {
				usage, closeErr = meter.Stop()
			}
		},
	})
	for _, e := range []error{err, openErr, closeErr} {
		if e != nil {
			return reading{}, e
		}
	}
	gbit := r.BitsPerSecond / 1e9
	if gbit <= 0 {
		return reading{}, fmt.Errorf("nothing arrived at %g Gbit/s", b.Rate)
	}
	got := reading{value: usage.Cores() / gbit, detail: struct {
		traffic.TCPResult
		Window traffic.Usage `json:"window_usage"`
	}{r, usage}}
	switch {
	case gbit < 0.98*b.Rate:
		got.note = fmt.Sprintf("%.2f instead of %g Gbit/s: compare with care, or choose a lower -rate", gbit, b.Rate)
	case others > 0.15:
		got.note = fmt.Sprintf("something else on this machine used %.1f cores just before", others)
	}
	return got, nil
}

// busyNow is how many processors the machine uses while the benchmark does nothing.
func busyNow(ctx context.Context) (float64, error) {
	meter, err := traffic.StartMeter()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(lookAround):
	}
	usage, err := meter.Stop()
	return usage.Cores(), err
}

// idle measures the candidate's processes without any traffic, in ms of processor time per second.
func (b *bench) idle(ctx context.Context, c candidate.Candidate) (reading, error) {
	meter, err := traffic.StartMeter(c.PIDs()...)
	if err != nil {
		return reading{}, err
	}
	select {
	case <-ctx.Done():
		return reading{}, ctx.Err()
	case <-time.After(idleTime):
	}
	usage, err := meter.Stop()
	var cpu time.Duration
	for _, p := range usage.Procs {
		cpu += p.CPU
	}
	return reading{value: float64(cpu.Milliseconds()) / usage.Wall.Seconds(), detail: usage}, err
}

// memory is the most that one process of the candidate ever had, after all that was measured before.
func (b *bench) memory(c candidate.Candidate) (reading, error) {
	most := int64(0)
	for _, pid := range c.PIDs() {
		p, err := traffic.ReadProc(pid)
		if err != nil {
			return reading{}, err
		}
		most = max(most, p.PeakResident)
	}
	return reading{value: float64(most) / (1 << 20)}, nil
}
