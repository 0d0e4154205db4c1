package dist

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/syncbuf"
)

// patience is for what happens at once on a machine that has nothing else to do.
const patience = 30 * time.Second

// A labHost is a host and etcd in one network namespace.
type labHost struct {
	*netlab.NS
	t    *testing.T
	etcd *etcdtest.Server
}

func newHost(t *testing.T) *labHost {
	t.Helper()
	lab := netlab.ForTest(t, netlab.NeedTUN)
	ns, err := lab.Namespace("host")
	h := &labHost{NS: ns, t: t}
	h.must(err)
	outside, err := lab.Namespace("outside")
	h.must(err)
	h.must(lab.Veth(ns, "eth0", outside, "eth0", 1500))
	addr := netip.MustParsePrefix("192.0.2.1/24")
	h.must(ns.AddAddr("eth0", addr))
	h.must(ns.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.254"), "eth0", 0))
	h.must(ns.Sysctl("net/ipv4/ip_forward", "1"))
	h.etcd = etcdtest.Start(t, etcdtest.Config{Namespace: ns, Listen: addr.Addr()})
	return h
}

func (h *labHost) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// sh runs a program on the host that has to succeed.
func (h *labHost) sh(name string, args ...string) string {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Run(cmd); err != nil {
		h.t.Fatalf("%q: %v\n%s", cmd.Args, err, &out)
	}
	return out.String()
}

// daemon starts a program on the host that is flanneld in the end, and returns its log
// and what ends it, which has to succeed.
func (h *labHost) daemon(cmd *exec.Cmd) (log *syncbuf.Buffer, end func()) {
	h.t.Helper()
	log = new(syncbuf.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := h.Start(cmd)
	h.must(err)
	h.t.Cleanup(func() {
		_ = p.Signal(syscall.SIGKILL) // an error if it has ended
		_ = p.Wait()
		if h.t.Failed() {
			h.t.Logf("%q:\n%s", cmd.Args, log)
		}
	})
	return log, func() {
		h.t.Helper()
		h.must(p.Signal(syscall.SIGTERM))
		if err := p.Wait(); err != nil {
			h.t.Errorf("%q: %v", cmd.Args, err)
		}
	}
}

// ready waits until the daemon's own checks are all content.
func (h *labHost) ready() {
	h.t.Helper()
	dial := func(_ context.Context, network, addr string) (c net.Conn, err error) {
		err = h.Do(func() error { c, err = net.Dial(network, addr); return err })
		return c, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}, Timeout: patience}
	last := ""
	for began := time.Now(); time.Since(began) < patience; time.Sleep(20 * time.Millisecond) {
		res, err := client.Get("http://127.0.0.1:9999/readyz")
		if err != nil {
			last = err.Error()
			continue
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		h.must(err)
		if last = string(text); res.StatusCode == http.StatusOK {
			return
		}
	}
	h.t.Fatalf("never ready: %s", last)
}

// filters are the packet filters that a host may have before the daemon comes, and what
// they need.
var filters = map[string]struct {
	program string
	rules   string // how to see the daemon's rules
}{
	"nftables":        {"", ""},
	"iptables-legacy": {"iptables-legacy", "iptables-legacy -t nat -S POSTROUTING"},
	"iptables-nft":    {"iptables-nft", "iptables-nft -S FORWARD"},
}

// TestCapabilities runs the daemon with the capabilities that the unit leaves it, with
// every backend that every kernel has, and every packet filter. What else the unit
// forbids needs systemd itself.
func TestCapabilities(t *testing.T) {
	need(t, "SYSTEMD", "setpriv")
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give up capabilities in the way that systemd does")
	}
	bounds := setting(t, "flanneld.service", "CapabilityBoundingSet")
	if len(bounds) != 1 {
		t.Fatalf("CapabilityBoundingSet is %q", bounds)
	}
	caps := ""
	for _, c := range strings.Fields(bounds[0]) {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	flanneld := program(t)
	for name, filter := range filters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if filter.program != "" {
				need(t, "IPTABLES", filter.program)
			}
			h := newHost(t)
			if filter.program != "" {
				h.sh(filter.program, "-P", "FORWARD", "DROP")
				h.sh(filter.program, "-t", "nat", "-A", "POSTROUTING", "-s", "198.51.100.1", "-j", "ACCEPT")
			}
			for _, backend := range []string{"udp", "vxlan", "host-gw", "wireguard"} {
				h.etcd.Put("/coreos.com/network/config", fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":%q}}`, backend))
				dir := t.TempDir()
				log, end := h.daemon(exec.Command("setpriv", "--bounding-set=-all"+caps, "--inh-caps=-all", "--no-new-privs", "--", flanneld,
					"-etcd-endpoints="+h.etcd.Endpoint(), "-subnet-file="+filepath.Join(dir, "subnet.env"), "-wireguard-key-file="+filepath.Join(dir, "wgkey"),
					"-ip-masq", "-healthz-port=9999", "-cleanup-on-exit"))
				h.ready()
				if filter.rules != "" {
					if rules := h.sh("sh", "-c", filter.rules); !strings.Contains(rules, "FLANNELKIT") {
						t.Errorf("%s: the rules are elsewhere:\n%s", backend, rules)
					}
				}
				end()
				for _, word := range []string{"not permitted", "denied", "level=ERROR"} {
					if strings.Contains(log.String(), word) {
						t.Errorf("%s: the log says %q:\n%s", backend, word, log)
					}
				}
			}
		})
	}
}
