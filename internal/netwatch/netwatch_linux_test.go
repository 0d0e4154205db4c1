package netwatch

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// events collects what a Watcher tells.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = nil
}

func (e *events) has(ok func(Event) bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ok(ev) {
			return true
		}
	}
	return false
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Error("not told: ", what)
			return
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lab is a namespace with a veth pair, a0 and a1, and perhaps a VXLAN device.
func lab(t *testing.T, needs ...netlab.Need) (*netlab.NS, *netlink.Handle, int) {
	l := netlab.ForTest(t, needs...)
	ns, err := l.Namespace("host")
	check(t, err)
	check(t, l.Veth(ns, "a0", ns, "a1", 1500))
	a, err := ns.Netlink().LinkByName("a0")
	check(t, err)
	return ns, ns.Netlink(), a.Attrs().Index
}

func watch(t *testing.T, ns *netlab.NS, groups uint32) *events {
	e := &events{}
	var w *Watcher
	check(t, ns.Do(func() (err error) {
		w, err = Open(groups, e.add, func(err error) { t.Error("failed: ", err) })
		return err
	}))
	t.Cleanup(func() { check(t, w.Close()) })
	return e
}

const all = Links | Addrs | Routes | Neighs

func ipNet(s string) *net.IPNet {
	ip, n, _ := net.ParseCIDR(s)
	n.IP = ip
	return n
}

func TestTellsOfEverything(t *testing.T) {
	ns, nl, x := lab(t, netlab.NeedVXLAN, netlab.NeedIPv6)
	link, err := nl.LinkByName("a0")
	check(t, err)
	check(t, ns.AddAddr("a0", netip.MustParsePrefix("192.0.2.1/24")))
	check(t, ns.VXLAN("vx0", netlab.VXLANConfig{VNI: 1, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"), Dev: "a0"}))
	vx, err := nl.LinkByName("vx0")
	check(t, err)
	e := watch(t, ns, all)
	about := func(l int) func(Event) bool {
		return func(ev Event) bool { return ev.Link == l && !ev.Lost && !ev.Dst.IsValid() }
	}
	named := func(ev Event) bool { return ev.Link == x && ev.Name == "a0" }
	to := func(dst string) func(Event) bool {
		return func(ev Event) bool { return ev.Dst == netip.MustParsePrefix(dst) && ev.Link == x }
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	fdb := &netlink.Neigh{LinkIndex: vx.Attrs().Index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: net.IPv4(192, 0, 2, 9), HardwareAddr: mac}
	n4 := &netlink.Neigh{LinkIndex: x, State: unix.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 9), HardwareAddr: mac}
	n6 := &netlink.Neigh{LinkIndex: x, State: unix.NUD_PERMANENT, Family: unix.AF_INET6, IP: net.ParseIP("fd00::9"), HardwareAddr: mac}
	route := func(dst, gw string) *netlink.Route {
		r := &netlink.Route{LinkIndex: x, Gw: net.ParseIP(gw), Flags: int(netlink.FLAG_ONLINK), Dst: ipNet(dst)}
		return r
	}
	for _, step := range []struct {
		what string
		do   func() error
		ok   func(Event) bool
	}{
		{"MTU", func() error { return nl.LinkSetMTU(link, 1400) }, named},
		{"down", func() error { return nl.LinkSetDown(link) }, named},
		{"up", func() error { return nl.LinkSetUp(link) }, named},
		{"address", func() error { return nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet("198.51.100.1/24")}) }, about(x)},
		{"address's route", func() error { return nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet("198.51.101.1/24")}) }, to("198.51.101.0/24")},
		{"address6", func() error { return nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet("fd00::1/64")}) }, about(x)},
		{"address gone", func() error { return nl.AddrDel(link, &netlink.Addr{IPNet: ipNet("198.51.100.1/24")}) }, about(x)},
		{"route", func() error { return nl.RouteAdd(route("10.1.0.0/16", "192.0.2.7")) }, to("10.1.0.0/16")},
		{"route gone", func() error { return nl.RouteDel(route("10.1.0.0/16", "192.0.2.7")) }, to("10.1.0.0/16")},
		{"route6", func() error { return nl.RouteAdd(route("fd01::/64", "fd00::7")) }, to("fd01::/64")},
		{"route6 gone", func() error { return nl.RouteDel(route("fd01::/64", "fd00::7")) }, to("fd01::/64")},
		{"default", func() error { return nl.RouteAdd(route("0.0.0.0/0", "192.0.2.7")) }, to("0.0.0.0/0")},
		{"default gone", func() error { return nl.RouteDel(route("0.0.0.0/0", "192.0.2.7")) }, to("0.0.0.0/0")},
		{"default6", func() error { return nl.RouteAdd(route("::/0", "fd00::7")) }, to("::/0")},
		{"host route", func() error { return nl.RouteAdd(route("10.2.3.4/32", "192.0.2.7")) }, to("10.2.3.4/32")},
		{"neighbour", func() error { return nl.NeighSet(n4) }, about(x)},
		{"neighbour gone", func() error { return nl.NeighDel(n4) }, about(x)},
		{"neighbour6", func() error { return nl.NeighSet(n6) }, about(x)},
		{"entry", func() error { return nl.NeighSet(fdb) }, about(vx.Attrs().Index)},
		{"entry gone", func() error { return nl.NeighDel(fdb) }, about(vx.Attrs().Index)},
		{"device gone", func() error { return nl.LinkDel(vx) }, func(ev Event) bool { return ev.Name == "vx0" && ev.Link == vx.Attrs().Index }},
	} {
		time.Sleep(20 * time.Millisecond) // what the step before has caused
		e.forget()
		check(t, step.do())
		within(t, step.what, func() bool { return e.has(step.ok) })
	}
	if e.has(func(ev Event) bool { return ev.Lost }) {
		t.Error("Lost without a reason")
	}
}

