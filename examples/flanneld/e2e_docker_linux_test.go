package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/flannelkit/flannelkit/internal/dockertest"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// TestDocker is what flannel is there for: two hosts with Docker engines that have the
// options which flanneld wrote, and containers that reach each other, the world, and are
// reached. Then engines and daemons restart under them.
func TestDocker(t *testing.T) {
	t.Parallel()
	dockertest.Require(t)
	for _, v := range []struct {
		name, config string
		mtu          int
		port, head   int // of its packets: the UDP port, and what is between UDP's head and the packet inside
		keep         []string
	}{
		{"udp", dockerUDP, 1472, 7890, 0, []string{"-keep-device"}},
		{"vxlan", dockerVXLAN, 1450, 8889, 8 + 14, nil},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			netlab.Require(t, netlab.NeedVXLAN)
			c := newCluster(t, 2, etcdtest.Config{NoV2: true})
			c.etcd.Put(configKey, v.config)
			all := newDockerHosts(t, c, nil, v.keep)
			a, b := all[0], all[1]
			a.own = append(a.own, "--live-restore")
			for _, h := range all {
				if h.file.MTU != v.mtu {
					t.Errorf("%s: the MTU is %d, want %d", h.Name(), h.file.MTU, v.mtu)
				}
				h.startEngine()
			}
			for _, h := range all {
				h.engine.Ready()
				h.forbids("at its start")
				h.startWeb()
			}
			l := newLine(a, b)
			full := c.tap(a.sorter(v.port, v.head))
			for _, p := range [][2]*dockerHost{{a, b}, {b, a}} {
				checkPath(p[0], p[1])
				checkBulk(p[0], p[1])
				checkPorts(p[0], p[1])
				checkWorld(p[0])
			}
			// Would there be a fragment, FLANNEL_MTU would be too large, and without a full
			// one too small, or the test wrong. A packet bare would come from a container
			// that is masqueraded by nobody.
			if f, n, bare := full.count("full"), full.count("fragment"), full.count("bare"); f < 2*3 || n > 0 || bare > 0 {
				t.Errorf("on the Ethernet were %d full packets, %d fragments, %d packets of the overlay not inside others", f, n, bare)
			}
			l.goesOn("before anything restarts")
			restartDaemons(a, b, l, v.name == "vxlan")
			restartEngines(a, b, l)
			withoutRules(a, b)
		})
	}
}

// checkPath checks that packets of all lengths get from a container on one host to one
// on the other and back, with their addresses as they are.
func checkPath(from, to *dockerHost) {
	t := from.c.t
	t.Helper()
	own, peer := from.web.Addr(), to.web.Addr()
	if !from.file.Subnet.Contains(own) || !to.file.Subnet.Contains(peer) || from.file.Subnet == to.file.Subnet {
		t.Errorf("containers have %v of %v and %v of %v", own, from.file.Subnet, peer, to.file.Subnet)
	}
	if got := from.web.Exec("cat", "/sys/class/net/eth0/mtu"); got != strconv.Itoa(from.file.MTU) {
		t.Errorf("%s: eth0 in a container has the MTU %s, want %d", from.Name(), got, from.file.MTU)
	}
	// It also waits for the peers to know of each other. Without flanneld's rules it would
	// wait in vain (FORWARD DROP), and with a rule too many see another address.
	if who := from.seenBy(to.inner()); who != own.String() {
		t.Errorf("%s: the server sees %s, which is %s", to.Name(), who, own)
	}
	const heads = 20 + 8
	for _, size := range []int{56, from.file.MTU - heads, 20000} {
		// ping sets DF (raw sockets do, ip(7)), so one byte over the MTU would be refused.
		r := from.web.Try("ping", "-A", "-c", "3", "-w", "10", "-s", strconv.Itoa(size), peer.String())
		if r.Code != 0 || !strings.Contains(r.Stdout, " 0% packet loss") {
			t.Errorf("%s: ping of %d bytes: %+v", from.Name(), size, r)
		}
	}
	// From the host itself, which has two addresses: the overlay's is the right one.
	who, err := netip.ParseAddr(from.seenByHost(to.inner()))
	if err != nil || !from.file.Subnet.Contains(who) {
		t.Errorf("%s: the server sees its host as %v %v, not in %v", to.Name(), who, err, from.file.Subnet)
	}
}

// checkBulk checks that megabytes arrive as they were sent, by HTTP and by TCP alone.
func checkBulk(from, to *dockerHost) {
	t := from.c.t
	t.Helper()
	blob, err := os.ReadFile(from.data + "/blob")
	from.c.must(err)
	sum := sha256.Sum256(blob)
	want := hex.EncodeToString(sum[:]) + "  -"
	peer := to.web.Addr()
	if got := from.web.Exec("sh", "-c", "wget -q -O - "+webURL(to.inner(), "blob")+" | sha256sum"); got != want {
		t.Errorf("%s: HTTP brings %s, want %s", from.Name(), got, want)
	}
	to.web.Exec("sh", "-c", "("+ncServer+" | sha256sum >/data/sum.new; mv /data/sum.new /data/sum) >/dev/null 2>&1 &")
	eventually(t, "nc connects", func() bool {
		return from.web.Try("sh", "-c", "nc "+peer.String()+" 9001 </data/blob").Code == 0
	})
	var got []byte
	eventually(t, "nc ends", func() bool { got, err = os.ReadFile(to.data + "/sum"); return err == nil })
	if strings.TrimSpace(string(got)) != want {
		t.Errorf("%s: TCP brings %s, want %s", to.Name(), got, want)
	}
}

