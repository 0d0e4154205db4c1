package vxlan

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRestart: a backend that ends with keep and its successor lose no packet, change
// nothing in the kernel, and the lease says the same.
func TestRestart(t *testing.T) {
	c := newCluster(t, 2, "46", `{"Type":"vxlan"}`)
	c.up()
	a, b := c.hosts[0], c.hosts[1]
	c.reach(a, b)
	lost := traffic(t, b, a)
	before, entries, index := a.own.Attrs, a.entries(), a.vxlan("flannel.1").Index
	for range 10 {
		must(t, a.be.Close(true))
		a.start()
		a.sync(b)
		if n := a.be.Stats().Writes; n != 0 {
			t.Errorf("%d changes after a restart, want none", n)
		}
		if !a.own.Attrs.Equal(before) {
			t.Errorf("the lease says %s, and said %s", a.own.Attrs.BackendData, before.BackendData)
		}
	}
	if n, of := lost(); n != 0 {
		t.Errorf("%d of %d datagrams lost", n, of)
	} else {
		t.Logf("none of %d datagrams lost", of)
	}
	if x := a.vxlan("flannel.1"); x.Index != index || !slices.Equal(a.entries(), entries) {
		t.Errorf("entries %q, were %q", a.entries(), entries)
	}
}

// traffic sends a datagram a millisecond from one host to another until the returned
// function is called, which says how many were not echoed.
func traffic(t *testing.T, from, to *host) (lost func() (n, of int)) {
	t.Helper()
	e, err := listen(to, v4)
	must(t, err)
	var conn *net.UDPConn
	must(t, from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", &net.UDPAddr{IP: from.in[v4].AsSlice()}, net.UDPAddrFromAddrPort(e.addr))
		return err
	}))
	must(t, conn.SetReadBuffer(4<<20))
	var sent, got atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		for buf := make([]byte, 200); ; got.Add(1) {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				sent.Add(1)
				_, _ = conn.Write(make([]byte, 200))
			}
		}
	}()
	await(t, "traffic flows", func() bool { return got.Load() > 50 })
	return func() (n, of int) {
		close(stop)
		<-done
		for end := time.Now().Add(2 * time.Second); got.Load() < sent.Load() && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		e.close()
		conn.Close()
		return int(sent.Load() - got.Load()), int(sent.Load())
	}
}

// TestClose: without keep, nothing is left.
func TestClose(t *testing.T) {
	c := newCluster(t, 3, "46", `{"Type":"vxlan","DirectRouting":true}`)
	before := c.hosts[0].entries()
	c.up()
	if slices.Equal(c.hosts[0].entries(), before) {
		t.Fatal("there are no routes to remove")
	}
	must(t, c.hosts[0].be.Close(false))
	if after := c.hosts[0].entries(); !slices.Equal(after, before) || c.hosts[0].vxlan("flannel.1") != nil || c.hosts[0].vxlan("flannel-v6.1") != nil {
		t.Errorf("left behind: %q", after)
	}
	must(t, c.hosts[0].be.Close(false))
	if c.hosts[0].be.Probe() == nil {
		t.Error("a closed backend has nothing to say")
	}
}

// TestSameAddressAgain: the Ethernet address is the same when the device is made anew,
// by the same backend, by another one or after somebody set another.
func TestSameAddressAgain(t *testing.T) {
	c := newCluster(t, 1, "46", `{"Type":"vxlan"}`)
	h := c.hosts[0]
	h.start()
	first := h.own.Attrs
	must(t, h.be.Close(false))
	h.start()
	if !h.own.Attrs.Equal(first) {
		t.Errorf("derived: %s, then %s", first.BackendData, h.own.Attrs.BackendData)
	}
	must(t, h.be.Close(true))
	x := h.vxlan("flannel.1")
	must(t, h.Netlink().LinkSetHardwareAddr(x, net.HardwareAddr{0x7a, 0xac, 0x15, 0x15, 0x2b, 0x61})) // flannel's, or systemd's
	h.start()
	if got := string(h.own.Attrs.BackendData); got != `{"VNI":1,"VtepMAC":"7a:ac:15:15:2b:61"}` {
		t.Errorf("of a device that was there: %s", got)
	}
	h.sync()
	if n := h.be.Stats().Writes; n != 0 {
		t.Errorf("%d changes", n)
	}
}

