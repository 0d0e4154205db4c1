package flannelkit_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/etcdv3"
	"github.com/vishvananda/netlink"
)

// aloneVariable has the name of the test that this process is there for.
const aloneVariable = "FLANNELKIT_TEST_ALONE"

func TestMain(m *testing.M) {
	roles := traffic.StandardRoles()
	roles["agent"] = agentRole
	if code, ran := traffic.RunRole(roles); ran {
		os.Exit(code)
	}
	netlab.Main(m)
}

// alone runs the test again in a process of its own, whose network namespace has lo
// alone, and reports whether this is that process. A Node looks at the namespace of its
// process, so tests that change addresses need one.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneVariable) == t.Name() {
		return true
	}
	netlab.Require(t)
	lab, err := netlab.New()
	check(t, err)
	defer func() { check(t, lab.Close()) }()
	ns, err := lab.Namespace(t.Name())
	check(t, err)
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", fmt.Sprintf("-test.short=%v", testing.Short()), "-test.timeout=2m")
	cmd.Env = append(os.Environ(), aloneVariable+"="+t.Name())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Run(cmd); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	return false
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// slow skips a test that takes some seconds.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some seconds: not with -short")
	}
}

// An agentConfig is what an agent process does: it joins networks.
type agentConfig struct {
	Etcd     string
	Prefixes []string // in etcd, one for each network
	Keep     bool
}

// An agentState is one network of an agent, as its Node tells.
type agentState struct {
	Lease   lease.Lease
	MTU     int
	Link    string
	Public4 netip.Addr
	Public6 netip.Addr
	Peers   map[string]lease.Attrs // by key
	Ready   string
	Ended   string
	Retaken uint64
	Packets uint64 // that came in
}

// agentRole is the agent process. It answers each order with the states of its networks.
func agentRole(ctx context.Context, link *traffic.Link) (err error) {
	var cfg agentConfig
	if err := link.Config(ctx, &cfg); err != nil {
		return err
	}
	before := goroutines()
	var nodes []*flannelkit.Node
	var stores []*etcdv3.Store
	for _, prefix := range cfg.Prefixes {
		store, err := etcdv3.New(etcdv3.Config{Endpoints: []string{cfg.Etcd}, Prefix: prefix})
		if err != nil {
			return err
		}
		node, err := flannelkit.Join(ctx, store, flannelkit.Config{KeepDevice: cfg.Keep})
		if err != nil {
			return err
		}
		nodes, stores = append(nodes, node), append(stores, store)
	}
	if err := link.Send("joined", states(nodes)); err != nil {
		return err
	}
	for {
		var order string
		if err := link.Next(ctx, "order", &order); err != nil {
			return err
		}
		var errs []error
		switch order {
		case "close first":
			errs = append(errs, nodes[0].Close())
		case "close", "release":
			for i, n := range nodes {
				if order == "release" {
					errs = append(errs, n.Release(ctx))
				}
				errs = append(errs, n.Close(), stores[i].Close())
			}
			if left := leftOver(before); len(left) > 0 {
				errs = append(errs, fmt.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n")))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if err := link.Send("done", states(nodes)); err != nil {
			return err
		}
	}
}

func states(nodes []*flannelkit.Node) (all []agentState) {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	for _, n := range nodes {
		h, s := n.Host(), n.Stats()
		state := agentState{Lease: n.Lease(), MTU: n.MTU(), Link: h.Link, Public4: h.Public4, Public6: h.Public6,
			Peers: map[string]lease.Attrs{}, Ready: text(n.Ready()), Ended: text(n.Err()), Retaken: s.Lease.Retaken, Packets: s.Packets.RX.Packets}
		for _, p := range n.Peers() {
			state.Peers[p.Key.String()] = p.Attrs
		}
		all = append(all, state)
	}
	return all
}

// A cluster is two hosts and an etcd on one Ethernet, which is also the hosts' default
// route: what leaks out of the tunnel passes there.
//
//	pod - host .1 -----+----- host .2 - pod
//	                   |
//	            wire 192.0.2.254 (etcd)
type cluster struct {
	t     *testing.T
	lab   *netlab.Lab
	etcd  *etcdtest.Server
	wire  *netlab.NS
	hosts [2]*labHost
}

// A labHost is one of the two.
type labHost struct {
	*netlab.NS
	c     *cluster
	pods  []*netlab.NS // one for each network, once addPods was called
	agent *traffic.Proc
}

const (
	flannelPrefix = "/coreos.com/network"
	otherPrefix   = "/other"
)

var (
	gateway  = netip.MustParseAddr("192.0.2.254")
	gateway6 = netip.MustParseAddr("2001:db8::254")
)

// newCluster makes one whose networks are configured like that, by prefix.
func newCluster(t *testing.T, only6 bool, networks map[string]string) *cluster {
	t.Helper()
	lab := netlab.ForTest(t, netlab.NeedTUN)
	wire, err := lab.Namespace("wire")
	check(t, err)
	c := &cluster{t: t, lab: lab, wire: wire}
	for i := range c.hosts {
		ns, err := lab.Namespace(fmt.Sprintf("host%d", i+1))
		check(t, err)
		c.hosts[i] = &labHost{NS: ns, c: c}
		check(t, lab.Veth(ns, "eth0", c.wire, fmt.Sprintf("port%d", i+1), 1500),
			ns.Sysctl("net/ipv4/ip_forward", "1"), ns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
		if only6 {
			check(t, ns.AddAddr("eth0", netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i+1))),
				ns.AddRoute(netip.MustParsePrefix("::/0"), gateway6, "eth0", 0))
			continue
		}
		check(t, c.hosts[i].setAddr(fmt.Sprintf("192.0.2.%d/24", i+1)))
	}
	check(t, c.wire.Bridge("br0", "port1", "port2"))
	cfg := etcdtest.Config{Namespace: c.wire, Listen: gateway}
	if only6 {
		check(t, c.wire.AddAddr("br0", netip.PrefixFrom(gateway6, 64)))
		cfg.Listen = gateway6
	} else {
		check(t, c.wire.AddAddr("br0", netip.PrefixFrom(gateway, 24)))
	}
	c.etcd = etcdtest.Start(t, cfg)
	for prefix, text := range networks {
		c.etcd.Put(prefix+"/config", text)
	}
	return c
}

// setAddr makes an address the only one of the underlay, and its router the default route.
func (h *labHost) setAddr(prefix string) error {
	link, err := h.Netlink().LinkByName("eth0")
	if err != nil {
		return err
	}
	old, err := h.Netlink().AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range old {
		if err := h.Netlink().AddrDel(link, &a); err != nil {
			return err
		}
	}
	return errors.Join(h.AddAddr("eth0", netip.MustParsePrefix(prefix)), h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0))
}

