package netstate

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A round (converge) goes through the State in the order in which things rest on each
// other:
//
//  1. Links, with MTU, hardware address, variables and state; then their addresses.
//  2. What Tune does: a WireGuard device's peers, a VXLAN device's offloads.
//  3. Neighbours and forwarding entries, before the routes that lead to them.
//  4. Routes.
//
// and each time first what is missing or different, then what is too much, so that a
// packet that had a way keeps one. All is compared with the kernel's own answer in
// the round; placed, what the last round left in place, only tells what somebody
// else has removed from what is new.

// A work is one round.
type work struct {
	k       *Keeper // nil in Clean
	nl      *netlink.Handle
	state   State
	mine    map[any]bool            // what this Keeper has made: idents of placed
	links   map[string]netlink.Link // ours, that are there
	index   map[string]int          // of all links that were asked for
	missing map[string]bool         // links that routes are wanted through and that are not there
	there   map[any]bool            // what is in place now
	routers map[netip.Addr]bool     // gateways to other things than subnets
	tunnels map[int]bool            // links, by whether they are a tunnel of another network
	done    []string                // what was in place before, and had to be put back
	strange []string                // what was removed and nobody here had made
	errs    []error
}

// converge does a round. It is called in the namespace.
func (k *Keeper) converge() (done []string, err error) {
	k.sys.names = map[int]string{}
	state, planErr := k.cfg.Plan(k.sys)
	w := newWork(k.sys.nl, state)
	w.k = k
	for _, l := range state.Links {
		if err := w.link(l); err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s: device %s: %w", k.cfg.Backend, l.Name, explain(err)))
		}
	}
	for _, name := range state.Watch {
		_, _ = w.linkIndex(name) // a watched link that is not there is noticed by its name
	}
	k.watch(state, w.index)
	w.mine = w.idents(k.placed)
	w.addrs()
	w.tune()
	w.neighs()
	w.fdb()
	w.routes()
	if len(w.strange) > 0 {
		k.cfg.Log.Info("removed what belongs to no peer and was not made here", "what", some(w.strange))
	}
	k.last, k.placed = state, w.there
	return w.done, joinSome(append([]error{planErr}, w.errs...))
}

// put makes something that is not in place.
func (w *work) put(thing fmt.Stringer, peer string, do func() error) {
	w.k.writes.Add(1)
	if err := do(); err != nil {
		w.fail(thing, peer, err)
		return
	}
	if w.k.placed[thing] {
		w.done = append(w.done, thing.String())
	}
	w.there[thing] = true
}

// drop removes something that is too much.
func (w *work) drop(ident any, what string, do func() error) {
	w.k.writes.Add(1)
	err := do()
	if err != nil && !gone(err) {
		w.errs = append(w.errs, fmt.Errorf("%s: remove the %s: %w", w.k.cfg.Backend, what, explain(err)))
		return
	}
	if !w.mine[ident] {
		w.strange = append(w.strange, what)
	}
	w.k.cfg.Log.Debug("removed", "what", what)
}

// newWork begins a round.
func newWork(nl *netlink.Handle, state State) *work {
	return &work{nl: nl, state: state, links: map[string]netlink.Link{}, index: map[string]int{}, missing: map[string]bool{},
		there: map[any]bool{}, tunnels: map[int]bool{}}
}

// A routeIdent is what tells a route from others, as the kernel has it.
type routeIdent struct {
	dst    netip.Prefix
	gw     netip.Addr
	link   int
	onLink bool
}

// idents returns what things are known by when they are met in the kernel: without
// whom they are for, and of neighbours and forwarding entries without what they say.
func (w *work) idents(placed map[any]bool) map[any]bool {
	all := make(map[any]bool, len(placed))
	for thing := range placed {
		switch t := thing.(type) {
		case Neigh:
			all[Neigh{Link: t.Link, IP: t.IP}] = true
		case FDB:
			all[FDB{Link: t.Link, MAC: t.MAC}] = true
		case Route:
			if i, err := w.linkIndex(t.Link); err == nil {
				all[routeIdent{t.Dst, t.Gw, i, t.OnLink}] = true
			}
		default:
			all[thing] = true
		}
	}
	return all
}

// some is the first few of many, for the log.
func some(what []string) []string {
	const most = 8
	if len(what) <= most {
		return what
	}
	return append(what[:most:most], fmt.Sprintf("and %d more", len(what)-most))
}

// gone reports whether an error says that there is nothing to remove.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)
}

func (w *work) fail(thing fmt.Stringer, peer string, err error) {
	err = fmt.Errorf("%v: %w", thing, explain(err))
	if peer != "" {
		err = &PeerError{peer, err}
	}
	w.errs = append(w.errs, fmt.Errorf("%s: %w", w.k.cfg.Backend, err))
}

// linkIndex returns the number of a link.
func (w *work) linkIndex(name string) (int, error) {
	if i, ok := w.index[name]; ok {
		return i, nil
	}
	l, err := w.nl.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	w.index[name] = l.Attrs().Index
	return l.Attrs().Index, nil
}

// find looks a link up; nil if there is none.
func (w *work) find(name string) (netlink.Link, error) {
	l, err := w.nl.LinkByName(name)
	if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
		return nil, nil
	}
	return l, err
}

