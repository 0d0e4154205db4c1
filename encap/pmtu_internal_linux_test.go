package encap

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/offload"
	"golang.org/x/sys/unix"
)

// narrow returns a rig in a network namespace whose loopback has the given
// MTU, with a flannel-like receiver for peer A. Sends are the kernel's.
func narrow(t *testing.T, bind, peer string, mtu int) (r *rig, a receiver, ns *netlab.NS) {
	t.Helper()
	netlab.Require(t, netlab.NeedIPv6)
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	if ns, err = lab.Namespace("narrow"); err != nil {
		t.Fatal(err)
	}
	if err := ns.SetMTU("lo", mtu); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		a = newReceiver(t, peer)
		r = newRigOn(t, bind, Config{}, Peer{Endpoint: a.at, Subnets: subnetsA()})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.net.real = true
	return r, a, ns
}

// told returns the ICMP errors that were written to the device, and checks
// that each quotes a packet that is on the wire: a TCP sender looks for its
// sequence number in the quote and ignores an error without it (RFC 5927
// section 4.1, net/ipv4/tcp_ipv4.c tcp_v4_err).
func (r *rig) told(t *testing.T, wire [][]byte) (what []string) {
	t.Helper()
	for _, w := range r.tun.take() {
		m := mustDecode(t, w.p)
		what = append(what, m.what())
		quoted := func(p []byte) bool { return bytes.HasPrefix(p, m.quote) }
		if !slices.ContainsFunc(wire, quoted) {
			t.Errorf("%v quotes no packet that was sent:\n%x\nthe first one was\n%x", m, head(m.quote), head(wire[0]))
		}
	}
	return what
}

// TestPathMTU: super-packets and packets that are too large for the path are
// fragmented, not lost; their senders are told, and the kernel is not asked to
// do what it refused again.
func TestPathMTU(t *testing.T) {
	const mtu = 1300
	for _, c := range []struct{ name, bind, peer string }{
		{"v4", "127.0.0.1:0", "127.0.0.1:0"}, {"v6", "[::1]:0", "[::1]:0"}, {"v4 on a socket for both", "[::]:0", "127.0.0.1:0"},
	} {
		for _, e := range []unix.Errno{0, unix.EMSGSIZE, unix.EINVAL} { // the kernel's own, that of 6.14 and later, of before
			t.Run(fmt.Sprintf("%s/%v", c.name, e), func(t *testing.T) {
				r, a, ns := narrow(t, c.bind, c.peer, mtu)
				pr := r.peer("10.2.0.7")
				refused := 0
				if e != 0 {
					r.net.verdict = kernelLike(func(m sentMsg) unix.Errno {
						if m.seg > 0 && m.seg+pr.overhead > mtu {
							refused++
							return e
						}
						return 0
					})
				}
				want4, want6 := fmt.Sprintf("mtu %d", mtu-pr.overhead), fmt.Sprintf("mtu %d", max(mtu-pr.overhead, 1280))
				send := func(l load) [][]byte {
					t.Helper()
					return r.sendTo(t, a, l)
				}
				first := load{}
				first.big(tcp4(pattern(10*1400, 1)), 1400)
				wire := send(first)
				if pr.pathMTU() != mtu || pr.gsoOff() || r.p.core.stats.PathMTUs != 1 {
					t.Fatalf("path MTU %d, trains off %v, %d learnt; want %d", pr.pathMTU(), pr.gsoOff(), r.p.core.stats.PathMTUs, mtu)
				}
				if got := r.told(t, wire); !slices.Equal(got, []string{want4}) {
					t.Errorf("told %v, want %v", got, want4)
				}
				if lines := r.log.take(); len(lines) != 1 || !strings.Contains(lines[0], "path MTU learnt") || !strings.Contains(lines[0], "mtu=1300") {
					t.Errorf("logged %q", lines)
				}
				if n := r.p.core.stats.Fragmented; n != 10 {
					t.Errorf("%d packets are counted as fragmented, want 10", n)
				}

				// Known now: nothing is refused, and every sender is told.
				refused = 0
				r.narrowKnown(t, send, want4, want6)
				if refused != 0 {
					t.Errorf("%d trains were refused although the path MTU is known", refused)
				}

				// The path widens, and what was learnt expires.
				if err := ns.SetMTU("lo", 9000); err != nil {
					t.Fatal(err)
				}
				r.net.verdict = nil
				pr.pmtuUntil.Store(1)
				wide := load{}
				wide.big(tcp4(pattern(10*1400, 6)), 1400)
				send(wide)
				if ms := r.net.take(); len(ms) != 1 || pr.pathMTU() != 0 || len(r.told(t, nil)) != 0 {
					t.Errorf("%d messages, path MTU %d when the old one has expired", len(ms), pr.pathMTU())
				}
			})
		}
	}
}

