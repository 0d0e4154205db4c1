package wireguard

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// data is flannel's BackendData and BackendV6Data. Before v0.28 it had no Port.
type data struct {
	PublicKey string
	Port      uint16
}

// attrs is what a lease says of this host: the same key for each family that the
// network has, since the devices of Mode separate have one, and the port of the device
// that takes the packets of that family.
func attrs(n lease.Network, c config, public wgtypes.Key) (lease.Attrs, error) {
	a := lease.Attrs{BackendType: name}
	portV6 := c.Port
	if c.Mode == separate {
		portV6 = c.PortV6
	}
	for _, f := range []struct {
		on   bool
		to   *json.RawMessage
		port int
	}{{n.IPv4.Enabled(), &a.BackendData, c.Port}, {n.IPv6.Enabled(), &a.BackendV6Data, portV6}} {
		if !f.on {
			continue
		}
		raw, err := json.Marshal(data{public.String(), uint16(f.port)})
		if err != nil {
			return lease.Attrs{}, fmt.Errorf("wireguard: prepare: %w", err)
		}
		*f.to = raw
	}
	return a, nil
}

// port is where a peer's device takes packets: what its lease says, else usual. With
// one device for both families it is that of IPv4's data, since flannel v0.28 writes
// into IPv6's the port of a device that is not there then.
func port(m mode, l lease.Lease, v6 bool, usual int) uint16 {
	raw := l.Attrs.BackendData
	if m == separate && v6 {
		raw = l.Attrs.BackendV6Data
	}
	var d data
	if json.Unmarshal(raw, &d) != nil || d.Port == 0 {
		return uint16(usual)
	}
	return d.Port
}

// publicKey reads the public key of a lease for one family, or says what is wrong.
// A host has one key: where that family's is missing, the other's is meant.
func publicKey(l lease.Lease, v6 bool) (key wgtypes.Key, why string) {
	field, raw := "BackendData", l.Attrs.BackendData
	if v6 && len(l.Attrs.BackendV6Data) > 0 || len(raw) == 0 {
		field, raw = "BackendV6Data", l.Attrs.BackendV6Data
	}
	if len(raw) == 0 {
		return key, "its lease has no BackendData, and so no public key"
	}
	var d struct{ PublicKey string }
	if err := json.Unmarshal(raw, &d); err != nil {
		return key, fmt.Sprintf("its %s is not what flannel's wireguard backend writes: %.100v", field, err) // it may quote a number of any length
	}
	b, err := base64.StdEncoding.DecodeString(d.PublicKey)
	if err != nil || len(b) != len(key) || wgtypes.Key(b) == (wgtypes.Key{}) {
		return key, fmt.Sprintf("the PublicKey %.64q of its %s is no WireGuard key (32 bytes in base64)", d.PublicKey, field)
	}
	return wgtypes.Key(b), ""
}

// endpoint is where packets for a subnet of a lease go, or why they can't.
func endpoint(m mode, s kernelbackend.Situation, own wgtypes.Key, l lease.Lease, subnet netip.Prefix) (at netip.Addr, why string) {
	v4, v6 := l.Attrs.PublicIP.Unmap(), l.Attrs.PublicIPv6
	switch m {
	case separate:
		at = v4
		if subnet.Addr().Is6() {
			at = v6
		}
	case ipv4:
		at = v4
	case ipv6:
		at = v6
	default:
		at = likely(v4, v6, s.Host)
	}
	if !at.IsValid() {
		family := "IPv4"
		if m == ipv6 || m == separate && subnet.Addr().Is6() {
			family = "IPv6"
		}
		return at, fmt.Sprintf("it has no public %s address, which Mode %s needs", family, m)
	}
	if why := s.Self.Unreachable(at); why != "" {
		return at, why
	}
	key, why := publicKey(l, inner6(m, l, subnet))
	switch {
	case why != "":
		return at, why
	case key == own:
		return at, "its public key is this host's own (the machine was cloned with its key file: remove that file on one of them)"
	}
	return at, ""
}

// inner6 reports whether the key of the IPv6 side is the one to use: with one device
// for both families flannel takes that if there is one.
func inner6(m mode, l lease.Lease, subnet netip.Prefix) bool {
	if m == separate {
		return subnet.Addr().Is6()
	}
	return l.Subnet6.IsValid()
}

// likely chooses the public address of a peer that most likely works, as flannel does,
// but never one of a family that this host does not have.
func likely(v4, v6 netip.Addr, host backend.Host) netip.Addr {
	switch {
	case !v6.IsValid() || !host.Public6.IsValid() && host.Public4.IsValid():
		return v4
	case !v4.IsValid() || !host.Public4.IsValid():
		return v6
	case !v4.IsPrivate():
		return v4
	case !v6.IsPrivate() && !host.Public6.IsPrivate():
		return v6
	}
	return v4
}

// distinct leaves out leases with a public key, of either family, that another lease
// has too: WireGuard knows a peer by its key. The later lease is served. A host that got
// another subnet has such an old lease for a day; otherwise a machine was cloned with
// its key.
func distinct(leases []lease.Lease) (kept []lease.Lease, notes []peerset.Note) {
	order := make([]int, len(leases))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		if later(leases[i], leases[j]) {
			return -1
		}
		return 1
	})
	holder := make(map[wgtypes.Key]int, len(leases))
	out := make(map[int]peerset.Note)
	for _, i := range order {
		if !strings.EqualFold(leases[i].Attrs.BackendType, name) {
			continue
		}
		keys := publicKeys(leases[i])
		for _, key := range keys {
			if j, taken := holder[key]; taken {
				out[i] = clone(leases[j], leases[i])
				break
			}
		}
		if _, lost := out[i]; lost {
			continue
		}
		for _, key := range keys {
			holder[key] = i
		}
	}
	for i, l := range leases {
		if n, bad := out[i]; bad {
			notes = append(notes, n)
			continue
		}
		kept = append(kept, l)
	}
	return kept, notes
}

// publicKeys are those of a lease that can be read; about the others End has something
// to say.
func publicKeys(l lease.Lease) (keys []wgtypes.Key) {
	for _, v6 := range []bool{false, true} {
		if key, why := publicKey(l, v6); why == "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// clone is what to say of a lease that has the same key as another one.
func clone(winner, loser lease.Lease) peerset.Note {
	if public(winner) == public(loser) {
		return peerset.Note{Text: fmt.Sprintf("peer %s left out: the host has a newer lease, %s", peerset.Name(loser), winner.Key)}
	}
	return peerset.Note{Bad: true, Text: fmt.Sprintf("peer %s left out: it has the public key of %s, whose lease is newer (the machine was cloned with its key file: remove that file on one of them)",
		peerset.Name(loser), peerset.Name(winner))}
}

// public are the public addresses of a lease.
func public(l lease.Lease) [2]netip.Addr {
	return [2]netip.Addr{l.Attrs.PublicIP.Unmap(), l.Attrs.PublicIPv6}
}

// later decides between two leases. Their order must not matter.
func later(a, b lease.Lease) bool {
	if a.Revision != b.Revision {
		return a.Revision > b.Revision
	}
	pa, pb := public(a), public(b)
	for i := range pa {
		if c := pa[i].Compare(pb[i]); c != 0 {
			return c > 0
		}
	}
	return a.Key.String() > b.Key.String()
}

// logger is the one of the Params, which may be nil if somebody does not keep to the
// contract.
func logger(p backend.Params) *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}
