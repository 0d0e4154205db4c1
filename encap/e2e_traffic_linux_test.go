package encap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Traffic whose every byte is known from a seed and its place, so that the
// receiver says where the first wrong one is.

// fill writes the bytes of stream seed to b.
func fill(b []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 + 1
	for len(b) > 0 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], z^z>>31)
		b = b[copy(b, w[:]):]
	}
}

const blockSize = 64 << 10

// sendStream writes n bytes of stream seed in pieces of odd sizes.
func sendStream(w io.Writer, seed uint64, n int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	block := make([]byte, blockSize)
	for at := 0; at < n; at += blockSize {
		b := block[:min(blockSize, n-at)]
		fill(b, seed+uint64(at))
		for len(b) > 0 {
			k := min(1+rng.IntN(blockSize), len(b))
			if rng.IntN(16) == 0 {
				k = min(1+rng.IntN(100), len(b))
			}
			if _, err := w.Write(b[:k]); err != nil {
				return fmt.Errorf("write at %d of %d: %w", at, n, err)
			}
			b = b[k:]
		}
	}
	return nil
}

// receiveStream reads n bytes and the end of the stream, and compares.
func receiveStream(r io.Reader, seed uint64, n int) error {
	got, want := make([]byte, blockSize), make([]byte, blockSize)
	for at := 0; at < n; at += blockSize {
		k := min(blockSize, n-at)
		if _, err := io.ReadFull(r, got[:k]); err != nil {
			return fmt.Errorf("read at %d of %d: %w", at, n, err)
		}
		fill(want[:k], seed+uint64(at))
		if err := same(got[:k], want[:k]); err != nil {
			return fmt.Errorf("block at %d: %w", at, err)
		}
	}
	if k, err := r.Read(got); k != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w after the end", k, err)
	}
	return nil
}

// same says where got differs from want.
func same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d of %d is %#x, not %#x", i, len(want), got[i], want[i])
		}
	}
	return fmt.Errorf("%d bytes, not %d", len(got), len(want))
}

// tcpPair connects two places.
func tcpPair(from, to place, v6 bool) (near, far *net.TCPConn, err error) {
	deadline := time.Now().Add(patience)
	var ln *net.TCPListener
	if err := to.ns.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.addr(v6), 0)))
		return err
	}); err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if err := from.ns.Do(func() error {
		d := net.Dialer{Deadline: deadline}
		c, err := d.Dial("tcp", ln.Addr().String())
		if err == nil {
			near = c.(*net.TCPConn)
		}
		return err
	}); err != nil {
		return nil, nil, fmt.Errorf("%s to %s: %w", from.name, to.name, err)
	}
	ln.SetDeadline(deadline)
	if far, err = ln.AcceptTCP(); err != nil {
		near.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// exchange sends n bytes each way at once over one TCP connection.
func exchange(from, to place, v6 bool, n int) error {
	near, far, err := tcpPair(from, to, v6)
	if err != nil {
		return err
	}
	defer near.Close()
	defer far.Close()
	deadline := time.Now().Add(2 * patience)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	return duplex(near, far, n)
}

// duplex sends n bytes each way between two ends of a connection.
func duplex(near, far *net.TCPConn, n int) error {
	var wg sync.WaitGroup
	errs := make([]error, 4)
	wg.Go(func() { errs[0] = errors.Join(sendStream(near, 1000, n), near.CloseWrite()) })
	wg.Go(func() { errs[1] = receiveStream(far, 1000, n) })
	wg.Go(func() { errs[2] = errors.Join(sendStream(far, 2000, n), far.CloseWrite()) })
	wg.Go(func() { errs[3] = receiveStream(near, 2000, n) })
	wg.Wait()
	for i, who := range []string{"send", "receive", "send back", "receive back"} {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("%s: %w", who, errs[i])
		}
	}
	return errors.Join(errs...)
}

// udpSocket opens a UDP socket with a large receive buffer; dst connects it.
func udpSocket(p place, src, dst netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := p.ns.Do(func() (err error) {
		if dst.IsValid() {
			var local *net.UDPAddr
			if src.IsValid() {
				local = net.UDPAddrFromAddrPort(src)
			}
			c, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(dst))
		} else {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(src))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) {
			const room = 8 << 20
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, room)
			}
		})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// datagram fills b for datagram number n. From 8 bytes on it names itself.
