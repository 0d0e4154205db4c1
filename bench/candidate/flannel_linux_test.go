package candidate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFlannel sets the original up, if the environment variable FLANNELKIT_FLANNEL names its program. Two of them are beside
// each other, with a network, an etcd and a device each.
func TestFlannel(t *testing.T) {
	path := os.Getenv("FLANNELKIT_FLANNEL")
	if path == "" {
		t.Skip("FLANNELKIT_FLANNEL names no flanneld of the original")
	}
	bed := newBed(t)
	// Another name makes it another candidate.
	link := filepath.Join(t.TempDir(), "flanneld")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	candidates := up(t, bed, "native", "flannel:"+path, "flannel:"+link)
	if len(candidates) != 3 {
		t.Fatal("not all are up")
	}
	for i, c := range candidates[1:] {
		if c.MTU() != 1472 {
			t.Errorf("MTU %d", c.MTU())
		}
		for _, pid := range c.PIDs() {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(exe) != filepath.Base(path) {
				t.Errorf("process %d is %s (%v)", pid, exe, err)
			}
		}
		a, b := c.Addrs()
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 2)}), 16)
		if !network.Contains(a) || !network.Contains(b) || a == b {
			t.Errorf("%v and %v are not two of %v", a, b, network)
		}
		ping(t, bed, c)
	}
}

// TestFlannelUnavailable: what is no flanneld, or one that ends by itself, is a reason to go on without it.
func TestFlannelUnavailable(t *testing.T) {
	bed := newBed(t)
	const help = `if [ "$1" = -h ]; then echo "  -etcd-endpoints string
  -etcd-prefix string
  -iface value
  -subnet-file string" >&2; exit 2; fi
`
	cases := []struct{ name, path, want string }{
		{"missing", "/nonexistent/flanneld", "no such file"},
		{"other", "/bin/true", "no flanneld"},
	}
	if _, err := exec.LookPath("etcd"); err == nil {
		cases = append(cases, struct{ name, path, want string }{"quits", script(t, help+"echo no such backend >&2; exit 1"), "no such backend"})
	}
	for _, c := range cases {
		f := one(t, "flannel:"+c.path)
		if err := f.Up(t.Context(), bed); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
		down(t, f)
		if len(f.PIDs()) != 0 {
			t.Errorf("%s: processes are left", c.name)
		}
	}
	t.Run("no etcd", func(t *testing.T) {
		path := script(t, help)
		t.Setenv("PATH", t.TempDir())
		f := one(t, "flannel:"+path)
		if err := f.Up(t.Context(), bed); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "etcd") {
			t.Error(err)
		}
		down(t, f)
	})
}

// TestFlannelCancelled: one that never gets a subnet is given up when the context ends, and nothing is left.
func TestFlannelCancelled(t *testing.T) {
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip(err)
	}
	bed := newBed(t)
	t.Setenv("TMPDIR", t.TempDir())
	ready := filepath.Join(t.TempDir(), "ready")
	f := one(t, "flannel:"+script(t, `if [ "$1" = -h ]; then echo "  -etcd-endpoints string
  -etcd-prefix string
  -iface value
  -ip-masq
  -subnet-file string" >&2; exit; fi
echo "$@" >>`+ready+`
exec sleep 1000
`))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Up(ctx, bed) }()
	err := await(t.Context(), "both fakes", func(context.Context) (bool, error) {
		text, err := os.ReadFile(ready)
		if err != nil {
			return false, nil
		}
		return strings.Count(string(text), "\n") == 2, nil
	})
	cancel()
	if up := <-ended; err != nil || !errors.Is(up, context.Canceled) {
		t.Errorf("%v; up: %v", err, up)
	}
	down(t, f)
	text, err := os.ReadFile(ready)
	if err != nil || !strings.Contains(string(text), "-ip-masq=false") || strings.Contains(string(text), "-iptables") {
		t.Errorf("the flags are %s (%v)", text, err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// TestFlannelBadSubnetFile: a file that makes no sense is told as that, not waited for.
func TestFlannelBadSubnetFile(t *testing.T) {
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip(err)
	}
	bed := newBed(t)
	f := one(t, "flannel:"+script(t, `if [ "$1" = -h ]; then echo "  -etcd-endpoints string
  -etcd-prefix string
  -iface value
  -subnet-file string" >&2; exit; fi
for a; do case $a in -subnet-file=*) echo FLANNEL_SUBNET=nonsense >"${a#*=}" ;; esac; done
exec sleep 1000
`))
	err := f.Up(t.Context(), bed)
	if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "FLANNEL_SUBNET") {
		t.Errorf("up: %v", err)
	}
	down(t, f)
}

// TestEtcd: the configuration is there for both generations of flannel.
func TestEtcd(t *testing.T) {
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip(err)
	}
	bed := newBed(t)
	host := bed.Hosts.HostA
	s, err := startEtcd(t.Context(), host.NS, t.TempDir(), netip.AddrPortFrom(host.Addr4.Addr(), 20100))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.program.stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.put(t.Context(), "/coreos.com/network/config", `{"Network":"10.1.0.0/16"}`); err != nil {
		t.Fatal(err)
	}
	read := func(method, path, body string) string {
		request, err := http.NewRequestWithContext(t.Context(), method, s.url()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// Base64 of the key, and in the answer of the value.
	v3 := read(http.MethodPost, "/v3/kv/range", `{"key":"L2NvcmVvcy5jb20vbmV0d29yay9jb25maWc="}`)
	if !strings.Contains(v3, `"eyJOZXR3b3JrIjoiMTAuMS4wLjAvMTYifQ=="`) {
		t.Errorf("v3: %s", v3)
	}
	if s.only3 != "" {
		t.Skip(s.only3)
	}
	if v2 := read(http.MethodGet, "/v2/keys/coreos.com/network/config", ""); !strings.Contains(v2, `{\"Network\":\"10.1.0.0/16\"}`) {
		t.Errorf("v2: %s", v2)
	}
}

func TestReadSubnetFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	for _, c := range []struct {
		text string
		own  string
		mtu  int
	}{
		{"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.34.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", "10.1.34.1", 1472},
		{"FLANNEL_SUBNET=10.1.34.1/24\n", "", 0},
		{"FLANNEL_SUBNET=10.1.34.1\nFLANNEL_MTU=1472\n", "", 0},
		{"FLANNEL_SUBNET=10.1.34.1/24\nFLANNEL_MTU=many\n", "", 0},
		{"", "", 0},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		own, mtu, err := readSubnetFile(path)
		if (err == nil) != (c.own != "") || err == nil && (own.String() != c.own || mtu != c.mtu) {
			t.Errorf("%q: %v %d %v", c.text, own, mtu, err)
		}
	}
}
