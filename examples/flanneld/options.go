package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// envPrefix begins the name of every environment variable that is a flag.
const envPrefix = "FLANNELD_"

// What the daemon does when nobody says otherwise; flannel's own defaults.
const (
	defaultEndpoints  = "http://127.0.0.1:4001,http://127.0.0.1:2379"
	defaultPrefix     = "/coreos.com/network"
	defaultSubnetFile = "/run/flannel/subnet.env"
)

// options are the command line and the environment.
type options struct {
	endpointList string
	endpoints    []string // endpointList, checked, without user and password
	prefix       string
	keyFile      string
	certFile     string
	caFile       string
	username     string
	password     string
	etcdVersion  string

	ifaces       []string
	ifaceRegexps []string
	canReach     string
	publicIP     string
	publicIPv6   string

	subnetFile  string
	renewMargin int // minutes

	statusSocket string // none for none; check fills it in

	keepDevice   bool
	anySource    bool
	txChecksum   string // a key of checksums
	wireguardKey string
	extension    bool

	ipMasq         bool
	notFullyRandom bool
	forwardRules   bool
	resync         int // seconds
	blackhole      bool
	cleanupOnExit  bool

	healthzIP   string
	healthzPort int

	verbosity int
	logFormat string
	klog      klogOptions

	version bool
	help    bool

	source   map[string]string // by flag: how the user gave it, for messages
	refused  []refusal
	warnings []string // to log once there is a logger
}

// klogOptions are flags of the logging library that flannel uses. They steer files
// and details that log/slog does not have.
type klogOptions struct {
	toStderr, alsoToStderr           bool
	dir, threshold, vmodule, traceAt string
}

// A refusal is a flag given for which there is no function.
type refusal struct {
	name  string // as the user gave it: -listen, or FLANNELD_LISTEN
	about string
}

// given returns how the user gave a flag, for a message about its value.
func (o *options) given(name string) string {
	if s, ok := o.source[name]; ok {
		return s
	}
	return "-" + name
}

// set reports whether the user gave a flag, on the command line or in the
// environment.
func (o *options) set(name string) bool {
	_, ok := o.source[name]
	return ok
}

// check finds what is wrong with the values, before anything is touched, and
// brings them into the form that the rest of the program uses.
func (o *options) check() error {
	if len(o.refused) > 0 {
		r := o.refused[0]
		return fmt.Errorf("%s: %s", r.name, r.about)
	}
	for _, f := range []func() error{o.checkEtcd, o.checkInterface, o.checkRest} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) checkEtcd() error {
	if err := o.checkEndpoints(); err != nil {
		return err
	}
	if strings.Trim(o.prefix, "/") == "" {
		return fmt.Errorf("%s: a prefix is the directory of flannel's keys, such as %s", o.given("etcd-prefix"), defaultPrefix)
	}
	o.prefix = strings.TrimRight(o.prefix, "/") // API 3 has other keys without the slash in front
	if (o.keyFile == "") != (o.certFile == "") {
		have, want := "etcd-keyfile", "etcd-certfile"
		if o.keyFile == "" {
			have, want = want, have
		}
		return fmt.Errorf("%s: a client certificate has two files (give -%s too)", o.given(have), want)
	}
	if o.password != "" && o.username == "" {
		return fmt.Errorf("%s: a password without a user (give -etcd-username too)", o.given("etcd-password"))
	}
	if o.username != "" && o.password == "" {
		return fmt.Errorf("%s: a user without a password (give -etcd-password too)", o.given("etcd-username"))
	}
	if !slices.Contains([]string{"auto", "2", "3"}, o.etcdVersion) {
		return fmt.Errorf("%s: %q is not auto, 2 or 3", o.given("etcd-version"), o.etcdVersion)
	}
	if _, ok := checksums[o.txChecksum]; !ok {
		return fmt.Errorf("%s: %q is not auto, on or off", o.given("vxlan-tx-checksum"), o.txChecksum)
	}
	if o.tls() && !o.secure() {
		o.warnings = append(o.warnings, "the etcd certificate files are not used: no endpoint begins with https://")
	}
	return nil
}

// tls reports whether a certificate or key is given for etcd.
func (o *options) tls() bool { return o.caFile != "" || o.certFile != "" }

