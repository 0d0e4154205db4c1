package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

const (
	pingWarmup  = 20 // pings for neighbours and caches
	pingTimeout = 3 * time.Second
	verifyRate  = 5000  // checked datagrams per second
	udpPayload  = 64    // bytes; small packets are the hard ones
	udpLoss     = 0.005 // share that the search takes for no loss
)

// measurePing measures round trips on an idle way, where none may be lost.
func measurePing(ctx context.Context, w way) (pingTimes, error) {
	meter, err := traffic.StartMeter()
	if err != nil {
		return pingTimes{}, err
	}
	r, err := traffic.Ping(ctx, w.a.place, traffic.PingConfig{
		Addr: w.b.addr, Source: w.a.addr, Count: pings, Interval: pingInterval, Warmup: pingWarmup, Timeout: pingTimeout,
	})
	if err != nil {
		return pingTimes{}, err
	}
	if r.Received < r.Sent {
		return pingTimes{}, fmt.Errorf("%d of %d pings to %v were lost", r.Sent-r.Received, r.Sent, w.b.addr)
	}
	usage, err := meter.Stop()
	if err != nil {
		return pingTimes{}, err
	}
	us := func(t time.Duration) float64 { return float64(t.Nanoseconds()) / 1e3 }
	return pingTimes{
		Sent: r.Sent, Received: r.Received,
		MinUS: us(r.Min), MedianUS: us(r.Median), P99US: us(r.P99), MaxUS: us(r.Max), BusyCores: usage.Cores(),
	}, nil
}

// verify sends both ways through the tunnel what is compared byte for byte.
func (d *demo) verify(ctx context.Context) error {
	v := &d.report.Verified
	for i, t := range []struct {
		way   way
		bytes *int64
	}{{d.tunnel, &v.TCPAToBBytes}, {d.tunnel.reverse(), &v.TCPBToABytes}} {
		r, err := traffic.TCP(ctx, t.way.a.place, t.way.b.place, traffic.TCPConfig{
			Addr: t.way.b.addr, Source: t.way.a.addr, Duration: verifyTime, Verify: true, Seed: uint64(i + 1),
		})
		if err != nil {
			return err
		}
		if r.Verified == 0 {
			return fmt.Errorf("TCP to %v stalled: no byte arrived in %v", t.way.b.addr, verifyTime)
		}
		*t.bytes = r.Verified
	}
	r, err := udpOnce(ctx, d.tunnel, traffic.UDPTrial{
		Rate: verifyRate, Size: d.largestDatagram(), Duration: verifyTime, Verify: true,
	})
	switch {
	case err != nil:
		return err
	case r.Corrupt > 0:
		return fmt.Errorf("%d of %d UDP datagrams of %d bytes arrived changed", r.Corrupt, r.Sent, d.largestDatagram())
	case r.Received == 0:
		return fmt.Errorf("none of %d UDP datagrams of %d bytes arrived", r.Sent, d.largestDatagram())
	}
	v.UDPDatagrams, v.UDPBytes, v.UDPLost = r.Received, d.largestDatagram(), r.Lost
	return nil
}

// largestDatagram is the most UDP payload that the tunnel carries unfragmented.
func (d *demo) largestDatagram() int {
	if d.IPv6 {
		return d.tunnelMTU() - 40 - 8
	}
	return d.tunnelMTU() - 20 - 8
}

func udpOnce(ctx context.Context, w way, t traffic.UDPTrial) (r traffic.UDPResult, err error) {
	pair, err := traffic.OpenUDP(ctx, w.a.place, w.b.place, traffic.UDPConfig{Addr: w.b.addr, Source: w.a.addr})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	return pair.Trial(ctx, t)
}

// measureTCP measures one stream from a to b, and what each host's engines did
// meanwhile. A lost burst silences TCP for its retransmission timeout, 200 ms
// and then twice that, which a short window may fall into: only silence in
// three of them is a stall.
func (d *demo) measureTCP(ctx context.Context, w way) (tcpSpeed, []work, error) {
	for range 3 {
		o := observer{d: d, ctx: ctx}
		r, err := traffic.TCP(ctx, w.a.place, w.b.place, traffic.TCPConfig{
			Addr: w.b.addr, Source: w.a.addr, Warmup: tcpWarmup, Duration: d.Duration, OnOpen: o.open, OnClose: o.close,
		})
		if err == nil {
			err = o.err
		}
		if err != nil {
			return tcpSpeed{}, nil, err
		}
		if r.Bytes > 0 {
			return tcpSpeed{
				GbitPerSecond: r.BitsPerSecond / 1e9, Retransmits: r.Retransmits, SegmentBytes: r.MSS, BusyCores: o.usage.Cores(),
			}, o.work(), nil
		}
	}
	return tcpSpeed{}, nil, fmt.Errorf("TCP to %v stalled: no byte arrived in %v, three times", w.b.addr, d.Duration)
}

