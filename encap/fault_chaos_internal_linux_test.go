package encap

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// anyLoad draws packets to both peers, and some that go nowhere: they are
// counted in nowhere.
func anyLoad(t *rapid.T) (l load, nowhere Drops) {
	for i := range rapid.IntRange(1, 25).Draw(t, "reads") {
		in := []inner{udp4(nil), udp6(nil), tcp4(nil), tcp6(nil)}[rapid.IntRange(0, 3).Draw(t, "kind")]
		if rapid.Bool().Draw(t, "to B") {
			in = in.toB()
		}
		in.id, in.seq = uint16(i*100), uint32(i)<<16 // no two packets are the same
		in.tos = byte(i)
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0: // no route
			in.dst = ip(map[bool]string{true: "10.250.0.1", false: "fd00:9::1"}[in.src.Is4()])
			l.reads = append(l.reads, one(in))
			nowhere[DropNoRoute]++
		case 1:
			in.ttl = 1
			l.reads = append(l.reads, one(in))
			nowhere[DropExpired]++
		case 2:
			in.dst = ip(map[bool]string{true: "224.0.0.5", false: "ff02::5"}[in.src.Is4()])
			l.reads = append(l.reads, one(in))
			nowhere[DropNotUnicast]++
		case 3, 4:
			in.payload = pattern(rapid.IntRange(101, 9000).Draw(t, "bytes"), uint32(i))
			l.big(in, rapid.SampledFrom([]int{100, 536, 1400}).Draw(t, "mss"))
		default:
			in.payload = pattern(rapid.SampledFrom([]int{0, 1, 64, 64, 64, 64, 1400}).Draw(t, "size"), uint32(i))
			l.one(in)
		}
	}
	return l, nowhere
}

// TestChaos: every order of refusals and partial successes. Whatever the
// kernel does, a packet leaves once, in its place, or is counted as dropped.
func TestChaos(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, Config{NoICMP: true})
		defer r.e.Close()
		script := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 25).Draw(rt, "script")
		script = append(script, 0) // something succeeds
		step, refused := 0, 0
		var denied [][]byte
		r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
			s := script[step%len(script)]
			step++
			switch s {
			case 1:
				return 1, 0
			case 2:
				return (len(ms) + 1) / 2, 0
			case 3:
				return -1, unix.EAGAIN
			case 4:
				return -1, unix.EINTR
			case 5:
				return -1, unix.ENOBUFS
			case 6:
				if ms[0].seg > 0 {
					refused++
					return -1, unix.EIO
				}
				return 1, 0
			case 7:
				if ms[0].seg == 0 {
					denied = append(denied, ms[0].data)
					return -1, unix.EPERM
				}
			}
			return len(ms), 0
		}
		var want [][]byte
		var nowhere Drops
		for range rapid.IntRange(1, 3).Draw(rt, "batches") {
			l, n := anyLoad(rt)
			for d := range n {
				nowhere[d] += n[d]
			}
			want = append(want, l.want...)
			r.tun.push(l.reads...)
			if err := r.drive(); err != nil {
				rt.Fatal(err)
			}
		}
		got := datagramsOf(r.net.take())
		missing, err := lost(got, want)
		if err != nil {
			rt.Fatal(err)
		}
		if len(missing) != len(denied) {
			rt.Fatalf("%d packets are missing, %d were denied", len(missing), len(denied))
		}
		for i, m := range missing {
			if !bytes.Equal(want[m], denied[i]) {
				rt.Fatalf("packet %d is missing, another one was denied", m)
			}
		}
		st := r.p.core.stats
		nowhere[DropUnreachable] = uint64(len(denied))
		if st.Drops != nowhere || st.TX.Packets != uint64(len(got)) || st.TX.Bytes != total(got) || st.Replays != uint64(refused) {
			rt.Fatalf("drops %v, want %v; %d packets, %d bytes, %d left with %d; %d replays of %d",
				st.Drops, nowhere, st.TX.Packets, st.TX.Bytes, len(got), total(got), st.Replays, refused)
		}
	})
}

