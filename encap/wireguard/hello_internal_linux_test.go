package wireguard

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A cable joins two of wireguard-go's devices. Packets take a while.
type cable struct {
	delay time.Duration
	ends  [2]chan []byte
}

// A plug is one end of it, a conn.Bind.
type plug struct {
	*cable
	n    int
	gone chan struct{}
}

func (p *plug) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	p.gone = make(chan struct{})
	gone := p.gone
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-gone:
			return 0, net.ErrClosed
		case b := <-p.ends[p.n]:
			sizes[0], eps[0] = copy(bufs[0], b), bindtest.ChannelEndpoint(1)
			return 1, nil
		}
	}}, port, nil
}

func (p *plug) Close() error {
	if p.gone != nil {
		close(p.gone)
		p.gone = nil
	}
	return nil
}

func (p *plug) SetMark(uint32) error { return nil }

func (p *plug) BatchSize() int { return 1 }

func (p *plug) ParseEndpoint(string) (conn.Endpoint, error) { return bindtest.ChannelEndpoint(1), nil }

func (p *plug) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		copied := append([]byte(nil), b...)
		time.AfterFunc(p.delay, func() { p.ends[1-p.n] <- copied })
	}
	return nil
}

// A side is a host at a cable.
type side struct {
	*inproc
	tun  *tuntest.ChannelTUN
	keys keys
	addr netip.Addr
}

func (c *cable) side(n int) *side {
	s := &side{tun: tuntest.NewChannelTUN(), addr: netip.AddrFrom4([4]byte{10, 1, byte(n), 1})}
	s.keys.private = secret{byte(8 * (n + 1)), 31: 64}
	s.keys.public = wgtypes.Key(s.keys.private).PublicKey()
	s.inproc = &inproc{dev: device.NewDevice(s.tun.TUN(), &plug{cable: c, n: n}, device.NewLogger(device.LogLevelSilent, ""))}
	return s
}

// TestBothBegin has two hosts meet that have packets for each other all the time, and
// are so far apart that both have begun before they hear of each other.
func TestBothBegin(t *testing.T) {
	for _, c := range []struct {
		greet bool
		late  time.Duration
	}{{false, 0}, {true, 0}, {true, courtesy}, {true, verdict}} {
		t.Run(fmt.Sprint(c.greet, c.late), func(t *testing.T) {
			t.Parallel()
			took := bothBegin(t, 150*time.Millisecond, c.greet, c.late)
			t.Logf("they meet after %v", took)
			if early := took < rekey/3; early != c.greet {
				t.Errorf("greeted: %v; they meet after %v, and WireGuard tries again after %v", c.greet, took, rekey/3)
			}
		})
	}
}

// bothBegin returns how long after the later one's Sync packets flow in both directions,
// or that it takes as long as WireGuard without our help.
func bothBegin(t *testing.T, delay time.Duration, greet bool, late time.Duration) time.Duration {
	c := &cable{delay: delay, ends: [2]chan []byte{make(chan []byte, 1000), make(chan []byte, 1000)}}
	a, b := c.side(0), c.side(1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	got := make(chan bool, 2)
	for _, way := range [][2]*side{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		wg.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case from.tun.Outbound <- datagram(from.addr, to.addr, 7):
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
		wg.Go(func() {
			first := sync.OnceFunc(func() { got <- true })
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-to.tun.Inbound:
					first()
				}
			}
		})
	}
	ga := a.sync(t, b, greet)
	time.Sleep(late)
	began := time.Now()
	gb := b.sync(t, a, greet)
	enough, end := context.WithTimeout(ctx, rekey/3)
	defer end()
	for range 2 {
		select {
		case <-got:
		case <-enough.Done():
		}
	}
	took := time.Since(began)
	ga.close()
	gb.close()
	cancel()
	wg.Wait()
	a.dev.Close()
	b.dev.Close()
	return took
}

// sync makes a host known to another one.
func (s *side) sync(t *testing.T, other *side, greet bool) *greeter {
	t.Helper()
	m, g := newMind(), newGreeter(s, s.keys.public, slog.New(slog.DiscardHandler))
	to := peer{name: "other", key: other.keys.public, endpoint: netip.MustParseAddrPort("192.0.2.1:1"), allowed: []netip.Prefix{netip.PrefixFrom(other.addr, 32)}}
	_, err := g.settle(spec{name: "flannel-wg", port: 1, peers: []peer{to}}, s.keys, m, &tally{})
	check(t, err)
	if greet {
		g.meet(m.fresh)
	}
	return g
}

