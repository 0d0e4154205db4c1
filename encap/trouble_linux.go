package encap

import (
	"fmt"
	"log/slog"

	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/sys/unix"
)

// What happens when a message is refused. Nothing that could be sent is lost:
//
//	EAGAIN                 the socket is full: the batch waits for POLLOUT
//	ENOBUFS, ENOMEM        the device is full: the batch waits backoffTime, a few times
//	an error of the past   (ICMP, from the error queue): read it, send again
//	EMSGSIZE               path MTU: learn it, send datagram by datagram, in fragments
//	EIO, EINVAL of a train offload trouble: no trains to that peer for learnTime,
//	                       send datagram by datagram
//	anything else          that datagram can't be sent: drop it, go on with the next

const (
	// backoffTime is how long the engine waits for a device without
	// buffers, in nanoseconds; maxAttempts how often in a row.
	backoffTime = 500_000
	maxAttempts = 40
)

// isBroken says that a descriptor is of no more use.
func isBroken(e unix.Errno) bool {
	return e == unix.EBADF || e == unix.ENOTSOCK || e == unix.EFAULT
}

// isGone says that the device was deleted.
func isGone(e unix.Errno) bool {
	return e == unix.EBADFD || e == unix.EBADF || e == unix.ENODEV
}

func socketError(op string, e unix.Errno) error {
	return fmt.Errorf("%w: %s: %w", ErrSocket, op, e)
}

// refused deals with errno e of the message at t.sent.
func (t *txState) refused(e unix.Errno) (blocked bool, err error) {
	m := &t.meta[t.sent]
	switch e {
	case unix.EINTR:
		return false, nil
	case unix.EAGAIN:
		return true, nil
	case unix.ENOBUFS, unix.ENOMEM:
		if t.attempts++; t.attempts <= maxAttempts {
			t.backoff, t.retryAt = true, monotonic()+backoffTime
			return true, nil
		}
		t.attempts = 0
		t.drop(m, DropNoBuffers)
		return false, nil
	}
	if isBroken(e) {
		return false, socketError("send", e)
	}
	switch {
	case t.fragment(m, e):
		if m.segs == 1 {
			return false, nil
		}
	case t.ofThePast(m, e):
		return false, nil
	case m.segs == 1 || isICMP(e):
		t.drop(m, unsendable(e))
		return false, nil
	case isOffload(e) && m.peer.setGSOOff():
		t.p.log.Warn("segmentation offload is refused; sending datagrams one by one",
			slog.String("peer", m.peer.Endpoint.String()), slog.String("error", e.Error()), slog.Duration("for", learnTime))
	}
	t.p.core.stats.Replays++
	m.replay = 0
	return false, nil
}

// fragment reports whether m was refused because it is larger than the path
// MTU, and makes it go in outer fragments then. Before Linux 6.14 a train was
// refused with EINVAL for that.
func (t *txState) fragment(m *txMessage, e unix.Errno) bool {
	if (e != unix.EMSGSIZE && e != unix.EINVAL) || m.frag || !t.learnPathMTU(m) {
		return false
	}
	t.tellFirst(t.p.table.cur.Load(), t.sent)
	t.p.core.stats.Fragmented += uint64(m.segs - max(m.replay, 0))
	m.frag = true
	return true
}

// maxRetries is how often in a row errors of the past are believed to be that.
const maxRetries = 6

// ofThePast reports whether errno e may be about an earlier datagram, maybe to
// another peer: an ICMP error is reported once, on whatever call comes next.
// Then the same call is worth another try.
func (t *txState) ofThePast(m *txMessage, e unix.Errno) bool {
	queued := t.p.drainErrors(t.p.socks[m.sock])
	if (!queued && !isICMP(e)) || m.retries >= maxRetries {
		return false
	}
	m.retries++
	return true
}

// isICMP says that e is what the kernel makes of an ICMP error
// (net/ipv4/icmp.c icmp_err_convert, net/ipv6/icmp.c icmpv6_err_convert), or
// of having no route: nothing about the message itself.
func isICMP(e unix.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET, unix.ENOPROTOOPT, unix.EPROTO, unix.EACCES:
		return true
	}
	return false
}

