package main

import (
	"bufio"
	"errors"
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
	"github.com/flannelkit/flannelkit/internal/traffic"
)

const (
	configKey  = "/coreos.com/network/config"
	subnetsKey = "/coreos.com/network/subnets/"
)

// inside runs fn in a host, for its netlink.
func (h *labHost) inside(fn func()) {
	h.c.t.Helper()
	h.c.must(h.Do(func() error { fn(); return nil }))
}

// TestRestartKeepsTheSubnet: stopped, killed, and with the lease gone from etcd, the
// host gets its subnet again.
func TestRestartKeepsTheSubnet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	p := h.start(c.endpoints())
	first := p.ready()
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	p = h.start(c.endpoints())
	if again := p.ready(); again != first {
		t.Errorf("after SIGTERM %v, want %v", again, first)
	}
	c.must(p.Signal(syscall.SIGKILL))
	p.wait()
	c.etcd.Delete(subnetsKey + first.Key().String()) // as if a day had passed
	p = h.start(c.endpoints())
	if again := p.ready(); again != first {
		t.Errorf("after SIGKILL and the lease's end %v, want %v", again, first)
	}
	p.stop()
}

// TestLostSubnet: another host has the subnet, so this one ends with 1 and one line, and
// removes what would carry packets for it.
func TestLostSubnet(t *testing.T) {
	eachAPI(t, func(t *testing.T, api int) {
		c := newCluster(t, 1, etcdtest.Config{NoV2: api == 3})
		k, h := c.keysOf(api), c.hosts[0]
		k.set(configKey, network)
		p := h.start(c.endpoints(), "-keep-device")
		f := p.ready()
		k.set(subnetsKey+f.Key().String(), `{"PublicIP":"192.0.2.77"}`)
		if code := p.wait(); code != 1 {
			t.Errorf("exit %d, want 1", code)
		}
		if last := p.lastLine(); !strings.Contains(last, "level=ERROR") || !strings.Contains(last, "192.0.2.77") || !strings.Contains(last, "restart") {
			t.Errorf("the last line does not say who has it and what to do: %s", last)
		}
		if n := strings.Count(p.log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d lines of level ERROR, want one", n)
		}
		h.inside(func() {
			if got := names(t); !slices.Equal(got, []string{"eth0", "lo"}) {
				t.Errorf("interfaces left: %v", got)
			}
		})
		if again := h.start(c.endpoints()).ready(); again.Subnet == f.Subnet {
			t.Errorf("the next daemon has the other host's subnet %v", again.Subnet)
		}
	})
}

// TestWhatCannotBeMended ends the daemon with 1 and one line that says what to do.
func TestWhatCannotBeMended(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	h := c.hosts[0]
	for _, r := range []struct{ config, args, want string }{
		{"", "-etcd-version=2", "-etcd-version=auto"},
		{`{"Network":"10.5.0.0/30"}`, "", "Network"},
		{`{"Network":"10.5.0.0/16","Backend":{"Type":"warp"}}`, "", "warp"},
		{network, "-iface=eth7", "eth7"},
		{network, "-etcd-endpoints=https://192.0.2.254:1 -etcd-cafile=/nowhere/ca.pem", "/nowhere/ca.pem"},
	} {
		if r.config != "" {
			c.etcd.Put(configKey, r.config)
		}
		code, _, log := h.run(append([]string{c.endpoints()}, strings.Fields(r.args)...)...)
		if n := strings.Count(log, "level=ERROR"); code != 1 || n != 1 || !strings.Contains(log, r.want) {
			t.Errorf("%s with %s: exit %d, %d lines of level ERROR, want 1 and 1 with %s:\n%s", r.args, r.config, code, n, r.want, log)
		}
		h.inside(func() {
			if got := names(t); !slices.Equal(got, []string{"eth0", "lo"}) {
				t.Errorf("%s left %v", r.args, got)
			}
		})
	}
}

// TestTLSAndPassword: the whole of etcd's access control, and no password in the log.
func TestTLSAndPassword(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{TLS: etcdtest.MutualTLS, Auth: true})
	c.etcd.User("flannel", "the daemon's password", "/coreos.com/network/")
	c.etcd.PutV2(configKey, network, 0)
	h := c.hosts[0]
	s := c.etcd
	files := []string{c.endpoints(), "-etcd-cafile=" + s.CAFile, "-etcd-certfile=" + s.CertFile, "-etcd-keyfile=" + s.KeyFile, "-v=10"}
	p := h.start(append(files, "-etcd-username=flannel", "-etcd-password=the daemon's password")...)
	p.ready()
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(p.log.String(), "daemon's password") {
		t.Error("the password is in the log")
	}
	code, _, log := h.run(append(files, "-etcd-username=flannel", "-etcd-password=another password")...)
	if code != 1 || !strings.Contains(log, "flannel") || strings.Contains(log, "another password") {
		t.Errorf("a wrong password: exit %d, log\n%s", code, log)
	}
}

