package netlab

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// impairedPair returns an impaired link and a function that sends datagrams
// from one side, numbered from first, and returns the numbers of the given
// count of arrivals. Only these datagrams are impaired. They have fixed ports,
// so that with the seed everything is the same in every run.
func impairedPair(t *testing.T, cfg Impairment) (imp *Impairer, send func(first uint32, count, arrivals int) []uint32) {
	t.Helper()
	l := newLab(t)
	a, b := namespace(t, l, "a"), namespace(t, l, "b")
	cfg.Match = isTestDatagram
	imp, err := l.Impaired(a, "x", b, "x", 1500, cfg)
	check(t, err)
	addr4, _ := addresses(t, a, b)
	ping(t, a, addr4) // neighbours know each other

	udp := func(addr netip.Addr, port uint16) *net.UDPAddr {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port))
	}
	var in, out *net.UDPConn
	check(t, b.Do(func() (err error) {
		in, err = net.ListenUDP("udp", udp(addr4, 9))
		return err
	}), a.Do(func() (err error) {
		out, err = net.DialUDP("udp", udp(addr4.Prev(), 1009), udp(addr4, 9))
		return err
	}))
	t.Cleanup(func() { in.Close(); out.Close() })
	return imp, func(first uint32, count, arrivals int) []uint32 {
		t.Helper()
		msg := make([]byte, 64)
		for i := range count {
			binary.BigEndian.PutUint32(msg, first+uint32(i))
			_, err := out.Write(msg)
			check(t, err)
		}
		var got []uint32
		buf := make([]byte, 2000)
		in.SetReadDeadline(time.Now().Add(patience))
		for len(got) < arrivals {
			n, err := in.Read(buf)
			if err != nil {
				t.Fatalf("%d of %d datagrams: %v; %+v", len(got), arrivals, err, imp.Counters(AToB))
			}
			got = append(got, binary.BigEndian.Uint32(buf))
			if n != len(msg) || !bytes.Equal(buf[4:n], msg[4:]) {
				t.Fatalf("a damaged datagram was delivered: % x", buf[:n])
			}
		}
		return got
	}
}

// isTestDatagram matches what impairedPair sends: IPv4, UDP, 64 bytes.
func isTestDatagram(frame []byte) bool {
	return len(frame) == 14+20+8+64 && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP
}

const datagrams = 200 // fit into a socket buffer, should the receiver sleep

// waitCounters waits until the counters are as wished and returns them.
func waitCounters(t *testing.T, imp *Impairer, reached func(ImpairCounters) bool) ImpairCounters {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c := imp.Counters(AToB)
		if reached(c) {
			if c.Oversized+c.Overruns+c.Failed > 0 {
				t.Errorf("counters: %+v", c)
			}
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("counters: %+v", c)
		}
	}
}

func TestImpairDrop(t *testing.T) {
	imp, send := impairedPair(t, Impairment{Drop: 1, Seed: 1})
	send(0, datagrams, 0)
	waitCounters(t, imp, func(c ImpairCounters) bool { return c.Dropped == datagrams })

	// Changed at run time: now some come through.
	check(t, imp.Set(Impairment{Drop: 0.5, Match: isTestDatagram}))
	send(1000, datagrams, 0)
	// Nothing overtakes: what has not come before number 2000 was dropped.
	waitCounters(t, imp, func(c ImpairCounters) bool { return c.Received >= 2*datagrams })
	check(t, imp.Set(Impairment{}))
	var got []uint32
	for next := send(2000, 1, 1); ; next = send(0, 0, 1) {
		if next[0] == 2000 {
			break
		}
		if next[0] < 1000 {
			t.Errorf("number %d was to be dropped", next[0])
		}
		got = append(got, next[0])
	}
	c := imp.Counters(AToB)
	if dropped := int(c.Dropped) - datagrams; dropped <= 0 || dropped+len(got) != datagrams {
		t.Errorf("%d arrived, counters: %+v", len(got), c)
	}
}

func TestImpairDuplicate(t *testing.T) {
	imp, send := impairedPair(t, Impairment{Duplicate: 1})
	got := send(0, datagrams/2, datagrams)
	for i, v := range got {
		if int(v) != i/2 {
			t.Fatalf("arrival %d is number %d: %v", i, v, got)
		}
	}
	waitCounters(t, imp, func(c ImpairCounters) bool { return c.Duplicated == datagrams/2 })
}

func TestImpairReorder(t *testing.T) {
	imp, send := impairedPair(t, Impairment{Reorder: 0.2, Hold: 3, Seed: 7})
	got := send(0, datagrams, datagrams)
	seen, late := make(map[uint32]bool), uint64(0)
	for i, v := range got {
		if seen[v] {
			t.Fatalf("number %d arrived twice: %v", v, got)
		}
		seen[v] = true
		if i > 0 && v < got[i-1] {
			late++
		}
	}
	c := waitCounters(t, imp, func(c ImpairCounters) bool { return c.Reordered > 0 })
	if late == 0 || late > c.Reordered {
		t.Errorf("%d came late, %d were held back: %v", late, c.Reordered, got)
	}

	// One that nothing follows arrives too.
	check(t, imp.Set(Impairment{Reorder: 1, Hold: 1 << 20, Match: isTestDatagram}))
	send(5000, 1, 1)
}