// isOffload says that e is how the kernel or a driver refuses to segment.
func isOffload(e unix.Errno) bool {
	return e == unix.EIO || e == unix.EINVAL || e == unix.EOPNOTSUPP || e == unix.EMSGSIZE
}

// unsendable names why a single datagram could not be sent.
func unsendable(e unix.Errno) Drop {
	if e == unix.EMSGSIZE {
		return DropTooBig
	}
	return DropUnreachable
}

// drop gives up what is left of the message at t.sent.
func (t *txState) drop(m *txMessage, d Drop) {
	left := m.segs
	if m.replay > 0 {
		left -= m.replay
	}
	t.p.core.stats.Drops[d] += uint64(left)
	t.sent++
}

// abandon gives up a batch that still waits when the engine ends.
func (t *txState) abandon() {
	for t.pending() {
		t.drop(&t.meta[t.sent], DropNoBuffers)
	}
}

// replay sends the segments of m as single datagrams, from m.replay on.
func (t *txState) replay(m *txMessage) (blocked bool, err error) {
	st := &t.p.core.stats.TX
	h := t.msgs[t.sent].hdr
	one := &t.scratch[0]
	m.retries = 0
	for m.replay < m.segs {
		iov, n, bytes := t.segment(t.sent, m.replay)
		one.hdr = msghdr{name: h.name, namelen: h.namelen, iov: addr(iov), iovlen: uintptr(n)}
		_, e := t.call(m, one, 1)
		switch {
		case e == 0:
			t.attempts = 0
			st.Batches++
			st.Messages++
			st.Packets++
			st.Bytes += uint64(bytes)
			m.replay++
			m.retries = 0
			continue
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return true, nil
		case e == unix.ENOBUFS || e == unix.ENOMEM:
			if t.attempts++; t.attempts <= maxAttempts {
				t.backoff, t.retryAt = true, monotonic()+backoffTime
				return true, nil
			}
			t.attempts = 0
			t.p.core.stats.Drops[DropNoBuffers]++
		case isBroken(e):
			return false, socketError("send", e)
		case t.fragment(m, e), t.ofThePast(m, e):
			continue
		default:
			t.p.core.stats.Drops[unsendable(e)]++
		}
		m.replay++
		m.retries = 0
	}
	t.sent++
	return false, nil
}

// segment returns segment i of message k as iovecs in t.cut.
func (t *txState) segment(k, i int) (iov *iovec, n, bytes int) {
	m, first := &t.meta[k], t.firstIovec(k)
	if m.pairs {
		a, b := t.iovs[first+2*i], t.iovs[first+2*i+1]
		t.cut[0], t.cut[1] = a, b
		return &t.cut[0], 2, int(a.len + b.len)
	}
	// A train of whole packets is one iovec, see extend.
	v := t.iovs[first]
	at := uintptr(i * m.seg)
	t.cut[0] = iovec{v.base + at, min(uintptr(m.seg), v.len-at)}
	return &t.cut[0], 1, int(t.cut[0].len)
}

// firstIovec returns the index of the first iovec of message k.
func (t *txState) firstIovec(k int) int {
	return int(t.msgs[k].hdr.iov-addr(&t.iovs[0])) / iovecSize
}

// learnPathMTU asks the kernel for the path MTU to m's peer and notes it. It
// returns whether that explains why m was refused.
func (t *txState) learnPathMTU(m *txMessage) bool {
	mtu, err := t.p.askPathMTU(m.peer)
	if err != nil || m.seg+m.peer.overhead <= mtu {
		return false
	}
	t.p.notePathMTU(m.peer, mtu)
	return true
}