// rekey is how long WireGuard notices nothing of a peer that has forgotten the session:
// KEEPALIVE_TIMEOUT and REKEY_TIMEOUT.
const rekey = 15 * time.Second

// testSilence has each of two hosts restart while only the other one has something to
// say, with devices that end with the process, and made anew.
func testSilence(t *testing.T, a, b Implementation) {
	l := newLab(t, `{"Mode":"auto"}`, a, b)
	l.startAll()
	for i, h := range l.hosts {
		other := l.hosts[1-i]
		reach(t, h, other)
		for what, restart := range map[string]func(){
			"restart": func() { check(t, h.b.Close(false)); h.start(); h.sync(other) },
			"repair": func() {
				check(t, h.DelLink(deviceName))
				waitFor(t, "the device is back", func() bool { return h.link(deviceName) != nil })
				h.sync(other) // after the round that is under way
			},
		} {
			restart()
			began := time.Now()
			if !ask(other, h, 0, int(patience/(50*time.Millisecond))) {
				t.Fatal("no packet arrives")
			}
			took := time.Since(began)
			t.Logf("host%d: %s: packets from the other one arrive after %v", h.n, what, took)
			if took > rekey*2/3 {
				t.Errorf("host%d: %s: packets from the other one arrive after %v: WireGuard itself takes %v", h.n, what, took, rekey)
			}
		}
	}
}

// testFresh has hosts meet that have packets for each other all the time. WireGuard's own
// timers are what it is measured by, and a machine that is busy with other things may
// miss them; so it has three tries.
func testFresh(t *testing.T, a, b Implementation) {
	for try := 1; ; try++ {
		slow := fresh(t, a, b)
		if len(slow) == 0 {
			return
		}
		if try == 3 {
			t.Fatalf("three times: %q", slow)
		}
		t.Logf("try %d: %q", try, slow)
	}
}

// fresh returns which hosts took too long to meet.
func fresh(t *testing.T, a, b Implementation) (late []string) {
	l := newLab(t, `{"Mode":"auto"}`, a, b, a, b)
	for _, h := range l.hosts {
		h.start()
	}
	var wg sync.WaitGroup
	slow := make(chan string, 100)
	var since time.Time
	synced := make(chan struct{})
	for _, from := range l.hosts {
		for _, to := range l.hosts {
			if from == to {
				continue
			}
			at := netip.AddrPortFrom(to.pod[0], uint16(8000+from.n))
			server, client := socket(t, to.NS, at), socket(t, from.NS, netip.AddrPortFrom(from.pod[0], 0))
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = client.WriteToUDPAddrPort([]byte("x"), at)
					time.Sleep(2 * time.Millisecond)
				}
			})
			wg.Go(func() {
				_ = server.SetReadDeadline(time.Now().Add(patience))
				_, _, err := server.ReadFromUDPAddrPort(make([]byte, 10))
				arrived := time.Now()
				cancel()
				<-synced
				if took := arrived.Sub(since); err != nil || took > rekey/3 {
					slow <- fmt.Sprintf("host%d to host%d: %v, %v", from.n, to.n, took, err)
				}
			})
		}
	}
	var syncs sync.WaitGroup
	for _, h := range l.hosts {
		syncs.Go(func() { _ = h.b.Sync(context.Background(), leases(h, l.hosts...)) })
	}
	syncs.Wait()
	since = time.Now()
	close(synced)
	wg.Wait()
	for len(slow) > 0 {
		late = append(late, <-slow)
	}
	return late
}

// TestNoIPv6ByDefault has IPv6 where the kernel has it off for new devices.
func TestNoIPv6ByDefault(t *testing.T) {
	for _, keys := range []string{simple, `{"Mode":"ipv4"}`} {
		l := newLab(t, keys, Auto, Auto)
		for _, h := range l.hosts {
			check(t, h.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"))
		}
		l.startAll()
		reach(t, l.hosts[0], l.hosts[1])
	}
}
