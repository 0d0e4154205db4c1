package main

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// busyNode is a node with a different number in each counter.
func busyNode() *fakeNode {
	n := newFakeNode()
	n.stats.Packets.TX = encap.Direction{Packets: 1, Bytes: 2, SuperPackets: 3, DeviceCalls: 4, Messages: 5, Trains: 6, Batches: 7, EmptyAttempts: 8}
	n.stats.Packets.RX = encap.Direction{Packets: 11, Bytes: 12, SuperPackets: 13, DeviceCalls: 14, Messages: 15, Trains: 16, Batches: 17, EmptyAttempts: 18}
	for i := range n.stats.Packets.Drops {
		n.stats.Packets.Drops[i] = uint64(100 + i)
	}
	n.stats.Packets.SocketDrops = 21
	n.stats.Lease = lease.Stats{Renewals: 31, RenewErrors: 32, StoreErrors: 33, Retaken: 34, Conflicts: 35, Relists: 36, Unreadable: 37, Peers: 38,
		LastContact: time.UnixMilli(1500), Expires: time.UnixMilli(86400500)}
	return n
}

// scrape returns what /metrics says.
func scrape(t *testing.T, n node) (text string, d *daemon) {
	t.Helper()
	d = newDaemon(parse(t, nil), discardLog(), func(s string) string { return s })
	if n != nil {
		d.node.Store(&n)
	}
	d.health.set(look{checks: []check{{"node", nil}, {"rules", errors.New("none")}}})
	reg := newRegistry(d.source())
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	code, text := get(handler(d.health, reg, asIs), "GET", "/metrics")
	if code != 200 {
		t.Fatalf("/metrics = %d %s", code, text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range families {
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		if !strings.HasPrefix(name, "flanneld_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("%s does not begin with flanneld_", name)
		}
	}
	return text, d
}

func TestMetrics(t *testing.T) {
	text, _ := scrape(t, busyNode())
	want := []string{
		`flanneld_traffic_packets_total{direction="tx"} 1`, `flanneld_traffic_packets_total{direction="rx"} 11`,
		`flanneld_traffic_bytes_total{direction="tx"} 2`, `flanneld_traffic_bytes_total{direction="rx"} 12`,
		`flanneld_device_super_packets_total{direction="tx"} 3`, `flanneld_socket_trains_total{direction="rx"} 16`,
		`flanneld_dropped_packets_total{direction="tx",reason="no-route"} 101`,
		`flanneld_dropped_packets_total{direction="tx",reason="no-buffers"} 107`,
		`flanneld_dropped_packets_total{direction="rx",reason="truncated"} 108`,
		`flanneld_dropped_packets_total{direction="rx",reason="device"} 117`,
		`flanneld_socket_dropped_datagrams_total 21`,
		`flanneld_lease_renewals_total 31`, `flanneld_lease_renewal_errors_total 32`, `flanneld_store_errors_total 33`,
		`flanneld_lease_retaken_total 34`, `flanneld_lease_conflicts_total 35`, `flanneld_store_relists_total 36`,
		`flanneld_store_unreadable_entries_total 37`, `flanneld_peers 38`,
		`flanneld_store_last_contact_timestamp_seconds 1.5`, `flanneld_lease_expiry_timestamp_seconds 86400.5`,
		`flanneld_lease_info{backend="udp",public_ip="192.0.2.1",subnet="10.5.34.0-24"} 1`,
		`flanneld_container_mtu_bytes 1472`, `flanneld_ready 0`, `flanneld_healthy 1`,
		`flanneld_check_ok{check="node"} 1`, `flanneld_check_ok{check="rules"} 0`,
		`flanneld_subnet_file_writes_total{result="error"} 0`,
	}
	for _, w := range want {
		if !strings.Contains(text, "\n"+w+"\n") {
			t.Errorf("no line %s", w)
		}
	}
	if strings.Contains(text, `reason="none"`) {
		t.Error("what was not dropped is among the drops")
	}
	if n := strings.Count(text, "\nflanneld_dropped_packets_total{"); n != len(encap.Drops{})-1 {
		t.Errorf("%d reasons of drops, encap has %d", n, len(encap.Drops{})-1)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestMetricsBeforeJoining: there is nothing to count yet, and that is no error.
func TestMetricsBeforeJoining(t *testing.T) {
	text, _ := scrape(t, nil)
	for _, w := range []string{"\nflanneld_ready 0\n", "\nflanneld_healthy 1\n", "\nflanneld_build_info{"} {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
	if strings.Contains(text, "flanneld_peers") {
		t.Error("peers are counted before there is a node")
	}
}

// TestPulse: which loops of a node count as stuck.
func TestPulse(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	var p pulse
	at := func(after time.Duration, sync, contact time.Duration, errs uint64) error {
		s := nodeStats{Sync: start.Add(sync)}
		s.Lease = lease.Stats{LastContact: start.Add(contact), StoreErrors: errs}
		return p.check(s, start.Add(after))
	}
	for _, c := range []struct {
		what                 string
		after, sync, contact time.Duration
		errs                 uint64
		stuck                string
	}{
		{"at the start", 0, 0, 0, 0, ""},
		{"etcd is gone for hours", 3 * time.Hour, 3 * time.Hour, 0, 900, ""},
		{"and nothing more is heard", 3*time.Hour + contactLimit + 1, 3*time.Hour + contactLimit, 0, 900, "nothing was heard"},
		{"it is back", 4 * time.Hour, 4 * time.Hour, 4 * time.Hour, 900, ""},
		{"an hour without a renewal, with lists", 5 * time.Hour, 5 * time.Hour, 5*time.Hour - 5*time.Minute, 900, ""},
		{"the backend hangs", 5*time.Hour + syncLimit + 1, 5 * time.Hour, 5 * time.Hour, 900, "backend"},
	} {
		err := at(c.after, c.sync, c.contact, c.errs)
		if (err == nil) != (c.stuck == "") || err != nil && !strings.Contains(err.Error(), c.stuck) {
			t.Errorf("%s: %v, want %q", c.what, err, c.stuck)
		}
	}
}

// TestReadmeMetrics: what the README names is there.
func TestReadmeMetrics(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := scrape(t, busyNode())
	names := regexp.MustCompile("`(flanneld_[a-z_]+)`").FindAllStringSubmatch(string(readme), -1)
	if len(names) < 10 {
		t.Errorf("the README names %d metrics", len(names))
	}
	for _, n := range names {
		if !strings.Contains(text, "\n# TYPE "+n[1]+" ") {
			t.Errorf("there is no metric %s", n[1])
		}
	}
	flags := defaults().flagSet()
	of := map[string]bool{} // a command alone
	for _, c := range commandTable() {
		for _, f := range c.flags {
			of[f.name] = true
		}
	}
	for _, n := range regexp.MustCompile("`-([a-z-]+)[`=]").FindAllStringSubmatch(string(readme), -1) {
		if flags.Lookup(n[1]) == nil && !of[n[1]] {
			t.Errorf("there is no flag -%s", n[1])
		}
	}
}

// kernelNode is a node whose packets do not pass this process.
type kernelNode struct{ *fakeNode }

func (n kernelNode) Network() lease.Network {
	network := n.fakeNode.Network()
	network.BackendType = "vxlan"
	return network
}

// TestMetricsOfKernelBackends: nothing is told of what nobody has counted; whether all
// peers are served is.
func TestMetricsOfKernelBackends(t *testing.T) {
	n := busyNode()
	n.stats.SyncErr = errors.New("one of them not")
	text, _ := scrape(t, kernelNode{n})
	for _, name := range []string{"dropped_packets_total", "traffic_packets_total", "icmp_sent_total", "device_calls_total"} {
		if strings.Contains(text, "flanneld_"+name) {
			t.Errorf("%s is told of a vxlan host", name)
		}
	}
	for _, line := range []string{"flanneld_peers 38\n", "flanneld_peers_served 0\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is not told", line)
		}
	}
}
