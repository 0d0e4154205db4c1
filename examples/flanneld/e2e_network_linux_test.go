package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addIPv6 gives the cluster's Ethernet IPv6, 2001:db8::N, beside IPv4.
func (c *cluster) addIPv6() {
	c.t.Helper()
	router := netip.MustParseAddr("2001:db8::fe")
	c.must(c.wire.AddAddr("br0", netip.PrefixFrom(router, 64)))
	for _, h := range c.hosts {
		b := netip.MustParseAddr("2001:db8::").As16()
		b[15] = h.addr.As4()[3]
		h.addr6 = netip.AddrFrom16(b)
		c.must(h.AddAddr("eth0", netip.PrefixFrom(h.addr6, 64)))
		c.must(h.AddRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), router, "eth0", 0))
	}
}

// TestFamilies: a network of both families, and one of IPv6 alone. Keys, values, subnet
// files, packets.
func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, r := range []struct{ name, config, value, file string }{
		{"dual stack", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`,
			`{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}`,
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=SUBNET6\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"},
		{"IPv6 alone", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`,
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}`,
			"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=SUBNET6\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n"},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, etcdtest.Config{NoV2: true})
			c.addIPv6()
			c.etcd.Put(configKey, r.config)
			var pods []*pod
			for i, h := range c.hosts {
				f := h.start(c.endpoints()).ready()
				pods = append(pods, h.pod(f))
				if i > 0 {
					continue
				}
				if v, _ := c.etcd.Get(subnetsKey + f.Key().String()); v != r.value {
					t.Errorf("%s is %s, want %s", f.Key(), v, r.value)
				}
				checkFile(t, h, r.file, f)
			}
			reach(pods[0], pods[1])
		})
	}
}

// checkFile holds a host's subnet file against want, byte for byte, with the subnets in
// place of SUBNET4 and SUBNET6.
func checkFile(t *testing.T, h *labHost, want string, f subnetenv.File) {
	t.Helper()
	for name, s := range map[string]netip.Prefix{"SUBNET4": f.Subnet, "SUBNET6": f.Subnet6} {
		if s.IsValid() {
			want = strings.ReplaceAll(want, name, netip.PrefixFrom(s.Addr().Next(), s.Bits()).String())
		}
	}
	if text, err := os.ReadFile(h.file); string(text) != want {
		t.Errorf("%s: subnet file\n%s, %v, want\n%s", h.Name(), text, err, want)
	}
}

// TestAlloc: the alloc backend leases a subnet and does nothing else.
func TestAlloc(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, `{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}`)
	h := c.hosts[0]
	p := h.start(c.endpoints())
	f := p.ready()
	checkFile(t, h, "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n", f)
	if v, _ := c.etcd.Get(subnetsKey + f.Key().String()); v != leaseOf(h.addr) {
		t.Errorf("the lease is %s, want %s", v, leaseOf(h.addr))
	}
	h.inside(func() {
		if got := names(t); !slices.Equal(got, []string{"eth0", "lo"}) {
			t.Errorf("interfaces: %v", got)
		}
	})
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestOriginalFlannel: the other host runs a flannel of old, which carries one packet in
// one datagram, has written its lease itself, and decrements the time to live.
func TestOriginalFlannel(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		c := newCluster(t, 2, etcdtest.Config{NoV2: api == 3})
		k, ours, theirs := c.keysOf(api), c.hosts[0], c.hosts[1]
		k.set(configKey, network)
		f := subnetenv.File{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: netip.MustParsePrefix("10.5.201.0/24"), MTU: 1472}
		k.set(subnetsKey+"10.5.201.0-24", `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
		p := ours.start(c.endpoints())
		mine := p.ready()
		if v, _ := k.value(subnetsKey + mine.Key().String()); v != `{"PublicIP":"192.0.2.1","PublicIPv6":null}` {
			t.Errorf("original flannel can't read %s", v)
		}
		old := startOldProxy(theirs, f, ours.addr)
		reach(ours.pod(mine), theirs.pod(f))
		old.stop()
		if old.packets == 0 || old.odd > 0 {
			t.Errorf("%d packets, of which %d do not fill their datagram", old.packets, old.odd)
		}
		if code, _ := p.stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
	})
}

// An oldProxy does what the udp backend of flannel 0.1 to this day does, for one peer.
type oldProxy struct {
	c    *cluster
	tun  *os.File
	sock *net.UDPConn
	peer netip.AddrPort
	wg   sync.WaitGroup
	once sync.Once

	packets, odd int // that have come, of the goroutine that receives; to be read after stop
}

// startOldProxy starts one on a host.
func startOldProxy(h *labHost, f subnetenv.File, peer netip.Addr) *oldProxy {
	h.c.t.Helper()
	o := &oldProxy{c: h.c, peer: netip.AddrPortFrom(peer, 8285)}
	o.sock = openUDP(h.c.t, h.NS, netip.AddrPortFrom(h.addr, 8285))
	h.c.must(h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq("flannel0")
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		o.tun = os.NewFile(uintptr(fd), "/dev/net/tun")
		return nil
	}))
	h.c.t.Cleanup(o.stop)
	link, err := h.Netlink().LinkByName("flannel0")
	h.c.must(err)
	h.c.must(h.Netlink().AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: f.Subnet.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	h.c.must(h.SetMTU("flannel0", f.MTU))
	h.c.must(h.Up("flannel0"))
	h.c.must(h.AddRoute(f.Network, netip.Addr{}, "flannel0", 0))
	o.wg.Go(o.send)
	o.wg.Go(o.receive)
	return o
}

func (o *oldProxy) send() {
	b := make([]byte, 1472)
	for {
		n, err := o.tun.Read(b)
		if err != nil {
			return
		}
		if n >= 20 && b[0]>>4 == 4 && hop(b[:n]) {
			_, _ = o.sock.WriteToUDPAddrPort(b[:n], o.peer) // what is lost is lost
		}
	}
}

func (o *oldProxy) receive() {
	b := make([]byte, 1<<16)
	for {
		n, _, err := o.sock.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		o.packets++
		if n < 20 || n > 1472 || int(binary.BigEndian.Uint16(b[2:])) != n || b[0]>>4 != 4 {
			o.odd++
			continue
		}
		if hop(b[:n]) {
			_, _ = o.tun.Write(b[:n])
		}
	}
}

// hop takes one from the time to live, and reports whether there is some left. The
// checksum follows as in RFC 1624.
func hop(packet []byte) bool {
	if packet[8] <= 1 {
		return false
	}
	packet[8]--
	sum := uint32(binary.BigEndian.Uint16(packet[10:])) + 0x100
	binary.BigEndian.PutUint16(packet[10:], uint16(sum+sum>>16))
	return true
}

func (o *oldProxy) stop() {
	o.once.Do(func() {
		o.tun.Close()
		o.sock.Close()
		o.wg.Wait()
	})
}
