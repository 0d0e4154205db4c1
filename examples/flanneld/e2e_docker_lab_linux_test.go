package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/dockertest"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
	"golang.org/x/sys/unix"
)

// Networks as flannel's users have configured them for Docker: that of the guides with
// the udp backend, and that of those with vxlan, which has Docker's own 172.17.0.0/16
// inside.
const (
	dockerUDP   = `{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"udp","Port":7890}}`
	dockerVXLAN = `{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.16.16.0","SubnetMax":"172.31.247.0","Backend":{"Type":"vxlan","VNI":172,"Port":8889}}`
)

// Every host's web server has two ports. Docker's own rules let everybody have the one
// that is published, from the overlay too, so what is to show flanneld's rules at work
// asks at the other.
const (
	publishedPort = 12345
	innerPort     = 8080
)

// A dockerHost is a host with a daemon and a Docker engine.
type dockerHost struct {
	*labHost
	args    []string // of the daemon
	proc    *flanneldProc
	file    subnetenv.File
	own     []string // of the engine's options, those that are not flanneld's
	options []string // all of the engine's
	engine  *dockertest.Engine
	web     *dockertest.Container // see startWeb
	data    string                // its directory /data
}

// newDockerHosts makes hosts with daemons that are ready. Forwarding is off, as on a
// host that has just been started: Docker forbids it to others when it turns it on.
func newDockerHosts(t *testing.T, c *cluster, args ...[]string) (all []*dockerHost) {
	t.Helper()
	for i, own := range args {
		h := &dockerHost{labHost: c.hosts[i], args: append([]string{c.endpoints(), "-ip-masq"}, own...), data: t.TempDir()}
		c.must(h.Sysctl("net/ipv4/ip_forward", "0"))
		if dockertest.Supports(t, "--allow-direct-routing") {
			// Without it engines since 28 drop what does not come through a published
			// port, in a place where no rule of ours can save it.
			h.own = append(h.own, "--allow-direct-routing")
		}
		h.proc = h.start(h.args...)
		all = append(all, h)
	}
	for _, h := range all {
		h.file = h.proc.ready()
	}
	return all
}

// dockerOptions are the engine's options as flanneld mk-docker-opts writes them, from
// the file that it writes.
func (h *dockerHost) dockerOptions() (all []string) {
	t := h.c.t
	t.Helper()
	file := h.beside("docker")
	if code, out, errs := h.run("mk-docker-opts", "-f", h.labHost.file, "-d", file, "-c"); code != 0 {
		t.Fatalf("%s: mk-docker-opts: exit %d\n%s%s", h.Name(), code, out, errs)
	}
	text, err := os.ReadFile(file)
	h.c.must(err)
	line, ok := strings.CutPrefix(strings.TrimSpace(string(text)), `DOCKER_OPTS="`)
	line, end := strings.CutSuffix(line, `"`)
	if !ok || !end {
		t.Fatalf("%s: the options file is %q", h.Name(), text)
	}
	return strings.Fields(line)
}

// startEngine starts the engine with the options that flanneld has for it, and none of
// ours that has to do with them. It does not wait.
func (h *dockerHost) startEngine() {
	t := h.c.t
	t.Helper()
	options := h.dockerOptions()
	want := []string{"--bip=" + netip.PrefixFrom(h.file.Subnet.Addr().Next(), h.file.Subnet.Bits()).String(), "--ip-masq=false", fmt.Sprintf("--mtu=%d", h.file.MTU)}
	if !slices.Equal(options, want) {
		t.Errorf("%s: mk-docker-opts says %q, want %q", h.Name(), options, want)
	}
	h.options = append(options, h.own...)
	h.engine = dockertest.Start(t, h.NS, h.options...)
}

// ends sends the daemon a signal and waits for its end.
func (h *dockerHost) ends(signal syscall.Signal) {
	h.c.t.Helper()
	h.c.must(h.proc.Signal(signal))
	_ = h.proc.wait()
}

