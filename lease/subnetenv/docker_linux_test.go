package subnetenv_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// Docker refuses a subnet to which there is a route already, as another host's flannel
// leaves one behind when the subnet becomes ours.
func TestMkDockerOptsLooksAtTheRoutes(t *testing.T) {
	l := netlab.ForTest(t)
	ns, err := l.Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Veth(ns, "a", ns, "b", 1500))
	must(ns.AddAddr("a", p("192.0.2.1/24")))

	dir := t.TempDir()
	from, to := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker_opts.env")
	must(os.WriteFile(from, []byte(sample), 0o644))
	run := func() (code int, stderr bytes.Buffer) {
		t.Helper()
		must(os.RemoveAll(to))
		must(ns.Do(func() error {
			code = subnetenv.MkDockerOpts([]string{"-f", from, "-d", to, "-c"}, nil, &stderr)
			return nil
		}))
		if got, err := os.ReadFile(to); err != nil || string(got) != dockerCases()["-c"].want {
			t.Errorf("%v, the file is %q", err, got)
		}
		return code, stderr
	}

	gw := netip.MustParseAddr("192.0.2.254")
	must(ns.AddRoute(p("10.1.0.0/16"), gw, "", 0))
	must(ns.AddRoute(p("10.1.75.0/24"), gw, "", 0))
	must(ns.AddRoute(p("10.1.74.0/25"), gw, "", 0))
	must(ns.AddRoute(p("10.1.74.0/24"), netip.Addr{}, "b", 0)) // docker0's own
	if code, stderr := run(); code != 0 {
		t.Errorf("exit code %d without such a route: %s", code, stderr.Bytes())
	}
	must(ns.DelRoute(p("10.1.74.0/24"), netip.Addr{}, "b"))
	must(ns.AddRoute(p("10.1.74.0/24"), gw, "", 0))
	if code, stderr := run(); code != 1 || !strings.Contains(stderr.String(), "10.1.74.1/24 by way of 192.0.2.254") {
		t.Errorf("exit code %d, want 1: %s", code, stderr.Bytes())
	}
}

func TestMkDockerOptsWritesToDevices(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var stderr bytes.Buffer
	code := subnetenv.MkDockerOpts([]string{"-f", filepath.Join(t.TempDir(), "none"), "-d", fmt.Sprintf("/proc/self/fd/%d", w.Fd())}, nil, &stderr)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.Bytes())
	}
	got := make([]byte, 100)
	n, err := r.Read(got)
	if want := "DOCKER_OPTS=\"\"\n"; err != nil || string(got[:n]) != want {
		t.Errorf("got %q, %v", got[:n], err)
	}
}

// Where standard output is a file, as a service manager's log is, what stands there
// stays, and what comes later comes behind.
func TestMkDockerOptsWritesToALog(t *testing.T) {
	if file := os.Getenv("SUBNETENV_FILE"); file != "" {
		var stderr bytes.Buffer
		if code := subnetenv.MkDockerOpts([]string{"-c", "-f", file, "-d", os.Getenv("SUBNETENV_TO")}, nil, &stderr); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr.Bytes())
		}
		os.Exit(0)
	}
	dir := t.TempDir()
	from := filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(from, []byte(sample), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/self/fd/3"} {
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(log, "before")
		cmd := exec.Command(os.Args[0], "-test.run=^TestMkDockerOptsWritesToALog$")
		cmd.Env = append(os.Environ(), "SUBNETENV_FILE="+from, "SUBNETENV_TO="+to)
		if cmd.Stdout = log; strings.HasSuffix(to, "/3") {
			cmd.Stdout, cmd.ExtraFiles = nil, []*os.File{log}
		}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if cmd.Stdout != nil {
			fmt.Fprintln(log, "after")
		}
		got, err := os.ReadFile(log.Name())
		want := "before\n" + dockerCases()["-c"].want
		if cmd.Stdout != nil {
			want += "after\n"
		}
		if err != nil || string(got) != want {
			t.Errorf("%s: %v, the log is %q, want %q", to, err, got, want)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