// askPathMTU connects the probe socket to the peer and reads IP_MTU.
func (p *rawPath) askPathMTU(pr *peer) (int, error) {
	if p.family == unix.AF_INET {
		if err := unix.Connect(p.probe, &unix.SockaddrInet4{Addr: pr.Endpoint.Addr().As4(), Port: int(pr.Endpoint.Port())}); err != nil {
			return 0, err
		}
		return unix.GetsockoptInt(p.probe, unix.IPPROTO_IP, unix.IP_MTU)
	}
	if err := unix.Connect(p.probe, &unix.SockaddrInet6{Addr: pr.Endpoint.Addr().As16(), Port: int(pr.Endpoint.Port())}); err != nil {
		return 0, err
	}
	if pr.v6 {
		return unix.GetsockoptInt(p.probe, unix.IPPROTO_IPV6, unix.IPV6_MTU)
	}
	return unix.GetsockoptInt(p.probe, unix.IPPROTO_IP, unix.IP_MTU)
}

// minPathMTU is below what nobody may talk us: Linux' net.ipv4.route.min_pmtu,
// and for IPv6 its smallest MTU (RFC 8200 section 5).
const minPathMTU4, minPathMTU6 = 552, 1280

// believable raises a reported path MTU to that.
func believable(pr *peer, mtu int) int {
	if pr.v6 {
		return max(mtu, minPathMTU6)
	}
	return max(mtu, minPathMTU4)
}

func (p *rawPath) notePathMTU(pr *peer, mtu int) {
	if pr.setPathMTU(mtu) {
		p.core.stats.PathMTUs++
		p.log.Info("path MTU learnt", slog.String("peer", pr.Endpoint.String()), slog.Int("mtu", mtu))
	}
}

// tellFirst reports the path MTU to the sender of the first segment of message
// k. The segment is quoted, not the super-packet it was cut from, whose header
// is not whole any more.
func (t *txState) tellFirst(s *snapshot, k int) {
	m := &t.meta[k]
	iov, n, _ := t.segment(k, 0)
	b := t.quote[:0]
	for _, v := range pairAt(iov, n) {
		b = append(b, bytesAt(&v, min(int(v.len), icmpMax6-len(b)))...)
	}
	if pmtu := m.peer.pathMTU(); pmtu != 0 {
		t.p.tooBig(s, b, m.seg, m.peer, pmtu)
	}
}

// drainErrors reads the error queue of socket fd. It returns whether there was
// anything. Path MTUs are noted, everything else is a matter of the past.
func (p *rawPath) drainErrors(fd int) bool {
	any := false
	for range 64 {
		q, ok := p.readError(fd)
		if !ok {
			break
		}
		// What the kernel itself reports is about the call that failed.
		any = any || q.origin != unix.SO_EE_ORIGIN_LOCAL
		if q.errno == unix.EMSGSIZE {
			p.pathMTUReport(q)
		}
	}
	// The pending error itself, if the queue was full or empty.
	if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && e != 0 {
		any = true
	}
	return any
}

// pathMTUReport handles an ICMP fragmentation-needed or packet-too-big about a
// datagram of ours.
func (p *rawPath) pathMTUReport(q queuedError) {
	s := p.table.cur.Load()
	for _, pr := range s.peers {
		if pr.outer != q.dest || (q.port != 0 && pr.Endpoint.Port() != q.port) {
			continue
		}
		mtu := q.mtu
		if mtu == 0 { // a router of before RFC 1191
			var err error
			if mtu, err = p.askPathMTU(pr); err != nil {
				return
			}
		}
		mtu = believable(pr, mtu)
		if known := pr.pathMTU(); known != 0 && mtu > known {
			return // reports only lower it; time raises it
		}
		p.notePathMTU(pr, mtu)
		// The datagram is lost. If enough of it came back, and it is one
		// that went this way, its sender can be told now; otherwise the
		// next one tells it.
		if len(q.data) >= offload.IPv4Len+8 && s.destPeer(q.data) == pr && s.sourcePeer(q.data) == localPeer {
			p.tooBig(s, q.data, packetMax, pr, mtu)
		}
		return
	}
}

// queuedError is an entry of the error queue.
type queuedError struct {
	errno  unix.Errno
	origin uint8 // SO_EE_ORIGIN_...
	mtu    int
	dest   addr128 // where the datagram went
	port   uint16
	data   []byte // what came back of its payload: the inner packet
}
