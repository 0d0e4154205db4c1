package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap"
	"github.com/flannelkit/flannelkit/encap/masq"
	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
	"github.com/flannelkit/flannelkit/lease"
)

func TestStatusOptions(t *testing.T) {
	for _, c := range []struct {
		args, env    []string
		file, socket string
	}{
		{nil, nil, "/run/flannel/subnet.env", "/run/flannel/subnet.sock"},
		{[]string{"-subnet-file=/a/b.env"}, nil, "/a/b.env", "/a/b.sock"},
		{[]string{"--subnet-file", "/a/b"}, nil, "/a/b", "/a/b.sock"},
		{nil, []string{"FLANNELD_SUBNET_FILE=/a/b.env", "FLANNELD_ETCD_ENDPOINTS=:::", "FLANNELD_NOSUCH=1", "FLANNELD_STATUS_SOCKET="}, "/a/b.env", "/a/b.sock"},
		{nil, []string{"FLANNELD_SUBNET_FILE=/a/b.env", "FLANNELD_STATUS_SOCKET=/c"}, "/a/b.env", "/c"},
		{[]string{"-status-socket=none"}, []string{"FLANNELD_STATUS_SOCKET=/c"}, "/run/flannel/subnet.env", "none"},
	} {
		got, err := parseStatus(c.args, c.env)
		if err != nil || got.subnetFile != c.file || got.socket != c.socket || got.timeout != 5 {
			t.Errorf("%q %q: %+v, %v, want %s and %s", c.args, c.env, got, err, c.file, c.socket)
			continue
		}
		o := parse(t, c.env[:min(len(c.env), 1)], c.args...) // the daemon's, with the same
		if len(c.env) < 2 && (o.statusSocket != c.socket || o.subnetFile != c.file) {
			t.Errorf("%q %q: the daemon has %s and %s", c.args, c.env, o.subnetFile, o.statusSocket)
		}
	}
	for _, args := range []string{"-timeout=0", "-timeout=x", "-nosuch", "more", "-subnet-file=", "-json=maybe"} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{"status", args}, nil, &stdout, &stderr); code != 1 || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0 {
			t.Errorf("%s: exit %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"status", "-h"}, nil, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("-h: exit %d, %q", code, &stderr)
	}
	for _, f := range statusFlags() {
		if !strings.Contains(stdout.String(), "\n  -"+f.name) {
			t.Errorf("the help has no -%s:\n%s", f.name, &stdout)
		}
	}
}

// shows runs the command with what the host and the peers would add.
func (c *statusCommand) shows(t *testing.T, host, ping func(*report.Report)) (code int, text string) {
	t.Helper()
	as := func(f func(*report.Report)) func(context.Context, *report.Report) {
		return func(ctx context.Context, r *report.Report) {
			if _, limited := ctx.Deadline(); !limited {
				t.Error("without a limit")
			}
			if f == nil {
				t.Error("called for nothing")
				return
			}
			f(r)
		}
	}
	c.look, c.probe = as(host), as(ping)
	var out bytes.Buffer
	code, err := c.run(t.Context(), &out)
	if err != nil {
		t.Error(err)
	}
	return code, out.String()
}

