package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"golang.org/x/sys/unix"
)

// loopback4 is the i-th of many addresses of this machine: all of 127.0.0.0/8 is.
func loopback4(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}) }

func spread4(n int) []netip.Addr {
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		addrs[i] = loopback4(i)
	}
	return addrs
}

// receiveOn makes a socket for addr, on the given port or any, and returns the port.
func receiveOn(t *testing.T, addr netip.Addr, port uint16) (int, uint16) {
	t.Helper()
	fd, err := openSocket(addr, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := setBuffers(fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	if port == 0 {
		if port, err = bindAny(fd, addr); err != nil {
			t.Fatal(err)
		}
		return fd, port
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, port))); err != nil {
		t.Skipf("port %d is taken at %v: %v", port, addr, err)
	}
	return fd, port
}

// packetSizes returns the sizes of what has arrived at a socket.
func packetSizes(t *testing.T, fd int) []int {
	t.Helper()
	var sizes []int
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return sizes
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, n)
	}
}

// sendGroups sends a number of packets as a trial does, one group after the other, but with no regard to time.
func sendGroups(t *testing.T, fd int, names *sockaddrs, sizes []int, groups, packets int) (sent udpSent) {
	t.Helper()
	largest := slices.Max(sizes)
	g := udpGroup{udpSendTrial: udpSendTrial{Run: 1}, sizes: sizes, largest: largest, names: names, v: newMmsgVector(maxTick, largest)}
	for at := 0; at < groups*packets; at = int(sent.Sent + sent.Errors) {
		n := min(packets, groups*packets-at)
		g.fill(uint64(at), n)
		if err := g.send(fd, n, &sent); err != nil {
			t.Fatal(err)
		}
	}
	return sent
}

// carrying makes trials until something comes through one. A machine that stalls for a whole trial sends nothing in it; one
// that does so each time has another problem.
func carrying(t *testing.T, pair *UDPPair, trial UDPTrial) UDPResult {
	t.Helper()
	for range 20 {
		r, err := pair.Trial(t.Context(), trial)
		if err != nil {
			t.Fatal(err)
		}
		if r.Received > 0 {
			return r
		}
		t.Logf("nothing came: %+v", r)
	}
	t.Fatal("nothing came in any trial")
	return UDPResult{}
}

