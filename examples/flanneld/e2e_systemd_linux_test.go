package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/internal/dockertest"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/machine"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// A systemdHost is a host of a cluster with systemd, Docker, and the directory dist in
// root's home as flanneld-dist, the program in it.
type systemdHost struct {
	*machine.Machine
	t  *testing.T
	on *labHost
}

// newSystemdHosts boots hosts. Nothing is installed or started on them.
func newSystemdHosts(t *testing.T, hosts int, dist []byte) (*cluster, []*systemdHost) {
	t.Helper()
	c := newCluster(t, hosts, etcdtest.Config{})
	var all []*systemdHost
	for _, h := range c.hosts {
		s := &systemdHost{machine.Start(t, machine.Config{NS: h.NS}), t, h}
		c.must(s.WriteFile("/root/dist.tar", dist, 0o600))
		s.run("mkdir flanneld-dist; tar -C flanneld-dist -xf dist.tar; rm dist.tar")
		all = append(all, s)
	}
	return c, all
}

// packDist makes an archive of the directory dist with the program in it.
func packDist(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "flanneld")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS("dist")); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&tar.Header{Name: "flanneld", Mode: 0o755, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// run runs a script that has to succeed, and returns what it wrote to stdout.
func (s *systemdHost) run(script string) string {
	s.t.Helper()
	out, _, err := s.Run(s.t.Context(), script)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// until runs a script again and again until it succeeds.
func (s *systemdHost) until(what, script string) {
	s.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, _, err = s.Run(s.t.Context(), script); err == nil {
			return
		}
	}
	s.t.Fatalf("never %s: %v", what, err)
}

// property is one that `systemctl show` has of a unit.
func (s *systemdHost) property(unit, name string) string {
	s.t.Helper()
	return s.run(fmt.Sprintf("systemctl show --value -p %s %s", name, unit))
}

// install runs install.sh and says where the cluster's etcd is.
func (s *systemdHost) install(c *cluster, more ...string) {
	s.t.Helper()
	s.run("sh flanneld-dist/install.sh --docker")
	lines := append([]string{"FLANNELD_ETCD_ENDPOINTS=" + c.etcd.Endpoint(), "FLANNELD_IP_MASQ=true"}, more...)
	s.run("cat >>/etc/default/flanneld <<'EOF'\n" + strings.Join(lines, "\n") + "\nEOF")
}

// image makes Docker's image busybox, of this system's.
func (s *systemdHost) image() {
	s.t.Helper()
	s.run(`mkdir -p image/bin image/tmp
cp "$(command -v busybox)" image/bin/busybox
for a in $(busybox --list); do [ $a = busybox ] || ln -s busybox image/bin/$a; done
tar -C image -c . | docker import -c 'ENV PATH=/bin' - busybox >/dev/null
rm -r image`)
}

// addresses are those of a device, of IPv4.
func (s *systemdHost) addresses(device string) string {
	s.t.Helper()
	link, err := s.on.Netlink().LinkByName(device)
	if err != nil {
		s.t.Fatalf("%s: %s: %v", s.Name(), device, err)
	}
	list, err := s.on.Netlink().AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		s.t.Fatal(err)
	}
	var all []string
	for _, a := range list {
		all = append(all, a.IPNet.String())
	}
	return strings.Join(all, " ")
}

// subnet reads the subnet file, and compares what docker0 has with it.
func (s *systemdHost) subnet() subnetenv.File {
	s.t.Helper()
	text, err := s.ReadFile("/run/flannel/subnet.env")
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := subnetenv.Parse(text)
	if err != nil {
		s.t.Fatal(err)
	}
	bip := fmt.Sprintf("%s/%d", f.Subnet.Addr().Next(), f.Subnet.Bits())
	if got := s.addresses("docker0"); got != bip {
		s.t.Errorf("%s: docker0 has %q and the subnet file %s", s.Name(), got, bip)
	}
	want := fmt.Sprintf("DOCKER_OPT_BIP=\"--bip=%s\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=%d\"", bip, f.MTU)
	if got := s.run("cat /run/flannel/flannel_docker_opts.env"); got != want {
		s.t.Errorf("%s: Docker's options are\n%s\nwant\n%s", s.Name(), got, want)
	}
	return f
}

// TestSystemd is a cluster as install.sh makes it: the units under their hardening, in
// the order that the drop-in says, and through restarts and crashes.
func TestSystemd(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	dockertest.Require(t)
	c, hosts := newSystemdHosts(t, 2, packDist(t))
	for _, s := range hosts {
		s.install(c)
		s.run("systemctl start --no-block flanneld docker")
	}
	for _, s := range hosts {
		s.waits()
	}
	c.etcd.Put(configKey, networkOf(`{"Type":"udp"}`)) // TestGuide has vxlan
	for _, s := range hosts {
		s.until("Docker runs", "systemctl -q is-active flanneld; systemctl -q is-active docker")
		if f := s.subnet(); f.MTU != 1472 || !f.IPMasq {
			t.Errorf("%s: the subnet file has %+v", s.Name(), f)
		}
		s.image()
	}
	f := hosts[0].talk(hosts[1])
	f.throughRestarts(t, hosts[0])
	for _, s := range hosts {
		s.complains()
	}
}

