// Package subnetenv reads and writes subnet.env, the file in which flannel tells the
// rest of a host which subnet it has: Docker, the CNI plugin flannel, scripts, and its
// own next run, which asks for the same subnet again. It also makes Docker's options of
// it, as flannel's mk-docker-opts.sh does.
//
// The file is the same as flannel's, byte for byte:
//
//	FLANNEL_NETWORK=10.2.0.0/16
//	FLANNEL_SUBNET=10.2.37.1/24
//	FLANNEL_IPV6_NETWORK=fd00:2::/48
//	FLANNEL_IPV6_SUBNET=fd00:2:0:37::1/64
//	FLANNEL_MTU=1472
//	FLANNEL_IPMASQ=false
//
// with the lines of those families only that there are. The addresses are the first
// that a host may have, which is what Docker's --bip wants for its bridge.
package subnetenv

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/flannelkit/flannelkit/lease"
)

// DefaultPath is where flannel writes the file, and everybody looks for it.
const DefaultPath = "/run/flannel/subnet.env"

// A File is what subnet.env says. Two of them can be compared with ==.
type File struct {
	// Network is the IPv4 range of the whole network; the zero Prefix without
	// IPv4, or if a flannel before 0.5.3 has written the file.
	Network netip.Prefix
	// Subnet is this host's part of it, without host bits: 10.2.37.0/24, which
	// the file has as 10.2.37.1/24. The zero Prefix without IPv4.
	Subnet netip.Prefix
	// Network6 is the IPv6 range of the whole network; the zero Prefix without
	// IPv6.
	Network6 netip.Prefix
	// Subnet6 is this host's part of it, without host bits; the zero Prefix
	// without IPv6.
	Subnet6 netip.Prefix
	// MTU is that of containers, in bytes.
	MTU int
	// IPMasq: the writer masquerades what leaves the network, so that Docker need
	// not.
	IPMasq bool
}

// Key returns the subnets as the registry knows them, to ask for the same again.
func (f File) Key() lease.Key {
	return lease.Key{Subnet: f.Subnet.Masked(), Subnet6: f.Subnet6.Masked()}
}

// vars returns the variables, in the order of the file. It is an error if it would not
// be one that Parse reads back.
func (f File) vars() ([]variable, error) {
	if !f.Subnet.IsValid() && !f.Subnet6.IsValid() {
		return nil, fmt.Errorf("there is no subnet to write")
	}
	var all []variable
	for _, p := range []struct {
		key             string
		network, subnet netip.Prefix
		is              func(netip.Addr) bool
	}{
		{"", f.Network, f.Subnet, netip.Addr.Is4},
		{"IPV6_", f.Network6, f.Subnet6, netip.Addr.Is6},
	} {
		if !p.subnet.IsValid() {
			continue
		}
		host := p.subnet.Masked().Addr().Next()
		if !p.is(p.subnet.Addr()) || p.subnet.Bits() == 0 || !p.subnet.Contains(host) {
			return nil, fmt.Errorf("%s is no subnet for FLANNEL_%sSUBNET", p.subnet, p.key)
		}
		if p.network.IsValid() {
			if !inside(p.subnet, p.network) {
				return nil, fmt.Errorf("the subnet %s is not part of the network %s", p.subnet, p.network)
			}
			all = append(all, variable{"FLANNEL_" + p.key + "NETWORK", p.network.Masked().String()})
		}
		all = append(all, variable{"FLANNEL_" + p.key + "SUBNET", netip.PrefixFrom(host, p.subnet.Bits()).String()})
	}
	if f.MTU < leastMTU || f.MTU > mostMTU {
		return nil, fmt.Errorf("%d is not an MTU", f.MTU)
	}
	return append(all, variable{"FLANNEL_MTU", strconv.Itoa(f.MTU)}, variable{"FLANNEL_IPMASQ", strconv.FormatBool(f.IPMasq)}), nil
}

// The MTUs that a device can have: IPv4's least (RFC 791) to what its length field
// holds.
const leastMTU, mostMTU = 68, 65535

// inside reports whether a network contains a whole subnet.
func inside(subnet, network netip.Prefix) bool {
	return network.Bits() <= subnet.Bits() && network.Contains(subnet.Addr())
}

// Parse reads the text of a subnet.env of any flannel: other variables, comments,
// quotes, export and CRLF line ends do no harm. A file that is empty, cut off or says
// nothing useful is an error, since whoever relies on it would take another subnet than
// the writer meant.
func Parse(text []byte) (File, error) {
	f, err := parse(text)
	if err != nil {
		return File{}, fmt.Errorf("subnetenv: %w", err)
	}
	return f, nil
}

