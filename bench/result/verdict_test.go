package result

import (
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		name  string
		mode  string
		test  Test
		vxlan float64
		ours  float64
		want  string // words, floors and aims in turn
	}{
		{"M1 below", "M1", TCP1, 10, 5.99, "MISSED, not yet"},
		{"M1 at the floor", "M1", TCP1, 10, 6, "met, not yet"},
		{"M1 below the aim", "M1", TCP1, 10, 6.99, "met, not yet"},
		{"M1 at the aim", "M1", TCP1, 10, 7, "met, reached"},
		{"M2 below", "M2", TCP1, 10, 7.9, "MISSED, not yet"},
		{"M2 at the floor", "M2", TCP1, 10, 8, "met, not yet"},
		{"M2 at the aim", "M2", TCP1, 10, 10, "met, reached"},
		{"M3 below", "M3", TCP1, 10, 5.9, "MISSED, not yet"},
		{"M3 at the floor", "M3", TCP1, 10, 6, "met, not yet"},
		{"M3 at the aim", "M3", TCP1, 10, 8, "met, reached"},
		{"another mode", "M9", TCP1, 10, 1, ""},
		{"UDP 64 below", "M1", UDP64, 119, 118, "MISSED, not yet"},
		{"UDP 64 equal", "M1", UDP64, 119, 119, "met, not yet"},
		{"UDP 64 at the aim", "M1", UDP64, 100, 120, "met, reached"},
		{"UDP 1400 below", "M3", UDP1400, 119, 118, "MISSED, not yet"},
		{"UDP 1400 at the aim", "M3", UDP1400, 100, 120, "met, reached"},
		{"UDP 512 has no goal", "M3", UDP512, 100, 120, ""},
		{"RTT at the aim", "M1", RTT, 10, 30, "met, reached"},
		{"RTT at 60 us", "M1", RTT, 10, 60, "met, not yet"},
		{"RTT above 60 us", "M1", RTT, 10, 61, "MISSED, not yet"},
		{"RTT of a slow machine", "M1", RTT, 20, 100, "met, not yet"},
		{"RTT above five times", "M1", RTT, 20, 101, "MISSED, not yet"},
		{"RTT without VXLAN", "M1", RTT, 0, 29, "reached"},
		{"TCP without VXLAN", "M1", TCP1, 0, 29, ""},
		{"memory", "M1", Memory, 0, 48, "met"},
		{"too much memory", "M1", Memory, 0, 49, "MISSED"},
		{"idle", "M1", Idle, 0, 0, "met"},
		{"busy when idle", "M1", Idle, 0, 20, "MISSED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &Run{Modes: []string{"M1", "M2", "M3"}, MTUs: []int{1500}, Candidates: []string{VXLAN, "udp"}}
			r.Samples = []Sample{{Mode: test.mode, Test: test.test, Candidate: "udp", Run: 1, Value: test.ours}}
			if test.vxlan > 0 {
				r.Samples = append(r.Samples, Sample{Mode: test.mode, Test: test.test, Candidate: VXLAN, Run: 1, Value: test.vxlan})
			}
			var words []string
			for _, v := range r.Verdicts("udp") {
				words = append(words, v.Word())
				if at := v.Ratio >= 1; at != v.Met {
					t.Errorf("Ratio = %v contradicts met %v: %s", v.Ratio, v.Met, v)
				}
			}
			if got := strings.Join(words, ", "); got != test.want {
				t.Fatalf("verdicts: %q, want %q", got, test.want)
			}
		})
	}
	r := &Run{Modes: []string{"M1"}, Samples: []Sample{
		{Mode: "M1", MTU: 9000, Test: TCP1, Candidate: "udp", Run: 1, Value: 1},
		{Mode: "M1", MTU: 9000, Test: TCP1, Candidate: VXLAN, Run: 1, Value: 1},
		{Mode: "M1", Test: TCP1, Candidate: "udp:gso=off", Run: 1, Value: 1},
		{Mode: "M1", Test: TCP1, Candidate: VXLAN, Run: 1, Value: 1},
	}}
	if got := r.allVerdicts(); len(got) != 0 {
		t.Errorf("verdicts on other MTUs or of other candidates: %v", got)
	}
	if got := r.Verdicts("udp:gso=off"); len(got) != 2 || got[0].String() != "floor met: udp:gso=off M1 TCP, 1 stream >= 0.60 of vxlan: 1.00 of vxlan (1.00 of 1.00 Gbit/s)" {
		t.Errorf("verdicts that were asked for: %v", got)
	}
}

// TestSenderFull: a value that the sender's processor limited is marked as such, in the verdict too.
func TestSenderFull(t *testing.T) {
	r := &Run{Modes: []string{"M1"}, Candidates: []string{VXLAN, UDP}, Samples: []Sample{
		{Mode: "M1", Test: UDP64, Candidate: UDP, Run: 1, Value: 130},
		{Mode: "M1", Test: UDP64, Candidate: VXLAN, Run: 1, Value: 99, SenderFull: true},
	}}
	if got := r.Verdicts(UDP); len(got) != 2 || got[0].Measured != "1.31 of vxlan (130 of 99.0^ kpps)" {
		t.Errorf("verdicts: %v", got)
	}
	bed := Bed{"M1", 1500}
	if r.SenderFull(bed, UDP64, UDP) || !r.SenderFull(bed, UDP64, VXLAN) || r.SenderFull(bed, RTT, VXLAN) {
		t.Error("SenderFull is not that of the samples")
	}
}