// TestMTUChanges: a second Start with another MTU of the interface changes the device's
// in place.
func TestMTUChanges(t *testing.T) {
	c := newCluster(t, 2, "4", `{"Type":"vxlan"}`)
	c.up()
	h := c.hosts[0]
	index := h.vxlan("flannel.1").Index
	for _, mtu := range []int{1400, 1500} {
		must(t, h.SetMTU("eth0", mtu))
		h.host.MTU = mtu
		must(t, h.Do(func() error {
			inner, err := h.be.Start(context.Background(), h.host, h.own)
			if inner != mtu-50 {
				t.Errorf("Start returns MTU %d for %d", inner, mtu)
			}
			return err
		}))
		if x := h.vxlan("flannel.1"); x == nil || x.Index != index || x.MTU != mtu-50 {
			t.Errorf("interface MTU %d: the device is %+v", mtu, x)
		}
		c.reach(h, c.hosts[1])
	}
}

// TestNoLeaks: a backend that ended holds no goroutine and no descriptor.
func TestNoLeaks(t *testing.T) {
	c := newCluster(t, 1, "46", `{"Type":"vxlan"}`)
	h := c.hosts[0]
	count := func() (goroutines, files int) {
		all, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return runtime.NumGoroutine(), len(all)
	}
	h.start()
	h.sync()
	must(t, h.be.Close(true))
	goroutines, files := count()
	for i := range 10 {
		h.start()
		h.sync()
		must(t, h.be.Close(i%2 == 0))
	}
	await(t, "goroutines and descriptors are as before", func() bool {
		g, f := count()
		return g <= goroutines && f <= files
	})
}

