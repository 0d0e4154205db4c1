package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/memory"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// namespace returns an empty network namespace.
func namespace(t *testing.T, needs ...netlab.Need) *netlab.NS {
	t.Helper()
	ns, err := netlab.ForTest(t, needs...).Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// addTun makes a TUN device with an address; the file that has it open, or nil for a
// persistent one that nobody has.
func addTun(t *testing.T, name string, addr string, open bool) *os.File {
	t.Helper()
	dev := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, Queues: 1}
	if err := netlink.LinkAdd(dev); err != nil {
		t.Fatal(err)
	}
	ip, ipNet, err := net.ParseCIDR(addr)
	if err != nil {
		t.Fatal(err)
	}
	ipNet.IP = ip
	if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: ipNet}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		t.Fatal(err)
	}
	f := dev.Fds[0]
	if open {
		return f
	}
	f.Close()
	return nil
}

// names returns the namespace's interfaces.
func names(t *testing.T) (all []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, l.Attrs().Name)
	}
	slices.Sort(all)
	return all
}

func holes(t *testing.T) (all []string) {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Type: unix.RTN_BLACKHOLE}, netlink.RT_FILTER_TYPE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		all = append(all, r.Dst.String())
	}
	slices.Sort(all)
	return all
}

func noRules(subnetenv.File) error { return nil }

// TestCleanup removes what a daemon has left, and nothing else.
func TestCleanup(t *testing.T) {
	ns := namespace(t, netlab.NeedTUN)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ns.Do(func() error {
		n := newFakeNode()
		o := parse(t, nil, "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
		must(newSubnetFile(o.subnetFile, discardLog()).keep(n, true))
		addTun(t, "overlay0", "10.5.34.0/32", false) // by its address
		addTun(t, "flannel7", "10.9.9.9/32", false)  // by its name
		addTun(t, "vpn0", "10.8.0.1/24", false)      // somebody else's
		busy := addTun(t, "flannel1", "10.6.1.0/32", true)
		defer busy.Close()
		must(addHoles(n.Lease().Key.Prefixes()))
		must(addHoles(n.Lease().Key.Prefixes())) // again, as every few seconds
		must(netlink.RouteAdd(&netlink.Route{Dst: rtnl.IPNet(netip.MustParsePrefix("10.99.0.0/16")), Type: unix.RTN_BLACKHOLE}))
		if got := holes(t); !slices.Equal(got, []string{"10.5.34.0/24", "10.99.0.0/16"}) {
			t.Fatalf("blackhole routes before: %v", got)
		}

		var log lockedBuffer
		must(cleanHost(o, newLogger(&log, o), noRules))
		if got, want := names(t), []string{"flannel1", "lo", "vpn0"}; !slices.Equal(got, want) {
			t.Errorf("interfaces left: %v, want %v", got, want)
		}
		if got := holes(t); !slices.Equal(got, []string{"10.99.0.0/16"}) {
			t.Errorf("blackhole routes left: %v, want the administrator's", got)
		}
		if _, err := os.Stat(o.subnetFile); !os.IsNotExist(err) {
			t.Errorf("the subnet file is still there: %v", err)
		}
		for _, what := range []string{"overlay0", "flannel7", "10.5.34.0/24", o.subnetFile} {
			if n := strings.Count(log.String(), "name="+what+"\n"); n != 1 {
				t.Errorf("%d lines for %s, want 1:\n%s", n, what, &log)
			}
		}
		log = lockedBuffer{}
		must(cleanHost(o, newLogger(&log, o), noRules))
		if log.String() != "" {
			t.Errorf("the second time removed something: %s", &log)
		}
		return nil
	}))
}

// TestCleanupLeavesARunningDaemonAlone: its device is open, so nothing is removed.
func TestCleanupLeavesARunningDaemonAlone(t *testing.T) {
	ns := namespace(t, netlab.NeedTUN)
	err := ns.Do(func() error {
		n := newFakeNode()
		o := parse(t, nil, "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
		if err := newSubnetFile(o.subnetFile, discardLog()).keep(n, true); err != nil {
			t.Fatal(err)
		}
		busy := addTun(t, "flannel0", "10.5.34.0/32", true)
		defer busy.Close()
		if err := addHoles(n.Lease().Key.Prefixes()); err != nil {
			t.Fatal(err)
		}
		err := cleanHost(o, discardLog(), func(subnetenv.File) error { t.Error("rules removed"); return nil })
		if err == nil || !strings.Contains(err.Error(), "flannel0 is in use (stop flanneld first)") {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(o.subnetFile); err != nil {
			t.Error(err)
		}
		if got := holes(t); len(got) != 1 {
			t.Errorf("blackhole routes: %v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRelease gives back this host's lease, and nobody else's.
func TestRelease(t *testing.T) {
	for _, c := range []struct {
		what, value string
		ttl         bool
		args        string
		left        bool
		err         string
	}{
		{"ours", `{"PublicIP":"127.0.0.1"}`, true, "", false, ""},
		{"ours by -public-ip", `{"PublicIP":"198.51.100.7"}`, true, "-public-ip=198.51.100.7", false, ""},
		{"another's", `{"PublicIP":"198.51.100.7"}`, true, "", true, "198.51.100.7"},
		{"a reservation", `{"PublicIP":"127.0.0.1"}`, false, "", true, ""},
		{"unreadable", `{}`, true, "", true, "by hand"},
	} {
		store := memory.New(memory.Config{Network: `{"Network":"10.5.0.0/16"}`})
		key := lease.Key{Subnet: netip.MustParsePrefix("10.5.34.0/24")}
		ttl := lease.DefaultTTL
		if !c.ttl {
			ttl = 0
		}
		for _, k := range []string{key.String(), "10.5.35.0-24"} {
			if _, err := store.Create(t.Context(), k, []byte(c.value), ttl); err != nil {
				t.Fatal(err)
			}
		}
		err := release(t.Context(), parse(t, nil, strings.Fields(c.args)...), discardLog(), store, key)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.what, err, c.err)
		}
		all, err := store.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if left := len(all.Entries) == 2; left != c.left {
			t.Errorf("%s: left: %v", c.what, left)
		}
		if err := release(t.Context(), parse(t, nil), discardLog(), store, lease.Key{Subnet: netip.MustParsePrefix("10.5.36.0/24")}); err != nil {
			t.Errorf("no such lease: %v", err)
		}
	}
}
