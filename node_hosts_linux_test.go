package flannelkit_test

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease"
	"golang.org/x/sys/unix"
)

const plainNetwork = `{"Network": "10.5.0.0/16"}`

// sniff counts the packets on a link that have an address of the network outside: those
// that should be inside a datagram.
func (c *cluster) sniff(ns *netlab.NS, link string, network netip.Prefix) (count func() int64) {
	c.t.Helper()
	l, err := ns.Netlink().LinkByName(link)
	check(c.t, err)
	const allProtocols = 0x0003 // ETH_P_ALL, linux/if_ether.h
	bigEndian := func(v uint16) uint16 { return v<<8 | v>>8 }
	var fd int
	check(c.t, ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(allProtocols), Ifindex: l.Attrs().Index})
	}))
	check(c.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}))
	var n atomic.Int64
	var stop atomic.Bool
	var done sync.WaitGroup
	done.Go(func() {
		b := make([]byte, 64)
		for !stop.Load() {
			size, from, err := unix.Recvfrom(fd, b, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Protocol != bigEndian(unix.ETH_P_IP) || size < 20 {
				continue
			}
			src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
			if network.Contains(src) || network.Contains(dst) {
				n.Add(1)
			}
		}
	})
	c.t.Cleanup(func() { stop.Store(true); done.Wait(); unix.Close(fd) })
	return n.Load
}

// hasDevice reports whether a host has a device.
func (h *labHost) hasDevice(name string) bool {
	_, err := h.Netlink().LinkByName(name)
	return err == nil
}

// TestHosts is two agents of one network, from Join to Close, with what happens in
// between.
func TestHosts(t *testing.T) {
	c := newCluster(t, false, map[string]string{flannelPrefix: plainNetwork})
	a, b := c.hosts[0], c.hosts[1]
	onA, onB := a.start(true), b.start(true)
	c.meet()
	a.addPods(onA)
	b.addPods(onB)
	if onA[0].MTU != 1472 || onA[0].Public4.String() != "192.0.2.1" || onA[0].Link != "eth0" {
		t.Errorf("host 1: %+v", onA[0])
	}
	addrA, addrB := podAddr(onA[0].Lease.Subnet), podAddr(onB[0].Lease.Subnet)
	c.talk(a.pods[0], b.pods[0], addrB)
	c.talk(b.pods[0], a.pods[0], addrA)
	c.talk(a.NS, b.NS, onB[0].Lease.Subnet.Addr())

	c.loseLease(onA[0], addrA, addrB)
	if !testing.Short() {
		c.restart(onB[0], addrA, addrB, func() { b.stop("close") })
		c.restart(onB[0], addrA, addrB, b.crash)
		c.changeAddress(onB[0], addrB)
	}

	last := b.stop("close")
	if last[0].Ended != "" || !strings.Contains(last[0].Ready, "closed") || !b.hasDevice("flannel0") {
		t.Errorf("closed with KeepDevice: %+v, device %v", last[0], b.hasDevice("flannel0"))
	}
	key := onA[0].Lease.Key.String()
	if _, ok := c.etcd.Get(flannelPrefix + "/subnets/" + key); !ok {
		t.Error("the lease is gone before Release")
	}
	a.stop("release")
	if _, ok := c.etcd.Get(flannelPrefix + "/subnets/" + key); ok || a.hasDevice("flannel0") {
		t.Errorf("released, and in etcd %v, device %v", ok, a.hasDevice("flannel0"))
	}
	if _, ok := c.etcd.Get(flannelPrefix + "/subnets/" + onB[0].Lease.Key.String()); !ok {
		t.Error("Close has removed the lease")
	}
}

// loseLease deletes the lease of host 1 while datagrams go both ways: none is lost.
func (c *cluster) loseLease(own agentState, addrA, addrB netip.Addr) {
	c.t.Helper()
	a, b := c.hosts[0], c.hosts[1]
	key := flannelPrefix + "/subnets/" + own.Lease.Key.String()
	before, _ := c.etcd.Get(key)
	streams := map[string]func() traffic.UDPResult{
		"to":   c.stream(b.pods[0], a.pods[0], addrA, 500, time.Second),
		"from": c.stream(a.pods[0], b.pods[0], addrB, 500, time.Second),
	}
	c.etcd.Delete(key)
	a.wait("the lease is taken again", func(all []agentState) bool { return all[0].Retaken == 1 })
	if after, ok := c.etcd.Get(key); !ok || after != before {
		c.t.Errorf("the lease was %s and is %s", before, after)
	}
	for name, wait := range streams {
		r := wait()
		if missing := r.Lost + r.SendErrors; missing > 0 {
			c.t.Errorf("%d of %d datagrams are missing %s the host whose lease was deleted", missing, r.Sent+r.SendErrors, name)
		}
	}
	if s := b.order("tell")[0]; len(s.Peers) != 1 {
		c.t.Errorf("host 2 has the peers %v", s.Peers)
	}
}

