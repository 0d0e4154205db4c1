package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"syscall"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// Options adjusts the backend. The zero value is right for almost everyone.
type Options struct {
	// TxChecksum says whether the devices may leave checksums of the packets
	// inside to the network card, which is a good part of VXLAN's speed, and
	// which some kernels don't get right together with NAT (see the package's
	// documentation).
	TxChecksum Checksum
}

// A Checksum is a choice for checksum offload (ethtool's tx-checksum-ip-generic).
type Checksum int

const (
	// Auto switches it off on kernels that may be bad, by their release, and
	// leaves it as it is on others. Distributions mend kernels without a release
	// that tells, so that it is also off on some that are good.
	Auto Checksum = iota
	// On switches it on.
	On
	// Off switches it off.
	Off
)

// String returns "auto", "on" or "off".
func (c Checksum) String() string {
	switch c {
	case Auto:
		return "auto"
	case On:
		return "on"
	case Off:
		return "off"
	}
	return fmt.Sprintf("Checksum(%d)", int(c))
}

// New returns a backend.New for networks of type vxlan. The backend's part of the
// configuration may have these keys, in any case; others are ignored, as flannel does:
//
//	VNI            the network's number, the same on all hosts: 1 to 16777215, usually 1
//	Port           UDP port of all hosts, usually 8472; 4789 is the registered one
//	MTU            of the external interface to assume, usually its own; never more
//	GBP            true marks packets with the group policy (Linux's "gbp")
//	Learning       true learns Ethernet addresses from packets too. A peer
//	               whose packets come from another address than its public one
//	               then is not heard
//	DirectRouting  true sends without VXLAN to peers that are on a link of this host
//
// The Backend is a backend.Prober. It stays in the network namespace of the thread
// that called Start first, and Prepare is to be called in the same.
//
// Close with keep leaves everything in the kernel, where it goes on to carry packets;
// a successor finds it in place and changes nothing.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		cfg, err := parseConfig(p.Network.Backend)
		if err != nil {
			return nil, err
		}
		switch {
		case opts.TxChecksum < Auto || opts.TxChecksum > Off:
			return nil, fmt.Errorf("vxlan: new: Options.TxChecksum is %d (Auto, On or Off)", opts.TxChecksum)
		case !p.Network.IPv4.Enabled() && !p.Network.IPv6.Enabled():
			return nil, errors.New("vxlan: new: the network has neither an IPv4 nor an IPv6 range (set Network or IPv6Network)")
		}
		o := &overlay{opts: opts, cfg: cfg, network: p.Network, log: p.Log}
		if o.log == nil {
			o.log = slog.New(slog.DiscardHandler)
		}
		o.Backend = kernelbackend.New(kernelbackend.Config{
			Name: "vxlan", Params: p, Tunnel: true, Prepare: o.prepare, MTU: o.mtu, End: o.end, Plan: o.plan,
		})
		return o, nil
	}
}

// overlay implements backend.Backend and Prober.
type overlay struct {
	*kernelbackend.Backend
	opts    Options
	cfg     config
	network lease.Network
	log     *slog.Logger
	said    map[string]bool // what has been logged

	macs [2]netstate.MAC // by family; chosen by Prepare, or the first Start

	// Of Start and Sync alone, which are called one at a time.
	leases []lease.Lease           // of the last Sync
	holder [2]map[netstate.MAC]end // who has an Ethernet address; nil: not known yet
}

// A family is one of the two, as an index.
type family int

const (
	v4 family = iota
	v6
)

