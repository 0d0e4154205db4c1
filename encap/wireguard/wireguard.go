// Package wireguard is flannel's wireguard backend: packets between hosts are
// encrypted and authenticated by WireGuard, between devices named flannel-wg.
//
// # Configuration
//
// The backend's part of the network's configuration has flannel's keys:
//
//	MTU            MTU in bytes of the way between hosts; absent: the external
//	               interface's. WireGuard's 80 bytes are taken off it
//	ListenPort     UDP port of flannel-wg on every host; absent: 51820
//	ListenPortV6   UDP port of flannel-wg-v6 on every host; absent: 51821
//	PSK            a preshared key for all pairs of hosts, 32 bytes in base64, as
//	               wg(8) genpsk makes it; absent: none
//	PersistentKeepaliveInterval
//	               seconds between packets that keep the state of NATs and
//	               firewalls alive; absent or 0: none are sent
//	Mode           separate, auto, ipv4 or ipv6; absent: separate
//
// Mode says what carries what:
//
//	separate  flannel-wg carries IPv4 to the peers' public IPv4 addresses,
//	          flannel-wg-v6 IPv6 to their public IPv6 addresses
//	auto      flannel-wg carries both families, to the public address that is
//	          most likely reached: an IPv4 one that is not private, else an IPv6
//	          one if neither it nor this host's is private, else IPv4
//	ipv4      flannel-wg carries both families to public IPv4 addresses
//	ipv6      flannel-wg carries both families to public IPv6 addresses
//
// A lease does not tell its host's mode, so all hosts must have the same. As far as
// another one works, it works: the IPv4 of separate reaches auto and ipv4.
//
// # Keys
//
// A host's private key is made once and kept in a file, see [Options]. The lease
// carries the public key and the port: {"PublicKey":"...","Port":51820} as BackendData in
// a network with IPv4, and the like as BackendV6Data in one with IPv6. Where there is
// no Port, as flannel before v0.28 has it, it is taken to be this host's. Whoever can write leases
// decides who is a peer. No message has the private or the preshared key.
//
// # What carries packets
//
// The kernel's WireGuard, where it has it: the device stays when the process ends and
// Close was asked to keep it, sessions included. Otherwise wireguard-go inside this
// process, with a TUN device of the same name. That device ends with the process,
// whatever Close was asked. On the wire both are the same. A network namespace has room
// for one network of this backend, since the names of the devices are flannel's; a
// device that another process has open is left alone, and Start fails.
//
// An endpoint that WireGuard has learnt of a peer, because it roams, stays for as long
// as the peer is heard from there: until its lease has another address, or for three
// minutes after the last handshake.
//
// A host greets the peers that its device did not have before, so that they need not
// find out by themselves that it has lost its sessions (which takes them 15 s), and so
// that two hosts do not begin at the same time and miss each other for 5 s or more. The
// host with the smaller public key does so at once, the other one after half a second
// if nothing has come of that; to at most 300 peers a second.
//
// A route that leads nowhere, of the metric 1073741824 (blackhole), stands behind
// the one to each network through the device. Where the device is missing, for whatever
// reason, packets for other hosts are dropped, and not sent in the clear by the default
// route. Close leaves it too if it is to keep things; `ip route del blackhole NETWORK
// metric 1073741824` removes it.
//
// Not so where the network has this host's own address in it, as 10.0.0.0/8 may: the
// routes to the network also take what goes to the underlay by a router, etcd perhaps,
// and must not stay without the program that could take them back. Then there are no
// guard routes, Close removes everything, and the log says so.
package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/encap/backend"
	"github.com/flannelkit/flannelkit/internal/kernelbackend"
	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/peerset"
	"github.com/flannelkit/flannelkit/lease"
)

// name is flannel's name of the backend.
const name = "wireguard"

// An Implementation is who encrypts.
type Implementation int

const (
	// Auto is the kernel if it has WireGuard, else this process.
	Auto Implementation = iota
	// Kernel is the kernel. Start fails if it has no WireGuard.
	Kernel
	// Userspace is this process, by wireguard-go.
	Userspace
)

// String returns "auto", "kernel" or "userspace".
func (i Implementation) String() string {
	switch i {
	case Auto:
		return "auto"
	case Kernel:
		return "kernel"
	case Userspace:
		return "userspace"
	}
	return fmt.Sprintf("Implementation(%d)", int(i))
}

// DefaultKeyFile is where flannel keeps a host's private key, unless the environment
// variable WIREGUARD_KEY_FILE says otherwise; this package does not look at the
// environment.
const DefaultKeyFile = "/run/flannel/wgkey"

// Options are what a host decides for itself. The zero value is right for most.
type Options struct {
	// KeyFile is the file of the private key, 32 bytes in base64; "" means
	// DefaultKeyFile. If there is none, Prepare makes one with mode 0400, and the
	// folders above it with mode 0755. One that others than its owner can read
	// or write is refused, as is one that belongs to another user, a symbolic
	// link, and one with anything else in it. Two networks of one process need
	// two files only if they are to have two keys.
	KeyFile string
	// Implementation says who encrypts.
	Implementation Implementation
}

// New returns a backend.New for networks of type wireguard. It needs CAP_NET_ADMIN,
// and /dev/net/tun where the kernel has no WireGuard. On systems other than Linux
// Prepare and Start fail with an error that wraps errors.ErrUnsupported.
func New(opts Options) backend.New {
	return func(p backend.Params) (backend.Backend, error) {
		cfg, err := parseConfig(p.Network.Backend)
		if err != nil {
			return nil, err
		}
		if opts.Implementation < Auto || opts.Implementation > Userspace {
			return nil, fmt.Errorf("wireguard: Options.Implementation is %v (want Auto, Kernel or Userspace)", opts.Implementation)
		}
		if opts.KeyFile == "" {
			opts.KeyFile = DefaultKeyFile
		}
		return newWireguard(p, opts, cfg), nil
	}
}

