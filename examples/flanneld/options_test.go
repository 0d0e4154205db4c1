package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/lease"
	"github.com/google/go-cmp/cmp"
)

// parse fails the test unless the options are fine.
func parse(t *testing.T, env []string, args ...string) *options {
	t.Helper()
	o, err := parseOptions(args, env)
	if err != nil {
		t.Fatalf("%q %q: %v", env, args, err)
	}
	return o
}

// A sample is a value for a flag and how the flag shows it afterwards, on another
// value than its default.
func samples() map[string][2]string {
	same := func(s string) [2]string { return [2]string{s, s} }
	return map[string][2]string{
		"etcd-endpoints": same("http://192.0.2.7:2379,http://192.0.2.8:2379"),
		"etcd-endpoint":  {"192.0.2.7:4001/", "http://192.0.2.7:4001"},
		"etcd-prefix":    {"overlay/", "overlay"}, "etcd-version": same("2"),
		"etcd-keyfile": same("k.pem"), "etcd-certfile": same("c.pem"), "etcd-cafile": same("ca.pem"),
		"etcd-username": same("flannel"), "etcd-password": same("pass word"),
		"iface": same("eth1"), "iface-regex": same(`10\.0\..*`), "iface-can-reach": same("192.0.2.9"),
		"public-ip": same("198.51.100.1"), "public-ipv6": same("2001:db8::1"),
		"subnet-file": same("/tmp/subnet.env"), "subnet-lease-renew-margin": same("1439"), "keep-device": same("true"), "accept-any-source": same("true"),
		"vxlan-tx-checksum": same("off"), "wireguard-key-file": same("/etc/wg.key"), "allow-extension": same("false"),
		"ip-masq": same("true"), "ip-masq-fully-random-disable": same("true"), "iptables-forward-rules": same("false"),
		"iptables-resync": same("60"), "ip-blackhole-route": same("true"), "cleanup-on-exit": same("true"),
		"status-socket": same("none"), "healthz-ip": same("::1"), "healthz-port": same("8080"), "v": same("4"), "log-format": same("json"),
		"logtostderr": same("false"), "alsologtostderr": same("true"), "log_dir": same("/var/log"),
		"stderrthreshold": same("ERROR"), "vmodule": same("udp=4"), "log_backtrace_at": same("main.go:7"),
		"version": same("true"), "help": same("true"),
	}
}

// companions are flags that another one can't be given without.
func companions(name string) []string {
	switch name {
	case "etcd-keyfile":
		return []string{"-etcd-certfile=c.pem"}
	case "etcd-certfile":
		return []string{"-etcd-keyfile=k.pem"}
	case "etcd-password":
		return []string{"-etcd-username=flannel"}
	case "etcd-username":
		return []string{"-etcd-password=secret"}
	}
	return nil
}

// shown returns a flag's value after parsing.
func shown(t *testing.T, o *options, name string) string {
	t.Helper()
	for _, f := range flagTable() {
		if f.name == name {
			return f.value(o).String()
		}
	}
	t.Fatalf("no flag %s", name)
	return ""
}

// TestEveryFlag gives each flag in every way there is.
func TestEveryFlag(t *testing.T) {
	all := samples()
	for _, f := range flagTable() {
		s, ok := all[f.name]
		if !ok {
			t.Errorf("no sample value for -%s: add one", f.name)
			continue
		}
		value, want := s[0], s[1]
		if def := f.value(defaults()).String(); def == want {
			t.Errorf("-%s: the sample is the default, so this test shows nothing", f.name)
		}
		ways := map[string]struct{ args, env []string }{
			"-flag=value":  {args: []string{"-" + f.name + "=" + value}},
			"--flag=value": {args: []string{"--" + f.name + "=" + value}},
			"environment":  {env: []string{"PATH=/bin", envName(f.name) + "=" + value, "HOME=/"}},
			"the command line wins": {args: []string{"--" + f.name + "=" + value},
				env: []string{envName(f.name) + "=" + f.value(defaults()).String()}},
		}
		if f.arg != "" {
			ways["-flag value"] = struct{ args, env []string }{args: []string{"-" + f.name, value}}
		} else if want == "true" {
			ways["switch"] = struct{ args, env []string }{args: []string{"--" + f.name}}
		}
		for way, w := range ways {
			o := parse(t, w.env, append(companions(f.name), w.args...)...)
			if got := shown(t, o, f.name); got != want {
				t.Errorf("-%s by %s: %q, want %q", f.name, way, got, want)
			}
		}
	}
}

