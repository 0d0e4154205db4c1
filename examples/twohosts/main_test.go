package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the files in testdata anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("differs from %s (-want +got; go test -update accepts it):\n%s", file, diff)
	}
}

// sample is a report with every field filled in.
func sample() *report {
	r := &report{
		System:  system{OS: "Linux", Kernel: "6.18.44", Arch: "amd64", Cores: 2, Go: "go1.26.8"},
		Network: network{MTU: 1500, TunnelMTU: 1472, Port: 8285, EnginesPerHost: 1, SecondsPerSpeed: 0.8},
		Plain: path{
			Ping:    pingTimes{Sent: 150, Received: 150, MinUS: 8.1, MedianUS: 9.87, P99US: 40.3, MaxUS: 61, BusyCores: 0.1},
			TCPAToB: tcpSpeed{GbitPerSecond: 22.54, Retransmits: 3, SegmentBytes: 1448, BusyCores: 1.52},
			TCPBToA: tcpSpeed{GbitPerSecond: 21.9, SegmentBytes: 1448, BusyCores: 1.5},
			UDPAToB: udpRate{PayloadBytes: 64, PacketsPerSecond: 310_400, Sent: 124_160, Received: 124_160, SenderLimited: true},
		},
		Tunnel: path{
			Ping:    pingTimes{Sent: 150, Received: 150, MinUS: 31, MedianUS: 42.13, P99US: 101.6, MaxUS: 201, BusyCores: 0.2},
			TCPAToB: tcpSpeed{GbitPerSecond: 11.27, SegmentBytes: 1420, BusyCores: 2},
			TCPBToA: tcpSpeed{GbitPerSecond: 9.8, SegmentBytes: 1420, BusyCores: 1.97},
			UDPAToB: udpRate{PayloadBytes: 64, PacketsPerSecond: 248_320, Sent: 100_000, Received: 99_900, Loss: 0.001},
		},
		Verified: verified{TCPAToBBytes: 112_640_000, TCPBToABytes: 98_000_000, UDPDatagrams: 750, UDPBytes: 1444},
		Seconds:  9.81,
	}
	busy := work{CPUPercent: 61.3, CPUSeconds: 0.49, Packets: 1_024_000, SystemCalls: 48_000, PacketsPerSystemCall: 21.33, SuperPackets: 23_456}
	small := work{CPUPercent: 80, CPUSeconds: 0.32, Packets: 99_900, SystemCalls: 90_000, PacketsPerSystemCall: 1.11}
	for i, name := range []string{"A", "B"} {
		r.Hosts = append(r.Hosts, host{
			Name: name, Underlay: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)),
			Subnet: netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)),
			Pod:    netip.MustParseAddr(fmt.Sprintf("10.244.%d.2", i+1)), PodPlain: netip.MustParseAddr(fmt.Sprintf("10.245.%d.2", i+1)),
			TCPAToB: busy, TCPBToA: busy, UDPAToB: small,
			ResidentBytes: 14 << 20, Drops: []drop{}, OverloadDrops: []drop{},
		})
	}
	r.finish()
	return r
}

// sample6 is another, with all that is said only sometimes.
func sample6() *report {
	r := sample()
	r.Network = network{MTU: 9000, TunnelMTU: 8952, Port: 8285, IPv6: true, Wire: true, EnginesPerHost: 2, SecondsPerSpeed: 0.8}
	r.Plain.UDPAToB.SenderLimited = false
	r.Verified.UDPLost = 2
	r.Plain.Ping.BusyCores = 1.43
	for i := range r.Hosts {
		h := &r.Hosts[i]
		h.Underlay = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
		h.Subnet = netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", i+1))
		h.Pod = netip.MustParseAddr(fmt.Sprintf("fd00:244:%d::2", i+1))
		h.PodPlain = netip.MustParseAddr(fmt.Sprintf("fd00:245:%d::2", i+1))
	}
	r.Hosts[0].Drops = counters{Drops: map[string]uint64{"no-buffers": 3, "not-unicast": 12}}.drops()
	r.Hosts[1].OverloadDrops = counters{Drops: map[string]uint64{dropSocketFull: 123_456}}.drops()
	return r
}

