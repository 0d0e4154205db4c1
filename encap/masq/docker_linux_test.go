package masq

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

// startEngine starts Docker's engine in host A and returns how to stop it.
func startEngine(t *testing.T, w *world, dir string) (stop func()) {
	t.Helper()
	sock := filepath.Join(dir, "d.sock")
	var log bytes.Buffer
	cmd := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"-H", "unix://"+sock, "--bip", "172.29.0.1/24", "--iptables=true", "--storage-driver", "vfs")
	cmd.Stdout, cmd.Stderr = &log, &log
	var p *netlab.Process
	var err error
	must(t, w.HostA.Do(func() error { p, err = w.HostA.Start(cmd); return err }))
	stop = func() {
		_ = p.Signal(syscall.SIGTERM)
		_ = p.Wait()
		_ = os.Remove(sock)
	}
	// The engine takes connections before it has made its rules, and answers after.
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sock)
		}}}
	ended := make(chan struct{})
	go func() { _ = p.Wait(); close(ended) }()
	eventually(t, "Docker's engine answers", func() bool {
		select {
		case <-ended:
			t.Skipf("Docker's engine does not run here: %s", log.Bytes())
		default:
		}
		resp, err := client.Get("http://docker/_ping")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	return stop
}

// TestDockerEngine has packets forwarded beside a real engine, which sets the policy DROP
// when it is the one that turns forwarding on. It runs where dockerd is installed and
// may run: as root.
func TestDockerEngine(t *testing.T) {
	if _, err := exec.LookPath("dockerd"); err != nil || testing.Short() || os.Getuid() != 0 {
		t.Skipf("needs dockerd and root: %v", err)
	}
	needPrograms(t, "iptables", "ip6tables")
	w := newWorld(t)
	r, err := New(w.config(Auto))
	must(t, err)
	r.resync = 200 * time.Millisecond
	w.start(t, r)
	forwards := func(v string) { must(t, w.HostA.Sysctl("net/ipv4/ip_forward", v)) }
	for range 2 {
		forwards("0")
		stop := startEngine(t, w, t.TempDir())
		if rules := w.run(t, "iptables", "-S", "FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n") {
			t.Errorf("the engine did not set the policy: the test proves nothing\n%s", rules)
		}
		w.complete(t, r, "the engine's start")
		w.flows(t, "beside the engine")
		w.masquerades(t, "beside the engine")
		if rules := w.run(t, "iptables", "-S", "FORWARD"); !strings.HasPrefix(rules, "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j "+fwdPrefix+"\n") {
			t.Errorf("FORWARD is\n%s", rules)
		}
		stop()
		w.complete(t, r, "the engine's end")
		w.flows(t, "after the engine")
	}
	must(t, w.HostA.Do(func() error { return r.Close(true) }))
	if !w.intoPod(false).dropped(t) {
		t.Error("without the rules packets get through: the test proves nothing")
	}
}
