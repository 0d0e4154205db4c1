package main

import (
	"bufio"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flannelkit/flannelkit"
	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/syncbuf"
	"github.com/flannelkit/flannelkit/lease"
)

// patience bounds what must happen sooner or later.
const patience = 30 * time.Second

// programVariable makes this test binary the program.
const programVariable = "AGENT_TEST_PROGRAM"

const prefix = "/coreos.com/network/"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		main()
		os.Exit(0)
	}
	netlab.Main(m)
}

// leases returns what etcd has under subnets, by key.
func leases(t *testing.T, etcd *etcdtest.Server) map[string]string {
	t.Helper()
	resp, err := etcd.V3().Get(t.Context(), prefix+"subnets/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[strings.TrimPrefix(string(kv.Key), prefix+"subnets/")] = string(kv.Value)
	}
	return all
}

// waitFor polls what no event tells.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

func onLoopback() flannelkit.Config {
	return flannelkit.Config{Interface: flannelkit.Interface{Names: []string{"127.0.0.1"}}}
}

// printed has run's one line go to the channel, until the test ends.
func printed(t *testing.T) <-chan string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	said := make(chan string, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			said <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		os.Stdout = stdout
		w.Close()
		<-done
		r.Close()
	})
	return said
}

// TestRun is the README's ten lines, without privilege: with the backend that carries
// nothing. It waits for the configuration, keeps its lease when it ends, and gets it
// again.
func TestRun(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Config{})
	said := printed(t)
	leases(t, etcd) // has goroutines of its own from now on
	before := runtime.NumGoroutine()
	var first string
	for i := range 2 {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- run(ctx, []string{etcd.Endpoint()}, onLoopback()) }()
		if i == 0 {
			etcd.Put(prefix+"config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}`)
			first = <-said
		} else if again := <-said; again != first {
			t.Errorf("it said %q, and %q after a restart", first, again)
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run = %v after the context ended", err)
		}
		if got := leases(t, etcd); len(got) != 1 {
			t.Errorf("leases %v, want the one that stays", got)
		}
	}
	waitFor(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

// TestRunWaits: neither etcd nor its configuration need be there, and waiting ends with
// the context.
func TestRunWaits(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if err := run(ctx, []string{"http://127.0.0.1:1"}, onLoopback()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run = %v", err)
	}
	waitFor(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

// TestRunEnds: what run can't wait for, and the loss of the subnet.
func TestRunEnds(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Config{})
	said := printed(t)
	etcd.Put(prefix+"config", `{"Network": "10.5.0.0"}`)
	if err := run(t.Context(), []string{etcd.Endpoint()}, onLoopback()); !errors.Is(err, lease.ErrNetwork) {
		t.Errorf("bad configuration: run = %v", err)
	}
	if err := run(t.Context(), []string{"://"}, onLoopback()); err == nil {
		t.Error("a bad endpoint is no error")
	}
	etcd.Put(prefix+"config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "nosuch"}}`)
	if err := run(t.Context(), []string{etcd.Endpoint()}, onLoopback()); !errors.Is(err, flannelkit.ErrBackend) {
		t.Errorf("unknown backend: run = %v", err)
	}
	etcd.Put(prefix+"config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}`)
	ended := make(chan error, 1)
	go func() { ended <- run(t.Context(), []string{etcd.Endpoint()}, onLoopback()) }()
	<-said // it has joined: before that it would take another subnet
	for key := range leases(t, etcd) {
		etcd.Put(prefix+"subnets/"+key, `{"PublicIP":"192.0.2.66"}`)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, lease.ErrLost) {
			t.Errorf("the subnet is another's: run = %v", err)
		}
	case <-time.After(patience):
		t.Error("it lives on in another's subnet")
	}
}

// TestProgram is the whole program in a network namespace, with a TUN device.
func TestProgram(t *testing.T) {
	ns, err := netlab.ForTest(t, netlab.NeedTUN).Namespace("host")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.AddAddr("lo", netip.MustParsePrefix("192.0.2.1/32")); err != nil {
		t.Fatal(err)
	}
	etcd := etcdtest.Start(t, etcdtest.Config{Namespace: ns})
	etcd.Put(prefix+"config", `{"Network": "10.5.0.0/16"}`)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`^containers of this host: subnet (10\.5\.\d+\.0)/24 MTU \d+\n$`)
	for range 2 {
		var out, diag syncbuf.Buffer
		cmd := exec.Command(self, "-etcd", etcd.Endpoint(), "-iface", "192.0.2.1")
		cmd.Env, cmd.Stdout, cmd.Stderr = []string{programVariable + "=1"}, &out, &diag
		p, err := ns.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the program has joined", func() bool { return said.MatchString(out.String()) })
		subnet := said.FindStringSubmatch(out.String())[1]
		if got := leases(t, etcd); len(got) != 1 || got[subnet+"-24"] != `{"PublicIP":"192.0.2.1","PublicIPv6":null}` {
			t.Errorf("leases %v, and it says %s", got, subnet)
		}
		if _, err := ns.Netlink().LinkByName("flannel0"); err != nil {
			t.Errorf("no device: %v", err)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v\n%s", err, diag.String())
		}
		if _, err := ns.Netlink().LinkByName("flannel0"); err == nil {
			t.Error("the device is left")
		}
	}
}

// TestProgramFails: the exit status and one line that says why.
func TestProgramFails(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var diag syncbuf.Buffer
	cmd := exec.Command(self, "-etcd", "ftp://127.0.0.1")
	cmd.Env, cmd.Stderr = []string{programVariable + "=1"}, &diag
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(diag.String(), "agent: ") {
		t.Errorf("%v\n%s", err, diag.String())
	}
}
