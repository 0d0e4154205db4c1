package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Lease is one host's hold on a subnet, or on one IPv4 and one IPv6 subnet.
type Lease struct {
	Key

	// Attrs is what its host tells the others.
	Attrs Attrs
	// Reserved: the entry in the store has no time limit. An operator made it
	// for the host with that public address, and it stays when the host goes.
	Reserved bool
	// Revision is the store's revision at which this value was written.
	Revision uint64
}

// A Key names a lease by what is leased. At least one subnet is valid; neither has
// bits set outside its mask.
type Key struct {
	// Subnet is the IPv4 subnet, the zero Prefix in a network without IPv4.
	Subnet netip.Prefix
	// Subnet6 is the IPv6 subnet, the zero Prefix in a network without IPv6.
	Subnet6 netip.Prefix
}

// String returns the key as it is in the store: 10.5.34.0-24,
// 10.5.34.0-24&fd00:1:2::-64 with both families, or fd00:1:2::-64, which no
// flannel has and which therefore only stands in networks without IPv4.
func (k Key) String() string {
	var parts []string
	for _, p := range k.Prefixes() {
		parts = append(parts, p.Addr().String()+"-"+strconv.Itoa(p.Bits()))
	}
	return strings.Join(parts, "&")
}

// Prefixes returns the one or two subnets, IPv4 first.
func (k Key) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	if k.Subnet.IsValid() {
		all = append(all, k.Subnet)
	}
	if k.Subnet6.IsValid() {
		all = append(all, k.Subnet6)
	}
	return all
}

// Overlaps reports whether some address belongs to both.
func (k Key) Overlaps(other Key) bool {
	return k.Subnet.IsValid() && other.Subnet.IsValid() && k.Subnet.Overlaps(other.Subnet) ||
		k.Subnet6.IsValid() && other.Subnet6.IsValid() && k.Subnet6.Overlaps(other.Subnet6)
}

// ParseKey reads what Key.String writes. It is strict, since a key that means
// something else to another host leads to two hosts in one subnet: addresses in
// their canonical form, no bits outside the mask, IPv4 before IPv6.
func ParseKey(s string) (Key, error) {
	first, second, both := strings.Cut(s, "&")
	p, err := parseKeyPart(first)
	if err != nil {
		return Key{}, fmt.Errorf("lease: key %q: %w (want ADDRESS-LENGTH, as in 10.5.34.0-24)", s, err)
	}
	if !both {
		if p.Addr().Is4() {
			return Key{Subnet: p}, nil
		}
		return Key{Subnet6: p}, nil
	}
	p6, err := parseKeyPart(second)
	if err == nil && (!p.Addr().Is4() || !p6.Addr().Is6()) {
		err = fmt.Errorf("two subnets are not one of IPv4 and one of IPv6")
	}
	if err != nil {
		return Key{}, fmt.Errorf("lease: key %q: %w (want IPV4-LENGTH&IPV6-LENGTH, as in 10.5.34.0-24&fd00:1:2::-64)", s, err)
	}
	return Key{Subnet: p, Subnet6: p6}, nil
}

// parseKeyPart reads one ADDRESS-LENGTH.
func parseKeyPart(s string) (netip.Prefix, error) {
	addr, length, ok := strings.Cut(s, "-")
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q has no length", s)
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.String() != addr {
		return netip.Prefix{}, fmt.Errorf("%q is not an address in its usual form", addr)
	}
	bits, err := strconv.Atoi(length)
	if err != nil || bits < 1 || bits > a.BitLen() || strconv.Itoa(bits) != length {
		return netip.Prefix{}, fmt.Errorf("%q is not a length from 1 to %d", length, a.BitLen())
	}
	p := netip.PrefixFrom(a, bits)
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits set outside its /%d", a, bits)
	}
	return p, nil
}

// Attrs is what a host tells the others: the value of its lease.
type Attrs struct {
	// PublicIP is the IPv4 address at which the others reach the host, the zero
	// Addr if there is none.
	PublicIP netip.Addr
	// PublicIPv6 is the IPv6 address at which the others reach it, the zero Addr
	// if there is none.
	PublicIPv6 netip.Addr
	// BackendType is flannel's name of the backend; udp, alloc and the clouds
	// leave it empty, as flannel does.
	BackendType string
	// BackendData is what that backend needs to know of a peer, as JSON; nil if
	// nothing.
	BackendData json.RawMessage
	// BackendV6Data is the same for its IPv6 side.
	BackendV6Data json.RawMessage
}

