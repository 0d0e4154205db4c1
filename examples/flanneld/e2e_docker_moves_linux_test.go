package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flannelkit/flannelkit/internal/dockertest"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/vishvananda/netlink"
)

// docker0 returns the IPv4 addresses of the engine's bridge.
func (h *dockerHost) docker0() (all []string) {
	h.c.t.Helper()
	link, err := h.Netlink().LinkByName("docker0")
	h.c.must(err)
	addrs, err := h.Netlink().AddrList(link, netlink.FAMILY_V4)
	h.c.must(err)
	for _, a := range addrs {
		all = append(all, a.IPNet.String())
	}
	return all
}

// works checks a container that has to do with Docker alone: it is where it was, answers
// its host and the world, and gets answers.
func (h *dockerHost) works(when, bridge string, was dockertest.State) {
	t := h.c.t
	t.Helper()
	if now := h.web.State(); now != was {
		t.Errorf("%s the container is %+v, was %+v", when, now, was)
	}
	if got := h.docker0(); !slices.Equal(got, []string{bridge}) {
		t.Errorf("%s docker0 has %v, want %s", when, got, bridge)
	}
	if got, want := h.seenByHost(h.inner()), netip.MustParsePrefix(bridge).Addr(); got != want.String() {
		t.Errorf("%s the host is seen as %s, want %s", when, got, want)
	}
	if got := h.c.outsider().seenByHost(published(h.addr)); got != gateway.String() {
		t.Errorf("%s who asks from outside is seen as %s, want %s", when, got, gateway)
	}
	checkWorld(h)
}

// TestDockerMoves has an engine with its default subnet and a running container when
// flanneld comes. Neither does anything to the other, until the engine is started with
// flanneld's options and without containers that run: then it moves.
func TestDockerMoves(t *testing.T) {
	t.Parallel()
	dockertest.Require(t)
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	const docker = "172.17.0.1/16" // its default
	h := &dockerHost{labHost: c.hosts[0], args: []string{c.endpoints(), "-ip-masq"}, data: t.TempDir()}
	c.must(h.Sysctl("net/ipv4/ip_forward", "0"))
	if dockertest.Supports(t, "--allow-direct-routing") {
		h.own = append(h.own, "--allow-direct-routing")
	}
	h.engine = dockertest.Start(t, h.NS, append(h.own, "--live-restore")...)
	h.engine.Ready()
	h.startWeb()
	was := h.web.State()
	h.works("at first", docker, was)

	c.etcd.Put(configKey, dockerUDP)
	h.proc = h.start(h.args...)
	other := c.hosts[1].start(c.endpoints(), "-ip-masq")
	h.file = h.proc.ready()
	pod := c.hosts[1].pod(other.ready())
	kernel := h.kernel()
	if !slices.ContainsFunc(kernel, func(s string) bool { return strings.HasPrefix(s, "link flannel0 ") }) {
		t.Errorf("the kernel has %q", kernel)
	}
	h.works("with flanneld", docker, was)
	refusesForeignBIP(h)
	options := h.dockerOptions()
	h.works("with the options written", docker, was)
	h.ping(h.file.Subnet.Addr(), pod.addr4)

	// An engine whose containers run on keeps their network, whatever it is told.
	h.engine.Stop()
	h.engine.Again(slices.Concat(options, h.own, []string{"--live-restore"})...)
	h.engine.Ready()
	h.works("with the options, but containers that run", docker, was)

	h.engine.Stop()
	h.engine.Again(append(options, h.own...)...)
	h.engine.Ready()
	bridge := netip.PrefixFrom(h.file.Subnet.Addr().Next(), h.file.Subnet.Bits())
	now := h.web.State()
	if !h.file.Subnet.Contains(now.Addr) || now.StartedAt.Equal(was.StartedAt) {
		t.Errorf("with the options the container is %+v, not in %v", now, h.file.Subnet)
	}
	h.works("with the options", bridge.String(), now)
	h.checkKernel("after the engine's move", kernel...)
	h.forbids("after its move")
	h.web.Exec("ping", "-A", "-c", "2", "-w", "10", pod.addr4.String())
	p := &labHost{NS: pod.NS, c: c}
	if got := p.seenByHost(h.inner()); got != pod.addr4.String() {
		t.Errorf("a pod is seen as %s, want %s", got, pod.addr4)
	}
	h.ends(syscall.SIGTERM)
	h.again()
	if got := p.seenByHost(h.inner()); got != pod.addr4.String() {
		t.Errorf("after flanneld's restart a pod is seen as %s, want %s", got, pod.addr4)
	}
}

// refusesForeignBIP checks that options which are to keep the engine where it is, on a
// subnet that is not this host's, are refused in one line that says so.
func refusesForeignBIP(h *dockerHost) {
	t := h.c.t
	t.Helper()
	file := h.beside("foreign")
	cmd := h.command("mk-docker-opts", "-f", h.labHost.file, "-d", file)
	cmd.Env = append(cmd.Env, "DOCKER_OPTS=--bip=172.17.0.1/16")
	var errs lockedBuffer
	cmd.Stderr = &errs
	code, line := exitCode(t, h.Run(cmd)), errs.String()
	if code != 1 || strings.Count(line, "\n") != 1 || !strings.Contains(line, "--bip=172.17.0.1/16") || !strings.Contains(line, h.file.Subnet.String()) {
		t.Errorf("mk-docker-opts with another --bip: exit %d, %q", code, line)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("mk-docker-opts with another --bip has written: %v", err)
	}
}
