package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/traffic"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// A cluster is hosts on one Ethernet and an etcd that all of them reach:
//
//	     etcd 192.0.2.254
//	           |
//	-----------+-----------+----------- 192.0.2.0/24
//	           |           |
//	      host 1 .1    host 2 .2   ...
//
// Every host is a network namespace with an eth0, a default route, and forwarding
// switched on. Nothing runs on it until the test starts something.
type cluster struct {
	t     *testing.T
	lab   *netlab.Lab
	etcd  *etcdtest.Server
	wire  *netlab.NS // the switch, and etcd's host
	hosts []*labHost
}

// A labHost is one host of a cluster.
type labHost struct {
	*netlab.NS
	c      *cluster
	addr   netip.Addr // 192.0.2.N
	addr6  netip.Addr // 2001:db8::N, with cluster.addIPv6
	file   string     // its subnet.env
	notify string     // its service manager's socket
	heard  chan string
}

// gateway is etcd's address and every host's default route.
var gateway = netip.MustParseAddr("192.0.2.254")

// newCluster makes hosts, and an etcd that cfg may ask something special of.
func newCluster(t *testing.T, hosts int, cfg etcdtest.Config) *cluster {
	t.Helper()
	netlab.Require(t, netlab.NeedTUN)
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, lab: lab}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	c.wire = c.namespace("wire")
	ports := make([]string, 0, hosts)
	for i := 1; i <= hosts; i++ {
		h := &labHost{NS: c.namespace(fmt.Sprintf("host%d", i)), c: c, addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}
		port := fmt.Sprintf("port%d", i)
		c.must(lab.Veth(h.NS, "eth0", c.wire, port, 1500))
		c.must(h.AddAddr("eth0", netip.PrefixFrom(h.addr, 24)))
		c.must(h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, "eth0", 0))
		c.must(h.Sysctl("net/ipv4/ip_forward", "1"))
		h.file = filepath.Join(t.TempDir(), "subnet.env")
		h.listen()
		c.hosts = append(c.hosts, h)
		ports = append(ports, port)
	}
	c.must(c.wire.Bridge("br0", ports...))
	c.must(c.wire.AddAddr("br0", netip.PrefixFrom(gateway, 24)))
	cfg.Namespace, cfg.Listen = c.wire, gateway
	c.etcd = etcdtest.Start(t, cfg)
	return c
}

func (c *cluster) namespace(name string) *netlab.NS {
	c.t.Helper()
	ns, err := c.lab.Namespace(name)
	c.must(err)
	return ns
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// listen is the host's service manager.
func (h *labHost) listen() {
	h.notify = filepath.Join(filepath.Dir(h.file), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.notify, Net: "unixgram"})
	h.c.must(err)
	h.heard = make(chan string, 10000)
	h.c.t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			h.heard <- string(b[:n])
		}
	}()
}

// A flanneldProc is a daemon that runs on a host.
type flanneldProc struct {
	*netlab.Process
	h    *labHost
	log  *lockedBuffer
	said []string // to its service manager, up to now
}

// command is this program on the host, ready to be started. It has the host's subnet
// file, through the environment, and nothing else of ours.
func (h *labHost) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	h.c.must(err)
	cmd := exec.Command(self, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), roleVariable + "=1", "FLANNELD_SUBNET_FILE=" + h.file}
	return cmd
}

// script writes a program to path that is command's, for what runs on the host.
func (h *labHost) script(path string) {
	h.c.t.Helper()
	self, err := os.Executable()
	h.c.must(err)
	text := fmt.Sprintf("#!/bin/sh\n%s=1 FLANNELD_SUBNET_FILE='%s' exec '%s' \"$@\"\n", roleVariable, h.file, self)
	h.c.must(os.WriteFile(path, []byte(text), 0o755))
}

// start starts a daemon with the flags, which find the cluster's etcd by themselves
// only after forwardEtcd; usually they begin with c.endpoints(). Its log is shown when
// the test fails.
func (h *labHost) start(args ...string) *flanneldProc {
	h.c.t.Helper()
	for len(h.heard) > 0 {
		<-h.heard // its predecessor's
	}
	p := &flanneldProc{h: h, log: new(lockedBuffer)}
	cmd := h.command(args...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+h.notify)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	proc, err := h.Start(cmd)
	h.c.must(err)
	p.Process = proc
	h.c.t.Cleanup(func() {
		// Before its directory is removed, where it would put the file back.
		_ = p.Signal(syscall.SIGKILL) // an error if it has ended
		_ = p.Wait()
		if h.c.t.Failed() {
			h.c.t.Logf("%s: flanneld %s:\n%s", h.Name(), strings.Join(args, " "), p.log)
		}
	})
	return p
}

