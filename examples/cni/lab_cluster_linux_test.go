package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flannelkit/flannelkit/internal/cnitest"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/vishvananda/netlink"
)

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// A reference is a set of plugins to delegate to, and the CNI version that they know.
type reference struct {
	name, dir, version string
}

// installed is the system's: Debian 12 has 1.1.1.
func installed(t *testing.T) reference {
	t.Helper()
	return reference{"installed", cnitest.Installed(t, "bridge", "host-local", "portmap"), "1.0.0"}
}

// pinned is that of internal/cnitools.
func pinned(t *testing.T) reference {
	t.Helper()
	return reference{"pinned", built(t).Tools(t), "1.1.0"}
}

// conflist is the configuration of a network as kube-flannel has it: version, name and
// nothing that flannel does not fill in; more goes into the plugin's object.
func conflist(version, name, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, conf("", "", more))
}

// conf is the plugin's object alone, as a runtime hands it to the plugin.
func conf(version, name, more string) string {
	s := `{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}`
	if version != "" {
		s += fmt.Sprintf(`,"cniVersion":%q,"name":%q`, version, name)
	}
	return s + more + "}"
}

// A cluster is machines on one Ethernet, with an etcd that all of them reach.
type cluster struct {
	t        *testing.T
	lab      *netlab.Lab
	etcd     *etcdtest.Server
	machines []*machine
}

// newLab is a lab for machines alone.
func newLab(t *testing.T) *netlab.Lab {
	t.Helper()
	return netlab.ForTest(t, netlab.NeedTUN)
}

// newCluster makes a cluster of two. Both have the reference's plugins, and addresses of
// both families on the wire: 192.0.2.N and 2001:db8::N.
func newCluster(t *testing.T, ref reference, config string) *cluster {
	t.Helper()
	c := &cluster{t: t, lab: newLab(t)}
	wire, err := c.lab.Namespace("wire")
	c.must(err)
	for i := range 2 {
		m := newMachine(t, c.lab, fmt.Sprintf("machine%d", i+1), ref.dir)
		port := fmt.Sprintf("port%d", i+1)
		m.addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		c.must(c.lab.Veth(m.NS, "eth0", wire, port, 1500))
		c.must(m.AddAddr("eth0", netip.PrefixFrom(m.addr, 24)))
		c.must(m.AddAddr("eth0", netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i+1))))
		c.must(m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.254"), "eth0", 0))
		c.must(m.AddRoute(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8::fe"), "eth0", 0))
		c.machines = append(c.machines, m)
	}
	c.must(wire.Bridge("br0", "port1", "port2"))
	c.must(wire.AddAddr("br0", netip.MustParsePrefix("192.0.2.254/24")))
	c.etcd = etcdtest.Start(t, etcdtest.Config{Namespace: wire, Listen: netip.MustParseAddr("192.0.2.254")})
	c.etcd.Put("/coreos.com/network/config", config)
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// A daemon is a flanneld that runs.
type daemon struct {
	*netlab.Process
	m   *machine
	log *bytes.Buffer
}

// flanneld starts the daemon on a machine and waits until it says that it is ready. It
// masquerades itself, as in every cluster that wants pods to see each other's addresses:
// else the plugin tells bridge to, which leaves nothing but the machine's own subnet out.
func (c *cluster) flanneld(m *machine) (*daemon, subnetenv.File) {
	c.t.Helper()
	path := filepath.Join(m.root, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	c.must(err)
	defer os.Remove(path)
	defer conn.Close()

	d := &daemon{m: m, log: new(bytes.Buffer)}
	cmd := m.command([]string{"NOTIFY_SOCKET=" + path}, built(c.t).Program(c.t, "examples/flanneld", "flanneld"), "-etcd-endpoints="+c.etcd.Endpoint(), "-iface=eth0", "-ip-masq")
	cmd.Stdout, cmd.Stderr = d.log, d.log
	d.Process, err = m.Start(cmd)
	c.must(err)
	c.t.Cleanup(func() {
		d.kill()
		if c.t.Failed() {
			c.t.Logf("%s: flanneld:\n%s", m.Name(), d.log) // nobody writes there any more
		}
	})
	ended := context.AfterFunc(contextOf(d.Process), func() { conn.SetReadDeadline(time.Now()) })
	defer ended()
	c.must(conn.SetReadDeadline(time.Now().Add(patience)))
	for b := make([]byte, 4096); ; {
		n, err := conn.Read(b)
		if err != nil {
			c.t.Fatalf("%s: flanneld never said READY=1: %v", m.Name(), err)
		}
		if strings.HasPrefix(string(b[:n]), "READY=1") {
			break
		}
	}
	f, err := subnetenv.Read(m.file(subnetFile))
	c.must(err)
	return d, f
}

// contextOf ends with a process.
func contextOf(p *netlab.Process) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_ = p.Wait() // how it ended is for those who stop it
	}()
	return ctx
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	_ = d.Signal(syscall.SIGKILL) // an error if it has ended
	_ = d.Wait()
}

// both starts flanneld on both machines.
func (c *cluster) both() (files [2]subnetenv.File) {
	c.t.Helper()
	for i, m := range c.machines {
		_, files[i] = c.flanneld(m)
	}
	return files
}

// A pod is a namespace with what ADD gave it.
type pod struct {
	*netlab.NS
	m      *machine
	name   string
	result *types100.Result
	addrs  []netip.Addr
}

// add makes a pod and adds it to the network.
func (m *machine) add(network, name string) *pod {
	m.t.Helper()
	p := &pod{NS: m.pod(name), m: m, name: name}
	p.read(m.succeed("add", network, name))
	return p
}

// read takes the result of an ADD.
func (p *pod) read(text string) {
	p.m.t.Helper()
	p.result = new(types100.Result)
	if err := json.Unmarshal([]byte(text), p.result); err != nil {
		p.m.t.Fatalf("%s: ADD says %q: %v", p.Name(), text, err)
	}
	for _, ip := range p.result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		p.addrs = append(p.addrs, addr.Unmap())
	}
}

