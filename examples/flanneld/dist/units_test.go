package dist

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exposure is what systemd-analyze security may give the unit at most, in tenths. What
// it is made of: the host's network (0.5) with sockets (0.5), the packet filter and
// devices (0.4), root as the user and its user namespace (0.6).
const exposure = "19"

// foreignUnits are units that a host has, as far as ours have to do with them. They say
// what Debian's docker.io and docker-ce say.
func foreignUnits() map[string]string {
	return map[string]string{
		"docker.socket":      "[Socket]\nListenStream=/run/docker.sock\n",
		"containerd.service": "[Unit]\nAfter=network.target\n[Service]\nType=notify\nExecStart=/usr/bin/containerd\nRestart=always\nRestartSec=5\nDelegate=yes\nKillMode=process\n",
		"docker.service": "[Unit]\nAfter=network-online.target docker.socket containerd.service\nWants=network-online.target containerd.service\nRequires=docker.socket\n" +
			"[Service]\nType=notify\nEnvironmentFile=-/etc/default/docker\nExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS\n" +
			"Restart=on-failure\nStartLimitBurst=3\nStartLimitInterval=60s\nDelegate=yes\nKillMode=process\n[Install]\nWantedBy=multi-user.target\n",
		"network-online.target": "[Unit]\n", "network.target": "[Unit]\n", "multi-user.target": "[Unit]\n", "sysinit.target": "[Unit]\n",
		"basic.target": "[Unit]\n", "shutdown.target": "[Unit]\n", "sockets.target": "[Unit]\n",
	}
}

// host is a directory tree that has flanneld installed with everything, and beside it
// what the units name.
func host(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must(t, []string{"DESTDIR=" + root}, "./install.sh", "--docker", "--containerd", "--binary", script(t))
	for name, text := range foreignUnits() {
		write(t, filepath.Join(root, "usr/lib/systemd/system", name), text, 0o644)
	}
	for _, name := range []string{"bin/sh", "usr/bin/touch", "usr/bin/containerd", "usr/sbin/dockerd"} {
		write(t, filepath.Join(root, name), "#!/bin/sh\n", 0o755)
	}
	return root
}

// script is a program where it doesn't matter which.
func script(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "flanneld")
	write(t, file, "#!/bin/sh\necho flanneld\n", 0o755)
	return file
}

func write(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestUnitsVerify has systemd read the units and drop-ins as installed, and with each
// example switched on.
func TestUnitsVerify(t *testing.T) {
	need(t, "SYSTEMD", "systemd-analyze")
	root := host(t)
	verify := func() command {
		return run(t, nil, "systemd-analyze", "verify", "--man=no", "--root="+root, "flanneld.service", "docker.service", "containerd.service")
	}
	clean := func(what string) {
		t.Helper()
		if c := verify(); c.code != 0 || c.stdout+c.stderr != "" {
			t.Errorf("%s: exit %d\n%s%s", what, c.code, c.stdout, c.stderr)
		}
	}
	clean("as installed")
	examples, err := filepath.Glob("flanneld.service.d/*.example")
	if err != nil || len(examples) != 2 {
		t.Fatalf("examples %q, %v", examples, err)
	}
	for _, name := range examples {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, "etc/systemd/system", strings.TrimSuffix(name, ".example")), string(text), 0o644)
		clean(name)
	}
	write(t, filepath.Join(root, "etc/systemd/system/docker.service.d/50-x.conf"), "[Service]\nRestat=always\n", 0o644)
	if c := verify(); !strings.Contains(c.stderr, "Restat") {
		t.Errorf("a wrong line is not found, so this test proves nothing: %q", c.stderr)
	}
}

func TestUnitsSecurity(t *testing.T) {
	need(t, "SYSTEMD", "systemd-analyze")
	root := host(t)
	c := run(t, nil, "systemd-analyze", "security", "--no-pager", "--offline=true", "--root="+root, "--threshold="+exposure, "flanneld.service")
	if c.code != 0 || !strings.Contains(c.stdout, "Overall exposure level") {
		t.Errorf("exit %d\n%s%s", c.code, c.stdout, c.stderr)
	}
}

// TestUnitsAgree holds the units against each other and against what others rely on.
func TestUnitsAgree(t *testing.T) {
	const options = "/run/flannel/flannel_docker_opts.env" // CoreOS's name
	if got := setting(t, "docker.service.d/40-flannel.conf", "EnvironmentFile"); len(got) != 1 || got[0] != options {
		t.Errorf("Docker reads %q", got)
	}
	post := strings.Join(setting(t, "flanneld.service", "ExecStartPost"), "\n")
	if !strings.Contains(post, "mk-docker-opts -i -d "+options) {
		t.Errorf("flanneld writes by %q", post)
	}
	start := setting(t, "docker.service.d/40-flannel.conf", "ExecStart")
	if len(start) != 2 || start[0] != "" {
		t.Fatalf("Docker's ExecStart is %q, the first has to be empty", start)
	}
	for _, v := range []string{"$DOCKER_OPTS", "$DOCKER_OPT_BIP", "$DOCKER_OPT_MTU", "$DOCKER_OPT_IPMASQ"} {
		if !strings.Contains(start[1]+" ", " "+v+" ") {
			t.Errorf("Docker's ExecStart has no %s", v)
		}
	}
	// Docker tries until flanneld is ready, and has the options of now.
	for name, want := range map[string]string{"Restart": "always", "RestartSec": "5", "StartLimitIntervalSec": "0"} {
		if got := setting(t, "docker.service.d/40-flannel.conf", name); len(got) != 1 || got[0] != want {
			t.Errorf("Docker's drop-in: %s=%q, want %s", name, got, want)
		}
	}
	pre := strings.Join(setting(t, "docker.service.d/40-flannel.conf", "ExecStartPre"), "\n")
	if !strings.HasPrefix(pre, "-") || !strings.Contains(pre, "test -s /run/flannel/subnet.env") || !strings.Contains(pre, "mk-docker-opts -i -d "+options) {
		t.Errorf("Docker's drop-in: ExecStartPre=%s", pre)
	}
	for _, file := range []string{"docker.service.d/40-flannel.conf", "containerd.service.d/40-flannel.conf"} {
		for name, want := range map[string]string{"After": "flanneld.service", "Wants": "flanneld.service", "Requires": "", "BindsTo": ""} {
			if got := strings.Join(setting(t, file, name), "\n"); got != want {
				t.Errorf("%s: %s=%s, want %q", file, name, got, want)
			}
		}
	}
}