// sendTo sends a load for real, all of which must arrive.
func (r *rig) sendTo(t *testing.T, a receiver, l load) [][]byte {
	t.Helper()
	r.net.take()
	before := r.p.core.stats
	r.tun.push(l.reads...)
	r.mustDrive()
	if st := r.p.core.stats; st.TX.Packets-before.TX.Packets != uint64(len(l.want)) || st.Drops != before.Drops {
		t.Fatalf("%d packets of %d left, drops %v", st.TX.Packets-before.TX.Packets, len(l.want), st.Drops)
	}
	ds := a.take(t, len(l.want))
	if err := differ(ds, l.want); err != nil {
		t.Fatal(err)
	}
	return ds
}

// TestPathMTUAndNoOffload: the driver does not segment, and the path is narrow
// too. What is replayed for the one reason meets the other.
func TestPathMTUAndNoOffload(t *testing.T) {
	for _, c := range []struct{ bind, peer string }{{"127.0.0.1:0", "127.0.0.1:0"}, {"[::1]:0", "[::1]:0"}, {"[::]:0", "127.0.0.1:0"}} {
		t.Run(c.bind, func(t *testing.T) {
			r, a, _ := narrow(t, c.bind, c.peer, 1300)
			r.net.verdict = kernelLike(func(m sentMsg) unix.Errno {
				if m.seg > 0 {
					return unix.EIO
				}
				return 0
			})
			l := load{}
			l.big(tcp4(pattern(10*1400, 1)), 1400)
			for i := range 9 {
				l.one(udp6(pattern(1400, uint32(i))))
			}
			for range 2 {
				r.sendTo(t, a, l)
				if pr := r.peer("10.2.0.7"); !pr.gsoOff() || pr.pathMTU() != 1300 {
					t.Errorf("trains off %v, path MTU %d", pr.gsoOff(), pr.pathMTU())
				}
			}
		})
	}
}

// TestPathMTUBySingle: a single packet that is too large teaches the path MTU
// too, and its sender is told once. With DF set on outer packets the kernel
// reports it twice: as the call's error, and in the error queue.
func TestPathMTUBySingle(t *testing.T) {
	df := udp4(pattern(1400, 2))
	df.frag = 0x4000
	for _, c := range []struct{ bind, peer string }{{"127.0.0.1:0", "127.0.0.1:0"}, {"[::1]:0", "[::1]:0"}, {"[::]:0", "127.0.0.1:0"}} {
		for name, in := range map[string]inner{"v4": df, "v6": udp6(pattern(1400, 3)), "v4 without DF": udp4(pattern(1400, 4))} {
			t.Run(c.bind+"/"+name, func(t *testing.T) {
				r, a, _ := narrow(t, c.bind, c.peer, 1300)
				pr := r.peer("10.2.0.7")
				var want []string
				switch name {
				case "v4":
					want = []string{fmt.Sprintf("mtu %d", 1300-pr.overhead)}
				case "v6":
					want = []string{fmt.Sprintf("mtu %d", max(1300-pr.overhead, 1280))}
				}
				l := load{}
				l.one(in)
				wire := r.sendTo(t, a, l)
				if pr.pathMTU() != 1300 || pr.gsoOff() {
					t.Errorf("path MTU %d, trains off %v", pr.pathMTU(), pr.gsoOff())
				}
				if got := r.told(t, wire); !slices.Equal(got, want) {
					t.Errorf("told %v, want %v", got, want)
				}
				if r.net.calls > 3 {
					t.Errorf("%d calls for one packet", r.net.calls)
				}
				if st := r.p.core.stats; st.PathMTUs != 1 || st.Fragmented != 1 {
					t.Errorf("%d path MTUs learnt, %d packets fragmented; want one each", st.PathMTUs, st.Fragmented)
				}
			})
		}
	}
}

// narrowKnown sends what a peer with a known path MTU of 1300 gets.
func (r *rig) narrowKnown(t *testing.T, send func(load) [][]byte, want4, want6 string) {
	t.Helper()
	df := udp4(pattern(1400, 2))
	df.frag = 0x4000
	for _, c := range []struct {
		name string
		fill func(l *load)
		told string
	}{
		{"tcp4", func(l *load) { l.big(tcp4(pattern(10*1400, 3)), 1400) }, want4},
		{"tcp6", func(l *load) { l.big(tcp6(pattern(10*1400, 4)), 1400) }, want6},
		{"udp6", func(l *load) { l.big(udp6(pattern(4*1400, 5)), 1400) }, want6},
		{"packet", func(l *load) { l.one(df) }, want4},
		{"packet6", func(l *load) { l.one(udp6(pattern(1400, 2))) }, want6},
		{"packet without DF", func(l *load) { l.one(udp4(pattern(1400, 2))) }, ""},
		{"small packet", func(l *load) { l.one(udp6(pattern(1100, 2))) }, ""},
	} {
		l := load{}
		c.fill(&l)
		before := r.p.core.stats.Fragmented
		wire := send(l)
		want := []string{c.told}
		if c.told == "" {
			want = nil
		}
		if got := r.told(t, wire); !slices.Equal(got, want) {
			t.Errorf("%s: told %v, want %v", c.name, got, want)
		}
		large := uint64(0)
		for _, p := range l.want {
			if len(p)+r.peer("10.2.0.7").overhead > 1300 {
				large++
			}
		}
		if n := r.p.core.stats.Fragmented - before; n != large {
			t.Errorf("%s: %d packets are counted as fragmented, want %d", c.name, n, large)
		}
	}
	// What fits leaves in trains as ever.
	l := load{}
	l.big(tcp4(pattern(8*1200, 6)), 1200)
	send(l)
	if ms := r.net.take(); len(ms) != 1 || len(r.tun.take()) != 0 {
		t.Errorf("a super-packet that fits left as %d messages", len(ms))
	}
}

