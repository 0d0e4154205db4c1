// Package dist holds no code: its tests hold the files beside it, which install flanneld
// on hosts, against systemd, shells, a kernel and Docker.
package dist

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// programVariable is where TestMain tells the tests of the directory for what they build.
const programVariable = "TEST_DIST_PROGRAM"

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flanneld-dist-")
	if err == nil {
		err = os.Setenv(programVariable, filepath.Join(dir, "flanneld"))
	}
	if err != nil {
		panic(err)
	}
	netlab.Main(tidy{m, dir}) // exits
}

// tidy removes the directory after the tests.
type tidy struct {
	m   *testing.M
	dir string
}

func (t tidy) Run() int {
	code := t.m.Run()
	os.RemoveAll(t.dir)
	return code
}

// program returns flanneld, built once.
func program(t *testing.T) string {
	t.Helper()
	file := os.Getenv(programVariable)
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		build := exec.CommandContext(t.Context(), "go", "build", "-o", file, "..")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", build.Args, err, out)
		}
	}
	return file
}

// need skips the test where one of the programs is not installed, with the reason. With
// FLANNELKIT_NEED_<what>=1 in the environment it fails it instead.
func need(t *testing.T, what string, programs ...string) {
	t.Helper()
	for _, p := range programs {
		_, err := exec.LookPath(p)
		switch {
		case err == nil:
		case os.Getenv("FLANNELKIT_NEED_"+what) != "":
			t.Fatalf("%s is not installed, and FLANNELKIT_NEED_%s wants it", p, what)
		default:
			t.Skipf("%s is not installed", p)
		}
	}
}

// A command is a program and how it ended.
type command struct {
	code           int
	stdout, stderr string
}

// run runs a program to its end with variables added to the environment.
func run(t *testing.T, env []string, name string, args ...string) command {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return command{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// must is run for a program that has to succeed without a complaint.
func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	c := run(t, env, name, args...)
	if c.code != 0 || c.stderr != "" {
		t.Fatalf("%s %q: exit %d\n%s%s", name, args, c.code, c.stdout, c.stderr)
	}
	return c.stdout
}

// setting returns the values that a unit file has for a name, in order.
func setting(t *testing.T, file, name string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			values = append(values, v)
		}
	}
	return values
}
