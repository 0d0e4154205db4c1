package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
)

// A Network is the configuration that all hosts of a network share: the value of
// <prefix>/config. [ParseNetwork] reads and checks it, and fills in every default.
type Network struct {
	// IPv4 is the range of which hosts get IPv4 subnets; not Enabled without.
	IPv4 Range
	// IPv6 is the range of which hosts get IPv6 subnets; not Enabled without.
	IPv6 Range
	// NFTables asks for masquerade and forward rules in nftables; false leaves
	// the choice to the host.
	NFTables bool
	// BackendType is the backend's name in lower case, "udp" where the
	// configuration has none.
	BackendType string
	// Backend is the backend's part as it stands in the configuration, a JSON
	// object; nil where there is none. It may hold secrets, such as ipsec's PSK.
	Backend json.RawMessage
}

// A Range is one address family of a Network.
type Range struct {
	// Prefix is the whole range, without host bits; the zero Prefix if the
	// network does not have this family.
	Prefix netip.Prefix
	// SubnetLen is the length in bits of each host's subnet.
	SubnetLen int
	// Min is the first address of the first subnet to lease.
	Min netip.Addr
	// Max is the first address of the last subnet to lease.
	Max netip.Addr
}

// Enabled reports whether the network has this family.
func (r Range) Enabled() bool { return r.Prefix.IsValid() }

// String returns the range in words: 10.0.0.0/8 in /20s from 10.10.0.0 to 10.99.0.0.
func (r Range) String() string {
	if !r.Enabled() {
		return "none"
	}
	return fmt.Sprintf("%s in /%ds from %s to %s", r.Prefix, r.SubnetLen, r.Min, r.Max)
}

// String describes the network in one line for people. Of the backend it names the
// type only, since the rest may be secret.
func (n Network) String() string {
	var parts []string
	for _, r := range []Range{n.IPv4, n.IPv6} {
		if r.Enabled() {
			parts = append(parts, r.String())
		}
	}
	return strings.Join(append(parts, "backend "+n.BackendType), ", ")
}

// LogValue makes slog write what String returns, so that no log has the secrets.
func (n Network) LogValue() slog.Value { return slog.StringValue(n.String()) }

// Accepts returns nil if a host may hold the lease k in this network: a subnet of
// exactly the families that are enabled, each of the length that the network hands
// out and from Min to Max. Otherwise the error says why not; such a lease is from
// before the configuration was changed, or an operator's mistake.
func (n Network) Accepts(k Key) error {
	family, err := "IPv4", n.IPv4.accepts(k.Subnet)
	if err == nil {
		family, err = "IPv6", n.IPv6.accepts(k.Subnet6)
	}
	if err != nil {
		return fmt.Errorf("lease: subnet %q is not one of the network's: %s: %w", k.String(), family, err)
	}
	return nil
}

// accepts is Accepts for one family.
func (r Range) accepts(p netip.Prefix) error {
	switch {
	case !r.Enabled() && !p.IsValid():
		return nil
	case !r.Enabled():
		return fmt.Errorf("the network has none of this family, and there is %s", p)
	case !p.IsValid():
		return fmt.Errorf("the network has %s, and there is none", r.Prefix)
	case p.Addr().BitLen() != r.Min.BitLen():
		return fmt.Errorf("%s is not of this family", p)
	case p.Bits() != r.SubnetLen:
		return fmt.Errorf("%s is a /%d, the network hands out /%ds", p, p.Bits(), r.SubnetLen)
	case p != p.Masked():
		return fmt.Errorf("%s has bits set outside its mask", p)
	case p.Addr().Less(r.Min) || r.Max.Less(p.Addr()):
		return fmt.Errorf("%s is not from %s to %s", p, r.Min, r.Max)
	}
	return nil
}

