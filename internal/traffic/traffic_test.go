package traffic

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) {
	roles := StandardRoles()
	roles["test-echo"] = func(ctx context.Context, link *Link) error {
		var greeting string
		if err := link.Config(ctx, &greeting); err != nil {
			return err
		}
		for {
			var n int
			if err := link.Next(ctx, "number", &n); err != nil {
				return err
			}
			if n < 0 {
				return fmt.Errorf("no negative numbers, %s", greeting)
			}
			if err := link.Send("next", n+1); err != nil {
				return err
			}
		}
	}
	roles["test-crash"] = func(ctx context.Context, link *Link) error { panic("the reason of the crash") }
	roles["test-chatter"] = func(ctx context.Context, link *Link) error {
		fmt.Println("a stray line")
		<-ctx.Done()
		return ctx.Err()
	}
	if code, ran := RunRole(roles); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}

func TestRole(t *testing.T) {
	ctx := t.Context()
	p, err := Start(nil, "test-echo", "friend")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := p.Send("number", n); err != nil {
			t.Fatal(err)
		}
		var got int
		if err := p.Next(ctx, "next", &got); err != nil || got != n+1 {
			t.Fatalf("Next = %d, %v, want %d", got, err, n+1)
		}
	}
	if err := p.Send("number", -1); err != nil {
		t.Fatal(err)
	}
	if err := p.Next(ctx, "next", nil); err == nil || !strings.Contains(err.Error(), "no negative numbers, friend") {
		t.Errorf("Next after a failure = %v, want the role's own error", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close = %v, want nil: Next has told", err)
	}
}

