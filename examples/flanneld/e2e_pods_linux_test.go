package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"golang.org/x/sys/unix"
)

// health are the flags that labHost.metric and labHost.readyz need.
const (
	healthPort = "-healthz-port=8080"
	healthIP   = "-healthz-ip=127.0.0.1"
	healthURL  = "http://127.0.0.1:8080"
)

// A pod is a namespace behind a host's docker0, as a container of Docker's is.
type pod struct {
	*netlab.NS
	h     *labHost
	addr4 netip.Addr // .2 of the host's subnet; zero in a network without IPv4
	addr6 netip.Addr
}

// pod starts a pod on a host, once the host has its subnets.
func (h *labHost) pod(f subnetenv.File) *pod {
	h.c.t.Helper()
	p := &pod{NS: h.c.namespace(h.Name() + "-pod"), h: h}
	h.c.must(h.c.lab.Veth(p.NS, "eth0", h.NS, "pod0", f.MTU))
	h.c.must(h.Bridge("docker0", "pod0"))
	for _, s := range []netip.Prefix{f.Subnet, f.Subnet6} {
		if !s.IsValid() {
			continue
		}
		bridge := s.Addr().Next()
		own, all := bridge.Next(), netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if s.Addr().Is4() {
			p.addr4 = own
		} else {
			p.addr6, all = own, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			h.c.must(h.Sysctl("net/ipv6/conf/all/forwarding", "1"))
		}
		h.c.must(h.AddAddr("docker0", netip.PrefixFrom(bridge, s.Bits())))
		h.c.must(p.AddAddr("eth0", netip.PrefixFrom(own, s.Bits())))
		h.c.must(p.AddRoute(all, bridge, "eth0", 0))
	}
	return p
}

// reach checks that two pods reach each other: by ping, and by a TCP stream whose every
// byte is compared.
func reach(a, b *pod) {
	t := a.h.c.t
	t.Helper()
	for _, p := range [][2]*pod{{a, b}, {b, a}} {
		for _, addr := range [][2]netip.Addr{{p[0].addr4, p[1].addr4}, {p[0].addr6, p[1].addr6}} {
			if !addr[0].IsValid() {
				continue
			}
			pingFrom(t, p[0].NS, addr[0], addr[1])
			r, err := traffic.TCP(t.Context(), traffic.In[*netlab.Process](p[0].NS), traffic.In[*netlab.Process](p[1].NS),
				traffic.TCPConfig{Addr: addr[1], Source: addr[0], Duration: 100 * time.Millisecond, Verify: true})
			if err != nil || r.Verified == 0 {
				t.Errorf("TCP from %v to %v: %d bytes, %v", addr[0], addr[1], r.Verified, err)
			}
		}
	}
}

// A stream is datagrams from one pod to another, two hundred a second, numbered, so that
// every single one that does not arrive is known.
type stream struct {
	t       *testing.T
	name    string
	in, out *net.UDPConn
	wg      sync.WaitGroup
	end     chan struct{}
	ended   sync.Once

	mu      sync.Mutex
	arrived []bool // by number; as long as numbers were used
	missing int
	sendErr error // the last one
	checked int   // up to here lost has looked
}

const streamInterval = 5 * time.Millisecond

