package main

import (
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
)

func TestDaemonFile(t *testing.T) {
	for _, tc := range []struct{ args, env, want string }{
		{"flanneld", "", defaultSubnetFile},
		{"/opt/bin/flanneld --ip-masq", "PATH=/bin", defaultSubnetFile},
		{"flanneld -subnet-file /a/b", "", "/a/b"},
		{"flanneld --subnet-file=/a//b -v 1", "FLANNELD_SUBNET_FILE=/c", "/a/b"},
		{"flanneld -v 1", "FLANNELD_SUBNET_FILE=/c", "/c"},
		{"flanneld -subnet-file=/a -subnet-file=/b", "", "/b"},
		{"flanneld cleanup", "", ""},
		{"flanneld status -json", "FLANNELD_SUBNET_FILE=/c", ""},
	} {
		// As /proc has them, with an end.
		if got := daemonFile(append(strings.Fields(tc.args), ""), append(strings.Fields(tc.env), "")); got != tc.want {
			t.Errorf("%s, %s: %q, want %q", tc.args, tc.env, got, tc.want)
		}
	}
}

// TestCleanupBesideADaemon: cleanup of what a running daemon wants is refused, and
// changes nothing; another daemon's is none of its business.
func TestCleanupBesideADaemon(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{NoV2: true})
	c.keysOf(3).set(configKey, networkOf(`{"Type":"host-gw"}`))
	h := c.hosts[0]
	p := h.start(c.endpoints())
	before := p.ready()
	for _, args := range [][]string{{"cleanup"}, {"cleanup", "-release", c.endpoints()}} {
		code, _, stderr := h.run(args...)
		if code != 1 || !strings.Contains(stderr, "runs with the subnet file "+h.file) || !strings.Contains(stderr, "systemctl stop flanneld") {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
	h.says(0, before.Subnet.String())
	if code, _, stderr := h.run("cleanup", "-subnet-file="+h.file+".other"); code != 0 {
		t.Errorf("another subnet file: exit %d: %s", code, stderr)
	}
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if code, _, stderr := h.run("cleanup"); code != 0 {
		t.Errorf("after the end: exit %d: %s", code, stderr)
	}
}