// TestFlannelsFlags holds names and defaults against flannel's own (its main.go from
// 0.1 on), written apart from the table.
func TestFlannelsFlags(t *testing.T) {
	flannels := map[string]string{
		"etcd-endpoints": "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd-prefix": "/coreos.com/network",
		"etcd-keyfile": "", "etcd-certfile": "", "etcd-cafile": "", "etcd-username": "", "etcd-password": "",
		"iface": "", "iface-regex": "", "iface-can-reach": "", "subnet-file": "/run/flannel/subnet.env",
		"public-ip": "", "public-ipv6": "", "subnet-lease-renew-margin": "60", "ip-masq": "false",
		"ip-masq-fully-random-disable": "false", "healthz-ip": "0.0.0.0", "healthz-port": "0",
		"iptables-resync": "5", "iptables-forward-rules": "true", "ip-blackhole-route": "false",
		"version": "false", "help": "false", "v": "0", "vmodule": "", "log_backtrace_at": "",
		"logtostderr": "true", "alsologtostderr": "false", "log_dir": "", "stderrthreshold": "",
	}
	flannelsRefused := []string{
		"kube-subnet-mgr", "kube-api-url", "kubeconfig-file", "kube-annotation-prefix", "net-config-path",
		"set-node-network-unavailable", "use-multi-cluster-cidr", "listen", "remote", "remote-keyfile",
		"remote-certfile", "remote-cafile", "networks", "watch-networks", "subnet-dir",
	}
	fs := defaults().flagSet()
	for name, def := range flannels {
		f := fs.Lookup(name)
		if f == nil {
			t.Errorf("no flag -%s", name)
		} else if f.Value.String() != def {
			t.Errorf("-%s: default %q, want %q", name, f.Value, def)
		}
	}
	var refused []string
	for _, f := range refusedTable() {
		refused = append(refused, f.name)
	}
	if diff := cmp.Diff(flannelsRefused, refused); diff != "" {
		t.Errorf("refused flags (-want +got):\n%s", diff)
	}
	fs.VisitAll(func(f *flag.Flag) {
		if _, ok := flannels[f.Name]; ok || slices.Contains(refused, f.Name) || f.Name == "etcd-endpoint" {
			return
		}
		for _, d := range flagTable() {
			if d.name == f.Name && d.since != ours {
				t.Errorf("-%s is said to be in flannel %s, and this test does not know it", d.name, d.since)
			}
		}
	})
}

func TestRefusedFlags(t *testing.T) {
	for _, f := range refusedTable() {
		value := "10.1.2.3:8888"
		if f.boolean {
			value = "true"
		}
		for _, way := range []struct {
			args, env []string
			name      string
		}{
			{args: []string{"--" + f.name + "=" + value}, name: "-" + f.name + ":"},
			{env: []string{envName(f.name) + "=" + value}, name: "environment variable " + envName(f.name) + ":"},
		} {
			_, err := parseOptions(way.args, way.env)
			if err == nil {
				t.Errorf("%v %v: not refused", way.args, way.env)
				continue
			}
			if !strings.HasPrefix(err.Error(), way.name) || !strings.Contains(err.Error(), "(") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v %v: %q does not name it first and then what to do, in one line", way.args, way.env, err)
			}
		}
		if f.boolean {
			parse(t, []string{envName(f.name) + "=false"}, "-"+f.name+"=false") // what happens anyway
			if _, err := parseOptions([]string{"-" + f.name}, nil); err == nil {
				t.Errorf("-%s: not refused", f.name)
			}
		}
		parse(t, []string{envName(f.name) + "="})
	}
}

