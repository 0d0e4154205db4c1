package encap_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/tun"
)

// udpSizes are payloads around every edge: of nothing, of headers, of the MTU,
// of fragments, of UDP itself.
func udpSizes(mtu int, v6 bool) []int {
	full := mtu - 28
	if v6 {
		full = mtu - 48
	}
	return []int{
		1, full, 2, full, full - 1, full + 1, 7, 8, 9, 27, 28, 29, 63, 64, 65, full / 2, full/2 + 1,
		full, full, full, full, full - 8, 511, 512, 513, 1000, 2*full + 1, 3000, 4 * full, 9000, 32768, 65507, 1, 1,
	}
}

// unfragmented are the sizes of udpSizes that are one packet each.
func unfragmented(mtu int, v6 bool) []int {
	sizes := udpSizes(mtu, v6)
	return slices.DeleteFunc(sizes, func(n int) bool { return n > sizes[1] })
}

// inner lists the inner IP versions that fit the lab's overlay: a device with an
// MTU below 1280 has no IPv6.
func (l *lab) inner() map[string]bool {
	if l.OverlayMTU < 1280 {
		return map[string]bool{"v4": false}
	}
	return map[string]bool{"v4": false, "v6": true}
}

// carries moves bytes bytes of TCP each way and a round of datagrams each way,
// host to host, pod to pod, and between the two.
func (l *lab) carries(t *testing.T, bytes int) {
	t.Helper()
	routes := [][2]place{
		{l.a.podPlace(), l.b.podPlace()},
		{l.a.hostPlace(), l.b.hostPlace()},
		{l.a.hostPlace(), l.b.podPlace()},
	}
	for name, v6 := range l.inner() {
		for i, r := range routes {
			from, to := r[0], r[1]
			n := bytes
			if i > 0 {
				n /= 4
			}
			where := fmt.Sprintf("inner %s, %s to %s", name, from.name, to.name)
			if err := exchange(from, to, v6, n); err != nil {
				t.Errorf("TCP %s: %v", where, err)
			}
			// Fragments name no ports, so several queues and source ports
			// tell them from whole datagrams of their flow.
			spread := l.cfg.Engines > 1 || l.cfg.Engine.SourcePorts > 0
			sizes := udpSizes(l.OverlayMTU, v6)
			for _, r := range [][2]place{{from, to}, {to, from}} {
				if err := datagrams(r[0], r[1], v6, sizes, 3*len(sizes), spread); err != nil {
					t.Errorf("UDP %s, from %s: %v", where, r[0].name, err)
				}
				if whole := unfragmented(l.OverlayMTU, v6); spread {
					if err := datagrams(r[0], r[1], v6, whole, 600, false); err != nil {
						t.Errorf("UDP %s, whole datagrams from %s: %v", where, r[0].name, err)
					}
				}
			}
		}
	}
}

// A dataTest is one configuration that has to carry everything.
type dataTest struct {
	name string
	cfg  labConfig
	// proof, if not nil, is what the counters of each host have to say in
	// the end: that the configuration did what it is for.
	proof func(encap.Stats) bool
}

func (tt dataTest) run(t *testing.T) {
	t.Run(tt.name, func(t *testing.T) {
		l := startLab(t, tt.cfg)
		l.carries(t, 2<<20)
		for _, s := range []*side{l.a, l.b} {
			s.dropped()
			if tt.proof != nil {
				s.waitStats("counters that prove "+tt.name, tt.proof)
			}
			// The kernel spreads flows over queues, and over sockets if
			// they differ in the outer source port.
			for i, r := range s.runs {
				if st := r.Stats(); st.TX.Packets == 0 || st.RX.Packets == 0 && (len(s.runs) == 1 || tt.cfg.Engine.SourcePorts > 1) {
					t.Errorf("%s: engine %d of %d has moved nothing one way: %+v", s.host.Name(), i, len(s.runs), st)
				}
			}
		}
	})
}

// fast is the proof that super-packets and trains crossed in both directions.
func fast(st encap.Stats) bool {
	return st.TX.SuperPackets > 0 && st.TX.Trains > 0 && st.RX.Trains > 0 && st.RX.SuperPackets > 0
}

