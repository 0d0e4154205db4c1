package wireguard

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/lease"
)

// The same bodies run with wireguard-go, with the kernel's WireGuard, and with one of
// each; the latter two where the kernel has it.

type scenario struct {
	name string
	run  func(t *testing.T, a, b Implementation)
}

func scenarios() []scenario {
	return []scenario{
		{"Modes", testModes},
		{"PSK", testPSK},
		{"Keepalive", testKeepalive},
		{"Members", testMembers},
		{"Key", testKey},
		{"Address", testAddress},
		{"Forgers", testForgers},
		{"Sources", testSources},
		{"Repairs", testRepairs},
		{"Peers", testPeers},
		{"Thousand", testThousand},
		{"Roaming", testRoaming},
		{"Restart", testRestart},
		{"Silence", testSilence},
		{"Fresh", testFresh},
		{"Close", testClose},
		{"Failures", testFailures},
		{"MixedModes", testMixedModes},
		{"Clones", testClones},
	}
}

// runAll runs the scenarios, or those that are named.
func runAll(t *testing.T, a, b Implementation, only ...string) {
	for _, s := range scenarios() {
		if len(only) == 0 || slices.Contains(only, s.name) {
			t.Run(s.name, func(t *testing.T) { s.run(t, a, b) })
		}
	}
}

func TestUserspace(t *testing.T) { runAll(t, Userspace, Userspace) }

func TestKernel(t *testing.T) {
	needs(t, Kernel)
	runAll(t, Kernel, Kernel)
}

// TestKernelMixed has only what concerns both ends: a virtual machine is slow.
func TestKernelMixed(t *testing.T) {
	needs(t, Kernel, Userspace)
	runAll(t, Kernel, Userspace, "Modes", "PSK", "Address")
}

const simple = `{"Type":"wireguard"}`

// testModes has packets of both families pass in every mode, encrypted.
func testModes(t *testing.T, a, b Implementation) {
	for _, keys := range []string{
		simple,
		`{"Type":"wireguard","Mode":"auto"}`,
		`{"Type":"wireguard","Mode":"ipv4","ListenPort":7000}`,
		`{"Type":"wireguard","Mode":"ipv6","MTU":1460}`,
		`{"Type":"wireguard","PSK":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`,
	} {
		t.Run(keys, func(t *testing.T) {
			l := newLab(t, keys, a, b)
			plain := l.sniff(hasPlaintext)
			outer := map[string]int{}
			outside := l.sniff(func(f []byte) bool { outer[udpOf(f)]++; return false })
			l.startAll()
			reach(t, l.hosts[0], l.hosts[1])
			outside()
			if n := plain(); n > 0 {
				t.Errorf("%d frames on the wire have the plain text", n)
			}
			want := map[string][]string{"separate": {"4:51820", "6:51821"}, "auto": {"4:51820"}, "ipv4": {"4:7000"}, "ipv6": {"6:51820"}}
			for _, w := range want[string(l.hosts[0].b.cfg.Mode)] {
				if outer[w] == 0 {
					t.Errorf("no packets on the wire by IPv%s, but %v", w, outer)
				}
			}
			dev := l.hosts[0].link(deviceName)
			mtu := 1420
			if strings.Contains(keys, "1460") {
				mtu = 1380
			}
			if dev.Attrs().MTU != mtu {
				t.Errorf("the MTU of %s is %d, want %d", deviceName, dev.Attrs().MTU, mtu)
			}
		})
	}
}

// udpOf is the IP version and destination port of a frame with UDP.
func udpOf(f []byte) string {
	if len(f) > 14+40+4 {
		switch {
		case f[12] == 8 && f[13] == 0 && f[14+9] == 17:
			return "4:" + strconv.Itoa(int(binary.BigEndian.Uint16(f[14+20+2:])))
		case f[12] == 0x86 && f[13] == 0xdd && f[14+6] == 17:
			return "6:" + strconv.Itoa(int(binary.BigEndian.Uint16(f[14+40+2:])))
		}
	}
	return ""
}

// testPSK has no packet pass between hosts with different keys, and packets pass once
// they are the same.
func testPSK(t *testing.T, a, b Implementation) {
	l := newLab(t, `{"PSK":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`, a, b)
	l.hosts[1].keys = `{"PSK":"MTEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`
	l.startAll()
	if ask(l.hosts[0], l.hosts[1], 0, 10) || ask(l.hosts[1], l.hosts[0], 1, 10) {
		t.Fatal("a packet passed between hosts with different preshared keys")
	}
	for _, h := range l.hosts {
		for _, secret := range []string{"Njc4OWFiY2RlZ", "30313233", "[48 49 50", "MTEyMz"} {
			if said := h.log.With(secret); len(said) > 0 {
				t.Errorf("the log has the preshared key: %v", said)
			}
		}
	}
	check(t, l.hosts[1].b.Close(true))
	l.hosts[1].keys = ""
	l.hosts[1].start()
	l.syncAll()
	reach(t, l.hosts[0], l.hosts[1])
}

// testKeepalive has the interval set, in seconds.
func testKeepalive(t *testing.T, a, b Implementation) {
	l := newLab(t, `{"PersistentKeepaliveInterval":1}`, a, b)
	l.startAll()
	for _, h := range l.hosts {
		// Handshakes come without any packet to carry.
		waitFor(t, "a handshake", func() bool {
			p := h.peers(deviceName)
			return len(p) == 1 && !p[0].LastHandshakeTime.IsZero()
		})
		if got := h.peers(deviceName)[0].PersistentKeepaliveInterval.Seconds(); got != 1 {
			t.Errorf("the interval is %v s, want 1", got)
		}
	}
}