// deadPort returns an address where nobody listens.
func deadPort(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	loopback(t)
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(port(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// errorComes reports whether an ICMP error comes to socket fd within a second.
func errorComes(t testing.TB, fd int) bool {
	t.Helper()
	for {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		switch n, err := unix.Poll(fds, 1000); {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		default:
			return n == 1 && fds[0].Revents&unix.POLLERR != 0
		}
	}
}

// TestErrorsOfThePast: one peer's engine is not running, and the kernel
// reports that with a later send, to whomever it goes. Nothing of the others'
// is lost, and nothing is switched off. The kernel does all of this for real.
func TestErrorsOfThePast(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, times := range []int{1, 2, 5} {
			for _, l := range loads() {
				t.Run(fmt.Sprintf("%s/%d/%s", addr, times, l.name), func(t *testing.T) {
					dead, alive := deadPort(t, addr), newReceiver(t, addr)
					r := newRigOn(t, addr, Config{},
						Peer{Endpoint: alive.at, Subnets: subnetsA()}, Peer{Endpoint: dead, Subnets: subnetsB()})
					r.net.real = true
					// So many errors come while the engine deals with the one before.
					left := times
					r.net.verdict = func(ms []sentMsg) (int, unix.Errno) {
						if ms[0].to == alive.at && left > 0 {
							left--
							return -1, r.provoke(dead)
						}
						return len(ms), 0
					}
					r.tun.push(l.reads...)
					r.mustDrive()
					if st := r.p.core.stats; st.Drops.Total() != 0 || st.TX.Packets != uint64(len(l.want)) {
						t.Errorf("drops %v, %d packets left of %d", st.Drops, st.TX.Packets, len(l.want))
					} else if err := differ(alive.take(t, len(l.want)), l.want); err != nil {
						t.Error(err)
					}
					if r.peer("10.2.0.7").gsoOff() || r.peer("10.3.0.7").gsoOff() {
						t.Errorf("an error about another peer switched trains off: %q", r.log.take())
					}
				})
			}
		}
	}
}

// provoke has an ICMP port-unreachable come to the engine's socket, and
// returns what the next send there reports.
func (r *rig) provoke(dead netip.AddrPort) unix.Errno {
	r.t.Helper()
	r.disturb(dead)
	err := unix.Sendto(r.p.socks[0], []byte("anybody there?"), 0, sockaddr(dead))
	var e unix.Errno
	if !errors.As(err, &e) {
		r.t.Fatalf("a send after an error of the past: %v", err)
	}
	return e
}

// disturb sends to where nobody listens, and waits for the answer; again if none comes,
// since the kernel limits how many such answers it gives.
func (r *rig) disturb(dead netip.AddrPort) {
	r.t.Helper()
	for range 20 {
		err := unix.Sendto(r.p.socks[0], []byte("anybody there?"), 0, sockaddr(dead))
		if err != nil && err != unix.ECONNREFUSED { // that one is the answer to the one before
			r.t.Fatal(err)
		}
		if errorComes(r.t, r.p.socks[0]) {
			return
		}
	}
	r.t.Fatal("no error comes")
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// TestReceiveAfterError: an error of the past that is met when receiving costs
// no datagram.
func TestReceiveAfterError(t *testing.T) {
	alive := newReceiver(t, "127.0.0.1:0")
	r := newRigOn(t, "127.0.0.1:0", Config{}, Peer{Endpoint: alive.at, Subnets: subnetsA()})
	r.net.real = true
	p := udp4(pattern(99, 1)).back().packet()
	if _, err := alive.WriteToUDPAddrPort(p, r.addr); err != nil {
		t.Fatal(err)
	}
	r.disturb(deadPort(t, "127.0.0.1:0"))
	r.mustDrive()
	if err := differ(cutAll(t, r.tun.take()), [][]byte{hop(p)}); err != nil {
		t.Error(err)
	}
}
