package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An impaired link is two veth pairs that meet in a namespace of their own:
//
//	a/nameA --veth-- in "a" --AF_PACKET--> impair --AF_PACKET--> out "b" --veth-- b/nameB
//
// and the same the other way round, with one goroutine per direction. A
// goroutine owns its read buffer, its random numbers and the frames it holds
// back; the impairment is an atomic pointer, the counters are atomic too.
//
// Every offload of the four ends is off, so that a frame is what a wire would
// carry: of MTU size, with its checksums computed. With tx checksums on, the
// frames would have none and each corrupted one would be believed.

const (
	ethHeader = 14
	// heldFor is how long a frame that is held back waits for others to
	// overtake it. Without an end to it the last packet of a conversation
	// could be lost, and reordering loses nothing.
	heldFor = 10 * time.Millisecond
)

// An Impairment says what happens to the frames in one direction of a link.
// Its zero value forwards all of them untouched. The probabilities are from 0
// to 1, independent of each other, and apply to each frame alone.
type Impairment struct {
	Drop      float64 // probability that the frame is lost
	Duplicate float64 // that it arrives twice, back to back
	Reorder   float64 // that it is held back until Hold others have passed
	Corrupt   float64 // that one byte behind the Ethernet header is changed

	// Hold is how many frames overtake one that is reordered; 0 means 1, a swap
	// with the next. If none comes for 10 ms, the frame goes out all the same.
	Hold int

	// Match, if not nil, chooses the frames to impair, Ethernet header first;
	// the others pass, without using up random numbers. It is called from the
	// direction's goroutine and must not keep or change the frame.
	Match func(frame []byte) bool

	// Seed makes the random numbers repeatable. Lab.Impaired reads it, Set
	// does not.
	Seed uint64
}

func (m *Impairment) validate() error {
	for _, p := range []float64{m.Drop, m.Duplicate, m.Reorder, m.Corrupt} {
		if !(p >= 0 && p <= 1) {
			return fmt.Errorf("probability %v is not from 0 to 1", p)
		}
	}
	if m.Hold < 0 {
		return fmt.Errorf("hold %d is negative", m.Hold)
	}
	return nil
}

// A Direction is one of the two of a link.
type Direction int

const (
	AToB Direction = iota // from the first end given to Lab.Impaired to the second
	BToA
)

// ImpairCounters counts what an Impairer did in one direction, in frames.
type ImpairCounters struct {
	Received   uint64 // read from the near end
	Forwarded  uint64 // written to the far end, duplicates included
	Dropped    uint64
	Duplicated uint64
	Reordered  uint64
	Corrupted  uint64
	// The rest should be zero. Oversized frames were larger than the MTU and not
	// forwarded, because somebody turned an offload back on. Overruns were lost
	// because the reader was too slow. Failed ones were refused by the far end,
	// for example while it was down.
	Oversized, Overruns, Failed uint64
}

// An Impairer is the middle of an impaired link. Its methods may be called
// from any goroutine.
type Impairer struct {
	ns  *NS
	dir [2]*wire
	wg  sync.WaitGroup
}

// Impaired connects two namespaces as Veth does, with an Impairer in between
// that starts with cfg in both directions. It is for tests of correctness: it
// moves some ten thousand frames a second, not more. The offloads of both
// ends are off and must stay so. The lab closes it.
func (l *Lab) Impaired(a *NS, nameA string, b *NS, nameB string, mtu int, cfg Impairment) (*Impairer, error) {
	fail := func(err error) (*Impairer, error) {
		return nil, fmt.Errorf("netlab: impaired link %s/%s - %s/%s: %w", a.name, nameA, b.name, nameB, err)
	}
	if err := cfg.validate(); err != nil {
		return fail(err)
	}
	mid, err := l.Namespace("between " + a.name + " and " + b.name)
	if err != nil {
		return fail(err)
	}
	if haveIPv6() { // the wire has no addresses and says nothing of its own
		if err := mid.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return fail(err)
		}
	}
	i := &Impairer{ns: mid}
	if err := i.connect(l, End{a, nameA}, End{b, nameB}, mtu); err != nil {
		return fail(err)
	}
	socks := [2]*os.File{}
	for k, name := range []string{"a", "b"} {
		if socks[k], err = mid.packetSocket(name); err != nil {
			if k == 1 {
				socks[0].Close()
			}
			return fail(err)
		}
	}
	for d := range i.dir {
		i.dir[d] = newWire(socks[d], socks[1-d], mtu, cfg, uint64(d))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		socks[0].Close()
		socks[1].Close()
		return fail(ErrClosed)
	}
	for _, w := range i.dir {
		i.wg.Go(w.run)
	}
	l.impairers = append(l.impairers, i)
	return i, nil
}

// connect makes the two veth pairs and turns their offloads off.
func (i *Impairer) connect(l *Lab, a, b End, mtu int) error {
	if err := l.Veth(a.NS, a.Link, i.ns, "a", mtu); err != nil {
		return err
	}
	if err := l.Veth(b.NS, b.Link, i.ns, "b", mtu); err != nil {
		return err
	}
	return l.SetLinkMode(M3, a, b, End{i.ns, "a"}, End{i.ns, "b"})
}

// Set changes the impairment of both directions, for frames that are read from
// now on.
func (i *Impairer) Set(cfg Impairment) error {
	return errors.Join(i.SetDirection(AToB, cfg), i.SetDirection(BToA, cfg))
}

// SetDirection changes the impairment of one direction.
func (i *Impairer) SetDirection(d Direction, cfg Impairment) error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("netlab: set impairment: %w", err)
	}
	i.dir[d].cfg.Store(&cfg)
	return nil
}

