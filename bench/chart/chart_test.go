package chart

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/bench/load"
	"github.com/flannelkit/flannelkit/bench/result"
)

// full is a run that has data for every chart: two links, many candidates, three runs.
func full() *result.Run {
	r := &result.Run{
		Modes: []string{"M1", "M2"}, MTUs: []int{1500},
		Candidates: []string{"native", "vxlan", "udp", "udp:engines=2", "udp:engines=4", "wireguard", "flannel:/opt/flannel/flanneld", "udp:gso=off"},
	}
	for m, mode := range r.Modes {
		for i, c := range r.Candidates {
			for run := 1; run <= 3; run++ {
				for _, t := range []result.Test{result.TCP1, result.TCP4, result.UDP64, result.UDP512, result.UDP1400, result.CPU, result.RR1,
					result.Peers1, result.Peers10, result.Peers100, result.Peers1000, result.Peers10000} {
					v := float64(100-7*i+3*run) / float64(m+1)
					if t.LowerIsBetter() {
						v = float64(20+9*i+run) / 50
					}
					s := result.Sample{Mode: mode, MTU: 1500, Test: t, Candidate: c, Run: run, Value: v}
					if t == result.RR1 {
						s.Value *= 50
						s.Detail = distribution(s.Value)
					}
					r.Samples = append(r.Samples, s)
				}
			}
		}
	}
	return r
}

// distribution is what the generator of requests keeps, with a tail.
func distribution(us float64) json.RawMessage {
	var rr load.RRResult
	for i := range 40 {
		rest := 1.0
		for range i {
			rest *= 0.79
		}
		took := time.Duration(1000 * us * (0.8 + 0.1/(rest+0.002)))
		rr.Latency.Percentiles = append(rr.Latency.Percentiles, load.Quantile{Q: 1 - rest, D: took})
	}
	rr.Latency.Percentiles = append(rr.Latency.Percentiles, load.Quantile{Q: 1, D: time.Second})
	b, err := json.Marshal(map[string]any{"result": rr})
	if err != nil {
		return nil
	}
	return b
}

// names are the files of figures.
func names(figs []*figure) []string {
	var out []string
	for _, f := range figs {
		out = append(out, f.file)
	}
	return out
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "charts")
	r := full()
	files, err := Write(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"throughput.svg", "cpu.svg", "sizes.svg", "latency.svg", "peers.svg", "engines.svg"}
	if len(files) != len(want) {
		t.Fatalf("Write wrote %v, want %v", files, want)
	}
	again := figures(r)
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil || filepath.Base(name) != want[i] {
			t.Fatalf("file %d is %s, want %s (%v)", i, name, want[i], err)
		}
		if !bytes.Equal(text, again[i].svg()) {
			t.Errorf("%s differs from one call to the next", want[i])
		}
		for d := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s is no XML: %v", want[i], err)
			}
		}
		for _, part := range []string{"<title id=", "<desc id=", "Arial", "3 runs", ">native<"} {
			if !strings.Contains(string(text), part) && (part != ">native<" || (want[i] != "engines.svg" && want[i] != "cpu.svg")) {
				t.Errorf("%s lacks %s", want[i], part)
			}
		}
		if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "/opt") {
			t.Errorf("%s has NaN or a path", want[i])
		}
	}
	if q := newData(r).quantiles(result.Bed{Mode: "M2", MTU: 1500}, "udp"); len(q) != 40 {
		t.Errorf("the distribution has %d points, want the generator's 40 below 1", len(q))
	}
	if _, err := Write(filepath.Join(files[0], "no"), r); err == nil {
		t.Error("Write into a file succeeds")
	}
}

func TestWithoutData(t *testing.T) {
	if got := figures(&result.Run{}); len(got) != 0 {
		t.Errorf("charts of nothing: %v", names(got))
	}
	r := &result.Run{Modes: []string{"M1"}, MTUs: []int{1500}, Candidates: []string{"native", "udp", "udp:engines=2"}}
	add := func(test result.Test, c, discarded string) {
		r.Samples = append(r.Samples, result.Sample{Mode: "M1", MTU: 1500, Test: test, Candidate: c, Run: 1, Value: 1, Discarded: discarded})
	}
	add(result.UDP64, "udp", "")
	add(result.TCP1, "udp", "the hypervisor took 30 %")
	add(result.RR1, "udp", "") // a median alone is no distribution
	if got, want := names(figures(r)), []string{"sizes.svg"}; !slices.Equal(got, want) {
		t.Errorf("charts = %v, want %v", got, want)
	}
	if got := figures(r)[0]; !strings.Contains(got.sub, "a first look") || len(got.legend) != 1 {
		t.Errorf("one run, one candidate: %q with %d entries", got.sub, len(got.legend))
	}
	r.Samples[2].More = map[string]float64{"p99": 3, "p99.9": 9}
	if got, want := names(figures(r)), []string{"sizes.svg", "latency.svg"}; !slices.Equal(got, want) {
		t.Errorf("with p99: charts = %v, want %v", got, want)
	}
	d := newData(r)
	if got, want := fmt.Sprint(d.quantiles(result.Bed{Mode: "M1", MTU: 1500}, "udp")), "[{0.5 1} {0.99 3} {0.999 9}]"; got != want {
		t.Errorf("quantiles = %s, want %s", got, want)
	}
}

