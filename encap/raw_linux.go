package encap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// The raw path: one thread, one TUN queue, one UDP socket.
//
//  1. tx_linux.go: read packets and super-packets from the queue into a slab,
//     decide on each (inspect.go), lay them out as messages.
//  2. One sendmmsg sends the messages; trouble_linux.go deals with refusals.
//  3. rx_linux.go: one recvmmsg takes messages into the receive ring.
//  4. Their packets are decided on and joined into runs (internal/offload),
//     each written to the queue with one writev.
//  5. When neither direction had anything, the thread sleeps in ppoll.
//
// Step 4 runs the host's receive path inside writev, so that a reply is often
// in the queue when step 1 comes round: no wake-up in between.
//
// Everything here belongs to the thread in run, except what is said to be
// shared.
type rawPath struct {
	core
	pub    published // shared
	sys    calls
	tun    int   // own duplicate of the queue's descriptor
	socks  []int // 0: the socket; others: extra source ports
	family int   // of all socks
	vnet   bool
	rawIP4 int // raw socket for ICMP errors, -1: none
	rawIP6 int
	probe  int // unbound socket to ask the kernel for path MTUs
	wake   int // eventfd
	arena  *arena
	polls  []unix.PollFd
	tx     txState
	rx     rxState
	loops  uint64

	txReady  bool   // the queue may have packets
	rxReady  bool   // the socket may have datagrams
	bulkSeen uint64 // super-packets and trains at the last sleep

	errData [2048]byte // an entry of the error queue
	errOOB  [512]byte

	stop atomic.Bool // shared

	mu      sync.Mutex // shared, guards what follows
	running bool
	freed   bool
	drops   uint64 // last reading of the kernel's socket drops
}

// publishEvery is how many busy rounds pass between two publications of the
// counters: some milliseconds at most.
const publishEvery = 64

// briefTime is how long a busy engine sleeps without telling the scheduler, in
// nanoseconds; see waitBriefly.
const briefTime = 50_000

func newRawPath(e *Engine, conn *net.UDPConn) (_ path, err error) {
	p := &rawPath{
		core: core{cfg: e.cfg, log: e.log, table: e.table},
		tun:  -1, rawIP4: -1, rawIP6: -1, probe: -1, wake: -1, vnet: e.queue.VirtioHeader(),
		sys: calls{readv: rawReadv, writev: rawWritev, sendmmsg: rawSendmmsg, recvmmsg: rawRecvmmsg},
	}
	p.out = p
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	fd, ok := e.queue.FD()
	if !ok {
		return nil, tun.ErrClosed
	}
	if p.tun, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("duplicate the queue's descriptor: %w", err)
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := p.openSockets(conn); err != nil {
		return nil, err
	}
	if err := p.allocate(); err != nil {
		return nil, err
	}
	p.polls = append(p.polls, unix.PollFd{Fd: int32(p.wake), Events: unix.POLLIN}, unix.PollFd{Fd: int32(p.tun)})
	for _, s := range p.socks {
		p.polls = append(p.polls, unix.PollFd{Fd: int32(s)})
	}
	// From here on nothing can fail: take the connection over. Closing it
	// takes the socket out of the runtime's poller, which would wake a
	// thread for every datagram.
	if err := conn.Close(); err != nil {
		return nil, fmt.Errorf("take over the socket: %w", err)
	}
	return p, nil
}

// allocate maps the memory of both directions.
func (p *rawPath) allocate() (err error) {
	size := txArena + rxArena
	if p.arena, err = newArena(size); err != nil {
		return err
	}
	p.tx.init(p)
	return p.rx.init(p)
}

func (p *rawPath) run(ctx context.Context) error {
	p.mu.Lock()
	if p.freed {
		p.mu.Unlock()
		return ErrRunning
	}
	p.running = true
	p.mu.Unlock()
	signalled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(signalled)
		p.signal()
	})
	err := p.runLocked()
	if !stop() {
		<-signalled
	}
	return errors.Join(err, p.release())
}

// runLocked is the loop on a thread of its own.
func (p *rawPath) runLocked() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p.txReady, p.rxReady = true, true
	err := p.loop()
	p.tx.abandon()
	p.publish()
	return err
}