func TestImpairCorrupt(t *testing.T) {
	imp, send := impairedPair(t, Impairment{Corrupt: 1, Seed: 3})
	send(0, datagrams, 0)
	waitCounters(t, imp, func(c ImpairCounters) bool { return c.Corrupted == datagrams })
	// The checksums of IPv4 and UDP find every change of one byte, so the first
	// that arrives is one that was left alone.
	check(t, imp.Set(Impairment{}))
	if got := send(1000, 1, 1); got[0] != 1000 {
		t.Errorf("number %d was delivered, corrupted", got[0])
	}
}

func TestImpairTwoHosts(t *testing.T) {
	l := newLab(t)
	th, err := l.TwoHosts(TwoHostsConfig{Impairment: &Impairment{Drop: 0.01, Duplicate: 0.02, Reorder: 0.02, Corrupt: 0.01, Seed: 42}})
	check(t, err)
	exchange(t, th.HostA.NS, th.HostB.NS, th.HostB.Addr4.Addr(), 1<<20)
	for d := range Direction(2) {
		c := th.Link.Counters(d)
		t.Logf("direction %d: %+v", d, c)
		if c.Received == 0 || c.Oversized+c.Failed > 0 {
			t.Errorf("direction %d: %+v", d, c)
		}
	}
	if c := th.Link.Counters(AToB); c.Received < 1<<20/1500 || c.Dropped+c.Duplicated+c.Reordered+c.Corrupted == 0 {
		t.Errorf("after 1 MiB: %+v", c)
	}
	for _, bad := range []Impairment{{Drop: 1.1}, {Corrupt: -1}, {Hold: -1}} {
		if err := th.Link.Set(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// playWire sends frames of 20 bytes, numbered in the first byte and zero
// otherwise, and an oversized one through a wire. It returns what comes out.
func playWire(t *testing.T, cfg Impairment, frames int) (out [][]byte, c ImpairCounters) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close()
	defer far.Close()
	w := newWire(near, near, 100, cfg, 0)
	for i := range frames {
		frame := make([]byte, 20)
		frame[0] = byte(i)
		w.impair(frame)
	}
	w.impair(make([]byte, ethHeader+101))
	w.release(true)
	near.Close()
	for {
		buf := make([]byte, 200)
		n, err := far.Read(buf)
		if n == 0 || err != nil {
			return out, w.counters()
		}
		out = append(out, buf[:n])
	}
}

// TestWireRepeats needs no privileges, as the next one.
func TestWireRepeats(t *testing.T) {
	cfg := Impairment{Drop: .2, Duplicate: .2, Reorder: .2, Corrupt: .2, Hold: 2, Seed: 1}
	first, c := playWire(t, cfg, 100)
	again, _ := playWire(t, cfg, 100)
	cfg.Seed = 2
	other, _ := playWire(t, cfg, 100)
	if !cmp.Equal(first, again) {
		t.Error("one seed, two outcomes")
	}
	if cmp.Equal(first, other) {
		t.Error("two seeds, one outcome")
	}
	if c.Dropped == 0 || c.Duplicated == 0 || c.Reordered == 0 || c.Corrupted == 0 || c.Oversized != 1 {
		t.Errorf("counters: %+v", c)
	}
	if uint64(len(first)) != c.Forwarded || c.Forwarded != 100-c.Dropped+c.Duplicated {
		t.Errorf("%d frames came out: %+v", len(first), c)
	}
}

func TestWireExactly(t *testing.T) {
	second := func(frame []byte) bool { return frame[0] == 1 }
	for name, tc := range map[string]struct {
		cfg  Impairment
		want []byte
	}{
		"nothing":         {Impairment{}, []byte{0, 1, 2, 3, 4}},
		"drop":            {Impairment{Drop: 1}, []byte{0, 2, 3, 4}},
		"duplicate":       {Impairment{Duplicate: 1}, []byte{0, 1, 1, 2, 3, 4}},
		"swap":            {Impairment{Reorder: 1}, []byte{0, 2, 1, 3, 4}},
		"hold 2":          {Impairment{Reorder: 1, Hold: 2}, []byte{0, 2, 3, 1, 4}},
		"hold for ever":   {Impairment{Reorder: 1, Hold: 100}, []byte{0, 2, 3, 4, 1}},
		"hold duplicates": {Impairment{Reorder: 1, Duplicate: 1}, []byte{0, 2, 1, 1, 3, 4}},
	} {
		tc.cfg.Match = second
		out, _ := playWire(t, tc.cfg, 5)
		var got []byte
		for _, frame := range out {
			got = append(got, frame[0])
		}
		if !bytes.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}

	out, _ := playWire(t, Impairment{Corrupt: 1}, 256)
	if len(out) != 256 {
		t.Fatalf("%d of 256 frames", len(out))
	}
	places := make(map[int]bool)
	for i, frame := range out {
		want := make([]byte, 20)
		want[0] = byte(i)
		var changed []int
		for at := range frame {
			if frame[at] != want[at] {
				changed = append(changed, at)
			}
		}
		if len(changed) != 1 || changed[0] < ethHeader {
			t.Fatalf("frame %d is changed at %v", i, changed)
		}
		places[changed[0]] = true
	}
	if len(places) != 20-ethHeader {
		t.Errorf("only these places were changed: %v", places)
	}
}
