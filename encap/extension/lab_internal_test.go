package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/testlog"
	"github.com/flannelkit/flannelkit/lease"
)

// A lab is a backend whose commands write into a directory, $DIR.
type lab struct {
	*testing.T
	*extension
	dir  string
	logs testlog.Messages
}

// newLab makes one of the backend's part of a configuration. At the test's end it is
// closed, and nothing of it may be left.
func newLab(t *testing.T, part string, opts Options) *lab {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the commands are for a Unix shell")
	}
	l := &lab{T: t, dir: t.TempDir()}
	if opts.Env == nil {
		t.Setenv("DIR", l.dir)
	} else {
		opts.Env = append(slices.Clone(opts.Env), "DIR="+l.dir)
	}
	if err := exec.Command("true").Run(); err != nil { // the first one of a process opens what stays
		t.Fatal(err)
	}
	before, open := runtime.NumGoroutine(), descriptors()
	b, err := New(opts)(backend.Params{Network: network(t, part), Log: l.logs.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	l.extension = b.(*extension)
	l.crew.minPause, l.crew.maxPause = time.Millisecond, 20*time.Millisecond
	l.patience = time.Minute
	t.Cleanup(func() {
		_ = l.Close(true)
		l.eventually("goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
		l.eventually("descriptors are left", func() bool { return descriptors() <= open })
	})
	return l
}

// network is a configuration with a backend's part.
func network(t *testing.T, part string) lease.Network {
	t.Helper()
	n, err := lease.ParseNetwork(fmt.Appendf(nil, `{"Network":"10.50.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:50::/48","Backend":%s}`, part))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// commandsJSON makes the backend's part of pairs of a key and a command.
func commandsJSON(pairs ...string) string {
	part := map[string]string{"Type": "extension"}
	for i := 0; i < len(pairs); i += 2 {
		part[pairs[i]] = pairs[i+1]
	}
	text, _ := json.Marshal(part)
	return string(text)
}

func host() backend.Host {
	return backend.Host{Link: "eth0", LinkIndex: 2, MTU: 1500, Addr4: netip.MustParseAddr("192.0.2.1"),
		Public4: netip.MustParseAddr("192.0.2.1"), Public6: netip.MustParseAddr("2001:db8::1")}
}

func own() lease.Lease {
	return lease.Lease{Key: lease.Key{Subnet: netip.MustParsePrefix("10.50.1.0/24"), Subnet6: netip.MustParsePrefix("fd00:50:0:1::/64")}}
}

// peerAt makes a peer with the subnet 10.50.n.0/24.
func peerAt(n int, public, data string) lease.Lease {
	l := lease.Lease{Key: lease.Key{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 50, byte(n), 0}), 24)},
		Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(public), BackendType: "extension"}}
	if data != "" {
		l.Attrs.BackendData, _ = json.Marshal(data)
	}
	return l
}

// begin calls Prepare and Start.
func (l *lab) begin() lease.Attrs {
	l.Helper()
	attrs, err := l.Prepare(l.Context(), host())
	if err != nil {
		l.Fatal(err)
	}
	if mtu, err := l.Start(l.Context(), host(), own()); err != nil || mtu != 1500 {
		l.Fatalf("Start: %d, %v", mtu, err)
	}
	return attrs
}

// sync calls Sync, which must succeed.
func (l *lab) sync(peers ...lease.Lease) {
	l.Helper()
	if err := l.Sync(l.Context(), peers); err != nil {
		l.Fatal(err)
	}
}

// path is a file's in the directory.
func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// read returns what commands wrote to a file, "" if none has.
func (l *lab) read(name string) string {
	text, err := os.ReadFile(l.path(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Fatal(err)
	}
	return string(text)
}

// write makes a file.
func (l *lab) write(name, text string, mode os.FileMode) {
	l.Helper()
	if err := os.MkdirAll(filepath.Dir(l.path(name)), 0o777); err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(l.path(name), []byte(text), mode); err != nil {
		l.Fatal(err)
	}
}

// want compares a file with lines.
func (l *lab) want(name string, lines ...string) {
	l.Helper()
	want := ""
	if len(lines) > 0 {
		want = strings.Join(lines, "\n") + "\n"
	}
	if got := l.read(name); got != want {
		l.Errorf("%s has\n%s\nwant\n%s", name, got, want)
	}
}

// eventually waits until it is so.
func (l *lab) eventually(what string, so func() bool) {
	l.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			l.Fatalf("%s", what)
		}
	}
}

// appears waits until a command has written a line to a file, and returns the first.
func (l *lab) appears(name string) string {
	l.Helper()
	l.eventually(name+" does not appear", func() bool { return strings.Contains(l.read(name), "\n") })
	line, _, _ := strings.Cut(l.read(name), "\n")
	return line
}

// gone waits until a process is no more, or only waits for a parent that asks.
func (l *lab) gone(pid string) {
	l.Helper()
	if pid == "" {
		l.Fatal("no process")
	}
	l.eventually("process "+pid+" is left", func() bool {
		out, err := exec.Command("ps", "-o", "stat=", "-p", pid).Output()
		return err != nil || strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
	})
}

// kill ends a process that a command left on purpose.
func (l *lab) kill(pid string) {
	if err := exec.Command("kill", "-9", pid).Run(); err != nil {
		l.Errorf("process %s was not left running: %v", pid, err)
	}
}

// errHas checks that an error has all parts.
func errHas(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error is %q, without %q", err, p)
		}
	}
}

// descriptors is how many this process has open; 0 where that can't be seen.
func descriptors() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}

// canceled returns a context that has ended.
func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
