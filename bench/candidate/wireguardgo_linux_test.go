package candidate

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestWireguardGo: it is the right version, it encrypts, and it leaves nothing even if it is killed.
func TestWireguardGo(t *testing.T) {
	bed := newBed(t)
	_, err := os.Stat(wireguardGoSockets)
	fresh := errors.Is(err, os.ErrNotExist)
	c := one(t, "wireguard-go")
	mustUp(t, bed, c, "WIREGUARD_GO")
	if c.MTU() != 1420 {
		t.Errorf("MTU %d", c.MTU())
	}
	if n := len(c.PIDs()); n != 2 {
		t.Fatalf("%d processes", n)
	}
	ping(t, bed, c)
	raw, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stats wireguardGoStats
	if err := json.Unmarshal(raw, &stats); err != nil {
		t.Fatal(err)
	}
	want, err := goTool(t.Context(), nil, "list", "-m", "-f", "{{.Version}}", wireguardGoModule)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Version != want || !strings.HasPrefix(stats.Go, "go1.") {
		t.Errorf("%s, want version %s", raw, want)
	}
	for i := range stats.Bytes { // two pings of the full MTU each way
		if stats.Bytes[i]["tx_bytes"] < 4*1420 || stats.Bytes[i]["rx_bytes"] < 4*1420 {
			t.Errorf("the pings did not go through it: %s", raw)
		}
	}
	if strings.Contains(string(raw), "key") {
		t.Errorf("a key in the results: %s", raw)
	}
	if err := syscall.Kill(c.PIDs()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	down(t, c)
	left, err := filepath.Glob(filepath.Join(wireguardGoSockets, "bw*"))
	if err != nil || len(left) != 0 {
		t.Errorf("sockets are left: %v %v", left, err)
	}
	if _, err := os.Stat(wireguardGoSockets); fresh && err == nil {
		t.Errorf("%s is left", wireguardGoSockets)
	}
}

// TestWireguardGoUnavailable: without a Go tool the run goes on, with the reason.
func TestWireguardGoUnavailable(t *testing.T) {
	bed := newBed(t)
	t.Setenv("PATH", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir()) // nothing built there yet
	c := one(t, "wireguard-go")
	err := c.Up(t.Context(), bed)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), `"go"`) {
		t.Errorf("no Go tool: %v", err)
	}
	if err := c.Down(); err != nil {
		t.Error(err)
	}
}

// TestWireguardGoCache: what is there but is not the program wanted is not taken for it.
func TestWireguardGoCache(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nonexistent", "/bin/sh", self} {
		b := wireguardGoBuild{path: path, version: "v0.0.1"}
		if err := b.inspect(); err == nil {
			t.Errorf("%s is wireguard-go", path)
		}
	}
	b, err := buildWireguardGo(t.Context())
	if errors.Is(err, ErrUnavailable) && os.Getenv("FLANNELKIT_NEED_WIREGUARD_GO") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(b.path)
	if err != nil {
		t.Fatal(err)
	}
	if b.compiler != runtime.Version() {
		t.Skipf("the go in PATH is not the one of this test but %s: it is built every time", b.compiler)
	}
	if _, err := buildWireguardGo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(b.path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was built twice (%v)", err)
	}
}

// TestWireguardGoAnswer: one that breaks off is an error with a reason.
func TestWireguardGoAnswer(t *testing.T) {
	lines, errno, err := wireguardGoAnswer(strings.NewReader("a=1\nb=2\nerrno=0\n\n"))
	if len(lines) != 2 || errno != "0" || err != nil {
		t.Errorf("%q, %q, %v", lines, errno, err)
	}
	for _, text := range []string{"", "a=1\n"} {
		if _, _, err := wireguardGoAnswer(strings.NewReader(text)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestWireguardGoCacheIsOurs: without a home the program is in a directory that nobody else can write to.
func TestWireguardGoCacheIsOurs(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	for range 2 { // made, and found again
		if cache, scratch, err := wireguardGoCache(); err != nil || filepath.Dir(cache) != temp || scratch != "" {
			t.Fatalf("%q, %q, %v", cache, scratch, err)
		}
	}
	usual, _, _ := wireguardGoCache()
	elsewhere := t.TempDir()
	for name, spoil := range map[string]func() error{
		"open":    func() error { return errors.Join(os.Mkdir(usual, 0o700), os.Chmod(usual, 0o777)) },
		"symlink": func() error { return errors.Join(os.Chmod(elsewhere, 0o700), os.Symlink(elsewhere, usual)) },
		"file":    func() error { return os.WriteFile(usual, nil, 0o700) },
		"other's": func() error { return errors.Join(os.Mkdir(usual, 0o700), os.Chown(usual, 1, 1)) },
	} {
		if err := errors.Join(os.RemoveAll(usual), spoil()); err != nil {
			t.Logf("%s: %v", name, err) // only root can give a directory away
			continue
		}
		cache, scratch, err := wireguardGoCache()
		if err != nil || cache == usual || cache != scratch || privateDir(scratch) != nil {
			t.Errorf("%s: %q, %q, %v", name, cache, scratch, err)
		}
	}
}
