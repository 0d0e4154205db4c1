package report

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// now is when the reports of these tests are shown, three seconds after they were made.
func now() time.Time { return time.Date(2026, 3, 1, 12, 0, 3, 0, time.UTC) }

func ago0(d time.Duration) time.Time { return now().Add(-3*time.Second - d) }

// well is a host of a VXLAN network on which all is well.
func well() *Report {
	return &Report{
		Made: ago0(0),
		Daemon: &Daemon{
			Version: "flanneld (flannelkit) v1.2.3 go1.26", PID: 123, Started: ago0(3*time.Hour + 12*time.Minute), Ready: true, Healthy: true,
			Checks: []Check{{Name: "daemon"}, {Name: "node"}, {Name: "rules"}, {Name: "subnet-file"}},
		},
		Network: &Network{IPv4: netip.MustParsePrefix("10.5.0.0/16"), Backend: "vxlan", Config: json.RawMessage(`{"Type":"vxlan","VNI":1}`)},
		Lease: &Lease{
			Subnet: netip.MustParsePrefix("10.5.3.0/24"), Key: "10.5.3.0-24", PublicIP: netip.MustParseAddr("192.0.2.1"), Backend: "vxlan",
			Renews: ago0(-22 * time.Hour), Expires: ago0(-23 * time.Hour), MTU: 1450,
		},
		Host: &Host{Interface: "eth0", MTU: 1500, Addr4: netip.MustParseAddr("192.0.2.1"), Device: "flannel.1", DeviceMTU: 1450,
			Counters: []DeviceCounters{{Device: "flannel.1", TX: DeviceDirection{Direction{1200, 150 << 20}, 0, 3}, RX: DeviceDirection{Direction{1, 1 << 10}, 2, 1}}}},
		Peers: []Peer{
			{Subnet: netip.MustParsePrefix("10.5.9.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2"), Backend: "vxlan",
				Ping: &Ping{Target: netip.MustParseAddr("10.5.9.0"), RTT: 310 * time.Microsecond, Full: true}},
			{Subnet: netip.MustParsePrefix("10.5.112.0/24"), PublicIP: netip.MustParseAddr("192.0.2.30"), Backend: "vxlan"},
		},
		Rules: &Rules{Masquerade: true, Forward: true, Tool: "nftables", Verified: ago0(2 * time.Second)},
		Store: &Store{Endpoints: []string{"http://192.0.2.254:2379"}, Prefix: "/coreos.com/network", LastContact: ago0(12 * time.Second), Renewals: 1},
		SubnetFile: &SubnetFile{
			Path: "/run/flannel/subnet.env", Subnet: netip.MustParsePrefix("10.5.3.0/24"), MTU: 1450,
		},
		Bridges: []Bridge{
			{Name: "docker0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.3.1/24")}, MTU: 1450, Ports: 4},
			{Name: "br-0123456789ab", MTU: 1500, Ports: 1},
		},
	}
}

// ill is a host of a udp network, of both families, with every trouble at once.
func ill() *Report {
	r := well()
	r.Daemon.Ready = false
	r.Daemon.Checks[2].Error = "nft: netlink: operation not permitted (needs CAP_NET_ADMIN)"
	r.Network = &Network{IPv4: r.Network.IPv4, IPv6: netip.MustParsePrefix("fd00:5::/48"), Backend: "udp"}
	r.Lease.Backend, r.Lease.MTU, r.Lease.Subnet6, r.Lease.PublicIPv6 = "", 1472, netip.MustParsePrefix("fd00:5:0:3::/64"), netip.MustParseAddr("2001:db8::1")
	r.Lease.Renews, r.Lease.Expires = ago0(20*time.Minute), ago0(-40*time.Minute)
	r.Host.Device, r.Host.DeviceMTU, r.Host.Counters = "flannel0", 1472, nil
	r.Peers[0].Backend = ""
	r.Peers[0].Ping = &Ping{Target: netip.MustParseAddr("10.5.9.0"), Error: "no answer"}
	r.Peers = append(r.Peers, Peer{Subnet6: netip.MustParsePrefix("fd00:5:0:7::/64"), PublicIPv6: netip.MustParseAddr("2001:db8::7"), Ping: &Ping{RTT: 1500 * time.Microsecond}})
	r.Unserved = []string{"udp: peer 192.0.2.2 (10.5.9.0/24): its endpoint is in the network itself (give it a public address that is not)", "udp: sync: busy"}
	r.Rules = &Rules{Masquerade: true, Error: r.Daemon.Checks[2].Error, Warnings: []string{"chain inet fw all has policy drop (accept 10.5.0.0/16 there)"}}
	r.Store.LastContact, r.Store.LastError, r.Store.StoreErrors, r.Store.RenewErrors, r.Store.Unreadable, r.Store.UnreadableNow = ago0(13*time.Minute), ago0(time.Second), 31, 4, 5, 1
	r.Traffic = &Traffic{
		TX:        Direction{Packets: 123456, Bytes: 150 << 20},
		Drops:     map[string]uint64{"no-route": 30, "not-unicast": 999, "device": 9, "unreachable": 15, SocketFull: 15},
		LastDrops: map[string]time.Time{"no-route": ago0(time.Minute), "not-unicast": ago0(0), "device": ago0(0), "unreachable": ago0(time.Hour), SocketFull: ago0(0)},
	}
	r.SubnetFile.Error = "it waits"
	return r
}

