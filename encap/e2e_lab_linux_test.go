package encap_test

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
	"golang.org/x/sys/unix"
)

// The fixture of the end-to-end tests: two hosts in namespaces of their own,
// each with a real TUN device and one or more engines of this process on it.

// patience bounds what must happen sooner or later. No test measures time.
const patience = 20 * time.Second

// labConfig says what startLab builds. The zero value is two hosts with IPv4
// and IPv6 inside, IPv4 outside, one engine each, a pod behind each.
type labConfig struct {
	Net     netlab.TwoHostsConfig // Pods is always on, IPv6 where the overlay MTU allows it
	Engine  encap.Config
	Device  tun.Config
	Engines int             // on each host; 0: 1
	Outer6  bool            // IPv6 outside
	Dual    bool            // sockets on [::]
	Mode    netlab.LinkMode // of the underlay; 0 leaves it
	BareB   bool            // host B gets no device and no engine
}

// lab is the running fixture.
type lab struct {
	*netlab.TwoHosts
	t    *testing.T
	lab  *netlab.Lab
	cfg  labConfig
	a, b *side
}

// side is one host of the fixture.
type side struct {
	t        *testing.T
	host     *netlab.Host
	cfg      labConfig
	dev      *tun.Device
	table    *encap.Table
	local    []netip.Prefix
	endpoint netip.AddrPort
	runs     []*running
}

// running is an engine under Run.
type running struct {
	*encap.Engine
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run; valid when done is closed
	seen   bool  // the test looked at err itself
}

// place is where a socket can be: a namespace and its overlay addresses.
type place struct {
	name  string
	ns    *netlab.NS
	addr4 netip.Addr
	addr6 netip.Addr
}

