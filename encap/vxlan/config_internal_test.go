package vxlan

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/lease"
)

func TestParseConfig(t *testing.T) {
	usual := config{vni: 1, port: 8472}
	with := func(change func(*config)) config {
		c := usual
		change(&c)
		return c
	}
	for _, tt := range []struct {
		part string
		want config
	}{
		{``, usual},
		{`{"Type":"vxlan"}`, usual},
		{`{"Type":"vxlan","Port":0,"MTU":0}`, usual}, // flannel's way to say so
		{`{"Type":"vxlan","VNI":null,"Port":null,"GBP":null,"MTU":null}`, usual},
		{`{"Type":"vxlan","MacPrefix":"0E-2A","Name":"flannel.4096","Colour":[1]}`, usual},
		{`{"type":"VXLAN","vni":100,"PORT":8472}`, with(func(c *config) { c.vni = 100 })},
		{`{"Type":"vxlan","VNI":172,"Port":8889}`, with(func(c *config) { c.vni, c.port = 172, 8889 })},
		{`{"VNI":16777215,"Port":65535,"MTU":9001}`, config{vni: 1<<24 - 1, port: 65535, mtu: 9001}},
		{`{"GBP":true,"learning":true,"directrouting":true,"Port":4789}`, config{vni: 1, port: 4789, gbp: true, learning: true, direct: true}},
		{`{"MTU":118}`, with(func(c *config) { c.mtu = 118 })},
	} {
		got, err := parseConfig(json.RawMessage(tt.part))
		if err != nil || got != tt.want {
			t.Errorf("parseConfig(%s) = %+v, %v; want %+v", tt.part, got, err, tt.want)
		}
	}
}

// TestParseConfigErrors: each names the key, the value and what would do.
func TestParseConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		part string
		want []string
	}{
		{`[]`, []string{"Backend", "object"}},
		{`"vxlan"`, []string{"Backend", "object"}},
		{`{"VNI":0}`, []string{"Backend.VNI", "is 0", "1 to 16777215"}},
		{`{"VNI":16777216}`, []string{"Backend.VNI", "16777216", "1 to 16777215"}},
		{`{"vni":"1"}`, []string{"Backend.VNI", `"1"`, "without quotes"}},
		{`{"VNI":1.5}`, []string{"Backend.VNI", "1.5"}},
		{`{"VNI":-1}`, []string{"Backend.VNI", "-1"}},
		{`{"Port":65536}`, []string{"Backend.Port", "65536", "1 to 65535", "8472"}},
		{`{"Port":-1}`, []string{"Backend.Port", "-1"}},
		{`{"MTU":117}`, []string{"Backend.MTU", "117", "67", "118"}},
		{`{"MTU":-9}`, []string{"Backend.MTU", "-9", "the interface's"}},
		{`{"MTU":70000}`, []string{"Backend.MTU", "70000"}},
		{`{"GBP":1}`, []string{"Backend.GBP", "is 1", "true or false"}},
		{`{"Learning":"true"}`, []string{"Backend.Learning", `"true"`, "true or false"}},
		{`{"DirectRouting":"no","VNI":"x"}`, []string{"Backend.DirectRouting", `"no"`, "Backend.VNI", `"x"`}},
	} {
		_, err := parseConfig(json.RawMessage(tt.part))
		if err == nil {
			t.Errorf("parseConfig(%s) succeeds", tt.part)
			continue
		}
		for _, part := range append(tt.want, "vxlan: ") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("parseConfig(%s): %v; lacks %q", tt.part, err, part)
			}
		}
	}
}