// checkPorts checks who reaches a published port, and as whom.
func checkPorts(from, to *dockerHost) {
	t := from.c.t
	t.Helper()
	// Docker turns the host's address into the container's, and flanneld's rules leave
	// the source alone: who calls from elsewhere to OWN. With flannel's before 0.5.1
	// the server saw the bridge's address.
	for name, got := range map[string][2]string{
		"the other host":             {from.seenByHost(published(to.addr)), from.addr.String()},
		"outside":                    {from.c.outsider().seenByHost(published(to.addr)), gateway.String()},
		"a container of the other":   {from.seenBy(published(to.addr)), from.addr.String()}, // it goes out of the overlay: masqueraded
		"a container, at the bridge": {from.seenBy(published(to.file.Subnet.Addr().Next())), from.web.Addr().String()},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: who asks a published port from %s is seen as %s, want %s", to.Name(), name, got[0], got[1])
		}
	}
}

// checkWorld checks that a container reaches what is not in the overlay and does not
// know of it, as its host.
func checkWorld(h *dockerHost) {
	t := h.c.t
	t.Helper()
	if routes, err := h.c.wire.Netlink().RouteGet(net.IP(h.web.Addr().AsSlice())); err == nil {
		t.Errorf("outside there is a route to the overlay, with which all would work unmasqueraded: %v", routes)
	}
	at := h.c.whoServer()
	// Without -ip-masq no answer would find its way: Docker has --ip-masq=false.
	if got := h.web.Exec("nc", "-w", "10", at.Addr().String(), fmt.Sprint(at.Port())); got != h.addr.String() {
		t.Errorf("%s: a container is seen outside as %s, want %s", h.Name(), got, h.addr)
	}
	h.web.Exec("ping", "-A", "-c", "2", "-w", "10", at.Addr().String())
}

// restartDaemons has flanneld end on each host, as it should and as it should not. An
// engine's bridge, containers and their connections have nothing to do with it. Without
// flanneld the kernel carries packets with vxlan, and nobody with udp, whether there is
// a device left (-keep-device) or not: then they wait, and all of them arrive.
func restartDaemons(a, b *dockerHost, l *line, inKernel bool) {
	l.t.Helper()
	for _, h := range []*dockerHost{a, b} {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			h.ends(s)
			when := fmt.Sprintf("after %s's flanneld got %v,", h.Name(), s)
			if inKernel {
				l.flows(when)
			} else {
				l.stalls(when)
			}
			h.again()
			l.goesOn("with flanneld again, " + when)
		}
	}
	for _, p := range [][2]*dockerHost{{a, b}, {b, a}} {
		if who := p[0].seenBy(p[1].inner()); who != p[0].web.Addr().String() {
			l.t.Errorf("after flanneld's restarts a container of %s is seen as %s", p[0].Name(), who)
		}
	}
}

// restartEngines restarts a's engine, which keeps its containers, then b's, which does
// not. An engine makes all its chains anew at its start and puts its jumps first in
// FORWARD.
func restartEngines(a, b *dockerHost, l *line) {
	t := l.t
	t.Helper()
	check := func(when string) {
		t.Helper()
		a.forbids(when)
		b.forbids(when)
		for _, p := range [][2]*dockerHost{{a, b}, {b, a}} {
			if who := p[0].seenBy(p[1].inner()); who != p[0].web.Addr().String() {
				t.Errorf("%s a container of %s is seen as %s", when, p[0].Name(), who)
			}
			checkPorts(p[0], p[1])
			checkWorld(p[0])
		}
	}
	web := a.web.State()
	a.engine.Stop()
	l.flows("without its engine")
	a.engine.Again()
	a.engine.Ready()
	l.goesOn("after its engine's restart")
	if now := a.web.State(); now != web {
		t.Errorf("with --live-restore a container is %+v, was %+v", now, web)
	}
	check("after a restart with --live-restore")

	web = b.web.State()
	b.engine.Stop()
	b.engine.Again()
	b.engine.Ready()
	now := b.web.State()
	if !now.Running || now.StartedAt.Equal(web.StartedAt) || !b.file.Subnet.Contains(now.Addr) {
		t.Errorf("with --restart=always a container is %+v, was %+v", now, web)
	}
	check("after a restart")
}

// withoutRules shows what the rules are good for: without them Docker's policy drops
// what comes to containers from the overlay, so that all tests above would have failed.
func withoutRules(a, b *dockerHost) {
	t := a.c.t
	t.Helper()
	b.ends(syscall.SIGTERM)
	b.again("-iptables-forward-rules=false")
	eventually(t, "the rules are gone", func() bool {
		rules, err := b.output("iptables", "-S")
		return err == nil && !strings.Contains(rules, "FLANNELKIT")
	})
	if r := a.web.Try(wget(2, webURL(b.inner(), "cgi-bin/who"))...); r.Code == 0 {
		t.Errorf("%s: without the rules a container is reached all the same: the test proves nothing", b.Name())
	}
	a.seenBy(published(b.addr)) // by Docker's rules, so that it is not the path which is missing
	b.ends(syscall.SIGTERM)
	b.again()
	if who := a.seenBy(b.inner()); who != a.web.Addr().String() {
		t.Errorf("with the rules back a container is seen as %s", who)
	}
}
