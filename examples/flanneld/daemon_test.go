package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/lease"
)

// readiness asks a running daemon.
func (r *running) readiness() (code int, body string) {
	return get(handler(r.daemon.health, newRegistry(r.source()), asIs), "GET", "/readyz")
}

func (r *running) isReady() bool { code, _ := r.readiness(); return code == 200 }

// finish waits for the end of the daemon.
func (r *running) finish(t *testing.T) error {
	t.Helper()
	return receive(t, "the daemon's end", r.ended)
}

const wantFile = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"

// TestLife is an ordinary life: joining, ready, SIGTERM.
func TestLife(t *testing.T) {
	m := listenAsManager(t)
	n := newFakeNode()
	r := startDaemon(t, n, "-ip-masq")
	got := m.until(t, "READY=1")
	if text, err := os.ReadFile(r.o.subnetFile); err != nil || string(text) != wantFile {
		t.Errorf("at READY=1 the subnet file is %q, %v, want %q", text, err, wantFile)
	}
	if !slices.Contains(got, "STATUS=joining the network") {
		t.Errorf("messages before READY=1: %q", got)
	}
	m.until(t, "STATUS=10.5.34.0-24 by udp over eth0 (192.0.2.1), peers: 0")
	if !r.isReady() {
		t.Error("READY=1, and /readyz is not 200")
	}
	r.stop()
	if err := r.finish(t); err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	m.until(t, "STOPPING=1")
	if n.closes != 1 || !r.store.isClosed() {
		t.Errorf("node closed %d times, store closed: %v", n.closes, r.store.isClosed())
	}
	if _, err := os.Stat(r.o.subnetFile); err != nil {
		t.Errorf("the subnet file must stay: %v", err)
	}
	if code, body := r.readiness(); code != 503 || !strings.Contains(body, "the daemon ends") {
		t.Errorf("/readyz at the end = %d %q", code, body)
	}
}

// TestNotReadyUntilTheFileIsThere: nothing is said to be ready while the file can't be
// written, and it is written as soon as it can be.
func TestNotReadyUntilTheFileIsThere(t *testing.T) {
	m := listenAsManager(t)
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "run")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startDaemon(t, newFakeNode(), "-subnet-file="+filepath.Join(inTheWay, "subnet.env"))
	before := m.until(t, "STATUS=not ready: subnet-file:")
	if slices.Contains(before, "READY=1") {
		t.Errorf("READY=1 without a subnet file: %q", before)
	}
	if code, body := r.readiness(); code != 503 || !strings.Contains(body, "node: ok\n") || strings.Contains(body, "subnet-file: ok") {
		t.Errorf("/readyz = %d %q, want 503 for the file alone", code, body)
	}
	if written, failed := r.file.counts(); written != 0 || failed == 0 {
		t.Errorf("%d writes, %d failures", written, failed)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	m.until(t, "READY=1")
}

// TestReadinessComesAndGoes: /readyz goes back to 503 for each reason there is.
func TestReadinessComesAndGoes(t *testing.T) {
	n := newFakeNode()
	r := startDaemon(t, n)
	eventually(t, "ready", r.isReady)
	eventually := func(t *testing.T, what string, holds func() bool) {
		eventually(t, what, func() bool { r.poke(); return holds() }) // without waiting for the next second
	}
	for _, c := range []struct {
		what       string
		spoil, fix func()
	}{
		{"node: no lease", func() { n.change(func(n *fakeNode) { n.readyErr = errors.New("no lease") }) }, func() { n.change(func(n *fakeNode) { n.readyErr = nil }) }},
		{"rules: no iptables", func() { r.rules.set(errors.New("no iptables")) }, func() { r.rules.set(nil) }},
		{"daemon: the backend", func() { n.change(func(n *fakeNode) { n.stats.Sync = time.Now().Add(-time.Hour) }) }, func() { n.change(func(n *fakeNode) { n.stats.Sync = time.Now() }) }},
	} {
		c.spoil()
		eventually(t, "503 because of "+c.what, func() bool {
			code, body := r.readiness()
			return code == 503 && strings.Contains(body, c.what)
		})
		c.fix()
		eventually(t, "ready again after "+c.what, r.isReady)
	}
	if err := os.Remove(r.o.subnetFile); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is back", func() bool { _, err := os.Stat(r.o.subnetFile); return err == nil })
	n.change(func(n *fakeNode) { n.mtu = 1400 })
	eventually(t, "the file has the new MTU", func() bool {
		b, _ := os.ReadFile(r.o.subnetFile)
		return strings.Contains(string(b), "FLANNEL_MTU=1400\n")
	})
	eventually(t, "ready after all", r.isReady)
	r.stop()
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
}

