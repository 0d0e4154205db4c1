package result

import (
	"fmt"
	"maps"
	"math"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Summary
	}{
		{nil, Summary{}},
		{[]float64{3}, Summary{1, 3, 3, 3}},
		{[]float64{4, 2}, Summary{2, 3, 2, 4}},
		{[]float64{5, 1, 3}, Summary{3, 3, 1, 5}},
		{[]float64{100, 2, 1, 3, 2.5}, Summary{5, 2.5, 1, 100}},
		{[]float64{-1, -3, -2, -4}, Summary{4, -2.5, -4, -1}},
	} {
		before := append([]float64(nil), test.values...)
		if got := Summarize(test.values); got != test.want {
			t.Errorf("Summarize(%v) = %+v, want %+v", test.values, got, test.want)
		}
		for i := range before {
			if before[i] != test.values[i] {
				t.Fatalf("Summarize changed its argument to %v", test.values)
			}
		}
	}
}

// sample makes a run of one mode and three candidates: values are by candidate, one for each run.
func sample(values map[Test]map[string][]float64) *Run {
	r := &Run{Modes: []string{"M1"}, Candidates: []string{Native, VXLAN, "udp"}, Took: 90 * time.Second}
	for test, byCandidate := range values {
		for candidate, list := range byCandidate {
			for i, v := range list {
				r.Samples = append(r.Samples, Sample{Mode: "M1", Test: test, Candidate: candidate, Run: i + 1, Value: v})
			}
		}
	}
	return r
}

func TestRatio(t *testing.T) {
	r := sample(map[Test]map[string][]float64{
		TCP1: {VXLAN: {10, 20, 30}, "udp": {9, 10, 27}},
		RTT:  {VXLAN: {0, 0, 0}, "udp": {1, 1, 1}},
		CPU:  {Native: {0.25, 0.5}, VXLAN: {0.5, 0.625, 9}, "udp": {0.75, 1.25}},
	})
	if got, want := r.Ratio(Bed{Mode: "M1"}, TCP1, "udp", VXLAN), (Ratio{Of: 0.5, Min: 0.5, Max: 0.9, N: 3}); got != want {
		t.Errorf("Ratio = %+v, want %+v", got, want)
	}
	for _, none := range []Ratio{r.Ratio(Bed{Mode: "M2"}, TCP1, "udp", VXLAN), r.Ratio(Bed{Mode: "M1"}, TCP1, "udp", Native), r.Ratio(Bed{Mode: "M1"}, RTT, "udp", VXLAN)} {
		if none.N != 0 {
			t.Errorf("a ratio of nothing, or to zero: %+v", none)
		}
	}
	// The third run of VXLAN has no native one beside it.
	if got, want := r.Summary(Bed{Mode: "M1"}, Tunnel, VXLAN), (Summary{2, 0.1875, 0.125, 0.25}); got != want {
		t.Errorf("tunnel CPU of vxlan = %+v, want %+v", got, want)
	}
	if got := r.Summary(Bed{Mode: "M1"}, Tunnel, Native); got.N != 0 {
		t.Errorf("tunnel CPU of native = %+v, want none", got)
	}
	if got, want := r.Ratio(Bed{Mode: "M1"}, Tunnel, "udp", VXLAN).N, 2; got != want {
		t.Errorf("runs in the tunnel CPU's ratio = %d, want %d", got, want)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 1.234: "1.23", 9.999: "10.0", 12.34: "12.3", 99.96: "100", 1234: "1234", -0.5: "-0.500", math.Pi: "3.14"} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}

var m1 = Bed{Mode: "M1", MTU: 1500}

func TestBeds(t *testing.T) {
	r := &Run{Modes: []string{"M2", "M1"}, MTUs: []int{1500, 9000}}
	for _, b := range []Bed{{"M1", 9000}, {"M3", 1500}, {"M1", 0}, {"M2", 1500}, {"M1", 1500}} {
		r.Samples = append(r.Samples, Sample{Mode: b.Mode, MTU: b.MTU, Test: TCP1, Candidate: UDP, Run: 1, Value: float64(b.MTU)})
	}
	var got []string
	for _, b := range r.Beds() {
		got = append(got, b.String())
	}
	if want := "[M2 M1 M1 MTU 9000 M3]"; fmt.Sprint(got) != want {
		t.Errorf("Beds = %v, want %v", got, want)
	}
	if got := r.Summary(Bed{"M1", 9000}, TCP1, UDP); got != (Summary{1, 9000, 9000, 9000}) {
		t.Errorf("another MTU's values are mixed in: %+v", got)
	}
}