// An observer reads counters as a measurement begins and ends.
type observer struct {
	d     *demo
	ctx   context.Context
	meter *traffic.Meter

	before, after []counters
	usage         traffic.Usage
	err           error
}

func (o *observer) open() {
	if o.before, o.err = o.d.counters(o.ctx); o.err != nil {
		return
	}
	var pids []int
	for _, p := range o.d.procs {
		pids = append(pids, p.proc.PID())
	}
	o.meter, o.err = traffic.StartMeter(pids...)
}

func (o *observer) close() {
	if o.err != nil {
		return
	}
	if o.usage, o.err = o.meter.Stop(); o.err == nil {
		o.after, o.err = o.d.counters(o.ctx)
	}
}

// work is what the engines of each host did in between.
func (o *observer) work() []work {
	var all []work
	for i, p := range o.usage.Procs {
		c := o.after[i].since(o.before[i])
		all = append(all, work{
			CPUSeconds:           p.CPU.Seconds(),
			CPUPercent:           100 * p.CPU.Seconds() / o.usage.Wall.Seconds(),
			Packets:              c.Packets,
			SystemCalls:          c.SystemCalls,
			PacketsPerSystemCall: ratio(float64(c.Packets), float64(c.SystemCalls)),
			SuperPackets:         c.Supers,
		})
	}
	return all
}

// counters asks both hosts.
func (d *demo) counters(ctx context.Context) ([]counters, error) {
	var all []counters
	for _, p := range d.procs {
		c, err := p.counters(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// measureUDP searches for the highest rate without loss and then holds it for a
// longer time. What does not hold is lowered, twice at most: after that the
// loss is what it is.
func (d *demo) measureUDP(ctx context.Context, w way) (rate udpRate, all []work, err error) {
	pair, err := traffic.OpenUDP(ctx, w.a.place, w.b.place, traffic.UDPConfig{Addr: w.b.addr, Source: w.a.addr})
	if err != nil {
		return rate, nil, err
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	found, err := traffic.SearchUDP(ctx, pair, traffic.SearchConfig{
		Size: udpPayload, Trial: udpTrial, Loss: udpLoss, Start: 100_000, Step: 2, Tolerance: 0.1,
	})
	if err != nil {
		return rate, nil, err
	}
	if found.Rate == 0 {
		return rate, nil, fmt.Errorf("UDP to %v: at no rate, however low, less than %g %% are lost", w.b.addr, 100*udpLoss)
	}
	var r traffic.UDPResult
	for try, offered := 0, found.Rate; try < 3; try, offered = try+1, offered*0.85 {
		o := observer{d: d, ctx: ctx}
		o.open()
		r, err = pair.Trial(ctx, traffic.UDPTrial{Rate: offered, Size: udpPayload, Duration: max(d.Duration/2, udpTrial)})
		o.close()
		if err = errors.Join(err, o.err); err != nil {
			return rate, nil, err
		}
		if all = o.work(); r.Loss() <= udpLoss {
			break
		}
	}
	return udpRate{
		PayloadBytes: udpPayload, PacketsPerSecond: float64(r.Received) / r.Elapsed.Seconds(),
		Sent: r.Sent, Received: r.Received, Loss: r.Loss(), SenderLimited: found.SenderLimited,
	}, all, nil
}

// noteWork puts what each host's engines did where the report has it. Over the
// plain link (of is nil) they do nothing.
func (d *demo) noteWork(w []work, of func(*host) *work) {
	if of == nil {
		return
	}
	for i := range w {
		*of(&d.report.Hosts[i]) = w[i]
	}
}

// noteDrops hands on what each host has lost since the last call.
func (d *demo) noteDrops(ctx context.Context, note func(*host, []drop)) error {
	now, err := d.counters(ctx)
	if err != nil {
		return err
	}
	for i := range now {
		note(&d.report.Hosts[i], now[i].since(d.noted[i]).drops())
	}
	d.noted = now
	return nil
}

// noteMemory notes how large each host's process has become.
func (d *demo) noteMemory() error {
	for i, p := range d.procs {
		t, err := traffic.ReadProc(p.proc.PID())
		if err != nil {
			return err
		}
		d.report.Hosts[i].ResidentBytes = t.PeakResident
	}
	return nil
}