// TestLeftovers: what a predecessor left behind is taken over, changed, or removed,
// flannel's of before 0.9 included.
func TestLeftovers(t *testing.T) {
	c := newCluster(t, 2, "4", `{"Type":"vxlan"}`)
	a, b := c.hosts[0], c.hosts[1]
	nl := a.Netlink()
	eth0, err := nl.LinkByName("eth0")
	must(t, err)
	for _, tt := range []struct {
		name string
		x    netlink.Vxlan
		kept bool
	}{
		{"flannel's", netlink.Vxlan{VxlanId: 1, Port: 8472}, true},
		{"of another VNI", netlink.Vxlan{VxlanId: 2, Port: 8472}, false},
		{"of another port", netlink.Vxlan{VxlanId: 1, Port: 4789}, false},
		{"that learns", netlink.Vxlan{VxlanId: 1, Port: 8472, Learning: true}, false},
		{"with a group policy", netlink.Vxlan{VxlanId: 1, Port: 8472, GBP: true}, false},
		{"that asks", netlink.Vxlan{VxlanId: 1, Port: 8472, L2miss: true, L3miss: true}, false},
		{"that floods", netlink.Vxlan{VxlanId: 1, Port: 8472, Group: net.IPv4(239, 1, 1, 1)}, false},
		{"from another address", netlink.Vxlan{VxlanId: 1, Port: 8472, SrcAddr: net.IPv4(192, 0, 2, 77)}, false},
		{"that is external", netlink.Vxlan{FlowBased: true, Port: 8472, SrcAddr: net.IP{}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.x.LinkAttrs = netlink.NewLinkAttrs()
			tt.x.Name, tt.x.MTU, tt.x.HardwareAddr = "flannel.1", 1400, net.HardwareAddr{0x7a, 0xac, 0x15, 0x15, 0x2b, 0x61}
			tt.x.VtepDevIndex = eth0.Attrs().Index
			if tt.x.SrcAddr == nil {
				tt.x.SrcAddr = net.IPv4(192, 0, 2, 1)
			}
			if tt.x.FlowBased {
				tt.x.VtepDevIndex = 0
			}
			must(t, nl.LinkAdd(&tt.x))
			must(t, nl.LinkSetUp(&tt.x))
			index := tt.x.Index
			must(t, nl.AddrAdd(&tt.x, &netlink.Addr{IPNet: ipNet("10.244.1.0/16")})) // flannel <= 0.8
			must(t, nl.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet("10.244.50.0/24"), Gw: net.IPv4(10, 244, 50, 0), Flags: int(netlink.FLAG_ONLINK)}))
			must(t, nl.NeighSet(&netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: unix.NUD_PERMANENT, IP: net.IPv4(10, 244, 50, 0), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 50}}))
			if !tt.x.FlowBased {
				must(t, nl.NeighSet(fdbEntry(&tt.x, net.HardwareAddr{2, 0, 0, 0, 0, 50}, net.IPv4(192, 0, 2, 50))))
			}
			a.start()
			if x := a.vxlan("flannel.1"); x == nil || (x.Index == index) != tt.kept {
				t.Errorf("kept: %v, want %t", x, tt.kept)
			}
			if tt.kept != slices.ContainsFunc(a.entries(), func(e string) bool { return strings.HasPrefix(e, "10.244.50.0/24 via") }) {
				t.Errorf("before the first Sync: %q", a.entries())
			}
			b.start()
			c.meet()
			want := []string{"10.244.2.0/24 via 10.244.2.0 dev flannel.1",
				"flannel.1: 10.244.2.0 is " + b.be.macs[v4].String(), "flannel.1: 192.0.2.2 is " + b.be.macs[v4].String()}
			if got := a.entries(); !slices.Equal(got, want) {
				t.Errorf("entries %q, want %q", got, want)
			}
			x := a.vxlan("flannel.1")
			if got := a.addrs("flannel.1"); !slices.Equal(got, []string{"10.244.1.0/32"}) || x.MTU != 1450 || x.HardwareAddr.String() != "7a:ac:15:15:2b:61" {
				t.Errorf("addresses %q, MTU %d, Ethernet address %v", got, x.MTU, x.HardwareAddr)
			}
			c.reach(a, b)
			must(t, a.be.Close(false))
			must(t, b.be.Close(false))
		})
	}
}

// TestStartFails: a Start that fails leaves nothing behind, and says what to do.
func TestStartFails(t *testing.T) {
	c := newCluster(t, 1, "46", `{"Type":"vxlan"}`)
	h := c.hosts[0]
	nl := h.Netlink()
	eth0, err := nl.LinkByName("eth0")
	must(t, err)
	other := func(change func(*netlink.Vxlan)) *netlink.Vxlan {
		x := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: 1, Port: 8472, VtepDevIndex: eth0.Attrs().Index, SrcAddr: net.IPv4(192, 0, 2, 1)}
		x.Name = "theirs"
		change(x)
		return x
	}
	withDevice := func(x *netlink.Vxlan) func() func() {
		return func() func() {
			must(t, nl.LinkAdd(x))
			must(t, nl.LinkSetUp(x))
			return func() { must(t, nl.LinkDel(x)) }
		}
	}
	for _, tt := range []struct {
		name    string
		prepare func() (undo func())
		want    []string
	}{
		{"VNI taken", withDevice(other(func(*netlink.Vxlan) {})), []string{"theirs has VNI 1 on UDP port 8472", "ip link delete theirs", "another VNI or Port"}},
		{"VNI taken for IPv6", withDevice(other(func(x *netlink.Vxlan) { x.SrcAddr = net.ParseIP("2001:db8::1") })), []string{"flannel-v6.1", "theirs has VNI 1"}},
		{"port taken by another kind", withDevice(other(func(x *netlink.Vxlan) { x.VxlanId, x.GBP = 5, true })), []string{"theirs has UDP port 8472", "GBP: true", "another Port or GBP"}},
		{"port taken by an external one", withDevice(other(func(x *netlink.Vxlan) { x.FlowBased, x.SrcAddr, x.VtepDevIndex = true, nil, 0 })), []string{"theirs has UDP port 8472", "external: true"}},
		{"port taken by a program", func() func() {
			var conn *net.UDPConn
			must(t, h.Do(func() (err error) { conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 8472}); return err }))
			return func() { conn.Close() }
		}, []string{"flannel.1", "address already in use", "has UDP port 8472", "another Port"}},
		{"no interface", func() func() {
			h.host.Link = "eth9"
			return func() { h.host.Link = "eth0" }
		}, []string{"interface eth9"}},
		{"no IPv6 address", func() func() {
			addr := h.host.Addr6
			h.host.Addr6 = netip.Addr{}
			return func() { h.host.Addr6 = addr }
		}, []string{"eth0 has no IPv6 address"}},
	} {
		undo := tt.prepare()
		err := h.tryStart()
		for _, part := range append(tt.want, "vxlan: ") {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v; want %q", tt.name, err, part)
			}
		}
		if h.vxlan("flannel.1") != nil || h.vxlan("flannel-v6.1") != nil {
			t.Errorf("%s: a device is left behind", tt.name)
		}
		if h.be.Probe() == nil {
			t.Errorf("%s: Probe finds nothing wrong", tt.name)
		}
		undo()
	}
	h.start()
	h.sync()
	// Another port, VNI or kind is no obstacle.
	must(t, nl.LinkAdd(other(func(x *netlink.Vxlan) { x.VxlanId = 2 })))
	must(t, h.be.Close(false))
	h.start()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.be.Start(ctx, h.host, h.own); err == nil {
		t.Error("Start with an ended context succeeds")
	}
	if err := h.be.Sync(ctx, nil); err == nil {
		t.Error("Sync with an ended context succeeds")
	}
}