func TestRepeatableFlags(t *testing.T) {
	o := parse(t, []string{"FLANNELD_IFACE=eth9", "FLANNELD_IFACE_REGEX=a,b"}, "-iface=eth0", "--iface", "192.0.2.1")
	if diff := cmp.Diff([]string{"eth0", "192.0.2.1"}, o.ifaces); diff != "" {
		t.Errorf("-iface twice, and in the environment: (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a,b"}, o.ifaceRegexps); diff != "" {
		t.Errorf("the environment gives one value: (-want +got)\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	o := parse(t, []string{"FLANNELD_ETCD_ENDPOINT=http://192.0.2.1:4001", "FLANNELD_ETCD_ENDPOINTS=http://192.0.2.2:2379"}, "-etcd-endpoint=http://192.0.2.3:4001")
	if o.endpointList != "http://192.0.2.3:4001" {
		t.Errorf("the environment won over the flag's old name: %s", o.endpointList)
	}
	o = parse(t, []string{"FLANNELD_IP_MASQ=", "FLANNELD_NO_SUCH=secret-value", "OTHER=1", "FLANNELDX=1"})
	if len(o.warnings) != 1 || !strings.Contains(o.warnings[0], "FLANNELD_NO_SUCH") || strings.Contains(o.warnings[0], "secret-value") {
		t.Errorf("warnings = %q, want one that names FLANNELD_NO_SUCH without its value", o.warnings)
	}
	for _, bad := range []string{
		"FLANNELD_IP_MASQ=maybe", "FLANNELD_SUBNET_LEASE_RENEW_MARGIN=0", "FLANNELD_HEALTHZ_PORT=x",
		"FLANNELD_PUBLIC_IP=nowhere", "FLANNELD_ETCD_VERSION=4", "FLANNELD_ETCD_ENDPOINTS=ftp://192.0.2.1",
		"FLANNELD_IFACE_REGEX=(", "FLANNELD_LOG_FORMAT=xml", "FLANNELD_ETCD_PREFIX=/", "FLANNELD_ETCD_CERTFILE=c.pem",
		"FLANNELD_IFACE_CAN_REACH=example.org",
	} {
		name, _, _ := strings.Cut(bad, "=")
		if _, err := parseOptions(nil, []string{bad}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v does not name the variable", bad, err)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-nosuch", "-nosuch"}, {"run", `"run"`}, {"-iface eth0 extra", `"extra"`},
		{"-subnet-lease-renew-margin=0", "1 to 1439 minutes"}, {"-subnet-lease-renew-margin=1440", "1 to 1439 minutes"},
		{"-subnet-lease-renew-margin=1h", "1 to 1439 minutes"},
		{"-iptables-resync=0", "seconds"}, {"-healthz-port=65536", "65535"}, {"-v=-1", "-v"}, {"-v", "-v"},
		{"-ip-masq=perhaps", "-ip-masq"}, {"-etcd-endpoints=,", "no endpoint"}, {"-etcd-endpoints=http://", "no host"},
		{"-etcd-endpoints=unix:///run/etcd", "unix"}, {"-etcd-endpoints=http://a:1,http://b:2/path", "endpoint 2"},
		{"-etcd-endpoints=http://u:pw1@a:1,http://u:pw2@b:1", "another user"},
		{"-etcd-endpoint=http://a:1 -etcd-endpoints=http://a:1", "one flag under two names"},
		{"-etcd-keyfile=k.pem", "-etcd-certfile"}, {"-etcd-certfile=k.pem", "-etcd-keyfile"},
		{"-etcd-password=secret", "-etcd-username"}, {"-etcd-username=me", "-etcd-password"},
		{"-etcd-endpoints=http://me@h:1", "-etcd-password"}, {"-etcd-version=v3", "auto, 2 or 3"},
		{"-public-ip=2001:db8::1", "IPv4"}, {"-public-ipv6=192.0.2.1", "IPv6"}, {"-subnet-file=", "-subnet-file"},
		{"-keep-device -cleanup-on-exit", "contradict"}, {"-iface-regex=[", "-iface-regex"},
	} {
		_, err := parseOptions(strings.Fields(c.args), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.args, err, c.want)
		} else if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "pw1") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %q has two lines or a password", c.args, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		args, want, user, password string
	}{
		{"", "http://127.0.0.1:4001 http://127.0.0.1:2379", "", ""},
		{"-etcd-endpoints=http://a:1/,https://b:2", "http://a:1 https://b:2", "", ""},
		{"-etcd-endpoints=a:2379,b:2379", "http://a:2379 http://b:2379", "", ""},
		{"-etcd-endpoints=a:2379 -etcd-cafile=ca.pem", "https://a:2379", "", ""},
		{"-etcd-endpoints=http://root:pa%20ss@a:1,http://root:pa%20ss@b:1", "http://a:1 http://b:1", "root", "pa ss"},
		{"-etcd-endpoints=http://root:old@a:1 -etcd-username=flannel -etcd-password=new", "http://a:1", "flannel", "new"},
		{"-etcd-endpoints=http://[::1]:2379", "http://[::1]:2379", "", ""},
	} {
		o := parse(t, nil, strings.Fields(c.args)...)
		if got := strings.Join(o.endpoints, " "); got != c.want || o.username != c.user || o.password != c.password {
			t.Errorf("%s: %s as %q %q, want %s as %q %q", c.args, got, o.username, o.password, c.want, c.user, c.password)
		}
	}
}

