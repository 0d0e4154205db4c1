package vxlan

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// hops is a Kernel made of answers.
type hops map[string]netstate.Hop

func (h hops) Hop(to netip.Addr) (netstate.Hop, error) {
	if hop, ok := h[to.String()]; ok {
		return hop, nil
	}
	return netstate.Hop{}, errors.New("network is unreachable")
}

// planning is one host's view, without a kernel.
type planning struct {
	families string
	part     string
	host     func(*backend.Host)
	kernel   hops
	peers    []lease.Lease
}

// plan returns the State as lines, and what was said of the peers.
func (p planning) plan(t *testing.T) (lines, notes []string) {
	t.Helper()
	if p.part == "" {
		p.part = `{"Type":"vxlan"}`
	}
	text := `{"Network":"10.244.0.0/16","Backend":` + p.part
	switch p.families {
	case "6":
		text += `,"EnableIPv4":false`
		fallthrough
	case "46":
		text += `,"EnableIPv6":true,"IPv6Network":"fd00:244::/32","IPv6SubnetLen":48`
	}
	n, err := lease.ParseNetwork([]byte(text + "}"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Options{TxChecksum: On})(backend.Params{Network: n})
	if err != nil {
		t.Fatal(err)
	}
	o := b.(*overlay)
	o.macs = [2]netstate.MAC{{2, 0, 0, 0, 0, 4}, {2, 0, 0, 0, 0, 6}}
	s := kernelbackend.Situation{Host: backend.Host{Link: "eth0", MTU: 1500}}
	if p.families != "6" {
		s.Own.Subnet = netip.MustParsePrefix("10.244.1.0/24")
		s.Host.Addr4 = netip.MustParseAddr("192.0.2.1")
		s.Host.Public4 = s.Host.Addr4
	}
	if p.families != "4" {
		s.Own.Subnet6 = netip.MustParsePrefix("fd00:244:1::/48")
		s.Host.Addr6 = netip.MustParseAddr("2001:db8::1")
		s.Host.Public6 = s.Host.Addr6
	}
	if p.host != nil {
		p.host(&s.Host)
	}
	s.Own.Attrs.PublicIP, s.Own.Attrs.PublicIPv6 = s.Host.Public4, s.Host.Public6
	s.Self = peerset.Self{Key: s.Own.Key, Addrs: []netip.Addr{s.Host.Addr4, s.Host.Addr6}}
	if _, err := o.mtu(s.Host, s.Own); err != nil {
		t.Fatal(err)
	}
	var log testlog.Messages
	chooser := peerset.Chooser{Backend: "vxlan", Types: []string{"vxlan"}, Network: n, Log: log.Logger()}
	o.leases = p.peers
	var said []peerset.Note
	s.Peers, said = chooser.Choose(s.Self, p.peers, func(l lease.Lease, subnet netip.Prefix) (netip.Addr, string) {
		return o.end(s, l, subnet)
	})
	for _, note := range said {
		notes = append(notes, note.Text)
	}
	if p.kernel == nil {
		p.kernel = hops{}
	}
	st, err := o.plan(s, p.kernel)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range st.Links {
		lines = append(lines, fmt.Sprintf("link %s mtu %d mac %v %s %s", l.Name, l.MTU, l.MAC, l.Module, l.Option))
	}
	for _, a := range st.Addrs {
		lines = append(lines, a.String())
	}
	for _, n := range st.Neighs {
		lines = append(lines, fmt.Sprintf("%v is %v", n, n.MAC))
	}
	for _, f := range st.FDB {
		lines = append(lines, fmt.Sprintf("%v is at %v", f, f.Dst))
	}
	for _, r := range st.Routes {
		lines = append(lines, fmt.Sprintf("%v onlink %t for %s", r, r.OnLink, r.Peer))
	}
	for _, w := range st.Watch {
		lines = append(lines, "watch "+w)
	}
	return lines, notes
}

// peer makes a lease: host number i, with both families.
func peer(i int, change ...func(*lease.Lease)) lease.Lease {
	l := lease.Lease{Revision: uint64(i)}
	l.Subnet = netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i))
	l.Subnet6 = netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/48", i))
	l.Attrs = lease.Attrs{
		PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), PublicIPv6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i)),
		BackendType:   "vxlan",
		BackendData:   json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:04:00:%02d"}`, i)),
		BackendV6Data: json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:06:00:%02d"}`, i)),
	}
	for _, c := range change {
		c(&l)
	}
	return l
}