// A wireguard is the backend.
type wireguard struct {
	*kernelbackend.Backend
	params  backend.Params
	opts    Options
	cfg     config
	keys    keys
	sys     *system          // what there is of the operating system; nil before Start
	clones  peerset.Chooser  // remembers what has been said of duplicate keys
	devices map[string]*mind // by name; for rounds
	around  bool             // of the last Start; for Start and Close
}

func newWireguard(p backend.Params, opts Options, cfg config) *wireguard {
	w := &wireguard{params: p, opts: opts, cfg: cfg, devices: map[string]*mind{}}
	w.keys.psk = cfg.PSK
	w.Backend = kernelbackend.New(kernelbackend.Config{
		Name: name, Params: p, Tunnel: true, Prepare: w.prepare, MTU: w.mtu, End: w.end, Plan: w.plan, Closed: w.closed,
	})
	w.clones = peerset.Chooser{Backend: name, Network: p.Network, Log: logger(p)}
	return w
}

// prepare implements kernelbackend.Config.Prepare.
func (w *wireguard) prepare(_ context.Context, host backend.Host) (lease.Attrs, error) {
	if err := w.cfg.Mode.check(host, w.params.Network); err != nil {
		return lease.Attrs{}, fmt.Errorf("wireguard: prepare: %w", err)
	}
	if err := w.loadKey(); err != nil {
		return lease.Attrs{}, fmt.Errorf("wireguard: prepare: %w", err)
	}
	return attrs(w.params.Network, w.cfg, w.keys.public)
}

// loadKey reads or makes the private key.
func (w *wireguard) loadKey() error {
	if w.keys.private != (secret{}) {
		return nil
	}
	key, made, err := loadKey(w.opts.KeyFile)
	if err != nil {
		return err
	}
	w.keys.private, w.keys.public = key, wgtypes.Key(key).PublicKey()
	if made {
		logger(w.params).Info("made a private key", "backend", name, "file", w.opts.KeyFile)
	}
	return nil
}

// mtu implements kernelbackend.Config.MTU.
func (w *wireguard) mtu(host backend.Host, _ lease.Lease) (int, error) {
	return w.cfg.mtu(host, w.params.Network)
}

// end implements kernelbackend.Config.End.
func (w *wireguard) end(s kernelbackend.Situation, l lease.Lease, subnet netip.Prefix) (netip.Addr, string) {
	return endpoint(w.cfg.Mode, s, w.keys.public, l, subnet)
}

// Start implements backend.Backend.
func (w *wireguard) Start(ctx context.Context, host backend.Host, own lease.Lease) (mtu int, err error) {
	if err := w.loadKey(); err != nil {
		return 0, fmt.Errorf("wireguard: start: %w", err)
	}
	first := w.sys == nil
	if first {
		if w.sys, err = openSystem(w); err != nil {
			return 0, fmt.Errorf("wireguard: start: %w", err)
		}
	}
	if w.cfg.MTU > host.MTU && host.MTU > 0 {
		logger(w.params).Warn("the key MTU is more than the interface's, which is used", "backend", name, "key", w.cfg.MTU, "interface", host.Link, "mtu", host.MTU)
	}
	if w.around = around(w.params.Network, host); w.around {
		logger(w.params).Warn("the network has this host's own address in it: what goes to the underlay by a router goes into the tunnel, if the network has that address, too",
			"backend", name, "network", w.params.Network, "interface", host.Link, "remedy", "give the network a range of its own")
	}
	mtu, err = w.Backend.Start(ctx, host, own)
	if err != nil && first {
		_ = w.finish(netstate.Undo) // the error to tell is Start's
	}
	return mtu, err
}

// Sync implements backend.Backend.
func (w *wireguard) Sync(ctx context.Context, leases []lease.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leases, notes := distinct(leases)
	said := w.clones.Say(notes)
	return errors.Join(said, w.Backend.Sync(ctx, leases))
}

// plan implements kernelbackend.Config.Plan.
func (w *wireguard) plan(s kernelbackend.Situation, _ netstate.Kernel) (netstate.State, error) {
	return w.sys.state(w.cfg.specs(w.params.Network, s), !around(w.params.Network, s.Host))
}

// around reports whether a network has a host's own address in it.
func around(n lease.Network, host backend.Host) bool {
	for _, r := range []lease.Range{n.IPv4, n.IPv6} {
		for _, a := range []netip.Addr{host.Addr4, host.Addr6, host.Public4, host.Public6} {
			if r.Enabled() && r.Prefix.Contains(a) {
				return true
			}
		}
	}
	return false
}

// Close implements backend.Backend.
func (w *wireguard) Close(keep bool) error { return w.Backend.Close(keep && !w.around) }

// closed implements kernelbackend.Config.Closed.
func (w *wireguard) closed(keep bool) error {
	if keep {
		return w.finish(netstate.Leave)
	}
	return w.finish(netstate.Remove)
}

// finish ends what is in this process, and the guard routes as fate says.
func (w *wireguard) finish(fate netstate.Fate) error {
	if w.sys == nil {
		return nil
	}
	err := w.sys.close(fate)
	w.sys, w.devices = nil, map[string]*mind{}
	return err
}