func TestGroups(t *testing.T) {
	ns, nl, x := lab(t)
	e := watch(t, ns, Addrs)
	link, err := nl.LinkByIndex(x)
	check(t, err)
	check(t, nl.LinkSetMTU(link, 1300))
	check(t, nl.RouteAdd(&netlink.Route{LinkIndex: x, Scope: netlink.SCOPE_LINK, Dst: ipNet("10.1.0.0/16")}))
	check(t, nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet("198.51.100.1/24")}))
	within(t, "the address", func() bool { return e.has(func(ev Event) bool { return ev.Link == x }) })
	if e.has(func(ev Event) bool { return ev.Name != "" || ev.Dst.IsValid() }) {
		t.Error(e.all)
	}
}

// Whoever listens too slowly is told that it has missed something, and hears what
// comes after that.
func TestLost(t *testing.T) {
	ns, nl, x := lab(t)
	e := &events{}
	hold := make(chan bool)
	var w *Watcher
	check(t, ns.Do(func() (err error) {
		w, err = Open(all, func(ev Event) { <-hold; e.add(ev) }, func(err error) { t.Error(err) })
		return err
	}))
	defer w.Close()
	r := &netlink.Route{LinkIndex: x, Scope: netlink.SCOPE_LINK, Dst: ipNet("10.1.0.0/16")}
	for range 3000 {
		check(t, nl.RouteAdd(r))
		check(t, nl.RouteDel(r))
	}
	close(hold)
	within(t, "Lost", func() bool { return e.has(func(ev Event) bool { return ev.Lost }) })
	r.Dst = ipNet("10.2.0.0/16")
	check(t, nl.RouteAdd(r))
	within(t, "what comes after", func() bool {
		if e.has(func(ev Event) bool { return ev.Dst.String() == "10.2.0.0/16" }) {
			return true
		}
		// The queue was still full, and that was lost, too.
		check(t, nl.RouteDel(r))
		check(t, nl.RouteAdd(r))
		return false
	})
}

