package candidate

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/flannelkit/flannelkit/internal/netlab"
	"github.com/flannelkit/flannelkit/internal/rtnl"
	"github.com/flannelkit/flannelkit/internal/traffic"
)

// maxIndex bounds Bed.Index: network 10.200.0.0/16 is the last one, well below the 10.244.0.0/16 of the two hosts.
const maxIndex = 199

// A place is what one candidate has for itself on a bed. Two candidates of different Index share nothing but the link.
//
//	network  10.n.0.0/16, n = Index+1; host A has 10.n.1.0/24 of it, host B 10.n.2.0/24
//	crowd    a /10 from 16.0.0.0 on, room for 16384 peers with a /24 each. Those addresses belong to somebody, but
//	         nothing leaves the two hosts' namespaces, and 10.0.0.0/8 holds only four such blocks
type place struct {
	n       int
	network netip.Prefix
	crowd   netip.Prefix
	sides   [2]side // host A's and host B's
}

// A side is a host with what is the candidate's there.
type side struct {
	*netlab.Host
	other  *netlab.Host
	subnet netip.Prefix
	// first is the first address of the subnet, which flannel gives to the tunnel's device.
	first netip.Addr
}

func newPlace(bed Bed) (place, error) {
	if bed.Index < 0 || bed.Index > maxIndex {
		return place{}, fmt.Errorf("candidate: number %d of the run (0 to %d: there are no more subnets)", bed.Index, maxIndex)
	}
	n := bed.Index + 1
	p := place{
		n:       n,
		network: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n)}), 16),
		crowd:   netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(16 + bed.Index/4), byte(bed.Index % 4 * 64)}), 10),
	}
	for i, host := range []*netlab.Host{bed.Hosts.HostA, bed.Hosts.HostB} {
		first := netip.AddrFrom4([4]byte{10, byte(n), byte(i + 1)})
		other := []*netlab.Host{bed.Hosts.HostB, bed.Hosts.HostA}[i]
		p.sides[i] = side{Host: host, other: other, subnet: netip.PrefixFrom(first, 24), first: first}
	}
	return p, nil
}

// port is the UDP port of a tunnel: the usual one (8285, 8472) for the first candidate of a kind, and for others one from 9001
// to 9200, which is no kind's usual one, and not another candidate's, since n isn't.
func (p place) port(usual int, s spec) uint16 {
	if s.nth == 0 {
		return uint16(usual)
	}
	return uint16(9000 + p.n)
}

// device is the name of a device of the candidate's.
func (p place) device(kind string) string { return fmt.Sprint(kind, p.n) }

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// undo collects what takes back what was made, for Down.
type undo struct{ steps []func() error }

func (u *undo) add(step func() error) { u.steps = append(u.steps, step) }

// all takes everything back, the last first, and forgets it.
func (u *undo) all() error {
	var errs []error
	for ; len(u.steps) > 0; u.steps = u.steps[:len(u.steps)-1] {
		errs = append(errs, u.steps[len(u.steps)-1]())
	}
	return errors.Join(errs...)
}

// addAddr gives a device of the host an address until u is undone.
func (s side) addAddr(u *undo, link string, addr netip.Prefix) error {
	if err := s.AddAddr(link, addr); err != nil {
		return err
	}
	u.add(func() error {
		dev, err := s.Netlink().LinkByName(link)
		if err == nil {
			err = s.Netlink().AddrDel(dev, &netlink.Addr{IPNet: rtnl.IPNet(addr)})
		}
		if err != nil {
			return fmt.Errorf("candidate: remove %v from %s of %s: %w", addr, link, s.Name(), err)
		}
		return nil
	})
	return nil
}

// addRoute is netlab's AddRoute until u is undone.
func (s side) addRoute(u *undo, dst netip.Prefix, via netip.Addr, dev string, mtu int) error {
	if err := s.AddRoute(dst, via, dev, mtu); err != nil {
		return err
	}
	u.add(func() error { return s.DelRoute(dst, via, dev) })
	return nil
}

// procs are the processes of a candidate, first host A's.
type procs []*traffic.Proc

// PIDs returns their numbers.
func (p procs) PIDs() []int {
	var pids []int
	for _, one := range p {
		pids = append(pids, one.PID())
	}
	return pids
}

// end ends them.
func (p *procs) end() error {
	var err error
	for _, one := range *p {
		err = errors.Join(err, one.Close())
	}
	*p = nil
	return err
}