func TestWarnings(t *testing.T) {
	o := parse(t, []string{"FLANNELD_VMODULE=a=1"}, "-logtostderr=true", "-log_dir=/var/log", "-v=1")
	if len(o.warnings) != 1 || !strings.HasSuffix(o.warnings[0], ": logtostderr, log_dir, vmodule") {
		t.Errorf("warnings = %q, want one that names the three flags without effect", o.warnings)
	}
	o = parse(t, nil, "-etcd-cafile=ca.pem")
	if len(o.warnings) != 1 || !strings.Contains(o.warnings[0], "https") {
		t.Errorf("warnings = %q, want one about certificates without https", o.warnings)
	}
	if o = parse(t, nil); o.warnings != nil {
		t.Errorf("warnings without any flag: %q", o.warnings)
	}
}

// TestWireguardKeyFile: flannel's own variable comes after the flag in either form.
func TestWireguardKeyFile(t *testing.T) {
	const theirs = "WIREGUARD_KEY_FILE=/theirs"
	for _, c := range []struct {
		env, args []string
		want      string
	}{
		{nil, nil, "/run/flannel/wgkey"},
		{[]string{"WIREGUARD_KEY_FILE="}, nil, "/run/flannel/wgkey"},
		{[]string{theirs}, nil, "/theirs"},
		{[]string{theirs, "FLANNELD_WIREGUARD_KEY_FILE=/ours"}, nil, "/ours"},
		{[]string{theirs}, []string{"-wireguard-key-file=/given"}, "/given"},
	} {
		o, err := parseOptions(c.args, c.env)
		if err != nil || o.wireguardKey != c.want {
			t.Errorf("%v %v: %v, want %s", c.env, c.args, err, c.want)
		}
	}
}

// TestBackends: every backend has flannel's name, and -allow-extension=false refuses.
func TestBackends(t *testing.T) {
	all := parse(t, nil).backends()
	names := slices.Sorted(maps.Keys(all))
	if want := []string{"alloc", "aws-vpc", "extension", "gce", "host-gw", "ipip", "udp", "vxlan", "wireguard"}; !slices.Equal(names, want) {
		t.Errorf("backends %v, want %v", names, want)
	}
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":"true"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false} {
		_, err := parse(t, nil, fmt.Sprintf("-allow-extension=%v", on)).backends()["extension"](backend.Params{Network: n, Log: discardLog()})
		if (err == nil) != on || !on && !strings.Contains(err.Error(), "-allow-extension") {
			t.Errorf("-allow-extension=%v: %v", on, err)
		}
	}
}

// TestUsage compares the help with testdata/help.txt. After a change that is meant,
// run it with UPDATE=1 and read the difference.
func TestUsage(t *testing.T) {
	var b strings.Builder
	usage(&b)
	golden := filepath.Join("testdata", "help.txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("help differs from %s (-want +got):\n%s", golden, diff)
	}
	lines := strings.Split(b.String(), "\n")
	for _, f := range flagTable() {
		i := slices.IndexFunc(lines, func(l string) bool {
			return l == "  -"+f.name || strings.HasPrefix(l, "  -"+f.name+" ")
		})
		if i < 0 {
			t.Errorf("the help does not list -%s", f.name)
			continue
		}
		def := f.value(defaults()).String()
		text := strings.Join(lines[i+1:min(i+5, len(lines))], " ")
		if def != "" && !strings.Contains(strings.Join(strings.Fields(text), " "), "(default "+def+")") {
			t.Errorf("the help of -%s does not tell its default %s", f.name, def)
		}
	}
	for _, f := range refusedTable() {
		if !strings.Contains(b.String(), "-"+f.name) {
			t.Errorf("the help does not list -%s as refused", f.name)
		}
	}
	for _, l := range lines {
		if len(l) > 120 {
			t.Errorf("too long for a terminal: %q", l)
		}
	}
}
