package candidate

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/traffic"
)

// TestPlainOffloads: a TCP stream comes out of the device in super-packets, out of the far socket in batches, and goes into the
// far device in super-packets again. Without any of these it would be no fair comparison.
func TestPlainOffloads(t *testing.T) {
	bed := newBed(t)
	c := one(t, "wireguard-go-plain")
	mustUp(t, bed, c, "TUN")
	if c.MTU() != 1472 {
		t.Errorf("MTU %d", c.MTU())
	}
	ping(t, bed, c)
	before := plainCountsOf(t, c)
	host := bed.Hosts.HostB
	linkBefore, err := host.LinkStats("wgplain1")
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.Addrs()
	result, err := traffic.TCP(t.Context(), traffic.In(bed.Hosts.HostA.NS), traffic.In(host.NS), traffic.TCPConfig{
		Addr: b, Source: a, Duration: 300 * time.Millisecond, Verify: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	after := plainCountsOf(t, c)
	linkAfter, err := host.LinkStats("wgplain1")
	if err != nil {
		t.Fatal(err)
	}
	sent := float64(after[0].ReadPackets.Load() - before[0].ReadPackets.Load())
	received := float64(after[1].ReceivePackets.Load() - before[1].ReceivePackets.Load())
	perRead := sent / float64(after[0].Reads.Load()-before[0].Reads.Load())
	perReceive := received / float64(after[1].Receives.Load()-before[1].Receives.Load())
	perWrite := received / float64(linkAfter.RxPackets-linkBefore.RxPackets)
	t.Logf("%.2f Gbit/s; %.1f packets a read, %.1f a receive, %.1f a write", result.BitsPerSecond/1e9, perRead, perReceive, perWrite)
	if sent < 1000 || received < 0.9*sent {
		t.Errorf("%.0f packets sent, %.0f received", sent, received)
	}
	if perRead < 4 || perReceive < 4 || perWrite < 4 {
		t.Error("no offload")
	}
	for i, counts := range after {
		if counts.ReadErrors.Load()+counts.WriteErrors.Load()+counts.SendErrors.Load() != 0 {
			t.Errorf("host %d: %+v", i, counts)
		}
	}
}

func plainCountsOf(t *testing.T, c Candidate) (both [2]*plainStats) {
	t.Helper()
	raw, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &both); err != nil {
		t.Fatal(err)
	}
	return both
}

// TestPlainTaken: a port that somebody has is an error of Up's, with the reason.
func TestPlainTaken(t *testing.T) {
	bed := newBed(t)
	first, second := one(t, "wireguard-go-plain"), one(t, "wireguard-go-plain")
	mustUp(t, bed, first, "TUN")
	if err := second.Up(t.Context(), bed); err == nil {
		t.Error("two of the same Index are up")
	} else {
		t.Log(err)
	}
	down(t, second)
	ping(t, bed, first)
}
