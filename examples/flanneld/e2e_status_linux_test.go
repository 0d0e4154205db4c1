package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// status runs flanneld status on the host, as text and as JSON.
func (h *labHost) status(args ...string) (code int, text string) {
	h.c.t.Helper()
	code, text, stderr := h.run(append([]string{"status"}, args...)...)
	if stderr != "" {
		h.c.t.Errorf("%s: status writes to standard error: %s", h.Name(), stderr)
	}
	return code, text
}

// says waits until flanneld status on the host has an exit status and all of the texts.
func (h *labHost) says(code int, want ...string) (text string) {
	h.c.t.Helper()
	h.c.t.Cleanup(func() {
		if h.c.t.Failed() {
			h.c.t.Logf("%s: flanneld status:\n%s", h.Name(), text)
		}
	})
	eventually(h.c.t, fmt.Sprintf("%s: status is %d with %q", h.Name(), code, want), func() bool {
		var got int
		got, text = h.status()
		for _, w := range want {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return got == code
	})
	return text
}

// document is flanneld status -json.
func (h *labHost) document(args ...string) (code int, r report.Report) {
	h.c.t.Helper()
	code, text := h.status(append(args, "-json")...)
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		h.c.t.Fatalf("%v:\n%s", err, text)
	}
	return code, r
}

// TestStatusOfACluster: two hosts and a pod on each, and nothing to complain of, with a
// backend in the daemon and one in the kernel. Then etcd dies and comes back, a host with
// another backend joins, and the daemon ends in each way there is.
func TestStatusOfACluster(t *testing.T) {
	for _, backend := range []string{"udp", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			if backend == "vxlan" {
				netlab.Require(t, netlab.NeedVXLAN)
			}
			c := newCluster(t, 2, etcdtest.Config{NoV2: true})
			k := c.keysOf(3)
			k.set(configKey, networkOf(`{"Type":"`+backend+`"}`))
			all := c.members(c.hosts, "-ip-masq")
			reach(all[0].pod, all[1].pod)
			for i, m := range all {
				m.tells(all[1-i], backend)
			}
			m := all[0]
			etcdDies(c, m)
			other, is := `{"PublicIP":"192.0.2.77","PublicIPv6":null}`, "udp"
			if backend == "udp" {
				other, is = vxlanLease(netip.MustParseAddr("192.0.2.77"), "02:00:00:00:00:77"), "vxlan"
			}
			k.set(subnetsKey+"10.5.99.0-24", other)
			m.says(1, "error: peer 10.5.99.0/24: has the backend "+is+" and this host "+backend, "\n1 error\n")
			daemonEnds(m)
		})
	}
}

// tells holds the report of a host on which all is well against what is known of it.
func (m *member) tells(peer *member, backend string) {
	t := m.c.t
	t.Helper()
	text := m.says(0, "ready\n", "backend "+backend, "all is well\n", m.file.Subnet.String(), m.c.etcd.Endpoint()+" /coreos.com/network",
		"forward and masquerade, verified", peer.file.Subnet.String()+"   "+peer.addr.String()+"   "+backend+"\n")
	traffic := map[string]string{"udp": "\ntraffic    sent ", "vxlan": "\ntraffic    flannel.1: sent "}[backend]
	if !strings.Contains(text, traffic) {
		t.Errorf("no counters of packets (%q):\n%s", traffic, text)
	}
	code, r := m.document("-ping")
	if code != 0 || !r.OK || len(r.Problems) > 0 || len(r.Peers) != 1 || r.Lease == nil || r.Host == nil || r.SubnetFile == nil {
		t.Fatalf("%s: exit %d, %+v", m.Name(), code, r)
	}
	p := r.Peers[0]
	if p.Subnet != peer.file.Subnet || p.PublicIP != peer.addr || p.Ping == nil || p.Ping.RTT <= 0 || !p.Ping.Full {
		t.Errorf("%s: peer %+v, ping %+v", m.Name(), p, p.Ping)
	}
	device := map[string]string{"udp": "flannel0", "vxlan": "flannel.1"}[backend]
	if h := r.Host; h.Interface != "eth0" || h.Addr4 != m.addr || h.MTU != 1500 || h.Device != device || h.DeviceMTU != m.file.MTU {
		t.Errorf("%s: host %+v", m.Name(), h)
	}
	if counts := r.Host.Counters; (r.Traffic != nil) != (backend == "udp") || (len(counts) == 1) != (backend == "vxlan") {
		t.Errorf("%s: counters %+v, of the device %+v", m.Name(), r.Traffic, counts)
	} else if len(counts) == 1 && (counts[0].Device != device || counts[0].TX.Packets == 0 || counts[0].RX.Bytes == 0) {
		t.Errorf("%s: counters of the device %+v", m.Name(), counts)
	}
	if f := r.SubnetFile; f.Path != m.labHost.file || f.Subnet != m.file.Subnet || f.MTU != m.file.MTU || f.Error != "" {
		t.Errorf("%s: file %+v", m.Name(), f)
	}
	if l := r.Lease; l.Subnet != m.file.Subnet || l.MTU != m.file.MTU || l.PublicIP != m.addr || l.Key != m.file.Key().String() || !r.Made.Before(l.Renews) || !l.Renews.Before(l.Expires) {
		t.Errorf("%s: lease %+v", m.Name(), l)
	}
}

