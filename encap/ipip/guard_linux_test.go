package ipip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A shooting is two hosts: one that the filter protects, at 192.0.2.1, and one that has
// the addresses of peers and strangers. It takes no ipip in the kernel: raw sockets
// are behind the input hook, too.
type shooting struct {
	t        *testing.T
	here     *netlab.NS
	there    *netlab.NS
	g        *guard
	log      testlog.Messages
	listener *net.IPConn
}

func newShooting(t *testing.T) *shooting {
	t.Helper()
	l := netlab.ForTest(t)
	s := &shooting{t: t}
	for name, ns := range map[string]**netlab.NS{"here": &s.here, "there": &s.there} {
		made, err := l.Namespace(name)
		must(t, err)
		*ns = made
	}
	must(t, l.Veth(s.here, "eth0", s.there, "eth0", 1500))
	must(t, s.here.AddAddr("eth0", prefix("192.0.2.1/24")))
	must(t, s.here.AddAddr("eth0", prefix("192.0.2.11/24")))
	for _, n := range []int{2, 3, 66, 99} {
		must(t, s.there.AddAddr("eth0", prefix(fmt.Sprintf("192.0.2.%d/24", n))))
	}
	s.g = &guard{log: slog.New(&s.log), fresh: true}
	t.Cleanup(func() { _ = s.g.close(true) })
	must(t, s.here.Do(func() (err error) {
		s.listener, err = net.ListenIP("ip4:4", nil)
		return err
	}))
	t.Cleanup(func() { _ = s.listener.Close() })
	return s
}

// peers lets peers pass; nil if they are not known yet.
func (s *shooting) peers(leases ...lease.Lease) (done []string) {
	s.t.Helper()
	sit, _ := situation(s.t, leases...)
	must(s.t, s.here.Do(func() (err error) {
		done, err = s.g.tune(newFilter(sit), leases != nil)
		return err
	}))
	return done
}

// A shot is a packet in a packet.
type shot struct {
	from, to       string // outer
	inner, innerTo string
	size           int // of the inner one's payload
	options        bool
}

// shoot sends a shot, and then one that passes, and reports whether the first one has
// arrived by then.
func (s *shooting) shoot(x shot, sentinel shot) bool {
	s.t.Helper()
	nonce := make([]byte, 8)
	send := func(x shot, kind byte) {
		nonce[0] = kind
		binary.BigEndian.PutUint32(nonce[4:], binary.BigEndian.Uint32(nonce[4:])+1)
		must(s.t, s.there.Do(func() error { return x.send(nonce) }))
	}
	send(x, 'x')
	for range 20 { // until the neighbour is known, say
		send(sentinel, 's')
		hit := false
		buf := make([]byte, 65536)
		for {
			_ = s.listener.SetReadDeadline(time.Now().Add(patience / 20))
			n, _, err := s.listener.ReadFromIP(buf)
			if err != nil {
				break
			}
			if n < 28 {
				continue
			}
			if buf[20] == 's' {
				return hit
			}
			hit = true
		}
	}
	s.t.Fatal("not even what must pass arrives")
	return false
}

// send sends the packet; the outer header is the kernel's.
func (x shot) send(nonce []byte) error {
	c, err := net.ListenIP("ip4:4", &net.IPAddr{IP: net.ParseIP(x.from)})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	optErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		if x.options {
			err = errors.Join(err, unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x01"))
		}
	})
	if err := errors.Join(err, optErr); err != nil {
		return err
	}
	p := make([]byte, 20+max(x.size, len(nonce)))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], ip(x.inner).AsSlice())
	copy(p[16:], ip(x.innerTo).AsSlice())
	copy(p[20:], nonce)
	_, err = c.WriteToIP(p, &net.IPAddr{IP: net.ParseIP(x.to)})
	return err
}