// again starts the daemon again, and waits until it is ready. It must have the subnet
// that it had.
func (h *dockerHost) again(args ...string) {
	h.c.t.Helper()
	h.proc = h.start(append(slices.Clone(h.args), args...)...)
	if f := h.proc.ready(); f != h.file {
		h.c.t.Errorf("%s: after a restart the subnet file is %+v, before it %+v", h.Name(), f, h.file)
	}
}

// forbids checks that Docker has forbidden forwarding, without which half of what is
// tested would work without flanneld's rules.
func (h *dockerHost) forbids(when string) {
	h.c.t.Helper()
	out, err := h.output("iptables", "-S", "FORWARD")
	if err != nil || !strings.HasPrefix(out, "-P FORWARD DROP\n") {
		h.c.t.Errorf("%s: %s Docker has not set the policy DROP: %v\n%s", h.Name(), when, err, out)
	}
}

// output runs a program of the system on the host.
func (h *labHost) output(name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	var out lockedBuffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = h.Run(cmd)
	return out.String(), err
}

// startWeb starts a web server, published at publishedPort of the host. It has some megabytes
// under /blob, and /cgi-bin/who says who asks: the address that the server sees. If
// the engine ends it, it comes back with the engine.
func (h *dockerHost) startWeb() {
	h.c.t.Helper()
	blob := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(blob)
	h.c.must(os.WriteFile(h.data+"/blob", blob, 0o644))
	h.c.must(os.Mkdir(h.data+"/cgi-bin", 0o755))
	h.c.must(os.WriteFile(h.data+"/cgi-bin/who", []byte("#!/bin/sh\necho Content-Type: text/plain; echo; echo $REMOTE_ADDR\n"), 0o755))
	h.web = h.engine.Run(dockertest.Config{
		Cmd:     []string{"sh", "-c", fmt.Sprintf("httpd -h /data -p 0.0.0.0:%d; exec httpd -f -h /data -p 0.0.0.0:%d", innerPort, publishedPort)},
		Publish: []int{publishedPort}, Data: h.data, Restart: true,
	})
}

// inner is where the web server is in the overlay, if the other containers of the
// overlay may reach it.
func (h *dockerHost) inner() netip.AddrPort {
	h.c.t.Helper()
	return netip.AddrPortFrom(h.web.Addr(), innerPort)
}

// published is a host's, or whoever's, published port.
func published(addr netip.Addr) netip.AddrPort { return netip.AddrPortFrom(addr, publishedPort) }

// webURL is a page of a web server.
func webURL(at netip.AddrPort, page string) string { return fmt.Sprintf("http://%s/%s", at, page) }

// wget is the command that fetches a page within some seconds. With a limit of its own (-T)
// the wget of Debian's busybox 1.35 dies of SIGSEGV.
func wget(seconds int, url string) []string {
	return []string{"timeout", strconv.Itoa(seconds), "wget", "-q", "-O", "-", url}
}

// seenBy asks a web server, from a container, who asks. It tries for a
// while: after a restart peers need a moment to hear of it.
func (h *dockerHost) seenBy(at netip.AddrPort) (who string) {
	h.c.t.Helper()
	var r dockertest.Result
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if r = h.web.Try(wget(3, webURL(at, "cgi-bin/who"))...); r.Code == 0 {
			return strings.TrimSpace(r.Stdout)
		}
	}
	h.c.t.Fatalf("%s: a container gets no answer from %s: %+v", h.Name(), at, r)
	return ""
}

// seenByHost is seenBy from a host itself.
func (h *labHost) seenByHost(at netip.AddrPort) (who string) {
	h.c.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		var code int
		if code, who, err = h.get(webURL(at, "cgi-bin/who")); err == nil && code == 200 {
			return strings.TrimSpace(who)
		}
	}
	h.c.t.Fatalf("%s: no answer from %s: %v", h.Name(), at, err)
	return ""
}

// outsider is the router that the hosts share: on their Ethernet, without a daemon and
// without a way to the overlay.
func (c *cluster) outsider() *labHost { return &labHost{NS: c.wire, c: c, addr: gateway} }

