package main

import (
	"flag"

	"github.com/flannelkit/flannelkit/encap/wireguard"
)

// A flagDef is one flag. Its environment variable is FLANNELD_ and the name in
// upper case, with _ for -.
type flagDef struct {
	name  string
	arg   string // what stands behind the name in the help; empty for a switch
	since string // flannel's version that had it first, or ours
	group string
	help  string
	idle  bool // accepted, without effect
	value func(*options) flag.Value
}

// ours marks a flag that no flannel has.
const ours = "flannelkit"

// The groups in the order in which the help lists them.
const (
	groupEtcd    = "etcd"
	groupIface   = "Interface and addresses"
	groupNode    = "Subnet"
	groupBackend = "Backends"
	groupRules   = "Packet filter and routes"
	groupWatch   = "Health and metrics"
	groupLog     = "Logging"
	groupOther   = "Other"
)

func str(p func(*options) *string) func(*options) flag.Value {
	return func(o *options) flag.Value { return stringValue{p(o)} }
}

func list(p func(*options) *[]string) func(*options) flag.Value {
	return func(o *options) flag.Value { return listValue{p(o)} }
}

func boolean(p func(*options) *bool) func(*options) flag.Value {
	return func(o *options) flag.Value { return boolValue{p(o)} }
}

func number(least, most int, unit string, p func(*options) *int) func(*options) flag.Value {
	return func(o *options) flag.Value { return intValue{p(o), least, most, unit} }
}

// defaults returns what holds when nothing is given.
func defaults() *options {
	return &options{
		endpointList: defaultEndpoints, prefix: defaultPrefix, etcdVersion: "auto",
		subnetFile: defaultSubnetFile, renewMargin: 60,
		txChecksum: "auto", wireguardKey: wireguard.DefaultKeyFile, extension: true,
		forwardRules: true, resync: 5,
		healthzIP: "0.0.0.0", logFormat: "text",
		klog: klogOptions{toStderr: true},
	}
}

// flagTable is every flag that the daemon knows what to do with.
func flagTable() []flagDef {
	var all []flagDef
	for _, part := range [][]flagDef{etcdFlags(), hostFlags(), backendFlags(), ruleFlags(), watchFlags()} {
		all = append(all, part...)
	}
	return all
}

func etcdFlags() []flagDef {
	return []flagDef{
		{name: "etcd-endpoints", arg: "LIST", since: "0.2", group: groupEtcd,
			help:  "etcd servers, http://HOST:PORT or https://HOST:PORT, separated by commas; all of them are tried",
			value: str(func(o *options) *string { return &o.endpointList })},
		{name: "etcd-endpoint", arg: "URL", since: "0.1", group: groupEtcd,
			help:  "the same under the name it had in flannel 0.1",
			value: str(func(o *options) *string { return &o.endpointList })},
		{name: "etcd-prefix", arg: "PATH", since: "0.1", group: groupEtcd,
			help:  "where in etcd the network is: PATH/config, PATH/subnets/...",
			value: str(func(o *options) *string { return &o.prefix })},
		{name: "etcd-version", arg: "auto|2|3", since: ours, group: groupEtcd,
			help:  "API of etcd that holds the network; auto asks the server, and takes 3 if both have a configuration",
			value: str(func(o *options) *string { return &o.etcdVersion })},
		{name: "etcd-keyfile", arg: "FILE", since: "0.2", group: groupEtcd,
			help:  "private key of the client certificate, PEM",
			value: str(func(o *options) *string { return &o.keyFile })},
		{name: "etcd-certfile", arg: "FILE", since: "0.2", group: groupEtcd,
			help:  "client certificate, PEM",
			value: str(func(o *options) *string { return &o.certFile })},
		{name: "etcd-cafile", arg: "FILE", since: "0.2", group: groupEtcd,
			help:  "certificates of the authorities that may sign the server's, PEM; alone it is enough for https (flannel wants a client certificate too)",
			value: str(func(o *options) *string { return &o.caFile })},
		{name: "etcd-username", arg: "NAME", since: "0.5.6", group: groupEtcd,
			help:  "user for etcd's authentication",
			value: str(func(o *options) *string { return &o.username })},
		{name: "etcd-password", arg: "SECRET", since: "0.5.6", group: groupEtcd,
			help:  "its password; in FLANNELD_ETCD_PASSWORD other users of the host do not see it",
			value: str(func(o *options) *string { return &o.password })},
	}
}