// ParseNetwork reads a network configuration: flannel's JSON object, as any flannel
// since 0.1 reads it. Keys may be in any case, unknown ones are ignored, and null is
// as good as nothing.
//
//	Network        the IPv4 range, required with EnableIPv4: "10.5.0.0/16"; host bits are dropped
//	SubnetLen      length of a host's subnet, from Network's to 30; 0 or absent:
//	               24, or two bits longer than Network where that is /23 or longer
//	SubnetMin      first subnet to lease; absent: the second of Network
//	SubnetMax      last subnet to lease; absent: the last of Network
//	EnableIPv4     true or false; absent: true
//	EnableIPv6     true or false; absent: false
//	IPv6Network, IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax
//	               the same for IPv6: length to 126, else 64, or two bits longer
//	               than IPv6Network where that is /63 or longer
//	EnableNFTables see [Network]
//	Backend        an object with the Type of the backend and its own keys;
//	               absent: {"Type": "udp"}
//
// The keys of a family that is not enabled are not looked at. IPv6 alone is possible
// here, while flannel with etcd always needs IPv4.
//
// What flannel before 0.8 accepted is accepted, and later versions refuse some of
// it: a SubnetLen less than two bits longer than Network, and limits in the middle of
// a subnet. SubnetMin then means the next subnet that begins there or above, and
// SubnetMax the one that it is in.
//
// An error names every key that is wrong, its value and the remedy.
func ParseNetwork(data []byte) (Network, error) {
	// A guide's multi-line command leaves the shell's \ at the end of each line in
	// the text, since it stands in single quotes. JSON has no backslash before a
	// newline, so nothing else is meant; offsets stay.
	data = bytes.ReplaceAll(data, []byte("\\\n"), []byte(" \n"))

	var s storedNetwork
	if err := unmarshalNetwork(data, &s); err != nil {
		return Network{}, err
	}
	var n Network
	on4, err4 := parseSwitch("EnableIPv4", s.EnableIPv4, true)
	on6, err6 := parseSwitch("EnableIPv6", s.EnableIPv6, false)
	nft, errNFT := parseSwitch("EnableNFTables", s.EnableNFTables, false)
	errs := []error{err4, err6, errNFT}
	n.NFTables = nft
	if err4 == nil && err6 == nil && !on4 && !on6 {
		errs = append(errs, configError("EnableIPv4 is false and EnableIPv6 is not true: nothing is left to lease (enable one of them)"))
	}
	if on4 {
		r, err := family4().parse(s.Network, s.SubnetLen, s.SubnetMin, s.SubnetMax)
		n.IPv4, errs = r, append(errs, err)
	}
	if on6 {
		r, err := family6().parse(s.IPv6Network, s.IPv6SubnetLen, s.IPv6SubnetMin, s.IPv6SubnetMax)
		n.IPv6, errs = r, append(errs, err)
	}
	typ, err := parseBackendType(s.Backend)
	n.BackendType, n.Backend = typ, nullToNil(s.Backend)
	if err := errors.Join(append(errs, err)...); err != nil {
		return Network{}, err
	}
	return n, nil
}

// storedNetwork is flannel's form. The values are read one by one, so that an error
// has a key and all of them are found.
type storedNetwork struct {
	Network, SubnetLen, SubnetMin, SubnetMax                 json.RawMessage
	IPv6Network, IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax json.RawMessage
	EnableIPv4, EnableIPv6, EnableNFTables, Backend          json.RawMessage
}

// configError makes an error about the configuration. What it quotes is never of the
// Backend but its Type.
func configError(format string, args ...any) error {
	return fmt.Errorf("lease: network config: "+format, args...)
}

// unmarshalNetwork reads the object, and says where it is none.
func unmarshalNetwork(data []byte, s *storedNetwork) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return configError(`it is empty (the least is {"Network": "10.5.0.0/16"})`)
	}
	err := json.Unmarshal(data, s)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := data[:min(max(int(syntax.Offset)-1, 0), len(data))]
		line := bytes.Count(at, []byte("\n")) + 1
		column := len(at) - bytes.LastIndexByte(at, '\n')
		return configError("not JSON: line %d, column %d: %w", line, column, err)
	}
	if err != nil || kindOf(data) != "an object" {
		return configError(`it is %s, not an object (the least is {"Network": "10.5.0.0/16"})`, kindOf(data))
	}
	return nil
}

// kindOf names the type of a JSON value.
func kindOf(value []byte) string {
	value = bytes.TrimSpace(value)
	switch {
	case len(value) == 0 || value[0] == 'n':
		return "null"
	case value[0] == '{':
		return "an object"
	case value[0] == '[':
		return "an array"
	case value[0] == '"':
		return "a string"
	case value[0] == 't' || value[0] == 'f':
		return "a bool"
	}
	return "a number"
}