func TestNewErrors(t *testing.T) {
	ok := network4(t)
	bad := ok
	bad.Backend = json.RawMessage(`{"VNI":"one"}`)
	for _, tt := range []struct {
		name string
		opts Options
		net  lease.Network
		want string
	}{
		{"key", Options{}, bad, "Backend.VNI"},
		{"option", Options{TxChecksum: 3}, ok, "TxChecksum is 3"},
		{"no range", Options{}, lease.Network{}, "neither"},
	} {
		_, err := New(tt.opts)(backend.Params{Network: tt.net})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: New = %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := New(Options{})(backend.Params{Network: ok}); err != nil {
		t.Error(err)
	}
}

// TestBackendData: what is written is what flannel writes, byte for byte, also for a
// VNI that has more bits than flannel's field.
func TestBackendData(t *testing.T) {
	mac := netstate.MAC{0x7a, 0xac, 0x15, 0x15, 0x2b, 0x61}
	for vni, want := range map[int]string{
		1:         `{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:61"}`,
		65535:     `{"VNI":65535,"VtepMAC":"7a:ac:15:15:2b:61"}`,
		65536:     `{"VNI":0,"VtepMAC":"7a:ac:15:15:2b:61"}`,
		70000:     `{"VNI":4464,"VtepMAC":"7a:ac:15:15:2b:61"}`,
		1<<24 - 1: `{"VNI":65535,"VtepMAC":"7a:ac:15:15:2b:61"}`,
	} {
		data := backendData(vni, mac)
		if string(data) != want {
			t.Errorf("VNI %d: %s, want %s", vni, data, want)
		}
		if back, err := parseData(data, vni); err != nil || back != mac {
			t.Errorf("VNI %d reads its own as %v, %v", vni, back, err)
		}
	}
}

func TestParseData(t *testing.T) {
	mac := netstate.MAC{0x7a, 0xac, 0x15, 0x15, 0x2b, 0x61}
	for _, tt := range []struct {
		data string
		vni  int
		want string // of the error; "" if none
	}{
		{`{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:61"}`, 1, ""},
		{`{"VtepMAC":"7a:ac:15:15:2b:61"}`, 100, ""}, // as old versions of flannel write it
		{`{"VtepMAC":"7A:AC:15:15:2B:61"}`, 1, ""},
		{`{"vtepmac":"7a:ac:15:15:2b:61","vni":0,"More":{}}`, 1, ""},
		{` {"VNI":null,"VtepMAC":"7a-ac-15-15-2b-61"} `, 1, ""},
		{`{"VNI":4464,"VtepMAC":"7a:ac:15:15:2b:61"}`, 70000, ""},
		{`{"VNI":70000,"VtepMAC":"7a:ac:15:15:2b:61"}`, 70000, ""},
		{`{"VNI":2,"VtepMAC":"7a:ac:15:15:2b:61"}`, 1, "its VNI is 2 and this host's 1"},
		{`{"VNI":65537,"VtepMAC":"7a:ac:15:15:2b:61"}`, 1, "its VNI is 65537"},
		{``, 1, "does not tell"},
		{`null`, 1, "does not tell"},
		{`"x"`, 1, "can't be read"},
		{`{"VNI":"1"}`, 1, "can't be read"},
		{`{"VtepMAC":5}`, 1, "can't be read"},
		{`{}`, 1, "VtepMAC"},
		{`{"VtepMAC":""}`, 1, "VtepMAC"},
		{`{"VtepMAC":"7a:ac:15:15:2b"}`, 1, "VtepMAC"},
		{`{"VtepMAC":"7a:ac:15:15:2b:61:00:00"}`, 1, "VtepMAC"},
		{`{"VtepMAC":"00:00:00:00:00:00"}`, 1, "no single host's"},
		{`{"VtepMAC":"01:00:5e:00:00:01"}`, 1, "no single host's"},
	} {
		got, err := parseData(json.RawMessage(tt.data), tt.vni)
		switch {
		case tt.want == "" && (err != nil || got != mac):
			t.Errorf("parseData(%s, %d) = %v, %v", tt.data, tt.vni, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("parseData(%s, %d): %v, want %q", tt.data, tt.vni, err, tt.want)
		}
	}
}

func network4(t *testing.T) lease.Network {
	t.Helper()
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSpoilsChecksums: which kernels have the mended NAT.
func TestSpoilsChecksums(t *testing.T) {
	for release, want := range map[string]bool{
		"3.10.0-1160.el7.x86_64": true, "4.4.302": true, "4.9.337": true,
		"4.14.180": true, "4.14.181": false, "4.15.0-213-generic": true, "4.18.0-553.el8": true,
		"4.19.122": true, "4.19.123": false, "4.19.0-27-amd64": true, "4.20.17": true,
		"5.3.18-150300": true, "5.4.0-200-generic": true, "5.4.40": true, "5.4.41": false, "5.4.302-x": false,
		"5.5.19": true, "5.6.12-300.fc32": true, "5.6.19": true, "5.6-rc1": true,
		"5.7-rc4": false, "5.7.0": false, "5.15.0-1-cloud": false, "6.18.44": false, "10.0.1": false, "7.1": false,
		"": false, "mine": false,
	} {
		if got := spoilsChecksums(release); got != want {
			t.Errorf("spoilsChecksums(%q) = %t", release, got)
		}
	}
}

func TestDeviceName(t *testing.T) {
	for _, tt := range []struct {
		f    family
		vni  int
		want string
	}{
		{v4, 1, "flannel.1"}, {v6, 1, "flannel-v6.1"},
		{v4, 9999999, "flannel.9999999"}, {v4, 10000000, "flannel.x989680"}, {v4, 16777215, "flannel.xffffff"},
		{v6, 9999, "flannel-v6.9999"}, {v6, 10000, "flannel6.2710"}, {v6, 16777215, "flannel6.ffffff"},
	} {
		if got := deviceName(tt.f, tt.vni); got != tt.want || len(got) > maxName {
			t.Errorf("deviceName(%v, %d) = %q, want %q", tt.f, tt.vni, got, tt.want)
		}
	}
	seen := map[string]int{} // no two VNIs have one name
	for vni := 1; vni <= maxVNI; vni = vni*3/2 + 1 {
		for _, v := range []int{vni, min(vni*16, maxVNI), 0x989680 + vni%7} {
			for _, f := range []family{v4, v6} {
				name := deviceName(f, v)
				if before, ok := seen[name]; ok && before != v {
					t.Errorf("%s is of VNI %d and %d", name, before, v)
				}
				seen[name] = v
			}
		}
	}
}