func TestText(t *testing.T) {
	for name, r := range map[string]*report{"table.txt": sample(), "table6.txt": sample6()} {
		text := r.text()
		golden(t, name, text)
		for line := range strings.Lines(text) {
			if len(line) > 90 {
				t.Errorf("%s: line of %d characters wraps on most terminals: %s", name, len(line), line)
			}
		}
	}
	(&report{}).text() // nothing found, nothing broken
}

// TestJSONFields pins the names in the JSON: scripts rely on them.
func TestJSONFields(t *testing.T) {
	r := sample6()
	r.Hosts[0].OverloadDrops = r.Hosts[1].OverloadDrops
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	golden(t, "fields.txt", strings.Join(fields(v, ""), "\n")+"\n")
	empty := sample().Hosts[0]
	if b, _ := json.Marshal(empty); !strings.Contains(string(b), `"drops":[]`) {
		t.Errorf("no drops are not an empty list: %s", b)
	}
}

// fields lists the paths to all values; an array counts by its first element.
func fields(v any, at string) []string {
	var all []string
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			all = append(all, fields(v[k], at+"."+k)...)
		}
	case []any:
		if len(v) > 0 {
			all = fields(v[0], at+"[]")
		}
	default:
		all = []string{fmt.Sprintf("%s %T", at, v)}
	}
	return all
}

