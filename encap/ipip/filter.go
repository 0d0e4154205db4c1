package ipip

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/vishvananda/netlink"
)

// The filter is one chain at the input hook: there a packet is whole (fragments are
// joined before), and the kernel has not yet taken the outer header off. In order:
//
//  1. accept what is not IP in IP: one comparison, all that other packets cost
//  2. accept what is not to our address: flannel.ipip gets no other
//  3. accept what is from the far end of another tunnel device: the kernel prefers
//     that one, ip_tunnel_lookup of net/ipv4/ip_tunnel.c
//  4. drop what is inside not to our subnet
//  5. accept each pair of an outer source and an inner source, without the host bits of
//     the inner one, that is in the set for that prefix length: as many rules as
//     there are lengths, one in almost all networks
//  6. drop the rest
//
// "Accept" is the end of this chain only; other tables still have their say.

// tableName is the nftables table's, of the family ip. The package masq's cleanup of
// everything removes it by its beginning.
const tableName = "flannelkit-ipip"

// A filter is what the nftables table shall be.
type filter struct {
	local netip.Addr
	own   netip.Prefix
	// others is the set of far ends of other tunnel devices, four bytes each.
	others elements
	// peers are the sets of peers by the length of their subnets' prefixes: four
	// bytes of outer source and four of inner source each.
	peers map[int]elements
}

// elements are those of a set, as the kernel has them.
type elements map[string]bool

// newFilter lets the peers of a situation pass.
func newFilter(s kernelbackend.Situation) filter {
	f := filter{local: s.Host.Addr4, own: s.Own.Subnet, others: elements{}, peers: map[int]elements{}}
	for _, p := range s.Peers {
		bits := p.Subnet.Bits()
		if f.peers[bits] == nil {
			f.peers[bits] = make(elements, len(s.Peers))
		}
		f.peers[bits][string(p.At.AsSlice())+string(p.Subnet.Addr().AsSlice())] = true
	}
	return f
}

// lengths are the prefix lengths of the peers' subnets, longest first.
func (f filter) lengths() []int {
	list := slices.Sorted(maps.Keys(f.peers))
	slices.Reverse(list)
	return list
}

// sets are all sets by name.
func (f filter) sets() map[string]elements {
	all := map[string]elements{othersSet: f.others}
	for bits, e := range f.peers {
		all[peersSet(bits)] = e
	}
	return all
}

// othersSet is the name of the set others.
const othersSet = "others"

// peersSet is the name of a set of peers.
func peersSet(bits int) string { return fmt.Sprintf("peers%d", bits) }

// tunnels lets pass what the kernel gives to other tunnel devices than ours.
func (f filter) tunnels(links []netlink.Link) {
	for _, l := range links {
		var remote netip.Addr
		switch d := l.(type) {
		case *netlink.Iptun:
			remote = addrOf(d.Remote)
		case *netlink.Sittun: // in the mode ipip, or any
			remote = addrOf(d.Remote)
		}
		const up = 1 // IFF_UP of include/uapi/linux/if.h; without it the kernel looks further
		if remote.Is4() && !remote.IsUnspecified() && l.Attrs().Name != device && l.Attrs().RawFlags&up != 0 {
			f.others[string(remote.AsSlice())] = true
		}
	}
}

// diff says what has to be done to a set. Its order is fixed.
func diff(have, want elements) (add, del []string) {
	for key := range want {
		if !have[key] {
			add = append(add, key)
		}
	}
	for key := range have {
		if !want[key] {
			del = append(del, key)
		}
	}
	slices.Sort(add)
	slices.Sort(del)
	return add, del
}

// drops watches the filter's counter.
type drops struct {
	last uint64
	seen bool
	next time.Time // not to be told before
}

// quiet is how long no further drops are told.
const quiet = time.Minute

// tell returns how many packets were dropped that have not been told of, or 0.
func (d *drops) tell(count uint64, now time.Time) uint64 {
	if !d.seen || count < d.last { // another table
		d.last, d.seen = 0, true
	}
	if count == d.last || now.Before(d.next) {
		return 0
	}
	n := count - d.last
	d.last, d.next = count, now.Add(quiet)
	return n
}