func datagram(b []byte, n int) []byte {
	fill(b, uint64(n)<<17|uint64(len(b)))
	if len(b) >= 8 {
		binary.BigEndian.PutUint32(b, uint32(n))
		binary.BigEndian.PutUint32(b[4:], uint32(len(b)))
	}
	return b
}

// verify checks a datagram of at least 8 bytes and returns its number.
func verify(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint32(b))
	if err := same(b, datagram(make([]byte, len(b)), n)); err != nil {
		return n, fmt.Errorf("datagram %d, %d bytes: %w", n, len(b), err)
	}
	return n, nil
}

// datagrams sends the sizes in turn, count datagrams in all, from one place to
// another and expects every one with its bytes, and in order unless any order
// will do. A window of them is on the way at once: fewer than any queue holds.
func datagrams(from, to place, v6 bool, sizes []int, count int, anyOrder bool) error {
	rx, err := udpSocket(to, netip.AddrPortFrom(to.addr(v6), 0), netip.AddrPort{})
	if err != nil {
		return err
	}
	defer rx.Close()
	// Not connected: then a path MTU that is told meanwhile is no error of Write.
	tx, err := udpSocket(from, netip.AddrPortFrom(from.addr(v6), 0), netip.AddrPort{})
	if err != nil {
		return err
	}
	defer tx.Close()
	const window, windowBytes = 128, 256 << 10
	buf := make([]byte, 1<<16)
	for n := 0; n < count; {
		var wait [][]byte // datagrams on the way
		for total := 0; n < count && len(wait) < window && total < windowBytes; n++ {
			b := datagram(make([]byte, sizes[n%len(sizes)]), n)
			total += len(b)
			wait = append(wait, b)
			if _, err := tx.WriteToUDPAddrPort(b, rx.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				return fmt.Errorf("datagram %d, %d bytes: %w", n, len(b), err)
			}
		}
		rx.SetReadDeadline(time.Now().Add(patience / 2))
		for len(wait) > 0 {
			k, from, err := rx.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("%d of %d datagrams have not come, the first of them has %d bytes", len(wait), n, len(wait[0]))
			}
			if err != nil {
				return err
			}
			at := 0
			if anyOrder {
				at = max(slices.IndexFunc(wait, func(b []byte) bool { return bytes.Equal(b, buf[:k]) }), 0)
			}
			if err := same(buf[:k], wait[at]); err != nil {
				return fmt.Errorf("from %v, with %d of %d datagrams on the way: %w", from, len(wait), n, err)
			}
			wait = slices.Delete(wait, at, at+1)
		}
	}
	return nil
}

// segmented sends super-packets of UDP: count datagrams of size bytes, the last
// one shorter, by one system call. Each has to arrive as it is.
func segmented(from, to place, v6 bool, size, count int) error {
	rx, err := udpSocket(to, netip.AddrPortFrom(to.addr(v6), 0), netip.AddrPort{})
	if err != nil {
		return err
	}
	defer rx.Close()
	tx, err := udpSocket(from, netip.AddrPort{}, rx.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		return err
	}
	defer tx.Close()
	rc, err := tx.SyscallConn()
	if err != nil {
		return err
	}
	if e := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); e != nil || err != nil {
		return fmt.Errorf("UDP_SEGMENT: %w", errors.Join(e, err))
	}
	all := make([]byte, size*count-size/2)
	fill(all, uint64(size))
	if _, err := tx.Write(all); err != nil {
		return fmt.Errorf("send %d datagrams of %d bytes: %w", count, size, err)
	}
	buf := make([]byte, 1<<16)
	rx.SetReadDeadline(time.Now().Add(patience / 2))
	for i := range count {
		want := all[i*size : min((i+1)*size, len(all))]
		n, err := rx.Read(buf)
		if err != nil {
			return fmt.Errorf("datagram %d of %d, %d bytes: %w", i, count, size, err)
		}
		if err := same(buf[:n], want); err != nil {
			return fmt.Errorf("datagram %d of %d: %w", i, count, err)
		}
	}
	return nil
}