// waits checks that flanneld waits for the network's configuration, and Docker for it.
func (s *systemdHost) waits() {
	s.t.Helper()
	s.until("flanneld says what it waits for", `systemctl show --value -p StatusText flanneld | grep -q .`)
	for unit, want := range map[string]string{"flanneld": "activating", "docker": "inactive"} {
		if got := s.property(unit, "ActiveState"); got != want {
			s.t.Errorf("%s: without the network's configuration %s is %s, want %s", s.Name(), unit, got, want)
		}
	}
	if jobs := s.run("systemctl list-jobs --no-legend"); !regexp.MustCompile(`docker\.service +start +waiting`).MatchString(jobs) {
		s.t.Errorf("%s: Docker does not wait for flanneld:\n%s", s.Name(), jobs)
	}
}

// A talker is a connection between containers of two hosts, on which something comes
// every moment.
type talker struct {
	client, server *systemdHost
	dockerPid      string
}

// talk has containers of both hosts reach each other and the world.
func (s *systemdHost) talk(other *systemdHost) talker {
	s.t.Helper()
	other.run(`docker run -d --name web busybox sh -c 'echo hello >/tmp/index.html; httpd -h /tmp; tail -f /dev/null | nc -l -p 7 >/tmp/ticks'`)
	web := other.run(`docker inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}}' web`)
	s.until("hello comes", "docker run --rm busybox timeout 5 wget -q -O - http://"+web+"/ | grep hello")
	// Etcd's host knows no way to the overlay: only who is masqueraded has an answer.
	s.run("docker run --rm busybox timeout 5 wget -q -O - http://" + gateway.String() + ":" + s.etcdPort() + "/version")
	s.run(`docker run -d --name client busybox sh -c 'while echo tick; do sleep 0.1; done | nc ` + web + ` 7'`)
	f := talker{s, other, s.property("docker", "MainPID")}
	f.goesOn("at first")
	return f
}

// etcdPort is the port in the configuration.
func (s *systemdHost) etcdPort() string {
	s.t.Helper()
	return s.run(`sed -n 's/^FLANNELD_ETCD_ENDPOINTS=.*://p' /etc/default/flanneld`)
}

// goesOn checks that the connection carries something now, that it is the first one,
// and that Docker was not restarted.
func (f talker) goesOn(when string) {
	f.server.t.Helper()
	count := "docker exec web wc -l </dev/null /tmp/ticks | cut -d' ' -f1"
	f.server.until("the connection goes on "+when, fmt.Sprintf("before=$(%s); sleep 0.3; [ $(%[1]s) -gt $before ]", count))
	if got := f.client.run(`docker inspect -f '{{.State.Running}} {{.RestartCount}}' client`); got != "true 0" {
		f.client.t.Errorf("%s the client is %s", when, got)
	}
	if got := f.client.property("docker", "MainPID"); got != f.dockerPid {
		f.client.t.Errorf("%s Docker is process %s, was %s", when, got, f.dockerPid)
	}
}

// throughRestarts restarts, kills and stops flanneld beside the connection.
func (f talker) throughRestarts(t *testing.T, s *systemdHost) {
	t.Helper()
	before, pid := s.subnet(), s.property("flanneld", "MainPID")
	s.run("systemctl restart flanneld")
	if again := s.property("flanneld", "MainPID"); again == pid {
		t.Errorf("systemctl restart has left process %s", pid)
	}
	f.goesOn("after a restart")

	s.run("systemctl kill -s KILL flanneld")
	s.until("flanneld is back after SIGKILL", `[ "$(systemctl show --value -p NRestarts flanneld)" = 1 ]; systemctl -q is-active flanneld`)
	f.goesOn("after SIGKILL")

	// The watchdog: a process that hangs is killed and started again.
	s.run(`mkdir -p /etc/systemd/system/flanneld.service.d
printf '[Service]\nWatchdogSec=3\n' >/etc/systemd/system/flanneld.service.d/test.conf
systemctl daemon-reload
systemctl restart flanneld
systemctl kill -s STOP flanneld`)
	// systemctl restart has set the count to 0.
	s.until("the watchdog has restarted flanneld", `[ "$(systemctl show --value -p NRestarts flanneld)" -ge 1 ]; systemctl -q is-active flanneld`)
	if log := s.Journal("flanneld"); !strings.Contains(log, "Watchdog timeout") {
		t.Errorf("the watchdog did not bark:\n%s", log)
	}
	f.goesOn("after the watchdog")
	if after := s.subnet(); after != before {
		t.Errorf("restarts have made %+v of %+v", after, before)
	}
	s.run("systemctl stop flanneld; systemctl -q is-active docker")
	if got := s.property("flanneld", "Result"); got != "success" {
		t.Errorf("the stop was a %s", got)
	}
	// What Docker starts with outlives flanneld: who restarts Docker now gets the same.
	s.run("test -s /run/flannel/subnet.env")
	s.run("systemctl restart docker")
	if after := s.subnet(); after != before {
		t.Errorf("the stop has made %+v of %+v", after, before)
	}
}

// complains looks for what the unit's hardening has forbidden, and for restarts that
// nobody asked for.
func (s *systemdHost) complains() {
	s.t.Helper()
	log := s.Journal("flanneld")
	for _, word := range []string{"ermission denied", "peration not permitted", "ead-only file system", "SIGSYS", "Unknown key", "Failed to"} {
		if strings.Contains(log, word) {
			s.t.Errorf("%s: flanneld's journal has %q:\n%s", s.Name(), word, log)
		}
	}
	if got, err := strconv.Atoi(s.property("docker", "NRestarts")); err != nil || got != 0 {
		s.t.Errorf("%s: Docker was restarted %d times, %v", s.Name(), got, err)
	}
}