// TestNodeEnds: when the lease is another's the daemon ends, and says so in one line.
func TestNodeEnds(t *testing.T) {
	n := newFakeNode()
	r := startDaemon(t, n)
	eventually(t, "ready", r.isReady)
	n.end(fmt.Errorf("10.5.34.0/24 belongs to 192.0.2.2: %w", lease.ErrLost))
	err := r.finish(t)
	if !errors.Is(err, lease.ErrLost) || !strings.Contains(err.Error(), "192.0.2.2") || !strings.Contains(err.Error(), "restart") {
		t.Errorf("ended with %v, want who has it and what to do", err)
	}
}

// TestJoinFails: what waiting does not mend ends the daemon.
func TestJoinFails(t *testing.T) {
	r := &running{daemon: newDaemon(parse(t, nil, "-status-socket=none"), discardLog(), same), store: new(fakeStore)}
	r.open = func(*options, *slog.Logger) ([]candidate, error) { return []candidate{{"3", r.store}}, nil }
	sorry := errors.New("no interface")
	r.joiner = func(context.Context, lease.Store) (node, error) { return nil, sorry }
	if err := r.run(t.Context()); !errors.Is(err, sorry) || !r.store.isClosed() {
		t.Errorf("run = %v, want %v, and the store closed", err, sorry)
	}
	r = &running{daemon: newDaemon(parse(t, nil, "-status-socket=none"), discardLog(), same)}
	r.open = func(*options, *slog.Logger) ([]candidate, error) { return nil, sorry }
	if err := r.run(t.Context()); !errors.Is(err, sorry) {
		t.Errorf("run = %v, want %v", err, sorry)
	}
}

// TestEndsInTimeWhenStuck: a node that answers nobody makes the daemon unhealthy, and
// does not keep it from ending.
func TestEndsInTimeWhenStuck(t *testing.T) {
	n := newFakeNode()
	n.block = make(chan struct{})
	r := startDaemon(t, n)
	t.Cleanup(func() { // before the file's directory goes
		close(n.block)
		eventually(t, "no goroutine of a daemon left", func() bool { return goroutines() == 0 })
	})
	eventually(t, "joined", r.log.has("joined"))
	c := &clock{time.Now()}
	r.daemon.health.set(look{}) // what the loop would have said before it got stuck
	r.daemon.health.now = c.now
	if err := r.daemon.health.healthy(); err != nil {
		t.Errorf("unhealthy too early: %v", err)
	}
	c.t = c.t.Add(2 * turnLimit)
	if err := r.daemon.health.healthy(); err == nil {
		t.Error("healthy although the loop is stuck")
	}
	r.stop()
	if err := r.finish(t); err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	if !strings.Contains(r.log.String(), "stuck") {
		t.Error("the log does not say that something is stuck")
	}
}

// TestEndsWhileWaiting: SIGTERM while etcd is dead.
func TestEndsWhileWaiting(t *testing.T) {
	m := listenAsManager(t)
	r := &running{daemon: newDaemon(parse(t, nil, "-status-socket=none"), discardLog(), same), store: new(fakeStore), ended: make(chan error, 1)}
	r.store.set(errors.New("http://192.0.2.1:2379: connection refused"))
	r.open = func(*options, *slog.Logger) ([]candidate, error) { return []candidate{{"3", r.store}}, nil }
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.ended <- r.run(ctx) }()
	m.until(t, "STATUS=waiting for etcd: API 3: http://192.0.2.1:2379: connection refused")
	if code, body := r.readiness(); code != 503 || !strings.Contains(body, "192.0.2.1:2379") {
		t.Errorf("/readyz = %d %q", code, body)
	}
	if err := r.daemon.health.healthy(); err != nil {
		t.Errorf("waiting for etcd is not unhealthy: %v", err)
	}
	cancel()
	if err := r.finish(t); err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	if got := m.until(t, "STATUS=ending"); !slices.Contains(got, "STOPPING=1") || slices.Contains(got, "READY=1") {
		t.Errorf("messages at the end: %q", got)
	}
}

// goroutines counts those of daemons in this process.
func goroutines() int {
	b := make([]byte, 1<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), "examples/flanneld.(*daemon)")
}

// TestNothingIsLeft: goroutines of ten daemons are gone after their ends.
func TestNothingIsLeft(t *testing.T) {
	listenAsManager(t)
	for range 10 {
		r := startDaemon(t, newFakeNode(), "-healthz-ip=127.0.0.1")
		eventually(t, "ready", r.isReady)
		r.stop()
		if err := r.finish(t); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "no goroutine of a daemon left", func() bool { return goroutines() == 0 })
}