// TestCleanupCommand leaves a device, rules, a route, a file and a lease behind, and
// removes them.
func TestCleanupCommand(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	args := []string{c.endpoints(), "-ip-masq", "-ip-blackhole-route", "-keep-device"}
	p := h.start(args...)
	f := p.ready()
	if !f.IPMasq {
		t.Errorf("subnet file %+v", f)
	}
	code, _, log := h.run("cleanup", c.endpoints())
	if code != 1 || !strings.Contains(log, "runs with the subnet file") {
		t.Errorf("cleanup beside a running daemon: exit %d, %s", code, log)
	}
	p.stop()
	h.inside(func() {
		if got := names(t); !slices.Contains(got, "flannel0") {
			t.Errorf("interfaces after the end with -keep-device: %v", got)
		}
		if got := holes(t); !slices.Equal(got, []string{f.Subnet.String()}) {
			t.Errorf("blackhole routes: %v", got)
		}
	})
	if code, _, log = h.run("cleanup", "-release", c.endpoints()); code != 0 {
		t.Errorf("cleanup: exit %d", code)
	}
	for _, what := range []string{"name=flannel0", "rules removed", "name=" + f.Subnet.String(), "name=" + h.file, "name=" + f.Key().String()} {
		if !strings.Contains(log, what) {
			t.Errorf("no line with %q:\n%s", what, log)
		}
	}
	h.inside(func() {
		if got := names(t); !slices.Equal(got, []string{"eth0", "lo"}) {
			t.Errorf("interfaces left: %v", got)
		}
		if got := holes(t); got != nil {
			t.Errorf("blackhole routes left: %v", got)
		}
	})
	if _, ok := c.etcd.Get(subnetsKey + f.Key().String()); ok {
		t.Error("the lease is still there")
	}
	if code, _, log = h.run("cleanup"); code != 0 || strings.Contains(log, "removed") {
		t.Errorf("the second cleanup: exit %d\n%s", code, log)
	}
}

// TestCleanupOnExit does the same at SIGTERM, but for the lease.
func TestCleanupOnExit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	p := h.start(c.endpoints(), "-ip-masq", "-ip-blackhole-route", "-cleanup-on-exit")
	f := p.ready()
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(h.file); !os.IsNotExist(err) {
		t.Errorf("subnet file: %v", err)
	}
	h.inside(func() {
		if got, hole := names(t), holes(t); !slices.Equal(got, []string{"eth0", "lo"}) || hole != nil {
			t.Errorf("left: interfaces %v, blackhole routes %v", got, hole)
		}
	})
	if _, ok := c.etcd.Get(subnetsKey + f.Key().String()); !ok {
		t.Error("the lease is gone: a restart may get another subnet")
	}
	if code, _, log := h.run("cleanup"); code != 0 || strings.Contains(log, "removed") {
		t.Errorf("cleanup after it: exit %d\n%s", code, log)
	}
}

// TestEndUnderFullTraffic: SIGTERM while two hosts send each other all they can, with
// etcd stopped in the middle of a sentence.
func TestEndUnderFullTraffic(t *testing.T) {
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	var procs []*flanneldProc
	var pods []netip.Addr
	for _, h := range c.hosts {
		procs = append(procs, h.start(c.endpoints()))
	}
	for i, p := range procs {
		pods = append(pods, c.hosts[i].bridge(p.ready()))
	}
	c.hosts[0].ping(pods[0], pods[1])
	pair, err := traffic.OpenUDP(t.Context(), traffic.In[*netlab.Process](c.hosts[0].NS), traffic.In[*netlab.Process](c.hosts[1].NS),
		traffic.UDPConfig{Addr: pods[1], Source: pods[0]})
	c.must(err)
	defer pair.Close()
	flood := make(chan error, 1)
	go func() { // what arrives, if anything does, is not the question
		_, err := pair.Trial(t.Context(), traffic.UDPTrial{Size: 1200, Rate: 1e6, Duration: 2 * time.Second})
		flood <- err
	}()
	before, err := c.hosts[0].LinkStats("flannel0")
	c.must(err)
	eventually(t, "traffic flows", func() bool {
		now, err := c.hosts[0].LinkStats("flannel0")
		c.must(err)
		return now.TxPackets > before.TxPackets+1000
	})
	c.etcd.Pause()
	defer c.etcd.Resume()
	for i, p := range procs {
		code, took := p.stop()
		if code != 0 {
			t.Errorf("exit %d", code)
		}
		if strings.Contains(p.log.String(), "stuck") {
			t.Error("some part of the daemon had to be left behind")
		}
		t.Logf("%s ended %v after SIGTERM", c.hosts[i].Name(), took)
		if took > 3*time.Second { // a second, and what a busy machine adds
			t.Error("that is too long")
		}
	}
	if err := receive(t, "the end of the traffic", flood); err != nil {
		t.Logf("traffic: %v", err)
	}
}

// TestDockerOptions is ExecStartPost of the guides' unit.
func TestDockerOptions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	p := h.start(c.endpoints(), "-ip-masq")
	f := p.ready()
	out := h.file + ".docker"
	if code, _, log := h.run("mk-docker-opts", "-f", h.file, "-d", out, "-i"); code != 0 {
		t.Errorf("exit %d: %s", code, log)
	}
	text, err := os.ReadFile(out)
	bip := netip.PrefixFrom(f.Subnet.Addr().Next(), f.Subnet.Bits()).String()
	if want := "DOCKER_OPT_BIP=\"--bip=" + bip + "\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n"; err != nil || string(text) != want {
		t.Errorf("%q, %v, want %q", text, err, want)
	}
	p.stop()
}

// TestSecondSignal: whatever is stuck, the second SIGTERM ends the process at once.
func TestSecondSignal(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"=signals")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"waiting", "told to end by a signal (terminated)"} {
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("%q, want %q", lines.Text(), want)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want SIGTERM", err)
	}
}
