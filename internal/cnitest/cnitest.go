// Package cnitest finds and builds what a test of a CNI plugin runs beside it: the CNI
// project's cnitool and reference plugins, of the version that internal/cnitools pins,
// the original plugin flannel that internal/cni091 pins, and plugins that the system
// has installed.
//
// What is missing skips the test, with the reason and the remedy. With a non-empty
// FLANNELKIT_NEED_CNI in the environment it fails the test instead, so that a
// misconfigured runner cannot turn the suite into a row of skips.
package cnitest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// TB is the part of testing.TB that this package uses.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// A Builder builds programs of this repository, each once in its life, into a directory
// of its own. Its methods may be called from any goroutine.
type Builder struct {
	dir string

	mu    sync.Mutex
	built map[string]func() error // by directory of the programs
}

// NewBuilder returns a builder that has built nothing. The caller closes it.
func NewBuilder() (*Builder, error) {
	dir, err := os.MkdirTemp("", "cnitest-")
	if err != nil {
		return nil, fmt.Errorf("cnitest: %w", err)
	}
	return &Builder{dir: dir, built: make(map[string]func() error)}, nil
}

// Close removes the programs. The builder can't be used after it.
func (b *Builder) Close() error { return os.RemoveAll(b.dir) }

// Dir returns the directory in which all is built. What a test puts there ends with the
// builder.
func (b *Builder) Dir() string { return b.dir }

// Program builds a command of the main module, such as "examples/cni", under a name, and
// returns its path. It fails the test if that does not build.
func (b *Builder) Program(t TB, pkg, name string) string {
	t.Helper()
	root, err := moduleRoot()
	if err == nil {
		err = b.once(name, func() error {
			return goBuild(root, filepath.Join(b.dir, "bin", name), "./"+pkg)
		})
	}
	if err != nil {
		t.Fatalf("cnitest: build %s: %v", pkg, err)
	}
	return filepath.Join(b.dir, "bin", name)
}

// Tools returns a directory with what internal/cnitools pins: cnitool, and the plugins
// bridge, host-local, loopback and portmap, which know CNI 1.1. The first call takes
// some seconds.
func (b *Builder) Tools(t TB) string {
	t.Helper()
	return b.pinned(t, "cnitools")
}

// Original returns the path of the original plugin flannel, 0.9.1, which knows CNI up to
// 0.4.0.
func (b *Builder) Original(t TB) string {
	t.Helper()
	return filepath.Join(b.pinned(t, "cni091"), "flannel")
}

// pinned builds the tools of a module below internal.
func (b *Builder) pinned(t TB, module string) string {
	t.Helper()
	dir := filepath.Join(b.dir, module)
	root, err := moduleRoot()
	if err == nil {
		err = b.once(module, func() error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			return goBuild(filepath.Join(root, "internal", module), dir, "tool")
		})
	}
	if err != nil {
		missing(t, "build internal/%s: %v (needs the go command, and the modules in its cache or a proxy)", module, err)
	}
	return dir
}

// once builds what has the name, or waits for who does, and returns how that went.
func (b *Builder) once(name string, build func() error) error {
	b.mu.Lock()
	do, ok := b.built[name]
	if !ok {
		do = sync.OnceValue(build)
		b.built[name] = do
	}
	b.mu.Unlock()
	return do()
}

// Installed returns the directory in which the system has all of the plugins: Debian's
// package containernetworking-plugins puts them into /usr/lib/cni, others use
// /opt/cni/bin and /usr/libexec/cni.
func Installed(t TB, plugins ...string) string {
	t.Helper()
	dirs := []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}
	i := slices.IndexFunc(dirs, func(dir string) bool {
		return !slices.ContainsFunc(plugins, func(name string) bool {
			info, err := os.Stat(filepath.Join(dir, name))
			return err != nil || info.Mode()&0o111 == 0
		})
	})
	if i < 0 {
		missing(t, "no %s in any of %s (install containernetworking-plugins)", strings.Join(plugins, ", "), strings.Join(dirs, ", "))
		return ""
	}
	return dirs[i]
}

// Need skips the test if there is no such program in PATH or in the directories of the
// system's administrator, where an ordinary user's PATH does not look.
func Need(t TB, program, debian string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return
		}
	}
	missing(t, "no %s (install %s)", program, debian)
}

// missing skips the test, or fails it where nothing may be missing.
func missing(t TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("FLANNELKIT_NEED_CNI") != "" {
		t.Fatalf("cnitest: %s, and FLANNELKIT_NEED_CNI is set", reason)
	}
	t.Skipf("cnitest: %s", reason)
}

// goBuild builds without what the environment says of tests: their flags, a workspace,
// and a C compiler, which may be missing.
func goBuild(dir, out, pkg string) error {
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off", "CGO_ENABLED=0", "PWD="+dir, "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(text.Bytes()))
	}
	return nil
}

// moduleRoot returns the directory of the main module: that above the test's own which
// has internal/cnitools.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "internal", "cnitools", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no internal/cnitools in or above %s (it is in a checkout of the repository only): %w", start, fs.ErrNotExist)
		}
	}
}