// secure reports whether an endpoint is https; a store refuses to mix them.
func (o *options) secure() bool {
	return slices.ContainsFunc(o.endpoints, func(e string) bool { return strings.HasPrefix(e, "https:") })
}

// checkEndpoints splits the list. Its messages never repeat an endpoint as given:
// it may hold a password.
func (o *options) checkEndpoints() error {
	name := "etcd-endpoints"
	if !o.set(name) && o.set("etcd-endpoint") {
		name = "etcd-endpoint"
	}
	fail := func(i int, why string) error {
		return fmt.Errorf("%s: endpoint %d: %s (want http://HOST:PORT or https://HOST:PORT, several with commas)", o.given(name), i+1, why)
	}
	var user *url.Userinfo
	for i, e := range strings.Split(o.endpointList, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		if !strings.Contains(e, "://") { // etcd's own tools take HOST:PORT
			scheme := "http://"
			if o.tls() {
				scheme = "https://"
			}
			e = scheme + e
		}
		u, err := url.Parse(e)
		switch {
		case err != nil:
			return fail(i, "not a URL")
		case u.Scheme != "http" && u.Scheme != "https":
			return fail(i, "unknown scheme "+u.Scheme)
		case u.Hostname() == "":
			return fail(i, "no host")
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return fail(i, "something behind the port")
		case u.User != nil && user != nil && u.User.String() != user.String():
			return fail(i, "another user than before it")
		}
		if u.User != nil {
			user = u.User
		}
		o.endpoints = append(o.endpoints, u.Scheme+"://"+u.Host)
	}
	if len(o.endpoints) == 0 {
		return fmt.Errorf("%s: no endpoint (want http://HOST:PORT or https://HOST:PORT, several with commas)", o.given(name))
	}
	if user != nil && o.username == "" {
		o.username = user.Username()
		o.password, _ = user.Password()
	}
	o.endpointList = strings.Join(o.endpoints, ",")
	return nil
}

func (o *options) checkInterface() error {
	for _, r := range o.ifaceRegexps {
		if _, err := regexp.Compile(r); err != nil {
			return fmt.Errorf("%s: %q: %w", o.given("iface-regex"), r, err)
		}
	}
	if o.canReach != "" {
		if _, err := netip.ParseAddr(o.canReach); err != nil {
			return fmt.Errorf("%s: %q is not an IP address", o.given("iface-can-reach"), o.canReach)
		}
	}
	for _, p := range []struct {
		name, value string
		is          func(netip.Addr) bool
		family      string
	}{{"public-ip", o.publicIP, netip.Addr.Is4, "IPv4"}, {"public-ipv6", o.publicIPv6, netip.Addr.Is6, "IPv6"}} {
		if p.value == "" || strings.Contains(p.value, "{{") {
			continue // a template says what it is when the interfaces are known
		}
		if a, err := netip.ParseAddr(p.value); err != nil || !p.is(a.Unmap()) {
			return fmt.Errorf("%s: %q is not an %s address", o.given(p.name), p.value, p.family)
		}
	}
	return nil
}

func (o *options) checkRest() error {
	if o.subnetFile == "" {
		return fmt.Errorf("%s: no file name (the default is %s)", o.given("subnet-file"), defaultSubnetFile)
	}
	o.statusSocket = socketOf(o.statusSocket, o.subnetFile)
	if o.logFormat != "text" && o.logFormat != "json" {
		return fmt.Errorf("%s: %q is neither text nor json", o.given("log-format"), o.logFormat)
	}
	if o.keepDevice && o.cleanupOnExit {
		return fmt.Errorf("%s and %s contradict each other: one keeps the device, the other removes it", o.given("keep-device"), o.given("cleanup-on-exit"))
	}
	var idle []string
	for _, f := range flagTable() {
		if f.idle && o.set(f.name) {
			idle = append(idle, f.name)
		}
	}
	if len(idle) > 0 {
		o.warnings = append(o.warnings, "these flags are accepted for flannel's sake and have no effect, since all logging goes to standard error: "+strings.Join(idle, ", "))
	}
	return nil
}

// margin returns how long before its end a lease is renewed.
func (o *options) margin() time.Duration { return time.Duration(o.renewMargin) * time.Minute }

// secrets returns what must not be seen in any line.
func (o *options) secrets() []string {
	if o.password == "" {
		return nil
	}
	return []string{o.password}
}
