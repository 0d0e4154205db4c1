package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestSmallCommands(t *testing.T) {
	for _, c := range []struct {
		args           string
		env            []string
		code           int
		stdout, stderr string // how they begin
	}{
		{"version", nil, 0, "", "flanneld (flannelkit) "},
		{"-version", nil, 0, "", "flanneld (flannelkit) "},
		{"--version -nosuch=1 ", nil, 1, "", "flanneld: flag provided but not defined: -nosuch"},
		{"", []string{"FLANNELD_VERSION=true"}, 0, "", "flanneld (flannelkit) "},
		{"help", nil, 0, "flanneld: gives this host", ""},
		{"-h", nil, 0, "flanneld: gives this host", ""},
		{"--help", nil, 0, "flanneld: gives this host", ""},
		{"cleanup -h", nil, 0, "flanneld: gives this host", ""},
		{"dance", nil, 1, "", `flanneld: unknown command "dance"`},
		{"-iface", nil, 1, "", "flanneld: flag needs an argument: -iface"},
		{"--kube-subnet-mgr", nil, 1, "", "flanneld: -kube-subnet-mgr: "},
		{"", []string{"FLANNELD_IP_MASQ=maybe"}, 1, "", "flanneld: environment variable FLANNELD_IP_MASQ: "},
		{"-subnet-lease-renew-margin 0", nil, 1, "", `flanneld: invalid value "0" for flag -subnet-lease-renew-margin: want 1 to 1439 minutes`},
		{"cleanup -keep-device=x", nil, 1, "", "flanneld: "},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), c.env, &stdout, &stderr)
		if code != c.code || !strings.HasPrefix(stdout.String(), c.stdout) || !strings.HasPrefix(stderr.String(), c.stderr) {
			t.Errorf("%s: exit %d, stdout %.60q, stderr %q", c.args, code, &stdout, &stderr)
		}
		if code != 0 && (strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0) {
			t.Errorf("%s: not one line: %q %q", c.args, &stdout, &stderr)
		}
		if c.stdout == "" && stdout.Len() > 0 || c.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%s: stdout %q, stderr %q", c.args, &stdout, &stderr)
		}
	}
}

// TestNoSecretFromTheDaemon runs the daemon against an etcd that isn't there, with a
// password given in each way, and reads every line.
func TestNoSecretFromTheDaemon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close() // now nobody listens there
	m := listenAsManager(t)
	for _, c := range []struct {
		format, api string
		args, env   []string
	}{
		{"text", "auto", []string{"-etcd-endpoints=http://root:s3cr3t%2Fword@" + addr}, nil},
		{"json", "2", []string{"-etcd-endpoints=http://root:s3cr3t%2Fword@" + addr}, nil},
		{"text", "3", nil, []string{"FLANNELD_ETCD_ENDPOINTS=http://root:s3cr3t%2Fword@" + addr}},
		{"json", "auto", []string{"-etcd-endpoints=http://" + addr, "-etcd-username=root", "-etcd-password=s3cr3t/word"}, nil},
		{"text", "auto", []string{"-etcd-endpoints=http://" + addr}, []string{"FLANNELD_ETCD_USERNAME=root", "FLANNELD_ETCD_PASSWORD=s3cr3t/word"}},
	} {
		var stdout, stderr lockedBuffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int, 1)
		args := append(c.args, "-v=10", "-log-format="+c.format, "-etcd-version="+c.api, "-subnet-file="+filepath.Join(t.TempDir(), "subnet.env"))
		go func() { done <- run(ctx, args, c.env, &stdout, &stderr) }()
		said := m.until(t, "STATUS=waiting for etcd")
		cancel()
		if code := receive(t, "the end", done); code != 0 {
			t.Errorf("%q: exit %d", args, code)
		}
		said = append(said, m.until(t, "STATUS=ending")...)
		all := stdout.String() + stderr.String() + strings.Join(said, "\n")
		if strings.Contains(all, "s3cr3t") || strings.Contains(all, "czNjcjN0") { // as it is, and in base64
			t.Errorf("%q %q: the password is in\n%s", c.args, c.env, all)
		}
		if !strings.Contains(all, addr) {
			t.Errorf("%q: the log does not name the endpoint %s:\n%s", c.args, addr, all)
		}
	}
}