// openUDP opens a socket in a namespace.
func openUDP(t *testing.T, ns *netlab.NS, at netip.AddrPort) (conn *net.UDPConn) {
	t.Helper()
	err := ns.Do(func() (err error) { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	if err == nil { // room for all that comes while this process waits for a processor
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// startStream starts a stream, which ends with the test.
func startStream(from, to *pod) *stream {
	t := from.h.c.t
	t.Helper()
	s := &stream{t: t, name: from.Name() + " to " + to.Name(), end: make(chan struct{})}
	src, dst := from.addr4, to.addr4
	if !src.IsValid() {
		src, dst = from.addr6, to.addr6
	}
	s.in = openUDP(t, to.NS, netip.AddrPortFrom(dst, 0))
	s.out = openUDP(t, from.NS, netip.AddrPortFrom(src, 0))
	t.Cleanup(s.stop)
	at := s.in.LocalAddr().(*net.UDPAddr).AddrPort()
	s.wg.Go(func() { s.send(netip.AddrPortFrom(dst, at.Port())) })
	s.wg.Go(s.receive)
	return s
}

func (s *stream) send(to netip.AddrPort) {
	tick := time.NewTicker(streamInterval)
	defer tick.Stop()
	b := make([]byte, 100)
	for {
		select {
		case <-s.end:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		n := len(s.arrived)
		s.arrived = append(s.arrived, false)
		s.missing++
		s.mu.Unlock()
		binary.BigEndian.PutUint64(b, uint64(n))
		if _, err := s.out.WriteToUDPAddrPort(b, to); err != nil {
			s.mu.Lock()
			s.sendErr = err
			s.mu.Unlock()
		}
	}
}

func (s *stream) receive() {
	b := make([]byte, 200)
	for {
		n, _, err := s.in.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		i := int(binary.BigEndian.Uint64(b[:n]))
		s.mu.Lock()
		if i < len(s.arrived) && !s.arrived[i] {
			s.arrived[i] = true
			s.missing--
		}
		s.mu.Unlock()
	}
}

// stop ends the stream. It may be called again.
func (s *stream) stop() {
	s.ended.Do(func() {
		close(s.end)
		s.out.Close()
		s.in.Close()
		s.wg.Wait()
	})
}

// sent returns how many datagrams were sent: the number of the next one.
func (s *stream) sent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.arrived)
}

// flows waits until datagrams sent from now on arrive.
func (s *stream) flows() {
	s.t.Helper()
	from := s.sent()
	eventually(s.t, s.name+" flows", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, ok := range s.arrived[from:] {
			if ok {
				return true
			}
		}
		return false
	})
}

// skip forgets all losses up to now.
func (s *stream) skip() { s.checked = s.sent() }

// lost returns how many of the datagrams sent since the last call, or skip, have not
// arrived, and names them for the log. What is still on its way has the time to arrive.
func (s *stream) lost() (n, of int, names string) {
	until := s.sent()
	var gone []int
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(streamInterval) {
		gone = gone[:0]
		s.mu.Lock()
		for i := s.checked; i < until; i++ {
			if !s.arrived[i] {
				gone = append(gone, i)
			}
		}
		err := s.sendErr
		s.mu.Unlock()
		if len(gone) == 0 || time.Now().After(end) {
			of, s.checked = until-s.checked, until
			return len(gone), of, fmt.Sprintf("%s, last error of the sender: %v", runs(gone), err)
		}
	}
}

// runs writes numbers as 3-7, 9.
func runs(all []int) string {
	var parts []string
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		parts = append(parts, fmt.Sprintf("%d-%d", all[i], all[j]))
		i = j + 1
	}
	return strings.Join(parts, ", ")
}

// cpu returns the processor time that a daemon has used.
func (p *flanneldProc) cpu() time.Duration {
	p.h.c.t.Helper()
	times, err := traffic.ReadProc(p.Pid())
	p.h.c.must(err)
	return times.User + times.System
}

// descriptors returns how many files and sockets a daemon has open.
func (p *flanneldProc) descriptors() int {
	p.h.c.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	p.h.c.must(err)
	return len(all)
}

// metric returns a metric of the daemon on the host, by its name and labels as they are
// in the text. It is false while there is none.
func (h *labHost) metric(name string) (value float64, ok bool) {
	_, text, err := h.get(healthURL + "/metrics")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, name+" "); found {
			value, err = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return value, err == nil
		}
	}
	return 0, false
}

// hasMetric waits until a metric has a value.
func (h *labHost) hasMetric(name string, want float64) {
	h.c.t.Helper()
	var got float64
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		var ok bool
		if got, ok = h.metric(name); ok && got == want {
			return
		}
		time.Sleep(100 * time.Millisecond) // it costs the daemon something
	}
	h.c.t.Fatalf("%s: %s is %v, want %v", h.Name(), name, got, want)
}

// readyz waits until /readyz answers so.
func (h *labHost) readyz(code int, text string) {
	h.c.t.Helper()
	var got int
	var body string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var err error
		if got, body, err = h.get(healthURL + "/readyz"); err == nil && got == code && strings.Contains(body, text) {
			return
		}
	}
	h.c.t.Fatalf("%s: /readyz is %d, want %d with %q:\n%s", h.Name(), got, code, text, body)
}

// A leakDetector counts packets of the overlay that cross the Ethernet as they are,
// instead of inside UDP.
type leakDetector struct {
	fd   int
	wg   sync.WaitGroup
	end  chan struct{}
	once sync.Once

	mu    sync.Mutex
	count int
}

// watchLeaks starts one for a network.
func (c *cluster) watchLeaks(network netip.Prefix) *leakDetector {
	c.t.Helper()
	d := &leakDetector{end: make(chan struct{})}
	c.must(c.wire.Do(func() (err error) {
		const everything = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		if d.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, everything); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20),
			unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}))
	}))
	d.wg.Go(func() {
		b := make([]byte, 64)
		for {
			select {
			case <-d.end:
				return
			default:
			}
			n, _, err := unix.Recvfrom(d.fd, b, 0)
			if err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR) {
				return
			}
			if err == nil && n >= 20 && b[0]>>4 == 4 && network.Contains(netip.AddrFrom4([4]byte(b[16:20]))) {
				d.mu.Lock()
				d.count++
				d.mu.Unlock()
			}
		}
	})
	c.t.Cleanup(d.stop)
	return d
}

// leaks returns how many there were up to now. Packets that cross a bridge are seen once
// on each of its ports.
func (d *leakDetector) leaks() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

func (d *leakDetector) stop() {
	d.once.Do(func() {
		close(d.end)
		d.wg.Wait()
		unix.Close(d.fd)
	})
}