// check compares the pod with what flannel says of the machine: addresses of its subnets
// that are in the result and on eth0, the MTU, and the ways to the network.
func (p *pod) check(f subnetenv.File) {
	t := p.m.t
	t.Helper()
	link, err := p.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().MTU; got != f.MTU {
		t.Errorf("%s: the MTU of eth0 is %d, want %d", p.Name(), got, f.MTU)
	}
	i := 0
	for _, s := range []struct {
		family          int
		subnet, network netip.Prefix
	}{{netlink.FAMILY_V4, f.Subnet, f.Network}, {netlink.FAMILY_V6, f.Subnet6, f.Network6}} {
		if !s.subnet.IsValid() {
			continue
		}
		if i == len(p.addrs) || !s.subnet.Contains(p.addrs[i]) {
			t.Fatalf("%s: the addresses are %v, and one of %s is missing", p.Name(), p.addrs, s.subnet)
		}
		want := netip.PrefixFrom(p.addrs[i], s.subnet.Bits()).String()
		addrs, err := p.Netlink().AddrList(link, s.family)
		if err != nil || len(addrs) == 0 || addrs[0].IPNet.String() != want {
			t.Errorf("%s: eth0 has %v (%v), want %s first", p.Name(), addrs, err, want)
		}
		gateway := s.subnet.Masked().Addr().Next()
		p.checkRoutes(link, s.family, gateway, s.network.Masked())
		i++
	}
	if i != len(p.addrs) {
		t.Errorf("%s: the addresses are %v, want %d", p.Name(), p.addrs, i)
	}
}

// checkRoutes wants ways to the network and to all else by the gateway.
func (p *pod) checkRoutes(link netlink.Link, family int, gateway netip.Addr, network netip.Prefix) {
	t := p.m.t
	t.Helper()
	routes, err := p.Netlink().RouteList(link, family)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, r := range routes {
		if gw, _ := netip.AddrFromSlice(r.Gw); gw.Unmap() != gateway {
			continue
		}
		dst := "default"
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				dst = r.Dst.String()
			}
		}
		found[dst] = true
	}
	for _, dst := range []string{network.String(), "default"} {
		if !found[dst] {
			t.Errorf("%s: no route to %s by %s: %v", p.Name(), dst, gateway, routes)
		}
	}
}

// reach checks that two pods reach each other, by ping and by TCP, and that each sees the
// address that the other has.
func reach(a, b *pod) {
	a.m.t.Helper()
	for i := range a.addrs {
		a.ping(i, b)
		b.ping(i, a)
		a.dial(i, b)
		b.dial(i, a)
	}
}

// ping asks until an answer comes.
func (p *pod) ping(i int, to *pod) {
	p.m.t.Helper()
	ctx, cancel := context.WithTimeout(p.m.t.Context(), patience)
	defer cancel()
	for {
		_, err := traffic.Ping(ctx, traffic.In[*netlab.Process](p.NS), traffic.PingConfig{Addr: to.addrs[i], Source: p.addrs[i], Count: 2, Interval: time.Millisecond, Timeout: 300 * time.Millisecond})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			p.m.t.Fatalf("no answer from %s %s to %s %s: %v", to.Name(), to.addrs[i], p.Name(), p.addrs[i], err)
		}
	}
}

// dial sends more than a window of TCP, which comes back.
func (p *pod) dial(i int, to *pod) {
	t := p.m.t
	t.Helper()
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(to.addrs[i].String(), "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var echo sync.WaitGroup
	defer echo.Wait()
	echo.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if got := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != p.addrs[i] {
			t.Errorf("%s sees %s come as %s, not as %s", to.Name(), p.Name(), got, p.addrs[i])
		}
		_, _ = io.Copy(conn, conn) // the other side counts
	})
	defer l.Close() // before the wait
	var conn net.Conn
	err = p.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: patience}).Dial("tcp", l.Addr().String())
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", p.Name(), err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("0123456789abcde\n"), 16<<10)
	echo.Go(func() { _, _ = conn.Write(sent) })
	got := make([]byte, len(sent))
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s to %s: %v, or not what was sent", p.Name(), to.Name(), err)
	}
}
