package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/lease"
)

// testRepairs has come back what somebody removes.
func testRepairs(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	reach(t, one, two)
	for name, remove := range map[string]func(){
		"device":    func() { check(t, one.DelLink(deviceName)) },
		"v6 device": func() { check(t, one.DelLink(deviceNameV6)) },
		"route": func() {
			check(t, one.DelRoute(l.network.IPv4.Prefix, netip.Addr{}, deviceName))
		},
		"address": func() { one.delAddr(deviceName, netip.MustParsePrefix("10.244.1.0/32")) },
		"up":      func() { check(t, one.Down(deviceName)) },
		"MTU":     func() { check(t, one.SetMTU(deviceName, 1300)) },
	} {
		t.Run(name, func(t *testing.T) {
			remove()
			waitFor(t, "what was removed is back", func() bool { return one.complete() })
			reach(t, one, two)
			check(t, one.b.Probe())
		})
	}
}

// complete reports whether the devices are up with their addresses and routes.
func (h *host) complete() bool {
	for dev, want := range map[string][]string{
		deviceName:   {h.own.Subnet.Addr().String() + "/32", h.lab.network.IPv4.Prefix.String()},
		deviceNameV6: {h.own.Subnet6.Addr().String() + "/128", h.lab.network.IPv6.Prefix.String()},
	} {
		link := h.link(dev)
		if link == nil || link.Attrs().Flags&net.FlagUp == 0 || link.Attrs().MTU != 1420 {
			return false
		}
		var have []string
		addrs, _ := h.Netlink().AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			have = append(have, a.IPNet.String())
		}
		routes, _ := h.Netlink().RouteList(link, netlink.FAMILY_ALL)
		for _, r := range routes {
			have = append(have, r.Dst.String())
		}
		for _, w := range want {
			if !strings.Contains(strings.Join(have, " "), w) {
				return false
			}
		}
	}
	return true
}

func (h *host) delAddr(dev string, p netip.Prefix) {
	h.lab.t.Helper()
	check(h.lab.t, h.Netlink().AddrDel(h.link(dev), &netlink.Addr{IPNet: rtnl.IPNet(p)}))
}

// client is a wgctrl.Client in the host's namespace.
func (h *host) client() (c *wgctrl.Client) {
	h.lab.t.Helper()
	check(h.lab.t, h.Do(func() (err error) {
		c, err = wgctrl.New()
		return err
	}))
	h.lab.t.Cleanup(func() { _ = c.Close() })
	return c
}

// testPeers has the next Sync put right what somebody did to peers and keys, and no
// Sync touch what is right.
func testPeers(t *testing.T, a, b Implementation) {
	l := newLab(t, `{"Mode":"auto"}`, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	reach(t, one, two)
	peer := one.peers(deviceName)[0]
	port, zero := 999, wgtypes.Key{1}
	hour := time.Hour
	for name, c := range map[string]wgtypes.Config{
		"peer removed": {Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, Remove: true}}},
		"AllowedIPs":   {Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, ReplaceAllowedIPs: true}}},
		"preshared":    {Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, PresharedKey: &zero}}},
		"keepalive":    {Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, PersistentKeepaliveInterval: &hour}}},
		"stranger":     {Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key{5}, AllowedIPs: peer.AllowedIPs}}},
		"port":         {ListenPort: &port},
		"private key":  {PrivateKey: &zero},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, one.Do(func() error { return one.control(deviceName).set(c) }))
			one.sync(two)
			got := one.peers(deviceName)
			if len(got) != 1 || got[0].PublicKey != peer.PublicKey || len(got[0].AllowedIPs) != 2 || got[0].PresharedKey != (wgtypes.Key{}) || got[0].PersistentKeepaliveInterval != 0 {
				t.Errorf("the peers are %+v", got)
			}
			reach(t, one, two)
		})
	}
	counts := func() string {
		return fmt.Sprint(one.b.sys.devices.Load(), one.b.sys.peers.Load(), one.b.sys.removed.Load())
	}
	before, shook := counts(), one.peers(deviceName)[0].LastHandshakeTime
	for range 3 {
		one.sync(two)
	}
	if after := counts(); after != before {
		t.Errorf("what was right was set: %s became %s", before, after)
	}
	if got := one.peers(deviceName)[0].LastHandshakeTime; got != shook {
		t.Error("a new handshake")
	}
}

