package encap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/flannelkit/flannelkit/tun"
)

// DefaultPort is the UDP port of flannel's udp backend.
const DefaultPort = 8285

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrRunning: Run was called twice, or after Close. An engine runs once.
	ErrRunning = errors.New("encap: engine ran already")
	// ErrDevice: the TUN device is gone or broken; Run can't go on.
	ErrDevice = errors.New("encap: device failed")
	// ErrSocket: the UDP socket is broken; Run can't go on.
	ErrSocket = errors.New("encap: socket failed")
)

// Overhead returns the bytes that encapsulation puts in front of every inner
// packet on the way to a peer at addr: an IP and a UDP header, 28 for IPv4 and
// 48 for IPv6. The inner MTU is the network's less this.
func Overhead(addr netip.Addr) int {
	if addr.Unmap().Is4() {
		return 28
	}
	return 48
}

// Checksums is what an engine requires of the TCP or UDP checksum inside
// before it joins packets, see ARCHITECTURE.md, "Checksums".
type Checksums uint8

const (
	// VerifyInner sums every inner packet that is to be joined, and leaves
	// all others for the kernel to verify: corruption is found end to end,
	// as without a tunnel. The default.
	VerifyInner Checksums = iota
	// TrustOuter takes the outer UDP checksum for the inner one where the
	// kernel verified it for sure (datagrams of a UDP_GRO train, and all
	// over IPv6). It saves reading every byte once, and hides corruption
	// that happened before the sender's engine read the packet.
	TrustOuter
)

// Feature is an optimisation that can be switched off, for trouble or to
// measure its worth.
type Feature uint16

// Features.
const (
	// SegmentOffload sends several datagrams to one peer as one message
	// (UDP_SEGMENT).
	SegmentOffload Feature = 1 << iota
	// ReceiveOffload takes several datagrams of one peer as one message
	// (UDP_GRO).
	ReceiveOffload
	// Trains sends small packets of one size that follow each other as one
	// message; without it only super-packets are.
	Trains
	// JoinTCP and JoinUDP write runs of received packets as one.
	JoinTCP
	JoinUDP
	// Batches moves many messages with one sendmmsg or recvmmsg. Without it
	// one goes at a time, so that small packets form no trains and runs
	// don't grow across messages. Linux only; the portable path ignores it.
	Batches
	// BriefSleep sleeps up to 50 us without telling Go's scheduler while
	// bulk traffic flows. Linux only; the portable path ignores it.
	BriefSleep
)

// Config adjusts an Engine. The zero value is right for almost everyone.
type Config struct {
	// Log gets changes of state: offload trouble, a learnt path MTU. Never
	// anything for each packet. nil discards.
	Log *slog.Logger
	// Checksums is the policy for inner checksums.
	Checksums Checksums
	// NoFilter delivers packets whatever their outer and inner source and
	// inner destination are. Then anyone who can reach the port can inject
	// packets into this host, as with flannel.
	NoFilter bool
	// NoICMP makes no ICMP errors.
	NoICMP bool
	// Without lists features to switch off. Without: SegmentOffload is the
	// switch for networks whose cards corrupt segmented datagrams (Linux
	// 7.0 to 7.1.4 with some drivers): that can't be noticed at run time.
	Without Feature
	// SourcePorts is how many extra source ports outbound datagrams are
	// spread over, by inner flow, so that the network's hashes (receive
	// queues, ECMP, bonds) spread them too. 0: all leave from the socket's
	// own port, which is what firewalls that match the source port expect.
	// At most 64; flannel accepts any source port. Linux only; the portable
	// path ignores it.
	SourcePorts int
}

// maxSourcePorts bounds Config.SourcePorts.
const maxSourcePorts = 64

// Engine carries packets between one TUN queue and one UDP socket.
type Engine struct {
	cfg   Config
	log   *slog.Logger
	table *Table
	queue *tun.Queue
	path  path

	started atomic.Bool
	closing sync.Once
	closed  error
}

// path is the part of an engine that moves packets: raw system calls on a
// Linux TUN queue, or wireguard/tun and x/net anywhere.
type path interface {
	run(ctx context.Context) error
	stats() Stats
	io.Closer
}

// New returns an engine between queue and conn that finds peers in table. On
// success the engine owns conn (it can't be used any more) and has its own
// descriptor of the queue, so that the device may be closed under it; Close or
// the end of Run returns both. On failure conn stays the caller's.
//
// Several engines may share a table, each with its own queue of the device and
// its own socket on the same port (see [Listen] and ListenConfig.ReusePort).
// Two engines on one queue reorder packets.
func New(queue *tun.Queue, conn *net.UDPConn, table *Table, cfg Config) (*Engine, error) {
	switch {
	case queue == nil || conn == nil || table == nil:
		return nil, errors.New("encap: new: queue, conn and table are all required")
	case cfg.SourcePorts < 0 || cfg.SourcePorts > maxSourcePorts:
		return nil, fmt.Errorf("encap: new: SourcePorts is %d (0 to %d)", cfg.SourcePorts, maxSourcePorts)
	case cfg.Checksums > TrustOuter:
		return nil, fmt.Errorf("encap: new: unknown Checksums policy %d", cfg.Checksums)
	}
	e := &Engine{cfg: cfg, log: cfg.Log, table: table, queue: queue}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.log = e.log.With("device", queue.Device().Name())
	var err error
	if queue.Wrapped() {
		e.path, err = newPortablePath(e, conn)
	} else {
		e.path, err = newRawPath(e, conn)
	}
	if err != nil {
		return nil, fmt.Errorf("encap: new: %w", err)
	}
	return e, nil
}

// Run carries packets until ctx ends, and then returns nil, or until the
// device or the socket fails, and then returns an error that wraps [ErrDevice]
// or [ErrSocket]. Everything the engine holds is released when it returns. It
// occupies one OS thread meanwhile. An engine runs once.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return ErrRunning
	}
	err := e.path.run(ctx)
	return errors.Join(err, e.Close())
}

// Close releases what an engine holds that never ran, and ends one that runs
// as the end of its context would; then Run still has to be waited for.
// Closing twice is harmless.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		e.started.Store(true)
		e.closed = e.path.Close()
	})
	return e.closed
}

// Stats returns what the engine has done so far. It may be called at any time,
// also after Run.
func (e *Engine) Stats() Stats { return e.path.stats() }
