package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	roleUDPReceive = "traffic-udp-receive"
	roleUDPSend    = "traffic-udp-send"
)

// MinUDPSize is the smallest UDP payload a trial can use, in bytes: run, size and sequence number.
const MinUDPSize = 16

// DefaultUDPBuffer is the size of the socket buffers that [OpenUDP] asks for, in bytes.
const DefaultUDPBuffer = 8 << 20

// maxTick is the most packets that leave back to back; more of them would test queues, not rates.
const maxTick = 16

// MaxSpread is the most destinations that [UDPConfig] takes.
const MaxSpread = 10_000

// UDPConfig describes the two ends of UDP trials. Only Addr, or Spread in its place, is required.
type UDPConfig struct {
	Addr   netip.Addr // the receiver's address; not used with Spread
	Source netip.Addr // the sender's address; the zero value leaves it to the kernel
	Buffer int        // socket buffers in bytes, forced past the system's limit where allowed; 0: DefaultUDPBuffer

	// Spread are the addresses to send to in turn, one packet each, all of one family and at most MaxSpread; the
	// receiver takes packets for any of its addresses. The sender's socket is not connected then, so the kernel looks
	// for the route of every packet: compare with a Spread of one address, not with Addr.
	Spread []netip.Addr
}

// check also says where the receiver listens.
func (c UDPConfig) check() (receiver netip.Addr, err error) {
	if len(c.Spread) == 0 {
		if !c.Addr.IsValid() {
			return c.Addr, errors.New("traffic: udp: no address")
		}
		return c.Addr, nil
	}
	if len(c.Spread) > MaxSpread {
		return c.Addr, fmt.Errorf("traffic: udp: %d destinations (at most %d)", len(c.Spread), MaxSpread)
	}
	for i, a := range c.Spread {
		if !a.IsValid() || a.Is4() != c.Spread[0].Is4() {
			return c.Addr, fmt.Errorf("traffic: udp: destination %d is %v, the first is %v (all must be of one family)", i, a, c.Spread[0])
		}
	}
	if c.Spread[0].Is4() {
		return netip.IPv4Unspecified(), nil
	}
	return netip.IPv6Unspecified(), nil
}

// UDPTrial describes one trial.
type UDPTrial struct {
	Rate     float64       // packets per second
	Size     int           // bytes of UDP payload per packet; at least MinUDPSize
	Mix      []int         // sizes as Size, used in turn, one packet each, over and over; Size is not used then. See [IMIX]
	Duration time.Duration // of sending
	// Verify fills the payload with a pattern that depends on the sequence number and compares it at the receiver.
	Verify bool

	// OnOpen is called right before the first packet leaves, OnClose as soon as the sender says that the last one has:
	// what counters say in between belongs to Sent packets, less those still under way. They must be quick.
	OnOpen, OnClose func() `json:"-"`
}

// sizes is Mix, or Size alone.
func (t UDPTrial) sizes() []int {
	if len(t.Mix) > 0 {
		return t.Mix
	}
	return []int{t.Size}
}

func (t UDPTrial) check() error {
	if size := slices.Min(t.sizes()); size < MinUDPSize || t.Rate <= 0 || t.Duration <= 0 {
		return fmt.Errorf("traffic: udp: %d bytes at %g packets/s for %v (at least %d bytes, more than 0)", size, t.Rate, t.Duration, MinUDPSize)
	}
	return nil
}

// IMIX returns, for [UDPTrial.Mix], the payload sizes of the simple Internet mix, as routers are tested with: of twelve
// IPv4 packets seven have 64 bytes, four have 576, and one has largest, which is usually the MTU. They are interleaved,
// so that any few packets in a row are much like the whole.
func IMIX(largest int) []int {
	const headers = 20 + 8 // IPv4 and UDP
	small, middle := 64-headers, 576-headers
	return []int{small, middle, small, small, middle, small, largest - headers, small, middle, small, middle, small}
}

