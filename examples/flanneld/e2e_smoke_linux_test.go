package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

const network = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`

// TestGuideWithAPI2 does what flannel's guides do with etcd's API 2, word for word:
// etcdctl set, flanneld --iface on two hosts, a ping from subnet to subnet.
func TestGuideWithAPI2(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{})
	c.etcd.PutV2("/coreos.com/network/config", network, 0) // etcdctl set
	files := twoHosts(t, c)
	for i, f := range files {
		key := "/coreos.com/network/subnets/" + f.Key().String()
		n := c.etcd.GetV2(key).Node
		checkLease(t, n.Value, c.hosts[i].addr)
		if n.TTL < 23*3600 || n.TTL > 24*3600 {
			t.Errorf("%s lives for %d s, want 24 hours", key, n.TTL)
		}
	}
	if c.etcd.Revision() != 1 {
		t.Errorf("something was written by API 3: revision %d", c.etcd.Revision())
	}
}

// TestGuideWithAPI3 is the same with etcdctl put.
func TestGuideWithAPI3(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	c.etcd.Put("/coreos.com/network/config", network) // etcdctl put
	files := twoHosts(t, c)
	for i, f := range files {
		value, ok := c.etcd.Get("/coreos.com/network/subnets/" + f.Key().String())
		if !ok {
			t.Fatalf("no key for %v", f.Subnet)
		}
		checkLease(t, value, c.hosts[i].addr)
	}
	if n := len(c.etcd.Leases()); n != 2 {
		t.Errorf("%d etcd leases for two hosts", n)
	}
}

// twoHosts starts flanneld on two hosts as the guides do, pings from subnet to subnet,
// and ends both with SIGTERM. It returns the subnet files.
func twoHosts(t *testing.T, c *cluster) (files []subnetenv.File) {
	t.Helper()
	var procs []*flanneldProc
	for _, h := range c.hosts {
		h.forwardEtcd("127.0.0.1:2379")
		procs = append(procs, h.start("--iface="+h.addr.String()))
	}
	var pods []netip.Addr
	for i, p := range procs {
		f := p.ready()
		want := subnetenv.File{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: f.Subnet, MTU: 1472}
		if f != want || f.Subnet.Bits() != 24 || !want.Network.Contains(f.Subnet.Addr()) {
			t.Errorf("%s: subnet file %+v, want %+v", c.hosts[i].Name(), f, want)
		}
		files = append(files, f)
		pods = append(pods, c.hosts[i].bridge(f))
	}
	if files[0].Subnet == files[1].Subnet {
		t.Fatalf("both hosts have %v", files[0].Subnet)
	}
	c.hosts[0].ping(pods[0], pods[1])
	c.hosts[1].ping(pods[1], pods[0])
	for i, p := range procs {
		if code, _ := p.stop(); code != 0 {
			t.Errorf("%s: exit %d after SIGTERM", c.hosts[i].Name(), code)
		}
		p.hears("STOPPING=1")
		if _, err := os.Stat(c.hosts[i].file); err != nil {
			t.Errorf("the subnet file must stay: %v", err)
		}
	}
	return files
}

// checkLease holds a lease against flannel's: byte for byte.
func checkLease(t *testing.T, value string, addr netip.Addr) {
	t.Helper()
	if want := leaseOf(addr); value != want {
		t.Errorf("the lease is %s, want %s", value, want)
	}
	if !json.Valid([]byte(value)) {
		t.Error("no JSON")
	}
}

// TestStartWithoutEtcdOrConfiguration starts the daemon first, then etcd, then
// configures the network: it says what it waits for, and /readyz tells the truth.
func TestStartWithoutEtcdOrConfiguration(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, etcdtest.Config{})
	h := c.hosts[0]
	c.etcd.Stop()
	p := h.start(c.endpoints(), "-healthz-port=8080", "-healthz-ip=127.0.0.1", "-iface=eth0")
	p.hears("STATUS=waiting for etcd")
	if last := p.said[len(p.said)-1]; !strings.Contains(last, c.etcd.Addr()) || !strings.Contains(last, "refused") {
		t.Errorf("%q does not say which endpoint, and why", last)
	}
	want := func(path string, code int, text string) {
		t.Helper()
		var got int
		var body string
		eventually(t, path+" is "+text, func() (ok bool) {
			var err error
			got, body, err = h.get("http://127.0.0.1:8080" + path)
			return err == nil && got == code && strings.Contains(body, text)
		})
	}
	want("/healthz", 200, "running")
	want("/readyz", 503, "refused")
	c.etcd.Run()
	p.hears("STATUS=waiting for etcd: the network is not configured yet")
	want("/readyz", 503, "not configured")
	if slices.Contains(p.said, "READY=1") {
		t.Error("READY=1 without a network")
	}
	c.etcd.Put("/coreos.com/network/config", network)
	f := p.ready()
	want("/readyz", 200, "node: ok\nrules: ok\nsubnet-file: ok\n")
	want("/metrics", 200, `flanneld_lease_info{backend="udp",public_ip="192.0.2.1",subnet="`+f.Key().String()+`"} 1`)

	if err := os.Remove(h.file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the subnet file is back", func() bool { _, err := os.Stat(h.file); return err == nil })
	c.etcd.Stop() // and nothing changes
	want("/readyz", 200, "node: ok")
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit %d after SIGTERM with etcd dead", code)
	}
}
