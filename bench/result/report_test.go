package result

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/bench/env"
)

// golden is a run with everything that a report can show: two beds, a derived test, discarded samples with and without a
// repetition, notes, drops, a candidate that could not run, names that are long.
func golden() *Run {
	r := &Run{
		Environment: env.Environment{
			Date: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Command: "go run . -runs 3", Commit: "abc1234", Go: "go1.26.8 linux/amd64",
			Kernel: "Linux 6.18", CPU: "AMD EPYC", Cores: 2, Virtual: true, Memory: "23.5 GiB", Tools: map[string]string{"iperf3": "iperf 3.12"},
			Warnings: []string{"the machine was not idle at the start (load 1.20): expect a wide spread"},
		},
		Modes: []string{"M1", "M2"}, MTUs: []int{1500, 9000}, Took: 90 * time.Second,
		Candidates: []string{Native, VXLAN, UDP, "udp:checksums=trust+gro=off", "wireguard"},
		Skipped:    map[string]string{"flannel:/opt/flanneld": "\n no  such\tfile\nusage: flanneld"},
		Policy:     []string{"socket buffers: 4 MiB for all", "MTU: vxlan 1450, udp 1472"},
		Options:    map[string]any{"runs": 3, "duration_ns": 10e9},
	}
	add := func(b Bed, test Test, candidate string, values ...float64) {
		for i, v := range values {
			s := Sample{Mode: b.Mode, MTU: b.MTU, Test: test, Candidate: candidate, Run: i + 1, Value: v, Steal: 0.002 * float64(i)}
			switch {
			case test == UDP64:
				s.SenderFull = candidate == Native
				s.Drops = map[string]uint64{"b udp RcvbufErrors": 1000}
			case test == RR1:
				s.More = map[string]float64{"p99": 2 * v, "rate": 1e6 / v}
			case test == CPU && candidate == UDP:
				s.Note = fmt.Sprintf("%.2f instead of 2 Gbit/s: compare with care", 1.9+float64(i)/100)
			case test == TCP1 && candidate == UDP:
				s.Drops = map[string]uint64{"a udp0 tx_dropped": 7, "a tcp RetransSegs": 12}
			}
			r.Samples = append(r.Samples, s)
		}
	}
	m2 := Bed{"M2", 9000}
	for _, c := range []struct {
		name                     string
		tcp, udp, rr, rtt, spend float64
	}{{Native, 20, 190, 30, 20, 0.1}, {VXLAN, 17, 119, 40, 25, 0.15}, {UDP, 12.1, 120, 90, 110, 0.2}, {"udp:checksums=trust+gro=off", 13, 121, 91, 111, 0.19}, {"wireguard", 1.3, 60, 300, 420, 0.9}} {
		add(m1, TCP1, c.name, c.tcp, c.tcp*1.05, c.tcp*0.9)
		add(m1, UDP64, c.name, c.udp, c.udp*1.1, c.udp)
		add(m1, RR1, c.name, c.rr, c.rr+1, c.rr-1)
		add(m1, RTT, c.name, c.rtt, c.rtt+3, c.rtt+1)
		add(m1, CPU, c.name, c.spend, c.spend, c.spend*1.01)
		add(m2, TCP1, c.name, c.tcp, c.tcp*1.05, c.tcp*0.9)
	}
	add(m1, Memory, UDP, 12.5)
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Candidate == "wireguard" && s.Test == TCP1 && s.Mode == "M1" && s.Run > 1 {
			s.Discarded = fmt.Sprintf("the hypervisor took %d %%", 10+s.Run)
		}
	}
	r.Samples = append(r.Samples,
		Sample{Mode: "M1", MTU: 1500, Test: RTT, Candidate: UDP, Run: 2, Value: 999, Discarded: "other programs used 0.4 processors", Drops: map[string]uint64{"nowhere": 1}},
		Sample{Mode: "M1", MTU: 1500, Test: Memory, Candidate: "wireguard", Run: 1, Value: 999, Discarded: "other programs used 0.6 processors"})
	return r
}

// compareGolden compares with a file in testdata. After a change that is meant, run it with UPDATE=1 and read the difference.
func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "\r\n", "\n"), got); diff != "" {
		t.Errorf("%s (-want +got; UPDATE=1 accepts it):\n%s", path, diff)
	}
}

func TestGolden(t *testing.T) {
	compareGolden(t, "report.txt", golden().Text())
	compareGolden(t, "report.md", golden().Markdown())
}

func TestFirstLook(t *testing.T) {
	r := golden()
	r.Samples = r.Samples[:1]
	if got := r.Text(); !strings.Contains(got, "a first look, not a result") {
		t.Errorf("a single run is not marked as such:\n%s", got)
	}
	if got := (&Run{}).Text() + (&Run{}).Markdown(); !strings.Contains(got, "a first look") {
		t.Errorf("a run without samples: %q", got)
	}
}

// TestWidth: tables fit, nothing is lost when they are split, and each part has the yardstick.
func TestWidth(t *testing.T) {
	r := &Run{Modes: []string{"M1"}, MTUs: []int{1500}}
	for i := range 20 {
		name := fmt.Sprintf("udp:engines=%d+gso=off", i)
		if i == 3 {
			name = VXLAN
		}
		r.Candidates = append(r.Candidates, name)
		for _, test := range Measured() {
			for run := range 5 {
				r.Samples = append(r.Samples, Sample{Mode: "M1", MTU: 1500, Test: test, Candidate: name, Run: run + 1, Value: float64(1000*i + 100 + run)})
			}
		}
	}
	for _, width := range []int{100, 140, 250, 10_000} {
		text := r.TextWidth(width)
		tables, medians, yardsticks := 0, 0, 0
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && strings.ContainsAny(line, "│─") {
				t.Fatalf("%d columns instead of %d: %s", n, width, line)
			}
			if strings.HasPrefix(line, "│ test ") {
				tables++
			}
			if strings.HasPrefix(line, "│ TCP, 4 streams") && strings.Contains(line, "Gbit/s") {
				medians += strings.Count(line, "02 (")
				yardsticks += strings.Count(line, " 3102 (")
			}
		}
		if yardsticks < 1 || medians != 20+yardsticks-1 {
			t.Errorf("width %d: %d candidates in %d tables, the yardstick in %d", width, medians, tables, yardsticks)
		}
		if width == 10_000 && tables != 2 {
			t.Errorf("%d tables where all fits into one of values and one of ratios", tables)
		}
	}
}

func TestWrapName(t *testing.T) {
	for name, want := range map[string]string{
		"udp":                         "udp",
		"udp:engines=2":               "udp:engines=2",
		"udp:checksums=trust+gro=off": "udp:\nchecksums=trust\n+gro=off",
		"udp:gso=off+gro=off+x=1":     "udp:gso=off\n+gro=off+x=1",
		"flannel:/opt/bin/flanneld":   "flannel:/opt/bin/\nflanneld",
		"averyveryverylongname":       "averyveryverylongname",
	} {
		if got := wrapName(name); got != want {
			t.Errorf("wrapName(%q) = %q, want %q", name, got, want)
		}
	}
}
