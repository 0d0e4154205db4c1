package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/cost"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// A window is what the machine did while traffic at a fixed rate counted.
type window struct {
	syscalls bool // count those of the processes too

	meter *traffic.Meter
	watch *cost.Watch
	usage traffic.Usage
	cost  cost.Cost
	err   error
}

// open and close are hooks of the generators. Closing twice is harmless.
func (w *window) open(pids []int) func() {
	return func() {
		if w.syscalls {
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
		w.meter, w.err = nil, errors.Join(w.err, err)
	}
	if w.watch != nil {
		w.cost, err = w.watch.Stop()
		w.watch, w.err = nil, errors.Join(w.err, err)
	}
}

// cpu measures what one stream at a fixed rate costs the whole machine, sender and receiver included: what a tunnel adds
// to that is its price, wherever its work is accounted.
func (b *bench) cpu(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	var w window
	r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
		Addr: to, Source: from, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion, Rate: b.Rate * 1e9,
		OnOpen: w.open(c.PIDs()), OnClose: w.close,
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
			t.OnOpen, t.OnClose = w.open(pids), w.close
			defer w.close() // a trial may fail in between
		}
		return pair.Trial(ctx, t)
	}
	if b.Warmup > 0 {
		if _, err := trial(b.Warmup, nil); err != nil {
			return reading{}, err
		}
	}
	// Counting system calls slows them down: in a window of its own.
	w, calls := window{}, window{syscalls: true}
	r, err := trial(b.Duration, &w)
	if err = errors.Join(err, w.err); err != nil {
		return reading{}, err
	}
	var counted traffic.UDPResult
	if len(pids) > 0 {
		counted, err = trial(b.Duration/2, &calls)
		if err = errors.Join(err, calls.err); err != nil {
			return reading{}, err
		}
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
		}{r, w.usage, calls.cost},
	}
	if counted.Received > 0 && calls.cost.SyscallsUnknown == "" {
		got.more["syscalls"] = float64(calls.cost.Syscalls) / float64(counted.Received)
	}
	if lost := float64(r.Sent-r.Received) / float64(r.Sent); lost > 0.01 {
		got.note = fmt.Sprintf("%.1f %% of %g packets per second were lost: compare with care, or choose a lower -packet-rate", lost*100, b.PacketRate)
	}
	return got, nil
}

// idle measures the candidate's processes without any traffic, in ms of processor time per second.
func (b *bench) idle(ctx context.Context, c candidate.Candidate) (reading, error) {
	start, before := time.Now(), runTime(c.PIDs())
	select {
	case <-ctx.Done():
		return reading{}, ctx.Err()
	case <-time.After(idleTime):
	}
	used, wall := runTime(c.PIDs())-before, time.Since(start)
	return reading{value: float64(used) / 1e6 / wall.Seconds(), detail: map[string]any{"run_ns": used, "wall_ns": wall}}, nil
}

// runTime is how long the threads of processes have run, to the nanosecond: the first field of their schedstat
// (Documentation/scheduler/sched-stats.rst). The clock of /proc/PID/stat has steps of 10 ms, which is all that an idle
// tunnel may use. A thread that has ended meanwhile is not in it.
func runTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is well-formed
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			first, _, _ := strings.Cut(string(b), " ")
			if n, err := strconv.ParseInt(first, 10, 64); err == nil {
				sum += time.Duration(n)
			}
		}
	}
	return sum
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
