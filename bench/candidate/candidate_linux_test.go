package candidate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// newBed builds two hosts for a test.
func newBed(t *testing.T) Bed {
	t.Helper()
	netlab.Require(t, netlab.NeedTUN, netlab.NeedVXLAN)
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	hosts, err := lab.TwoHosts(netlab.TwoHostsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return Bed{Hosts: hosts}
}

// up sets candidates up, and takes them down again at the end unless the test has. Those that can't run here are left out.
func up(t *testing.T, bed Bed, specs ...string) []Candidate {
	t.Helper()
	all, err := New(specs)
	if err != nil {
		t.Fatal(err)
	}
	var running []Candidate
	for i, c := range all {
		bed.Index = i
		err := c.Up(t.Context(), bed)
		t.Cleanup(func() { down(t, c) }) // before the bed's end
		switch {
		case errors.Is(err, ErrUnavailable):
			t.Logf("%s: %v", c.Name(), err)
			down(t, c)
		case err != nil:
			t.Fatalf("%s: %v", c.Name(), err)
		default:
			running = append(running, c)
		}
	}
	return running
}

func down(t *testing.T, c Candidate) {
	t.Helper()
	if err := c.Down(); err != nil {
		t.Errorf("%s: down: %v", c.Name(), err)
	}
}

// ping tries both directions.
func ping(t *testing.T, bed Bed, c Candidate) {
	t.Helper()
	a, b := c.Addrs()
	for _, way := range []struct {
		from     *netlab.Host
		src, dst netip.Addr
	}{{bed.Hosts.HostA, a, b}, {bed.Hosts.HostB, b, a}} {
		_, err := traffic.Ping(t.Context(), traffic.In(way.from.NS), traffic.PingConfig{
			Addr: way.dst, Source: way.src, Count: 2, Interval: time.Millisecond, Size: c.MTU() - 28,
		})
		if err != nil {
			t.Errorf("%s: %v to %v: %v", c.Name(), way.src, way.dst, err)
		}
	}
}

// own are the default candidates that this project makes, with every option of udp and vxlan beside them.
func own() []string {
	specs := []string{"native", "native-mtu", "vxlan", "udp"}
	for _, b := range backends() {
		specs = append(specs, b.name)
	}
	for _, k := range kinds() {
		for _, o := range k.options {
			value := strconv.Itoa(min(2, o.max))
			if o.words != nil {
				value = o.words[0]
			}
			if k.name == "udp" || k.name == "vxlan" {
				specs = append(specs, fmt.Sprintf("%s:%s=%s", k.name, o.name, value))
			}
		}
	}
	return specs
}

// TestAllAtOnce has everything up on one bed, twice in a row, and finds nothing left of it in between and afterwards.
func TestAllAtOnce(t *testing.T) {
	bed := newBed(t)
	before := state(t, bed)
	for round := range 2 {
		candidates := up(t, bed, own()...)
		seen := map[netip.Addr]string{}
		var pids []int
		for _, c := range candidates {
			ping(t, bed, c)
			a, b := c.Addrs()
			for _, addr := range []netip.Addr{a, b} {
				if other := seen[addr]; other != "" {
					t.Errorf("%s and %s both have %v", c.Name(), other, addr)
				}
				seen[addr] = c.Name()
			}
			if mtu := c.MTU(); mtu < 1400 || mtu > 1500 {
				t.Errorf("%s: MTU %d", c.Name(), mtu)
			}
			if _, err := c.Stats(t.Context()); err != nil {
				t.Errorf("%s: %v", c.Name(), err)
			}
			pids = append(pids, c.PIDs()...)
		}
		if len(pids) == 0 {
			t.Error("no processes")
		}
		for _, c := range candidates {
			down(t, c)
		}
		for _, pid := range pids {
			if _, err := os.Stat(fmt.Sprint("/proc/", pid)); err == nil {
				t.Errorf("round %d: process %d is left", round, pid)
			}
		}
		if after := state(t, bed); !slices.Equal(after, before) {
			t.Errorf("round %d: the hosts have\n%s\nand had\n%s", round, strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
}

// state lists links, addresses and routes of both hosts.
func state(t *testing.T, bed Bed) []string {
	t.Helper()
	var all []string
	for _, h := range []*netlab.Host{bed.Hosts.HostA, bed.Hosts.HostB} {
		nl := h.Netlink()
		links, err := nl.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			addrs, err := nl.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprint(h.Name(), l.Attrs().Name, addrs))
		}
		routes, err := nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			all = append(all, fmt.Sprint(h.Name(), r))
		}
	}
	return all
}

// TestPortOfFirst: the first udp is where firewalls and people expect it.
func TestPortOfFirst(t *testing.T) {
	bed := newBed(t)
	up(t, bed, "native", "udp:gso=off", "udp")
	var ports []int
	for _, port := range []int{8285, 9000 + 3} {
		err := bed.Hosts.HostA.Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: bed.Hosts.HostA.Addr4.Addr().AsSlice(), Port: port})
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if err != nil {
			ports = append(ports, port)
		}
	}
	if len(ports) != 2 {
		t.Errorf("taken ports: %v", ports)
	}
}

// TestVXLANChecksum: the device without checksums is one, and the yardstick has them.
func TestVXLANChecksum(t *testing.T) {
	bed := newBed(t)
	candidates := up(t, bed, "vxlan", "vxlan:csum=off")
	for i, want := range []bool{true, false} {
		for _, h := range []*netlab.Host{bed.Hosts.HostA, bed.Hosts.HostB} {
			l, err := h.Netlink().LinkByName(fmt.Sprint("vxlan", i+1))
			if err != nil {
				t.Fatal(err)
			}
			if got := l.(*netlink.Vxlan).UDPCSum; got != want {
				t.Errorf("%s on %s: checksum %v", candidates[i].Name(), h.Name(), got)
			}
		}
	}
}

// TestNativeMTU: TCP's segments are as large as through udp.
func TestNativeMTU(t *testing.T) {
	bed := newBed(t)
	for _, c := range up(t, bed, "native-mtu", "udp") {
		a, b := c.Addrs()
		var ln net.Listener
		err := bed.Hosts.HostB.Do(func() (err error) {
			ln, err = net.Listen("tcp4", netip.AddrPortFrom(b, 0).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan net.Conn, 1)
		go func() {
			if c, err := ln.Accept(); err == nil {
				accepted <- c
			}
			close(accepted)
		}()
		var conn net.Conn
		err = bed.Hosts.HostA.Do(func() (err error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.AsSlice()}, Timeout: 10 * time.Second}
			conn, err = d.DialContext(t.Context(), "tcp4", ln.Addr().String())
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", c.Name(), errors.Join(err, ln.Close()))
		}
		far := <-accepted
		for _, end := range []net.Conn{conn, far} {
			if got := mss(t, end); got != 1472-40-12 { // IP and TCP, timestamps
				t.Errorf("%s: segments of %d bytes", c.Name(), got)
			}
			_ = end.Close()
		}
		_ = ln.Close()
	}
}

// TestCancelled: Up ends with its context, and Down takes back what there is by then.
func TestCancelled(t *testing.T) {
	bed := newBed(t)
	before := state(t, bed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all, err := New(own())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range all {
		bed.Index = i
		_ = c.Up(ctx, bed) // what does not wait for anything may well succeed
		down(t, c)
		down(t, c)
	}
	if after := state(t, bed); !slices.Equal(after, before) {
		t.Errorf("the hosts have\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}