// TestPathMTUReport is what the error queue brings.
func TestPathMTUReport(t *testing.T) {
	df := udp4(pattern(1400, 1))
	df.frag = 0x4000
	good := hop(df.packet())
	a := rigPeers()[0].Endpoint
	foreign := df
	foreign.src = ip("198.51.100.1")
	for _, c := range []struct {
		name string
		q    queuedError
		mtu  int
		told string
	}{
		{"good", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: good}, 1400, "mtu 1372"},
		{"v6 inside", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: hop(udp6(pattern(1400, 1)).packet())}, 1400, "mtu 1372"},
		{"what a router sends back: 548 bytes", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: good[:520]}, 1400, "mtu 1372"},
		{"without a port", queuedError{mtu: 1400, dest: to128(a.Addr()), data: good}, 1400, "mtu 1372"},
		{"nothing came back", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285}, 1400, ""},
		{"27 bytes came back", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: good[:27]}, 1400, ""},
		{"28 bytes came back", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: good[:28]}, 1400, "mtu 1372"},
		{"part of an IPv6 header came back", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: udp6(nil).packet()[:40]}, 1400, ""},
		{"another port", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 9, data: good}, 0, ""},
		{"a stranger", queuedError{mtu: 1400, dest: outerOf("127.0.0.9"), port: 8285, data: good}, 0, ""},
		{"no MTU: the kernel knows", queuedError{dest: to128(a.Addr()), port: 8285, data: good}, 65535, "mtu 65507"},
		// Anyone who knows the ports can make such an error up. The kernel
		// itself believes no MTU below net.ipv4.route.min_pmtu, 552.
		{"absurd", queuedError{mtu: 20, dest: to128(a.Addr()), port: 8285}, 552, ""},
		{"about a packet of somebody else", queuedError{mtu: 1400, dest: to128(a.Addr()), port: 8285, data: foreign.packet()}, 1400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.p.pathMTUReport(c.q)
			pr := r.peer("10.2.0.7")
			if got := pr.pathMTU(); got != c.mtu {
				t.Errorf("path MTU %d, want %d", got, c.mtu)
			}
			if r.peer("10.3.0.7").pathMTU() != 0 {
				t.Error("the other peer's path MTU was learnt")
			}
			ws := r.tun.take()
			if (len(ws) == 1) != (c.told != "") || len(ws) > 1 {
				t.Fatalf("%d messages, want %q", len(ws), c.told)
			}
			if c.told != "" {
				if m := mustDecode(t, ws[0].p); m.what() != c.told || !bytes.HasPrefix(c.q.data, m.quote) {
					t.Errorf("told %v, want %s", m, c.told)
				}
			}
		})
	}
}

// TestHugePackets: what no datagram can carry is dropped, and its sender told.
func TestHugePackets(t *testing.T) {
	r := newRig(t, Config{})
	p := udp6(pattern(65535-48, 1))
	q := udp4(pattern(65535-28, 1))
	q.frag = 0x4000
	big := udp4(pattern(65507-28, 1)) // the largest that fits
	r.tun.push(one(p), one(q), one(big))
	r.mustDrive()
	if err := differ(datagramsOf(r.net.take()), [][]byte{hop(big.packet())}); err != nil {
		t.Error(err)
	}
	if st := r.p.core.stats; st.Drops[DropTooBig] != 2 || st.Drops.Total() != 2 {
		t.Errorf("drops %v", st.Drops)
	}
	if got := r.told(t, [][]byte{hop(p.packet()), hop(q.packet())}); !slices.Equal(got, []string{"mtu 65507", "mtu 65507"}) {
		t.Errorf("told %v", got)
	}
	// The same as one segment of a super-packet.
	v, vh := p.super(65000)
	vh.GSOType = offload.GSOUDPL4
	vh.GSOSize = 65480
	r.tun.push(tunRead{v: vh, p: v})
	r.mustDrive()
	if st := r.p.core.stats; st.Drops[DropTooBig] != 3 || len(r.net.take()) != 0 {
		t.Errorf("a segment larger than any datagram: drops %v", st.Drops)
	}
	if got := r.told(t, hops(p.segments(65480)[:1])); len(got) != 1 {
		t.Errorf("told %v", got)
	}
}