// UDPResult is the outcome of one trial. Sent = Received + Lost.
type UDPResult struct {
	Offered  float64       `json:"offered"`  // packets per second asked for
	Achieved float64       `json:"achieved"` // packets per second that the sender handed to the kernel
	Elapsed  time.Duration `json:"elapsed_ns"`
	// Arriving is the time from the first packet's arrival to the last one's. Where it is longer than Elapsed, queues were
	// filled that only emptied after the sender had stopped: what they held did not arrive at the rate it was sent.
	Arriving time.Duration `json:"arriving_ns"`

	Sent       uint64 `json:"sent"`
	Received   uint64 `json:"received"` // different packets
	Bytes      uint64 `json:"bytes"`    // of payload in those
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"` // copies beyond the first
	Reordered  uint64 `json:"reordered"`  // packets that came after one with a higher number (RFC 4737)
	Corrupt    uint64 `json:"corrupt"`    // wrong length or content; not Received
	SendErrors uint64 `json:"send_errors"`
	// ReceiverDrops is how many packets arrived at the receiving socket while its buffer was full: the part of Lost
	// that is the meter's fault, not the path's.
	ReceiverDrops uint64 `json:"receiver_drops"`
	// Reached is for how many destinations of Spread at least one packet arrived; 0 without Spread. One dead peer in
	// ten thousand is less than any loss worth a word, and only shows here.
	Reached int `json:"reached,omitempty"`
}

// Delivered is the rate that got through: packets per second achieved by the sender, or of arrival where that is lower.
func (r UDPResult) Delivered() float64 {
	if r.Received < 2 || r.Arriving <= 0 {
		return r.Achieved
	}
	return min(r.Achieved, float64(r.Received-1)/r.Arriving.Seconds())
}

// Loss is the share of the sent packets that did not arrive, 0 to 1.
func (r UDPResult) Loss() float64 {
	if r.Sent == 0 {
		return 1
	}
	return float64(r.Lost) / float64(r.Sent)
}

// The messages of a trial.
type (
	udpReceiveTrial struct {
		Run     uint32 `json:"run"`
		Sizes   []int  `json:"sizes"`
		Packets uint64 `json:"packets"` // expected
		Verify  bool   `json:"verify"`
		Spread  int    `json:"spread"` // how many destinations there are
	}
	udpSendTrial struct {
		UDPTrial
		Run uint32 `json:"run"`
	}
	udpSent struct {
		Sent    uint64        `json:"sent"`
		Errors  uint64        `json:"errors"`
		Elapsed time.Duration `json:"elapsed_ns"`
	}
	udpFinish struct {
		Sent uint64 `json:"sent"`
	}
	udpSendConfig struct {
		UDPConfig
		Port uint16
	}
)

// A UDPPair is a sender and a receiver process, ready for any number of trials, one at a time.
type UDPPair struct {
	sender, receiver *Proc
	run              uint32
	spread           int
}

// OpenUDP starts the two processes. The caller must call Close.
func OpenUDP(ctx context.Context, from, to Place, config UDPConfig) (*UDPPair, error) {
	at, err := config.check()
	if err != nil {
		return nil, err
	}
	if config.Buffer <= 0 {
		config.Buffer = DefaultUDPBuffer
	}
	receiver, err := Start(to, roleUDPReceive, UDPConfig{Addr: at, Buffer: config.Buffer})
	if err != nil {
		return nil, err
	}
	p := &UDPPair{receiver: receiver, spread: len(config.Spread)}
	var listening struct {
		Port uint16 `json:"port"`
	}
	if err := receiver.Next(ctx, "listening", &listening); err != nil {
		_ = p.Close() // err says more
		return nil, err
	}
	if p.sender, err = Start(from, roleUDPSend, udpSendConfig{config, listening.Port}); err != nil {
		_ = p.Close()
		return nil, err
	}
	if err := p.sender.Next(ctx, "ready", nil); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Trial sends at the trial's rate for its duration and returns what arrived. Loss is no error, and a rate that the sender
// cannot keep is none: see UDPResult.Achieved. After a failed or cancelled trial the pair can only be closed.
func (p *UDPPair) Trial(ctx context.Context, trial UDPTrial) (UDPResult, error) {
	if err := trial.check(); err != nil {
		return UDPResult{}, err
	}
	p.run++
	expected := uint64(trial.Rate*trial.Duration.Seconds()) + maxTick
	err := p.receiver.Send("trial", udpReceiveTrial{Run: p.run, Sizes: trial.sizes(), Packets: expected, Verify: trial.Verify, Spread: p.spread})
	if err != nil {
		return UDPResult{}, err
	}
	if err := p.receiver.Next(ctx, "ready", nil); err != nil {
		return UDPResult{}, err
	}
	if trial.OnOpen != nil {
		trial.OnOpen()
	}
	if err := p.sender.Send("trial", udpSendTrial{trial, p.run}); err != nil {
		return UDPResult{}, err
	}
	var sent udpSent
	if err := p.sender.Next(ctx, "sent", &sent); err != nil {
		return UDPResult{}, err
	}
	if trial.OnClose != nil {
		trial.OnClose()
	}
	if err := p.receiver.Send("finish", udpFinish{sent.Sent}); err != nil {
		return UDPResult{}, err
	}
	var r UDPResult
	if err := p.receiver.Next(ctx, "result", &r); err != nil {
		return UDPResult{}, err
	}
	r.Offered, r.Sent, r.SendErrors, r.Elapsed = trial.Rate, sent.Sent, sent.Errors, sent.Elapsed
	r.Achieved = float64(sent.Sent) / sent.Elapsed.Seconds()
	r.Lost = sent.Sent - min(r.Received, sent.Sent)
	return r, nil
}

// Close ends both processes.
func (p *UDPPair) Close() error {
	var err error
	if p.sender != nil {
		err = p.sender.Close()
	}
	return errors.Join(err, p.receiver.Close())
}

// A packet's payload, big endian:
//
//	0  run       which trial it belongs to, so that a straggler does not count in the next one
//	4  size      of the whole payload, so that a packet cut short is noticed
//	8  sequence  from 0; it also decides the size, and with Spread the destination: each is used in turn. A packet that
//	             could not be sent leaves a gap
//	16 pattern   Verify only; otherwise whatever is there
func putUDPHeader(b []byte, run uint32, sequence uint64) {
	binary.BigEndian.PutUint32(b, run)
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)))
	binary.BigEndian.PutUint64(b[8:], sequence)
}

