package etcdtest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/flannelkit/flannelkit/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// TestNamespace runs a server on a host of its own.
func TestNamespace(t *testing.T) {
	hosts, err := netlab.ForTest(t).TwoHosts(netlab.TwoHostsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s := Start(t, Config{Namespace: hosts.HostA.NS, Listen: hosts.HostA.Addr4.Addr(), TLS: MutualTLS, Auth: true})
	s.Put("a", "b")
	s.Restart()
	s.Pause()
	s.Resume()
	if v, _ := s.Get("a"); v != "b" {
		t.Errorf("a = %q", v)
	}
	s.PutV2("/c", "d", 0)
	if s.GetV2("/c").Node.Value != "d" {
		t.Error("v2")
	}
	if err := hosts.HostB.Do(func() error {
		c, err := net.Dial("tcp", netip.AddrPortFrom(hosts.HostA.Addr4.Addr(), s.port).String())
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Errorf("from the other host: %v", err)
	}
}
