package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// text is what a test compares of specs.
func text(specs []spec) (lines []string) {
	for _, s := range specs {
		lines = append(lines, fmt.Sprintf("%s mtu %d port %d keepalive %v addrs %v networks %v known %v", s.name, s.mtu, s.port, s.keepalive, s.addrs, s.networks, s.peers != nil))
		for _, p := range s.peers {
			lines = append(lines, fmt.Sprintf("  %x at %v for %v", p.key[:1], p.endpoint, p.allowed))
		}
	}
	return lines
}

func TestSpecs(t *testing.T) {
	n := lease.Network{IPv4: lease.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}, IPv6: lease.Range{Prefix: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64}}
	own := lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.1.1.0/24"), Subnet6: netip.MustParsePrefix("fd00:0:0:1::/64")}}
	l := withData(`{"PublicKey":"`+wgtypes.Key{1}.String()+`"}`, `{"PublicKey":"`+wgtypes.Key{1}.String()+`"}`)
	l.Subnet6 = netip.MustParsePrefix("fd00:0:0:2::/64")
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	full := peerset.Peer{Lease: l, Subnet: l.Subnet, Subnet6: l.Subnet6, At: v4, At6: v6}
	only4 := peerset.Peer{Lease: l, Subnet: l.Subnet, At: v4}
	one6 := peerset.Peer{Lease: l, Subnet: l.Subnet, Subnet6: l.Subnet6, At: v6, At6: v6}
	host := backend.Host{Link: "eth0", MTU: 1500}
	for _, c := range []struct {
		name  string
		keys  string
		n     lease.Network
		peers []peerset.Peer
		want  []string
	}{
		{"separate", `{}`, n, []peerset.Peer{full}, []string{
			"flannel-wg mtu 1420 port 51820 keepalive 0s addrs [10.1.1.0/32] networks [10.0.0.0/8] known true",
			"  01 at 192.0.2.2:51820 for [10.1.2.0/24]",
			"flannel-wg-v6 mtu 1420 port 51821 keepalive 0s addrs [fd00:0:0:1::/128] networks [fd00::/32] known true",
			"  01 at [2001:db8::2]:51821 for [fd00:0:0:2::/64]"}},
		{"not synced", `{"PersistentKeepaliveInterval":5}`, lease.Network{IPv4: n.IPv4}, nil, []string{
			"flannel-wg mtu 1420 port 51820 keepalive 5s addrs [10.1.1.0/32] networks [10.0.0.0/8] known false"}},
		{"IPv6 alone", `{"ListenPortV6":9}`, lease.Network{IPv6: n.IPv6}, []peerset.Peer{}, []string{
			"flannel-wg-v6 mtu 1420 port 9 keepalive 0s addrs [fd00:0:0:1::/128] networks [fd00::/32] known true"}},
		{"a peer without IPv6", `{}`, n, []peerset.Peer{only4}, []string{
			"flannel-wg mtu 1420 port 51820 keepalive 0s addrs [10.1.1.0/32] networks [10.0.0.0/8] known true",
			"  01 at 192.0.2.2:51820 for [10.1.2.0/24]",
			"flannel-wg-v6 mtu 1420 port 51821 keepalive 0s addrs [fd00:0:0:1::/128] networks [fd00::/32] known true"}},
		{"ipv6", `{"Mode":"ipv6","MTU":1400}`, n, []peerset.Peer{one6}, []string{
			"flannel-wg mtu 1320 port 51820 keepalive 0s addrs [10.1.1.0/32 fd00:0:0:1::/128] networks [10.0.0.0/8 fd00::/32] known true",
			"  01 at [2001:db8::2]:51820 for [10.1.2.0/24 fd00:0:0:2::/64]"}},
	} {
		cfg, err := parseConfig([]byte(c.keys))
		if err != nil {
			t.Fatal(err)
		}
		got := text(cfg.specs(c.n, kernelbackend.Situation{Host: host, Own: own, Peers: c.peers}))
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// A fake is a device that does what it is told.
type fake struct {
	wgtypes.Device
	sets []string
	bad  map[wgtypes.Key]bool // peers that can't be set
}

func (f *fake) get() (*wgtypes.Device, error) { d := f.Device; return &d, nil }

func (f *fake) set(c wgtypes.Config) error {
	for _, p := range c.Peers {
		if f.bad[p.PublicKey] {
			return errors.New("no such thing")
		}
	}
	f.sets = append(f.sets, strings.ReplaceAll(strings.TrimSpace(writeUAPI(c)), "\n", " "))
	if c.PrivateKey != nil {
		f.PrivateKey = *c.PrivateKey
	}
	if c.ListenPort != nil {
		f.ListenPort = *c.ListenPort
	}
	for _, p := range c.Peers {
		f.peer(p)
	}
	return nil
}

func (f *fake) peer(c wgtypes.PeerConfig) {
	i := 0
	for i < len(f.Peers) && f.Peers[i].PublicKey != c.PublicKey {
		i++
	}
	if c.Remove {
		f.Peers = append(f.Peers[:i:i], f.Peers[i+1:]...)
		return
	}
	if i == len(f.Peers) {
		f.Peers = append(f.Peers, wgtypes.Peer{PublicKey: c.PublicKey})
	}
	p := &f.Peers[i]
	if c.Endpoint != nil {
		p.Endpoint = c.Endpoint
	}
	if c.ReplaceAllowedIPs {
		p.AllowedIPs = c.AllowedIPs
	}
	if c.PresharedKey != nil {
		p.PresharedKey = *c.PresharedKey
	}
	if c.PersistentKeepaliveInterval != nil {
		p.PersistentKeepaliveInterval = *c.PersistentKeepaliveInterval
	}
}

func testPeer(n byte) peer {
	return peer{name: fmt.Sprint("p", n), key: wgtypes.Key{n}, endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 51820),
		allowed: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, n, 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: n}), 64)}}
}

