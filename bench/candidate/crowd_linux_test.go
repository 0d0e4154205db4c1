package candidate

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mss is the size of what a connection sends at once.
func mss(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var got error
	if err := raw.Control(func(fd uintptr) { n, got = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); err != nil || got != nil {
		t.Fatal(err, got)
	}
	return n
}

// crowds are the candidates that have to have one.
func crowds() []string {
	return []string{"native", "vxlan", "udp", "udp:engines=2", "udp:path=portable"}
}

func TestPeers(t *testing.T) {
	bed := newBed(t)
	candidates := up(t, bed, crowds()...)
	before := state(t, bed)
	for _, n := range []int{1, 100, 3} { // also one crowd after the other without an end in between
		for _, c := range candidates {
			addrs, err := c.(Crowd).Peers(t.Context(), n)
			if err != nil {
				t.Fatalf("%s: %d peers: %v", c.Name(), n, err)
			}
			reach(t, bed, c, addrs, n)
		}
	}
	for _, c := range candidates {
		if addrs, err := c.(Crowd).Peers(t.Context(), 0); err != nil || len(addrs) != 0 {
			t.Errorf("%s: no peers: %v, %v", c.Name(), addrs, err)
		}
		ping(t, bed, c) // the one peer that is always there is there still
		for _, n := range []int{-1, maxCrowd + 1} {
			if _, err := c.(Crowd).Peers(t.Context(), n); err == nil {
				t.Errorf("%s: %d peers: no error", c.Name(), n)
			}
		}
	}
	if after := state(t, bed); !slices.Equal(after, before) {
		t.Errorf("without peers the hosts have\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestManyPeers is the largest crowd of the benchmark.
func TestManyPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	bed := newBed(t)
	const n = 10_000
	for _, c := range up(t, bed, "native", "vxlan", "udp") {
		start := time.Now()
		addrs, err := c.(Crowd).Peers(t.Context(), n)
		if err != nil {
			t.Fatalf("%s: %v", c.Name(), err)
		}
		t.Logf("%s: %d peers in %v", c.Name(), n, time.Since(start))
		reach(t, bed, c, addrs, n)
		start = time.Now()
		if _, err := c.(Crowd).Peers(t.Context(), 0); err != nil {
			t.Errorf("%s: %v", c.Name(), err)
		}
		t.Logf("%s: removed in %v", c.Name(), time.Since(start))
	}
}

// reach sends a packet to the first, the middle and the last of n peers.
func reach(t *testing.T, bed Bed, c Candidate, addrs []netip.Addr, n int) {
	t.Helper()
	if len(addrs) != n {
		t.Fatalf("%s: %d addresses of %d peers", c.Name(), len(addrs), n)
	}
	subnets := map[netip.Prefix]bool{}
	for _, addr := range addrs {
		subnets[netip.PrefixFrom(addr, 24).Masked()] = true
	}
	if len(subnets) != n {
		t.Errorf("%s: %d subnets of %d peers", c.Name(), len(subnets), n)
	}
	var to, from *net.UDPConn
	open := func(conn **net.UDPConn, addr netip.Addr) func() error {
		return func() (err error) {
			*conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: addr.AsSlice()})
			return err
		}
	}
	if err := bed.Hosts.HostB.Do(open(&to, netip.IPv4Unspecified())); err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	a, _ := c.Addrs()
	if err := bed.Hosts.HostA.Do(open(&from, a)); err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	port := uint16(to.LocalAddr().(*net.UDPAddr).Port)
	for _, addr := range []netip.Addr{addrs[0], addrs[n/2], addrs[n-1]} {
		text := fmt.Sprint(c.Name(), " to ", addr)
		if _, err := from.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(addr, port)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if err := to.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		k, sender, err := to.ReadFromUDPAddrPort(got)
		if err != nil || string(got[:k]) != text || sender.Addr() != a {
			t.Fatalf("%s: %q from %v: %v", text, got[:k], sender, err)
		}
	}
}
