package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"github.com/google/nftables"
)

// seenFrom sends a datagram from one place to another and returns the source address
// that it has there.
func seenFrom(t *testing.T, from *netlab.NS, src netip.Addr, to *netlab.NS, dst netip.Addr) (got netip.Addr) {
	t.Helper()
	in := openUDP(t, to, netip.AddrPortFrom(dst, 0))
	out := openUDP(t, from, netip.AddrPortFrom(src, 0))
	at := netip.AddrPortFrom(dst, in.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	eventually(t, "a datagram from "+src.String()+" arrives at "+dst.String(), func() bool {
		if _, err := out.WriteToUDPAddrPort([]byte("x"), at); err != nil {
			return false
		}
		_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, who, err := in.ReadFromUDPAddrPort(make([]byte, 10))
		got = who.Addr().Unmap()
		return err == nil
	})
	return got
}

// tables returns the names of the host's nftables tables that are ours.
func (h *labHost) tables() (all []string) {
	h.c.t.Helper()
	h.inside(func() {
		conn, err := nftables.New()
		h.c.must(err)
		list, err := conn.ListTables()
		h.c.must(err)
		for _, table := range list {
			if strings.HasPrefix(table.Name, "flannelkit") {
				all = append(all, table.Name)
			}
		}
	})
	return all
}

// TestMasquerade: with -ip-masq the world sees the host's address, without it that of the
// pod; other pods see the pod's in either case. A policy that forbids forwarding, as
// Docker's, does not stop the overlay, unless that is wished.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	for _, what := range []string{"all", "br0"} {
		c.must(c.wire.Sysctl("net/ipv4/conf/"+what+"/rp_filter", "0")) // it has no way to the pods
	}
	c.etcd.Put(configKey, network)
	iptables, _ := exec.LookPath("iptables")
	if iptables != "" {
		for _, h := range c.hosts {
			c.must(h.Run(exec.Command(iptables, "-P", "FORWARD", "DROP")))
		}
	} else {
		t.Log("no iptables here: without a policy that forbids forwarding")
	}
	far := c.hosts[1].start(c.endpoints(), "-ip-masq").ready()
	h := c.hosts[0]
	var pods []*pod
	for _, masq := range []bool{true, false, true} {
		args := []string{c.endpoints()}
		if masq {
			args = append(args, "-ip-masq")
		}
		p := h.start(args...)
		f := p.ready()
		if f.IPMasq != masq {
			t.Errorf("-ip-masq %v: subnet file %+v", masq, f)
		}
		if pods == nil {
			pods = []*pod{h.pod(f), c.hosts[1].pod(far)}
		}
		reach(pods[0], pods[1])
		near := pods[0].addr4
		if got := seenFrom(t, pods[0].NS, near, pods[1].NS, pods[1].addr4); got != near {
			t.Errorf("-ip-masq %v: the other pod sees %v, want %v", masq, got, near)
		}
		want := near
		if masq {
			want = h.addr
			h.ping(h.addr, pods[1].addr4) // from outside the overlay
		}
		// Also where forwarding to the world is forbidden, from the overlay it is not.
		if got := seenFrom(t, pods[0].NS, near, c.wire, gateway); got != want {
			t.Errorf("-ip-masq %v: the world sees %v, want %v", masq, got, want)
		}
		if code, _ := p.stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
	if len(h.tables()) == 0 {
		t.Error("the masquerade rules are not in nftables, or have not stayed")
	}
	if code, _, _ := h.run("cleanup"); code != 0 || h.tables() != nil {
		t.Errorf("cleanup: exit %d, left %v", code, h.tables())
	}
	if iptables == "" {
		return
	}
	p := h.start(c.endpoints(), "-iptables-forward-rules=false")
	p.ready()
	h.ping(pods[0].addr4.Prev(), pods[1].addr4) // packets flow, but
	if pingOnce(t.Context(), pods[0].NS, pods[0].addr4, pods[1].addr4) == nil {
		t.Error("forwarding was not to be allowed")
	}
}

// TestRestartUnderTraffic: ended, or killed, and started again with -keep-device, a daemon
// loses what is sent until it is ready and nothing after; nothing leaves the host outside
// of the tunnel. The subnet, its lease and its device are the same.
func TestRestartUnderTraffic(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		w := newTrouble(t, api)
		d := w.watchLeaks(netip.MustParsePrefix("10.5.0.0/16"))
		h := w.hosts[1]
		args := []string{w.endpoints(), healthPort, healthIP, "-keep-device"}
		w.procs[1].stop()
		p := h.start(args...)
		p.ready()
		before := d.leaks() // it began without the flag
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
			for _, s := range w.streams {
				s.flows()
				s.skip()
			}
			began := time.Now()
			w.must(p.Signal(sig))
			p.wait()
			p = h.start(args...)
			if f := p.ready(); f != w.files[1] {
				t.Errorf("%v: the subnet file is %+v, want %+v", sig, f, w.files[1])
			}
			t.Logf("%v: ready again after %v", sig, time.Since(began))
			for _, s := range w.streams {
				t.Logf("%v: %s: %d of %d datagrams lost until then", sig, s.name, s.gone(), s.sent()-s.checked)
				s.skip()
			}
			w.procs[1] = p
			w.during("after "+sig.String(), func() { time.Sleep(500 * time.Millisecond) }) // of traffic
		}
		if n := d.leaks() - before; n > 0 {
			t.Errorf("%d packets have left the tunnel", n)
		}
		h.inside(func() {
			if got := names(t); !slices.Equal(got, []string{"docker0", "eth0", "flannel0", "lo", "pod0"}) {
				t.Errorf("interfaces: %v", got)
			}
		})
		p.stop()
		if code, _, log := h.run("cleanup"); code != 0 {
			t.Fatalf("cleanup: %s", log)
		}
		eventually(t, "without a device packets leave by the default route, and are noticed", func() bool { return d.leaks() > before })
	})
}