// start starts the host's agent and returns when it has joined.
func (h *labHost) start(keep bool, prefixes ...string) []agentState {
	h.c.t.Helper()
	if len(prefixes) == 0 {
		prefixes = []string{flannelPrefix}
	}
	var err error
	h.agent, err = traffic.Start(traffic.In(h.NS), "agent", agentConfig{Etcd: h.c.etcd.Endpoint(), Prefixes: prefixes, Keep: keep})
	check(h.c.t, err)
	agent := h.agent
	h.c.t.Cleanup(func() { _ = agent.Close() })
	var joined []agentState
	check(h.c.t, agent.Next(h.c.t.Context(), "joined", &joined))
	return joined
}

// order tells the agent to do something, and returns its states afterwards.
func (h *labHost) order(what string) (now []agentState) {
	h.c.t.Helper()
	check(h.c.t, h.agent.Send("order", what), h.agent.Next(h.c.t.Context(), "done", &now))
	return now
}

// stop ends the agent, which must leave no goroutines.
func (h *labHost) stop(how string) []agentState {
	h.c.t.Helper()
	last := h.order(how)
	check(h.c.t, h.agent.Close())
	return last
}

// wait polls the agent until ok, and returns its states.
func (h *labHost) wait(what string, ok func([]agentState) bool) (now []agentState) {
	h.c.t.Helper()
	waitFor(h.c.t, h.Name()+": "+what, func() bool { now = h.order("tell"); return ok(now) })
	return now
}

// meet waits until both hosts have each other as a peer in every network.
func (c *cluster) meet() {
	c.t.Helper()
	for _, h := range c.hosts {
		h.wait("a peer in each network", func(all []agentState) bool {
			return !slices.ContainsFunc(all, func(s agentState) bool { return len(s.Peers) != 1 || s.Ready != "" })
		})
	}
}

// addPods puts a pod into each subnet: the first address of a subnet is the tunnel
// device's, the next one the bridge's, the one after that the pod's.
func (h *labHost) addPods(all []agentState) {
	h.c.t.Helper()
	for i, s := range all {
		pod, err := h.c.lab.Namespace(fmt.Sprintf("%s pod %d", h.Name(), i))
		check(h.c.t, err)
		link := fmt.Sprintf("pod%d", i)
		check(h.c.t, h.c.lab.Veth(h.NS, link, pod, "eth0", s.MTU))
		for _, p := range s.Lease.Prefixes() {
			gw := p.Addr().Next()
			any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if p.Addr().Is6() {
				any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			check(h.c.t, h.AddAddr(link, netip.PrefixFrom(gw, p.Bits())), pod.AddAddr("eth0", netip.PrefixFrom(gw.Next(), p.Bits())), pod.AddRoute(any, gw, "eth0", 0))
		}
		h.pods = append(h.pods, pod)
	}
}

// podAddr is the address of the pod in a subnet.
func podAddr(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next().Next() }

// talk sends TCP, verified, and UDP from one place to another.
func (c *cluster) talk(from, to *netlab.NS, addr netip.Addr) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	r, err := traffic.TCP(ctx, traffic.In(from), traffic.In(to), traffic.TCPConfig{Addr: addr, Duration: 50 * time.Millisecond, Verify: true})
	if err != nil || r.Verified == 0 {
		c.t.Fatalf("TCP to %v: %v, %d bytes", addr, err, r.Verified)
	}
	u := c.stream(from, to, addr, 1000, 100*time.Millisecond)
	if u := u(); u.Received == 0 || u.Corrupt > 0 {
		c.t.Errorf("UDP to %v: %+v", addr, u)
	}
}

// stream sends datagrams at a rate in the background; the function that it returns waits
// for the end.
func (c *cluster) stream(from, to *netlab.NS, addr netip.Addr, rate float64, length time.Duration) func() traffic.UDPResult {
	c.t.Helper()
	pair, err := traffic.OpenUDP(c.t.Context(), traffic.In(from), traffic.In(to), traffic.UDPConfig{Addr: addr})
	check(c.t, err)
	var result traffic.UDPResult
	done := make(chan struct{})
	go func() {
		defer close(done)
		result, err = pair.Trial(c.t.Context(), traffic.UDPTrial{Rate: rate, Size: 200, Duration: length, Verify: true})
		err = errors.Join(err, pair.Close())
	}()
	return func() traffic.UDPResult {
		c.t.Helper()
		<-done
		check(c.t, err)
		return result
	}
}