func hostFlags() []flagDef {
	return []flagDef{
		{name: "iface", arg: "NAME|IP|TEMPLATE", since: "0.1", group: groupIface,
			help:  "interface towards the other hosts, by name, by address or as a go-sockaddr template; may be given again, the first that matches is taken (in the environment: one value). Default: the interface of the default route",
			value: list(func(o *options) *[]string { return &o.ifaces })},
		{name: "iface-regex", arg: "REGEXP", since: "0.8", group: groupIface,
			help:  "the same by a regular expression over addresses, then names, tried after all -iface; may be given again (in the environment: one value)",
			value: list(func(o *options) *[]string { return &o.ifaceRegexps })},
		{name: "iface-can-reach", arg: "IP", since: "0.18", group: groupIface,
			help:  "the interface that leads to this address, tried last",
			value: str(func(o *options) *string { return &o.canReach })},
		{name: "public-ip", arg: "IP|TEMPLATE", since: "0.5.2", group: groupIface,
			help:  "IPv4 address that the other hosts send to; default: the interface's",
			value: str(func(o *options) *string { return &o.publicIP })},
		{name: "public-ipv6", arg: "IP|TEMPLATE", since: "0.15", group: groupIface,
			help:  "the same for IPv6",
			value: str(func(o *options) *string { return &o.publicIPv6 })},
		{name: "subnet-file", arg: "FILE", since: "0.1", group: groupNode,
			help:  "where the subnet is written for Docker and others, and read at the next start",
			value: str(func(o *options) *string { return &o.subnetFile })},
		{name: "subnet-lease-renew-margin", arg: "MINUTES", since: "0.7", group: groupNode,
			help:  "renew the lease of 24 hours when this much of it is left, 1 to 1439",
			value: number(1, 1439, " minutes", func(o *options) *int { return &o.renewMargin })},
	}
}

func backendFlags() []flagDef {
	return []flagDef{
		{name: "keep-device", since: ours, group: groupBackend,
			help:  "leave the udp backend's device behind at the end, so that until the next start packets to the overlay wait or are lost rather than leave by the default route; remove it before going back to flannel",
			value: boolean(func(o *options) *bool { return &o.keepDevice })},
		{name: "accept-any-source", since: ours, group: groupBackend,
			help:  "let the backends udp and ipip take packets from any address and with any inner source, as flannel does; for hosts that send into the overlay from an address outside of it, or run flannel before 0.5.6 with several addresses",
			value: boolean(func(o *options) *bool { return &o.anySource })},
		{name: "vxlan-tx-checksum", arg: "auto|on|off", since: ours, group: groupBackend,
			help:  "let network cards sum the packets inside VXLAN; auto does not on kernels before 5.7, which lose such packets behind NAT",
			value: str(func(o *options) *string { return &o.txChecksum })},
		{name: "wireguard-key-file", arg: "FILE", since: ours, group: groupBackend,
			help:  "the wireguard backend's private key, made if it is not there; flannel's WIREGUARD_KEY_FILE in the environment is heeded, too",
			value: str(func(o *options) *string { return &o.wireguardKey })},
		{name: "allow-extension", since: ours, group: groupBackend,
			help:  "run the commands that the network's configuration has for the extension backend, as this daemon's user; whoever can write to etcd can change them",
			value: boolean(func(o *options) *bool { return &o.extension })},
	}
}

func ruleFlags() []flagDef {
	return []flagDef{
		{name: "ip-masq", since: "0.1", group: groupRules,
			help:  "masquerade what containers send out of the overlay network",
			value: boolean(func(o *options) *bool { return &o.ipMasq })},
		{name: "ip-masq-fully-random-disable", since: "0.27.4", group: groupRules,
			help:  "let masquerading keep the source port where it can, instead of a random one",
			value: boolean(func(o *options) *bool { return &o.notFullyRandom })},
		{name: "iptables-forward-rules", since: "0.11", group: groupRules,
			help:  "accept forwarding from and to the overlay network, which Docker's rules forbid",
			value: boolean(func(o *options) *bool { return &o.forwardRules })},
		{name: "iptables-resync", arg: "SECONDS", since: "0.11", group: groupRules,
			help:  "put back missing rules, and the blackhole route, this often",
			value: number(1, 86400, " seconds", func(o *options) *int { return &o.resync })},
		{name: "ip-blackhole-route", since: "0.27.1", group: groupRules,
			help:  "a blackhole route for this host's own subnet, of the lowest priority: what no bridge takes ends here instead of looping over the default route",
			value: boolean(func(o *options) *bool { return &o.blackhole })},
		{name: "cleanup-on-exit", since: ours, group: groupRules,
			help:  "do at the end what flanneld cleanup does; flannel before 0.27 removed its rules too. Without it connections survive a restart",
			value: boolean(func(o *options) *bool { return &o.cleanupOnExit })},
	}
}

