package wireguard

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
)

const goodPSK = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

func TestConfig(t *testing.T) {
	psk := secret([]byte("0123456789abcdef0123456789abcdef"))
	for _, c := range []struct {
		in   string
		want config
	}{
		{``, config{Port: 51820, PortV6: 51821, Mode: separate}},
		{`{}`, config{Port: 51820, PortV6: 51821, Mode: separate}},
		{`{"Type":"wireguard","Unknown":[1]}`, config{Port: 51820, PortV6: 51821, Mode: separate}},
		{`{"listenport":7,"LISTENPORTV6":8,"mtu":1400,"mode":"auto"}`, config{Port: 7, PortV6: 8, MTU: 1400, Mode: auto}},
		{`{"ListenPort":null,"PSK":null,"Mode":null,"MTU":null}`, config{Port: 51820, PortV6: 51821, Mode: separate}},
		{`{"PSK":""}`, config{Port: 51820, PortV6: 51821, Mode: separate}},
		{`{"PSK":"` + goodPSK + `","Mode":"ipv6"}`, config{Port: 51820, PortV6: 51821, Mode: ipv6, PSK: psk}},
		{`{"PersistentKeepaliveInterval":25,"Mode":"ipv4"}`, config{Port: 51820, PortV6: 51821, Mode: ipv4, Keepalive: 25 * time.Second}},
		{`{"ListenPort":51820,"ListenPortV6":51820,"Mode":"auto"}`, config{Port: 51820, PortV6: 51820, Mode: auto}},
	} {
		got, err := parseConfig(json.RawMessage(c.in))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.in, got, err, c.want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, c := range []struct{ in, key, remedy string }{
		{`[]`, "Backend", "want an object"},
		{`{"ListenPort":0}`, "Backend.ListenPort of the network's configuration is 0", "from 1 to 65535"},
		{`{"ListenPort":"51820"}`, `Backend.ListenPort of the network's configuration is "51820"`, "without quotes"},
		{`{"ListenPortV6":65536}`, "Backend.ListenPortV6 of the network's configuration is 65536", "51821"},
		{`{"ListenPort":51821}`, "both 51821", "a port each"},
		{`{"MTU":-1}`, "Backend.MTU of the network's configuration is -1", "bytes"},
		{`{"PersistentKeepaliveInterval":"25s"}`, `Backend.PersistentKeepaliveInterval of the network's configuration is "25s"`, "whole seconds"},
		{`{"PersistentKeepaliveInterval":1.5}`, "Backend.PersistentKeepaliveInterval of the network's configuration is 1.5", "whole seconds"},
		{`{"PersistentKeepaliveInterval":70000}`, "Backend.PersistentKeepaliveInterval of the network's configuration is 70000", "65535"},
		{`{"Mode":"both"}`, `Backend.Mode of the network's configuration is "both"`, `"separate", "auto"`},
		{`{"Mode":"Auto"}`, `Backend.Mode of the network's configuration is "Auto"`, `"separate", "auto"`},
		{`{"Mode":4}`, "Backend.Mode of the network's configuration is 4", `"separate", "auto"`},
		{`{"PSK":"topsecret"}`, "PSK", "wg genpsk"},
		{`{"PSK":"dG9wc2VjcmV0"}`, "PSK", "wg genpsk"},
		{`{"PSK":{"topsecret":1}}`, "PSK", "wg genpsk"},
	} {
		_, err := parseConfig(json.RawMessage(c.in))
		if err == nil || !strings.Contains(err.Error(), c.key) || !strings.Contains(err.Error(), c.remedy) {
			t.Errorf("%s: the error is %v, want one with %q and %q", c.in, err, c.key, c.remedy)
		}
		if err != nil && (strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "dG9wc2VjcmV0")) {
			t.Errorf("%s: the error has the key: %v", c.in, err)
		}
	}
}

