package dist

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/machine"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// A bootedHost is a machine with systemd that has this directory, the program in it, in
// a directory whose name has a blank.
type bootedHost struct {
	*machine.Machine
	t *testing.T
}

// boot boots one, and has the test run in parallel.
func boot(t *testing.T) bootedHost {
	t.Helper()
	machine.Require(t)
	file := program(t) // before the tests are parallel: it is built once
	t.Parallel()
	ns, err := netlab.ForTest(t).Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	h := bootedHost{machine.Start(t, machine.Config{NS: ns}), t}
	files := tree(t, ".")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files["flanneld"] = "\n" + string(text)
	for name, text := range files {
		if _, text, _ = strings.Cut(text, "\n"); filepath.Ext(name) != ".go" {
			h.write("/root/a dist/"+name, text)
		}
	}
	return h
}

func (h bootedHost) write(name, text string) {
	h.t.Helper()
	mode := os.FileMode(0o644)
	if strings.HasPrefix(text, "#!") || strings.HasPrefix(text, "\x7fELF") {
		mode = 0o755
	}
	if err := h.WriteFile(name, []byte(text), mode); err != nil {
		h.t.Fatal(err)
	}
}

// run runs a script that has to succeed, and returns all that it wrote.
func (h bootedHost) run(script string) string {
	h.t.Helper()
	stdout, stderr, err := h.Run(h.t.Context(), script)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(stdout) + string(stderr)
}

// says runs install.sh, which has to succeed or not, and looks for words in what it wrote.
func (h bootedHost) says(succeeds bool, args string, want ...string) {
	h.t.Helper()
	stdout, stderr, err := h.Run(h.t.Context(), `"/root/a dist/install.sh" `+args)
	if (err == nil) != succeeds {
		h.t.Errorf("install.sh %s: %v\n%s%s", args, err, stdout, stderr)
	}
	for _, word := range want {
		if !strings.Contains(string(stdout)+string(stderr), word) {
			h.t.Errorf("install.sh %s does not say %q:\n%s%s", args, word, stdout, stderr)
		}
	}
}

// TestInstallForeignUnit is a host whose operator has a flanneld.service of their own,
// which comes first in systemd's order.
func TestInstallForeignUnit(t *testing.T) {
	const unit = "/etc/systemd/system/flanneld.service"
	h := boot(t)
	h.write(unit, "[Service]\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
	h.run("systemctl daemon-reload; systemctl enable --now flanneld")
	pid := h.run("systemctl show -p MainPID flanneld")
	h.says(false, "--enable", unit, "nothing enabled")
	h.says(true, "", "warning: systemd takes "+unit)
	h.says(true, "--uninstall", unit, "neither stopped nor disabled")
	h.says(false, "--uninstall", "nothing is installed")
	h.run("systemctl is-active flanneld; systemctl is-enabled flanneld; test ! -e /usr/local/bin/flanneld")
	if got := h.run("systemctl show -p MainPID flanneld"); got != pid {
		t.Errorf("it was %s and is %s", pid, got)
	}
	h.run("systemctl disable --now flanneld; mv " + unit + " /usr/lib/systemd/system/; systemctl daemon-reload")
	h.says(true, "", "now hides /")
	// Ours is stopped with what it is.
	h.run("systemctl start --no-block flanneld; systemctl enable flanneld")
	h.says(true, "--uninstall", "flanneld is removed")
	h.run("test -z \"$(systemctl list-jobs --no-legend)\"; ! systemctl is-active flanneld; ! systemctl is-enabled flanneld")
}

// TestInstallProgram has files that are not the program for this machine refused.
func TestInstallProgram(t *testing.T) {
	h := boot(t)
	h.write("/root/text", "flanneld\n")
	h.write("/root/original", "#!/bin/sh\n[ $1 = -version ] || sleep 100\necho v0.10.0 >&2\n")
	h.write("/root/elf", "\x7fELF\x01\x01\x01 of another machine")
	for _, name := range []string{"text", "original", "elf"} {
		h.says(false, "--binary "+name, "does not say flanneld", "nothing is changed")
	}
	h.run("test ! -e /usr/local/lib/systemd/system/flanneld.service; ! ls /usr/local/bin/flanneld*")
}

// TestDockerDropIn has Docker started by the drop-in: not without flanneld, and with the
// MTU that there is now. Docker is a script here that writes down its arguments.
func TestDockerDropIn(t *testing.T) {
	h := boot(t)
	h.write("/usr/local/sbin/dockerd", "#!/bin/sh\necho \"$*\" >/run/args\nexec sleep infinity\n")
	h.write("/etc/systemd/system/docker.service", "[Service]\nExecStart=false\n")
	h.write("/etc/docker/daemon.json", `{"debug": true, "bip": "10.9.0.1/24", "mtu" : 1400}`)
	h.says(true, "--docker", `take "bip" "mtu" out of /etc/docker/daemon.json`)
	h.run("systemctl mask flanneld; mkdir -p /run/flannel") // its part is played here
	subnet := func(mtu string) {
		t.Helper()
		h.write("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.36.1/24\nFLANNEL_MTU="+mtu+"\nFLANNEL_IPMASQ=true\n")
	}
	has := func(when, want string) {
		t.Helper()
		if got := h.run("for i in $(seq 300); do [ -s /run/args ] && break; sleep 0.1; done; cat /run/args"); !strings.Contains(got, "--bip=10.5.36.1/24 --mtu="+want+" ") {
			t.Errorf("%s Docker has %s, want MTU %s", when, got, want)
		}
	}
	restart := "rm -f /run/args; systemctl restart docker"
	h.run("! systemctl start docker; test ! -e /run/args") // no file, no Docker
	subnet("1450")
	h.run("/usr/local/bin/flanneld mk-docker-opts -i -d /run/flannel/flannel_docker_opts.env; " + restart)
	has("at first", "1450")
	subnet("1372")
	h.run(restart)
	has("after a change", "1372")
	h.run("rm /run/flannel/subnet.env; " + restart)
	has("without a subnet file", "1372")
	if log := h.Journal("docker"); strings.Contains(log, "Control process exited") {
		t.Errorf("the journal has a complaint:\n%s", log)
	}
	subnet("1372")
	h.run("systemctl stop docker; systemctl unmask flanneld")
	h.run("echo FLANNELD_ETCD_ENDPOINTS=http://192.0.2.7:2379 >>/etc/default/flanneld")
	h.says(true, "--uninstall", "kept /etc/default/flanneld", `"/root/a dist/flanneld" cleanup -release -etcd-endpoints=http://192.0.2.7:2379`, "told twice")
	h.run("test ! -e /usr/local/bin/flanneld; test ! -e /usr/local/lib/systemd/system/docker.service.d")
}