// tick returns how many packets leave together at the given rate, and how far apart such groups are. Groups are 100 us
// apart where that keeps them small: each costs a wake-up.
func tick(rate float64) (packets int, every time.Duration) {
	packets = min(max(int(rate/10_000), 1), maxTick)
	return packets, time.Duration(float64(packets) / rate * 1e9)
}

// A udpCounter sorts arriving packets.
type udpCounter struct {
	run     uint32
	sizes   []int // by sequence number, in turn
	largest int
	spread  int
	verify  bool
	seen    []uint64 // a bit per sequence number
	highest uint64   // sequence number + 1
	want    []byte   // Verify only

	result UDPResult
}

func newUDPCounter(t udpReceiveTrial) *udpCounter {
	largest := slices.Max(t.Sizes)
	return &udpCounter{
		run: t.Run, sizes: t.Sizes, largest: largest, spread: t.Spread, verify: t.Verify,
		seen: make([]uint64, t.Packets/64+1), want: make([]byte, largest),
	}
}

// add counts one payload; cut tells that the kernel had to cut it to fit the buffer.
func (c *udpCounter) add(b []byte, cut bool) {
	if len(b) < MinUDPSize {
		c.result.Corrupt++
		return
	}
	if binary.BigEndian.Uint32(b) != c.run {
		return // of an earlier trial
	}
	sequence := binary.BigEndian.Uint64(b[8:])
	word, bit := sequence/64, uint64(1)<<(sequence%64)
	size := c.sizes[sequence%uint64(len(c.sizes))]
	if cut || len(b) != size || int(binary.BigEndian.Uint32(b[4:])) != size || word >= uint64(len(c.seen)) {
		c.result.Corrupt++
		return
	}
	if c.verify {
		want := c.want[MinUDPSize:size]
		fillPattern(want, uint64(c.run), sequence*uint64(c.largest))
		if string(want) != string(b[MinUDPSize:]) {
			c.result.Corrupt++
			return
		}
	}
	if c.seen[word]&bit != 0 {
		c.result.Duplicated++
		return
	}
	c.seen[word] |= bit
	c.result.Received++
	c.result.Bytes += uint64(size)
	if sequence < c.highest {
		c.result.Reordered++
	} else {
		c.highest = sequence + 1
	}
}

// reached counts the destinations for which something came.
func (c *udpCounter) reached() int {
	n := 0
	for first := range uint64(c.spread) {
		for sequence := first; sequence < c.highest; sequence += uint64(c.spread) {
			if c.seen[sequence/64]&(1<<(sequence%64)) != 0 {
				n++
				break
			}
		}
	}
	return n
}