func TestParseOptions(t *testing.T) {
	got, err := parseOptions(strings.Fields("-6 -json -v -wire -engines 3 -mtu 9000 -duration 2s"))
	want := options{Duration: 2 * time.Second, Engines: 3, MTU: 9000, IPv6: true, Wire: true, JSON: true, Verbose: true}
	if err != nil || got != want {
		t.Errorf("parseOptions = %+v, %v; want %+v", got, err, want)
	}
	if got, err := parseOptions(nil); err != nil || got != (options{Duration: 800 * time.Millisecond, Engines: 1, MTU: 1500}) {
		t.Errorf("the default options are %+v, %v", got, err)
	}
	if _, err := parseOptions([]string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for args, want := range map[string]string{
		"-mtu 1279":        "1280 to 65535",
		"-mtu 65536":       "1280 to 65535",
		"-mtu 1327 -6":     "at least 1328",
		"-mtu x":           "invalid value",
		"-engines 0":       "1 to 64",
		"-engines 65":      "1 to 64",
		"-duration 99ms":   "100ms to 10m0s",
		"-duration 11m":    "100ms to 10m0s",
		"-no-such-flag":    "not defined",
		"-json everything": `unexpected argument "everything"`,
	} {
		_, err := parseOptions(strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "-h shows") {
			t.Errorf("%s: %v; want %q and where to find help", args, err, want)
		}
	}
	for _, args := range []string{"-mtu 1280", "-mtu 1328 -6", "-mtu 65535"} {
		if _, err := parseOptions(strings.Fields(args)); err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestUsage tries every example of the usage text, and looks for every flag in it.
func TestUsage(t *testing.T) {
	var b strings.Builder
	usage(&b)
	examples := 0
	for line := range strings.Lines(b.String()) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "go run ./examples/twohosts")
		if !ok || strings.Contains(command, "[flags]") {
			continue
		}
		examples++
		command, _, _ = strings.Cut(command, "  ") // the remark
		command, _, _ = strings.Cut(command, "|")
		if _, err := parseOptions(strings.Fields(command)); err != nil {
			t.Errorf("example %q: %v", line, err)
		}
	}
	if examples < 3 {
		t.Errorf("%d examples", examples)
	}
	flags(new(options)).VisitAll(func(f *flag.Flag) {
		if !strings.Contains(b.String(), "\n  -"+f.Name) {
			t.Errorf("usage does not list -%s", f.Name)
		}
	})
}

// TestMeaning wants plain words for every reason that encap has.
func TestMeaning(t *testing.T) {
	seen := map[string]bool{}
	for d := encap.DropNone + 1; !strings.HasPrefix(d.String(), "Drop("); d++ {
		if m := meaning(d.String()); strings.Contains(m, "no explanation") {
			t.Errorf("%v has no meaning", d)
		}
		seen[d.String()] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d reasons seen", len(seen))
	}
	if !strings.Contains(meaning("no such reason"), "no explanation") {
		t.Error("an unknown reason has a meaning")
	}
	if seen[dropSocketFull] || seen[dropQueueFull] {
		t.Error("a reason of ours is one of encap's too")
	}
}

func TestCounters(t *testing.T) {
	var s encap.Stats
	s.TX.Packets, s.RX.Packets, s.TX.DeviceCalls, s.RX.SuperPackets, s.SocketDrops = 10, 20, 3, 4, 5
	s.Drops[encap.DropExpired] = 6
	before := countersOf(s)
	s.TX.Packets, s.TX.DeviceCalls, s.SocketDrops = 110, 13, 12
	s.Drops[encap.DropSpoofed] = 9
	d := countersOf(s).since(before)
	if d.Packets != 100 || d.SystemCalls != 10 || d.Supers != 0 {
		t.Errorf("difference %+v", d)
	}
	want := []drop{
		{Reason: encap.DropSpoofed.String(), Meaning: meaning(encap.DropSpoofed.String()), Packets: 9},
		{Reason: dropSocketFull, Meaning: meaning(dropSocketFull), Packets: 7},
	}
	if diff := cmp.Diff(want, d.drops()); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
	b, _ := json.Marshal(before)
	var back counters
	if err := json.Unmarshal(b, &back); err != nil || !cmp.Equal(before, back) {
		t.Errorf("through a pipe: %+v, %v; want %+v", back, err, before)
	}
}

func TestProgress(t *testing.T) {
	steps := []step{
		{topic: "measuring ping", title: "ping over the plain link", estimate: time.Second},
		{topic: "measuring ping", title: "ping through flannelkit", estimate: time.Second},
		{topic: "measuring TCP", title: "TCP", estimate: 2 * time.Second},
	}
	var plain strings.Builder
	p := newProgress(&plain, 0, 4*time.Second)
	for _, s := range steps {
		p.begin(s)
	}
	p.close()
	if want := "twohosts: two hosts, two containers, one tunnel; about 4s\ntwohosts: measuring ping\ntwohosts: measuring TCP\n"; plain.String() != want {
		t.Errorf("without a terminal: %q, want %q", plain.String(), want)
	}

	var term strings.Builder
	p = newProgress(&term, 40, 4*time.Second)
	p.begin(steps[0])
	p.begin(steps[1])
	if got, want := p.line(500*time.Millisecond), " [#######.............]  3s  ping throu"; got != want {
		t.Errorf("line %q, want %q", got, want)
	}
	if got := p.line(time.Hour); !strings.HasPrefix(got, " [##########..........]  2s ") {
		t.Errorf("a step that takes too long: %q", got)
	}
	p.close()
	if got := term.String(); strings.Contains(got, "\n") || !strings.HasPrefix(got, "\r\x1b[K [") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("on a terminal: %q", got)
	}
}

func TestWrap(t *testing.T) {
	text := wrap(strings.Repeat("word ", 40)+"end", "  ")
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if len(line) > 80 || strings.HasPrefix(line, "  word") != (i > 0) {
			t.Errorf("line %d: %q", i, line)
		}
	}
	if got := strings.Fields(text); len(got) != 41 {
		t.Errorf("%d words are left", len(got))
	}
	if got := thousands(1_234_567) + " " + thousands(12) + " " + thousands(123_456); got != "1,234,567 12 123,456" {
		t.Error(got)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.Join(errors.New("a"), errors.New("b"))); got != "a; b" {
		t.Error(got)
	}
}