// loop does rounds until told to stop. A direction that was found empty is not
// tried again before ppoll says so, or, for the queue, before something was
// written to it: a futile call costs as much as a tenth of a packet's way.
func (p *rawPath) loop() error {
	for !p.stop.Load() {
		busy := false
		if (p.txReady || p.tx.pending()) && !p.tx.backingOff() {
			sent, err := p.tx.pump()
			if err != nil {
				return err
			}
			busy = sent
		}
		if p.rxReady {
			got, err := p.rx.pump()
			if err != nil {
				return err
			}
			if got {
				busy, p.txReady = true, true
			}
		}
		if p.loops++; p.loops%publishEvery == 0 {
			p.publish()
		}
		if busy && (p.txReady || p.rxReady) {
			continue
		}
		st := &p.core.stats
		seen := st.TX.SuperPackets + st.TX.Trains + st.RX.Trains
		bulk := seen != p.bulkSeen
		p.bulkSeen = seen
		st.Waits++
		if err := p.sleep(bulk); err != nil {
			return err
		}
	}
	return nil
}

// sleep waits until there is something to do.
func (p *rawPath) sleep(bulk bool) error {
	ns := int64(-1)
	p.polls[1].Events = unix.POLLIN
	for i := range p.socks {
		p.polls[2+i].Events = 0
	}
	p.polls[2].Events = unix.POLLIN
	if p.tx.pending() {
		// The queue can't be read before its batch has left.
		p.polls[1].Events = 0
		if p.tx.backoff {
			ns = backoffTime
		} else {
			// Only the one that is full: the others always have room.
			p.polls[2+p.tx.meta[p.tx.sent].sock].Events |= unix.POLLOUT
		}
	}
	if bulk && ns < 0 && p.cfg.Without&BriefSleep == 0 {
		if n, e := waitBriefly(p.polls, briefTime); n > 0 || e != 0 {
			return p.woken()
		}
	}
	p.publish()
	switch e := wait(p.polls, ns); e {
	case 0, unix.EINTR:
	default:
		return fmt.Errorf("%w: poll: %w", ErrSocket, e)
	}
	return p.woken()
}

// woken looks at why ppoll returned.
func (p *rawPath) woken() error {
	if bad := p.polls[1].Revents & (unix.POLLERR | unix.POLLHUP | unix.POLLNVAL); bad != 0 {
		return fmt.Errorf("%w: %w", ErrDevice, tun.ErrGone)
	}
	p.txReady = p.txReady || p.polls[1].Revents&unix.POLLIN != 0
	p.rxReady = p.rxReady || p.polls[2].Revents&(unix.POLLIN|unix.POLLERR) != 0
	for i, s := range p.socks {
		if p.polls[2+i].Revents&unix.POLLNVAL != 0 {
			return fmt.Errorf("%w: descriptor %d is closed", ErrSocket, s)
		}
		if p.polls[2+i].Revents&unix.POLLERR != 0 {
			p.drainErrors(s)
		}
	}
	return nil
}

func (p *rawPath) publish() { p.pub.publish(&p.core.stats) }

// signal ends the loop; from any goroutine.
func (p *rawPath) signal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signalLocked()
}

func (p *rawPath) signalLocked() {
	p.stop.Store(true)
	if !p.freed {
		var one = [8]byte{1}
		_, _ = unix.Write(p.wake, one[:])
	}
}

// Close ends a running path, and releases one that never ran.
func (p *rawPath) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.signalLocked()
		return nil
	}
	return p.releaseLocked()
}

// release returns descriptors and memory, once.
func (p *rawPath) release() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.releaseLocked()
}

func (p *rawPath) releaseLocked() error {
	if p.freed {
		return nil
	}
	if len(p.socks) > 0 {
		p.readDrops()
	}
	p.freed = true
	var errs []error
	for _, fd := range append([]int{p.tun, p.rawIP4, p.rawIP6, p.probe, p.wake}, p.socks...) {
		if fd >= 0 {
			if err := unix.Close(fd); err != nil {
				errs = append(errs, os.NewSyscallError("close", err))
			}
		}
	}
	if p.arena != nil {
		errs = append(errs, p.arena.r.Close())
	}
	if p.tx.ring != nil {
		errs = append(errs, p.tx.ring.Close())
	}
	if p.rx.ring != nil {
		errs = append(errs, p.rx.ring.Close())
	}
	return errors.Join(errs...)
}

// skMeminfoDrops is SK_MEMINFO_DROPS of include/uapi/linux/sock_diag.h.
const skMeminfoDrops = 8

// readDrops asks how many datagrams did not fit the receive buffer. mu is held.
func (p *rawPath) readDrops() {
	var info [9]uint32
	n := uint32(unsafe.Sizeof(info))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(p.socks[0]), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	if e == 0 && n > skMeminfoDrops*4 {
		p.drops = uint64(info[skMeminfoDrops])
	}
}

func (p *rawPath) stats() Stats {
	s := p.pub.load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.freed {
		p.readDrops()
	}
	s.SocketDrops = p.drops
	return s
}
