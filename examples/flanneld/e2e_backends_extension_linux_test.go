package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/internal/etcdtest"
	"github.com/flannelkit/flannelkit/internal/netlab"
)

// extensionVXLAN is VXLAN made by commands, as flannel's documentation has it, with three
// changes: "ip neigh" in place of "arp"; the Ethernet address from ip instead of /sys,
// which in a network namespace without a mount of its own shows another one's; and a
// command that removes a peer, without which none can come again.
func extensionVXLAN(t *testing.T) string {
	t.Helper()
	commands, err := json.Marshal(map[string]string{
		"Type":                "extension",
		"PreStartupCommand":   `export VNI=1; export IF_NAME=flannel-vxlan; ip link del $IF_NAME 2>/dev/null; ip link add $IF_NAME type vxlan id $VNI dstport 8472 && ip -o link show $IF_NAME | sed 's/.*ether \([0-9a-f:]*\).*/\1/'`,
		"PostStartupCommand":  "export IF_NAME=flannel-vxlan; export SUBNET_IP=`echo $SUBNET | cut -d'/' -f 1`; ip addr add $SUBNET_IP/32 dev $IF_NAME && ip link set $IF_NAME up",
		"ShutdownCommand":     "export IF_NAME=flannel-vxlan; ip link del $IF_NAME",
		"SubnetAddCommand":    "export SUBNET_IP=`echo $SUBNET | cut -d'/' -f 1`; export IF_NAME=flannel-vxlan; read VTEP; ip route add $SUBNET nexthop via $SUBNET_IP dev $IF_NAME onlink && ip neigh replace $SUBNET_IP lladdr $VTEP dev $IF_NAME && bridge fdb add $VTEP dev $IF_NAME self dst $PUBLIC_IP",
		"SubnetRemoveCommand": "read VTEP; ip route del $SUBNET; bridge fdb del $VTEP dev flannel-vxlan self dst $PUBLIC_IP; true",
	})
	if err != nil {
		t.Fatal(err)
	}
	return networkOf(string(commands))
}

// TestExtension: the commands of flannel's documentation carry packets, and take down
// what they made when they are told to.
func TestExtension(t *testing.T) {
	t.Parallel()
	netlab.Require(t, netlab.NeedVXLAN)
	for _, tool := range []string{"ip", "bridge", "sed", "cut"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the commands of this test need %s: %v", tool, err)
		}
	}
	c := newCluster(t, 2, etcdtest.Config{NoV2: true})
	k := c.keysOf(3)
	k.set(configKey, extensionVXLAN(t))
	all := c.members(c.hosts, "-cleanup-on-exit")
	reach(all[0].pod, all[1].pod)
	for _, m := range all {
		want := fmt.Sprintf(`{"PublicIP":"%v","PublicIPv6":null,"BackendType":"extension","BackendData":"%s"}`, m.addr, m.mac("flannel-vxlan"))
		if got := m.lease(k); got != want {
			t.Errorf("%s: the lease is\n%s, want\n%s", m.Name(), got, want)
		}
		m.readyz(200, "node: ok")
	}
	m := all[0]
	m.ends()
	m.checkKernel("after the end with -cleanup-on-exit")
	m.proc = m.start(append(m.args, "-allow-extension=false")...)
	if code := m.proc.wait(); code != 1 || !strings.Contains(m.proc.lastLine(), "allow-extension") {
		t.Errorf("with -allow-extension=false: exit %d, %s", code, m.proc.lastLine())
	}
	m.checkKernel("when commands are not allowed")
	m.again()
	reach(all[0].pod, all[1].pod)
}