func TestE2EData(t *testing.T) {
	slow(t)
	mtu := func(n int) netlab.TwoHostsConfig { return netlab.TwoHostsConfig{MTU: n} }
	for _, tt := range []dataTest{
		{"mtu 1500", labConfig{}, fast},
		{"mtu 1280", labConfig{Net: mtu(1280)}, fast},
		{"mtu 9000", labConfig{Net: mtu(9000)}, fast},
		{"mtu 9000 on a wire", labConfig{Net: mtu(9000), Mode: netlab.M2}, fast},
		{"outer v6", labConfig{Outer6: true}, fast},
		{"outer v6, mtu 1328", labConfig{Outer6: true, Net: mtu(1328)}, fast},
		{"outer v6, mtu 9000 on a wire", labConfig{Outer6: true, Net: mtu(9000), Mode: netlab.M2}, fast},
		{"socket for both", labConfig{Dual: true}, fast},
		{"a wire that joins", labConfig{Mode: netlab.M2}, fast},
		{"a plain wire", labConfig{Mode: netlab.M3}, nil},
		{"trust the outer checksum", labConfig{Mode: netlab.M2, Engine: encap.Config{Checksums: encap.TrustOuter}}, fast},
		{"trust the outer checksum, v6", labConfig{Mode: netlab.M3, Outer6: true, Engine: encap.Config{Checksums: encap.TrustOuter}}, nil},
		{"reverse path filter", labConfig{Net: netlab.TwoHostsConfig{RPFilter: 1}}, fast},
		{"no filter", labConfig{Engine: encap.Config{NoFilter: true}}, fast},
	} {
		tt.run(t)
	}
}

// Every optimisation can be switched off, in the engine and in the device, and
// nothing but speed changes. M2 makes trains of what was cut.
func TestE2EDataWithout(t *testing.T) {
	slow(t)
	all := encap.SegmentOffload | encap.ReceiveOffload | encap.Trains | encap.JoinTCP | encap.JoinUDP | encap.Batches | encap.BriefSleep
	for _, f := range []struct {
		name  string
		f     encap.Feature
		proof func(encap.Stats) bool
	}{
		{"segment offload", encap.SegmentOffload, func(st encap.Stats) bool { return st.TX.Trains == 0 }},
		{"receive offload", encap.ReceiveOffload, func(st encap.Stats) bool { return st.RX.Trains == 0 }},
		{"trains", encap.Trains, fast},
		{"join tcp", encap.JoinTCP, nil},
		{"join udp", encap.JoinUDP, nil},
		{"join", encap.JoinTCP | encap.JoinUDP, func(st encap.Stats) bool { return st.RX.SuperPackets == 0 }},
		{"batches", encap.Batches, func(st encap.Stats) bool { return st.TX.PeakBatch == 1 && st.RX.PeakBatch == 1 && fast(st) }},
		{"brief sleep", encap.BriefSleep, fast},
		{"all", all, func(st encap.Stats) bool { return st.RX.SuperPackets+st.RX.Trains+st.TX.Trains == 0 }},
	} {
		dataTest{f.name, labConfig{Mode: netlab.M2, Engine: encap.Config{Without: f.f}}, f.proof}.run(t)
	}
	for _, o := range []struct {
		name  string
		o     tun.Offloads
		proof func(encap.Stats) bool
	}{
		{"device offloads", tun.AllOffloads, func(st encap.Stats) bool { return st.TX.SuperPackets == 0 }},
		{"uso", tun.USO4 | tun.USO6, fast},
		{"tso", tun.TSO4 | tun.TSO6, nil},
	} {
		dataTest{o.name, labConfig{Mode: netlab.M2, Device: tun.Config{Without: o.o}}, o.proof}.run(t)
	}
	dataTest{"super-packets that fit one message", labConfig{Mode: netlab.M2, Device: tun.Config{FitGSO: true}}, fast}.run(t)
}

// Several engines on one device, and several source ports: flows are spread,
// and each one keeps its order.
func TestE2EDataSpread(t *testing.T) {
	slow(t)
	for _, tt := range []dataTest{
		{"two engines", labConfig{Engines: 2}, fast},
		{"two engines and ports", labConfig{Engines: 2, Mode: netlab.M2, Engine: encap.Config{SourcePorts: 64}}, nil},
		{"ports", labConfig{Mode: netlab.M2, Engine: encap.Config{SourcePorts: 64}}, nil},
		{"ports, outer v6", labConfig{Mode: netlab.M2, Outer6: true, Engine: encap.Config{SourcePorts: 3}}, nil},
		{"one port", labConfig{Dual: true, Engine: encap.Config{SourcePorts: 1}}, nil},
	} {
		tt.run(t)
	}
}

// Super-packets of UDP, made by the application itself.
func TestE2EDataSegmented(t *testing.T) {
	l := startLab(t, labConfig{Mode: netlab.M2})
	pods := [2]place{l.a.podPlace(), l.b.podPlace()}
	hosts := [2]place{l.a.hostPlace(), l.b.hostPlace()}
	for _, v6 := range []bool{false, true} {
		for _, r := range [][2]place{pods, hosts, {hosts[1], pods[0]}} {
			for _, size := range []int{2, 63, 64, 65, 500, 1000, l.OverlayMTU - 48} {
				for _, count := range []int{1, 2, 3, min(64, 65507/size)} {
					if err := segmented(r[0], r[1], v6, size, count); err != nil {
						t.Errorf("%s to %s, v6 %v: %v", r[0].name, r[1].name, v6, err)
					}
				}
			}
		}
	}
	l.a.dropped()
	l.b.dropped()
	l.a.waitStats("UDP super-packets", fast)
}