func TestCloseWaitsForTheCall(t *testing.T) {
	ns, nl, x := lab(t)
	link, err := nl.LinkByIndex(x)
	check(t, err)
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	g := runtime.NumGoroutine()
	for range 20 {
		var in, closed atomic.Bool
		called := make(chan bool, 100)
		var w *Watcher
		check(t, ns.Do(func() (err error) {
			w, err = Open(Links, func(Event) {
				in.Store(true)
				if closed.Load() {
					t.Error("called after Close")
				}
				called <- true
				time.Sleep(3 * time.Millisecond)
				in.Store(false)
			}, func(err error) { t.Error("failed: ", err) })
			return err
		}))
		check(t, nl.LinkSetMTU(link, 1300))
		check(t, nl.LinkSetMTU(link, 1301))
		<-called
		check(t, w.Close())
		if in.Load() {
			t.Error("Close did not wait")
		}
		closed.Store(true)
		check(t, nl.LinkSetMTU(link, 1302))
	}
	within(t, "goroutines and descriptors as before", func() bool {
		now, _ := os.ReadDir("/proc/self/fd")
		return runtime.NumGoroutine() <= g && len(now) <= len(entries)
	})
}

// message makes a netlink message.
func message(typ uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, make([]byte, 10)...)
	return append(b, data...)
}

func told(b []byte) (all []Event) { tell(b, func(e Event) { all = append(all, e) }); return all }

// What can't be read may be about anything: it is Lost.
func TestUnreadableIsLost(t *testing.T) {
	rtmsg := make([]byte, 12)
	rtmsg[0], rtmsg[1] = unix.AF_INET, 24
	broken := []byte{2, 0, unix.RTA_DST, 0} // an attribute shorter than its header
	for name, b := range map[string][]byte{
		"length too large":    append(binary.NativeEndian.AppendUint32(nil, 500), make([]byte, 12)...),
		"short link":          message(unix.RTM_NEWLINK, make([]byte, 4)),
		"short route":         message(unix.RTM_NEWROUTE, make([]byte, 1)),
		"route without rest":  message(unix.RTM_NEWROUTE, make([]byte, 8)), // a struct rtmsg has 12 bytes
		"link without rest":   message(unix.RTM_NEWLINK, make([]byte, 12)), // a struct ifinfomsg has 16
		"route's attributes":  message(unix.RTM_DELROUTE, append(rtmsg, broken...)),
		"destination's bytes": message(unix.RTM_NEWROUTE, append(rtmsg, 7, 0, unix.RTA_DST, 0, 10, 1, 1, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Error("panic:", p)
				}
			}()
			if got := told(b); len(got) != 1 || !got[0].Lost {
				t.Errorf("%+v", got)
			}
		})
	}
	if got := told(message(unix.NLMSG_DONE, nil)); len(got) != 0 {
		t.Error(got)
	}
}

func FuzzEvent(f *testing.F) {
	f.Add(message(unix.RTM_NEWROUTE, append(make([]byte, 12), 8, 0, unix.RTA_DST, 0, 10, 1, 1, 0)))
	f.Add(message(unix.RTM_NEWLINK, append(make([]byte, 16), 8, 0, unix.IFLA_IFNAME, 0, 'a', '0', 0, 0)))
	f.Add(append(message(unix.RTM_NEWADDR, make([]byte, 8)), message(unix.RTM_DELNEIGH, make([]byte, 12))...))
	f.Add(append(make([]byte, 16), 10, 0, unix.IFLA_IFNAME, 0, 'e', 't', 'h', '0', 0, 0)) // without padding
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		tell(b, func(e Event) {
			n++
			if e.Dst.IsValid() && e.Name != "" {
				t.Errorf("%+v is about a link and a route", e)
			}
		})
		if n > len(b)/16+1 {
			t.Errorf("%d events of %d bytes", n, len(b))
		}
		for _, typ := range []uint16{unix.RTM_NEWLINK, unix.RTM_DELADDR, unix.RTM_NEWROUTE, unix.RTM_DELNEIGH} {
			_, _ = event(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: typ, Len: uint32(16 + len(b))}, Data: b})
		}
	})
}