// storedAttrs is flannel's form. PublicIPv6 is written as null where there is none,
// PublicIP as 0.0.0.0.
type storedAttrs struct {
	PublicIP      *netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

// MarshalJSON writes flannel's form, byte for byte:
// {"PublicIP":"192.0.2.1","PublicIPv6":null} for a host with the udp backend.
func (a Attrs) MarshalJSON() ([]byte, error) {
	a = a.canonical()
	s := storedAttrs{BackendType: a.BackendType, BackendData: a.BackendData, BackendV6Data: a.BackendV6Data}
	v4 := a.PublicIP
	if !v4.IsValid() {
		v4 = netip.IPv4Unspecified()
	}
	s.PublicIP = &v4
	if a.PublicIPv6.IsValid() {
		s.PublicIPv6 = &a.PublicIPv6
	}
	return json.Marshal(s)
}

// UnmarshalJSON reads the form of any flannel since 0.1. At least one usable public
// address must be there, since a lease without is nobody's.
func (a *Attrs) UnmarshalJSON(data []byte) error {
	var s storedAttrs
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("lease: value %s: %w", excerpt(data), err)
	}
	usable := func(p *netip.Addr, is func(netip.Addr) bool) (netip.Addr, error) {
		if p == nil || !p.IsValid() || p.Unmap().IsUnspecified() {
			return netip.Addr{}, nil
		}
		if addr := p.Unmap(); is(addr) && addr.Zone() == "" && !addr.IsMulticast() {
			return addr, nil
		}
		return netip.Addr{}, fmt.Errorf("lease: value %s: %s is not a public address of that family", excerpt(data), p)
	}
	v4, err := usable(s.PublicIP, netip.Addr.Is4)
	if err != nil {
		return err
	}
	v6, err := usable(s.PublicIPv6, netip.Addr.Is6)
	if err != nil {
		return err
	}
	if !v4.IsValid() && !v6.IsValid() {
		return fmt.Errorf("lease: value %s: no PublicIP and no PublicIPv6", excerpt(data))
	}
	*a = Attrs{PublicIP: v4, PublicIPv6: v6, BackendType: s.BackendType,
		BackendData: nullToNil(s.BackendData), BackendV6Data: nullToNil(s.BackendV6Data)}
	return nil
}

// Equal reports whether both say the same to a peer. JSON is compared by value, not
// by its spaces or the order of its keys.
func (a Attrs) Equal(b Attrs) bool {
	a, b = a.canonical(), b.canonical()
	return a.PublicIP == b.PublicIP && a.PublicIPv6 == b.PublicIPv6 && a.BackendType == b.BackendType &&
		sameJSON(a.BackendData, b.BackendData) && sameJSON(a.BackendV6Data, b.BackendV6Data)
}

// canonical returns the attributes as they come back from a store: an IPv4 address is not
// mapped into IPv6, and JSON's null is nothing.
func (a Attrs) canonical() Attrs {
	a.PublicIP = a.PublicIP.Unmap()
	a.BackendData, a.BackendV6Data = nullToNil(a.BackendData), nullToNil(a.BackendV6Data)
	return a
}

// check returns nil if other hosts can read the attributes.
func (a Attrs) check() error {
	if !a.public().IsValid() {
		return fmt.Errorf("%w: this host has no public address (set PublicIP or PublicIPv6)", ErrAttrs)
	}
	value, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("%w: %w (BackendData and BackendV6Data are JSON, or nil)", ErrAttrs, err)
	}
	var back Attrs
	if err := json.Unmarshal(value, &back); err != nil {
		return fmt.Errorf("%w: %w", ErrAttrs, err)
	}
	return nil
}

// sameHost reports whether both are one host, so far as leases tell: the same public
// IPv4 address, or the same IPv6 address where neither has IPv4.
func (a Attrs) sameHost(b Attrs) bool {
	if a.PublicIP.IsValid() || b.PublicIP.IsValid() {
		return a.PublicIP == b.PublicIP
	}
	return a.PublicIPv6.IsValid() && a.PublicIPv6 == b.PublicIPv6
}

// public returns the address that is the host's name in messages.
func (a Attrs) public() netip.Addr {
	if a.PublicIP.IsValid() {
		return a.PublicIP
	}
	return a.PublicIPv6
}

// parseEntry makes a lease of what is in a store.
func parseEntry(e Entry) (Lease, error) {
	k, err := ParseKey(e.Key)
	if err != nil {
		return Lease{}, err
	}
	l := Lease{Key: k, Reserved: e.Permanent, Revision: e.Revision}
	if err := json.Unmarshal(e.Value, &l.Attrs); err != nil {
		return Lease{}, err
	}
	return l, nil
}

// nullToNil drops a JSON null, which says the same as nothing.
func nullToNil(m json.RawMessage) json.RawMessage {
	if string(m) == "null" {
		return nil
	}
	return m
}

// sameJSON compares two JSON values.
func sameJSON(a, b json.RawMessage) bool {
	if string(a) == string(b) {
		return true
	}
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	ca, errA := canonicalJSON(a)
	cb, errB := canonicalJSON(b)
	return errA == nil && errB == nil && ca == cb
}

// canonicalJSON returns one form for all ways to write a value. Numbers are kept as
// they are written, since a float64 would lose digits.
func canonicalJSON(m json.RawMessage) (string, error) {
	var v any
	d := json.NewDecoder(strings.NewReader(string(m)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	out, err := json.Marshal(v)
	return string(out), err
}

// excerpt returns data for a message: quoted, and not more of it than one reads.
func excerpt(data []byte) string {
	const most = 120
	if len(data) > most {
		return strconv.Quote(string(data[:most])) + "..."
	}
	return strconv.Quote(string(data))
}
