package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flannelkit/flannelkit/internal/netstate"
	"github.com/flannelkit/flannelkit/internal/rtnl"
)

// kind is the kernel's name of its WireGuard devices.
const kind = "wireguard"

// guardMetric is worse than that of any route one would make for a network.
const guardMetric = 1 << 30

// A system is what the backend has open of the operating system, in the network
// namespace of the thread that opened it. Its methods are called by one goroutine at
// a time: in rounds, which are in that namespace, and after the last one.
type system struct {
	w      *wireguard
	nl     *netlink.Handle
	kernel *wgctrl.Client        // nil before the first kernel device
	inproc map[string]*inproc    // wireguard-go's devices, by name
	greets map[string]*greeter   // by device
	said   map[string]string     // who carries packets, by device
	guards map[netip.Prefix]bool // whether it was made here, and not found
	swept  bool

	devices, peers, removed atomic.Uint64 // what was set, for tests
}

// openSystem opens it in the namespace of the calling thread.
func openSystem(w *wireguard) (*system, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &system{w: w, nl: nl, inproc: map[string]*inproc{}, greets: map[string]*greeter{}, said: map[string]string{}, guards: map[netip.Prefix]bool{}}, nil
}

// state is the State of a round. guarded: there are to be guard routes.
func (s *system) state(specs []spec, guarded bool) (all netstate.State, err error) {
	var errs []error
	for _, sp := range specs {
		if guarded {
			errs = append(errs, s.guard(sp.networks))
		}
	}
	s.sweep(specs)
	for _, sp := range specs {
		if err := s.occupied(sp.name); err != nil {
			errs = append(errs, err)
			continue // not ours to touch
		}
		one := sp.state(s.link(sp))
		all.Links = append(all.Links, one.Links...)
		all.Addrs = append(all.Addrs, one.Addrs...)
		all.Routes = append(all.Routes, one.Routes...)
	}
	return all, errors.Join(errs...)
}

// link is a device for netstate.
func (s *system) link(sp spec) netstate.Link {
	return netstate.Link{
		Name:    sp.name,
		MTU:     sp.mtu,
		Make:    func() error { return s.make(sp) },
		Unfit:   func(have netlink.Link) string { return s.unfit(sp.name, have) },
		Tune:    func(have netlink.Link) ([]string, error) { return s.tune(sp, have) },
		Sysctls: sysctls(sp),
	}
}

// sysctls are the variables of a device.
func sysctls(sp spec) [][2]string {
	// No link-local address: nobody is there to hear router solicitations.
	all := [][2]string{{"ipv6/conf/*/addr_gen_mode", "1"}}
	if slices.ContainsFunc(sp.networks, func(n netip.Prefix) bool { return n.Addr().Is6() }) {
		// Some hosts have IPv6 off for new devices (net.ipv6.conf.default).
		all = append(all, [2]string{"ipv6/conf/*/disable_ipv6", "0"})
	}
	return all
}

// ours returns the wireguard-go device behind a link, nil if there is none.
func (s *system) ours(have netlink.Link) *inproc {
	if p := s.inproc[have.Attrs().Name]; p != nil && p.index == have.Attrs().Index && !p.ended() {
		return p
	}
	return nil
}

// occupied returns an error if another process has the device: a TUN device that does
// not outlive its process is there.
func (s *system) occupied(name string) error {
	link, err := s.nl.LinkByName(name)
	if err != nil {
		return nil // netstate says what is wrong, if anything is
	}
	if dev, ok := link.(*netlink.Tuntap); ok && dev.NonPersist && s.inproc[name] == nil {
		return fmt.Errorf("wireguard: device %s: %w (another process has it open: stop that one)", name, unix.EBUSY)
	}
	return nil
}

// unfit says why a device that is there has to be made anew.
func (s *system) unfit(name string, have netlink.Link) string {
	impl := s.w.opts.Implementation
	switch {
	case have.Type() == kind && impl == Userspace:
		return "it is the kernel's, and Options.Implementation is Userspace"
	case have.Type() == kind, s.ours(have) != nil:
		return ""
	case s.inproc[name] != nil:
		return "its part in this process has ended"
	}
	return fmt.Sprintf("it is of type %s, left behind by somebody", have.Type())
}

// make makes a device that is not there, by the kernel or in this process.
func (s *system) make(sp spec) error {
	s.drop(sp.name)
	impl := s.w.opts.Implementation
	if impl != Userspace {
		err := s.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: sp.name, MTU: sp.mtu}})
		switch {
		case err == nil:
			s.w.devices[sp.name] = newMind()
			return nil
		case !errors.Is(err, unix.EOPNOTSUPP):
			return err
		case impl == Kernel:
			return fmt.Errorf("the kernel has no WireGuard: %w (modprobe wireguard, or a kernel with CONFIG_WIREGUARD, or leave Options.Implementation at Auto)", err)
		}
	}
	p, err := openInproc(sp.name, sp.mtu, logger(s.w.params))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		if impl == Userspace {
			return fmt.Errorf("the kernel has no TUN devices: %w (modprobe tun, or a kernel with CONFIG_TUN, or give the container /dev/net/tun)", err)
		}
		return fmt.Errorf("the kernel has neither WireGuard nor TUN devices: %w (modprobe wireguard, or a kernel with CONFIG_WIREGUARD; or modprobe tun, or a kernel with CONFIG_TUN, and give a container /dev/net/tun)", err)
	case err != nil:
		return err
	}
	s.inproc[sp.name], s.w.devices[sp.name] = p, newMind()
	return nil
}

