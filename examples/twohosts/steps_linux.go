package main

import (
	"context"
	"time"
)

// How much of everything: together it makes the ten seconds.
const (
	pings        = 150
	pingInterval = 2 * time.Millisecond
	verifyTime   = 150 * time.Millisecond // of each checked transfer
	tcpWarmup    = 100 * time.Millisecond // before a stream counts
	udpTrial     = 50 * time.Millisecond  // of the search for the highest rate
)

// plan lists the whole run. The two ways take turns, so that a busy moment of
// the machine hits both. died is told when an engine ends by itself.
func (d *demo) plan(died context.CancelCauseFunc) []step {
	var steps []step
	add := func(topic, title string, estimate time.Duration, run func(context.Context) error) {
		// The limit is for what hangs: a machine may be busy with other things.
		steps = append(steps, step{topic, title, estimate, 4*estimate + 15*time.Second, run})
	}
	// The ways exist from the first step on, hence the functions.
	plain, tunnel := func() way { return d.plain }, func() way { return d.tunnel }
	plainBack, tunnelBack := func() way { return d.plain.reverse() }, func() way { return d.tunnel.reverse() }
	r := d.report

	ping := func(title string, on func() way, to *pingTimes) {
		add("measuring ping", title, pings*pingInterval+200*time.Millisecond, func(ctx context.Context) (err error) {
			*to, err = measurePing(ctx, on())
			return err
		})
	}
	tcp := func(title string, on func() way, to *tcpSpeed, of func(*host) *work) {
		add("measuring TCP", title, tcpWarmup+d.Duration+300*time.Millisecond, func(ctx context.Context) (err error) {
			var w []work
			*to, w, err = d.measureTCP(ctx, on())
			d.noteWork(w, of)
			return err
		})
	}
	const search = 16*udpTrial + 200*time.Millisecond

	add("setting up", "set up two hosts and two containers", 250*time.Millisecond, func(ctx context.Context) error {
		return d.setUp(ctx, died)
	})
	ping("ping over the plain link", plain, &r.Plain.Ping)
	ping("ping through flannelkit", tunnel, &r.Tunnel.Ping)
	add("checking every byte", "check every byte through flannelkit", 2*verifyTime+time.Second, d.verify)
	tcp("TCP A -> B over the plain link", plain, &r.Plain.TCPAToB, nil)
	tcp("TCP A -> B through flannelkit", tunnel, &r.Tunnel.TCPAToB, func(h *host) *work { return &h.TCPAToB })
	tcp("TCP B -> A over the plain link", plainBack, &r.Plain.TCPBToA, nil)
	tcp("TCP B -> A through flannelkit", tunnelBack, &r.Tunnel.TCPBToA, func(h *host) *work { return &h.TCPBToA })
	add("measuring UDP", "UDP A -> B over the plain link", search+d.Duration/2, func(ctx context.Context) (err error) {
		r.Plain.UDPAToB, _, err = d.measureUDP(ctx, d.plain)
		return err
	})
	add("measuring UDP", "UDP A -> B through flannelkit", search+d.Duration/2, d.udpThroughTunnel)
	return steps
}

// udpThroughTunnel measures UDP last, because its search overloads the path:
// what was lost before is another matter than what is lost by it.
func (d *demo) udpThroughTunnel(ctx context.Context) error {
	if err := d.noteDrops(ctx, func(h *host, list []drop) { h.Drops = list }); err != nil {
		return err
	}
	rate, w, err := d.measureUDP(ctx, d.tunnel)
	if err != nil {
		return err
	}
	d.report.Tunnel.UDPAToB = rate
	d.noteWork(w, func(h *host) *work { return &h.UDPAToB })
	if err := d.noteDrops(ctx, func(h *host, list []drop) { h.OverloadDrops = list }); err != nil {
		return err
	}
	return d.noteMemory()
}
