package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
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

// UDPConfig describes the two ends of UDP trials. Only Addr is required.
type UDPConfig struct {
	Addr   netip.Addr // the receiver's address
	Source netip.Addr // the sender's address; the zero value leaves it to the kernel
	Buffer int        // socket buffers in bytes, forced past the system's limit where allowed; 0: DefaultUDPBuffer
}

// UDPTrial describes one trial.
type UDPTrial struct {
	Rate     float64       // packets per second
	Size     int           // bytes of UDP payload per packet; at least MinUDPSize
	Duration time.Duration // of sending
	// Verify fills the payload with a pattern that depends on the sequence number and compares it at the receiver.
	Verify bool
}

// UDPResult is the outcome of one trial. Sent = Received + Lost.
type UDPResult struct {
	Offered  float64       `json:"offered"`  // packets per second asked for
	Achieved float64       `json:"achieved"` // packets per second that the sender handed to the kernel
	Elapsed  time.Duration `json:"elapsed_ns"`

	Sent       uint64 `json:"sent"`
	Received   uint64 `json:"received"` // different packets
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"` // copies beyond the first
	Reordered  uint64 `json:"reordered"`  // packets that came after one with a higher number (RFC 4737)
	Corrupt    uint64 `json:"corrupt"`    // wrong length or content; not Received
	SendErrors uint64 `json:"send_errors"`
	// ReceiverDrops is how many packets arrived at the receiving socket while its buffer was full: the part of Lost
	// that is the meter's fault, not the path's.
	ReceiverDrops uint64 `json:"receiver_drops"`
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
		Size    int    `json:"size"`
		Packets uint64 `json:"packets"` // expected
		Verify  bool   `json:"verify"`
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
}

// OpenUDP starts the two processes. The caller must call Close.
func OpenUDP(ctx context.Context, from, to Place, config UDPConfig) (*UDPPair, error) {
	if !config.Addr.IsValid() {
		return nil, errors.New("traffic: udp: no address")
	}
	if config.Buffer <= 0 {
		config.Buffer = DefaultUDPBuffer
	}
	receiver, err := Start(to, roleUDPReceive, config)
	if err != nil {
		return nil, err
	}
	p := &UDPPair{receiver: receiver}
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

// Trial sends for the trial's duration and returns what arrived. Loss is no error. After a failed or cancelled trial the
// pair can only be closed.
func (p *UDPPair) Trial(ctx context.Context, trial UDPTrial) (UDPResult, error) {
	if trial.Size < MinUDPSize || trial.Rate <= 0 || trial.Duration <= 0 {
		return UDPResult{}, fmt.Errorf("traffic: udp: %d bytes at %g packets/s for %v (at least %d bytes, more than 0)",
			trial.Size, trial.Rate, trial.Duration, MinUDPSize)
	}
	p.run++
	expected := uint64(trial.Rate*trial.Duration.Seconds()) + maxTick
	err := p.receiver.Send("trial", udpReceiveTrial{Run: p.run, Size: trial.Size, Packets: expected, Verify: trial.Verify})
	if err != nil {
		return UDPResult{}, err
	}
	if err := p.receiver.Next(ctx, "ready", nil); err != nil {
		return UDPResult{}, err
	}
	if err := p.sender.Send("trial", udpSendTrial{trial, p.run}); err != nil {
		return UDPResult{}, err
	}
	var sent udpSent
	if err := p.sender.Next(ctx, "sent", &sent); err != nil {
		return UDPResult{}, err
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
//	8  sequence  from 0
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
	size    int
	verify  bool
	seen    []uint64 // a bit per sequence number
	highest uint64   // sequence number + 1
	want    []byte   // Verify only

	result UDPResult
}

func newUDPCounter(t udpReceiveTrial) *udpCounter {
	return &udpCounter{run: t.Run, size: t.Size, verify: t.Verify, seen: make([]uint64, t.Packets/64+1), want: make([]byte, t.Size)}
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
	if cut || len(b) != c.size || int(binary.BigEndian.Uint32(b[4:])) != c.size || word >= uint64(len(c.seen)) {
		c.result.Corrupt++
		return
	}
	if c.verify {
		want := c.want[MinUDPSize:]
		fillPattern(want, uint64(c.run), sequence*uint64(c.size))
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
	if sequence < c.highest {
		c.result.Reordered++
	} else {
		c.highest = sequence + 1
	}
}
