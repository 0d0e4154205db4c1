package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

// A delegate is the plugin that does the work, and its configuration.
type delegate struct {
	kind   string // its type, which is the name of its program
	bridge string // of a bridge: the device
	ipam   string // the type of its IPAM, which is a program as well
	conf   []byte // what it gets on its standard input
	path   string // its program, once find has found it
}

// delegateOptions is the part of our configuration that goes to the delegate.
type delegateOptions struct {
	IPAM          map[string]any `json:"ipam"`
	Delegate      map[string]any `json:"delegate"`
	RuntimeConfig map[string]any `json:"runtimeConfig"`
}

// buildDelegate makes the delegate's configuration. For the same input it has the same
// bytes as that of flannel's plugin (0.9.1 of the CNI project's plugins): a map as JSON,
// so that the keys are sorted, numbers are as Go's float64 prints them, and what
// flannelkit does not know goes through.
func buildDelegate(n netConf, env subnetEnv) (delegate, error) {
	var opts delegateOptions
	if err := json.Unmarshal(n.text, &opts); err != nil {
		return delegate{}, fail(types.ErrDecodingFailure, err, "network %q: delegate, ipam and runtimeConfig must be objects (correct the network configuration)", n.Name)
	}
	conf := opts.Delegate
	if conf == nil {
		conf = make(map[string]any)
	}
	if err := checkDelegate(n, conf); err != nil {
		return delegate{}, fail(types.ErrInvalidNetworkConfig, nil, "network %q: %v", n.Name, err)
	}
	if kind, ok := opts.IPAM["type"]; ok && kind != nil {
		if s, ok := kind.(string); !ok || strings.ContainsAny(s, `/\`) {
			return delegate{}, fail(types.ErrInvalidNetworkConfig, nil, "network %q: ipam.type must be the name of a plugin, not %v (leave it out for \"host-local\")", n.Name, kind)
		}
	}
	conf["name"] = n.Name
	if n.CNIVersion != "" {
		conf["cniVersion"] = n.CNIVersion
	}
	if opts.RuntimeConfig != nil {
		conf["runtimeConfig"] = opts.RuntimeConfig
	}
	setDefault(conf, "type", "bridge")
	setDefault(conf, "ipMasq", !env.ipMasq)
	setDefault(conf, "mtu", env.mtu)
	if conf["type"] == "bridge" {
		setDefault(conf, "isGateway", true)
	}
	ipam, err := buildIPAM(opts.IPAM, env)
	if err != nil {
		return delegate{}, fail(types.ErrInvalidNetworkConfig, err, "network %q: ipam.routes must be a list of routes as [{\"dst\": \"10.96.0.0/12\", \"gw\": \"10.1.17.20\"}] (correct the network configuration)", n.Name)
	}
	conf["ipam"] = ipam
	text, err := json.Marshal(conf)
	if err != nil {
		return delegate{}, fail(types.ErrInternal, err, "network %q: the delegate's configuration can't be written", n.Name)
	}
	return parseDelegate(text)
}

// checkDelegate refuses what can't work, or would be overwritten.
func checkDelegate(n netConf, conf map[string]any) error {
	for _, key := range []string{"name", "ipam"} {
		if _, ok := conf[key]; ok {
			hint := map[string]string{"name": "the network's name is used", "ipam": "it goes beside delegate, not into it"}[key]
			return fmt.Errorf("delegate must not have %q, which the plugin sets (%s: correct the network configuration)", key, hint)
		}
	}
	if v, ok := conf["cniVersion"]; ok && n.CNIVersion == "" {
		if _, ok := v.(string); !ok {
			return fmt.Errorf("delegate.cniVersion must be a string (leave it out, and set cniVersion beside delegate)")
		}
	}
	kind, ok := conf["type"]
	if !ok {
		return nil
	}
	s, ok := kind.(string)
	if !ok || s == "" {
		return fmt.Errorf("delegate.type must be the name of a plugin, not %v (leave it out for \"bridge\")", kind)
	}
	return checkKind(s, n.Type)
}

// checkKind refuses a delegate that is no name, or this plugin: it would call itself
// until the host has no process left.
func checkKind(kind, own string) error {
	if strings.ContainsAny(kind, `/\`) {
		return fmt.Errorf("delegate.type %q is a path, not the name of a plugin in CNI_PATH", kind)
	}
	if kind == "flannel" || kind == own {
		return fmt.Errorf("delegate.type %q is this plugin itself (name the plugin that makes the interface: bridge, ptp, ipvlan, macvlan)", kind)
	}
	return nil
}

func setDefault(m map[string]any, key string, value any) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// buildIPAM completes the ipam of the configuration with the subnets to take addresses
// from and routes to all that flannel carries.
func buildIPAM(ipam map[string]any, env subnetEnv) (map[string]any, error) {
	if ipam == nil {
		ipam = make(map[string]any)
	}
	setDefault(ipam, "type", "host-local")

	var ranges [][]map[string]string
	for _, p := range env.subnets {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
	}
	ipam["ranges"] = ranges

	routes := []types.Route{}
	if given, ok := ipam["routes"]; ok {
		text, err := json.Marshal(given)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &routes); err != nil {
			return nil, err
		}
		for i, r := range routes {
			if r.Dst.IP == nil {
				return nil, fmt.Errorf("route %d has no dst", i+1)
			}
		}
	}
	for _, p := range env.networks {
		routes = append(routes, types.Route{Dst: ipNet(p)})
	}
	ipam["routes"] = routes
	return ipam, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// parseDelegate reads a delegate's configuration, ours or a saved one.
func parseDelegate(conf []byte) (delegate, error) {
	var head struct {
		Type   string          `json:"type"`
		Bridge json.RawMessage `json:"bridge"`
		IPAM   json.RawMessage `json:"ipam"`
	}
	if err := json.Unmarshal(conf, &head); err != nil {
		return delegate{}, err
	}
	if head.Type == "" {
		return delegate{}, errors.New("it has no type")
	}
	d := delegate{kind: head.Type, bridge: "cni0", conf: conf} // bridge's default
	// What these two mean is the delegate's business; ours is only to help.
	var bridge string
	if json.Unmarshal(head.Bridge, &bridge) == nil && bridge != "" {
		d.bridge = bridge
	}
	var ipam struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(head.IPAM, &ipam) == nil {
		d.ipam = ipam.Type
	}
	return d, nil
}

// find looks for the delegate's program, before anything is changed.
func (d *delegate) find(n netConf, cniPath string) error {
	if err := checkKind(d.kind, n.Type); err != nil {
		return fail(types.ErrInvalidNetworkConfig, nil, "network %q: %v", n.Name, err)
	}
	path, err := invoke.FindInPath(d.kind, filepath.SplitList(cniPath))
	if err != nil {
		return fail(types.ErrInvalidNetworkConfig, nil, "network %q: the delegate plugin %q is not in CNI_PATH (%s): install it there (the CNI project's plugins have bridge and host-local), or correct delegate.type", n.Name, d.kind, cniPath)
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode()&0o111 == 0 {
		return fail(types.ErrInvalidNetworkConfig, nil, "network %q: the delegate plugin %s is not executable (chmod +x it)", n.Name, path)
	}
	d.path = path
	return nil
}

// version is the CNI version of a delegate's configuration.
func (d delegate) version() string {
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(d.conf, &head); err != nil || head.CNIVersion == "" {
		return "0.1.0" // CNI's default
	}
	return head.CNIVersion
}

// withKeys sets keys of a configuration, and leaves the others as they are written.
func withKeys(conf []byte, set map[string]json.RawMessage) ([]byte, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(conf, &keys); err != nil {
		return nil, err
	}
	if keys == nil {
		return nil, errors.New("it is no object")
	}
	maps.Copy(keys, set)
	return json.Marshal(keys)
}

// withoutKey removes a key of a configuration.
func withoutKey(conf []byte, key string) ([]byte, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(conf, &keys); err != nil {
		return nil, err
	}
	delete(keys, key)
	return json.Marshal(keys)
}
