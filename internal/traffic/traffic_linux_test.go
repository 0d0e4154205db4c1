package traffic

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loopbacks are the addresses to test with; IPv6 only where this machine has it.
func loopbacks(t *testing.T) []netip.Addr {
	t.Helper()
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	six := netip.MustParseAddr("::1")
	fd, err := openSocket(six, unix.SOCK_DGRAM, 0)
	if err == nil {
		defer unix.Close(fd)
		_, err = bindAny(fd, six)
	}
	if err != nil {
		t.Logf("without ::1: %v", err)
		return addrs
	}
	return append(addrs, six)
}

func TestTCPVerified(t *testing.T) {
	for _, addr := range loopbacks(t) {
		opened, closed := 0, 0
		r, err := TCP(t.Context(), nil, nil, TCPConfig{
			Addr: addr, Source: addr, Streams: 3, Warmup: 50 * time.Millisecond, Duration: 200 * time.Millisecond, Verify: true, Seed: 5,
			OnOpen: func() { opened++ }, OnClose: func() { closed++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes == 0 || r.Verified <= r.Bytes || len(r.PerStream) != 3 || r.MSS == 0 || r.BitsPerSecond == 0 {
			t.Errorf("%v: result %+v: want bytes in the window, more verified than those, 3 streams", addr, r)
		}
		if opened != 1 || closed != 1 {
			t.Errorf("%v: window opened %d times, closed %d times", addr, opened, closed)
		}
	}
}

func TestTCPRate(t *testing.T) {
	const rate = 80e6
	r, err := TCP(t.Context(), nil, nil, TCPConfig{
		Addr: loopbacks(t)[0], Streams: 2, Warmup: 50 * time.Millisecond, Duration: 300 * time.Millisecond, Rate: rate,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.BitsPerSecond > 1.5*rate { // how far below depends on the machine; above it must never be
		t.Errorf("%.0f bit/s, want about %.0f", r.BitsPerSecond, rate)
	}
	if r.Bytes == 0 {
		t.Error("nothing arrived")
	}
}

func TestTCPErrors(t *testing.T) {
	loop := loopbacks(t)[0]
	for name, c := range map[string]TCPConfig{
		"no address":         {Duration: time.Second},
		"no duration":        {Addr: loop},
		"unknown congestion": {Addr: loop, Duration: time.Second, Congestion: "no-such"},
		"foreign address":    {Addr: netip.MustParseAddr("192.0.2.1"), Duration: time.Second},
	} {
		if _, err := TCP(t.Context(), nil, nil, c); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := TCP(ctx, nil, nil, TCPConfig{Addr: loop, Duration: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("a cancelled test took %v", d)
	}
}

// TestTCPVerifyNotices lets the two ends disagree about the seed: what arrives is not what should.
func TestTCPVerifyNotices(t *testing.T) {
	c := TCPConfig{Addr: loopbacks(t)[0], Duration: 100 * time.Millisecond, Verify: true}.withDefaults()
	receiver, err := Start(nil, roleTCPReceive, c)
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	var listening tcpListening
	if err := receiver.Next(t.Context(), "listening", &listening); err != nil {
		t.Fatal(err)
	}
	c.Seed++
	sender, err := Start(nil, roleTCPSend, tcpSendConfig{c, listening.Port})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	for {
		var r tcpReport
		err := receiver.Next(t.Context(), "report", &r)
		if err == nil {
			t.Fatalf("the receiver took it for right: %+v", r)
		}
		if kind := err.Error(); kind != `traffic: got message "open" while waiting for "report"` && kind != `traffic: got message "close" while waiting for "report"` {
			t.Log(err)
			return
		}
	}
}

func TestUDP(t *testing.T) {
	for _, addr := range loopbacks(t) {
		pair, err := OpenUDP(t.Context(), nil, nil, UDPConfig{Addr: addr, Source: addr})
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{MinUDPSize, 64, 1400, 9000} {
			r, err := pair.Trial(t.Context(), UDPTrial{Rate: 5000, Size: size, Duration: 100 * time.Millisecond, Verify: true})
			if err != nil {
				t.Fatal(err)
			}
			if r.Received == 0 || r.Received+r.Lost != r.Sent || r.Corrupt+r.Duplicated+r.Reordered != 0 || r.Achieved > 5100 {
				t.Errorf("%v, %d bytes: %+v", addr, size, r)
			}
		}
		if _, err := pair.Trial(t.Context(), UDPTrial{Rate: 1, Size: 15, Duration: 1}); err == nil {
			t.Error("a packet without room for the header: no error")
		}
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSearchUDP(t *testing.T) {
	pair, err := OpenUDP(t.Context(), nil, nil, UDPConfig{Addr: loopbacks(t)[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer pair.Close()
	r, err := SearchUDP(t.Context(), pair, SearchConfig{Size: 64, Trial: 50 * time.Millisecond, Start: 5000, Max: 10_000, Tolerance: 0.2})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Trials) == 0 || r.Rate > 10_000 {
		t.Errorf("search = %+v", r)
	}
}

func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a raw ICMP socket needs CAP_NET_RAW: run as root or in a user namespace")
	}
	for _, addr := range loopbacks(t) {
		r, err := Ping(t.Context(), nil, PingConfig{Addr: addr, Source: addr, Interval: time.Millisecond, Count: 20, Warmup: 3})
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent != 20 || r.Received == 0 || r.Min <= 0 || r.Median < r.P10 || r.P99 < r.Median {
			t.Errorf("%v: %+v", addr, r)
		}
	}
}

func TestMeter(t *testing.T) {
	m, err := StartMeter(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var u Usage
	for x := 0; ; x++ { // until there is something to measure: the counters move in steps
		if x%1_000_000 != 0 {
			continue
		}
		if u, err = m.Stop(); err != nil {
			t.Fatal(err)
		}
		if u.Busy > 0 && u.Procs[0].CPU > 0 {
			break
		}
		if u.Wall > 30*time.Second {
			t.Fatalf("30 s of work do not show: %+v", u)
		}
	}
	if u.Cores() <= 0 || u.Procs[0].Resident == 0 || u.Procs[0].PeakResident < u.Procs[0].Resident {
		t.Errorf("usage %+v", u)
	}
	if _, err := StartMeter(-1); err == nil {
		t.Error("a process that cannot exist: no error")
	}
}