// TestSettle goes through a device's life, each step with exactly what is set.
func TestSettle(t *testing.T) {
	now := time.Now()
	f, m, n := &fake{}, newMind(), &tally{}
	want := spec{name: "flannel-wg", port: 51820}
	k := keys{private: secret{8, 31: 64}}
	key := func(n byte) string { return fmt.Sprintf("public_key=%02x%062d", n, 0) }
	step := func(what string, done int, sets ...string) {
		t.Helper()
		f.sets = nil
		put, err := settle(f, want, k, m, n, now)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if d := cmp.Diff(sets, f.sets); d != "" || len(put) != done {
			t.Errorf("%s: done %v, want %d; sets (-want +got):\n%s", what, put, done, d)
		}
	}
	private := "private_key=08" + strings.Repeat("0", 60) + "40"
	none := strings.Repeat("0", 64)
	f.Peers = []wgtypes.Peer{{PublicKey: wgtypes.Key{7}}}
	step("first", 0, private+" listen_port=51820")
	step("peers are not known yet", 0)
	want.peers = []peer{testPeer(1), testPeer(2)}
	step("peers", 0, key(7)+" update_only=true remove=true "+
		key(1)+" endpoint=192.0.2.1:51820 replace_allowed_ips=true allowed_ip=10.1.1.0/24 allowed_ip=fd00:0:0:1::/64 "+
		key(2)+" endpoint=192.0.2.2:51820 replace_allowed_ips=true allowed_ip=10.1.2.0/24 allowed_ip=fd00:0:0:2::/64")
	step("again", 0)
	f.Peers[0].AllowedIPs[0], f.Peers[0].AllowedIPs[1] = f.Peers[0].AllowedIPs[1], f.Peers[0].AllowedIPs[0]
	step("the order of AllowedIPs", 0)

	roamed := &net.UDPAddr{IP: net.IP{203, 0, 113, 9}, Port: 1}
	f.Peers[0].Endpoint, f.Peers[0].LastHandshakeTime = roamed, now.Add(-time.Minute)
	step("roamed", 0)
	want.peers[0].endpoint = netip.MustParseAddrPort("192.0.2.77:51820")
	step("another lease", 0, key(1)+" update_only=true endpoint=192.0.2.77:51820")
	f.Peers[0].Endpoint, f.Peers[0].LastHandshakeTime = roamed, now.Add(-session-time.Second)
	step("not heard for long", 0, key(1)+" update_only=true endpoint=192.0.2.77:51820")

	f.Peers[0].Endpoint, f.Peers[0].LastHandshakeTime, m = roamed, now, newMind()
	step("roamed, and a successor", 0, key(1)+" update_only=true endpoint=192.0.2.77:51820")

	f.Peers[1].AllowedIPs = nil
	step("AllowedIPs removed by hand", 1, key(2)+" update_only=true replace_allowed_ips=true allowed_ip=10.1.2.0/24 allowed_ip=fd00:0:0:2::/64")
	want.peers[1].allowed = want.peers[1].allowed[:1]
	step("AllowedIPs of a new lease", 0, key(2)+" update_only=true replace_allowed_ips=true allowed_ip=10.1.2.0/24")
	k.psk = secret{5}
	f.Peers[1].PresharedKey = wgtypes.Key(k.psk)
	step("PSK", 1, key(1)+" update_only=true preshared_key=05"+none[2:])
	k.psk, want.keepalive = secret{}, 25*time.Second
	f.Peers[1].PersistentKeepaliveInterval = want.keepalive
	step("no PSK, keepalive", 2, key(1)+" update_only=true preshared_key="+none+" persistent_keepalive_interval=25 "+key(2)+" update_only=true preshared_key="+none)
	f.ListenPort = 1
	step("port changed by hand", 1, "listen_port=51820")

	old := f.Peers[0]
	want.peers[0].key = wgtypes.Key{9}
	step("another key", 0, key(1)+" update_only=true remove=true "+key(9)+" endpoint=192.0.2.77:51820 persistent_keepalive_interval=25 replace_allowed_ips=true allowed_ip=10.1.1.0/24 allowed_ip=fd00:0:0:1::/64")
	f.Peers = append(f.Peers, old)
	want.peers = want.peers[1:]
	step("gone", 0, key(9)+" update_only=true remove=true "+key(1)+" update_only=true remove=true")
	want.peers = []peer{}
	step("none", 0, key(2)+" update_only=true remove=true")
	if len(f.Peers) != 0 || n.devices != 2 {
		t.Errorf("%d peers are left, the device was set %d times", len(f.Peers), n.devices)
	}
}