func (p place) addr(v6 bool) netip.Addr {
	if v6 {
		return p.addr6
	}
	return p.addr4
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// startLab builds the network, opens the devices and runs the engines.
// Everything ends with the test, which fails if anything is left open.
func startLab(t *testing.T, cfg labConfig) *lab {
	t.Helper()
	l := newLab(t, cfg)
	l.startAll()
	return l
}

// startAll opens the devices and runs the engines.
func (l *lab) startAll() {
	l.t.Helper()
	sides := []*side{l.a, l.b}
	if l.cfg.BareB {
		sides = sides[:1]
	}
	for _, s := range sides {
		s.open()
		l.setPeers(s)
		for range cmp.Or(l.cfg.Engines, 1) {
			s.start()
		}
	}
}

// newLab builds the network without devices.
func newLab(t *testing.T, cfg labConfig) *lab {
	t.Helper()
	netlab.Require(t, netlab.NeedTUN, netlab.NeedIPv6)
	nl, err := netlab.New()
	check(t, err)
	t.Cleanup(func() {
		if err := nl.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg.Net.Pods = true
	if cfg.Net.OverlayMTU == 0 {
		outer := netip.IPv4Unspecified()
		if cfg.Outer6 {
			outer = netip.IPv6Unspecified()
		}
		cfg.Net.OverlayMTU = cmp.Or(cfg.Net.MTU, 1500) - encap.Overhead(outer)
	}
	cfg.Net.IPv6 = cfg.Net.OverlayMTU >= 1280 // a smaller MTU has no IPv6
	hosts, err := nl.TwoHosts(cfg.Net)
	check(t, err)
	l := &lab{TwoHosts: hosts, t: t, lab: nl, cfg: cfg}
	if cfg.Mode != 0 {
		check(t, nl.SetLinkMode(cfg.Mode,
			netlab.End{NS: hosts.HostA.NS, Link: hosts.HostA.Underlay},
			netlab.End{NS: hosts.HostB.NS, Link: hosts.HostB.Underlay}))
	}
	side := func(h *netlab.Host) *side {
		addr := h.Addr4.Addr()
		if cfg.Outer6 {
			addr = h.Addr6.Addr()
		}
		return &side{t: t, host: h, cfg: cfg, local: []netip.Prefix{h.Subnet4, h.Subnet6},
			endpoint: netip.AddrPortFrom(addr, encap.DefaultPort), table: encap.NewTable()}
	}
	l.a, l.b = side(hosts.HostA), side(hosts.HostB)
	return l
}

func (s *side) peer() encap.Peer { return encap.Peer{Endpoint: s.endpoint, Subnets: s.local} }

// setPeers gives s the other host as its only peer.
func (l *lab) setPeers(s *side) {
	l.t.Helper()
	other := l.a
	if s == l.a {
		other = l.b
	}
	check(l.t, s.table.Replace(s.local, []encap.Peer{other.peer()}))
}

// open opens the host's device and routes the overlay to it.
func (s *side) open() {
	s.t.Helper()
	dc := s.cfg.Device
	dc.Name = "flannel0"
	dc.MTU = s.cfg.Net.OverlayMTU
	dc.Queues = max(s.cfg.Engines, 1)
	check(s.t, s.host.Do(func() (err error) {
		s.dev, err = tun.Open(dc)
		return err
	}))
	s.t.Cleanup(func() {
		if err := s.dev.Close(); err != nil {
			s.t.Error(err)
		}
	})
	check(s.t, s.host.AttachOverlay(s.dev.Name()))
	s.settle()
}

// settle waits until the host's addresses are reachable: the kernel makes an
// IPv6 address' local route in a work queue (addrconf_dad_work), a moment after
// the address can be seen.
func (s *side) settle() {
	s.t.Helper()
	if !s.cfg.Net.IPv6 {
		return
	}
	h := s.host
	for addr, ns := range map[netip.Addr]*netlab.NS{
		h.Addr6.Addr(): h.NS, h.Subnet6.Addr(): h.NS, h.Gateway6: h.NS, h.PodAddr6: h.Pod,
	} {
		waitLocal(s.t, ns, addr)
	}
}

// waitLocal waits until the kernel takes addr for its own.
func waitLocal(t *testing.T, ns *netlab.NS, addr netip.Addr) {
	t.Helper()
	if !eventually(func() bool {
		routes, err := ns.Netlink().RouteGet(addr.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Table == unix.RT_TABLE_LOCAL
	}) {
		t.Fatalf("%s: %v is no local address", ns.Name(), addr)
	}
}

// listen opens the host's UDP socket.
func (s *side) listen() *net.UDPConn {
	s.t.Helper()
	at := s.endpoint
	if s.cfg.Dual {
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
	}
	var conn *net.UDPConn
	check(s.t, s.host.Do(func() (err error) {
		conn, err = encap.Listen(at, encap.ListenConfig{ReusePort: s.cfg.Engines > 1})
		return err
	}))
	return conn
}

// engine makes the next engine of the host without running it.
func (s *side) engine(queue int) *encap.Engine {
	s.t.Helper()
	conn := s.listen()
	var e *encap.Engine
	check(s.t, s.host.Do(func() (err error) {
		e, err = encap.New(s.dev.Queues()[queue], conn, s.table, s.cfg.Engine)
		return err
	}))
	return e
}

// start runs one more engine on the host's next queue until the test ends.
func (s *side) start() *running {
	s.t.Helper()
	r := run(s.engine(len(s.runs)))
	s.runs = append(s.runs, r)
	s.t.Cleanup(func() {
		if err := r.stop(s.t); err != nil && !r.seen {
			s.t.Errorf("%s: Run: %v", s.host.Name(), err)
		}
		if s.t.Failed() {
			st := r.Stats()
			s.t.Logf("%s: %+v", s.host.Name(), st)
		}
	})
	return r
}

// run runs e.
func run(e *encap.Engine) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Engine: e, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = e.Run(ctx)
	}()
	return r
}

// stop ends r and returns what Run returned.
func (r *running) stop(t *testing.T) error {
	r.cancel()
	return r.wait(t)
}

// wait returns what Run returned, once it has.
func (r *running) wait(t *testing.T) error {
	select {
	case <-r.done:
		return r.err
	case <-time.After(patience):
		t.Errorf("Run has not returned %v after it should", patience)
		return nil
	}
}

// stats is the sum over the host's engines.
func (s *side) stats() (sum encap.Stats) {
	for _, r := range s.runs {
		sum = sum.Add(r.Stats())
	}
	return sum
}

// waitStats waits until ok is true of the host's counters.
func (s *side) waitStats(what string, ok func(encap.Stats) bool) encap.Stats {
	s.t.Helper()
	var st encap.Stats
	if !eventually(func() bool { st = s.stats(); return ok(st) }) {
		s.t.Fatalf("%s: %s: not after %v: %+v", s.host.Name(), what, patience, st)
	}
	return st
}

// eventually polls ok until it is true or patience is over.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func (s *side) hostPlace() place {
	return place{s.host.Name(), s.host.NS, s.host.Subnet4.Addr(), s.host.Subnet6.Addr()}
}

func (s *side) podPlace() place {
	return place{s.host.Pod.Name(), s.host.Pod, s.host.PodAddr4, s.host.PodAddr6}
}

// dropped fails the test if the host dropped anything but for the reasons given.
// Multicast (neighbours, MLD) is always in the air.
func (s *side) dropped(allowed ...encap.Drop) {
	s.t.Helper()
	st := s.stats()
	for d, n := range st.Drops.All() {
		ok := d == encap.DropNotUnicast
		for _, a := range allowed {
			ok = ok || a == d
		}
		if !ok {
			s.t.Errorf("%s dropped %d packets: %v", s.host.Name(), n, d)
		}
	}
	if st.SocketDrops != 0 {
		s.t.Errorf("%s: the kernel dropped %d datagrams: receive buffer full", s.host.Name(), st.SocketDrops)
	}
}

// A sniffer sees every frame or packet that a device receives.
type sniffer struct {
	t  *testing.T
	fd int
}

func newSniffer(t *testing.T, ns *netlab.NS, link string) *sniffer {
	t.Helper()
	s := &sniffer{t: t}
	check(t, ns.Do(func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})
	}))
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// take returns what the device has received since the last time.
func (s *sniffer) take() (frames [][]byte) {
	buf := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return frames
		}
		check(s.t, err)
		if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype != unix.PACKET_OUTGOING {
			frames = append(frames, append([]byte(nil), buf[:n]...))
		}
	}
}

// slow skips a test that takes long, most of all under the race detector.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some seconds: not with -short")
	}
}