// waiting is a daemon that has just started.
func waiting() *Report {
	return &Report{
		Made: ago0(0),
		Daemon: &Daemon{
			Version: "flanneld (flannelkit) v1.2.3 go1.26", PID: 7, Started: ago0(40 * time.Second), Healthy: true,
			Checks: []Check{{Name: "daemon"}, {Name: "node", Error: "waiting for etcd: the network is not configured yet: API 3 has none"}},
		},
		Store:      &Store{Endpoints: []string{"http://192.0.2.253:2379", "http://192.0.2.254:2379"}, Prefix: "/coreos.com/network"},
		SubnetFile: &SubnetFile{Path: "/run/flannel/subnet.env"},
	}
}

// absent is what the command has when no daemon runs.
func absent() *Report {
	return &Report{
		Made:       ago0(0),
		Problems:   []Problem{{Error, "daemon", "flanneld does not run: there is no /run/flannel/subnet.sock", "start it"}},
		SubnetFile: &SubnetFile{Path: "/run/flannel/subnet.env", Subnet: netip.MustParsePrefix("10.5.3.0/24"), MTU: 1450},
	}
}

func reports() map[string]*Report {
	alone := well()
	alone.Peers, alone.Bridges, alone.Lease.Expires, alone.Rules = nil, nil, time.Time{}, &Rules{Forward: true, Verified: ago0(0)}
	alone.Host.Counters = append(alone.Host.Counters, DeviceCounters{Device: "flannel-v6.1"})
	all := map[string]*Report{"well": well(), "ill": ill(), "waiting": waiting(), "absent": absent(), "alone": alone}
	for _, r := range all {
		r.Add(Own(r)...)
		r.Settle()
	}
	return all
}

// TestGolden compares both forms with files in testdata. After a change that is meant,
// run it with UPDATE=1 and read the difference.
func TestGolden(t *testing.T) {
	for name, r := range reports() {
		var text, doc bytes.Buffer
		if err := r.WriteText(&text, now()); err != nil {
			t.Fatal(err)
		}
		if err := r.WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
		for file, got := range map[string]string{name + ".txt": text.String(), name + ".json": doc.String()} {
			golden := filepath.Join("testdata", file)
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		}
	}
}

// TestReadsWhatItWrites: nothing is lost between the daemon and the command.
func TestReadsWhatItWrites(t *testing.T) {
	for name, r := range reports() {
		var doc bytes.Buffer
		if err := r.WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
		got, err := Read(&doc)
		if r.Daemon == nil {
			if err == nil {
				t.Errorf("%s: a document without a daemon is taken for a daemon's answer", name)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Network != nil && len(got.Network.Config) > 0 { // which is indented by now
			var b bytes.Buffer
			if err := json.Compact(&b, got.Network.Config); err != nil {
				t.Fatal(err)
			}
			got.Network.Config = b.Bytes()
		}
		if diff := cmp.Diff(r, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, text := range []string{"", "{", "null", "[]", "{}", "junk", `{"status":"ok"}`, `{"daemon":7}`, `{"daemon":{"pid":"x"}}`, strings.Repeat("[", 100000)} {
		if r, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("%.20q: %+v", text, r)
		}
	}
	if _, err := Read(strings.NewReader(`{"daemon":{},"more":1}`)); err != nil {
		t.Errorf("a field of a newer version: %v", err)
	}
}

// TestNothingMovesTheCursor puts control characters into every string of a report.
func TestNothingMovesTheCursor(t *testing.T) {
	r := ill()
	r.Problems = []Problem{{"", "", "", "-"}}
	spoil(reflect.ValueOf(r))
	r.Traffic.Drops["\x1b[2J\n"] = 1
	var text bytes.Buffer
	if err := r.WriteText(&text, now()); err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(text.Bytes(), func(c rune) bool { return c != '\n' && (c < ' ' || c >= 0x7f && c < 0xa0) }); i >= 0 {
		t.Errorf("a control character in %q", text.Bytes()[max(0, i-30):i+1])
	}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "INJECTED") {
			t.Error("a line of somebody else's")
		}
	}
}

func spoil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			spoil(v.Elem())
		}
	case reflect.Struct:
		if v.Type().PkgPath() != reflect.TypeFor[Report]().PkgPath() {
			return
		}
		for i := range v.NumField() {
			spoil(v.Field(i))
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			return
		}
		for i := range v.Len() {
			spoil(v.Index(i))
		}
	case reflect.String:
		v.SetString("a\x1b[2J\nINJECTED\r\x00\u009b")
	}
}

func TestAges(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m", 61 * time.Second: "1m1s",
		time.Hour: "1h", 3*time.Hour + 12*time.Minute + 59*time.Second: "3h12m", 24 * time.Hour: "1d", 24*time.Hour + 59*time.Minute: "1d", 50 * time.Hour: "2d2h",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 20: "150.0 MiB", 1<<64 - 1: "16.0 EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