func TestRoleStopsWithItsParent(t *testing.T) {
	p, err := Start(nil, "test-echo", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close of a waiting role = %v, want nil: being stopped is no failure", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestRoleTrouble(t *testing.T) {
	for _, test := range []struct{ role, want string }{
		{"test-crash", "the reason of the crash"},
		{"test-nobody", "no role"},
		{"test-chatter", "a stray line"},
	} {
		t.Run(test.role, func(t *testing.T) {
			p, err := Start(nil, test.role, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.Next(t.Context(), "anything", nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Next = %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestCloseTellsWhyTheRoleFailed(t *testing.T) {
	p, err := Start(nil, "test-echo", "friend")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Send("number", -1); err != nil {
		t.Fatal(err)
	}
	end := p.wait()
	if end == nil { // it must have failed before it is told to stop
		t.Fatal("the role did not fail")
	}
	p.wait = func() error { return end }
	if err := p.Close(); err == nil || !strings.Contains(err.Error(), "no negative numbers") {
		t.Errorf("Close = %v, want the reason of the role", err)
	}
}

func TestNextStopsWithContext(t *testing.T) {
	p, err := Start(nil, "test-echo", "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Next(ctx, "next", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Next = %v, want context.Canceled", err)
	}
}

func TestLinkRefusesOtherKind(t *testing.T) {
	r, w := io.Pipe()
	l := newLink(r, io.Discard, func() {})
	go func() {
		_ = json.NewEncoder(w).Encode(message{Kind: "one"})
		w.Close()
	}()
	if err := l.Next(t.Context(), "two", nil); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Next = %v, want an error about the kind", err)
	}
	if err := l.Next(t.Context(), "two", nil); !errors.Is(err, io.EOF) {
		t.Errorf("Next at the end = %v, want io.EOF", err)
	}
}

// TestPattern compares parts of any offset and length with the same parts of the whole, made word by word.
func TestPattern(t *testing.T) {
	whole := make([]byte, 4096)
	for i := range len(whole) / 8 {
		w := mix(7, uint64(i))
		for j := range 8 {
			whole[8*i+j] = byte(w >> (8 * j))
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		from := rng.IntN(len(whole))
		part := make([]byte, rng.IntN(min(len(whole)-from, 60)+1))
		fillPattern(part, 7, uint64(from))
		if i := firstDifference(part, whole[from:from+len(part)]); i >= 0 {
			t.Fatalf("part [%d,%d) differs at %d", from, from+len(part), i)
		}
	}
	other := make([]byte, len(whole))
	fillPattern(other, 8, 0)
	if sha256.Sum256(other) == sha256.Sum256(whole) {
		t.Error("another seed gives the same pattern")
	}
}

func TestUDPCounter(t *testing.T) {
	const run, size = 3, 32
	packet := func(sequence uint64) []byte {
		b := make([]byte, size)
		putUDPHeader(b, run, sequence)
		fillPattern(b[MinUDPSize:], run, sequence*size)
		return b
	}
	c := newUDPCounter(udpReceiveTrial{Run: run, Sizes: []int{size}, Packets: 100, Verify: true})
	for _, sequence := range []uint64{0, 1, 2, 5, 3, 3, 6, 5} { // 4 is lost, 3 late, 3 and 5 doubled
		c.add(packet(sequence), false)
	}
	bad := packet(8)
	bad[20] ^= 1
	c.add(bad, false)
	c.add(packet(9)[:31], false)
	c.add(packet(10), true)
	c.add(packet(1<<40), false)
	c.add([]byte{1}, false)
	old := packet(11)
	putUDPHeader(old, run-1, 11)
	c.add(old, false)
	want := UDPResult{Received: 6, Bytes: 6 * size, Duplicated: 2, Reordered: 1, Corrupt: 5}
	if c.result != want {
		t.Errorf("counted %+v, want %+v", c.result, want)
	}
	b := packet(12)
	if n := testing.AllocsPerRun(100, func() { c.add(b, false) }); n != 0 {
		t.Errorf("counting a packet allocates %v times", n)
	}
}

func TestTick(t *testing.T) {
	for _, rate := range []float64{100, 5_000, 10_000, 119_000, 250_000, 2e6} {
		n, every := tick(rate)
		if n < 1 || n > maxTick {
			t.Errorf("tick(%v) = %d packets, want 1..%d", rate, n, maxTick)
		}
		if got := float64(n) / every.Seconds(); got < rate*0.999 || got > rate*1.001 {
			t.Errorf("tick(%v) makes %v packets/s", rate, got)
		}
	}
}

func TestSummarize(t *testing.T) {
	var trips []time.Duration
	for i := 100; i >= 0; i-- {
		trips = append(trips, time.Duration(i))
	}
	got := summarize(202, trips)
	want := PingResult{Sent: 202, Received: 101, Min: 0, P10: 10, Median: 50, P99: 99, Max: 100}
	if got != want {
		t.Errorf("summarize = %+v, want %+v", got, want)
	}
	if got.Loss() != 0.5 {
		t.Errorf("Loss = %v, want 0.5", got.Loss())
	}
	if got := summarize(3, nil); got.Loss() != 1 {
		t.Errorf("Loss without replies = %v, want 1", got.Loss())
	}
}

func TestEcho(t *testing.T) {
	for _, size := range []int{0, 1, 56} {
		b := make([]byte, icmpHeader+size)
		putEcho(b, false, 0x1234, 7)
		var sum uint32
		for i, v := range b { // RFC 1071, byte by byte
			if i%2 == 0 {
				sum += uint32(v) << 8
			} else {
				sum += uint32(v)
			}
		}
		if sum = sum&0xffff + sum>>16; sum != 0xffff {
			t.Errorf("size %d: the sum over the message is %#x, want 0xffff", size, sum)
		}
		ip := append([]byte{0x46, 23: 0}, b...) // a header with options
		if isReply(ip, false, 0x1234, 7) {
			t.Error("a request passes for a reply")
		}
		ip[24] = echoReply4
		if !isReply(ip, false, 0x1234, 7) {
			t.Error("a reply is not recognised")
		}
		if isReply(ip, false, 0x1234, 8) || isReply(ip[:30], false, 0x1234, 7) || isReply(nil, false, 0x1234, 7) {
			t.Error("another reply, a short or an empty one is taken for the right one")
		}
	}
}

func TestParseProc(t *testing.T) {
	cpu, err := parseCPU("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\nctxt 77\n")
	if err != nil || cpu.Busy() != 190*time.Millisecond || cpu.Steal != 80*time.Millisecond || cpu.ContextSwitches != 77 || cpu.Processors != 1 {
		t.Errorf("parseCPU = %+v, %v", cpu, err)
	}
	if _, err := parseCPU("intr 1\n"); err == nil {
		t.Error("parseCPU without a cpu line: no error")
	}
	p, err := parseProcStat([]byte("12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20"))
	if err != nil || p.User != 1500*time.Millisecond || p.System != 500*time.Millisecond {
		t.Errorf("parseProcStat = %+v, %v", p, err)
	}
	p.addStatus("VmHWM:\t  8 kB\nVmRSS:\t  4 kB\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n")
	if p.Resident != 4096 || p.PeakResident != 8192 || p.ContextSwitches != 7 {
		t.Errorf("addStatus = %+v", p)
	}
}