// TestSettleWithABadPeer has the others set.
func TestSettleWithABadPeer(t *testing.T) {
	f, m, n := &fake{bad: map[wgtypes.Key]bool{{2}: true}}, newMind(), &tally{}
	want := spec{name: "flannel-wg", port: 1, peers: []peer{testPeer(1), testPeer(2), testPeer(3)}}
	_, err := settle(f, want, keys{}, m, n, time.Now())
	if err == nil || netstate.Common(err) != nil || !strings.Contains(err.Error(), "peer p2") || strings.Contains(err.Error(), "p1") {
		t.Errorf("the error is %v, want one about p2", err)
	}
	if len(f.Peers) != 2 {
		t.Errorf("%d peers were set, want 2", len(f.Peers))
	}
	f.bad = nil
	f.sets = nil
	if _, err := settle(f, want, keys{}, m, n, time.Now()); err != nil || len(f.Peers) != 3 || len(f.sets) != 1 || strings.Contains(f.sets[0], "public_key=01") {
		t.Errorf("%v, %d peers, sets %v", err, len(f.Peers), f.sets)
	}
	for i := range byte(20) {
		want.peers = append(want.peers, testPeer(100+i))
		f.bad = map[wgtypes.Key]bool{}
	}
	for _, p := range want.peers {
		f.bad[p.key] = true
	}
	if _, err := settle(f, want, keys{}, m, n, time.Now()); strings.Count(fmt.Sprint(err), "\n") > mostErrors || !strings.Contains(fmt.Sprint(err), "12 more") || netstate.Common(err) != nil {
		t.Errorf("the error is %v", err)
	}
}

func TestReadUAPI(t *testing.T) {
	hex := func(n byte) string { return fmt.Sprintf("%02x%062d", n, 0) }
	got, err := readUAPI("private_key=" + hex(1) + "\nlisten_port=7\nfwmark=3\npublic_key=" + hex(2) + "\npreshared_key=" + hex(3) +
		"\nprotocol_version=1\nendpoint=[2001:db8::1]:9\nlast_handshake_time_sec=100\nlast_handshake_time_nsec=5\ntx_bytes=1\nrx_bytes=2\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/16\nnew_thing=x\npublic_key=" + hex(4) + "\n")
	if err != nil {
		t.Fatal(err)
	}
	p := got.Peers[0]
	if got.PrivateKey != (wgtypes.Key{1}) || got.ListenPort != 7 || len(got.Peers) != 2 || p.PublicKey != (wgtypes.Key{2}) || p.PresharedKey != (wgtypes.Key{3}) ||
		p.Endpoint.String() != "[2001:db8::1]:9" || !p.LastHandshakeTime.Equal(time.Unix(100, 5)) || p.PersistentKeepaliveInterval != 25*time.Second ||
		fmt.Sprint(prefixes(p.AllowedIPs)) != "[10.0.0.0/8 fd00::/16]" || p.ReceiveBytes != 2 || p.TransmitBytes != 1 {
		t.Errorf("%+v", got)
	}
	if !got.Peers[1].LastHandshakeTime.IsZero() {
		t.Error("a handshake that has not been")
	}
	for _, bad := range []string{"private_key=0011topsecret", "public_key=00\n", "listen_port=x", "public_key=" + hex(1) + "\nallowed_ip=x"} {
		if _, err := readUAPI(bad); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: the error is %v", bad, err)
		}
	}
}
