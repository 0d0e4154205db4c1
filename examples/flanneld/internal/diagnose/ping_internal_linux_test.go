package diagnose

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// TestPingTrouble: what peers have that can't be reached, or not with large packets. All
// are asked at once, since what is waited for are answers that never come.
func TestPingTrouble(t *testing.T) {
	t.Parallel()
	const well = "" // of a peer that has nothing
	dead := func(c *cluster) error { return c.sw.Down("p2") }
	hole := func(c *cluster) error { return c.sw.SetMTU("p2", 1400) } // and nobody is told
	cases := []struct {
		name, families, part string
		breakIt              func(c *cluster) error
		problems             []string
		first, second        string // what is wrong with the peers
	}{
		{"dead", "4", `{"Type":"udp"}`, dead, []string{"error peer 10.5.2.0/24: no answer from 10.5.2.0 at 192.0.2.2: nothing gets through"}, "no answer", well},
		{"dead", "46", `{"Type":"vxlan"}`, dead, []string{
			"error peer 10.5.2.0/24: no answer from 10.5.2.0 at 192.0.2.2", "error peer 10.5.2.0/24: no answer from fd00:5:2:: at 192.0.2.2",
		}, "IPv6: no answer", well},
		{"hole", "4", `{"Type":"udp"}`, hole, []string{"error peer 10.5.2.0/24: small packets get through, but none of 1472 bytes"}, "small packets", well},
		{"hole", "4", `{"Type":"vxlan"}`, hole, []string{"error peer 10.5.2.0/24: small packets get through, but none of 1450 bytes"}, "small packets", well},
		{"hole", "6", `{"Type":"vxlan"}`, hole, []string{"error peer fd00:5:2::/48: small packets get through, but none of 1430 bytes"}, "small packets", well},
		{"hole", "4", `{"Type":"host-gw"}`, hole, []string{"error peer 10.5.2.0/24: small packets get through, but none of 1500 bytes"}, "small packets", well},
		{"no bridge", "4", `{"Type":"host-gw"}`, func(c *cluster) error { return c.hosts[1].DelLink("docker0") }, nil, "which says nothing", well},
		{"no bridge anywhere", "4", `{"Type":"host-gw"}`, func(c *cluster) error {
			return errors.Join(c.hosts[1].DelLink("docker0"), c.hosts[2].DelLink("docker0"))
		}, []string{"warning ping: none of 2 peers has answered"}, "which says nothing", "which says nothing"},
	}
	reports := make([]*report.Report, len(cases))
	var all sync.WaitGroup
	for i, c := range cases {
		cl := newCluster(t, 3, c.families, c.part)
		check(t, c.breakIt(cl))
		reports[i] = cl.hosts[0].report()
		all.Go(func() { cl.hosts[0].ping(reports[i]) })
	}
	all.Wait()
	for i, c := range cases {
		t.Run(c.name+" "+c.families+c.part, func(t *testing.T) {
			wantProblems(t, reports[i].Problems, c.problems...)
			for j, want := range []string{c.first, c.second} {
				p := reports[i].Peers[j].Ping
				if p == nil {
					t.Fatalf("peer %d was not asked", j)
				}
				if answers := !strings.Contains(want, "no answer") && !strings.Contains(want, "nothing"); answers != (p.RTT > 0) {
					t.Errorf("peer %d: RTT %v", j, p.RTT)
				}
				if p.Full != (want == well) || !strings.Contains(p.Error, want) || want == well && p.Error != "" {
					t.Errorf("peer %d: %+v, want %q", j, p, want)
				}
			}
		})
	}
}

// TestPingMTU: the way out itself takes less.
func TestPingMTU(t *testing.T) {
	t.Parallel()
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	h.stopKeeping()
	check(t, h.SetMTU("flannel.1", 1300))
	wantProblems(t, h.ping(h.report()).Problems, "error peer 10.5.2.0/24: packets of 1450 bytes, as containers send, do not leave this host")
}

// TestPingMany asks a thousand peers, of which one is there: it takes no longer than
// for a few, and ends with its context.
func TestPingMany(t *testing.T) {
	h := newCluster(t, 2, "4", `{"Type":"udp"}`).hosts[0]
	r := h.report()
	for i := range 1000 {
		r.Peers = append(r.Peers, report.Peer{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(10 + i/100), byte(i%100) * 2}), 31), PublicIP: netip.MustParseAddr("192.0.2.99"),
		})
	}
	h.ping(r)
	descriptors := openFiles(t)
	if p := r.Peers[0].Ping; p == nil || !p.Full {
		t.Errorf("the living one: %+v", p)
	}
	want := slices.Repeat([]string{"no answer from 10.5.10."}, mostOfAKind)
	wantProblems(t, r.Problems, append(want, "error peer: 990 more from which nothing comes back")...)
	if p := r.Peers[1000].Ping; p == nil || p.Error == "" {
		t.Errorf("the last one: %+v", p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Problems = nil
	check(t, h.Do(func() error { Ping(ctx, r); return nil }))
	wantProblems(t, r.Problems)
	if p := r.Peers[0].Ping; p == nil || !strings.Contains(p.Error, "before the time was up") {
		t.Errorf("not asked: %+v", p)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	check(t, h.Do(func() error { Ping(ctx, r); return nil }))
	wantProblems(t, r.Problems)
	if after := openFiles(t); after > descriptors {
		t.Errorf("%d descriptors are open, %d were before", after, descriptors)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(list)
}

// TestOrdinaryUser: without privileges it works where the kernel allows echo requests,
// says so where it does not, and the host is looked at all the same.
func TestOrdinaryUser(t *testing.T) {
	h := newCluster(t, 2, "4", `{"Type":"vxlan"}`).hosts[0]
	check(t, h.Sysctl("net/ipv4/ping_group_range", "1 0"))
	r := h.report()
	h.powerless(func() { Ping(t.Context(), r) })
	wantProblems(t, r.Problems, "warning ping: peers can't be asked: diagnose: ping: open a socket for echo requests: operation not permitted")
	check(t, h.Sysctl("net/ipv4/ping_group_range", "0 2147483647"), h.Sysctl("net/ipv4/conf/eth0/forwarding", "1"))
	r = h.report()
	h.powerless(func() {
		Ping(t.Context(), r)
		look(t.Context(), r, paths{dockerConfig: h.conf})
	})
	wantProblems(t, r.Problems)
	if p := r.Peers[0].Ping; p == nil || p.RTT == 0 || !p.Full || p.Error != "" {
		t.Errorf("ping: %+v", p)
	}
	if len(r.Bridges) != 1 || r.Host.DeviceMTU != 1450 {
		t.Errorf("bridges %+v, device of MTU %d", r.Bridges, r.Host.DeviceMTU)
	}
}

// powerless runs fn on the host, in a thread that has lost all capabilities and ends
// with it.
func (h *labHost) powerless(fn func()) {
	h.c.t.Helper()
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		ended <- func() error {
			ns, err := netns.GetFromPath(h.Path())
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			fn()
			return nil
		}()
	}()
	check(h.c.t, <-ended)
}
