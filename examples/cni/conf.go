package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/flannelkit/flannelkit/lease/subnetenv"
)

// defaultDataDir is where flannel's plugin keeps what DEL needs.
const defaultDataDir = "/var/lib/cni/flannel"

// A netConf is what every command needs of the network configuration. The rest of it,
// of which ADD makes the delegate's, is decoded by then, so that a mistake in it, made
// while containers run, does not keep their DEL from working.
type netConf struct {
	// CNIVersion is the version of CNI of the configuration; empty means 0.1.0.
	CNIVersion string `json:"cniVersion"`
	// Name is the network's name.
	Name string `json:"name"`
	// Type is the name of this plugin, which is flannel but where it was renamed.
	Type string `json:"type"`
	// SubnetFile is the path of subnet.env.
	SubnetFile string `json:"subnetFile"`
	// DataDir is the directory of the saved configurations.
	DataDir string `json:"dataDir"`

	text []byte // all of it
}

// loadNetConf decodes a network configuration.
func loadNetConf(text []byte) (netConf, error) {
	n := netConf{SubnetFile: subnetenv.DefaultPath, DataDir: defaultDataDir, text: text}
	if err := json.Unmarshal(text, &n); err != nil {
		return n, fail(types.ErrDecodingFailure, err, "the network configuration can't be read (correct it in the runtime's directory, usually /etc/cni/net.d)")
	}
	return n, nil
}

// checkPaths refuses paths that begin nobody knows where. DEL and CHECK look for them
// all the same, where another plugin may have written to one.
func (n netConf) checkPaths() error {
	if err := errors.Join(absolute("dataDir", n.DataDir), absolute("subnetFile", n.SubnetFile)); err != nil {
		return fail(types.ErrInvalidNetworkConfig, nil, "network %q: %v", n.Name, err)
	}
	return nil
}

// A subnetEnv is what a delegate's configuration is made of.
type subnetEnv struct {
	subnets  []netip.Prefix // this host's, IPv4 first
	networks []netip.Prefix // all that are to be reached through the host, IPv4 first
	mtu      int
	ipMasq   bool // flanneld masquerades, so that the delegate need not
}

// errNoSubnet is the reason of every error of readSubnetEnv: there is no subnet now,
// and may be one later.
var errNoSubnet = errors.New("no usable subnet.env")

// readSubnetEnv reads what flanneld has written. Errors wrap errNoSubnet and say what
// to do; the caller adds CNI's code, which is another for STATUS than for ADD.
func readSubnetEnv(path string) (subnetEnv, error) {
	const most = 1 << 16
	if path == "" {
		return subnetEnv{}, fmt.Errorf("%w: subnetFile in the network configuration is empty (leave it out for %s)", errNoSubnet, subnetenv.DefaultPath)
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return subnetEnv{}, fmt.Errorf("%w: %s is not there: flanneld has not written it yet; is it running? (see \"systemctl status flanneld\" or the log of its pod; a flanneld with -subnet-file elsewhere needs the same path as subnetFile in the network configuration)", errNoSubnet, path)
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > most) {
		err = fmt.Errorf("not a regular file of at most %d bytes", most)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return subnetEnv{}, fmt.Errorf("%w: %s can't be read: %w", errNoSubnet, path, err)
	}
	env, err := parseSubnetEnv(text)
	if err != nil {
		return subnetEnv{}, fmt.Errorf("%w: %s: %w; flanneld writes the file anew when it starts (restart it, and look whether the disk is full)", errNoSubnet, path, err)
	}
	return env, nil
}

// parseSubnetEnv wants the same variables as flannel's plugin: what is masqueraded, and
// which routes containers get, must not be guessed.
func parseSubnetEnv(text []byte) (subnetEnv, error) {
	vars := subnetenv.Variables(text)
	f, err := subnetenv.Parse(text)
	if missing := missing(vars); err != nil && missing != "" {
		return subnetEnv{}, fmt.Errorf("%w (%s)", err, missing)
	} else if err != nil {
		return subnetEnv{}, err
	}
	env := subnetEnv{mtu: f.MTU, ipMasq: f.IPMasq}
	if _, ok := vars["FLANNEL_IPMASQ"]; !ok {
		return subnetEnv{}, fmt.Errorf("FLANNEL_IPMASQ is missing (the file was cut off, or something other than flanneld has written it)")
	}
	for _, family := range []struct {
		key             string
		subnet, network netip.Prefix
	}{{"", f.Subnet, f.Network}, {"IPV6_", f.Subnet6, f.Network6}} {
		if !family.subnet.IsValid() {
			continue
		}
		env.subnets = append(env.subnets, family.subnet)
		if !family.network.IsValid() {
			continue
		}
		name := "FLANNEL_" + family.key + "NETWORK"
		all, err := networks(vars[name], family.network)
		if err != nil {
			return subnetEnv{}, fmt.Errorf("%s: %w", name, err)
		}
		env.networks = append(env.networks, all...)
	}
	if len(env.networks) == 0 {
		return subnetEnv{}, errors.New("FLANNEL_NETWORK is missing (a flannel before 0.5.3 does not write it: use a newer flanneld)")
	}
	return env, nil
}

// missing names the variables of every flannel's file that one has not.
func missing(vars map[string]string) string {
	var names []string
	for _, name := range []string{"NETWORK", "SUBNET", "MTU", "IPMASQ"} {
		_, ok := vars["FLANNEL_"+name]
		_, ok6 := vars["FLANNEL_IPV6_"+name]
		if !ok && !ok6 {
			names = append(names, "FLANNEL_"+name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "it has no " + strings.Join(names, ", no ")
}

// networks returns all networks of a variable, of which flannel 0.21 to 0.23 wrote
// several, with commas between them. One alone is the one that we know.
func networks(value string, one netip.Prefix) ([]netip.Prefix, error) {
	if !strings.Contains(value, ",") {
		return []netip.Prefix{one}, nil
	}
	var all []netip.Prefix
	for s := range strings.SplitSeq(value, ",") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4() != one.Addr().Is4() {
			return nil, fmt.Errorf("%q is not a network of that family", s)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