// Counters returns what happened in a direction so far.
func (i *Impairer) Counters(d Direction) ImpairCounters {
	return i.dir[d].counters()
}

// Close stops forwarding; frames held back are lost. The link stays, dead.
// Further calls do nothing.
func (i *Impairer) Close() error {
	var errs []error
	for _, w := range i.dir {
		if err := w.in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	i.wg.Wait()
	return errors.Join(errs...)
}

// packetSocket opens a socket for all frames that a device of the namespace
// receives. It would also see what others send there, but nobody does, and a
// packet socket does not see what it sent itself (skb_loop_sk in net/core/dev.c).
func (n *NS) packetSocket(link string) (*os.File, error) {
	fd := -1
	index, err := n.linkIndex(link)
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		// Protocol 0 receives nothing until bind has chosen the device.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		// Room for a TCP window. Root of a user namespace may not exceed
		// net.core.rmem_max and makes do with that; Overruns tell.
		const room = 8 << 20
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
				return fmt.Errorf("SO_RCVBUF: %w", err)
			}
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, n.errorf("open packet socket on "+link, err)
	}
	return os.NewFile(uintptr(fd), "packet:"+link), nil
}

// bigEndian16 returns v as the kernel's __be16.
func bigEndian16(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// A wire is one direction of an impaired link.
type wire struct {
	in, out  *os.File
	maxFrame int
	cfg      atomic.Pointer[Impairment]

	rng  *rand.Rand // from here on owned by run
	buf  []byte
	held []heldFrame // oldest first

	received, forwarded, dropped, duplicated, reordered, corrupted, oversized, failed atomic.Uint64

	overrunMu sync.Mutex // the kernel's counter is cleared by reading it
	overruns  uint64
}

// A heldFrame goes out after so many others.
type heldFrame struct {
	frame []byte
	after int
}

func newWire(in, out *os.File, mtu int, cfg Impairment, stream uint64) *wire {
	w := &wire{
		in: in, out: out,
		maxFrame: ethHeader + mtu,
		rng:      rand.New(rand.NewPCG(cfg.Seed, stream)),
		buf:      make([]byte, 1<<16+ethHeader), // a super-packet, to tell it from a frame
	}
	w.cfg.Store(&cfg)
	return w
}

// run forwards until the socket is closed.
func (w *wire) run() {
	for {
		if len(w.held) > 0 {
			w.in.SetReadDeadline(time.Now().Add(heldFor))
		}
		n, err := w.in.Read(w.buf)
		switch {
		case err == nil:
			w.received.Add(1)
			w.impair(w.buf[:n])
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.in.SetReadDeadline(time.Time{})
			w.release(true)
		default:
			// ENETDOWN, reported once when the device goes down. It may come up
			// again, and Close ends the loop in any case.
		}
	}
}

// impair does to one frame what the dice say. All of them are thrown for each
// frame, so that one probability does not shift what the others do.
func (w *wire) impair(frame []byte) {
	cfg := w.cfg.Load()
	if len(frame) > w.maxFrame {
		w.oversized.Add(1)
		return
	}
	if cfg.Match != nil && !cfg.Match(frame) {
		w.pass(frame)
		return
	}
	drop := w.rng.Float64() < cfg.Drop
	duplicate := w.rng.Float64() < cfg.Duplicate
	reorder := w.rng.Float64() < cfg.Reorder
	corrupt := w.rng.Float64() < cfg.Corrupt
	place, change := w.rng.Uint64(), w.rng.Uint64()

	if drop {
		w.dropped.Add(1)
		return
	}
	if corrupt && len(frame) > ethHeader {
		at := ethHeader + place%uint64(len(frame)-ethHeader)
		frame[at] ^= byte(1 + change%255)
		w.corrupted.Add(1)
	}
	copies := 1
	if duplicate {
		w.duplicated.Add(1)
		copies = 2
	}
	if reorder {
		w.reordered.Add(1)
		kept := append([]byte(nil), frame...)
		for range copies {
			w.held = append(w.held, heldFrame{kept, max(cfg.Hold, 1)})
		}
		return
	}
	for range copies {
		w.pass(frame)
	}
}

// pass sends a frame on, and those after it whose time has come.
func (w *wire) pass(frame []byte) {
	w.send(frame)
	for i := range w.held {
		w.held[i].after--
	}
	w.release(false)
}

// release sends the held frames that enough others have overtaken, or all.
func (w *wire) release(all bool) {
	rest := w.held[:0]
	for _, h := range w.held {
		if all || h.after <= 0 {
			w.send(h.frame)
		} else {
			rest = append(rest, h)
		}
	}
	clear(w.held[len(rest):])
	w.held = rest
}

func (w *wire) send(frame []byte) {
	if _, err := w.out.Write(frame); err != nil {
		w.failed.Add(1)
		return
	}
	w.forwarded.Add(1)
}

func (w *wire) counters() ImpairCounters {
	c := ImpairCounters{
		Received:   w.received.Load(),
		Forwarded:  w.forwarded.Load(),
		Dropped:    w.dropped.Load(),
		Duplicated: w.duplicated.Load(),
		Reordered:  w.reordered.Load(),
		Corrupted:  w.corrupted.Load(),
		Oversized:  w.oversized.Load(),
		Failed:     w.failed.Load(),
	}
	w.overrunMu.Lock()
	defer w.overrunMu.Unlock()
	if conn, err := w.in.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) {
			if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				w.overruns += uint64(s.Drops)
			}
		})
	}
	c.Overruns = w.overruns
	return c
}