// etcdDies: a warning, since packets flow on, and none when it is back.
func etcdDies(c *cluster, m *member) {
	c.etcd.Kill()
	m.says(0, "warning: etcd: no answer for", c.etcd.Endpoint(), "\n1 warning\n")
	c.etcd.Run()
	m.says(0, "all is well\n")
}

// daemonEnds ends a daemon by SIGTERM, and by SIGKILL, after which the next one takes
// the socket over.
func daemonEnds(m *member) {
	t := m.c.t
	t.Helper()
	socket := m.beside("subnet.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	m.ends()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	m.says(1, "flanneld   no answer\n", "file       "+m.labHost.file+", "+m.file.Subnet.String(), "error: daemon: flanneld does not run: there is no "+socket, "-> start it")
	m.again()
	m.c.must(m.proc.Signal(syscall.SIGKILL))
	_ = m.proc.Wait() // killed
	m.says(1, "flanneld does not run: nobody listens at "+socket)
	m.again()
	m.c.must(m.proc.Signal(syscall.SIGKILL))
	_ = m.proc.Wait()
	if code, _, log := m.run("cleanup"); code != 0 || !strings.Contains(log, "name="+socket) {
		t.Errorf("cleanup after SIGKILL: exit %d\n%s", code, log)
	}
	m.again()
	m.says(1, "ready\n", "\n1 error\n") // the peer with another backend
}

// TestStatusWhileWaiting: the daemon answers before it has anything, and says what it
// waits for; stopped, it does not answer, and that is said, too.
func TestStatusWhileWaiting(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	h := c.hosts[0]
	c.etcd.Stop()
	p := h.start(c.endpoints(), "-etcd-version=3")
	h.says(1, "not ready\n", "error: etcd: no answer yet: API 3", "refused\n    -> is etcd running", "etcd       "+c.etcd.Endpoint())
	c.etcd.Run()
	h.says(1, "error: etcd: the network is not configured yet", "-> write the key /coreos.com/network/config")
	c.etcd.Put(configKey, network)
	f := p.ready()
	h.says(0, "peers      none", "all is well\n")
	c.must(p.Signal(syscall.SIGSTOP))
	if code, text := h.status("-timeout=1"); code != 1 || !strings.Contains(text, "error: daemon: no answer at ") || !strings.Contains(text, "within 1 seconds") || !strings.Contains(text, f.Subnet.String()) {
		t.Errorf("a daemon that is stopped: exit %d\n%s", code, text)
	}
	c.must(p.Signal(syscall.SIGCONT))
	h.says(0, "all is well\n")
	h.asNobody()
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// asNobody runs status as a user who may not.
func (h *labHost) asNobody() {
	t := h.c.t
	t.Helper()
	cmd := h.command("status")
	cmd.Path = "/proc/self/exe" // the directory that go test builds in is root's alone
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	dir := filepath.Dir(h.file)
	for _, d := range []string{dir, filepath.Dir(dir)} { // as /run/flannel is
		h.c.must(os.Chmod(d, 0o755))
	}
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	code := exitCode(t, h.Run(cmd))
	for _, want := range []string{"can't be asked at " + h.beside("subnet.sock") + ": permission denied\n    -> run this as root", "file       " + h.file + ", 10.5."} {
		if code != 1 || !strings.Contains(out.String(), want) {
			t.Errorf("as nobody: exit %d, want %q:\n%s", code, want, &out)
		}
	}
}

// TestStatusSocketCantBeHad: a daemon without it does all its work, says so in one line,
// and a second daemon on the host does not take the first one's.
func TestStatusSocketCantBeHad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.etcd.Put(configKey, network)
	h := c.hosts[0]
	for _, socket := range []string{"/proc/flannel.sock", "/tmp/" + strings.Repeat("x", 120)} {
		p := h.start(c.endpoints(), "-status-socket="+socket)
		p.ready()
		if log := p.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, socket) {
			t.Errorf("%s: not one warning:\n%s", socket, log)
		}
		want := fmt.Sprintf("error: daemon: process %d runs but does not answer at its socket: there is no %s\n", p.Pid(), socket)
		if len(socket) > longestSocket {
			want = "longer than the 107 bytes that a socket's name may have\n    -> give flanneld, and flanneld status, a shorter -status-socket\n"
		}
		if code, text := h.status("-status-socket=" + socket); code != 1 || !strings.Contains(text, want) {
			t.Errorf("%s: exit %d, want %q:\n%s", socket, code, want, text)
		}
		if code, _ := p.stop(); code != 0 {
			t.Errorf("%s: exit %d", socket, code)
		}
	}
	first := h.start(c.endpoints())
	first.ready()
	cmd := h.command(c.endpoints(), "-etcd-prefix=/other/network", "-subnet-file="+h.beside("other.env"), "-status-socket="+h.beside("subnet.sock"))
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	second, err := h.Start(cmd)
	c.must(err)
	eventually(t, "the second daemon says so", log.has("another daemon answers there"))
	c.must(second.Signal(syscall.SIGTERM))
	_ = second.Wait()
	_, r := h.document()
	if r.Daemon == nil || !r.OK || r.Store.Prefix != "/coreos.com/network" {
		t.Errorf("the first daemon's report: %+v", r)
	}
}
