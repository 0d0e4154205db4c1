package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/cost"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// A window is what the machine did while traffic at a fixed rate counted.
type window struct {
	meter *traffic.Meter
	watch *cost.Watch
	usage traffic.Usage
	cost  cost.Cost
	err   error
}

// open and close are hooks of the generators.
func (w *window) open(pids []int, syscalls bool) func() {
	return func() {
		if syscalls {
			if w.watch, w.err = cost.Start(cost.Config{PIDs: pids, Syscalls: true}); w.err != nil {
				return
			}
		}
		var err error
		w.meter, err = traffic.StartMeter(pids...)
		w.err = errors.Join(w.err, err)
	}
}

func (w *window) close() {
	var err error
	if w.meter != nil {
		w.usage, err = w.meter.Stop()
		w.err = errors.Join(w.err, err)
	}
	if w.watch != nil {
		w.cost, err = w.watch.Stop()
		w.err = errors.Join(w.err, err)
	}
}

// cpu measures what one stream at a fixed rate costs the whole machine, sender and receiver included: what a tunnel adds
// to that is its price, wherever its work is accounted.
func (b *bench) cpu(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	var w window
	r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
		Addr: to, Source: from, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion, Rate: b.Rate * 1e9,
		OnOpen: w.open(c.PIDs(), false), OnClose: w.close,
	})
	if err = errors.Join(err, w.err); err != nil {
		return reading{}, err
	}
	gbit := r.BitsPerSecond / 1e9
	if gbit <= 0 {
		return reading{}, fmt.Errorf("nothing arrived at %g Gbit/s", b.Rate)
	}
	got := reading{value: w.usage.Cores() / gbit, detail: struct {
		traffic.TCPResult
		Window traffic.Usage `json:"window_usage"`
	}{r, w.usage}}
	if gbit < 0.98*b.Rate {
		got.note = fmt.Sprintf("%.2f instead of %g Gbit/s: compare with care, or choose a lower -rate", gbit, b.Rate)
	}
	return got, nil
}

// cpuPacket measures the same for small packets at a fixed rate, with the system calls of the tunnel's processes and the
// context switches of the machine.
func (b *bench) cpuPacket(ctx context.Context, c candidate.Candidate) (got reading, err error) {
	from, to := c.Addrs()
	pair, err := traffic.OpenUDP(ctx, b.a, b.b, traffic.UDPConfig{Addr: to, Source: from})
	if err != nil {
		return reading{}, err
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	pids := c.PIDs()
	trial := func(d time.Duration, w *window) (traffic.UDPResult, error) {
		t := traffic.UDPTrial{Rate: b.PacketRate, Size: 64, Duration: d}
		if w != nil {
			t.OnOpen, t.OnClose = w.open(pids, len(pids) > 0), w.close
		}
		return pair.Trial(ctx, t)
	}
	if b.Warmup > 0 {
		if _, err := trial(b.Warmup, nil); err != nil {
			return reading{}, err
		}
	}
	var w window
	r, err := trial(b.Duration, &w)
	if err = errors.Join(err, w.err); err != nil {
		return reading{}, err
	}
	if r.Received == 0 {
		return reading{}, fmt.Errorf("nothing arrived at %g packets per second", b.PacketRate)
	}
	packets := float64(r.Received)
	got = reading{
		value: us(w.usage.Busy) / packets,
		more:  map[string]float64{"switches": float64(w.usage.ContextSwitches) / packets},
		detail: struct {
			traffic.UDPResult
			Window traffic.Usage `json:"window_usage"`
			Cost   cost.Cost     `json:"window_cost"`
		}{r, w.usage, w.cost},
	}
	if len(pids) > 0 && w.cost.SyscallsUnknown == "" {
		got.more["syscalls"] = float64(w.cost.Syscalls) / packets
	}
	if lost := float64(r.Sent-r.Received) / float64(r.Sent); lost > 0.01 {
		got.note = fmt.Sprintf("%.1f %% of %g packets per second were lost: compare with care, or choose a lower -packet-rate", lost*100, b.PacketRate)
	}
	return got, nil
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
func (b *bench) memory(_ context.Context, c candidate.Candidate) (reading, error) {
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