// TestDiscarded: a discarded sample does not count, whether it was repeated or not, before or after the good one.
func TestDiscarded(t *testing.T) {
	r := sample(map[Test]map[string][]float64{
		TCP1: {VXLAN: {10, 10, 10, 10, 10}, "udp": {1, 2, 3, 4, 5}},
		CPU:  {Native: {1, 1}, "udp": {3, 4}},
	})
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Candidate == "udp" && (s.Test == TCP1 && (s.Run == 5 || s.Run == 2)) || s.Candidate == Native && s.Run == 2 && s.Test == CPU {
			s.Discarded = "the hypervisor took 14 %"
		}
	}
	r.Samples = append(r.Samples,
		Sample{Mode: "M1", MTU: 1500, Test: TCP1, Candidate: "udp", Run: 2, Value: 20},
		Sample{Mode: "M1", MTU: 1500, Test: TCP1, Candidate: "udp", Run: 3, Value: 999, Discarded: "other programs used 0.4 processors"})
	if got, want := r.Values(m1, TCP1, "udp"), map[int]float64{1: 1, 2: 20, 3: 3, 4: 4}; !maps.Equal(got, want) {
		t.Errorf("Values = %v, want %v", got, want)
	}
	if got, want := r.Ratio(m1, TCP1, "udp", VXLAN), (Ratio{Of: 0.35, Min: 0.1, Max: 2, N: 4}); got != want {
		t.Errorf("Ratio = %+v, want %+v", got, want)
	}
	if got, want := r.Values(m1, Tunnel, "udp"), map[int]float64{1: 2}; !maps.Equal(got, want) {
		t.Errorf("the tunnel's share of a run whose native sample does not count: %v, want %v", got, want)
	}
	if got := r.mark(cell{m1, TCP1, "udp"}); !got.few || got.notes {
		t.Errorf("mark = %+v, want few runs and no note", got)
	}
	if got := r.mark(cell{m1, TCP1, VXLAN}); got.few {
		t.Errorf("mark of vxlan = %+v, want all runs", got)
	}
}

func TestDerived(t *testing.T) {
	r := sample(map[Test]map[string][]float64{
		RR1:       {"udp": {50, 60, 70}},
		CPUPacket: {Native: {1, 2}, "udp": {4, 4.5}},
	})
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Test == RR1 && s.Run != 2 {
			s.More = map[string]float64{"p99": s.Value * 2, "p99.9": s.Value * 3, "rate": 1e6 / s.Value}
		}
	}
	for test, want := range map[Test]Summary{
		RR1: {3, 60, 50, 70}, "rr1.p99": {2, 120, 100, 140}, "rr1.p99.9": {2, 180, 150, 210}, "rr1.nothing": {},
		TunnelPacket: {2, 2.75, 2.5, 3}, Tunnel: {}, "cpupacket.syscalls": {},
	} {
		if got := r.Summary(m1, test, "udp"); got != want {
			t.Errorf("Summary of %s = %+v, want %+v", test, got, want)
		}
	}
	if r.mark(cell{m1, "rr1.p99", "udp"}).few != true {
		t.Error("a derived test that a run lacks is not marked")
	}
}

func TestNotes(t *testing.T) {
	for _, test := range []struct {
		texts []string
		want  string
	}{
		{nil, ""},
		{[]string{"busy"}, "busy"},
		{[]string{"the hypervisor took 14 %", "the hypervisor took 6 %"}, "the hypervisor took 6..14 %"},
		{[]string{"1.94 instead of 2 Gbit/s", "eth0 lost 3", "1.87 instead of 2 Gbit/s"}, "1.87..1.94 instead of 2 Gbit/s, or eth0 lost 3"},
		{[]string{"lost 9.", "lost 10."}, "lost 9..10."},
		{[]string{"on eth0", "on eth1"}, "on eth0, or on eth1"},
	} {
		if got := joinPhrases(test.texts); got != test.want {
			t.Errorf("joinPhrases(%q) = %q, want %q", test.texts, got, test.want)
		}
	}
}

func TestThousands(t *testing.T) {
	for in, want := range map[string]string{"1": "1", "999": "999", "1000": "1,000", "1234567.8": "1,234,567.8", "-123": "-123", "-1234": "-1,234", "+123.4567": "+123.4567"} {
		if got := Thousands(in); got != want {
			t.Errorf("Thousands(%q) = %q, want %q", in, got, want)
		}
	}
}