// TestSpreadTakesTurns receives by a socket for every destination: each must get every n-th packet.
func TestSpreadTakesTurns(t *testing.T) {
	const n = 7 // no divisor of a group
	addrs := spread4(n)
	fds := make([]int, n)
	var port uint16
	for i, addr := range addrs {
		fds[i], port = receiveOn(t, addr, port)
	}
	fd, err := openSocket(addrs[0], unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mix := []int{100, 20, 300} // by turns as well: 3 and 7 have no common divisor
	const groups, packets = 40, 5
	sent := sendGroups(t, fd, newSockaddrs(addrs, port), mix, groups, packets)
	if sent.Sent != groups*packets || sent.Errors != 0 {
		t.Fatalf("sent %+v, want %d packets", sent, groups*packets)
	}
	for i, fd := range fds {
		var want []int
		for sequence := i; sequence < int(sent.Sent); sequence += n {
			want = append(want, mix[sequence%len(mix)])
		}
		if got := packetSizes(t, fd); !slices.Equal(got, want) {
			t.Errorf("destination %d got packets of %v bytes, want %v", i, got, want)
		}
	}
}

// TestSpreadSkipsTheUnreachable has a destination that the kernel refuses: it costs its own packets only.
func TestSpreadSkipsTheUnreachable(t *testing.T) {
	lab := netlab.ForTest(t)
	ns, err := lab.Namespace("alone") // no route leads out of it
	if err != nil {
		t.Fatal(err)
	}
	good, bad := loopback4(1), netip.MustParseAddr("192.0.2.1")
	var receiver, fd int
	var port uint16
	err = ns.Do(func() error {
		receiver, port = receiveOn(t, good, 0)
		fd, err = openSocket(good, unix.SOCK_DGRAM, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const groups, packets = 20, 6 // a group begins with the bad one, or ends with it, or neither
	sent := sendGroups(t, fd, newSockaddrs([]netip.Addr{good, bad, good, good}, port), []int{64}, groups, packets)
	got := uint64(len(packetSizes(t, receiver)))
	if got != sent.Sent || sent.Errors != groups*packets/4 || sent.Sent != groups*packets*3/4 {
		t.Errorf("%d packets arrived, sent %+v: want all of %d, and one error for three of them", got, sent, groups*packets*3/4)
	}
}

func TestUDPSpread(t *testing.T) {
	for _, n := range []int{1, MaxSpread} {
		calls := ""
		pair, err := OpenUDP(t.Context(), nil, nil, UDPConfig{Spread: spread4(n)})
		if err != nil {
			t.Fatal(err)
		}
		r := carrying(t, pair, UDPTrial{
			Rate: 60_000, Mix: []int{64, 16, 500, 64, 64}, Duration: 500 * time.Millisecond, Verify: true,
			OnOpen: func() { calls += "open " }, OnClose: func() { calls += "close " },
		})
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
		want := min(n, int(r.Sent)) // a slow machine may not get round
		if r.Received+r.Lost != r.Sent || r.Corrupt+r.Duplicated != 0 || r.SendErrors != 0 {
			t.Errorf("%d destinations: %+v", n, r)
		}
		if r.Lost == 0 && r.Reached != want || r.Reached == 0 {
			t.Errorf("%d destinations: reached %d, want %d", n, r.Reached, want)
		}
		if rest := strings.ReplaceAll(calls, "open close ", ""); rest != "" || calls == "" {
			t.Errorf("OnOpen and OnClose: %s, want one call each in a trial, in this order", calls)
		}
	}
}

func TestUDPMix(t *testing.T) {
	addr := loopbacks(t)[0]
	pair, err := OpenUDP(t.Context(), nil, nil, UDPConfig{Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer pair.Close()
	mix := IMIX(1500)
	r := carrying(t, pair, UDPTrial{Rate: 5000, Mix: mix, Duration: 200 * time.Millisecond, Verify: true})
	want := uint64(0)
	for i := range int(r.Sent) {
		want += uint64(mix[i%len(mix)])
	}
	if r.Corrupt != 0 || r.Bytes > want || r.Lost == 0 && r.Bytes != want {
		t.Errorf("%+v, want %d bytes", r, want)
	}
	search, err := SearchUDP(t.Context(), pair, SearchConfig{Mix: mix, Trial: 50 * time.Millisecond, Start: 2000, Max: 3000, Tolerance: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	if len(search.Trials) == 0 {
		t.Error("the search made no trial")
	}
	for _, r := range search.Trials {
		if r.Lost == 0 && r.Received > uint64(len(mix)) && r.Bytes <= r.Received*36 {
			t.Errorf("the search does not mix: %+v", r)
		}
	}
	if _, err := pair.Trial(t.Context(), UDPTrial{Rate: 1, Mix: []int{64, 15}, Duration: 1}); err == nil {
		t.Error("a mix with a packet without room for the header: no error")
	}
	if _, err := pair.Trial(t.Context(), UDPTrial{Rate: 5000, Size: 64, Duration: 20 * time.Millisecond, Verify: true}); err != nil {
		t.Errorf("after a refused trial: %v", err)
	}
}

func TestIMIX(t *testing.T) {
	count := map[int]int{}
	for _, size := range IMIX(1472) {
		count[size+28]++
	}
	if want := "map[64:7 576:4 1472:1]"; fmt.Sprint(count) != want {
		t.Errorf("IMIX = %v, want %s", count, want)
	}
}

func TestSpreadErrors(t *testing.T) {
	for name, c := range map[string]UDPConfig{
		"too many":  {Spread: spread4(MaxSpread + 1)},
		"no such":   {Spread: []netip.Addr{loopback4(1), {}}},
		"both":      {Spread: []netip.Addr{loopback4(1), netip.IPv6LinkLocalAllNodes()}},
		"no source": {Spread: spread4(2), Source: netip.MustParseAddr("192.0.2.1")},
		"nothing":   {},
	} {
		if pair, err := OpenUDP(t.Context(), nil, nil, c); err == nil {
			t.Errorf("%s: no error", name)
			_ = pair.Close()
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// TestFillDoesNotAllocate is about the work per packet: the addresses and buffers are made once.
func TestFillDoesNotAllocate(t *testing.T) {
	names := newSockaddrs(spread4(100), 9)
	mix := IMIX(1500)
	g := udpGroup{udpSendTrial: udpSendTrial{Run: 1}, sizes: mix, largest: 1472, names: names, v: newMmsgVector(maxTick, 1472)}
	sequence := uint64(0)
	if n := testing.AllocsPerRun(100, func() { g.fill(sequence, maxTick); sequence += maxTick }); n != 0 {
		t.Errorf("a group of packets allocates %v times", n)
	}
}

func TestTCPBoth(t *testing.T) {
	for _, addr := range loopbacks(t) {
		opened, closed := 0, 0
		r, err := TCP(t.Context(), nil, nil, TCPConfig{
			Addr: addr, Source: addr, Streams: 2, Both: true, Warmup: 50 * time.Millisecond, Duration: 200 * time.Millisecond, Verify: true, Seed: 5,
			OnOpen: func() { opened++ }, OnClose: func() { closed++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := r.PerDirection; len(r.PerStream) != 4 || d[0] == 0 || d[1] == 0 || d[0]+d[1] != r.BitsPerSecond || r.Verified <= r.Bytes {
			t.Errorf("%v: %+v: want 4 streams, two directions and their sum", addr, r)
		}
		if near := func(a, b float64) bool { return a > 0.999*b && a < 1.001*b }; !near(r.PerStream[0]+r.PerStream[1], r.PerDirection[0]) {
			t.Errorf("%v: the first two of %v are not the direction to Addr, %v", addr, r.PerStream, r.PerDirection)
		}
		if opened != 1 || closed != 1 {
			t.Errorf("%v: window opened %d times, closed %d times", addr, opened, closed)
		}
	}
	if _, err := TCP(t.Context(), nil, nil, TCPConfig{Addr: loopback4(1), Both: true, Duration: time.Second}); err == nil || !strings.Contains(err.Error(), "no source") {
		t.Errorf("both without a source: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := TCP(ctx, nil, nil, TCPConfig{Addr: loopback4(1), Source: loopback4(2), Both: true, Duration: time.Hour, OnOpen: cancel})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