// gone returns how many of the datagrams sent since the last check have not arrived yet.
func (s *stream) gone() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ok := range s.arrived[s.checked:] {
		if !ok {
			n++
		}
	}
	return n
}

// TestReadinessFollowsTheHost: /readyz says what somebody has taken away, and that it is
// back.
func TestReadinessFollowsTheHost(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	var pods []*pod
	for _, h := range c.hosts {
		pods = append(pods, h.pod(h.start(c.endpoints(), healthPort, healthIP, "-ip-masq").ready()))
	}
	h := c.hosts[0]
	h.readyz(200, "daemon: ok\nnode: ok\nrules: ok\nsubnet-file: ok\n")

	c.must(errors.Join(os.Remove(h.file), os.Mkdir(h.file, 0o700)))
	h.readyz(503, "subnet-file: ")
	h.hasMetric("flanneld_ready", 0)
	c.must(os.Remove(h.file))
	h.readyz(200, "subnet-file: ok")

	seen := make(chan string)
	go func() { // it may be too short for anybody to see
		defer close(seen)
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if code, body, err := h.get(healthURL + "/readyz"); err == nil && code == 503 {
				seen <- body
				return
			}
		}
	}()
	c.must(h.DelLink("flannel0"))
	t.Logf("while the device was not there: %q", receive(t, "a look at /readyz", seen))
	h.readyz(200, "node: ok")
	reach(pods[0], pods[1])

	c.must(h.Down("eth0"))
	c.must(h.Up("eth0")) // its address stays, its default route does not
	c.must(h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0))
	h.readyz(200, "node: ok")
	reach(pods[0], pods[1])
}

// TestReadyMeansWritten: whoever starts a container at READY=1 finds the subnet file, the
// device and the rules, from the first moment.
func TestReadyMeansWritten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	for range 3 {
		c.must(os.RemoveAll(h.file))
		p := h.start(c.endpoints(), "-ip-masq")
		f := p.ready()
		checkFile(t, h, "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n", f)
		h.inside(func() {
			if got := names(t); !slices.Contains(got, "flannel0") {
				t.Errorf("interfaces: %v", got)
			}
		})
		if h.tables() == nil {
			t.Error("no rules")
		}
		if i := slices.IndexFunc(p.said, func(s string) bool { return strings.HasPrefix(s, "READY=1") }); i != len(p.said)-1 {
			t.Errorf("READY=1 more than once: %q", p.said)
		}
		p.stop()
		if code, _, _ := h.run("cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d", code)
		}
		h.inside(func() {
			if got := names(t); !slices.Equal(got, []string{"eth0", "lo"}) {
				t.Errorf("interfaces left: %v", got)
			}
		})
		if _, err := os.Stat(h.file); !os.IsNotExist(err) || h.tables() != nil {
			t.Errorf("left: subnet file %v, rules %v", err, h.tables())
		}
	}
}

// TestPasswordStaysSecret: given in the endpoint, the password is nowhere else: not in the
// log, whatever its level, not in the metrics, not in what the service manager is told.
func TestPasswordStaysSecret(t *testing.T) {
	t.Parallel()
	const secret = "Zaq12wsx-secret"
	c := newCluster(t, 1, etcdtest.Config{NoV2: true, Auth: true})
	c.etcd.User("flannel", secret, "/coreos.com/network/")
	c.etcd.Put(configKey, lowNetwork)
	h := c.hosts[0]
	endpoint := func(password string) string {
		return "-etcd-endpoints=http://flannel:" + password + "@" + c.etcd.Addr()
	}
	p := h.start(endpoint(secret), healthPort, healthIP, "-v=10")
	f := p.ready()
	c.etcd.Restart() // it has to log in again, and says so if it can't
	c.etcd.Put(subnetsKey+"10.5.250.0-24", leaseOf(netip.MustParseAddr("192.0.2.250")))
	h.hasMetric("flanneld_peers", 1)
	_, metrics, err := h.get(healthURL + "/metrics")
	c.must(err)
	text, err := json.Marshal(p.said)
	c.must(err)
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	code, _, log := h.run(endpoint("wrong-"+secret), "-v=10")
	if code != 1 || strings.Count(log, "level=ERROR") != 1 {
		t.Errorf("a wrong password: exit %d, log\n%s", code, log)
	}
	for what, s := range map[string]string{"log": p.log.String(), "log of the refused one": log, "metrics": metrics, "service manager": string(text)} {
		if strings.Contains(s, secret) {
			t.Errorf("the password is in the %s", what)
		}
	}
	if again, err := subnetenv.Read(h.file); err != nil || again != f {
		t.Errorf("the daemon that could do nothing has changed the subnet file: %+v, %v", again, err)
	}
}
