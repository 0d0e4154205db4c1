package masq

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A flow is a connection that stays, over which the far end says again and again whom it
// sees.
type flow struct {
	conn net.Conn
	from *bufio.Reader
}

// open makes a flow from the own pod to the world.
func (w *world) open(t *testing.T, network string) *flow {
	t.Helper()
	dst := netip.MustParseAddr("203.0.113.9")
	var addr string
	must(t, w.outside.Do(func() error {
		if network == "udp" {
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: dst.AsSlice()})
			if err != nil {
				return err
			}
			addr = conn.LocalAddr().String()
			t.Cleanup(func() { _ = conn.Close() })
			go func() {
				for buf := make([]byte, 64); ; {
					_, from, err := conn.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					_, _ = conn.WriteToUDPAddrPort(fmt.Appendln(nil, from), from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
		if err != nil {
			return err
		}
		addr = l.Addr().String()
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for in := bufio.NewScanner(conn); in.Scan(); {
				_, _ = fmt.Fprintln(conn, conn.RemoteAddr())
			}
			_ = conn.Close()
		}()
		return nil
	}))
	f := new(flow)
	must(t, w.PodA.Do(func() (err error) {
		f.conn, err = net.Dial(network, addr)
		return err
	}))
	t.Cleanup(func() { _ = f.conn.Close() })
	f.from = bufio.NewReader(f.conn)
	return f
}

// seen returns the address and port that the far end sees now.
func (f *flow) seen(t *testing.T, when string) string {
	t.Helper()
	_ = f.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := f.conn.Write([]byte("?\n")); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	line, err := f.from.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	return line
}

// TestFlowsSurvive keeps connections open over restarts, changes and changes of tools: the
// far end must go on seeing the same address and port.
func TestFlowsSurvive(t *testing.T) {
	w := newWorld(t)
	needPrograms(t, "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy")
	w.apply(t, w.config(NFTables))
	var flows []*flow
	var first []string
	for _, network := range []string{"tcp", "udp"} {
		f := w.open(t, network)
		flows, first = append(flows, f), append(first, f.seen(t, "at first"))
		if addr := netip.MustParseAddrPort(first[len(first)-1][:len(first[len(first)-1])-1]); addr.Addr().String() != "203.0.113.1" {
			t.Fatalf("seen as %v", addr)
		}
	}
	cfg := w.config(NFTables)
	other := cfg
	other.Exclude = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	byProgram := cfg
	byProgram.Tool = IPTables
	for i, c := range []Config{cfg, other, cfg, byProgram, cfg, byProgram} {
		when := fmt.Sprintf("step %d", i)
		if i == 5 {
			w.run(t, "iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
			when += ", legacy"
		}
		r := w.apply(t, c)
		for j, f := range flows {
			if got := f.seen(t, when); got != first[j] {
				t.Errorf("%s: seen as %sinstead of %s", when, got, first[j])
			}
		}
		w.masquerades(t, when)
		must(t, w.HostA.Do(func() error { return r.Check(t.Context()) }))
		must(t, r.Close(false))
	}
}

// TestNoHalfSets changes the rules again and again while connections are made. None of them
// may meet a set without its last rules, or without its first ones.
func TestNoHalfSets(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, f := range flavours() {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			f.occupy(t, w)
			cfgs := []Config{w.config(f.tool), w.config(f.tool)}
			cfgs[1].Exclude = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:77::/48")}
			w.apply(t, cfgs[0])
			stop := make(chan struct{})
			changes := make(chan int)
			go func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						changes <- n
						return
					default:
					}
					r, err := New(cfgs[(n+1)%2])
					if err == nil {
						err = w.HostA.Do(func() error { return r.Apply(t.Context()) })
					}
					if err != nil {
						t.Error(err)
					}
				}
			}()
			calls := 0
			for began := time.Now(); time.Since(began) < time.Second/2 && !t.Failed(); calls++ {
				w.masquerades(t, fmt.Sprintf("round %d", calls))
			}
			close(stop)
			t.Logf("%d rounds of calls while the rules changed %d times", calls, <-changes)
		})
	}
}
