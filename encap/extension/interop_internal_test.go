package extension

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

// TestExamples runs configurations as flannel's documentation and its dist directory
// have them, and one of a distribution, with tools that write down how they are called.
func TestExamples(t *testing.T) {
	const tool = "#!/bin/sh\necho \"${0##*/} $*\" >>\"$DIR/calls\"\n"
	for _, c := range []struct {
		name, part, data string
		peer             lease.Lease
		want             []string
	}{
		{"host-gw", `{"Type": "extension",
			"SubnetAddCommand": "ip route add $SUBNET via $PUBLIC_IP",
			"SubnetRemoveCommand": "ip route del $SUBNET via $PUBLIC_IP"}`, "", peerAt(2, "192.0.2.2", ""), []string{
			"ip route add 10.50.2.0/24 via 192.0.2.2",
			"ip route del 10.50.2.0/24 via 192.0.2.2"}},
		{"vxlan", "{\"Type\": \"extension\"," +
			`"PreStartupCommand": "export VNI=1; export IF_NAME=flannel-vxlan; ip link del $IF_NAME 2>/dev/null; ip link add $IF_NAME type vxlan id $VNI dstport 8472 && cat /sys/class/net/$IF_NAME/address",` +
			"\"PostStartupCommand\": \"export IF_NAME=flannel-vxlan; export SUBNET_IP=`echo $SUBNET | cut -d'/' -f 1`; ip addr add $SUBNET_IP/32 dev $IF_NAME && ip link set $IF_NAME up\"," +
			`"ShutdownCommand": "export IF_NAME=flannel-vxlan; ip link del $IF_NAME",` +
			"\"SubnetAddCommand\": \"export SUBNET_IP=`echo $SUBNET | cut -d'/' -f 1`; export IF_NAME=flannel-vxlan; read VTEP; ip route add $SUBNET nexthop via $SUBNET_IP dev $IF_NAME onlink && arp -s $SUBNET_IP $VTEP dev $IF_NAME && bridge fdb add $VTEP dev $IF_NAME self dst $PUBLIC_IP\"}",
			"0a:00:00:00:00:01", peerAt(2, "192.0.2.2", "0a:00:00:00:00:02"), []string{
				"ip link del flannel-vxlan",
				"ip link add flannel-vxlan type vxlan id 1 dstport 8472",
				"ip addr add 10.50.1.0/32 dev flannel-vxlan",
				"ip link set flannel-vxlan up",
				"ip route add 10.50.2.0/24 nexthop via 10.50.2.0 dev flannel-vxlan onlink",
				"arp -s 10.50.2.0 0a:00:00:00:00:02 dev flannel-vxlan",
				"bridge fdb add 0a:00:00:00:00:02 dev flannel-vxlan self dst 192.0.2.2",
				"ip link del flannel-vxlan"}},
		{"wireguard", `{"Type": "extension",
			"PreStartupCommand": "wg genkey | tee $DIR/privatekey | wg pubkey",
			"PostStartupCommand": "export SUBNET_IP=$(echo \"$SUBNET\" | cut -d'/' -f 1); ip link del flannel-wg 2>/dev/null; ip link add flannel-wg type wireguard && wg set flannel-wg listen-port 51820 private-key privatekey && ip addr add \"${SUBNET_IP}/32\" dev flannel-wg && ip link set flannel-wg up && ip route add \"$NETWORK\" dev flannel-wg",
			"ShutdownCommand": "ip link del flannel-wg",
			"SubnetAddCommand": "read PUBLICKEY; wg set flannel-wg peer \"$PUBLICKEY\" endpoint \"$PUBLIC_IP\":51820 allowed-ips \"$SUBNET\"",
			"SubnetRemoveCommand": "read PUBLICKEY; wg set flannel-wg peer \"$PUBLICKEY\" remove"}`,
			"PUB+/=", peerAt(2, "192.0.2.2", "PEER+/="), []string{
				"ip link del flannel-wg",
				"ip link add flannel-wg type wireguard",
				"wg set flannel-wg listen-port 51820 private-key privatekey",
				"ip addr add 10.50.1.0/32 dev flannel-wg",
				"ip link set flannel-wg up",
				"ip route add 10.50.0.0/16 dev flannel-wg",
				"wg set flannel-wg peer PEER+/= endpoint 192.0.2.2:51820 allowed-ips 10.50.2.0/24",
				"wg set flannel-wg peer PEER+/= remove",
				"ip link del flannel-wg"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin := t.TempDir()
			l := newLab(t, c.part, Options{Env: []string{"PATH=" + bin + ":/usr/bin:/bin"}})
			l.dir, bin = bin, l.dir // the tools are where PATH says
			l.write("cat", "#!/bin/sh\necho 0a:00:00:00:00:01\n", 0o777)
			l.write("wg", "#!/bin/sh\ncase $1 in genkey) echo PRIV;; pubkey) read K; test $K = PRIV && echo PUB+/=;; *) echo \"wg $*\" >>\"$DIR/calls\";; esac\n", 0o777)
			for _, name := range []string{"ip", "arp", "bridge"} {
				l.write(name, tool, 0o777)
			}
			l.dir = bin
			attrs := l.begin()
			if got, err := decodeData(attrs.BackendData); err != nil || got != c.data {
				t.Errorf("the data is %q, %v, want %q", got, err, c.data)
			}
			l.sync(c.peer)
			if err := l.Close(false); err != nil {
				t.Error(err)
			}
			l.want("calls", c.want...)
		})
	}
}