// TestBed looks at which link a chart of one link shows.
func TestBed(t *testing.T) {
	d := newData(full())
	if bed, ok := d.bed(d.candidates, result.TCP1); !ok || bed.Mode != "M2" {
		t.Errorf("bed = %v, %v, want M2", bed, ok)
	}
	if bed, ok := d.bed([]string{"nobody"}, result.TCP1); ok {
		t.Errorf("bed of nobody = %v", bed)
	}
	if want := []string{"native", "vxlan", "udp", "wireguard", "flannel:/opt/flannel/flanneld", "udp:gso=off"}; !slices.Equal(d.candidates, want) {
		t.Errorf("candidates = %v, want %v", d.candidates, want)
	}
	if got := d.label("flannel:/opt/flannel/flanneld") + ", " + d.label("adapter:/x/adapter") + ", " + d.label("udp:gso=off"); got != "flanneld, adapter, udp:gso=off" {
		t.Errorf("labels = %s", got)
	}
}

// TestColours looks that a candidate keeps its colour whatever else is in the run.
func TestColours(t *testing.T) {
	all := looks([]string{"native", "vxlan", "udp", "udp:gso=off", "wireguard", "mine", "yours"})
	for _, c := range []string{"native", "vxlan", "udp", "wireguard"} {
		if few := looks([]string{"mine", c}); few[c].fill != all[c].fill {
			t.Errorf("%s changes its colour with the company it is in", c)
		}
	}
	seen := map[any]string{}
	for c, l := range all {
		if other, ok := seen[l.fill]; ok {
			t.Errorf("%s and %s have the same colour", c, other)
		}
		seen[l.fill] = c
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 1.234: "1.23", 9.999: "10.0", 99.96: "100", 12345.6: "12,346", -0.5: "-0.500"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
	for v, want := range map[float64]string{1: "1", 999: "999", 1000: "1,000", 1234567: "1,234,567", 0.5: "0.5"} {
		if got := thousands(v); got != want {
			t.Errorf("thousands(%v) = %s, want %s", v, got, want)
		}
	}
	if low, high := decadeTicks(23, 610); low != 20 || high != 1000 {
		t.Errorf("decadeTicks = %v, %v, want 20, 1000", low, high)
	}
	if low, high := decadeTicks(5, 50); low != 5 || high != 50 {
		t.Errorf("decadeTicks = %v, %v, want 5, 50", low, high)
	}
}

func TestVariants(t *testing.T) {
	for candidate, want := range map[string]variant{
		"udp": {"udp", 1, false, false}, "udp:engines=2": {"udp:engines=2", 2, false, true}, "udp:ports=4": {"udp:ports=4", 1, true, false},
		"udp:engines=2+ports=4": {"udp:engines=2+ports=4", 2, true, true}, "udp:ports=8+engines=4": {"udp:ports=8+engines=4", 4, true, true},
	} {
		if got, ok := parseVariant(candidate); !ok || got != want {
			t.Errorf("parseVariant(%q) = %v, %v, want %v", candidate, got, ok, want)
		}
	}
	for _, candidate := range []string{"vxlan", "udp:gso=off", "udp:engines=2+gso=off", "udp:engines=0", "udp:engines", "udp:"} {
		if got, ok := parseVariant(candidate); ok {
			t.Errorf("parseVariant(%q) = %v", candidate, got)
		}
	}
	r := full()
	for _, name := range []string{"udp:engines=2+ports=4", "udp:engines=4+ports=8"} {
		r.Candidates = append(r.Candidates, name)
		for run := 1; run <= 2; run++ {
			r.Samples = append(r.Samples, result.Sample{Mode: "M2", MTU: 1500, Test: result.TCP4, Candidate: name, Run: run, Value: 70})
		}
	}
	f := newData(r).engines()
	var lines []string
	for _, e := range f.legend {
		lines = append(lines, fmt.Sprintf("%s %d", e.name, len(e.thumb.(line).points)))
	}
	if got, want := strings.Join(lines, "; "), "TCP, 1 stream 3; TCP, 4 streams 3; TCP, 4 streams, ports 2; UDP 64 B, no loss 3; UDP 1400 B, no loss 3"; got != want {
		t.Errorf("lines: %s, want %s", got, want)
	}
	if !strings.Contains(f.sub, "median of 2..3 runs") {
		t.Errorf("subtitle: %s", f.sub)
	}
}

// TestHollow: points that the sender limited look different, and the subtitle says why.
func TestHollow(t *testing.T) {
	r := full()
	plain := newData(r).sizes()
	for i := range r.Samples {
		r.Samples[i].SenderFull = r.Samples[i].Test == result.UDP64 && r.Samples[i].Candidate == "udp"
	}
	marked := newData(r).sizes()
	if strings.Contains(plain.sub, "hollow") || !strings.Contains(marked.sub, "hollow") {
		t.Errorf("subtitles: %q without, %q with full senders", plain.sub, marked.sub)
	}
	for name, f := range map[string]*figure{"without": plain, "with": marked} {
		f.sub, f.desc = "", ""
		t.Log(name, len(f.svg()))
	}
	if bytes.Equal(plain.svg(), marked.svg()) {
		t.Error("the marks are the same")
	}
}
