package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	roleTCPReceive = "traffic-tcp-receive"
	roleTCPSend    = "traffic-tcp-send"
)

// DefaultTCPBlock is the size of one write and of one read, in bytes: iperf3's.
const DefaultTCPBlock = 128 << 10

// pollInterval is how long a worker stays in one system call at most before it looks whether it should stop.
const pollInterval = 200 * time.Millisecond

// TCPConfig describes one TCP test. Only Addr and Duration are required, and Source with Both.
type TCPConfig struct {
	Addr   netip.Addr // the receiver's address
	Source netip.Addr // the sender's address; the zero value leaves it to the kernel

	Streams  int           // connections at the same time; 0 means 1
	Warmup   time.Duration // traffic before the window opens; not counted
	Duration time.Duration // the window

	// Both makes as many streams go the other way in the same window, from Addr to Source, over connections of their
	// own and between two processes more. The window opens on both sides when all streams of both are connected.
	Both bool

	// Rate, in bits of payload per second over all streams of one direction, makes the application send no more than that: it writes
	// a small block, then sleeps until the next is due. 0 sends as fast as the connection takes it.
	Rate float64

	Block        int    // bytes per write; 0 means DefaultTCPBlock, or at most 250 us of traffic when Rate is set
	SocketBuffer int    // SO_SNDBUF and SO_RCVBUF in bytes, forced where allowed; 0 leaves the kernel's tuning on
	Congestion   string // congestion control of the sender, such as "cubic"; empty: the system's

	// Verify sends a pattern that depends on Seed, the stream and the position, compares every byte at the receiver,
	// and compares the SHA-256 and the length of both ends. It costs processor time: not for speed.
	Verify bool
	Seed   uint64

	// OnOpen and OnClose are called as the window opens and closes, to read counters. They must be quick.
	OnOpen, OnClose func() `json:"-"`
}

// TCPResult is what the receiver measured in the window.
type TCPResult struct {
	BitsPerSecond float64       `json:"bits_per_second"`        // payload, all streams
	PerDirection  [2]float64    `json:"per_direction,omitzero"` // with Both: to Addr, to Source; their sum is BitsPerSecond
	Bytes         int64         `json:"bytes"`                  // payload in the window, all streams
	Window        time.Duration `json:"window_ns"`
	PerStream     []float64     `json:"per_stream"`  // bits per second of each; with Both, those to Source come last
	Retransmits   int           `json:"retransmits"` // segments sent again in the window, from TCP_INFO
	MSS           int           `json:"mss"`         // the sender's segment size in bytes, from TCP_INFO
	Congestion    string        `json:"congestion"`  // what the sender used
	Verified      int64         `json:"verified"`    // bytes compared, all streams, warm-up too; 0 without Verify
}

// tcpListening is the receiver's first answer.
type tcpListening struct {
	Port uint16 `json:"port"`
}

// tcpSendConfig is TCPConfig for the sender, with the port the receiver got.
type tcpSendConfig struct {
	TCPConfig
	Port uint16
}

// tcpStream is what one end knows about one stream. Index is the sender's: the connections may be accepted in another
// order than they were made, so the ends are matched by it in Verify mode, where it is the first byte of the stream.
type tcpStream struct {
	Index       int    `json:"index"`
	Window      int64  `json:"window"` // bytes in the window
	Total       int64  `json:"total"`
	SHA256      string `json:"sha256,omitempty"` // Verify only
	Retransmits int    `json:"retransmits"`
	MSS         int    `json:"mss"`
	Congestion  string `json:"congestion,omitempty"`
}

// tcpReport is the last message of each end.
type tcpReport struct {
	Window  time.Duration `json:"window_ns"`
	Streams []tcpStream   `json:"streams"`
}

// withDefaults fills in what was left out.
func (c TCPConfig) withDefaults() TCPConfig {
	c.Streams = max(c.Streams, 1)
	if c.Block <= 0 {
		c.Block = DefaultTCPBlock
		if c.Rate > 0 {
			// Blocks of 250 us keep the flow smooth; much smaller ones would measure the timer instead.
			c.Block = min(c.Block, max(1448, int(c.Rate/8/float64(c.Streams)/4000)))
		}
	}
	return c
}

func (c TCPConfig) check() error {
	switch {
	case !c.Addr.IsValid():
		return errors.New("traffic: tcp: no address")
	case c.Duration <= 0:
		return errors.New("traffic: tcp: no duration")
	case c.Both && !c.Source.IsValid():
		return errors.New("traffic: tcp: no source (the streams back go there)")
	case c.Streams > 255:
		return fmt.Errorf("traffic: tcp: %d streams (at most 255)", c.Streams)
	}
	return nil
}

// back is the configuration of the other direction.
func (c TCPConfig) back() TCPConfig {
	c.Addr, c.Source = c.Source, c.Addr
	c.Seed++
	return c
}

