package candidate

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// TestOptionsReachEngine: what the counters say of bulk TCP shows whether an optimisation was off.
func TestOptionsReachEngine(t *testing.T) {
	bed := newBed(t)
	for _, c := range up(t, bed, "udp", "udp:gso=off", "udp:gro=off", "udp:jointcp=off", "udp:batch=1", "udp:offloads=off", "udp:path=portable") {
		a, b := c.Addrs()
		_, err := traffic.TCP(t.Context(), traffic.In(bed.Hosts.HostA.NS), traffic.In(bed.Hosts.HostB.NS),
			traffic.TCPConfig{Addr: b, Source: a, Warmup: time.Millisecond, Duration: 200 * time.Millisecond})
		if err != nil {
			t.Fatalf("%s: %v", c.Name(), err)
		}
		raw, err := c.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var both []struct{ TX, RX encap.Direction }
		if err := json.Unmarshal(raw, &both); err != nil {
			t.Fatalf("%s: %v in %s", c.Name(), err, raw)
		}
		sent, got := both[0].TX, both[1].RX
		yes := map[string]bool{
			"sends trains":         sent.Trains > 0,
			"receives trains":      got.Trains > 0,
			"reads super-packets":  sent.SuperPackets > 0,
			"writes super-packets": got.SuperPackets > 0,
		}
		want := map[string]bool{"sends trains": true, "receives trains": true, "reads super-packets": true, "writes super-packets": true}
		switch c.Name() {
		case "udp:batch=1":
			if sent.PeakBatch > 1 || got.PeakBatch > 1 {
				t.Errorf("%s: batches of %d and %d messages", c.Name(), sent.PeakBatch, got.PeakBatch)
			}
		case "udp:gso=off":
			delete(want, "receives trains") // the kernel may join what was sent one by one
			want["sends trains"] = false
		case "udp:gro=off":
			want["receives trains"] = false
		case "udp:jointcp=off":
			want["writes super-packets"] = false
		case "udp:offloads=off":
			want["reads super-packets"] = false
			delete(want, "sends trains")
			delete(want, "receives trains")
			delete(want, "writes super-packets")
		case "udp:path=portable":
			want = map[string]bool{"sends trains": false, "receives trains": false, "reads super-packets": false, "writes super-packets": false}
		}
		for what, w := range want {
			if yes[what] != w {
				t.Errorf("%s: it %s: %v, want %v (%+v, %+v)", c.Name(), what, yes[what], w, sent, got)
			}
		}
		if sent.Packets == 0 || got.Packets == 0 {
			t.Errorf("%s carried nothing", c.Name())
		}
	}
}
