package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/cost"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// reading is what one kind of measurement returns.
type reading struct {
	value  float64
	more   map[string]float64 // by key of the derived tests
	full   bool               // the sender
	note   string
	detail any
}

// measurement takes one kind of measurement of a candidate. All send from host A to host B.
type measurement func(ctx context.Context, c candidate.Candidate) (reading, error)

// measurementOf is how a test is done.
func (b *bench) measurementOf(t result.Test) measurement {
	if n := result.PeerTests()[t]; n > 0 {
		return b.crowd(t, n)
	}
	return map[result.Test]measurement{
		result.TCP1: b.tcp(1), result.TCP4: b.tcp(4), result.TCP16: b.tcp(16), result.TCP64: b.tcp(64), result.Both: b.both,
		result.UDP64: b.udp(result.UDP64, 64), result.UDP512: b.udp(result.UDP512, 512), result.UDP1400: b.udp(result.UDP1400, 1400),
		result.UDPMix: b.udpMix,
		result.RR1:    b.requests(1), result.RR16: b.requests(16), result.Connects: b.connects,
		result.RTT: b.ping, result.RTTLoad: b.pingLoaded,
		result.CPU: b.cpu, result.CPUPacket: b.cpuPacket, result.Idle: b.idle, result.Memory: b.memory,
	}[t]
}

// measure takes one step, with all that the machine did and lost meanwhile.
func (b *bench) measure(ctx context.Context, s step, c candidate.Candidate) (result.Sample, error) {
	out := result.Sample{Mode: s.bed.Mode, MTU: s.bed.MTU, Test: s.test, Candidate: s.candidate, Run: s.run, Start: time.Now().UTC()}
	do := b.measurementOf(s.test)
	if do == nil {
		return out, fmt.Errorf("no such test: %s", s.test)
	}
	meter, err := traffic.StartMeter(c.PIDs()...)
	if err != nil {
		return out, err
	}
	b.found = 0
	watch, err := cost.Start(cost.Config{A: b.hosts.HostA.NS, B: b.hosts.HostB.NS, PIDs: b.pids()})
	if err != nil {
		return out, err
	}
	got, err := do(ctx, c)
	price, costErr := watch.Stop()
	usage, meterErr := meter.Stop()
	if err = errors.Join(err, costErr, meterErr); err != nil {
		return out, err
	}
	out.Took = time.Since(out.Start)
	out.Value, out.More, out.SenderFull, out.Note = got.value, got.more, got.full, got.note
	out.Others, out.Drops = price.Others, price.Drops
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

// pids are the processes of all candidates that are up: an adapter's need not be the benchmark's children.
func (b *bench) pids() []int {
	var pids []int
	for _, c := range b.candidates {
		pids = append(pids, c.PIDs()...)
	}
	return pids
}