// peer4 has IPv4 only.
func peer4(i int, change ...func(*lease.Lease)) lease.Lease {
	return peer(i, append([]func(*lease.Lease){func(l *lease.Lease) {
		l.Subnet6, l.Attrs.PublicIPv6, l.Attrs.BackendV6Data = netip.Prefix{}, netip.Addr{}, nil
	}}, change...)...)
}

func peer6(i int) lease.Lease {
	return peer(i, func(l *lease.Lease) {
		l.Subnet, l.Attrs.PublicIP, l.Attrs.BackendData = netip.Prefix{}, netip.Addr{}, nil
	})
}

const own4 = `link flannel.1 mtu 1450 mac 02:00:00:00:00:04 vxlan CONFIG_VXLAN
address 10.244.1.0/32 of flannel.1`

func TestPlan(t *testing.T) {
	eth0 := netstate.Hop{Link: "eth0"}
	far := netstate.Hop{Link: "eth0", Gw: netip.MustParseAddr("192.0.2.254")}
	for name, tt := range map[string]struct {
		planning
		want  string
		notes []string // parts of each
	}{
		"IPv4": {planning{families: "4", peers: []lease.Lease{peer4(2)}}, own4 + `
neighbour 10.244.2.0 of flannel.1 is 02:00:00:04:00:02
forwarding entry 02:00:00:04:00:02 of flannel.1 is at 192.0.2.2
route to 10.244.2.0/24 via 10.244.2.0 through flannel.1 onlink true for 10.244.2.0-24 at 192.0.2.2`, nil},
		"IPv6": {planning{families: "6", peers: []lease.Lease{peer6(2)}}, `link flannel-v6.1 mtu 1430 mac 02:00:00:00:00:06 vxlan CONFIG_VXLAN
address fd00:244:1::/128 of flannel-v6.1
neighbour fd00:244:2:: of flannel-v6.1 is 02:00:00:06:00:02
forwarding entry 02:00:00:06:00:02 of flannel-v6.1 is at 2001:db8::2
route to fd00:244:2::/48 via fd00:244:2:: through flannel-v6.1 onlink true for fd00:244:2::-48 at 2001:db8::2`, nil},
		"both, and a peer with IPv4 alone": {planning{families: "46", part: `{"Type":"vxlan","VNI":70000,"Port":4789,"MTU":1400}`, peers: []lease.Lease{
			peer4(3, data(`{"VtepMAC":"02:00:00:04:00:03"}`)),
			peer(2, data(`{"VNI":4464,"VtepMAC":"02:00:00:04:00:02"}`), func(l *lease.Lease) {
				l.Attrs.BackendV6Data = json.RawMessage(`{"VNI":70000,"VtepMAC":"02:00:00:06:00:02"}`)
			}),
		}}, `link flannel.70000 mtu 1350 mac 02:00:00:00:00:04 vxlan CONFIG_VXLAN
link flannel6.11170 mtu 1330 mac 02:00:00:00:00:06 vxlan CONFIG_VXLAN
address 10.244.1.0/32 of flannel.70000
address fd00:244:1::/128 of flannel6.11170
neighbour 10.244.3.0 of flannel.70000 is 02:00:00:04:00:03
neighbour 10.244.2.0 of flannel.70000 is 02:00:00:04:00:02
neighbour fd00:244:2:: of flannel6.11170 is 02:00:00:06:00:02
forwarding entry 02:00:00:04:00:03 of flannel.70000 is at 192.0.2.3
forwarding entry 02:00:00:04:00:02 of flannel.70000 is at 192.0.2.2
forwarding entry 02:00:00:06:00:02 of flannel6.11170 is at 2001:db8::2
route to 10.244.3.0/24 via 10.244.3.0 through flannel.70000 onlink true for 10.244.3.0-24 at 192.0.2.3
route to 10.244.2.0/24 via 10.244.2.0 through flannel.70000 onlink true for 10.244.2.0-24&fd00:244:2::-48 at 192.0.2.2
route to fd00:244:2::/48 via fd00:244:2:: through flannel6.11170 onlink true for 10.244.2.0-24&fd00:244:2::-48 at 192.0.2.2`, nil},
		"direct": {planning{families: "46", part: `{"Type":"vxlan","DirectRouting":true}`, peers: []lease.Lease{peer(2), peer4(3), peer4(4)},
			kernel: hops{"192.0.2.2": eth0, "2001:db8::2": {Link: "eth1"}, "192.0.2.3": far, "192.0.2.4": {Link: "flannel.1"}}},
			own4 + `
address fd00:244:1::/128 of flannel-v6.1
forwarding entry 02:00:00:04:00:03 of flannel.1 is at 192.0.2.3
forwarding entry 02:00:00:04:00:04 of flannel.1 is at 192.0.2.4
link flannel-v6.1 mtu 1430 mac 02:00:00:00:00:06 vxlan CONFIG_VXLAN
neighbour 10.244.3.0 of flannel.1 is 02:00:00:04:00:03
neighbour 10.244.4.0 of flannel.1 is 02:00:00:04:00:04
route to 10.244.2.0/24 via 192.0.2.2 through eth0 onlink false for 10.244.2.0-24&fd00:244:2::-48 at 192.0.2.2
route to 10.244.3.0/24 via 10.244.3.0 through flannel.1 onlink true for 10.244.3.0-24 at 192.0.2.3
route to 10.244.4.0/24 via 10.244.4.0 through flannel.1 onlink true for 10.244.4.0-24 at 192.0.2.4
route to fd00:244:2::/48 via 2001:db8::2 through eth1 onlink false for 10.244.2.0-24&fd00:244:2::-48 at 192.0.2.2
watch eth0
watch eth1`, nil},
		"direct only where asked for": {planning{families: "4", peers: []lease.Lease{peer4(2)}, kernel: hops{"192.0.2.2": eth0}}, own4 + `
neighbour 10.244.2.0 of flannel.1 is 02:00:00:04:00:02
forwarding entry 02:00:00:04:00:02 of flannel.1 is at 192.0.2.2
route to 10.244.2.0/24 via 10.244.2.0 through flannel.1 onlink true for 10.244.2.0-24 at 192.0.2.2`, nil},
		"one begins where another does": {planning{families: "4", peers: []lease.Lease{
			peer4(2, func(l *lease.Lease) { l.Subnet = netip.MustParsePrefix("10.244.8.0/21") }),
			peer4(8),
		}}, own4 + `
neighbour 10.244.8.0 of flannel.1 is 02:00:00:04:00:08
neighbour 10.244.8.1 of flannel.1 is 02:00:00:04:00:02
forwarding entry 02:00:00:04:00:08 of flannel.1 is at 192.0.2.8
forwarding entry 02:00:00:04:00:02 of flannel.1 is at 192.0.2.2
route to 10.244.8.0/24 via 10.244.8.0 through flannel.1 onlink true for 10.244.8.0-24 at 192.0.2.8
route to 10.244.8.0/21 via 10.244.8.1 through flannel.1 onlink true for 10.244.8.0-21 at 192.0.2.2`,
			[]string{"10.244.8.0/24 of 192.0.2.8 is inside"}},
	} {
		t.Run(name, func(t *testing.T) {
			lines, notes := tt.plan(t)
			want := strings.Split(tt.want, "\n")
			slices.Sort(lines)
			slices.Sort(want)
			if !slices.Equal(lines, want) {
				t.Errorf("plan:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
			}
			sameNotes(t, notes, tt.notes)
		})
	}
}

// TestPlanJunk: what is wrong with one peer costs that one, and is said.
func TestPlanJunk(t *testing.T) {
	good := peer4(9)
	for name, tt := range map[string]struct {
		l    lease.Lease
		want string
	}{
		"other backend":           {peer4(2, func(l *lease.Lease) { l.Attrs.BackendType = "host-gw" }), `has the backend "host-gw"`},
		"udp":                     {peer4(2, func(l *lease.Lease) { l.Attrs.BackendType, l.Attrs.BackendData = "", nil }), `has the backend ""`},
		"no data":                 {peer4(2, data("")), "does not tell the Ethernet address"},
		"junk data":               {peer4(2, data(`{"VtepMAC":`)), "can't be read"},
		"other VNI":               {peer4(2, data(`{"VNI":5,"VtepMAC":"02:00:00:04:00:02"}`)), "its VNI is 5 and this host's 1"},
		"group MAC":               {peer4(2, data(`{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}`)), "no single host's"},
		"our MAC":                 {peer4(2, data(`{"VNI":1,"VtepMAC":"02:00:00:00:00:04"}`)), "is also this host's"},
		"our address":             {peer4(2, func(l *lease.Lease) { l.Attrs.PublicIP = netip.MustParseAddr("192.0.2.1") }), "this host's own"},
		"no address":              {peer4(2, func(l *lease.Lease) { l.Attrs.PublicIP = netip.Addr{} }), "no public address"},
		"our subnet":              {peer4(1, func(l *lease.Lease) { l.Attrs.PublicIP = netip.MustParseAddr("192.0.2.2") }), "this host's own subnet"},
		"outside":                 {peer4(2, func(l *lease.Lease) { l.Subnet = netip.MustParsePrefix("10.9.0.0/24") }), "not in the network"},
		"another's MAC":           {peer4(2, data(`{"VNI":1,"VtepMAC":"02:00:00:04:00:09"}`)), "is also that of 10.244.9.0-24 at 192.0.2.9, whose lease is newer"},
		"IPv6 in an IPv4 network": {peer6(2), "no range of that family"},
	} {
		t.Run(name, func(t *testing.T) {
			alone, _ := planning{families: "4", peers: []lease.Lease{good}}.plan(t)
			for _, order := range [][]lease.Lease{{tt.l, good}, {good, tt.l}} {
				lines, notes := planning{families: "4", peers: order}.plan(t)
				if !slices.Equal(lines, alone) {
					t.Errorf("plan:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(alone, "\n"))
				}
				sameNotes(t, notes, []string{tt.want})
			}
		})
	}
}

// TestPlanTwins: of two hosts with one Ethernet address the later lease's is served,
// in whatever order they come, unless that can't be served anyway; one host with two
// subnets is no twin.
func TestPlanTwins(t *testing.T) {
	same := data(`{"VNI":1,"VtepMAC":"02:00:00:04:00:02"}`)
	rev := func(r uint64) func(*lease.Lease) { return func(l *lease.Lease) { l.Revision = r } }
	for name, tt := range map[string]struct {
		peers []lease.Lease
		want  []string // the subnets that are routed
	}{
		"later":             {[]lease.Lease{peer4(2, rev(5)), peer4(3, same, rev(4)), peer4(4, same, rev(3))}, []string{"10.244.2.0/24"}},
		"earlier":           {[]lease.Lease{peer4(2, rev(3)), peer4(3, same, rev(4))}, []string{"10.244.3.0/24"}},
		"no revisions":      {[]lease.Lease{peer4(2, rev(0)), peer4(3, same, rev(0))}, []string{"10.244.3.0/24"}},
		"later is outside":  {[]lease.Lease{peer4(2), peer4(3, same, rev(9), func(l *lease.Lease) { l.Subnet = netip.MustParsePrefix("10.9.0.0/24") })}, []string{"10.244.2.0/24"}},
		"later is no VXLAN": {[]lease.Lease{peer4(2), peer4(3, same, rev(9), func(l *lease.Lease) { l.Attrs.BackendType = "ipip" })}, []string{"10.244.2.0/24"}},
		"one host": {[]lease.Lease{peer4(2), peer4(3, same, func(l *lease.Lease) { l.Attrs.PublicIP = netip.MustParseAddr("192.0.2.2") })},
			[]string{"10.244.2.0/24", "10.244.3.0/24"}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				lines, _ := planning{families: "4", peers: tt.peers}.plan(t)
				var routed []string
				for _, l := range lines {
					if rest, ok := strings.CutPrefix(l, "route to "); ok {
						routed = append(routed, strings.Fields(rest)[0])
					}
				}
				slices.Sort(routed)
				if !slices.Equal(routed, tt.want) {
					t.Errorf("routes to %v, want %v", routed, tt.want)
				}
				slices.Reverse(tt.peers)
			}
		})
	}
}