// drop ends what this process has of a device that is gone, or shall be.
func (s *system) drop(name string) {
	if g := s.greets[name]; g != nil {
		g.close()
	}
	delete(s.greets, name)
	if p := s.inproc[name]; p != nil {
		p.close()
	}
	delete(s.inproc, name)
	delete(s.said, name)
}

// tune makes keys, port and peers what they shall be.
func (s *system) tune(sp spec, have netlink.Link) (done []string, err error) {
	m := s.w.devices[sp.name]
	if m == nil { // a predecessor's
		m = newMind()
		s.w.devices[sp.name] = m
	}
	var n tally
	defer func() { s.devices.Add(n.devices); s.peers.Add(n.peers); s.removed.Add(n.removed) }()
	if p := s.ours(have); p != nil {
		p.setMTU(sp.mtu)
		g := s.greeter(sp.name, p)
		if done, err = g.settle(sp, s.w.keys, m, &n); err == nil || m.device {
			if bad := p.up(sp.port); bad != nil {
				m.device = false
				err = errors.Join(err, bad)
			}
		}
		if p.isUp {
			s.greet(g, m)
		}
		s.say(sp.name, "wireguard-go in this process")
		return done, err
	}
	if have.Type() != kind {
		return nil, errors.New("it ended just now")
	}
	if s.kernel == nil {
		if s.kernel, err = wgctrl.New(); err != nil {
			return nil, fmt.Errorf("open the kernel's WireGuard: %w", err)
		}
	}
	g := s.greeter(sp.name, inkernel{s.kernel, sp.name})
	done, err = g.settle(sp, s.w.keys, m, &n)
	s.greet(g, m)
	s.say(sp.name, "the kernel")
	return done, err
}

// greeter returns the one of a device, which ends with it.
func (s *system) greeter(device string, ctl control) *greeter {
	g := s.greets[device]
	if g == nil {
		g = newGreeter(ctl, s.w.keys.public, logger(s.w.params).With("backend", name, "device", device))
		s.greets[device] = g
	}
	return g
}

// greet has the peers greeted that are new to a device.
func (s *system) greet(g *greeter, m *mind) {
	g.meet(m.fresh)
	m.fresh = nil
}

// say tells once who carries packets.
func (s *system) say(device, by string) {
	if s.said[device] != by {
		s.said[device] = by
		logger(s.w.params).Info("WireGuard device", "backend", name, "device", device, "by", by, "publickey", s.w.keys.public.String())
	}
}

// guard makes the routes that stand behind those through the devices. A route that is
// there costs one request and no change.
func (s *system) guard(networks []netip.Prefix) error {
	for _, n := range networks {
		err := s.nl.RouteAdd(guard(n))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("wireguard: guard route to %v: %w", n, err)
		}
		s.guards[n] = s.guards[n] || err == nil
	}
	return nil
}

func guard(n netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: rtnl.IPNet(n), Type: unix.RTN_BLACKHOLE, Priority: guardMetric}
}

// sweep removes, once, the device for IPv6 that a predecessor with Mode separate has
// left: its route would be in the way.
func (s *system) sweep(specs []spec) {
	if s.swept {
		return
	}
	s.swept = true
	for _, sp := range specs {
		if sp.name == deviceNameV6 {
			return
		}
	}
	link, err := s.nl.LinkByName(deviceNameV6)
	if err != nil || link.Type() != kind {
		return
	}
	if err := s.nl.LinkDel(link); err == nil {
		logger(s.w.params).Info("removed a device that is not needed any more", "backend", name, "device", deviceNameV6)
	}
}

// close ends everything in this process. netstate has done with the devices what fate
// says; it decides on the guard routes too.
func (s *system) close(fate netstate.Fate) error {
	var errs []error
	for dev := range s.greets {
		s.drop(dev)
	}
	for dev := range s.inproc {
		s.drop(dev)
	}
	for n, made := range s.guards {
		if fate == netstate.Leave || fate == netstate.Undo && !made {
			continue
		}
		if err := s.nl.RouteDel(guard(n)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the guard route to %v: %w", n, err))
		}
	}
	if s.kernel != nil {
		errs = append(errs, s.kernel.Close())
	}
	s.nl.Close()
	return errors.Join(errs...)
}

// An inkernel is the control of a kernel device.
type inkernel struct {
	client *wgctrl.Client
	name   string
}

func (k inkernel) get() (*wgtypes.Device, error) {
	d, err := k.client.Device(k.name)
	if err == nil && d.Type != wgtypes.LinuxKernel {
		return nil, errors.New("it ended just now") // else a process of that name would get our key
	}
	return d, err
}

func (k inkernel) set(c wgtypes.Config) error { return k.client.ConfigureDevice(k.name, c) }

// explainPort adds the remedy to errors of setting a port.
func explainPort(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w (stop the program that has the port, or set another ListenPort or ListenPortV6 for the whole network)", err)
	}
	return err
}