// TestData compares with what flannel writes to a lease, byte for byte.
func TestData(t *testing.T) {
	for _, c := range []struct{ command, want string }{
		{"", `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension"}`},
		{" \t", `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension"}`},
		{"true", `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":""}`},
		{"echo 0a:00", `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"0a:00"}`},
		{`printf ' \n\ta\nb "c" \\ <&>\r\n\n'`, `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"a\nb \"c\" \\ \u003c\u0026\u003e"}`},
		{`printf 'a\377b\000c'`, `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"a\ufffdb\u0000c"}`},
		{"echo data; echo a warning >&2", `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"data"}`},
	} {
		l := newLab(t, commandsJSON(keyPre, c.command), Options{})
		attrs, err := l.Prepare(t.Context(), host())
		if err != nil {
			t.Fatal(err)
		}
		attrs.PublicIP = host().Public4
		if got, err := json.Marshal(attrs); err != nil || string(got) != c.want {
			t.Errorf("%s\nmakes %s, %v\nwant  %s", c.command, got, err, c.want)
		}
		if n := l.logs.Count("data"); n > l.logs.Count("a warning") {
			t.Errorf("%s: the data is in the log: %q", c.command, l.logs.With("data"))
		}
	}
	l := newLab(t, commandsJSON(keyPre, "head -c 65537 /dev/zero | tr '\\0' x"), Options{})
	_, err := l.Prepare(t.Context(), host())
	errHas(t, err, "extension: prepare: PreStartupCommand", "65536 bytes")
	l = newLab(t, commandsJSON(keyPre, "head -c 65536 /dev/zero | tr '\\0' x"), Options{})
	if attrs, err := l.Prepare(t.Context(), host()); err != nil || len(attrs.BackendData) != 65538 {
		t.Errorf("%d bytes, %v", len(attrs.BackendData), err)
	}
}