// TestThousandPeers: the first Sync of a large network, and what one change costs.
func TestThousandPeers(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct %t", direct), func(t *testing.T) { thousandPeers(t, direct) })
	}
}

func thousandPeers(t *testing.T, direct bool) {
	part := fmt.Sprintf(`{"Type":"vxlan","VNI":100,"Port":8472,"DirectRouting":%t}`, direct)
	c := newCluster(t, 1, "4", part)
	h := c.hosts[0]
	var err error
	c.network, err = lease.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","SubnetLen":20,"Backend":` + part + `}`))
	must(t, err)
	h.own.Subnet = netip.MustParsePrefix("10.98.0.0/20")
	must(t, h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.254"), "eth0", 0)) // to all of them
	h.start()
	leases := make([]lease.Lease, 1000)
	for i := range leases {
		leases[i] = peer4(1, data(fmt.Sprintf(`{"VNI":100,"VtepMAC":"02:00:00:04:%02x:%02x"}`, i>>8, i&255)), func(l *lease.Lease) {
			l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(10 + i/16), byte(i % 16 << 4), 0}), 20)
			l.Attrs.PublicIP = netip.AddrFrom4([4]byte{192, 0, byte(10 + i>>8), byte(i)})
		})
	}
	sync := func(what string, want uint64) {
		t.Helper()
		before, start := h.be.Stats().Writes, time.Now()
		must(t, h.be.Sync(context.Background(), leases))
		took := time.Since(start)
		if n := h.be.Stats().Writes - before; n != want {
			t.Errorf("%s: %d changes, want %d", what, n, want)
		}
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
		if took > 20*time.Second {
			t.Errorf("%s took %v", what, took)
		}
	}
	sync("first Sync of 1,000 peers", 3000)
	sync("again", 0)
	leases[500].Attrs.PublicIP = netip.MustParseAddr("192.0.99.1")
	sync("another address", 1)
	leases[500].Attrs.BackendData = []byte(`{"VNI":100,"VtepMAC":"02:00:00:05:00:00"}`)
	sync("another Ethernet address", 3)
	leases[500].Subnet = netip.MustParsePrefix("10.97.0.0/20")
	sync("another subnet", 4)
	gone := leases[999]
	leases = leases[:999]
	sync("one leaves", 3)
	leases = append(leases, gone)
	sync("one joins", 3)
	slices.Reverse(leases)
	sync("another order", 0)
}