// testThousand has a thousand peers set in good time, and one of them changed by one
// request.
func testThousand(t *testing.T, a, _ Implementation) {
	l := newLab(t, simple, a)
	l.network.IPv4.Prefix, l.hosts[0].own.Subnet = netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.255.0.0/24")
	one := l.hosts[0]
	one.start()
	all := make([]lease.Lease, 1000)
	if a == Kernel { // as a rule in an emulated machine
		all = all[:200]
	}
	for i := range all {
		n := lease.Lease{Revision: uint64(i)}
		n.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		n.Subnet6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 2: 2, 3: 0x44, 4: 1, 6: byte(i >> 8), 7: byte(i)}), 64)
		n.Attrs.PublicIP = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		n.Attrs.PublicIPv6 = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 14: byte(i >> 8), 15: byte(i)})
		a, err := attrs(l.network, config{}, wgtypes.Key{byte(i), byte(i >> 8), 9})
		check(t, err)
		n.Attrs.BackendType, n.Attrs.BackendData, n.Attrs.BackendV6Data = name, a.BackendData, a.BackendV6Data
		all[i] = n
	}
	began := time.Now()
	check(t, one.b.Sync(context.Background(), all))
	t.Logf("%d peers with IPv4 and IPv6: first Sync %v", len(all), time.Since(began))
	if got := one.peers(deviceName); len(got) != len(all) {
		t.Fatalf("%d peers, want %d", len(got), len(all))
	}
	before := one.b.sys.peers.Load()
	all[100].Attrs.PublicIP = netip.MustParseAddr("198.18.200.1")
	began = time.Now()
	check(t, one.b.Sync(context.Background(), all))
	t.Logf("one of %d peers changed: Sync %v", len(all), time.Since(began))
	if n := one.b.sys.peers.Load() - before; n != 1 {
		t.Errorf("%d peers were set, want 1", n)
	}
	if n := one.b.sys.removed.Load(); n != 0 {
		t.Errorf("%d peers were removed, want none", n)
	}
}

// testRoaming leaves a peer where it was heard last, until its lease says otherwise.
func testRoaming(t *testing.T, a, b Implementation) {
	l := newLab(t, `{"Mode":"auto"}`, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	reach(t, one, two)
	moved := netip.MustParseAddr("192.0.2.98")
	check(t, two.AddAddr("eth0", netip.PrefixFrom(moved, 24)))
	two.delAddr("eth0", netip.PrefixFrom(two.at.Addr4, 24))
	at := func() netip.Addr { return one.peers(deviceName)[0].Endpoint.AddrPort().Addr().Unmap() }
	waitFor(t, "one hears two at its new address", func() bool {
		ask(two, one, 0, 1)
		return at() == moved
	})
	one.sync(two)
	one.sync(two)
	if at() != moved {
		t.Fatalf("Sync moved the peer to %v, want it to stay at %v, where it was heard", at(), moved)
	}
	two.own.Attrs.PublicIP = netip.MustParseAddr("192.0.2.97")
	one.sync(two)
	if want := two.own.Attrs.PublicIP; at() != want {
		t.Errorf("the peer is at %v, want %v as its new lease says", at(), want)
	}
}

// testRestart has a successor take over. With the kernel's WireGuard nothing happens
// to packets; with wireguard-go none leaves in the clear.
func testRestart(t *testing.T, a, b Implementation) {
	l := newLab(t, simple, a, b)
	l.startAll()
	one, two := l.hosts[0], l.hosts[1]
	// A default route that leads to the wire, for packets in the clear.
	for family, via := range []netip.Addr{netip.MustParseAddr("192.0.2.250"), netip.MustParseAddr("2001:db8::250")} {
		dst := netip.PrefixFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family], 0)
		check(t, one.AddRoute(dst, via, "", 0))
		check(t, one.Netlink().NeighSet(&netlink.Neigh{LinkIndex: one.link("eth0").Attrs().Index, State: unix.NUD_PERMANENT,
			IP: via.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 250}}))
	}
	reach(t, one, two)
	plain := l.sniff(hasPlaintext)
	index, shook := one.link(deviceName).Attrs().Index, one.peers(deviceName)[0].LastHandshakeTime
	check(t, one.b.Close(true))
	if got := ask(one, two, 0, 3); got != (a == Kernel) {
		t.Errorf("packets pass while nobody is there: %v, want %v", got, a == Kernel)
	}
	ask(one, two, 1, 3)
	one.start()
	if a == Kernel {
		if link := one.link(deviceName); link.Attrs().Index != index {
			t.Error("the device was made anew")
		}
		if n := len(one.peers(deviceName)); n != 1 {
			t.Errorf("%d peers before the first Sync, want the predecessor's", n)
		}
		if !ask(one, two, 0, 3) || one.peers(deviceName)[0].LastHandshakeTime != shook {
			t.Error("packets do not pass before the first Sync, or after a new handshake")
		}
	}
	one.sync(two)
	reach(t, one, two)
	if n := one.b.sys.removed.Load() + one.b.sys.peers.Load(); a == Kernel && n > 0 {
		t.Errorf("%d peers were set or removed, want none", n)
	}
	if n := plain(); n > 0 {
		t.Errorf("%d packets left in the clear", n)
	}
}