func watchFlags() []flagDef {
	return []flagDef{
		{name: "healthz-ip", arg: "IP", since: "0.8", group: groupWatch,
			help:  "address for /healthz, /readyz and /metrics",
			value: str(func(o *options) *string { return &o.healthzIP })},
		{name: "healthz-port", arg: "PORT", since: "0.8", group: groupWatch,
			help:  "port for them; 0 for none",
			value: number(0, 65535, "", func(o *options) *int { return &o.healthzPort })},
		{name: "status-socket", arg: "FILE|none", since: ours, group: groupWatch,
			help:  "Unix socket, for root alone, at which flanneld status asks; default: the subnet file with .sock for .env",
			value: str(func(o *options) *string { return &o.statusSocket })},
		{name: "v", arg: "LEVEL", since: "0.1", group: groupLog,
			help:  "1 and more: log details",
			value: number(0, 1000, "", func(o *options) *int { return &o.verbosity })},
		{name: "log-format", arg: "text|json", since: ours, group: groupLog,
			help:  "form of the log lines, which go to standard error",
			value: str(func(o *options) *string { return &o.logFormat })},
		{name: "logtostderr", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: boolean(func(o *options) *bool { return &o.klog.toStderr })},
		{name: "alsologtostderr", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: boolean(func(o *options) *bool { return &o.klog.alsoToStderr })},
		{name: "log_dir", arg: "DIR", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: str(func(o *options) *string { return &o.klog.dir })},
		{name: "stderrthreshold", arg: "LEVEL", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: str(func(o *options) *string { return &o.klog.threshold })},
		{name: "vmodule", arg: "LIST", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: str(func(o *options) *string { return &o.klog.vmodule })},
		{name: "log_backtrace_at", arg: "FILE:LINE", since: "0.1", group: groupLog, idle: true, help: "no effect",
			value: str(func(o *options) *string { return &o.klog.traceAt })},
		{name: "version", since: "0.1", group: groupOther, help: "print the version on standard error and end",
			value: boolean(func(o *options) *bool { return &o.version })},
		{name: "help", since: "0.1", group: groupOther, help: "print this and end",
			value: boolean(func(o *options) *bool { return &o.help })},
	}
}

// A refusedFlag is a flag of flannel's whose function does not exist here.
type refusedFlag struct {
	name    string
	boolean bool
	about   string // why, and what to do instead
}

// refusedTable is every other flag that a flannel with etcd or Kubernetes has had.
// Each is refused by name: to run without what it asks for would do harm silently.
func refusedTable() []refusedFlag {
	const (
		kube   = "leases in Kubernetes are not there yet (keep them in etcd, with -etcd-endpoints, or run flannel's own flanneld on this cluster)"
		remote = "client and server mode is not there yet (give every host -etcd-endpoints, with -etcd-cafile and -etcd-username if it must be protected)"
		many   = "several networks in one daemon are not there yet (run one flanneld for each, with its own -etcd-prefix and -subnet-file, and its own Port or VNI in the network's configuration)"
	)
	return []refusedFlag{
		{"kube-subnet-mgr", true, kube}, {"kube-api-url", false, kube}, {"kubeconfig-file", false, kube},
		{"kube-annotation-prefix", false, kube}, {"net-config-path", false, kube},
		{"set-node-network-unavailable", true, kube}, {"use-multi-cluster-cidr", true, kube},
		{"listen", false, remote}, {"remote", false, remote},
		{"remote-keyfile", false, remote}, {"remote-certfile", false, remote}, {"remote-cafile", false, remote},
		{"networks", false, many}, {"watch-networks", true, many}, {"subnet-dir", false, many},
	}
}