// TestSource: the device sends from the public address only if that is this host's.
func TestSource(t *testing.T) {
	public := netip.MustParseAddr("198.51.100.7")
	for name, tt := range map[string]struct {
		kernel hops
		want   string
	}{
		"NAT":         {hops{"198.51.100.7": {Link: "eth0", Gw: netip.MustParseAddr("192.0.2.254")}}, "192.0.2.1"},
		"unreachable": {hops{}, "192.0.2.1"},
		"local":       {hops{"198.51.100.7": {Link: "lo", Local: true}}, "198.51.100.7"},
	} {
		o := &overlay{cfg: config{vni: 1, port: 8472}}
		s := kernelbackend.Situation{Host: backend.Host{Link: "eth0", MTU: 1500, Addr4: netip.MustParseAddr("192.0.2.1"), Public4: public}}
		s.Own.Attrs.PublicIP = public
		if d := o.device(v4, s, tt.kernel); d.src.String() != tt.want {
			t.Errorf("%s: source %v, want %s", name, d.src, tt.want)
		}
	}
}

func data(text string) func(*lease.Lease) {
	return func(l *lease.Lease) { l.Attrs.BackendData = json.RawMessage(text) }
}

// sameNotes checks that there is one note for each text that is wanted, with it.
func sameNotes(t *testing.T, notes, want []string) {
	t.Helper()
	if len(notes) != len(want) {
		t.Errorf("said: %q, want %q", notes, want)
		return
	}
	for i, w := range want {
		if !strings.Contains(notes[i], w) {
			t.Errorf("said: %q, want %q", notes[i], w)
		}
	}
}