// String returns "IPv4" or "IPv6".
func (f family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// familyOf is a prefix's.
func familyOf(p netip.Prefix) family {
	if p.Addr().Is4() {
		return v4
	}
	return v6
}

// prepare is Config.Prepare: what the lease is to say, and whether the host can be a
// member at all.
func (o *overlay) prepare(_ context.Context, host backend.Host) (lease.Attrs, error) {
	on4, on6 := o.network.IPv4.Enabled(), o.network.IPv6.Enabled()
	if _, err := o.check("prepare", host, on4, on6); err != nil {
		return lease.Attrs{}, err
	}
	o.chooseMACs([2]netip.Addr{host.Public4, host.Public6})
	attrs := lease.Attrs{BackendType: "vxlan"}
	if on4 {
		attrs.BackendData = backendData(o.cfg.vni, o.macs[v4])
	}
	if on6 {
		attrs.BackendV6Data = backendData(o.cfg.vni, o.macs[v6])
	}
	return attrs, nil
}

// mtu is Config.MTU.
func (o *overlay) mtu(host backend.Host, own lease.Lease) (int, error) {
	if !own.Subnet.IsValid() && !own.Subnet6.IsValid() {
		return 0, errors.New("vxlan: start: the lease has no subnet")
	}
	return o.check("start", host, own.Subnet.IsValid(), own.Subnet6.IsValid())
}

// check returns the MTU for containers, or why the host can't be a member.
func (o *overlay) check(op string, host backend.Host, on4, on6 bool) (int, error) {
	for _, part := range []struct {
		on           bool
		f            family
		addr, public netip.Addr
	}{{on4, v4, host.Addr4, host.Public4}, {on6, v6, host.Addr6, host.Public6}} {
		switch {
		case part.on && !part.addr.IsValid():
			return 0, fmt.Errorf("vxlan: %s: %s has no %v address, and the network has an %v range, whose packets travel over %v (give it one, choose another interface, or take the range out of the network)",
				op, host.Link, part.f, part.f, part.f)
		case part.on && !part.public.IsValid():
			return 0, fmt.Errorf("vxlan: %s: the host has no public %v address, and the network has an %v range (set one, or take the range out of the network)",
				op, part.f, part.f)
		}
	}
	mtu, least := o.linkMTU(host)-overhead4, minMTU
	if on6 {
		mtu, least = o.linkMTU(host)-overhead6, minMTU6
	}
	if mtu < least {
		which := fmt.Sprintf("the MTU of %s", host.Link)
		if o.cfg.mtu != 0 && o.cfg.mtu < host.MTU {
			which = "Backend.MTU of the network's configuration"
		}
		return 0, fmt.Errorf("vxlan: %s: %s is %d, which leaves %d for packets inside (they need at least %d: raise it, or choose another interface)",
			op, which, o.linkMTU(host), mtu, least)
	}
	return mtu, nil
}

// linkMTU is the MTU to assume of the external interface. The kernel refuses devices
// with more than the interface carries.
func (o *overlay) linkMTU(host backend.Host) int {
	if o.cfg.mtu == 0 {
		return host.MTU
	}
	return min(o.cfg.mtu, host.MTU)
}

// Start implements backend.Backend.
func (o *overlay) Start(ctx context.Context, host backend.Host, own lease.Lease) (int, error) {
	o.chooseMACs([2]netip.Addr{own.Attrs.PublicIP, own.Attrs.PublicIPv6}) // unless Prepare has
	o.holder = [2]map[netstate.MAC]end{}
	if o.cfg.mtu > host.MTU {
		o.once(slog.LevelWarn, "the interface's MTU is less than the network's configuration assumes, and is taken", "interface", host.Link, "mtu", host.MTU, "Backend.MTU", o.cfg.mtu)
	}
	if o.opts.TxChecksum == Auto && o.offload() == Off {
		o.once(slog.LevelInfo, "checksum offload of VXLAN is switched off, as this kernel may be one that spoils checksums with NAT (Options.TxChecksum)", "kernel", kernelRelease())
	}
	mtu, err := o.Backend.Start(ctx, host, own)
	return mtu, o.explain(err)
}

// Sync implements backend.Backend.
func (o *overlay) Sync(ctx context.Context, leases []lease.Lease) error {
	o.leases, o.holder = leases, [2]map[netstate.MAC]end{}
	return o.explain(o.Backend.Sync(ctx, leases))
}

// explain adds the remedy to what the kernel says when the port is taken.
func (o *overlay) explain(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w (another program, or a VXLAN device of another kind, has UDP port %d, see ss -ulpn and ip -d link show type vxlan: end or remove it, or give the network another Port)", err, o.cfg.port)
	}
	return err
}

// once logs something the first time.
func (o *overlay) once(level slog.Level, msg string, args ...any) {
	if o.said[msg] {
		return
	}
	if o.said == nil {
		o.said = map[string]bool{}
	}
	o.said[msg] = true
	o.log.Log(context.Background(), level, msg, args...)
}

// An end is where the packets for a peer's subnet go.
type end struct {
	at    netip.Addr
	lease lease.Lease
}

// end is Config.End.
func (o *overlay) end(s kernelbackend.Situation, l lease.Lease, subnet netip.Prefix) (at netip.Addr, why string) {
	f := familyOf(subnet)
	at, mac, why := o.peer(s.Self, l, f)
	if why != "" {
		return netip.Addr{}, why
	}
	if o.holder[f] == nil {
		o.holder[f] = o.holders(s.Self, f)
	}
	if h, ok := o.holder[f][mac]; ok && h.at != at {
		return netip.Addr{}, fmt.Sprintf("its VtepMAC %v is also that of %s, whose lease is newer (the same host at its former address, or a clone: there, delete the device %s and restart the agent)",
			mac, peerset.Name(h.lease), deviceName(f, o.cfg.vni))
	}
	return at, ""
}

// peer reads where a peer is and the Ethernet address of its device, or why it can't
// be reached, so far as its lease alone tells.
func (o *overlay) peer(self peerset.Self, l lease.Lease, f family) (at netip.Addr, mac netstate.MAC, why string) {
	at, data := l.Attrs.PublicIP, l.Attrs.BackendData
	if f == v6 {
		at, data = l.Attrs.PublicIPv6, l.Attrs.BackendV6Data
	}
	if why := self.Unreachable(at); why != "" {
		return at, mac, why
	}
	mac, err := parseData(data, o.cfg.vni)
	switch {
	case err != nil:
		return at, mac, err.Error()
	case mac == o.macs[f]:
		return at, mac, fmt.Sprintf("its VtepMAC %v is also this host's (one is a clone of the other: on one of them delete the device %s and restart the agent)",
			mac, deviceName(f, o.cfg.vni))
	}
	return at, mac, ""
}

// holders finds out which host has each Ethernet address, where several leases say it:
// the later one, as for subnets. Leases that can't be served anyway don't count.
func (o *overlay) holders(self peerset.Self, f family) map[netstate.MAC]end {
	chooser := peerset.Chooser{Network: o.network}
	held := make(map[netstate.MAC]end, len(o.leases))
	for _, l := range o.leases {
		subnet := subnetOf(l.Key, f)
		if !isVXLAN(l) || !subnet.IsValid() || chooser.Unusable(subnet, self.Key) != "" {
			continue
		}
		at, mac, why := o.peer(self, l, f)
		if why != "" {
			continue
		}
		if h, taken := held[mac]; !taken || later(l, at, h) {
			held[mac] = end{at, l}
		}
	}
	return held
}

// later reports whether a lease is newer than another. Where a store has no revisions
// the address decides, so that the order of the leases does not.
func later(l lease.Lease, at netip.Addr, than end) bool {
	if l.Revision != than.lease.Revision {
		return l.Revision > than.lease.Revision
	}
	return at.Compare(than.at) > 0
}