func TestSpoofing(t *testing.T) {
	s := newShooting(t)
	good := shot{from: "192.0.2.2", to: "192.0.2.1", inner: "10.5.2.7", innerTo: "10.5.1.7"}
	big := peer(3, "192.0.2.3")
	big.Subnet = prefix("10.5.64.0/20")
	if done := s.peers(peer(2, "192.0.2.2"), big); len(done) != 1 {
		t.Errorf("done: %q", done)
	}
	if done := s.peers(peer(2, "192.0.2.2"), big); len(done) != 0 {
		t.Errorf("done again: %q", done)
	}
	change := func(f func(*shot)) shot { x := good; f(&x); return x }
	for name, test := range map[string]struct {
		shot shot
		want bool
	}{
		"a peer":                       {good, true},
		"the first address":            {change(func(x *shot) { x.inner = "10.5.2.0" }), true},
		"the last address":             {change(func(x *shot) { x.inner = "10.5.2.255" }), true},
		"another peer, another length": {change(func(x *shot) { x.from, x.inner = "192.0.2.3", "10.5.79.255" }), true},
		"a stranger":                   {change(func(x *shot) { x.from = "192.0.2.66" }), false},
		"a stranger with options":      {change(func(x *shot) { x.from, x.options = "192.0.2.66", true }), false},
		"a peer with options":          {change(func(x *shot) { x.options = true }), true},
		"a peer as another one":        {change(func(x *shot) { x.inner = "10.5.64.1" }), false},
		"another one as the peer":      {change(func(x *shot) { x.from = "192.0.2.3" }), false},
		"beyond the longer subnet":     {change(func(x *shot) { x.from, x.inner = "192.0.2.3", "10.5.80.0" }), false},
		"a shorter subnet's next door": {change(func(x *shot) { x.inner = "10.5.3.1" }), false},
		"a peer as us":                 {change(func(x *shot) { x.inner = "10.5.1.9" }), false},
		"a peer as somebody":           {change(func(x *shot) { x.inner = "198.51.100.1" }), false},
		"to a peer by way of us":       {change(func(x *shot) { x.innerTo = "10.5.2.9" }), false},
		"to the internet":              {change(func(x *shot) { x.innerTo = "198.51.100.1" }), false},
		"to all":                       {change(func(x *shot) { x.innerTo = "255.255.255.255" }), false},
		"fragments of a peer":          {change(func(x *shot) { x.size = 4000 }), true},
		"fragments of a stranger":      {change(func(x *shot) { x.from, x.size = "192.0.2.66", 4000 }), false},
		"to another address of ours":   {change(func(x *shot) { x.from, x.to = "192.0.2.66", "192.0.2.11" }), true},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			if hit := s.shoot(test.shot, good); hit != test.want {
				t.Errorf("arrived: %v, want %v", hit, test.want)
			}
		})
	}
	s.t = t
	// A peer leaves, another one moves; and the drops are told.
	s.peers(peer(2, "192.0.2.99"), big)
	if s.log.Count("WARN packets of IP protocol 4 were dropped") != 1 {
		t.Errorf("the log has %q", s.log.With())
	}
	moved := change(func(x *shot) { x.from = "192.0.2.99" })
	if s.shoot(good, moved) {
		t.Error("a packet from where the peer was has arrived")
	}
}

// TestGuardLife: before the peers are known nothing is made where a predecessor's
// packets may be on their way, and nothing passes where there is none; then a
// successor takes over.
func TestGuardLife(t *testing.T) {
	s := newShooting(t)
	good := shot{from: "192.0.2.2", to: "192.0.2.1", inner: "10.5.2.7", innerTo: "10.5.1.7"}
	open := shot{from: "192.0.2.2", to: "192.0.2.11", inner: "10.5.2.7", innerTo: "10.5.1.7"}
	s.g.fresh = false
	if done := s.peers(); len(done) != 0 || !s.shoot(good, open) {
		t.Errorf("without peers, after a predecessor: %q", done)
	}
	s.g.fresh = true
	if done := s.peers(); len(done) != 1 || s.shoot(good, open) {
		t.Errorf("without peers: %q", done)
	}
	all := []lease.Lease{peer(2, "192.0.2.2"), peer(3, "192.0.2.3")}
	s.peers(all...)
	must(t, s.g.close(true))
	if s.tables() != 1 {
		t.Error("the table was not kept")
	}
	// A successor finds all in place; without a filter it removes it.
	s.g = &guard{log: slog.New(&s.log)}
	if done := append(s.peers(), s.peers(all...)...); len(done) != 0 {
		t.Errorf("the successor did %q", done)
	}
	must(t, s.g.close(false))
	if s.tables() != 0 {
		t.Error("the table was not removed")
	}
	s.g = &guard{log: slog.New(&s.log), fresh: true}
	s.peers(all...)
	must(t, s.g.undo())
	if s.tables() != 0 {
		t.Error("the table was not removed after a start that failed")
	}
	s.g = &guard{log: slog.New(&s.log)}
	s.peers(all...)
	must(t, s.g.close(true))
	s.g = &guard{log: slog.New(&s.log), off: true}
	if done := s.peers(); len(done) != 1 || s.tables() != 0 {
		t.Errorf("without a filter there are %d tables, done %q", s.tables(), done)
	}
}

