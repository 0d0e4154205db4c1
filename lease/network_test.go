package lease_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flannelkit/flannelkit/lease"
)

// rng writes a Range down in one line; "" is the family that is not enabled.
func rng(prefix string, length int, low, high string) lease.Range {
	return lease.Range{Prefix: netip.MustParsePrefix(prefix), SubnetLen: length,
		Min: netip.MustParseAddr(low), Max: netip.MustParseAddr(high)}
}

// guides are configurations as guides to flannel print them.
func guides() map[string]struct {
	in   string
	want lease.Network
} {
	ten := rng("10.0.0.0/8", 20, "10.10.0.0", "10.99.0.0")
	return map[string]struct {
		in   string
		want lease.Network
	}{
		"etcdctl set, vxlan": {
			`{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0","SubnetMax": "10.99.0.0","Backend": {"Type": "vxlan","VNI": 100,"Port": 8472}}`,
			lease.Network{IPv4: ten, BackendType: "vxlan", Backend: json.RawMessage(`{"Type": "vxlan","VNI": 100,"Port": 8472}`)}},
		"unit file": {
			`{"Network":"10.2.0.0/16", "Backend": {"Type": "vxlan"}}`,
			lease.Network{IPv4: rng("10.2.0.0/16", 24, "10.2.1.0", "10.2.255.0"), BackendType: "vxlan", Backend: json.RawMessage(`{"Type": "vxlan"}`)}},
		"file with empty lines": {
			"{\n\n    \"Network\": \"172.16.0.0/12\",\n\n    \"SubnetLen\": 24,\n\n    \"SubnetMin\": \"172.16.16.0\",\n\n    \"SubnetMax\": \"172.31.247.0\",\n\n" +
				"    \"Backend\": {\n\n        \"Type\": \"vxlan\",\n\n        \"VNI\": 172,\n\n        \"Port\": 8889\n\n    }\n\n}\n",
			lease.Network{IPv4: rng("172.16.0.0/12", 24, "172.16.16.0", "172.31.247.0"), BackendType: "vxlan",
				Backend: json.RawMessage("{\n\n        \"Type\": \"vxlan\",\n\n        \"VNI\": 172,\n\n        \"Port\": 8889\n\n    }")}},
		"least": {
			`{ "Network": "10.1.0.0/16" }`,
			lease.Network{IPv4: rng("10.1.0.0/16", 24, "10.1.1.0", "10.1.255.0"), BackendType: "udp"}},
		"part of the network in /28": {
			`{ "Network": "10.1.0.0/16", "SubnetLen": 28, "SubnetMin": "10.1.10.0", "SubnetMax": "10.1.50.0" }`,
			lease.Network{IPv4: rng("10.1.0.0/16", 28, "10.1.10.0", "10.1.50.0"), BackendType: "udp"}},
		"shell's backslashes, udp": {
			"{\"Network\": \"10.0.0.0/8\",\t\t\t\t\\\n\t\"SubnetLen\": 20,\t\t\t\t\t\t\\\n\t\"SubnetMin\": \"10.10.0.0\",\t\t\t\t\\\n" +
				"\t\"SubnetMax\": \"10.99.0.0\",\t\t\t\t\\\n\t\"Backend\": {\t\t\t\t\t\t\t\\\n\t\t\"Type\": \"udp\",\t\t\t\t\t\t\\\n\t\t\"Port\": 7890}} ",
			lease.Network{IPv4: ten, BackendType: "udp", Backend: json.RawMessage("{\t\t\t\t\t\t\t \n\t\t\"Type\": \"udp\",\t\t\t\t\t\t \n\t\t\"Port\": 7890}")}},
		"shell's backslashes, vxlan": {
			"{\"Network\": \"10.0.0.0/8\",\t\t\t\t\\\n\t\"SubnetLen\": 20,\t\t\t\t\t\t\\\n\t\"SubnetMin\": \"10.10.0.0\",\t\t\t\t\\\n" +
				"\t\"SubnetMax\": \"10.99.0.0\",\t\t\t\t\\\n\t\"Backend\": {\t\t\t\t\t\t\t\\\n\t\t\"Type\": \"vxlan\"}} ",
			lease.Network{IPv4: ten, BackendType: "vxlan", Backend: json.RawMessage("{\t\t\t\t\t\t\t \n\t\t\"Type\": \"vxlan\"}")}},
	}
}

