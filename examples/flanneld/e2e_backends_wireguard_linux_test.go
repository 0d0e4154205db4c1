package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
)

// key checks that the private key is for its owner alone, and returns it.
func (h *labHost) key() string {
	h.c.t.Helper()
	name := h.beside("wgkey")
	info, err := os.Stat(name)
	h.c.must(err)
	if info.Mode().Perm() != 0o400 {
		h.c.t.Errorf("%s: the key file has mode %#o, want 0400", h.Name(), info.Mode().Perm())
	}
	text, err := os.ReadFile(name)
	h.c.must(err)
	return strings.TrimSpace(string(text))
}

// TestWireguard: three hosts; nothing that can be read crosses the Ethernet, whatever
// happens to a daemon; its key stays.
func TestWireguard(t *testing.T) {
	t.Parallel()
	const psk = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	c := newCluster(t, 3, etcdtest.Config{NoV2: true})
	k := c.keysOf(3)
	k.set(configKey, networkOf(`{"Type":"wireguard","PSK":"`+psk+`"}`))
	inner := netip.MustParsePrefix("10.5.0.0/16")
	wire := c.tap(func(packet []byte) string {
		to, port := destination(packet)
		switch {
		case bytes.Contains(packet, []byte(secretText)):
			return "readable"
		case inner.Contains(to):
			return "plain"
		case port == 51820:
			return "WireGuard"
		}
		return ""
	})
	all := c.members(c.hosts)
	golden := regexp.MustCompile(`^\{"PublicIP":"([0-9.]+)","PublicIPv6":null,"BackendType":"wireguard","BackendData":\{"PublicKey":"[A-Za-z0-9+/]{43}=","Port":51820\}\}$`)
	leases, secrets := map[*member]string{}, []string{psk}
	for _, m := range all {
		leases[m] = m.lease(k)
		if found := golden.FindStringSubmatch(leases[m]); found == nil || found[1] != m.addr.String() {
			t.Errorf("%s: the lease is %s", m.Name(), leases[m])
		}
		checkFile(t, m.labHost, "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=SUBNET4\nFLANNEL_MTU=1420\nFLANNEL_IPMASQ=false\n", m.file)
		secrets = append(secrets, m.key())
	}
	reachAll(all...)
	say(t, all[0].pod, all[1].pod)
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		m := all[1+i]
		s := startStream(all[0].pod, m.pod) // in one direction
		key := m.key()
		c.must(m.proc.Signal(sig))
		m.proc.wait()
		m.again()
		began := time.Now()
		s.flows()
		took := time.Since(began)
		t.Logf("after %v packets flow %v after READY=1", sig, took)
		if took > 8*time.Second {
			// WireGuard notices after 15 s of silence that a peer has forgotten the
			// session. A host that starts has to say that it is there anew.
			t.Errorf("after %v nothing comes from a peer for %v", sig, took)
		}
		s.stop()
		if again := m.lease(k); again != leases[m] || m.key() != key {
			t.Errorf("after %v the lease is %s, was %s", sig, again, leases[m])
		}
	}
	if r, p, w := wire.count("readable"), wire.count("plain"), wire.count("WireGuard"); r+p > 0 || w == 0 {
		t.Errorf("on the Ethernet: %d packets that can be read, %d of the overlay as they are, %d of WireGuard", r, p, w)
	}
	say(t, &pod{NS: c.hosts[0].NS, h: c.hosts[0], addr4: c.hosts[0].addr}, &pod{NS: c.hosts[1].NS, h: c.hosts[1], addr4: c.hosts[1].addr})
	eventually(t, "what is said in the clear is seen", func() bool { return wire.count("readable") > 0 })
	for _, m := range all {
		for _, s := range secrets {
			if strings.Contains(m.proc.log.String(), s) {
				t.Errorf("%s: a key is in the log", m.Name())
			}
		}
		m.ends()
		if code, _, log := m.run("cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d: %s", code, log)
		}
		m.checkKernel("after cleanup")
		m.key()
	}
}

// secretText is what nobody on the Ethernet may read.
const secretText = "the treasure is under the old oak tree"

// say sends the secret until it arrives.
func say(t *testing.T, from, to *pod) {
	t.Helper()
	in := openUDP(t, to.NS, netip.AddrPortFrom(to.addr4, 0))
	out := openUDP(t, from.NS, netip.AddrPortFrom(from.addr4, 0))
	at := netip.AddrPortFrom(to.addr4, in.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	b := make([]byte, 100)
	eventually(t, "the secret arrives", func() bool {
		_, err := out.WriteToUDPAddrPort([]byte(secretText), at)
		_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, _, errIn := in.ReadFromUDPAddrPort(b)
		return err == nil && errIn == nil && string(b[:n]) == secretText
	})
}

// TestWireguardPSK: a host with another preshared key is a peer by its lease, and gets
// and says nothing.
func TestWireguardPSK(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, etcdtest.Config{NoV2: true})
	config := func(psk string) {
		c.etcd.Put(configKey, networkOf(fmt.Sprintf(`{"Type":"wireguard","PSK":%q}`, psk)))
	}
	config("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	good := c.members(c.hosts[:2])
	config("AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	bad := c.members(c.hosts[2:])[0]
	reach(good[0].pod, good[1].pod)
	for _, m := range good {
		m.hasMetric("flanneld_peers", 2)
		if pingOnce(t.Context(), m.pod.NS, m.pod.addr4, bad.pod.addr4) == nil {
			t.Error("an answer in spite of another preshared key")
		}
	}
}