func TestSecretIsNotWritten(t *testing.T) {
	k := keys{private: secret{1, 2, 3}, psk: secret([]byte("0123456789abcdef0123456789abcdef"))}
	cfg := config{PSK: k.psk}
	var b strings.Builder
	w := &wireguard{keys: k, cfg: cfg}
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "k", k.psk, "cfg", cfg, "keys", k, "w", w)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "k", k.psk, "cfg", cfg)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		fmt.Fprintf(&b, format, k.psk)
		fmt.Fprintf(&b, format, cfg.PSK)
		fmt.Fprintf(&b, format, k)
		fmt.Fprintf(&b, format, w)
	}
	for _, found := range []string{"0123", "48 49", "30313233", "MDEy"} {
		if strings.Contains(b.String(), found) {
			t.Errorf("%q is in %s", found, b.String())
		}
	}
}

func TestMTU(t *testing.T) {
	v4 := lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}}
	both := v4
	both.IPv6 = lease.Range{Prefix: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64}
	for _, c := range []struct {
		key, link, want int
		n               lease.Network
		err             string
	}{
		{0, 1500, 1420, v4, ""},
		{0, 9000, 8920, both, ""},
		{1400, 1500, 1320, both, ""},
		{9000, 1500, 1420, both, ""}, // more than the interface can carry
		{1400, 0, 1320, v4, ""},
		{0, 1359, 0, both, "1360"},
		{0, 1360, 1280, both, ""},
		{0, 1359, 1279, v4, ""},
		{100, 1500, 0, v4, "the key MTU is 100"},
		{0, 0, 0, v4, "interface eth0 is 0"},
	} {
		got, err := config{MTU: c.key}.mtu(backend.Host{Link: "eth0", MTU: c.link}, c.n)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("key %d, interface %d: %d, %v, want %d, %q", c.key, c.link, got, err, c.want, c.err)
		}
	}
}

func TestModeNeedsAddresses(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	v4 := lease.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}
	v6 := lease.Range{Prefix: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64}
	for _, c := range []struct {
		m    mode
		h    backend.Host
		n    lease.Network
		want string
	}{
		{separate, backend.Host{Public4: a4}, lease.Network{IPv4: v4}, ""},
		{separate, backend.Host{Public4: a4}, lease.Network{IPv4: v4, IPv6: v6}, "IPv6"},
		{separate, backend.Host{Public6: a6}, lease.Network{IPv4: v4}, "IPv4"},
		{separate, backend.Host{Public6: a6}, lease.Network{IPv6: v6}, ""},
		{ipv4, backend.Host{Public4: a4}, lease.Network{IPv6: v6}, ""},
		{ipv4, backend.Host{Public6: a6}, lease.Network{IPv6: v6}, "IPv4"},
		{ipv6, backend.Host{Public4: a4}, lease.Network{IPv4: v4}, "IPv6"},
		{auto, backend.Host{Public6: a6}, lease.Network{IPv4: v4}, ""},
		{auto, backend.Host{Public4: a4}, lease.Network{IPv6: v6}, ""},
		{auto, backend.Host{}, lease.Network{IPv4: v4}, "no public address"},
	} {
		err := c.m.check(c.h, c.n)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %+v: %v, want %q", c.m, c.h, err, c.want)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Options{})(backend.Params{Network: lease.Network{Backend: json.RawMessage(`{"Mode":"x"}`)}}); err == nil {
		t.Error("no error of a bad configuration")
	}
	if _, err := New(Options{Implementation: 7})(backend.Params{}); err == nil {
		t.Error("no error of a bad implementation")
	}
	b, err := New(Options{KeyFile: t.TempDir() + "/k"})(backend.Params{Network: lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(t.Context(), nil); err == nil {
		t.Error("Sync before Start: no error")
	}
	_, err = b.Prepare(t.Context(), backend.Host{Public4: netip.MustParseAddr("192.0.2.1")})
	if want := runtime.GOOS != "linux"; errors.Is(err, errors.ErrUnsupported) != want {
		t.Errorf("Prepare: %v", err)
	}
	if err := b.Close(false); err != nil {
		t.Error(err)
	}
	if _, err := b.Start(t.Context(), backend.Host{MTU: 1500}, lease.Lease{}); err == nil {
		t.Error("Start after Close: no error")
	}
}