// TestStdin hands over what flannel hosts wrote, which is data and never code.
func TestStdin(t *testing.T) {
	l := newLab(t, commandsJSON(keyPre, "cat >$DIR/pre", keyPost, "cat >$DIR/post", keyShutdown, "cat >$DIR/shutdown",
		keyAdd, "cat >$DIR/add-${SUBNET%/*}", keyRemove, "cat >$DIR/remove-${SUBNET%/*}"), Options{})
	l.begin()
	evil := "$(touch $DIR/pwned)`touch $DIR/pwned`;touch $DIR/pwned\n' \" \\ & | \x00 \u2028 é"
	big := strings.Repeat("x", 1<<20)
	raw := peerAt(5, "192.0.2.5", "")
	raw.Attrs.BackendData = json.RawMessage(`"a\u003cb\/c\u00e9"`)
	l.sync(peerAt(2, "192.0.2.2", ""), peerAt(3, "192.0.2.3", evil), peerAt(4, "192.0.2.4", big), raw)
	if err := l.Close(false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"pre": "\n", "post": "\n", "shutdown": "\n",
		"add-10.50.2.0": "\n", "add-10.50.3.0": evil + "\n", "add-10.50.4.0": big + "\n", "add-10.50.5.0": "a<b/cé\n",
		"remove-10.50.2.0": "\n", "remove-10.50.3.0": evil + "\n", "remove-10.50.4.0": big + "\n"} {
		if got := l.read(name); got != want {
			t.Errorf("%s: %d bytes, %.60q, want %.60q", name, len(got), got, want)
		}
	}
	l.want("pwned")

	// A command need not read, however much there is.
	l = newLab(t, commandsJSON(keyAdd, "exec <&-; echo done >$DIR/done"), Options{})
	l.begin()
	l.sync(peerAt(4, "192.0.2.4", big))
	l.want("done", "done")
}

// TestInjection has a peer's data come as near to a shell as it can.
func TestInjection(t *testing.T) {
	l := newLab(t, commandsJSON(keyAdd, `read -r DATA; echo "$DATA" >>$DIR/seen; set -- $DATA; echo $# >>$DIR/seen`), Options{})
	l.begin()
	l.sync(peerAt(2, "192.0.2.2", `"; touch $DIR/pwned; $(touch $DIR/pwned) #`))
	l.want("seen", `"; touch $DIR/pwned; $(touch $DIR/pwned) #`, "6")
	l.want("pwned")
}

// TestEnvironment looks at the variables of all five, which also hide those that this
// process happens to have.
func TestEnvironment(t *testing.T) {
	const show = "env | grep -E '^(IPV6)?(NETWORK|SUBNET)=|^PUBLIC_|^MINE' | sort >$DIR/"
	l := newLab(t, commandsJSON(keyPre, show+"pre", keyPost, show+"post", keyShutdown, show+"shutdown",
		keyAdd, show+"add-${SUBNET%/*}", keyRemove, show+"remove-${SUBNET%/*}"),
		Options{Env: []string{"PATH=/usr/bin:/bin", "MINE=a b", "SUBNET=0.0.0.0/0", "PUBLIC_IPV6=bad", "IPV6NETWORK=bad"}})
	l.begin()
	both := peerAt(3, "192.0.2.3", "")
	both.Subnet6, both.Attrs.PublicIPv6 = netip.MustParsePrefix("fd00:50:0:3::/64"), netip.MustParseAddr("2001:db8::3")
	l.sync(peerAt(2, "192.0.2.2", "data"), both)
	l.sync()
	if err := l.Close(false); err != nil {
		t.Fatal(err)
	}
	env := func(public, public6, subnet, subnet6 string) []string {
		return []string{"IPV6NETWORK=fd00:50::/48", "IPV6SUBNET=" + subnet6, "MINE=a b", "NETWORK=10.50.0.0/16",
			"PUBLIC_IP=" + public, "PUBLIC_IPV6=" + public6, "SUBNET=" + subnet}
	}
	l.want("pre", env("192.0.2.1", "2001:db8::1", "", "")...)
	l.want("post", env("192.0.2.1", "2001:db8::1", "10.50.1.0/24", "fd00:50:0:1::/64")...)
	l.want("shutdown", env("192.0.2.1", "2001:db8::1", "10.50.1.0/24", "fd00:50:0:1::/64")...)
	for _, what := range []string{"add", "remove"} {
		l.want(what+"-10.50.2.0", env("192.0.2.2", "", "10.50.2.0/24", "")...)
		l.want(what+"-10.50.3.0", env("192.0.2.3", "2001:db8::3", "10.50.3.0/24", "fd00:50:0:3::/64")...)
	}

	t.Setenv("MINE_TOO", "of the process")
	l = newLab(t, commandsJSON(keyPost, "echo $MINE_TOO >$DIR/post"), Options{})
	l.begin()
	l.want("post", "of the process")
}
