package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/bench/candidate"
	"github.com/flannelkit/flannelkit/bench/result"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// tcp measures the highest rate that n streams reach together.
func (b *bench) tcp(n int) measurement {
	return func(ctx context.Context, c candidate.Candidate) (reading, error) {
		from, to := c.Addrs()
		if n <= iperfStreams && b.useIperf3() {
			return b.iperf3(ctx, from, to, n)
		}
		r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
			Addr: to, Source: from, Streams: n, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion,
		})
		return reading{value: r.BitsPerSecond / 1e9, detail: r}, err
	}
}

// iperfStreams is how many streams are iperf3's: up to 3.15 it has one thread for all, and would be measured itself.
const iperfStreams = 4

func (b *bench) useIperf3() bool {
	if b.Generator == "auto" {
		_, err := exec.LookPath("iperf3")
		return err == nil
	}
	return b.Generator == "iperf3"
}

// both measures one stream in each direction at once, always with the generator of our own.
func (b *bench) both(ctx context.Context, c candidate.Candidate) (reading, error) {
	from, to := c.Addrs()
	r, err := traffic.TCP(ctx, b.a, b.b, traffic.TCPConfig{
		Addr: to, Source: from, Both: true, Warmup: b.Warmup, Duration: b.Duration, Congestion: b.Congestion,
	})
	return reading{value: r.BitsPerSecond / 1e9, detail: r}, err
}

// udp searches the highest rate of one size without loss.
func (b *bench) udp(test result.Test, size int) measurement {
	return func(ctx context.Context, c candidate.Candidate) (reading, error) {
		return b.search(ctx, c, test, traffic.SearchConfig{Size: size}, nil)
	}
}

// udpHeaders is what UDP over IPv4 puts before the payload.
const udpHeaders = 28

// mixMTU is what the mix of sizes is made for, whatever a candidate's own MTU is, so that all carry the same packets: what
// wireguard, which has the largest headers, leaves of Ethernet's 1500 bytes.
const mixMTU = 1420

// udpMix searches the highest rate of mixed sizes.
func (b *bench) udpMix(ctx context.Context, c candidate.Candidate) (reading, error) {
	return b.search(ctx, c, result.UDPMix, traffic.SearchConfig{Mix: traffic.IMIX(mixMTU)}, nil)
}

// undoLimit is how long a candidate may take to remove its peers.
const undoLimit = 30 * time.Second

// crowd searches the highest rate without loss of small packets spread over n peers.
func (b *bench) crowd(test result.Test, n int) measurement {
	return func(ctx context.Context, c candidate.Candidate) (got reading, err error) {
		crowd, ok := c.(candidate.Crowd)
		if !ok {
			return reading{}, fmt.Errorf("%s has no way to have many peers", c.Name())
		}
		destinations, err := crowd.Peers(ctx, n)
		defer func() {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
			defer cancel()
			_, undoErr := crowd.Peers(undo, 0)
			err = errors.Join(err, undoErr)
		}()
		if err != nil {
			return reading{}, err
		}
		if got, err = b.search(ctx, c, test, traffic.SearchConfig{Size: 64}, destinations); err != nil {
			return got, err
		}
		// One dead peer in a thousand is less than the loss that is allowed.
		if r, ok := got.detail.(traffic.SearchResult); ok {
			if reached := mostReached(r, n); reached < n {
				got.note = fmt.Sprintf("%d of %d peers were not reached", n-reached, n)
			}
		}
		return got, nil
	}
}

// mostReached is to how many peers a trial got through that had a packet for each of n; n if no trial had.
func mostReached(r traffic.SearchResult, n int) int {
	most := -1
	for _, t := range r.Trials {
		if t.Sent >= uint64(n) {
			most = max(most, t.Reached)
		}
	}
	if most < 0 {
		return n
	}
	return most
}

// search searches the highest rate without loss, from where the last search of the same kind ended.
func (b *bench) search(ctx context.Context, c candidate.Candidate, test result.Test, config traffic.SearchConfig, spread []netip.Addr) (reading, error) {
	from, to := c.Addrs()
	pair, err := traffic.OpenUDP(ctx, b.a, b.b, traffic.UDPConfig{Addr: to, Source: from, Spread: spread})
	if err != nil {
		return reading{}, err
	}
	config.Trial, config.Tolerance, config.Start = b.Trial, b.Tolerance, 100_000
	if last, ok := b.guesses[guess{c.Name(), test}]; ok {
		config.Start, config.Step = last, 1.1
	}
	r, err := traffic.SearchUDP(ctx, pair, config)
	if err != nil {
		_ = pair.Close() // err says more
		return reading{}, err
	}
	b.found = r.Offered
	got := reading{value: r.Rate / 1000, full: r.SenderLimited, detail: r}
	if largest := max(config.Size, slices.Max(append(config.Mix, 0))) + udpHeaders; largest > c.MTU() {
		got.note = fmt.Sprintf("packets of %d bytes go in fragments, the MTU is %d", largest, c.MTU())
	} else if n := receiverDrops(r); n > 0 {
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