// link makes one of our devices what it shall be.
func (w *work) link(want Link) error {
	have, err := w.find(want.Name)
	if err != nil {
		return err
	}
	if have != nil && want.Unfit != nil {
		if why := want.Unfit(have); why != "" {
			w.k.cfg.Log.Info("the device is not as it must be, and made anew", "device", want.Name, "why", why)
			w.k.writes.Add(1)
			if err := w.nl.LinkDel(have); err != nil && !gone(err) {
				return fmt.Errorf("remove it, since it is unfit (%s): %w", why, err)
			}
			have = nil
			w.forget(want.Name)
		}
	}
	if have == nil {
		if have, err = w.make(want); err != nil {
			return err
		}
		if w.k.placed[linkName(want.Name)] {
			w.done = append(w.done, "device "+want.Name)
		}
	}
	a := have.Attrs()
	w.index[want.Name] = a.Index
	w.links[want.Name] = have
	var errs []error
	asBefore := slices.ContainsFunc(w.k.last.Links, func(l Link) bool {
		return l.Name == want.Name && l.MTU == want.MTU && l.MAC == want.MAC
	})
	// adjust changes one property.
	adjust := func(what string, differs bool, do func() error) {
		if !differs {
			return
		}
		w.k.writes.Add(1)
		if err := do(); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", what, err))
			return
		}
		if w.k.placed[linkName(want.Name)] && asBefore {
			w.done = append(w.done, what+" of "+want.Name)
		}
	}
	adjust(fmt.Sprintf("MTU %d", want.MTU), want.MTU != 0 && a.MTU != want.MTU, func() error { return w.nl.LinkSetMTU(have, want.MTU) })
	adjust("hardware address "+want.MAC.String(), want.MAC != MAC{} && a.HardwareAddr.String() != want.MAC.String(),
		func() error { return w.nl.LinkSetHardwareAddr(have, net.HardwareAddr(want.MAC[:])) })
	w.sysctls(want)
	adjust("state up", a.Flags&net.FlagUp == 0, func() error { return w.nl.LinkSetUp(have) })
	if len(errs) == 0 {
		w.there[linkName(want.Name)] = true
	}
	return errors.Join(errs...)
}

// linkName is a link among the things in place.
type linkName string

// forget has nothing on a link count as in place, as the link was removed.
func (w *work) forget(name string) {
	maps.DeleteFunc(w.k.placed, func(thing any, _ bool) bool {
		switch t := thing.(type) {
		case linkName:
			return string(t) == name
		case Addr:
			return t.Link == name
		case Neigh:
			return t.Link == name
		case FDB:
			return t.Link == name
		case Route:
			return t.Link == name
		}
		return false
	})
}

// distinct leaves out what is wanted twice: of two things that the kernel can have only
// one of, the first is made, and the second is an error.
func distinct[T comparable](w *work, all []T, key func(T) any, peer func(T) string) []T {
	seen := make(map[any]T, len(all))
	out := make([]T, 0, len(all))
	for _, t := range all {
		first, twice := seen[key(t)]
		switch {
		case !twice:
			seen[key(t)] = t
			out = append(out, t)
		case peer(first) != peer(t) || first != t:
			w.fail(any(t).(fmt.Stringer), peer(t), fmt.Errorf("there can be only one, and it is wanted for peer %s as well", peer(first)))
		}
	}
	return out
}

// make makes a device that is not there.
func (w *work) make(want Link) (netlink.Link, error) {
	w.k.writes.Add(1)
	if want.Make != nil {
		if err := want.Make(); err != nil {
			return nil, err
		}
	} else {
		dev, err := want.New()
		if err != nil {
			return nil, err
		}
		a := dev.Attrs()
		a.Name, a.MTU = want.Name, want.MTU
		if want.MAC != (MAC{}) {
			a.HardwareAddr = net.HardwareAddr(want.MAC[:])
		}
		switch err := w.nl.LinkAdd(dev); {
		case errors.Is(err, unix.EOPNOTSUPP) && want.Module != "":
			return nil, fmt.Errorf("the kernel has no devices of type %s: %w (modprobe %s, or a kernel with %s)", dev.Type(), err, want.Module, want.Option)
		case err != nil:
			return nil, err
		}
	}
	have, err := w.nl.LinkByName(want.Name)
	if err != nil {
		return nil, err
	}
	w.k.made[want.Name] = true
	return have, nil
}

// sysctls sets kernel variables of a link. What can't be set, be it that IPv6 is
// compiled out or /proc is read-only, is no reason not to carry packets; it is said
// once.
func (w *work) sysctls(l Link) {
	for _, v := range l.Sysctls {
		path := filepath.Join("/proc/sys/net", strings.Replace(v[0], "*", l.Name, 1))
		have, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(have)) == v[1] {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(v[1]), 0)
		}
		if err != nil && !w.k.noted[path] {
			w.k.noted[path] = true
			w.k.cfg.Log.Debug("kernel variable not set", "path", path, "value", v[1], "err", err)
		}
	}
}

// tune has devices looked after.
func (w *work) tune() {
	for _, l := range w.state.Links {
		have := w.links[l.Name]
		if have == nil || l.Tune == nil {
			continue
		}
		done, err := l.Tune(have)
		w.k.writes.Add(uint64(len(done)))
		if w.k.placed[linkName(l.Name)] { // else the device is new, and so is this
			w.done = append(w.done, done...)
		}
		if err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s: device %s: %w", w.k.cfg.Backend, l.Name, explain(err)))
		}
	}
}

// end does what Close is asked to. It is called in the namespace.
func (k *Keeper) end(fate Fate) error {
	if fate == Leave {
		return nil
	}
	w := newWork(k.sys.nl, k.last)
	w.k = k
	for _, l := range k.last.Links {
		if fate == Undo && !k.made[l.Name] {
			continue
		}
		have, err := w.find(l.Name)
		if have != nil {
			w.drop(linkName(l.Name), "device "+l.Name, func() error { return k.sys.nl.LinkDel(have) })
		} else if err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s: device %s: %w", k.cfg.Backend, l.Name, explain(err)))
		}
	}
	if fate == Remove {
		w.removeRoutes()
	}
	return joinSome(w.errs)
}