func parse(text []byte) (f File, err error) {
	vars := variables(text)
	if len(vars) == 0 {
		return f, fmt.Errorf("the file is empty (whoever writes it has not finished, or had no space)")
	}
	// The last line of a file that was cut off may look whole: FLANNEL_MTU=14.
	// FLANNEL_IPMASQ can't, and is the last in all of flannel's.
	if last := vars[len(vars)-1]; !bytes.HasSuffix(text, []byte("\n")) && last.name != "FLANNEL_IPMASQ" {
		return f, fmt.Errorf("the file ends in the middle of a line (it was cut off)")
	}
	get := byName(vars)
	if f.Subnet, f.Network, err = parseFamily(get, "", netip.Addr.Is4); err != nil {
		return f, err
	}
	if f.Subnet6, f.Network6, err = parseFamily(get, "IPV6_", netip.Addr.Is6); err != nil {
		return f, err
	}
	if !f.Subnet.IsValid() && !f.Subnet6.IsValid() {
		return f, fmt.Errorf("FLANNEL_SUBNET is missing")
	}
	mtu, ok := get["FLANNEL_MTU"]
	if !ok {
		return f, fmt.Errorf("FLANNEL_MTU is missing (the file may have been cut off)")
	}
	if f.MTU, err = strconv.Atoi(mtu); err != nil || f.MTU < leastMTU || f.MTU > mostMTU {
		return f, fmt.Errorf("FLANNEL_MTU %q is not a number of bytes from %d to %d", mtu, leastMTU, mostMTU)
	}
	switch masq, ok := get["FLANNEL_IPMASQ"]; {
	case masq == "true":
		f.IPMasq = true
	case ok && masq != "false":
		return f, fmt.Errorf("FLANNEL_IPMASQ %q is neither true nor false", masq)
	}
	return f, nil
}

// parseFamily reads the two variables of a family. There may be several networks, with
// commas between them (flannel 0.21 to 0.23, of several cluster CIDRs): the one with
// the subnet in it is meant.
func parseFamily(get map[string]string, key string, is func(netip.Addr) bool) (subnet, network netip.Prefix, err error) {
	name := "FLANNEL_" + key + "SUBNET"
	value := get[name]
	if value == "" {
		return subnet, network, nil
	}
	subnet, err = parsePrefix(value, is)
	if err != nil {
		return subnet, network, fmt.Errorf("%s %w", name, err)
	}
	if subnet.Bits() == 0 {
		return subnet, network, fmt.Errorf("%s %q is all there is, not a host's part of it", name, value)
	}
	if host := subnet.Addr().Next(); !subnet.Contains(host) {
		return subnet, network, fmt.Errorf("%s %q has no address for a host", name, value)
	}
	name = "FLANNEL_" + key + "NETWORK"
	value = get[name]
	if value == "" {
		return subnet, network, nil
	}
	for one := range strings.SplitSeq(value, ",") {
		n, err := parsePrefix(one, is)
		if err != nil {
			return subnet, network, fmt.Errorf("%s %w", name, err)
		}
		if inside(subnet, n) {
			return subnet, n, nil
		}
	}
	return subnet, network, fmt.Errorf("%s %q does not contain the subnet %s", name, value, subnet)
}

// parsePrefix reads an address with a length, and drops the host bits.
func parsePrefix(s string, is func(netip.Addr) bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !is(p.Addr()) || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an address with a length of that family", s)
	}
	return p.Masked(), nil
}

// A variable is one line.
type variable struct{ name, value string }

// Variables returns the variables of a file as Parse reads it, by name, those that File
// does not keep too; of one that is there twice, the last. The text need not be one that
// Parse takes.
func Variables(text []byte) map[string]string { return byName(variables(text)) }

func byName(vars []variable) map[string]string {
	all := make(map[string]string, len(vars))
	for _, v := range vars {
		all[v.name] = v.value
	}
	return all
}

// variables reads the assignments of a shell script that does nothing else. What it
// can't make sense of it leaves out.
func variables(text []byte) []variable {
	var all []variable
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	for line := range bytes.Lines(text) {
		s := strings.TrimSpace(string(line))
		s = strings.TrimSpace(strings.TrimPrefix(s, "export "))
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			continue
		}
		all = append(all, variable{name, unquote(value)})
	}
	return all
}

// unquote returns the first word of a shell's command line, without quotes around it.
func unquote(s string) string {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		if end := strings.IndexByte(s[1:], s[0]); end >= 0 {
			return s[1 : 1+end]
		}
	}
	if words := strings.Fields(s); len(words) > 0 && s[0] != ' ' && s[0] != '\t' {
		return words[0]
	}
	return ""
}