// show returns a value for a message.
func show(value json.RawMessage) string {
	if len(value) > 60 {
		return strconv.Quote(string(value[:60])) + "..."
	}
	return string(value)
}

// parseSwitch reads true or false.
func parseSwitch(key string, value json.RawMessage, unset bool) (bool, error) {
	switch string(value) {
	case "", "null":
		return unset, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, configError("%s %s is not a bool (write true or false, without quotes)", key, show(value))
}

// parseBackendType returns the backend's name.
func parseBackendType(value json.RawMessage) (string, error) {
	if kindOf(value) == "null" {
		return "udp", nil // flannel's default since 0.1
	}
	const remedy = `(write {"Type": "udp"} or another type, or leave Backend out)`
	if kind := kindOf(value); kind != "an object" {
		return "", configError("Backend is %s, not an object %s", kind, remedy)
	}
	var b struct{ Type json.RawMessage }
	if err := json.Unmarshal(value, &b); err != nil {
		return "", configError("Backend can't be read %s", remedy)
	}
	switch kindOf(b.Type) {
	case "null":
		return "", configError("Backend has no Type %s", remedy)
	case "a string":
	default:
		return "", configError("Backend.Type is %s, not a string %s", kindOf(b.Type), remedy)
	}
	var typ string
	if err := json.Unmarshal(b.Type, &typ); err != nil || typ == "" {
		return "", configError("Backend.Type %s names no backend %s", show(b.Type), remedy)
	}
	return strings.ToLower(typ), nil
}

// A family is what differs between the two halves of a configuration.
type family struct {
	name    string
	prefix  string // what its keys begin with, but for EnableIPvX
	example string
	bits    int
	usual   int // length of a subnet where the network has room for four of that
	longest int // that leaves two addresses besides the first and the last
}

func family4() family {
	return family{name: "IPv4", example: "10.5.0.0/16", bits: 32, usual: 24, longest: 30}
}

func family6() family {
	return family{name: "IPv6", prefix: "IPv6", example: "fd00:5::/48", bits: 128, usual: 64, longest: 126}
}

// errorf makes an error about one of the family's keys.
func (f family) errorf(key, format string, args ...any) error {
	return configError("%s%s "+format, append([]any{f.prefix, key}, args...)...)
}

// parse reads the four keys of a family.
func (f family) parse(network, length, low, high json.RawMessage) (r Range, err error) {
	if r.Prefix, err = f.parsePrefix(network); err != nil {
		return Range{}, err
	}
	if r.SubnetLen, err = f.parseLen(length, r.Prefix); err != nil {
		return Range{}, err
	}
	from, errFrom := f.parseLimit("SubnetMin", low, r.Prefix)
	to, errTo := f.parseLimit("SubnetMax", high, r.Prefix)
	if err := errors.Join(errFrom, errTo); err != nil {
		return Range{}, err
	}

	// flannel leaves the first subnet out, since its address is the network's own,
	// which some take for a broadcast address. Where it is the only one, it is
	// leased all the same.
	first := netip.PrefixFrom(r.Prefix.Addr(), r.SubnetLen)
	r.Min, r.Max = first.Addr(), netip.PrefixFrom(lastAddr(r.Prefix), r.SubnetLen).Masked().Addr()
	if r.SubnetLen > r.Prefix.Bits() {
		r.Min = lastAddr(first).Next()
	}

	// A limit in the middle of a subnet: old flannel began to count right there and
	// leased subnets with host bits in them, which overlap those of every host that
	// counts from a boundary, and which no key can name. So the limits are moved to
	// boundaries: Min up and Max down, so that no subnet begins outside of them.
	if to.IsValid() {
		r.Max = netip.PrefixFrom(to, r.SubnetLen).Masked().Addr()
	}
	if from.IsValid() {
		if r.Min = from; netip.PrefixFrom(from, r.SubnetLen).Masked().Addr() != from {
			r.Min = lastAddr(netip.PrefixFrom(from, r.SubnetLen).Masked()).Next()
		}
	}
	if !r.Min.IsValid() || r.Max.Less(r.Min) {
		return Range{}, f.noneLeft(r, from, to)
	}
	return r, nil
}

// noneLeft is the error for limits that have no subnet between them; r has them on
// boundaries, and from and to are as they were given, if they were.
func (f family) noneLeft(r Range, from, to netip.Addr) error {
	if from.IsValid() && to.IsValid() && to.Less(from) {
		return f.errorf("SubnetMin", "%s is above %sSubnetMax %s (exchange them)", from, f.prefix, to)
	}
	if to.IsValid() && !from.IsValid() {
		return f.errorf("SubnetMax", "%s leaves only the first /%d of %s, which is not leased unless %sSubnetMin says so (set it to %s)",
			to, r.SubnetLen, r.Prefix, f.prefix, r.Prefix.Addr())
	}
	last := r.Max.String()
	if to.IsValid() {
		last = to.String()
	}
	return f.errorf("SubnetMin", "%s: no /%d begins from there to %s (use the first address of a subnet for both limits)", from, r.SubnetLen, last)
}

// parsePrefix reads the network itself.
func (f family) parsePrefix(value json.RawMessage) (netip.Prefix, error) {
	var s string
	if kind := kindOf(value); kind == "null" || string(value) == `""` {
		return netip.Prefix{}, f.errorf("Network", "is missing (give the range to lease from, such as %q, or set Enable%s to false)", f.example, f.name)
	}
	if err := json.Unmarshal(value, &s); err != nil {
		return netip.Prefix{}, f.errorf("Network", "%s is %s, not a string such as %q", show(value), kindOf(value), f.example)
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, f.errorf("Network", "%s is not a range (write address/length, such as %q)", show(value), f.example)
	case p.Addr().BitLen() != f.bits || p.Addr().Is4In6():
		return netip.Prefix{}, f.errorf("Network", "%s is not %s (IPv4 belongs in Network, IPv6 in IPv6Network with EnableIPv6 true)", s, f.name)
	case p.Bits() == 0:
		return netip.Prefix{}, f.errorf("Network", "%s is every address there is, the hosts' own as well (give a part, such as %q)", s, f.example)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback():
		return netip.Prefix{}, f.errorf("Network", "%s has no addresses for hosts (give a private range, such as %q)", s, f.example)
	}
	return p.Masked(), nil
}

// parseLen reads the length of a subnet, or finds the usual one.
func (f family) parseLen(value json.RawMessage, network netip.Prefix) (int, error) {
	n := 0
	if kindOf(value) != "null" {
		if err := json.Unmarshal(value, &n); err != nil {
			return 0, f.errorf("SubnetLen", "%s is not a whole number (write a length from %d to %d, without quotes)",
				show(value), network.Bits(), f.longest)
		}
	}
	switch {
	case n == 0 && network.Bits() <= f.usual-2:
		return f.usual, nil
	case n == 0 && network.Bits() < f.longest:
		return min(network.Bits()+2, f.longest), nil
	case n == 0:
		return 0, f.errorf("Network", "%s is too small to be shared (use /%d or a shorter length)", network, f.longest-2)
	case n < 0:
		return 0, f.errorf("SubnetLen", "%d is negative (use a length from %d to %d)", n, network.Bits(), f.longest)
	case n > f.longest:
		return 0, f.errorf("SubnetLen", "%d leaves no room for hosts (use %d or less)", n, f.longest)
	case n < network.Bits():
		return 0, f.errorf("SubnetLen", "%d is larger than the network %s (use %d or more)", n, network, network.Bits())
	}
	return n, nil
}

// parseLimit reads an address inside the network; the zero Addr if there is none. The
// unspecified address is flannel's way to write none.
func (f family) parseLimit(key string, value json.RawMessage, network netip.Prefix) (netip.Addr, error) {
	if kindOf(value) == "null" {
		return netip.Addr{}, nil
	}
	var s string
	_ = json.Unmarshal(value, &s) // what is no string is no address either
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "":
		return netip.Addr{}, f.errorf(key, "%s is not an address (write it without a length, such as %q, or leave it out)", show(value), network.Addr().String())
	case a.IsUnspecified() && a.BitLen() == f.bits:
		return netip.Addr{}, nil
	case !network.Contains(a):
		return netip.Addr{}, f.errorf(key, "%s is not in the network %s (use an address from %s to %s)", s, network, network.Addr(), lastAddr(network))
	}
	return a, nil
}