// TestStatusCommand is the command from the socket to the exit status.
func TestStatusCommand(t *testing.T) {
	n := newFakeNode()
	n.peers = []lease.Lease{{Key: lease.Key{Subnet: netip.MustParsePrefix("10.5.9.0/24")}, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.2")}}}
	socket := filepath.Join(shortDir(t), "s")
	r := startDaemon(t, n, "-status-socket="+socket)
	eventually(t, "ready", r.isReady)
	quiet := func(*report.Report) {}
	if code, text := statusOf(t, "-status-socket="+socket).shows(t, quiet, nil); code != 0 || !strings.HasSuffix(text, "\nall is well\n") || !strings.Contains(text, "10.5.9.0/24   192.0.2.2   udp\n") {
		t.Errorf("exit %d:\n%s", code, text)
	}
	warns := func(r *report.Report) {
		r.Add(report.Problem{Severity: report.Warning, Subject: "bridge docker0", Text: "x"})
	}
	if code, text := statusOf(t, "-status-socket="+socket).shows(t, warns, nil); code != 0 || !strings.HasSuffix(text, "\n1 warning\n") {
		t.Errorf("exit %d:\n%s", code, text)
	}
	pings := func(r *report.Report) {
		r.Peers[0].Ping = &report.Ping{RTT: time.Millisecond}
		r.Add(report.Problem{Severity: report.Error, Subject: "peer 10.5.9.0/24", Text: "too big"})
	}
	code, text := statusOf(t, "-status-socket="+socket, "-json", "-ping").shows(t, warns, pings)
	var doc report.Report
	if err := json.Unmarshal([]byte(text), &doc); err != nil || code != 1 || doc.OK || len(doc.Problems) != 2 || doc.Problems[0].Subject != "peer 10.5.9.0/24" {
		t.Errorf("exit %d, %v:\n%s", code, err, text)
	}
	r.stop()
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
	code, text = statusOf(t, "-status-socket="+socket, "-ping", "-subnet-file="+r.o.subnetFile).shows(t, warns, nil)
	if want := "problems\n  error: daemon: flanneld does not run: there is no " + socket; code != 1 || !strings.Contains(text, want) || !strings.Contains(text, r.o.subnetFile) {
		t.Errorf("exit %d:\n%s", code, text)
	}
}

// TestStatusWithoutDaemon: each reason has its line and its remedy.
func TestStatusWithoutDaemon(t *testing.T) {
	dir := shortDir(t)
	stale := filepath.Join(dir, "stale")
	l, err := listenSocket(stale)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	for socket, want := range map[string]string{
		filepath.Join(dir, "none"): "does not run: there is no " + dir, stale: "does not run: nobody listens at " + stale,
		file: file + " is a file, not a socket -> remove it", link: link + " is a symbolic link, not a socket -> remove it", dir: dir + " is a directory, not a socket",
		"none": "switched off", filepath.Join(dir, strings.Repeat("x", 200)): "longer than the 107 bytes that a socket's name may have -> give flanneld, and flanneld status, a shorter -status-socket",
		filepath.Join(file, "s"): "does not run: there is no",
	} {
		if got := only(t, asks(t, socket)); !strings.Contains(got, want) || strings.HasSuffix(got, "-> ") {
			t.Errorf("%s: %q, want %q", socket, got, want)
		}
	}
	c := statusOf(t, "-status-socket="+stale, "-subnet-file="+filepath.Join(dir, "f.env"))
	c.isRoot = false
	if got := only(t, c.ask(t.Context())); !strings.Contains(got, "does not run, or could not make its socket: nobody listens at "+stale) {
		t.Errorf("what nobody can know: %s", got)
	}
	c.running = func(file string) int {
		if file != filepath.Join(dir, "f.env") {
			t.Errorf("looks for a daemon of %s", file)
		}
		return 7
	}
	for _, socket := range []string{stale, filepath.Join(dir, "none")} {
		c.socket = socket
		if got := only(t, c.ask(t.Context())); strings.Contains(got, "does not run") || !strings.Contains(got, "process 7 runs but does not answer at its socket") || !strings.Contains(got, socket) {
			t.Errorf("beside a daemon without a socket: %s", got)
		}
	}
	denied := statusOf(t).explain(&os.PathError{Op: "dial", Path: "/run/flannel/subnet.sock", Err: os.ErrPermission})
	if !strings.Contains(denied.Text, "permission denied") || !strings.Contains(denied.Remedy, "sudo flanneld status") {
		t.Errorf("%+v", denied)
	}
	if other := statusOf(t).explain(errors.New("a\nb")); !strings.Contains(other.Text, "a; b") || other.Remedy == "" {
		t.Errorf("%+v", other)
	}
}

// TestReportWithoutSecrets looks for secrets in a whole report.
func TestReportWithoutSecrets(t *testing.T) {
	red := newRedactor(new(lockedBuffer))
	red.hide("root", "hunter2")
	n := newFakeNode()
	n.stats.SyncErr = errors.Join(errors.New("dial http://root:x@192.0.2.1: hunter2"), errors.New("peer 10.5.9.0/24: no"))
	d := newDaemon(parse(t, nil, "-etcd-endpoints=http://root:hunter2@192.0.2.1:2379"), discardLog(), red.clean)
	d.net = &fakeKeeper{kept: masq.Status{Warnings: []string{"hunter2"}}}
	as := node(n)
	d.node.Store(&as)
	for _, put := range []func(){
		func() { d.health.set(look{checks: []check{{"node", errors.New("hunter2")}, {"subnet-file", nil}}}) },
		func() { d.health.waiting(errors.New("waiting for etcd: hunter2 at http://root:hunter2@192.0.2.1")) },
	} {
		put()
		var doc bytes.Buffer
		if err := d.report().WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
		if text := doc.String(); strings.Contains(text, "hunter2") || strings.Contains(text, "root:") || !strings.Contains(text, "peer 10.5.9.0/24: no") || !strings.Contains(text, "http://192.0.2.1:2379") {
			t.Error(text)
		}
	}
	const config = `{"Type":"wireguard","PSK":"key","psk":"key","Nested":[{"AccessKeySecret":"key","Port":51820,"x":"hunter2"}],"PreStartupCommand":"ip link"}`
	got := string(withoutSecrets([]byte(config), red.clean))
	want := `{"Nested":[{"AccessKeySecret":"[redacted]","Port":51820,"x":"[redacted]"}],"PSK":"[redacted]","PreStartupCommand":"ip link","Type":"wireguard","psk":"[redacted]"}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, junk := range []string{"", "{", "junk"} {
		if got := withoutSecrets([]byte(junk), red.clean); got != nil {
			t.Errorf("%q: %s", junk, got)
		}
	}
}

// TestReportWhenStuck: no answer waits for the daemon, at any moment of its life.
func TestReportWhenStuck(t *testing.T) {
	n := newFakeNode()
	n.block = make(chan struct{})
	socket := filepath.Join(shortDir(t), "s")
	r := startDaemon(t, n, "-status-socket="+socket)
	eventually(t, "joined", r.log.has("joined"))
	eventually(t, "the node is in the report", func() bool { return asks(t, socket).Lease != nil })
	c := &clock{time.Now().Add(2 * turnLimit)}
	r.daemon.health.set(look{})
	r.daemon.health.mu.Lock()
	r.daemon.health.now = c.now
	r.daemon.health.mu.Unlock()
	if got := asks(t, socket); got.Daemon.Healthy || got.OK || got.Problems[0].Subject != "daemon" || !strings.Contains(got.Problems[0].Text, "stuck") {
		t.Errorf("%+v", got)
	}
	r.stop()
	eventually(t, "it says that it ends", func() bool {
		got := asks(t, socket)
		return len(got.Problems) > 0 && strings.Contains(got.Problems[0].Text, "ends")
	})
	close(n.block)
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
}

// TestHistory: what happened once is not what happens.
func TestHistory(t *testing.T) {
	var h history
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	var s nodeStats
	h.note(s, at(0))
	if e, d := h.last(); !e.IsZero() || d != nil {
		t.Errorf("nothing happened: %v, %v", e, d)
	}
	s.Lease.StoreErrors = 1
	s.Packets.Drops[encap.DropNoRoute] = 3
	h.note(s, at(1))
	h.note(s, at(2))
	s.Packets.SocketDrops = 1
	h.note(s, at(3))
	e, d := h.last()
	if !e.Equal(at(0)) { // not after an answer that came between the looks
		t.Errorf("the last error was at %v", e)
	}
	if len(d) != 2 || !d["no-route"].Equal(at(1)) || !d[report.SocketFull].Equal(at(3)) {
		t.Errorf("drops at %v", d)
	}
	d["no-route"] = time.Time{} // a copy
	if _, d = h.last(); d["no-route"].IsZero() {
		t.Error("the report's reader can change the history")
	}
}
