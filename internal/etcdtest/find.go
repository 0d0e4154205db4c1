package etcdtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// binaryEnv overrides the search for a program.
	binaryEnv = "ETCDTEST_BINARY"
	// buildTime is how long the build may take, with the downloads: a cold cache
	// and two busy cores need about two minutes.
	buildTime = 8 * time.Minute
)

// A program is an etcd that can be started.
type program struct {
	path    string
	version string          // 3.5.35
	flags   map[string]bool // which of the flags that not all versions have it knows
}

// find returns an etcd that has what the test needs, or ends the test.
func find(t testing.TB, v2 bool) program {
	t.Helper()
	p, err := search(t, v2)
	if err == nil {
		return p
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("etcdtest: no etcd: %v", err)
	}
	t.Skipf("etcdtest: no etcd: %v", err)
	return program{}
}

func search(t testing.TB, v2 bool) (program, error) {
	named := os.Getenv(binaryEnv)
	if named != "" && named != "build" {
		p, err := inspect(t.Context(), named)
		if err == nil {
			err = p.usable(v2)
		}
		if err != nil {
			err = fmt.Errorf("%s=%s: %w", binaryEnv, named, err)
		}
		return p, err
	}
	unusable := errors.New("none in PATH is looked for with " + binaryEnv + "=build")
	if named == "" {
		path, err := exec.LookPath("etcd")
		var p program
		if err == nil {
			p, err = inspect(t.Context(), path)
		}
		if err == nil {
			err = p.usable(v2)
		}
		if err == nil {
			return p, nil
		}
		unusable = err
	}
	path, err := built(t)
	if err != nil {
		return program{}, fmt.Errorf("%w; and: %w (install etcd 3.4 or 3.5, or allow the Go toolchain to download modules)", unusable, err)
	}
	return inspect(t.Context(), path)
}

// inspect asks a program what it is.
func inspect(ctx context.Context, path string) (program, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run := func(arg string) (string, error) {
		cmd := exec.CommandContext(ctx, path, arg)
		cmd.Env = environ()
		out, err := cmd.CombinedOutput() // help goes to stderr in some versions
		return string(out), err
	}
	out, err := run("--version")
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	_, version, ok := strings.Cut(out, "etcd Version: ")
	if !ok {
		return program{}, fmt.Errorf("%s --version says %.60q: not an etcd", path, out)
	}
	p := program{path: path, flags: make(map[string]bool)}
	p.version, _, _ = strings.Cut(version, "\n")
	p.version = strings.TrimSpace(p.version)
	help, err := run("--help")
	if err != nil {
		return program{}, fmt.Errorf("%s --help: %w", path, err)
	}
	for _, flag := range []string{"--enable-v2 ", "--unsafe-no-fsync", "--logger", "--auth-token-ttl"} {
		p.flags[strings.TrimSpace(flag)] = strings.Contains(help, flag)
	}
	return p, nil
}

// usable reports why a program will not do.
func (p program) usable(v2 bool) error {
	major, rest, _ := strings.Cut(p.version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err := strconv.Atoi(minor)
	switch {
	case err != nil || major != "3" || m < 4:
		return fmt.Errorf("%s is etcd %s: too old or unknown", p.path, p.version)
	case v2 && !p.flags["--enable-v2"]:
		return fmt.Errorf("%s is etcd %s: no v2 API", p.path, p.version)
	case v2 && p.version == "3.5.26": // https://github.com/etcd-io/etcd/issues/21249
		return fmt.Errorf("%s is etcd %s: its v2 API does not work with TLS", p.path, p.version)
	}
	return nil
}

// built returns the program of internal/etcd35, and builds it if this source has not
// been built on this machine before.
func built(t testing.TB) (string, error) {
	dir, err := moduleDir()
	if err != nil {
		return "", err
	}
	key, err := hashFiles(dir)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err == nil {
		cache = filepath.Join(cache, "flannelkit")
		err = os.MkdirAll(cache, 0o755)
	}
	if err != nil { // no HOME, or not ours to write to
		cache = filepath.Join(os.TempDir(), "flannelkit-"+strconv.Itoa(os.Getuid()))
		if err := os.MkdirAll(cache, 0o700); err != nil {
			return "", err
		}
	}
	path := filepath.Join(cache, "etcd35-"+key)
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil { // by whoever held the lock before us
		return path, nil
	}
	return path, build(t, dir, path)
}

// build compiles the module in dir to path, which appears only when it is complete.
func build(t testing.TB, dir, path string) error {
	t.Logf("etcdtest: building an etcd from %s; this happens once", dir)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), buildTime)
	defer cancel()
	part := fmt.Sprintf("%s.%d.part", path, os.Getpid())
	defer os.Remove(part)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", part, ".")
	cmd.Dir = dir
	for _, kv := range os.Environ() {
		// The server is for this machine, whatever the tests are built for.
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOOS", "GOARCH", "GOFLAGS", "GOWORK", "CGO_ENABLED":
		default:
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "GOFLAGS=-mod=readonly", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("given up after %v: %w", time.Since(begin).Round(time.Second), context.Cause(ctx))
		}
		return fmt.Errorf("go build in %s: %w\n%s", dir, err, tail(out, 2000))
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	t.Logf("etcdtest: built %s in %v", path, time.Since(begin).Round(time.Second))
	return nil
}

// moduleDir returns the directory of internal/etcd35, which is there in a checkout of
// the repository only: a nested module is no part of the module that contains it.
func moduleDir() (string, error) {
	start, err := os.Getwd() // go test runs in the directory of the package
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		nested := filepath.Join(dir, "internal", "etcd35")
		if _, err := os.Stat(filepath.Join(nested, "go.mod")); err == nil {
			return nested, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no internal/etcd35 in or above %s (it is in a checkout of the repository only): %w", start, fs.ErrNotExist)
		}
	}
}

// hashFiles names the content of a directory's source files.
func hashFiles(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, e := range entries { // sorted by name
		switch filepath.Ext(e.Name()) {
		case ".go", ".mod", ".sum":
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n%s", e.Name(), len(text), text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// environ returns the environment of a server: ours, without what would change its
// configuration behind our back.
func environ() []string {
	// 32-bit and some other systems are refused unless named here.
	env := []string{"ETCD_UNSUPPORTED_ARCH=" + runtime.GOARCH}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ETCD") {
			env = append(env, kv)
		}
	}
	return env
}

// tail returns the last n bytes or so, whole lines.
func tail(b []byte, n int) []byte {
	if len(b) <= n {
		return b
	}
	b = b[len(b)-n:]
	_, rest, _ := strings.Cut(string(b), "\n")
	return []byte(rest)
}