// TestGuardRepair: the table is made again however it is damaged.
func TestGuardRepair(t *testing.T) {
	s := newShooting(t)
	good := shot{from: "192.0.2.2", to: "192.0.2.1", inner: "10.5.2.7", innerTo: "10.5.1.7"}
	all := []lease.Lease{peer(2, "192.0.2.2"), peer(3, "192.0.2.3")}
	s.peers(all...)
	for name, damage := range map[string]func(c *nftables.Conn){
		"table removed": func(c *nftables.Conn) { c.DelTable(table()) },
		"all removed":   func(c *nftables.Conn) { c.FlushRuleset() },
		"rules removed": func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: chainName, Table: table()}) },
		"set emptied":   func(c *nftables.Conn) { c.FlushSet(setOf(peersSet(24))) },
		"set filled": func(c *nftables.Conn) {
			must(t, c.SetAddElements(setOf(peersSet(24)), elementsOf([]string{"\xc0\x00\x02\x42\x0a\x05\x02\x00"})))
		},
		"a rule more": func(c *nftables.Conn) {
			ch := &nftables.Chain{Name: chainName, Table: table()}
			c.InsertRule(&nftables.Rule{Table: table(), Chain: ch, Exprs: (filter{local: ip("192.0.2.1")}).rules()[2].exprs})
		},
		"another hook": func(c *nftables.Conn) {
			ch := &nftables.Chain{Name: chainName, Table: table()}
			c.FlushChain(ch)
			c.DelChain(ch)
			ch.Type, ch.Hooknum, ch.Priority = nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw
			c.AddChain(ch)
			for _, r := range (filter{local: ip("192.0.2.1")}).rules()[:2] {
				c.AddRule(&nftables.Rule{Table: table(), Chain: ch, Exprs: r.exprs})
			}
		},
		"another chain": func(c *nftables.Conn) { c.AddChain(&nftables.Chain{Name: "more", Table: table()}) },
		"another set": func(c *nftables.Conn) {
			x := setOf("more")
			x.ID, x.KeyType = 50, nftables.TypeIPAddr
			must(t, c.AddSet(x, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			must(t, s.here.Do(func() error {
				c, err := s.g.open()
				if err != nil {
					return err
				}
				defer func() { _ = c.CloseLasting() }()
				damage(c)
				return c.Flush()
			}))
			if done := s.peers(all...); len(done) != 1 {
				t.Errorf("done: %q", done)
			}
			if done := s.peers(all...); len(done) != 0 {
				t.Errorf("done again: %q", done)
			}
			stranger := good
			stranger.from = "192.0.2.66"
			if s.shoot(stranger, good) {
				t.Error("a stranger's packet has arrived")
			}
		})
	}
	s.t = t
	if s.tables() != 1 {
		t.Error("the table is not alone")
	}
}

// tables counts the tables.
func (s *shooting) tables() (n int) {
	s.t.Helper()
	must(s.t, s.here.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		list, err := c.ListTables()
		n = len(list)
		return err
	}))
	return n
}

// TestNoNftables: the backend works without, and says what is open.
func TestNoNftables(t *testing.T) {
	s := newShooting(t)
	for _, errno := range []error{unix.EPROTONOSUPPORT, unix.EINVAL, unix.EOPNOTSUPP} {
		s.g.missing = ""
		before := s.log.Count("taken from anyone", "modprobe nf_tables")
		s.g.dial = func() (*nftables.Conn, error) { return nil, fmt.Errorf("test: %w", errno) }
		for range 3 {
			if done := s.peers(peer(2, "192.0.2.2")); len(done) != 0 {
				t.Errorf("done: %q", done)
			}
		}
		if n := s.log.Count("taken from anyone", "modprobe nf_tables"); n != before+1 {
			t.Errorf("%v: told %d times", errno, n-before)
		}
	}
	s.g.dial = func() (*nftables.Conn, error) { return nil, unix.EPERM }
	sit, _ := situation(t, peer(2, "192.0.2.2"))
	err := s.here.Do(func() error { _, err := s.g.tune(newFilter(sit), true); return err })
	if err == nil || !errors.Is(err, unix.EPERM) {
		t.Errorf("without the right the error is %v", err)
	}
	s.g.dial = nil
	s.peers(peer(2, "192.0.2.2"))
	if s.tables() != 1 {
		t.Error("no table when the kernel has nftables at last")
	}
}

// TestManyPeers: thousands of elements go in one transaction, and one change is one.
func TestManyPeers(t *testing.T) {
	s := newShooting(t)
	all := make([]lease.Lease, 5000)
	for i := range all {
		all[i] = lease.Lease{Attrs: lease.Attrs{BackendType: "ipip", PublicIP: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}}
		all[i].Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i >> 3), byte(i << 5)}), 27)
	}
	all[7].Attrs.PublicIP, all[0] = ip("192.0.2.2"), all[60]
	all = slices.Delete(all, 8, 16) // our own subnet
	start := time.Now()
	s.peers(all...)
	t.Logf("%d peers: %v", len(all), time.Since(start))
	start = time.Now()
	if done := s.peers(all...); len(done) != 0 {
		t.Errorf("done again: %q", done)
	}
	t.Logf("nothing new: %v", time.Since(start))
	good := shot{from: "192.0.2.2", to: "192.0.2.1", inner: all[7].Subnet.Addr().String(), innerTo: "10.5.1.7"}
	start = time.Now()
	if done := s.peers(all[:4000]...); len(done) != 1 {
		t.Errorf("done: %q", done)
	}
	t.Logf("a thousand leave: %v", time.Since(start))
	stranger := good
	stranger.from = "192.0.2.66"
	if s.shoot(stranger, good) {
		t.Error("a stranger's packet has arrived")
	}
}
