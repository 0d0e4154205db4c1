package lease

import (
	"encoding/json"
	"net/netip"
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
	// object; nil where there is none.
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