// testMembers has a third host join, and leave.
func testMembers(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b, a)
	one, two, three := l.hosts[0], l.hosts[1], l.hosts[2]
	for _, h := range l.hosts {
		h.start()
	}
	one.sync(two)
	two.sync(one)
	three.sync()
	reach(t, one, two)
	one.sync(two, three)
	two.sync(one, three)
	three.sync(one, two)
	reach(t, one, three)
	reach(t, two, three)
	one.sync(two)
	two.sync(one)
	if ask(one, three, 0, 4) || ask(three, two, 0, 4) || ask(three, one, 1, 4) {
		t.Error("packets pass to or from a host that has left")
	}
	reach(t, one, two)
	if got := one.peers(deviceName); len(got) != 1 {
		t.Errorf("%d peers, want 1", len(got))
	}
}

// testKey has a host come back with another key.
func testKey(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	reach(t, l.hosts[0], l.hosts[1])
	old := l.hosts[1].b.keys.public
	check(t, l.hosts[1].b.Close(true), os.Remove(l.hosts[1].key))
	l.hosts[1].start()
	l.syncAll()
	reach(t, l.hosts[0], l.hosts[1])
	if p := l.hosts[0].peers(deviceName); len(p) != 1 || p[0].PublicKey == old || l.hosts[1].b.keys.public == old {
		t.Errorf("the peers are %v, and the old key was %v", p, old)
	}
}

// testAddress has a host move to another address.
func testAddress(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	reach(t, one, two)
	new4, new6 := netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("2001:db8::99")
	check(t, two.AddAddr("eth0", netip.PrefixFrom(new4, 24)), two.AddAddr("eth0", netip.PrefixFrom(new6, 64)))
	two.delAddr("eth0", netip.PrefixFrom(two.at.Addr4, 24))
	two.delAddr("eth0", netip.PrefixFrom(two.at.Addr6, 64))
	two.at.Addr4, two.at.Public4, two.at.Addr6, two.at.Public6 = new4, new4, new6, new6
	two.own.Attrs.PublicIP, two.own.Attrs.PublicIPv6 = new4, new6
	_, err := two.b.Start(context.Background(), two.at, two.own)
	check(t, err)
	before := one.b.sys.peers.Load()
	l.syncAll()
	if got := one.peers(deviceName)[0].Endpoint.AddrPort().Addr().Unmap(); got != new4 {
		t.Errorf("the peer is at %v, want %v", got, new4)
	}
	if n := one.b.sys.peers.Load() - before; n > 2 {
		t.Errorf("%d peers were set, want 2 at most: one of each device", n)
	}
	reach(t, one, two)
}

// testForgers has nothing arrive from hosts that are no peers.
func testForgers(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b, a)
	one, two, forger := l.hosts[0], l.hosts[1], l.hosts[2]
	for _, h := range l.hosts {
		h.start()
	}
	one.sync(two)
	two.sync(one)
	forger.sync(one, two) // knows their keys; they do not know its
	if ask(forger, one, 0, 10) || ask(forger, two, 1, 10) {
		t.Error("a packet of a host that is no peer arrived")
	}
	// A bare IP packet in UDP, as the udp backend has it, is nothing here.
	pod, from := socket(t, one.NS, netip.AddrPortFrom(one.pod[0], 7777)), socket(t, forger.NS, netip.AddrPortFrom(forger.at.Addr4, 0))
	bare := datagram(forger.pod[0], one.pod[0], 7777)
	for range 3 {
		_, err := from.WriteToUDPAddrPort(bare, netip.AddrPortFrom(one.at.Addr4, 51820))
		check(t, err)
	}
	check(t, pod.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if n, _, err := pod.ReadFromUDPAddrPort(make([]byte, 2000)); err == nil {
		t.Errorf("a plain packet of %d bytes arrived", n)
	}
	check(t, pod.Close())
	reach(t, one, two)
}

// datagram is an IPv4 packet with UDP.
func datagram(src, dst netip.Addr, port uint16) []byte {
	p := make([]byte, 20+8, 20+8+len(plaintext))
	p = append(p, plaintext...)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], 5555)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	return p // without the UDP checksum, which IPv4 does not need
}

// testSources has packets of a peer dropped whose source is not in its subnet.
func testSources(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	reach(t, one, two)
	for _, wrong := range []string{"10.244.77.7", "8.8.8.8", "fd00:244:77::7"} {
		src := netip.MustParseAddr(wrong)
		check(t, one.AddAddr("lo", netip.PrefixFrom(src, src.BitLen())))
		to := two.pod[0]
		if src.Is6() {
			to = two.pod[1]
		}
		if send(t, one.NS, netip.AddrPortFrom(src, 0), two.NS, netip.AddrPortFrom(to, 7777), 5) {
			t.Errorf("a packet from %v arrived, which is not in the peer's subnet", src)
		}
	}
	reach(t, one, two)
}

// peers are the peers of a device of the host.
func (h *host) peers(dev string) (peers []wgtypes.Peer) {
	h.lab.t.Helper()
	d, err := h.control(dev).get()
	check(h.lab.t, err)
	return d.Peers
}

// control is a control of its own.
func (h *host) control(dev string) control {
	h.lab.t.Helper()
	if p := h.b.sys.inproc[dev]; p != nil {
		return p
	}
	return inkernel{h.client(), dev}
}

// cloned is a lease of another subnet with the key of another host.
func cloned(h *host, n byte) lease.Lease {
	l := h.own
	l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)
	l.Subnet6 = netip.Prefix{}
	l.Attrs.PublicIP = netip.AddrFrom4([4]byte{192, 0, 2, n})
	l.Attrs.BackendData = slices.Clone(h.own.Attrs.BackendData)
	return l
}
