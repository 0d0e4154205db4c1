package load

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

func TestMain(m *testing.M) {
	if code, ran := traffic.RunRole(Roles()); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}

func TestSummarize(t *testing.T) {
	h := newHistogram()
	for i := range 10_000 {
		record(h, time.Duration(i+1)*time.Microsecond)
	}
	l := summarize(h)
	near := func(got, want time.Duration) bool { return got >= want-want/500 && got <= want+want/500 }
	for _, test := range []struct {
		name      string
		got, want time.Duration
	}{
		{"Min", l.Min, time.Microsecond},
		{"P50", l.P50, 5 * time.Millisecond},
		{"P90", l.P90, 9 * time.Millisecond},
		{"P99", l.P99, 9900 * time.Microsecond},
		{"P999", l.P999, 9990 * time.Microsecond},
		{"Max", l.Max, 10 * time.Millisecond},
	} {
		if !near(test.got, test.want) {
			t.Errorf("%s = %v, want %v", test.name, test.got, test.want)
		}
	}
	if l.Count != 10_000 {
		t.Errorf("Count = %d", l.Count)
	}
	checkPercentiles(t, l)
	if n := len(l.Percentiles); n != 8*4+1+1 { // four nines of ten thousand values, and the largest
		t.Errorf("%d percentiles, want 34", n)
	}
	for _, q := range l.Percentiles {
		if want := time.Duration(q.Q * float64(10*time.Millisecond)); q.Q > 0 && !near(q.D, want) {
			t.Errorf("the quantile %v is %v, want %v", q.Q, q.D, want)
		}
	}
}

// checkPercentiles looks at what holds for any distribution.
func checkPercentiles(t *testing.T, l Latency) {
	t.Helper()
	sorted := slices.IsSortedFunc(l.Percentiles, func(a, b Quantile) int {
		if a.Q < b.Q && a.D <= b.D {
			return -1
		}
		return 1
	})
	if n := len(l.Percentiles); n == 0 || n > 42 || !sorted || l.Percentiles[n-1] != (Quantile{1, l.Max}) {
		t.Errorf("percentiles %v, want at most 42, ascending, the last with Q 1 and %v", l.Percentiles, l.Max)
	}
}

func TestSummarizeFew(t *testing.T) {
	h := newHistogram()
	if l := summarize(h); l.Count != 0 || l.Percentiles != nil {
		t.Errorf("of nothing: %+v", l)
	}
	record(h, time.Second)
	l := summarize(h)
	if l.Count != 1 || l.P50 != l.Max || l.Max < time.Second || l.Max > 1001*time.Millisecond {
		t.Errorf("of one second: %+v", l)
	}
	checkPercentiles(t, l)
	record(h, -time.Second)
	record(h, 24*time.Hour)
	if l := summarize(h); l.Count != 3 || l.Min != 0 || l.Max < maxLatency {
		t.Errorf("what is out of bounds counts as the bound: %+v", l)
	}
	if n := testing.AllocsPerRun(100, func() { record(h, time.Millisecond) }); n != 0 {
		t.Errorf("recording allocates %v times", n)
	}
}

func TestParams(t *testing.T) {
	loop := netip.MustParseAddr("127.0.0.1")
	for want, c := range map[string]RRConfig{
		"no address":                           {Duration: time.Second},
		"no duration":                          {Addr: loop},
		"1025 connections (at most 1024)":      {Addr: loop, Duration: time.Second, Connections: 1025},
		"requests of 16385 bytes (at most 163": {Addr: loop, Duration: time.Second, Size: 16385},
	} {
		if _, err := RR(t.Context(), nil, nil, c); err == nil || !strings.HasPrefix(err.Error(), "load: rr: "+want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Connects(t.Context(), nil, nil, ConnectConfig{Addr: loop}); err == nil {
		t.Error("connects without a duration: no error")
	}
}
