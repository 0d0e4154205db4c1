package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// netConfOf is a network configuration with more keys.
func netConfOf(t *testing.T, more string) netConf {
	t.Helper()
	n, err := loadNetConf([]byte(`{"name":"cbr0","type":"flannel"` + more + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNetConf(t *testing.T) {
	n := netConfOf(t, "")
	if n.SubnetFile != "/run/flannel/subnet.env" || n.DataDir != "/var/lib/cni/flannel" {
		t.Errorf("the defaults are %+v", n)
	}
	n = netConfOf(t, `,"subnetfile":"/a","DataDir":"/b","cniVersion":"1.0.0"`)
	if n.SubnetFile != "/a" || n.DataDir != "/b" || n.CNIVersion != "1.0.0" || n.Name != "cbr0" {
		t.Errorf("read %+v", n)
	}
	if _, err := loadNetConf([]byte(`{"name":7}`)); err == nil || !strings.Contains(err.Error(), "/etc/cni/net.d") {
		t.Errorf("a name that is a number: %v", err)
	}
}

// TestBuildDelegate: what the delegate gets, byte by byte.
func TestBuildDelegate(t *testing.T) {
	const (
		v4   = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n"
		v6   = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n"
		tail = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
		ipam = `"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"}`
	)
	for name, b := range map[string]struct{ env, more, want string }{
		"plain":            {v4 + tail, ``, `{"ipMasq":false,` + ipam + `,"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"the bridge":       {v4 + "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", ``, `{"ipMasq":true,` + ipam + `,"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"dual stack":       {v4 + v6 + tail, ``, `{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"IPv6":             {v6 + tail, ``, `{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"fc00::/64"}]],"routes":[{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"networks":         {"FLANNEL_NETWORK=10.9.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n" + tail, ``, `{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.9.0.0/16"},{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"networks, remark": {"FLANNEL_NETWORK=10.9.0.0/16,10.1.0.0/16 # two\nFLANNEL_SUBNET=10.1.17.1/24\n" + tail, ``, `{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.9.0.0/16"},{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"version":          {v4 + tail, `,"cniVersion":"1.0.0","delegate":{"cniVersion":"0.1.0"}`, `{"cniVersion":"1.0.0","ipMasq":false,` + ipam + `,"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
		"given":            {v4 + tail, `,"delegate":{"mtu":9000,"ipMasq":true,"isGateway":false,"isDefaultGateway":true,"hairpinMode":true}`, `{"hairpinMode":true,"ipMasq":true,` + ipam + `,"isDefaultGateway":true,"isGateway":false,"mtu":9000,"name":"cbr0","type":"bridge"}`},
		"ptp":              {v4 + tail, `,"delegate":{"type":"ptp"}`, `{"ipMasq":false,` + ipam + `,"mtu":1472,"name":"cbr0","type":"ptp"}`},
		"runtime":          {v4 + tail, `,"runtimeConfig":{"portMappings":[{"hostPort":80}]},"delegate":{"runtimeConfig":{}}`, `{"ipMasq":false,` + ipam + `,"isGateway":true,"mtu":1472,"name":"cbr0","runtimeConfig":{"portMappings":[{"hostPort":80}]},"type":"bridge"}`},
		"ipam": {v4 + tail, `,"ipam":{"type":"my","dataDir":"/x<","ranges":7,"routes":[{"dst":"10.96.0.1/12"},{"dst":"0.0.0.0/0","gw":"10.1.17.20","priority":5}]}`,
			`{"ipMasq":false,"ipam":{"dataDir":"/x\u003c","ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.96.0.1/12"},{"dst":"0.0.0.0/0","gw":"10.1.17.20","priority":5},{"dst":"10.1.0.0/16"}],"type":"my"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}`},
	} {
		t.Run(name, func(t *testing.T) {
			env, err := parseSubnetEnv([]byte(b.env))
			if err != nil {
				t.Fatal(err)
			}
			d, err := buildDelegate(netConfOf(t, b.more), env)
			if err != nil {
				t.Fatal(err)
			}
			if string(d.conf) != b.want {
				t.Errorf("the delegate gets\n%s, want\n%s", d.conf, b.want)
			}
		})
	}
}

// TestParseDelegate: what is read of a delegate's configuration to help, and that it
// never gets in the way.
func TestParseDelegate(t *testing.T) {
	for text, want := range map[string]delegate{
		`{"type":"bridge","ipam":{"type":"host-local"}}`:  {kind: "bridge", bridge: "cni0", ipam: "host-local"},
		`{"type":"bridge","bridge":"kube0"}`:              {kind: "bridge", bridge: "kube0"},
		`{"type":"my","bridge":{"a":1},"ipam":["x"]}`:     {kind: "my", bridge: "cni0"},
		`{"type":"my","bridge":"","ipam":{"type":[]}}`:    {kind: "my", bridge: "cni0"},
		`{"TYPE":"my","ipam":null,"cniVersion":"0.3.1"} `: {kind: "my", bridge: "cni0"},
	} {
		d, err := parseDelegate([]byte(text))
		if err != nil || d.kind != want.kind || d.bridge != want.bridge || d.ipam != want.ipam || string(d.conf) != text {
			t.Errorf("%s: %+v, %v", text, d, err)
		}
	}
	for _, text := range []string{``, `{}`, `[]`, `{"type":7}`, `{"type":"bridge"`} {
		if d, err := parseDelegate([]byte(text)); err == nil {
			t.Errorf("%s is %+v", text, d)
		}
	}
	if v := (delegate{conf: []byte(`{"cniVersion":"0.3.1"}`)}).version(); v != "0.3.1" {
		t.Errorf("the version is %q", v)
	}
	if v := (delegate{conf: []byte(`{}`)}).version(); v != "0.1.0" {
		t.Errorf("without one, the version is %q", v)
	}
}

// TestParseSubnetEnv: files that are not whole are refused, and the error says what is
// missing.
func TestParseSubnetEnv(t *testing.T) {
	for text, words := range map[string][]string{
		"": {"empty", "no FLANNEL_NETWORK, no FLANNEL_SUBNET, no FLANNEL_MTU, no FLANNEL_IPMASQ"},
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUB":                                                                                        {"cut off", "FLANNEL_SUBNET"},
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=14":                                                        {"cut off", "FLANNEL_IPMASQ"},
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\n":                                                    {"FLANNEL_IPMASQ is missing"},
		"FLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n":                                                            {"FLANNEL_NETWORK is missing", "0.5.3"},
		"FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n":                               {"10.2.0.0/16"},
		"FLANNEL_NETWORK=10.1.0.0/16,fc00::/48\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n":                     {"FLANNEL_NETWORK", "fc00::/48"},
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=maybe\n":                              {"maybe"},
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=true\n":                                  {"FLANNEL_MTU"},
		"FLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n# FLANNEL_NETWORK=10.1.0.0/16 is what is not there yet\n": {"FLANNEL_NETWORK is missing"},
	} {
		_, err := parseSubnetEnv([]byte(text))
		if err == nil {
			t.Errorf("%q is accepted", text)
			continue
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: the error does not say %q: %v", text, w, err)
			}
		}
	}
	// What other writers do: quotes, export, CRLF, another order, more variables.
	env, err := parseSubnetEnv([]byte("\ufeffexport FLANNEL_IPMASQ='false'\r\nX=y\r\n# by hand\r\nFLANNEL_MTU=\"1450\"\r\nFLANNEL_SUBNET=\"10.1.17.1/24\"\r\nFLANNEL_NETWORK=\"10.9.0.0/16,10.1.0.0/16\"\r\n"))
	if err != nil || env.ipMasq || env.mtu != 1450 || len(env.subnets) != 1 || len(env.networks) != 2 || env.networks[0].String() != "10.9.0.0/16" {
		t.Errorf("read %+v, %v", env, err)
	}
	if _, err := readSubnetEnv("/no/such/file"); !errors.Is(err, errNoSubnet) {
		t.Errorf("no file: %v", err)
	}
}

// FuzzNetConf: a configuration that is accepted makes a delegate's that is JSON, has our
// name and a type that is none of ours, and is the same when it is made again.
func FuzzNetConf(f *testing.F) {
	for _, more := range []string{"", `,"delegate":{"type":"ptp","mtu":1e3},"ipam":{"routes":[{"dst":"::/0"}]}`, `,"delegate":null,"runtimeConfig":{}`, `,"Delegate":{"Type":7}`, `,"ipam":{"type":null}`} {
		f.Add([]byte(`{"name":"cbr0","type":"flannel"` + more + `}`))
	}
	env, err := parseSubnetEnv([]byte("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := loadNetConf(text)
		if err != nil {
			return
		}
		d, err := buildDelegate(n, env)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("the error has more than a line: %q", err)
			}
			return
		}
		var keys map[string]any
		if err := json.Unmarshal(d.conf, &keys); err != nil {
			t.Fatalf("the delegate gets %s: %v", d.conf, err)
		}
		if keys["name"] != n.Name || keys["type"] != d.kind || d.kind == "flannel" || d.kind == n.Type {
			t.Errorf("the delegate gets %s", d.conf)
		}
		if again, err := buildDelegate(n, env); err != nil || string(again.conf) != string(d.conf) {
			t.Errorf("made again: %s, %v", again.conf, err)
		}
		var s saved
		if s.decode(d.conf); s.err != nil || s.network != n.Name {
			t.Errorf("saved, %s is %+v", d.conf, s)
		}
	})
}