// whoServer listens outside and tells everyone who connects which address they have.
func (c *cluster) whoServer() netip.AddrPort {
	c.t.Helper()
	l := c.outsider().listenTCP(netip.AddrPortFrom(gateway, 0).String())
	ended := make(chan struct{})
	c.t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, conn.RemoteAddr().(*net.TCPAddr).IP.String()+"\n")
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// A line is a TCP connection from a container to one on another host, over which numbers
// go, fifty a second.
type line struct {
	t          *testing.T
	file       string // what has arrived
	from, to   *dockertest.Container
	fromS, toS dockertest.State // as they were at the start
}

// ncServer takes one connection. Its input is a pipe that never ends: at an end of its
// input it would close its side of the connection, whereupon the other nc would be gone.
const ncServer = "mkfifo /tmp/never; nc -l -p 9001 <>/tmp/never"

// newLine starts the two containers. Their engines should keep them when they restart.
func newLine(from, to *dockerHost) *line {
	t := from.c.t
	t.Helper()
	l := &line{t: t, file: filepath.Join(to.data, "line")}
	l.to = to.engine.Run(dockertest.Config{Cmd: []string{"sh", "-c", ncServer + " >/data/line"}, Data: to.data})
	l.toS = l.to.State()
	// Whoever comes before the server listens is refused, and nothing has been read then.
	const numbers = "i=0; while i=$((i+1)); do echo $i; usleep 20000; done"
	l.from = from.engine.Run(dockertest.Config{Cmd: []string{"sh", "-c", fmt.Sprintf("(%s) | (until nc %s 9001; do usleep 10000; done)", numbers, l.toS.Addr)}})
	l.fromS = l.from.State()
	return l
}

// count returns how many numbers have arrived: from 1 to it, each once and in order.
func (l *line) count() int {
	l.t.Helper()
	text, err := os.ReadFile(l.file)
	if err != nil {
		return 0 // the server has not begun
	}
	n := 0
	for s := range strings.Lines(string(text)) {
		if !strings.HasSuffix(s, "\n") {
			break // the rest is on its way
		}
		if n++; s != strconv.Itoa(n)+"\n" {
			l.t.Fatalf("the line's number %d is %q", n, s)
		}
	}
	return n
}

// flows waits until numbers that were not sent yet have arrived.
func (l *line) flows(when string) {
	l.t.Helper()
	before := l.count()
	eventually(l.t, when+" the TCP connection goes on", func() bool { return l.count() > before+10 })
}

// stalls waits until nothing arrives for as long as ten numbers take.
func (l *line) stalls(when string) {
	l.t.Helper()
	eventually(l.t, when+" the TCP connection stalls", func() bool {
		before := l.count()
		time.Sleep(200 * time.Millisecond)
		return l.count() == before
	})
}

// goesOn checks that numbers still arrive, over the connection that there was at the
// start, between the containers that there were. Another connection could not go on:
// the server takes one.
func (l *line) goesOn(when string) {
	l.t.Helper()
	l.flows(when)
	if f, t := l.from.State(), l.to.State(); f != l.fromS || t != l.toS {
		l.t.Errorf("%s the containers are %+v and %+v, were %+v and %+v", when, f, t, l.fromS, l.toS)
	}
}

// sorter tells for a tap what packets on the Ethernet are: "fragment", "bare" for one of
// the overlay that is not inside another, and "full" for an echo inside one of the
// backend that is as long as the MTU allows and must not be fragmented.
func (h *dockerHost) sorter(port, head int) func(packet []byte) string {
	return func(p []byte) string {
		src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		_, to := destination(p)
		inner := int(p[0]&15)*4 + 8 + head
		switch {
		case h.file.Network.Contains(src) || h.file.Network.Contains(dst):
			return "bare"
		case p[6]&0x3f|p[7] != 0:
			return "fragment"
		case to == port && len(p) > inner+20 && p[inner] == 0x45 && p[inner+9] == unix.IPPROTO_ICMP &&
			int(p[inner+2])<<8|int(p[inner+3]) == h.file.MTU && p[inner+6]&0x40 != 0:
			return "full"
		}
		return ""
	}
}