// run runs a command such as cleanup to its end.
func (h *labHost) run(args ...string) (code int, stdout, stderr string) {
	h.c.t.Helper()
	cmd := h.command(args...)
	var out, errs lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	return exitCode(h.c.t, h.Run(cmd)), out.String(), errs.String()
}

// endpoints is the flag that tells a daemon where the cluster's etcd is.
func (c *cluster) endpoints() string { return "-etcd-endpoints=" + c.etcd.Endpoint() }

// exitCode is the status of a process that has ended.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err == nil {
		return 0
	}
	return exit.ExitCode()
}

// hears waits for a message to the service manager.
func (p *flanneldProc) hears(prefix string) {
	p.h.c.t.Helper()
	ended, limit := make(chan error, 1), patience
	go func(ended chan<- error) { ended <- p.Wait() }(ended)
	for {
		select {
		case s := <-p.h.heard:
			p.said = append(p.said, s)
			if strings.HasPrefix(s, prefix) {
				return
			}
		case <-ended:
			ended, limit = nil, time.Second // for what it said at last
		case <-time.After(limit):
			p.h.c.t.Fatalf("%s: flanneld never said %s: %q", p.h.Name(), prefix, p.said)
		}
	}
}

// ready waits for READY=1 and returns what the host's subnet file says then.
func (p *flanneldProc) ready() subnetenv.File {
	p.h.c.t.Helper()
	p.hears("READY=1")
	f, err := subnetenv.Read(p.h.file)
	p.h.c.must(err)
	return f
}

// stop sends SIGTERM and returns the exit status, and how long it took.
func (p *flanneldProc) stop() (code int, took time.Duration) {
	p.h.c.t.Helper()
	began := time.Now()
	p.h.c.must(p.Signal(syscall.SIGTERM))
	code = p.wait()
	return code, time.Since(began)
}

// wait waits for the end and returns the exit status.
func (p *flanneldProc) wait() int {
	p.h.c.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	return exitCode(p.h.c.t, receive(p.h.c.t, p.h.Name()+": the end of flanneld", ended))
}

// bridge makes docker0 with the first address of the host's subnet, as Docker does
// with --bip of the subnet file.
func (h *labHost) bridge(f subnetenv.File) netip.Addr {
	h.c.t.Helper()
	addr := f.Subnet.Addr().Next()
	h.c.must(h.Bridge("docker0"))
	h.c.must(h.AddAddr("docker0", netip.PrefixFrom(addr, f.Subnet.Bits())))
	return addr
}

// ping asks once a moment until to has answered, or patience has an end.
func (h *labHost) ping(from, to netip.Addr) {
	h.c.t.Helper()
	pingFrom(h.c.t, h.NS, from, to)
}

// pingFrom is ping in any namespace.
func pingFrom(t *testing.T, ns *netlab.NS, from, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		if err = pingOnce(ctx, ns, from, to); err == nil {
			return
		}
	}
	t.Fatalf("%s: no answer from %s to %s: %v", ns.Name(), to, from, err)
}

func pingOnce(ctx context.Context, ns *netlab.NS, from, to netip.Addr) error {
	_, err := traffic.Ping(ctx, traffic.In[*netlab.Process](ns), traffic.PingConfig{Addr: to, Source: from, Count: 3, Interval: time.Millisecond, Timeout: 300 * time.Millisecond})
	return err
}

// get fetches a URL on the host itself, such as http://127.0.0.1:8080/readyz.
func (h *labHost) get(url string) (code int, body string, err error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: h.dial}
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// dial connects from the host.
func (h *labHost) dial(_ context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.Do(func() (err error) { conn, err = net.Dial(network, addr); return err })
	return conn, err
}

// listenTCP listens on the host.
func (h *labHost) listenTCP(at string) (l net.Listener) {
	h.c.t.Helper()
	h.c.must(h.Do(func() (err error) { l, err = net.Listen("tcp", at); return err }))
	return l
}

// forwardEtcd makes the cluster's etcd reachable at an address of the host itself,
// such as 127.0.0.1:2379, where a member of the cluster would be.
func (h *labHost) forwardEtcd(at string) {
	h.c.t.Helper()
	l := h.listenTCP(at)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	h.c.t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { h.forward(ctx, in) })
		}
	})
}

// forward carries one connection to etcd until either side or ctx ends it.
func (h *labHost) forward(ctx context.Context, in net.Conn) {
	defer in.Close()
	out, err := h.dial(ctx, "tcp", h.c.etcd.Addr())
	if err != nil {
		return
	}
	end := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer end()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(in, out)
		in.Close()
	}()
	_, _ = io.Copy(out, in)
	out.Close()
	<-back
}
