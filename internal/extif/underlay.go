package extif

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flannelkit/flannelkit/encap/backend"
)

// Underlay returns what the network outside of the overlay uses, as far as this host
// can tell, in order and without host bits: the prefixes to which the external interface
// leads without a router, its addresses and host's, and the routers behind it and those
// of all default routes, each address as a prefix of its own. IPv6's link-local
// addresses are left out.
//
// Other interfaces do not count. Many a host has devices of an overlay (flannel.1,
// docker0, cni0), maybe of one that ran here before under other names, and an
// address on a bridge with which containers use the host's own subnet says
// nothing against that subnet.
//
// It looks at the network namespace of the calling thread. With an error comes what is
// known all the same. Linux only: elsewhere it returns nothing, and no error.
func Underlay(host backend.Host) ([]netip.Prefix, error) {
	found, err := underlay(host.LinkIndex)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	for _, a := range []netip.Addr{host.Addr4, host.Addr6, host.Public4, host.Public6} {
		found = append(found, single(a))
	}
	found = slices.DeleteFunc(found, func(p netip.Prefix) bool {
		return !p.IsValid() || p.Bits() == 0 || useless(p.Addr()) || p.Addr().IsMulticast() || p.Addr().IsUnspecified()
	})
	slices.SortFunc(found, netip.Prefix.Compare)
	if err != nil {
		err = fmt.Errorf("extif: list what the network of %s uses: %w", host.Link, err)
	}
	return slices.Compact(found), err
}

// single returns the prefix of one address, or the zero Prefix of none.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()) }