// TCP sends from one place to another for Warmup and Duration and returns what arrived; with Both, from each to the
// other. The sender and the receiver are two new processes. It fails when the connections cannot be made within 5 s,
// when the path breaks, and in Verify mode at the first byte that differs. When ctx ends first, all processes are
// stopped and its error is returned.
func TCP(ctx context.Context, from, to Place, config TCPConfig) (result TCPResult, err error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return TCPResult{}, err
	}
	ends := []*tcpEnds{{config: config, from: from, to: to}}
	if config.Both {
		ends = append(ends, &tcpEnds{config: config.back(), from: to, to: from})
	}
	defer func() {
		for _, e := range ends {
			err = errors.Join(err, e.close(err))
		}
	}()
	for _, e := range ends {
		if err := e.connect(ctx); err != nil {
			return TCPResult{}, err
		}
	}
	for _, e := range ends {
		if err := e.start(); err != nil {
			return TCPResult{}, err
		}
	}
	for _, step := range []struct {
		kind string
		call func()
	}{{"open", config.OnOpen}, {"close", config.OnClose}} {
		for _, e := range ends {
			if err := e.receiver.Next(ctx, step.kind, nil); err != nil {
				return TCPResult{}, err
			}
		}
		if step.call != nil {
			step.call()
		}
	}
	results := make([]TCPResult, len(ends))
	for i, e := range ends {
		if results[i], err = e.report(ctx); err != nil {
			return TCPResult{}, err
		}
	}
	if !config.Both {
		return results[0], nil
	}
	return joinTCP(results[0], results[1]), nil
}

// tcpEnds are the two processes of one direction.
type tcpEnds struct {
	config           TCPConfig
	from, to         Place
	sender, receiver *Proc
}

// connect starts both and returns when all streams are connected.
func (e *tcpEnds) connect(ctx context.Context) (err error) {
	if e.receiver, err = Start(e.to, roleTCPReceive, e.config); err != nil {
		return err
	}
	var listening tcpListening
	if err := e.receiver.Next(ctx, "listening", &listening); err != nil {
		return err
	}
	if e.sender, err = Start(e.from, roleTCPSend, tcpSendConfig{e.config, listening.Port}); err != nil {
		return err
	}
	if err := e.sender.Next(ctx, "connected", nil); err != nil {
		return err
	}
	if !e.config.Both {
		return nil
	}
	return e.receiver.Next(ctx, "accepted", nil)
}

// start makes both ends begin, where they wait for it: with Both.
func (e *tcpEnds) start() error {
	if !e.config.Both {
		return nil
	}
	return errors.Join(e.receiver.Send("start", nil), e.sender.Send("start", nil))
}

// report waits for the end of both.
func (e *tcpEnds) report(ctx context.Context) (TCPResult, error) {
	var sent, received tcpReport
	if err := e.sender.Next(ctx, "report", &sent); err != nil {
		return TCPResult{}, err
	}
	if err := e.receiver.Next(ctx, "report", &received); err != nil {
		return TCPResult{}, err
	}
	return combineTCP(e.config, sent, received)
}

// close ends what was started; failed is what went wrong before, or nil.
func (e *tcpEnds) close(failed error) error {
	var err error
	for _, p := range []*Proc{e.sender, e.receiver} {
		if p != nil {
			err = errors.Join(err, closeUnlessFailed(failed, p))
		}
	}
	return err
}

// joinTCP makes one result of two directions.
func joinTCP(there, back TCPResult) TCPResult {
	r := there
	r.PerDirection = [2]float64{there.BitsPerSecond, back.BitsPerSecond}
	r.BitsPerSecond += back.BitsPerSecond
	r.Bytes += back.Bytes
	r.PerStream = append(r.PerStream, back.PerStream...)
	r.Retransmits += back.Retransmits
	r.Verified += back.Verified
	return r
}

// closeUnlessFailed ends a child; its complaint about being stopped matters only if nothing else went wrong before.
func closeUnlessFailed(failed error, p *Proc) error {
	if err := p.Close(); failed == nil {
		return err
	}
	return nil
}

// combineTCP makes one result of what both ends say.
func combineTCP(config TCPConfig, sent, received tcpReport) (TCPResult, error) {
	r := TCPResult{Window: received.Window}
	for _, s := range sent.Streams {
		r.Retransmits += s.Retransmits
		r.MSS, r.Congestion = s.MSS, s.Congestion
	}
	for _, s := range received.Streams {
		r.Bytes += s.Window
		r.PerStream = append(r.PerStream, float64(s.Window)*8/received.Window.Seconds())
	}
	r.BitsPerSecond = float64(r.Bytes) * 8 / received.Window.Seconds()
	if !config.Verify {
		return r, nil
	}
	byIndex := map[int]tcpStream{}
	for _, s := range received.Streams {
		byIndex[s.Index] = s
	}
	for _, s := range sent.Streams {
		got := byIndex[s.Index]
		if got.Total != s.Total || got.SHA256 != s.SHA256 {
			return r, fmt.Errorf("traffic: tcp: stream %d: sent %d bytes (sha256 %.12s), received %d (sha256 %.12s)",
				s.Index, s.Total, s.SHA256, got.Total, got.SHA256)
		}
		r.Verified += got.Total
	}
	return r, nil
}