func TestParseNetworkOfGuides(t *testing.T) {
	for name, tc := range guides() {
		t.Run(name, func(t *testing.T) {
			got, err := lease.ParseNetwork([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b lease.Range) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNetworkRanges(t *testing.T) {
	var none lease.Range
	for _, tc := range []struct {
		in   string
		want lease.Range
		six  lease.Range
	}{
		// Host bits, any case, unknown keys, null, a key that comes twice.
		{`{"Network":"10.77.3.9/16"}`, rng("10.77.0.0/16", 24, "10.77.1.0", "10.77.255.0"), none},
		{`{"nETWORK":"10.5.0.0/16","subnetlen":26,"Colour":[1]}`, rng("10.5.0.0/16", 26, "10.5.0.64", "10.5.255.192"), none},
		{`{"Network":"10.5.0.0/16","SubnetLen":null,"SubnetMin":null,"EnableIPv4":null,"Backend":null}`, rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), none},
		{`{"Network":"10.4.0.0/16","Network":"10.5.0.0/16"}`, rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), none},
		{`{"Network":"10.5.0.0/16","SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0","SubnetLen":0}`, rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), none},
		// The usual length.
		{`{"Network":"0.0.0.0/1"}`, rng("0.0.0.0/1", 24, "0.0.1.0", "127.255.255.0"), none},
		{`{"Network":"10.5.0.0/22"}`, rng("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"), none},
		{`{"Network":"10.5.0.0/23"}`, rng("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"), none},
		{`{"Network":"10.5.0.0/28"}`, rng("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"), none},
		{`{"Network":"10.5.0.0/29"}`, rng("10.5.0.0/29", 30, "10.5.0.4", "10.5.0.4"), none},
		// Legal before flannel 0.8: one or two subnets.
		{`{"Network":"10.5.0.0/24","SubnetLen":24}`, rng("10.5.0.0/24", 24, "10.5.0.0", "10.5.0.0"), none},
		{`{"Network":"10.5.0.0/24","SubnetLen":25}`, rng("10.5.0.0/24", 25, "10.5.0.128", "10.5.0.128"), none},
		{`{"Network":"10.5.0.0/30","SubnetLen":30}`, rng("10.5.0.0/30", 30, "10.5.0.0", "10.5.0.0"), none},
		// Limits in the middle of a subnet.
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.5.3.1","SubnetMax":"10.5.9.255"}`, rng("10.5.0.0/16", 24, "10.5.4.0", "10.5.9.0"), none},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.0.0"}`, rng("10.5.0.0/16", 24, "10.5.0.0", "10.5.0.0"), none},
		{`{"Network":"255.255.0.0/16","SubnetMin":"255.255.254.7"}`, rng("255.255.0.0/16", 24, "255.255.255.0", "255.255.255.0"), none},
		// IPv6, and the keys of a family that is not enabled.
		{`{"Network":"10.5.0.0/16","IPv6Network":"rubbish","IPv6SubnetLen":"x"}`, rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), none},
		{`{"EnableIPv6":true,"EnableIPv4":false,"Network":7,"IPv6Network":"fd00:5::9/48"}`, none, rng("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:ffff::")},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"FD00:5::/62"}`, rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), rng("fd00:5::/62", 64, "fd00:5:0:1::", "fd00:5:0:3::")},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/63"}`, none, rng("fd00:5::/63", 65, "fd00:5:0:0:8000::", "fd00:5:0:1:8000::")},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/124"}`, none, rng("fd00:5::/124", 126, "fd00:5::4", "fd00:5::c")},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":56,"IPv6SubnetMin":"fd00:5:0:101::","IPv6SubnetMax":"fd00:5:0:5ff::1"}`,
			none, rng("fd00:5::/48", 56, "fd00:5:0:200::", "fd00:5:0:500::")},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"::"}`, none, rng("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:ffff::")},
	} {
		got, err := lease.ParseNetwork([]byte(tc.in))
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if got.IPv4 != tc.want || got.IPv6 != tc.six {
			t.Errorf("%s:\n got %s; %s\nwant %s; %s", tc.in, got.IPv4, got.IPv6, tc.want, tc.six)
		}
		if got.BackendType != "udp" || got.Backend != nil {
			t.Errorf("%s: backend %q %s, want udp without a part", tc.in, got.BackendType, got.Backend)
		}
	}
}

func TestParseNetworkSwitchesAndBackend(t *testing.T) {
	for in, want := range map[string]lease.Network{
		`"EnableNFTables":true,"Backend":{"Type":"VXLAN","DirectRouting":true}`: {NFTables: true, BackendType: "vxlan", Backend: json.RawMessage(`{"Type":"VXLAN","DirectRouting":true}`)},
		`"backend":{"type":"host-gw"}`:                                          {BackendType: "host-gw", Backend: json.RawMessage(`{"type":"host-gw"}`)},
		`"EnableNFTables":false,"EnableIPv4":true,"EnableIPv6":false`:           {BackendType: "udp"},
	} {
		want.IPv4 = rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")
		got, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16",` + in + `}`))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b lease.Range) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestParseNetworkRefuses(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string // parts of the error: the key, the value, the remedy
	}{
		{``, []string{"it is empty", `{"Network": "10.5.0.0/16"}`}},
		{"{\n \"Network\": \"10.5.0.0/16\",\n}", []string{"not JSON", "line 3, column 1", "looking for beginning of object key string"}},
		{`{"Network":`, []string{"not JSON", "line 1, column 11", "unexpected end"}},
		{`{"Network":"10.5.0.0/16"} x`, []string{"line 1, column 27", "after top-level value"}},
		{`["10.5.0.0/16"]`, []string{"it is an array, not an object"}},
		{`null`, []string{"it is null, not an object"}},
		{`{}`, []string{"Network is missing", "EnableIPv4 to false"}},
		{`{"Network":""}`, []string{"Network is missing", `"10.5.0.0/16"`}},
		{`{"Network":10}`, []string{"Network 10 is a number, not a string"}},
		{`{"Network":"10.5.0.0"}`, []string{`Network "10.5.0.0" is not a range`, "address/length"}},
		{`{"Network":"10.5.0.0/33"}`, []string{`Network "10.5.0.0/33" is not a range`}},
		{`{"Network":"0.0.0.0/0"}`, []string{"Network 0.0.0.0/0 is every address there is"}},
		{`{"Network":"224.0.0.0/8"}`, []string{"Network 224.0.0.0/8 has no addresses for hosts"}},
		{`{"Network":"fd00::/48"}`, []string{"Network fd00::/48 is not IPv4", "IPv6Network"}},
		{`{"EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"10.5.0.0/16"}`, []string{"IPv6Network 10.5.0.0/16 is not IPv6"}},
		{`{"EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"::ffff:10.5.0.0/112"}`, []string{"IPv6Network", "is not"}},
		{`{"EnableIPv6":true,"Network":"10.5.0.0/16"}`, []string{"IPv6Network is missing", "EnableIPv6 to false"}},
		{`{"EnableIPv4":false,"Network":"10.5.0.0/16"}`, []string{"EnableIPv4 is false and EnableIPv6 is not true"}},
		{`{"EnableIPv4":"yes","Network":"10.5.0.0/16"}`, []string{`EnableIPv4 "yes" is not a bool`, "without quotes"}},
		{`{"EnableNFTables":1,"Network":"10.5.0.0/16"}`, []string{`EnableNFTables 1 is not a bool`}},
		{`{"Network":"10.5.0.0/30"}`, []string{"Network 10.5.0.0/30 is too small", "/28"}},
		{`{"Network":"10.5.0.0/32"}`, []string{"Network 10.5.0.0/32 is too small"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":31}`, []string{"SubnetLen 31 leaves no room for hosts (use 30 or less)"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":32}`, []string{"SubnetLen 32 leaves no room for hosts (use 30 or less)"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":15}`, []string{"SubnetLen 15 is larger than the network 10.5.0.0/16 (use 16 or more)"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":-1}`, []string{"SubnetLen -1 is negative"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":"24"}`, []string{`SubnetLen "24" is not a whole number`, "from 16 to 30, without quotes"}},
		{`{"Network":"10.5.0.0/16","SubnetLen":24.5}`, []string{`SubnetLen 24.5 is not a whole number`}},
		{`{"Network":"10.5.0.0/16","SubnetLen":99999999999999999999}`, []string{`SubnetLen 99999999999999999999 is not`}},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, []string{"SubnetMin 10.6.0.0 is not in the network 10.5.0.0/16", "from 10.5.0.0 to 10.5.255.255"}},
		{`{"Network":"10.5.0.0/16","SubnetMax":"fd00::"}`, []string{"SubnetMax fd00:: is not in the network"}},
		{`{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0/24"}`, []string{`SubnetMax "10.5.9.0/24" is not an address`, "without a length"}},
		{`{"Network":"10.5.0.0/16","SubnetMin":7}`, []string{`SubnetMin 7 is not an address`}},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.3.0"}`, []string{"SubnetMin 10.5.9.0 is above SubnetMax 10.5.3.0 (exchange them)"}},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.1","SubnetMax":"10.5.9.9"}`, []string{"SubnetMin 10.5.9.1: no /24 begins from there to 10.5.9.9"}},
		{`{"Network":"255.255.0.0/16","SubnetMin":"255.255.255.1"}`, []string{"SubnetMin 255.255.255.1: no /24 begins from there to 255.255.255.0"}},
		{`{"Network":"10.5.0.0/16","SubnetMax":"10.5.0.7"}`, []string{"SubnetMax 10.5.0.7 leaves only the first /24", "SubnetMin", "set it to 10.5.0.0"}},
		{`{"Network":"10.5.0.0/16","Backend":{}}`, []string{"Backend has no Type", `{"Type": "udp"}`}},
		{`{"Network":"10.5.0.0/16","Backend":"vxlan"}`, []string{"Backend is a string, not an object", `{"Type": "udp"}`}},
		{`{"Network":"10.5.0.0/16","Backend":{"Type":3}}`, []string{"Backend.Type is a number, not a string"}},
		{`{"Network":"10.5.0.0/16","Backend":{"Type":""}}`, []string{`Backend.Type "" names no backend`}},
		// Everything that is wrong, at once.
		{`{"EnableIPv6":true,"Network":"10.5.0.0","IPv6Network":"fd00::/48","IPv6SubnetLen":127,"EnableNFTables":0,"Backend":[]}`,
			[]string{`Network "10.5.0.0" is not`, "IPv6SubnetLen 127 leaves no room for hosts (use 126 or less)", "EnableNFTables 0", "Backend is an array"}},
		{`{"Network":"10.5.0.0/16","SubnetMin":"x","SubnetMax":"y"}`, []string{"SubnetMin", "SubnetMax"}},
	} {
		n, err := lease.ParseNetwork([]byte(tc.in))
		if err == nil {
			t.Errorf("%s is accepted: %s", tc.in, n)
			continue
		}
		for _, part := range tc.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error lacks %q:\n%v", tc.in, part, err)
			}
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.HasPrefix(line, "lease: network config: ") {
				t.Errorf("%s: the error has a line that does not say what it is about: %s", tc.in, line)
			}
		}
	}
}

func TestParseNetworkKeepsSecrets(t *testing.T) {
	const in = `{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec","PSK":"geheim"}}`
	n, err := lease.ParseNetwork([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("joined", "network", n)
	slog.New(slog.NewJSONHandler(&js, nil)).Info("joined", "network", n)
	const want = "10.5.0.0/16 in /24s from 10.5.1.0 to 10.5.255.0, backend ipsec"
	if n.String() != want {
		t.Errorf("String() = %q, want %q", n.String(), want)
	}
	for _, out := range []string{text.String(), js.String()} {
		if strings.Contains(out, "geheim") || !strings.Contains(out, want) {
			t.Errorf("logged: %s", out)
		}
	}
	for _, broken := range []string{in[:len(in)-1], strings.Replace(in, `"ipsec"`, "7", 1), strings.Replace(in, `/16`, "/99", 1)} {
		if _, err := lease.ParseNetwork([]byte(broken)); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: error %v", broken, err)
		}
	}
}

func TestNetworkAccepts(t *testing.T) {
	four := lease.Network{IPv4: rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.9.0")}
	six := lease.Network{IPv6: rng("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:9::")}
	both := lease.Network{IPv4: four.IPv4, IPv6: six.IPv6}
	p := netip.MustParsePrefix
	for _, tc := range []struct {
		name string
		n    lease.Network
		key  lease.Key
		want string // part of the error
	}{
		{"first", four, lease.Key{Subnet: p("10.5.1.0/24")}, ""},
		{"last", four, lease.Key{Subnet: p("10.5.9.0/24")}, ""},
		{"below", four, lease.Key{Subnet: p("10.5.0.0/24")}, "10.5.0.0/24 is not from 10.5.1.0 to 10.5.9.0"},
		{"above", four, lease.Key{Subnet: p("10.5.10.0/24")}, "10.5.10.0/24 is not from 10.5.1.0 to 10.5.9.0"},
		{"other length", four, lease.Key{Subnet: p("10.5.2.0/25")}, "10.5.2.0/25 is a /25, the network hands out /24s"},
		{"host bits", four, lease.Key{Subnet: p("10.5.2.1/24")}, "bits set outside its mask"},
		{"none", four, lease.Key{}, "IPv4: the network has 10.5.0.0/16, and there is none"},
		{"IPv6 too much", four, lease.Key{Subnet: p("10.5.2.0/24"), Subnet6: p("fd00:5:0:2::/64")}, "IPv6: the network has none of this family"},
		{"wrong family", four, lease.Key{Subnet: p("fd00::/24")}, "fd00::/24 is not of this family"},
		{"IPv6", six, lease.Key{Subnet6: p("fd00:5:0:9::/64")}, ""},
		{"IPv6 above", six, lease.Key{Subnet6: p("fd00:5:0:a::/64")}, "fd00:5:0:a::/64 is not from"},
		{"IPv4 too much", six, lease.Key{Subnet: p("10.5.2.0/24"), Subnet6: p("fd00:5:0:2::/64")}, "IPv4: the network has none of this family"},
		{"both", both, lease.Key{Subnet: p("10.5.2.0/24"), Subnet6: p("fd00:5:0:2::/64")}, ""},
		{"half", both, lease.Key{Subnet: p("10.5.2.0/24")}, "IPv6: the network has fd00:5::/48"},
	} {
		err := tc.n.Accepts(tc.key)
		switch {
		case (err == nil) != (tc.want == ""):
			t.Errorf("%s: Accepts(%q) = %v", tc.name, tc.key, err)
		case err != nil && !strings.Contains(err.Error(), tc.want):
			t.Errorf("%s: the error lacks %q: %v", tc.name, tc.want, err)
		}
	}
}