// changeAddress gives host 2 another address on the underlay: both sides follow.
func (c *cluster) changeAddress(own agentState, addrB netip.Addr) {
	c.t.Helper()
	a, b := c.hosts[0], c.hosts[1]
	begin := time.Now()
	check(c.t, b.setAddr("192.0.2.22/24"))
	now := netip.MustParseAddr("192.0.2.22")
	b.wait("it has noticed", func(all []agentState) bool { return all[0].Public4 == now && all[0].Ready == "" })
	noticed := time.Since(begin)
	a.wait("it knows the peer's new address", func(all []agentState) bool {
		return all[0].Peers[own.Lease.Key.String()].PublicIP == now
	})
	c.t.Logf("address changed: noticed after %v, the peer has it after %v", noticed.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	if s := b.order("tell")[0]; s.Lease.Key != own.Lease.Key || s.Lease.Attrs.PublicIP != now {
		c.t.Errorf("the lease is %+v", s.Lease)
	}
	c.talk(a.pods[0], b.pods[0], addrB)
}

// restart ends the agent of host 2 and starts it again, with KeepDevice, while datagrams
// go both ways.
func (c *cluster) restart(own agentState, addrA, addrB netip.Addr, end func()) {
	c.t.Helper()
	a, b := c.hosts[0], c.hosts[1]
	network := netip.MustParsePrefix("10.5.0.0/16")
	leaked, leakedPort := c.sniff(c.wire, "br0", network), c.sniff(c.wire, "port2", network)
	const rate = 500
	streams := map[string]func() traffic.UDPResult{
		"to":   c.stream(a.pods[0], b.pods[0], addrB, rate, 2*time.Second),
		"from": c.stream(b.pods[0], a.pods[0], addrA, rate, 2*time.Second),
	}
	begin := time.Now()
	end()
	stopped := time.Since(begin)
	if !b.hasDevice("flannel0") {
		c.t.Error("the device is gone")
	}
	again := b.start(true)[0]
	c.t.Logf("restart: ended after %v, joined after %v", stopped.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	if again.Lease.Key != own.Lease.Key {
		c.t.Errorf("the subnet was %v and is %v", own.Lease.Key, again.Lease.Key)
	}
	for name, wait := range streams {
		r := wait()
		missing := r.Lost + r.SendErrors // those that were refused on the way are errors of the next ones
		c.t.Logf("restart: %d of %d datagrams missing %s the host: %.2f s of the stream", missing, r.Sent+r.SendErrors, name, float64(missing)/rate)
		if missing > 3*rate/2 { // a second, and the machine's mood
			c.t.Errorf("%d datagrams are missing %s the host that restarted, more than %d", missing, name, 3*rate/2)
		}
	}
	if n := leaked() + leakedPort(); n > 0 {
		c.t.Errorf("%d packets of the network passed the underlay unencapsulated", n)
	}
	if b.hasDevice("flannel1") {
		c.t.Error("there is a second device now")
	}
	c.meet()
}

// crash kills the agent.
func (h *labHost) crash() {
	h.c.t.Helper()
	check(h.c.t, unix.Kill(h.agent.PID(), unix.SIGKILL))
	_ = h.agent.Close() // waits; its error is that the agent was killed
}

// TestHostsLeakWithoutKeep shows that the sniffer of TestHosts can see what it looks for:
// without KeepDevice the network's packets follow the default route.
func TestHostsLeakWithoutKeep(t *testing.T) {
	slow(t)
	c := newCluster(t, false, map[string]string{flannelPrefix: plainNetwork})
	b := c.hosts[1]
	onA, onB := c.hosts[0].start(false), b.start(false)
	c.meet()
	c.hosts[0].addPods(onA)
	b.addPods(onB)
	leaked := c.sniff(c.wire, "br0", netip.MustParsePrefix("10.5.0.0/16"))
	wait := c.stream(b.pods[0], c.hosts[0].pods[0], podAddr(onA[0].Lease.Subnet), 500, 500*time.Millisecond)
	b.stop("close")
	waitFor(t, "a packet leaks", func() bool { return leaked() > 0 })
	wait()
	if b.hasDevice("flannel0") {
		t.Error("the device is left, without KeepDevice")
	}
}

// TestTwoNetworksInOneProcess: two prefixes, two ports, and the end of one does not
// touch the other.
func TestTwoNetworksInOneProcess(t *testing.T) {
	c := newCluster(t, false, map[string]string{
		flannelPrefix: plainNetwork,
		otherPrefix:   `{"Network": "10.6.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}`,
	})
	a, b := c.hosts[0], c.hosts[1]
	onA, onB := a.start(false, flannelPrefix, otherPrefix), b.start(false, flannelPrefix, otherPrefix)
	c.meet()
	a.addPods(onA)
	b.addPods(onB)
	for i, network := range []string{"10.5.0.0/16", "10.6.0.0/16"} {
		if !netip.MustParsePrefix(network).Overlaps(onB[i].Lease.Subnet) {
			t.Errorf("subnet %v in the network %s", onB[i].Lease.Subnet, network)
		}
		c.talk(a.pods[i], b.pods[i], podAddr(onB[i].Lease.Subnet))
		if s := b.order("tell"); s[i].Packets == 0 {
			t.Errorf("nothing came through the network %s: %+v", network, s)
		}
	}
	now := a.order("close first")
	if now[0].Ready == "" || now[1].Ready != "" {
		t.Errorf("the first is closed: ready are %q and %q", now[0].Ready, now[1].Ready)
	}
	if a.hasDevice("flannel0") || !a.hasDevice("flannel1") {
		t.Errorf("the first is closed: the devices are there %v and %v", a.hasDevice("flannel0"), a.hasDevice("flannel1"))
	}
	c.talk(b.pods[1], a.pods[1], podAddr(onA[1].Lease.Subnet))
	a.stop("close")
	b.stop("release")
}

// TestDualStack: IPv6 inside, over a network of IPv4 alone.
func TestDualStack(t *testing.T) {
	netlab.Require(t, netlab.NeedIPv6)
	c := newCluster(t, false, map[string]string{flannelPrefix: `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`})
	a, b := c.hosts[0], c.hosts[1]
	onA, onB := a.start(false), b.start(false)
	c.meet()
	a.addPods(onA)
	b.addPods(onB)
	own := onB[0].Lease
	if !own.Subnet.IsValid() || own.Subnet6.Bits() != 64 || own.Attrs.PublicIP.String() != "192.0.2.2" || own.Attrs.PublicIPv6.IsValid() {
		t.Errorf("lease %+v", own)
	}
	if _, ok := c.etcd.Get(flannelPrefix + "/subnets/" + lease.Key{Subnet: own.Subnet, Subnet6: own.Subnet6}.String()); !ok {
		t.Errorf("etcd does not have %v", own.Key)
	}
	c.talk(a.pods[0], b.pods[0], podAddr(own.Subnet))
	c.talk(a.pods[0], b.pods[0], podAddr(own.Subnet6))
	c.talk(b.NS, a.pods[0], podAddr(onA[0].Lease.Subnet6))
	a.stop("close")
	b.stop("close")
}

// TestIPv6Only: no IPv4 anywhere.
func TestIPv6Only(t *testing.T) {
	netlab.Require(t, netlab.NeedIPv6)
	c := newCluster(t, true, map[string]string{flannelPrefix: `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`})
	a, b := c.hosts[0], c.hosts[1]
	onA, onB := a.start(false), b.start(false)
	c.meet()
	a.addPods(onA)
	b.addPods(onB)
	own := onB[0].Lease
	if own.Subnet.IsValid() || own.Attrs.PublicIP.IsValid() || own.Attrs.PublicIPv6.String() != "2001:db8::2" || onB[0].MTU != 1452 {
		t.Errorf("lease %+v, MTU %d", own, onB[0].MTU)
	}
	c.talk(a.pods[0], b.pods[0], podAddr(own.Subnet6))
	c.talk(b.NS, a.pods[0], podAddr(onA[0].Lease.Subnet6))
	a.stop("close")
	b.stop("close")
}