// testClose leaves nothing behind.
func testClose(t *testing.T, a, b Implementation) {
	for _, keep := range []bool{false, true} {
		l := newLab(t, simple, a, b)
		done := leaks(t)
		for _, h := range l.hosts {
			_, err := h.tryStart()
			check(t, err)
		}
		l.syncAll()
		if !ask(l.hosts[0], l.hosts[1], 0, 600) {
			t.Fatal("no packet passes")
		}
		for _, h := range l.hosts {
			check(t, h.b.Close(keep), h.b.Close(keep))
			if err := h.b.Probe(); err == nil {
				t.Error("a closed backend says that packets flow")
			}
			stays := keep && h.impl == Kernel
			for _, dev := range []string{deviceName, deviceNameV6} {
				if there := h.link(dev) != nil; there != stays {
					t.Errorf("Close(%v): %s is there: %v, want %v", keep, dev, there, stays)
				}
			}
			if n := h.guards(); (n == 2) != keep || n != 0 && !keep {
				t.Errorf("Close(%v): %d guard routes", keep, n)
			}
		}
		done()
	}
}

// guards counts the routes that lead nowhere.
func (h *host) guards() (n int) {
	routes, err := h.Netlink().RouteList(nil, netlink.FAMILY_ALL)
	check(h.lab.t, err)
	for _, r := range routes {
		if r.Type == unix.RTN_BLACKHOLE && r.Priority == guardMetric {
			n++
		}
	}
	return n
}

// testFailures has Start say what is in the way, and leave nothing behind.
func testFailures(t *testing.T, a, _ Implementation) {
	l := newLab(t, `{"Mode":"auto","PSK":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`, a)
	one := l.hosts[0]
	done := leaks(t)
	blocker := socket(t, one.NS, netip.MustParseAddrPort("0.0.0.0:51820"))
	_, err := one.tryStart()
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), "ListenPort") {
		t.Errorf("the port is taken, and the error is %v", err)
	}
	if one.link(deviceName) != nil || one.guards() > 0 {
		t.Error("a device or route is left behind")
	}
	// What a predecessor has left against packets in the clear stays.
	left := guard(l.network.IPv4.Prefix)
	check(t, one.Netlink().RouteAdd(left))
	if _, err = one.tryStart(); err == nil || one.guards() != 1 {
		t.Errorf("%v, %d guard routes, want the predecessor's one", err, one.guards())
	}
	check(t, one.Netlink().RouteDel(left), blocker.Close())

	// Another process's device is not touched.
	other := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: deviceName, MTU: 1333}, Mode: netlink.TUNTAP_MODE_TUN, NonPersist: true, Queues: 1}
	check(t, one.Do(func() error { return netlink.LinkAdd(other) }))
	_, err = one.tryStart()
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(fmt.Sprint(err), "another process") {
		t.Errorf("another process has the device, and the error is %v", err)
	}
	if link := one.link(deviceName); link == nil || link.Attrs().MTU == 1420 || link.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("another process's device was touched: %v", link)
	}
	for _, f := range other.Fds {
		check(t, f.Close())
	}
	if one.guards() > 0 {
		t.Error("a guard route is left behind")
	}

	// One that was left behind by nobody in particular is replaced.
	check(t, one.Do(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: deviceName}, Mode: netlink.TUNTAP_MODE_TUN})
	}))
	_, err = one.tryStart()
	check(t, err, one.b.Close(false))
	done()
}
